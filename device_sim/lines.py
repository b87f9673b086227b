"""Lines out of a byte stream, for readings that end with a newline. Sans-io: any split gives the same lines.

Nothing but a newline ends a line; a pause does not. A line over the maximum is dropped up to its newline and
counted, and no more of it is held than the maximum. What a line says is judged once: text, or text that is a
JSON object. Log colours, bytes of a wrong baud rate and SPP/1 frames are no readings and are counted as skipped.
"""

import json
from dataclasses import dataclass
from enum import StrEnum

MAX_LINE_BYTES = 8192  # a reading; the gateway's own limit for a packet is far above
SPP1_FRAME = b"!P1 "


class Accept(StrEnum):
    """What a line must be to become a reading."""

    TEXT = "text"
    JSON = "json"


@dataclass(slots=True)
class LineCounts:
    """What did not become a reading."""

    over_long: int = 0
    skipped: int = 0


class LineAssembler:
    """Cuts bytes into readings. With `is_mid_line`, what comes before the first newline is dropped: a port is opened
    at any moment, and the second half of a number is a wrong number."""

    def __init__(self, accept: Accept, *, is_mid_line: bool = False, max_line: int = MAX_LINE_BYTES) -> None:
        self.counts = LineCounts()
        self._accept = accept
        self._max_line = max_line
        self._line = bytearray()
        self._is_dropping = is_mid_line

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes as they came; the readings they completed, in order."""
        found: list[bytes] = []
        *finished, rest = data.split(b"\n")
        for part in finished:
            self._take(part)
            line, self._line = bytes(self._line).strip(b"\r"), bytearray()
            was_dropping, self._is_dropping = self._is_dropping, False
            if line and not was_dropping:
                found += self._judge(line)
        self._take(rest)
        return found

    def end(self) -> list[bytes]:
        """The stream has ended in order (end of file): a last line needs no newline."""
        return self.feed(b"\n")

    def lost(self) -> None:
        """The stream broke off: what was unfinished is dropped, and the next bytes may begin in mid-line."""
        self._line.clear()
        self._is_dropping = True

    def _take(self, part: bytes) -> None:
        if self._is_dropping:
            return
        self._line += part[: self._max_line + 1 - len(self._line)]
        if len(self._line) > self._max_line:
            self.counts.over_long += 1
            self._line.clear()
            self._is_dropping = True

    def _judge(self, line: bytes) -> list[bytes]:
        if not line.startswith(SPP1_FRAME) and _is_text(line) and (self._accept is Accept.TEXT or _is_object(line)):
            return [line]
        self.counts.skipped += 1
        return []


def _is_text(line: bytes) -> bool:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(letter == "\t" or letter.isprintable() for letter in text)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
