"""What docs/spp1.md, section 1, asks of a device: which lines are frames, and that all others get silence.

Each row is a STATUS request, written in a way that must be understood, or damaged in a way that must not.
"""

import json
from collections.abc import Callable
from functools import partial

from provisioning.conformance.checking import Check
from provisioning.conformance.line import Failed, Message, body_of, frame_of, outcome_of
from provisioning.conformance.probe import Probe
from provisioning.spp1.frames import FRAME_OVERHEAD_BYTES, INITIAL_MAX_LINE, MAX_BRACKETS, crc32
from provisioning.spp1.protocol import Kind, State, Verb

PAUSE_S = 0.4  # in the middle of a frame: no receiver may take it for the end
GARBAGE = b"\xff\xf0\x00\x80wifi: connected"
_NO_SUCH_NUMBER = 0x7FFFFFFF  # a damaged frame has no number of its own: this one is never used

# A request and its JSON, made into the bytes for the wire.
Writing = Callable[[Message], bytes]


# --- what must be understood ---


def _answered(write: Writing, probe: Probe) -> None:
    request = probe.line.next_request(Verb.STATUS, {})
    reply = probe.line.exchange(write(request), Verb.STATUS, request)
    if reply["r"] != Kind.OK:
        raise Failed(f"it was answered {outcome_of(reply)}")


def _with(**more: object) -> Writing:
    return lambda request: frame_of(body_of({**request, **more}))


def _text(change: Callable[[str], str]) -> Writing:
    return lambda request: frame_of(change(body_of(request).decode("ascii")).encode("ascii"))


def _carriage_returns(request: Message) -> bytes:
    frame = frame_of(body_of(request))
    return frame[:9] + b"\r" + frame[9:20] + b"\r\r" + frame[20:-1] + b"\r\n"


