"""Lines and COBS frames: any split gives the same frames, damage costs what it hits, and every loss is counted."""

import random
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.ports.framing import FrameCounts, FrameReader, Kind, cobs_decode, cobs_encode, encode_frame

PAYLOADS = (b"21.5", b"x" * 254, b"\x01\xff" * 200, b'{"t":21.5}')


def stream(kind: Kind, payloads: tuple[bytes, ...]) -> bytes:
    return (b"\0" if kind is Kind.COBS else b"\n") + b"".join(encode_frame(kind, payload) for payload in payloads)


def read(kind: Kind, *pieces: bytes, max_frame: int = 8192) -> tuple[list[bytes], FrameCounts]:
    counts = FrameCounts()
    reader = FrameReader(kind, counts, max_frame)
    return [frame for piece in pieces for frame in reader.feed(piece)], counts


@pytest.mark.parametrize("kind", Kind)
def test_every_split_gives_the_same_frames(kind: Kind) -> None:
    """Half frames at every byte, and one byte at a time."""
    data = stream(kind, PAYLOADS)
    for cut in range(len(data) + 1):
        assert read(kind, data[:cut], data[cut:])[0] == list(PAYLOADS)
    assert read(kind, *(bytes((byte,)) for byte in data))[0] == list(PAYLOADS)


@pytest.mark.parametrize("kind", Kind)
def test_what_comes_before_the_first_delimiter_is_no_frame(kind: Kind) -> None:
    """A port is opened at any moment: the half frame is dropped and counted, and the twin, from its start, is not."""
    data = stream(kind, PAYLOADS)[1:]
    for cut in range(1, len(encode_frame(kind, PAYLOADS[0])) - 1):
        frames, counts = read(kind, data[cut:])
        assert frames == list(PAYLOADS[1:])
        assert counts.unsynchronised == (1 if kind is Kind.LINE or data[cut : cut + 1] != b"\0" else 0)


@given(st.binary(max_size=1200))
def test_cobs_has_no_zero_and_comes_back(data: bytes) -> None:
    """What was encoded is decoded; it holds no delimiter and is at most one byte in 254 longer."""
    encoded = cobs_encode(data)
    assert 0 not in encoded
    assert cobs_decode(encoded) == data
    assert len(encoded) <= len(data) + len(data) // 254 + 1


@pytest.mark.parametrize(
    ("data", "encoded"),
    [
        (b"", b"\x01"),
        (b"\0", b"\x01\x01"),
        (b"\x11\x22\0\x33", b"\x03\x11\x22\x02\x33"),
        (b"\x11\0\0\0", b"\x02\x11\x01\x01\x01"),
        (bytes(range(1, 255)) + b"\xff", b"\xff" + bytes(range(1, 255)) + b"\x02\xff"),
    ],
    ids=["empty", "zero", "mixed", "zeros", "long"],
)
def test_cobs_is_the_published_one(data: bytes, encoded: bytes) -> None:
    """The examples of the COBS paper and of its encyclopedia article."""
    assert cobs_encode(data) == encoded
    assert cobs_decode(encoded) == data


@pytest.mark.parametrize("encoded", [b"\x05\x11", b"\x02\0", b"\xff\x01", b"\0"])
def test_what_no_encoder_makes_is_refused(encoded: bytes) -> None:
    """The twin: a run past the end, or a zero, is no COBS."""
    assert cobs_decode(encoded) is None


def test_the_crc_is_zlib_s_little_endian() -> None:
    """Made by hand, so that firmware can be held against it."""
    payload = b"123456789"
    frame = b"\0" + cobs_encode(payload + bytes.fromhex("2639f4cb")) + b"\0"
    assert zlib.crc32(payload) == 0xCBF43926
    assert encode_frame(Kind.COBS, payload) == frame
    assert read(Kind.COBS, frame)[0] == [payload]


def test_every_flipped_bit_is_caught() -> None:
    """One frame of three is damaged in each bit: it never arrives changed, and the last one always arrives."""
    before, hit, after = (encode_frame(Kind.COBS, payload) for payload in (b"before", b"hit\0me", b"after"))
    for bit in range(8 * len(hit)):
        damaged = bytearray(hit)
        damaged[bit // 8] ^= 1 << bit % 8
        frames, counts = read(Kind.COBS, before + bytes(damaged) + after)
        assert frames in ([b"before", b"after"], [b"before", b"hit\0me", b"after"])
        assert len(frames) == 3 or counts.bad_crc + counts.malformed > 0


@pytest.mark.parametrize("kind", Kind)
def test_an_over_long_frame_takes_no_other_with_it(kind: Kind) -> None:
    """Dropped up to its delimiter and counted once, wherever the reads cut it; one of just the maximum is taken."""
    fits = b"y" * (64 - (0 if kind is Kind.LINE else 5))
    data = stream(kind, (b"before", b"x" * 500, fits, b"after"))
    for size in (1, 7, 64, 65, 66, 1000):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        frames, counts = read(kind, *pieces, max_frame=64)
        assert frames == [b"before", fits, b"after"]
        assert counts == FrameCounts(frames=3, over_long=1, unsynchronised=counts.unsynchronised)


@pytest.mark.parametrize("kind", Kind)
@given(noise=st.binary(max_size=300), cuts=st.integers(1, 40))
def test_no_bytes_crash_the_reader_and_it_finds_back(kind: Kind, noise: bytes, cuts: int) -> None:
    """After any noise one delimiter is enough for the next frame."""
    data = noise + stream(kind, (b"found",))
    frames, _ = read(kind, *(data[at : at + cuts] for at in range(0, len(data), cuts)), max_frame=100)
    assert frames[-1] == b"found"


def test_noise_on_the_line_loses_only_what_it_hits() -> None:
    """Five thousand COBS frames, one byte in a thousand damaged: nothing wrong arrives, and every loss is counted."""
    rng = random.Random(7)  # noqa: S311
    sent = [b"%d,%d" % (number, rng.randrange(10**9)) for number in range(5000)]
    data = bytearray(stream(Kind.COBS, tuple(sent)))
    hits = [at for at in range(len(data)) if rng.random() < 0.001]
    for at in hits:
        data[at] ^= 1 << rng.randrange(8)
    frames, counts = read(Kind.COBS, *(bytes(data[at : at + 97]) for at in range(0, len(data), 97)))
    assert set(frames) <= set(sent)
    assert frames == [payload for payload in sent if payload in set(frames)]
    assert 0 < len(sent) - len(frames) <= 2 * len(hits)
    assert replace(counts, frames=0) != FrameCounts()


def test_a_line_with_a_line_break_is_not_sent() -> None:
    """It would be two lines for the device; COBS has no such byte."""
    for payload in (b"a\nb", b"a\rb"):
        with pytest.raises(ValueError, match="line break"):
            encode_frame(Kind.LINE, payload)
        assert read(Kind.COBS, encode_frame(Kind.COBS, payload))[0] == [payload]
