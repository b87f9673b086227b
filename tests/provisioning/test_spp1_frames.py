"""Frames of SPP/1: any split of the bytes gives the same frames, and no bytes break the reader."""

import binascii
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.spp1.frames import (
    FRAME_OVERHEAD_BYTES,
    INITIAL_MAX_LINE,
    LARGEST_MAX_LINE,
    Frame,
    FrameReader,
    FrameTooLong,
    LineFault,
    LogLine,
    crc32,
    encode_frame,
)

MESSAGE = {"s": "", "i": 1, "c": "STATUS"}

texts = st.text(max_size=20)
messages = st.dictionaries(texts, st.one_of(texts, st.integers(-(2**40), 2**40), st.booleans(), st.none()), max_size=5)


def line_of(body: bytes, crc: bytes | None = None) -> bytes:
    """A frame's line by hand, so that the encoder is not its own judge."""
    return b"!P1 " + body + b" *" + (b"%08x" % zlib.crc32(body) if crc is None else crc)


def only_fault(data: bytes) -> LineFault:
    (found,) = FrameReader().feed(data)
    assert isinstance(found, LogLine)
    return found.fault


def test_the_crc_is_the_one_of_the_specification() -> None:
    """CRC-32/ISO-HDLC by its check value, and by another implementation."""
    assert crc32(b"123456789") == 0xCBF43926
    assert crc32(b"some other bytes") == binascii.crc32(b"some other bytes")


def test_a_frame_stands_between_two_newlines() -> None:
    """The encoder's bytes are exactly what the specification shows."""
    body = b'{"s":"","i":1,"c":"STATUS"}'
    assert encode_frame(MESSAGE) == b"\n" + line_of(body) + b"\n"


@given(messages)
def test_what_is_encoded_is_read_back(message: dict[str, object]) -> None:
    """Encoding and reading are inverse, whatever characters the texts hold, ` *` included."""
    assert FrameReader(LARGEST_MAX_LINE).feed(encode_frame(message)) == [
        Frame(message, zlib.crc32(json.dumps(message, separators=(",", ":")).encode()))
    ]


pieces = st.one_of(
    messages.map(encode_frame),
    st.binary(max_size=60),
    st.sampled_from([b"\n", b"\r\n", b"log *00000000\n", b"!P1 ", b"x" * 300, line_of(b"{}", b"00000000") + b"\n"]),
)