def _after_half_a_line(request: Message) -> bytes:
    frame = frame_of(body_of(request))
    return frame[: len(frame) // 2] + frame


_SPACED: Writing = lambda request: frame_of(json.dumps(request, separators=(" , ", " : ")).encode("ascii"))  # noqa: E731
_TURNED: Writing = lambda request: frame_of(body_of(dict(reversed(list(request.items())))))  # noqa: E731

UNDERSTOOD: tuple[tuple[str, str, Writing], ...] = (
    ("line-noise-before", "a frame after unended noise is read", lambda r: GARBAGE + frame_of(body_of(r))),
    ("line-half-before", "a frame after half a frame is read", _after_half_a_line),
    ("line-cr", "CR is removed wherever it stands", _carriage_returns),
    ("line-last-trailer", "the trailer is the last ` *` of the line", _with(x="a *00000000 b")),
    ("line-unknown-field", "a field it does not know is ignored", _with(x={"y": [1, None, -1.5e3]})),
    ("json-spaces", "spaces between JSON tokens change nothing", _SPACED),
    ("json-order", "the order of names means nothing", _TURNED),
    ("json-escape", "escapes in JSON texts are read", _text(lambda body: body.replace("STATUS", "STA\\u0054US"))),
)


def _split(probe: Probe) -> None:
    request = probe.line.next_request(Verb.STATUS, {})
    frame = frame_of(body_of(request))
    probe.line.write(frame[:30])
    probe.line.listen(PAUSE_S)
    # A repetition is a whole frame: only the answer to the two halves counts.
    probe.line.write(frame[30:])
    if probe.line.reply_to(request, 2.0) is None:
        raise Failed(f"a frame with a pause of {PAUSE_S:g} s in it was not answered")


def _longest(probe: Probe) -> None:
    _answered(partial(_of_length, length=probe.line.max_line), probe)


def _of_length(request: Message, length: int) -> bytes:
    """A frame of exactly so many bytes, its newlines not counted."""
    empty = len(body_of({**request, "x": ""})) + FRAME_OVERHEAD_BYTES
    return frame_of(body_of({**request, "x": "x" * (length - empty)}))


def _first_longest(probe: Probe) -> None:
    probe.line.reset_without_hello()
    request = probe.line.next_request(Verb.HELLO, probe.line.hello_values(), sid="")
    reply = probe.line.exchange(_of_length(request, INITIAL_MAX_LINE), Verb.HELLO, request)
    if reply["r"] != Kind.OK:
        raise Failed(f"a HELLO of {INITIAL_MAX_LINE} bytes was answered {outcome_of(reply)}")


def _newlines(probe: Probe) -> None:
    probe.ok(Verb.STATUS)
    if b"\n!P1 " not in probe.line.raw:
        raise Failed("no newline stands before the frame of its reply")


# --- what must get silence ---


def _silence(write: Writing, probe: Probe) -> None:
    request = probe.line.next_request(Verb.STATUS, {})
    strays = probe.line.strays_after(write(request))
    if strays:
        raise Failed(f"it was answered {outcome_of(strays[0])}" if "r" in strays[0] else "it was answered")


def _wrong_crc(request: Message) -> bytes:
    body = body_of(request)
    return frame_of(body, crc=b"%08x" % (crc32(body) ^ 0x00010000))


def _upper_case_crc(request: Message) -> bytes:
    """A right CRC in the wrong letters; one without letters would be right."""
    bodies = (body_of({**request, "x": number}) for number in range(1000))
    body = next(body for body in bodies if any(digit in b"abcdef" for digit in b"%08x" % crc32(body)))
    return frame_of(body, crc=b"%08X" % crc32(body))


def _no_trailer(request: Message) -> bytes:
    return frame_of(body_of(request))[:-11] + b"\n"


def _without(name: str) -> Writing:
    return lambda request: frame_of(body_of({key: value for key, value in request.items() if key != name}))


def _raw(piece: bytes) -> Writing:
    """A body with `piece` as the value of one more name."""
    return lambda request: frame_of(body_of(request)[:-1] + b',"x":' + piece + b"}")


def _too_long(probe: Probe) -> None:
    _silence(partial(_of_length, length=probe.line.max_line + 1), probe)


def _first_too_long(probe: Probe) -> None:
    probe.line.reset_without_hello()
    request = probe.line.next_request(Verb.HELLO, probe.line.hello_values(), sid="")
    over = _of_length(request, INITIAL_MAX_LINE + 1)
    following = probe.line.next_request(Verb.HELLO, probe.line.hello_values(), sid="")
    probe.line.exchange(over + frame_of(body_of(following)), Verb.HELLO, following)
    if any(message.get("i") != following["i"] for message in probe.line.heard):
        raise Failed(f"a HELLO of {INITIAL_MAX_LINE + 1} bytes was answered")


DAMAGED: tuple[tuple[str, str, Writing], ...] = (
    ("crc-wrong", "a frame with a wrong CRC gets silence", _wrong_crc),
    ("crc-upper-case", "a CRC in upper case gets silence", _upper_case_crc),
    ("crc-missing", "a frame without a trailer gets silence", _no_trailer),
    ("json-array", "JSON that is no object gets silence", lambda r: frame_of(b"[" + body_of(r) + b"]")),
    ("json-cut", "JSON that is cut short gets silence", lambda r: frame_of(body_of(r)[:-1])),
    ("json-more", "JSON with more behind it gets silence", lambda r: frame_of(body_of(r) + b" x")),
    ("json-twice", "a name that stands twice gets silence", lambda r: frame_of(body_of(r)[:-1] + b',"c":"IDENT"}')),
    ("json-control", "a raw control character gets silence", _raw(b'"a\tb"')),
    ("json-nan", "NaN gets silence", _raw(b"NaN")),
    ("json-utf8", "bytes that are no UTF-8 get silence", _raw(b'"\xff\xfe"')),
    ("json-deep", f"more than {MAX_BRACKETS} brackets get silence", _raw(b"[" * MAX_BRACKETS + b"]" * MAX_BRACKETS)),
)

# Valid frames that nobody can be meant with (section 3).
UNADDRESSED: tuple[tuple[str, str, Writing], ...] = (
    ("request-no-s", "a request without `s` is ignored", _without("s")),
    ("request-no-i", "a request without `i` is ignored", _without("i")),
    ("request-no-c", "a request without `c` is ignored", _without("c")),
    ("request-i-zero", "an `i` of 0 is no number: ignored", lambda r: frame_of(body_of({**r, "i": 0}))),
    ("request-i-text", "an `i` in quotes is ignored", lambda r: frame_of(body_of({**r, "i": str(r["i"])}))),
    ("request-i-large", "an `i` from 2^31 is ignored", lambda r: frame_of(body_of({**r, "i": 2**31}))),
)

LINE_CHECKS: tuple[Check, ...] = (
    *(Check(name, "1", must, State.BLANK, partial(_answered, write)) for name, must, write in UNDERSTOOD),
    Check("line-pause", "1", "a pause in a frame does not end the line", State.BLANK, _split),
    Check("line-longest", "1", "a line of max_line bytes is read", State.BLANK, _longest),
    Check("line-too-long", "1", "a line of max_line + 1 bytes gets silence", State.BLANK, _too_long),
    Check("line-newline", "1", "a newline stands before every frame", State.BLANK, _newlines),
    *(Check(name, "1", must, State.BLANK, partial(_silence, write)) for name, must, write in DAMAGED),
    *(Check(name, "3", must, State.BLANK, partial(_silence, write)) for name, must, write in UNADDRESSED),
)

# Judged by the E_SESSION of a boot that knows no session.
BOOT_CHECKS: tuple[Check, ...] = (
    Check("line-first", "1", "before HELLO 256 bytes are read", State.BLANK, _first_longest, ("session-boot",)),
    Check(
        "line-first-too-long", "1", "before HELLO 257 bytes get silence", State.BLANK, _first_too_long,
        ("session-boot",),
    ),
)  # fmt: skip
