"""SPP/1 frames: `!P1 <json> *<crc32>` lines that live beside a device's log on one serial line.

Sans-io: bytes in, frames and log lines out, and any split of the bytes gives the same result. A time-out is
never the end of a frame. What is not a valid frame is dropped and counted, never repaired and never raised:
a bad CRC is answered by silence, so the peer's timer does the rest.

It does not know verbs, sessions or time. The CRC finds noise; it is no MAC and authenticates nobody.
Specification: docs/spp1.md, "Lines and frames".
"""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mtls.terminal import sanitise

MAGIC = b"!P1 "
TRAILER = b" *"
FRAME_OVERHEAD_BYTES = len(MAGIC) + len(TRAILER) + 8  # what a frame adds to its JSON, newlines not counted

INITIAL_MAX_LINE = 256  # until HELLO agrees on more; a device with 1 KiB of RAM can hold one line
LARGEST_MAX_LINE = 4096  # whatever HELLO says: keeps a lying or broken device's lines bounded in our memory
MAX_BRACKETS = 64  # `{` and `[` of one frame, the protocol needs three: bounds every recursion over a message
LOG_TEXT_CHARS = 200  # log lines are for people; a line that is longer is cut, not kept

_CRC_TEXT = re.compile(rb"[0-9a-f]{8}")
_CONTROL = re.compile(rb"[\x00-\x1f]")


class FrameTooLong(ValueError):
    """A message that does not fit into the line length agreed with the peer."""


class LineFault(StrEnum):
    """Why a line that could have been a frame is none; `none` is an ordinary log line."""

    NONE = "none"
    BAD_CRC = "bad_crc"
    TOO_LONG = "too_long"
    MALFORMED = "malformed"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Frame:
    """A valid frame: its JSON object, and the CRC that tells a resent request from a new one."""

    message: Mapping[str, Any]
    crc: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that is no valid frame: the device's log, or what noise left of a frame. `text` is sanitised."""

    text: str
    fault: LineFault = LineFault.NONE


def crc32(data: bytes) -> int:
    """CRC-32/ISO-HDLC, the CRC of zlib and Ethernet; `crc32(b"123456789") == 0xcbf43926`."""
    return zlib.crc32(data)


def encode_frame(message: Mapping[str, Any], *, max_line: int = LARGEST_MAX_LINE) -> bytes:
    """The frame's bytes, a newline before and after. FrameTooLong when the line exceeds `max_line` bytes.

    The newline in front ends whatever log line the sender was in the middle of. The JSON is compact ASCII.
    """
    body = _ENCODER.encode(message).encode("ascii")
    line = MAGIC + body + TRAILER + b"%08x" % crc32(body)
    if len(line) > max_line:
        raise FrameTooLong(f"a frame of {len(line)} bytes exceeds max_line {max_line}")
    return b"\n" + line + b"\n"


class FrameReader:
    """Cuts a byte stream into frames and log lines; holds at most `max_line` bytes of an unfinished line.

    `max_line` may be changed between two calls of `feed` (HELLO does). `counts` says how often each
    LineFault occurred.
    """

    def __init__(self, max_line: int = INITIAL_MAX_LINE) -> None:
        self.max_line = max_line
        self.counts: dict[LineFault, int] = dict.fromkeys(LineFault, 0)
        self._line = bytearray()
        self._is_over_long = False

    def feed(self, data: bytes) -> list[Frame | LogLine]:
        """Take bytes as they came; return what they completed, in order. Never raises."""
        found: list[Frame | LogLine] = []
        # CR is ignored wherever it stands: terminals and USB adapters add it, JSON escapes it.
        *finished, rest = data.replace(b"\r", b"").split(b"\n")
        for part in finished:
            self._take(part)
            line = self._end_line()
            if line is not None:
                found.append(line)
        self._take(rest)
        return found

    def flush(self) -> LogLine | None:
        """End an unfinished line because the port was closed in the middle of it; it is never a frame."""
        line = bytes(self._line)
        self._forget()
        return LogLine(_readable(line), LineFault.CUT) if line else None

    def _forget(self) -> None:
        self._line.clear()
        self._is_over_long = False

    def _take(self, part: bytes) -> None:
        room = self.max_line - len(self._line)
        self._is_over_long = self._is_over_long or len(part) > room
        self._line += part[: max(room, 0)]

    def _end_line(self) -> Frame | LogLine | None:
        line, is_over_long = bytes(self._line), self._is_over_long
        self._forget()
        if not line and not is_over_long:
            return None
        parsed = LineFault.TOO_LONG if is_over_long else parse_line(line)
        if isinstance(parsed, Frame):
            return parsed
        self.counts[parsed] += 1
        return LogLine(_readable(line), parsed)


def parse_line(line: bytes) -> Frame | LineFault:
    """Judge one line without its newline. The trailer is the last ` *` and exactly 8 lower-case hex digits."""
    if not line.startswith(MAGIC):
        return LineFault.NONE
    body, trailer, crc_text = line[len(MAGIC) :].rpartition(TRAILER)
    if not trailer or not _CRC_TEXT.fullmatch(crc_text):
        return LineFault.MALFORMED
    crc = int(crc_text, 16)
    if crc32(body) != crc:
        return LineFault.BAD_CRC
    message = _parse_object(body)
    return LineFault.MALFORMED if message is None else Frame(message, crc)


def _parse_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in `body`, or None: bad UTF-8, raw control characters, NaN, a name twice, no object."""
    if _CONTROL.search(body) or body.count(b"{") + body.count(b"[") > MAX_BRACKETS:
        return None
    try:
        message = _DECODER.decode(body.decode("utf-8"))
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two parsers that disagree on which of two equal names counts would disagree on what was asked.
    named = dict(pairs)
    if len(named) != len(pairs):
        raise ValueError("a name stands twice in one JSON object")
    return named


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


# Made once: json.loads and json.dumps make them anew for every line.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _readable(line: bytes) -> str:
    return sanitise(line.decode("utf-8", "replace"), LOG_TEXT_CHARS)