@given(st.lists(pieces, max_size=8).map(b"".join), st.data())
def test_any_split_gives_the_same_lines(stream: bytes, data: st.DataObject) -> None:
    """The reader's answer depends on the bytes, not on how they arrived."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader, found = FrameReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    whole = FrameReader()

    assert found == whole.feed(stream)
    assert reader.counts == whole.counts
    assert reader.flush() == whole.flush()


def test_one_byte_at_a_time_gives_the_same_frame() -> None:
    """The smallest split of all."""
    reader = FrameReader()
    found = [line for byte in encode_frame(MESSAGE) for line in reader.feed(bytes([byte]))]
    assert [line.message for line in found if isinstance(line, Frame)] == [MESSAGE]


@given(st.binary(max_size=2000))
def test_no_bytes_break_the_reader_and_every_log_line_is_safe_to_print(data: bytes) -> None:
    """Arbitrary bytes never raise, and no control character of the line reaches a trace."""
    reader = FrameReader()
    lines = [*reader.feed(data), *reader.feed(b"\n")]
    assert all(line.text.isprintable() for line in lines if isinstance(line, LogLine))


def test_a_frame_after_an_unfinished_log_line_is_read() -> None:
    """The newline in front of every frame ends whatever stood there."""
    log, frame = FrameReader().feed(b"I (31) boot: hal" + encode_frame(MESSAGE))
    assert log == LogLine("I (31) boot: hal")
    assert isinstance(frame, Frame)


def test_carriage_returns_are_ignored_wherever_they_stand() -> None:
    """Terminals and adapters add them; the CRC is over the bytes without."""
    (frame,) = FrameReader().feed(b"\r\n!P1 {\r}" + line_of(b"{}")[6:] + b"\r\r\n")
    assert frame == Frame({}, zlib.crc32(b"{}"))


def test_the_last_trailer_of_a_line_counts() -> None:
    """A ` *` and eight hex digits inside the JSON is text, not the trailer."""
    body = b'{"m":"was *deadbeef"}'
    assert FrameReader().feed(line_of(body) + b"\n") == [Frame({"m": "was *deadbeef"}, zlib.crc32(body))]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (line_of(b"{}", b"00000000"), LineFault.BAD_CRC),
        (line_of(b"{}").replace(b"{}", b"[]"), LineFault.BAD_CRC),
        (line_of(b"{}").upper().replace(b"!p1", b"!P1"), LineFault.MALFORMED),  # crc of {} has letters: see below
        (line_of(b"{}") + b" ", LineFault.MALFORMED),
        (line_of(b"{}")[:-1], LineFault.MALFORMED),
        (b"!P1 {}", LineFault.MALFORMED),
        (line_of(b"[]"), LineFault.MALFORMED),
        (line_of(b"1"), LineFault.MALFORMED),
        (line_of(b'{"a":1,"a":2}'), LineFault.MALFORMED),
        (line_of(b'{"a":NaN}'), LineFault.MALFORMED),
        (line_of(b'{"a":\t1}'), LineFault.MALFORMED),
        (line_of(b'{"a":"\xff"}'), LineFault.MALFORMED),
        (line_of(b"[" * 200), LineFault.MALFORMED),
        (b"!P2 {} *a3830348", LineFault.NONE),
        (b" " + line_of(b"{}"), LineFault.NONE),
    ],
    ids=[
        "wrong crc", "changed body", "upper-case crc", "space after the crc", "seven digits", "no trailer", "array",
        "number", "name twice", "nan", "raw control character", "bad utf-8", "deep nesting", "other magic", "indented",
    ],
)  # fmt: skip
def test_what_is_no_valid_frame_is_dropped_and_counted(line: bytes, fault: LineFault) -> None:
    """Nothing is repaired: the line becomes a log line with the reason, and the next frame is read."""
    reader = FrameReader()

    dropped, frame = reader.feed(line + encode_frame(MESSAGE))

    assert isinstance(dropped, LogLine)
    assert dropped.fault is fault
    assert reader.counts[fault] == 1
    assert isinstance(frame, Frame)


def test_the_crc_of_the_upper_case_row_has_letters() -> None:
    """Else that row would prove nothing."""
    assert (b"%08x" % zlib.crc32(b"{}")) != (b"%08X" % zlib.crc32(b"{}"))


@pytest.mark.parametrize("excess", [0, 1])
def test_a_line_is_read_up_to_its_limit_and_dropped_beyond(excess: int) -> None:
    """256 bytes are a frame, 257 are reported once and dropped up to their newline."""
    padding = INITIAL_MAX_LINE - FRAME_OVERHEAD_BYTES - len('{"m":""}') + excess
    data = encode_frame({"m": "x" * padding})
    assert len(data) == INITIAL_MAX_LINE + excess + 2

    first, second = FrameReader().feed(data + encode_frame(MESSAGE))

    assert isinstance(second, Frame)
    assert isinstance(first, LogLine if excess else Frame)
    assert not isinstance(first, LogLine) or first.fault is LineFault.TOO_LONG


def test_an_endless_line_costs_no_more_than_the_limit() -> None:
    """A device that never ends its line fills no memory, and is heard again after the newline."""
    reader = FrameReader()
    for _ in range(1000):
        assert reader.feed(b"y" * 1000) == []
        assert len(reader._line) <= INITIAL_MAX_LINE
    assert only_fault(b"y" * 1000 + b"\n") is LineFault.TOO_LONG
    assert [type(line) for line in reader.feed(encode_frame(MESSAGE))] == [LogLine, Frame]


def test_a_raised_limit_takes_longer_lines() -> None:
    """What HELLO agreed on holds for the next line."""
    reader = FrameReader()
    data = encode_frame({"m": "x" * 600})
    (before,) = reader.feed(data)
    reader.max_line = 1024
    (after,) = reader.feed(data)
    assert (type(before), type(after)) == (LogLine, Frame)


def test_a_message_that_does_not_fit_is_not_sent() -> None:
    """The encoder refuses rather than let the device drop it in silence."""
    with pytest.raises(FrameTooLong):
        encode_frame({"m": "x" * 300}, max_line=INITIAL_MAX_LINE)


def test_an_escape_sequence_of_the_device_does_not_reach_the_terminal() -> None:
    """Log text is sanitised and cut."""
    (line,) = FrameReader().feed(b"\x1b[2J\x07evil\n")
    assert isinstance(line, LogLine)
    assert line.text == "\\x1b[2J\\x07evil"
    (long,) = FrameReader(LARGEST_MAX_LINE).feed(b"z" * 4000 + b"\n")
    assert isinstance(long, LogLine)
    assert len(long.text) <= 200
