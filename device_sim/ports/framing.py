"""Frames out of a serial byte stream, and back: lines, or COBS with a CRC-32. Sans-io: any split gives the same frames.

A frame ends at its delimiter (newline, or zero) and at nothing else; a pause ends none. What is too long is dropped up
to the next delimiter, and no more of it is held than the maximum; what does not check is dropped alone. So damage costs
the frame it hits (two, when it hits the delimiter between them), and each loss is counted by its cause. What comes
before the first delimiter after opening is dropped: a port is opened at any moment.

COBS is Cheshire and Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM ToN 1999: no zero in the frame, at most one
byte in 254 more. The CRC-32 (zlib's) follows the payload, four bytes, least significant first, inside the stuffing.
It finds noise and authenticates nobody. The line framing has no check of its own; NMEA and SPP/1 bring theirs.
"""

import zlib
from dataclasses import dataclass
from enum import StrEnum

from device_sim.lines import MAX_LINE_BYTES

MAX_FRAME_BYTES = MAX_LINE_BYTES  # unless the configuration says otherwise; before decoding, without the delimiter
CRC_BYTES = 4
LONGEST_RUN = 254  # bytes without a zero that one code byte announces


class Kind(StrEnum):
    """How a port's bytes become frames."""

    LINE = "line"
    COBS = "cobs"


@dataclass(slots=True)
class FrameCounts:
    """What came and what did not become a frame."""

    frames: int = 0
    over_long: int = 0
    bad_crc: int = 0
    malformed: int = 0  # no COBS: a run that goes past the end, or less than a CRC
    unsynchronised: int = 0  # pieces before the first delimiter
    unparsed: int = 0  # whole frames that the port's parser refused


class FrameReader:
    """Cuts bytes into frames; one per opening of a port, over counts that outlive it."""

    def __init__(self, kind: Kind, counts: FrameCounts, max_frame: int = MAX_FRAME_BYTES) -> None:
        self._is_cobs = kind is Kind.COBS
        self._delimiter = b"\0" if self._is_cobs else b"\n"
        self._counts = counts
        self._max_frame = max_frame
        self._held = bytearray()
        self._is_synchronised = False
        self._is_dropping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes as they came; the frames they completed, in order. Empty frames are none."""
        *finished, rest = data.split(self._delimiter)
        found = []
        for part in finished:
            self._take(part)
            frame = self._end_frame()
            if frame:
                found.append(frame)
        self._take(rest)
        self._counts.frames += len(found)
        return found

    def _take(self, part: bytes) -> None:
        if self._is_dropping:
            return
        self._held += part[: self._max_frame + 1 - len(self._held)]
        if len(self._held) > self._max_frame:
            self._counts.over_long += 1
            self._held.clear()
            self._is_dropping = True

    def _end_frame(self) -> bytes:
        raw = bytes(self._held)
        self._held.clear()
        if self._is_dropping or not self._is_synchronised:
            self._counts.unsynchronised += bool(raw)
            self._is_dropping, self._is_synchronised = False, True
            return b""
        if not self._is_cobs:
            return raw.strip(b"\r")
        return self._checked(raw) if raw else b""

    def _checked(self, raw: bytes) -> bytes:
        body = cobs_decode(raw)
        if body is None or len(body) <= CRC_BYTES:
            self._counts.malformed += 1
            return b""
        payload, crc = body[:-CRC_BYTES], body[-CRC_BYTES:]
        if crc_of(payload) != crc:
            self._counts.bad_crc += 1
            return b""
        return payload


def encode_frame(kind: Kind, payload: bytes) -> bytes:
    """The bytes that go down to the device; ValueError for a line that holds a line break."""
    if kind is Kind.COBS:
        # The delimiter in front ends whatever noise stands on the line.
        return b"\0" + cobs_encode(payload + crc_of(payload)) + b"\0"
    if b"\n" in payload or b"\r" in payload:
        raise ValueError("a line holds no line break")
    return payload + b"\n"


def crc_of(payload: bytes) -> bytes:
    """The four bytes that follow a payload."""
    return zlib.crc32(payload).to_bytes(CRC_BYTES, "little")


def cobs_encode(data: bytes) -> bytes:
    """`data` without a zero byte."""
    out = bytearray()
    for piece in data.split(b"\0"):
        while len(piece) >= LONGEST_RUN:
            out += b"\xff" + piece[:LONGEST_RUN]
            piece = piece[LONGEST_RUN:]
        out += bytes((len(piece) + 1,)) + piece
    return bytes(out)


def cobs_decode(data: bytes) -> bytes | None:
    """What was encoded; None for what no encoder makes."""
    out, at = bytearray(), 0
    while at < len(data):
        code = data[at]
        run = data[at + 1 : at + code]
        if code == 0 or len(run) != code - 1 or 0 in run:
            return None
        out += run
        at += code
        if code <= LONGEST_RUN and at < len(data):
            out += b"\0"
    return bytes(out)
