"""The trace of a burn: every line that crossed the wire, with its time and direction, one per text line.

Directions: `>` sent, `<` a frame received, `|` device log, `!` a line that could have been a frame (with the
reason it is none), `#` a remark of the station. Everything a device said is sanitised and cut. No secret stands
in it: with keys made on the device none crosses the wire, and KEYGEN's `seed`, which a weak generator may depend
on, is left out together with the CRC over it. The file has mode 0600 and is bounded; a disk that is full ends
the trace, not the burn.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from mtls.errors import Fault
from mtls.terminal import sanitise
from provisioning.spp1.frames import LARGEST_MAX_LINE, Frame, LineFault, LogLine, parse_line
from provisioning.spp1.host import Event

MAX_TRACE_BYTES = 8 * 1024 * 1024  # a burn makes about 20 KiB; a device that floods its log makes this at most
KEPT_OUT = "(kept out)"
SECRET_FIELDS = frozenset({"seed"})


class Trace:
    """An open trace, or one that keeps nothing; use as a context manager or close it."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file
        self._room = MAX_TRACE_BYTES
        self._start: float | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Append to a private file; a fault when it cannot be written."""
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
            os.fchmod(descriptor, 0o600)
        except OSError as error:
            raise Fault(f"cannot write the trace {path}: {error.strerror}", hint="name another file") from None
        return cls(os.fdopen(descriptor, "w", encoding="utf-8", buffering=1))

    def sent(self, data: bytes, now: float) -> None:
        """A frame as it was sent, secrets left out."""
        frame = parse_line(data.strip(b"\n"))
        if isinstance(frame, Frame) and SECRET_FIELDS & frame.message.keys():
            shown = {name: KEPT_OUT if name in SECRET_FIELDS else value for name, value in frame.message.items()}
            self._write(">", f"!P1 {_compact(shown)} *{KEPT_OUT}", now)
        else:
            self._write(">", data.decode("ascii", "replace").strip("\n"), now)

    def heard(self, event: Event, now: float) -> None:
        """What the device said, a log line or a frame."""
        if isinstance(event, LogLine):
            is_log = event.fault is LineFault.NONE
            self._write("|" if is_log else "!", event.text if is_log else f"{event.fault}: {event.text}", now)
        else:
            self._write("<", sanitise(_compact(event.message), LARGEST_MAX_LINE), now)

    def line(self, direction: str, text: str, now: float) -> None:
        """A line of a dialect without frames; what a device made of it is cut and safe to print."""
        self._write(direction, sanitise(text, LARGEST_MAX_LINE), now)

    def note(self, text: str, now: float) -> None:
        """A remark of the station."""
        self._write("#", text, now)

    def close(self) -> None:
        """Close the file; a disk that is full at this moment is no fault either."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                return

    def _write(self, direction: str, text: str, now: float) -> None:
        if self._file is None:
            return
        self._start = now if self._start is None else self._start
        line = f"{now - self._start:10.3f} {direction} {text}\n"
        self._room -= len(line.encode("utf-8", "replace"))
        try:
            if self._room < 0:
                self._file.write(f"{now - self._start:10.3f} # the trace ends here: {MAX_TRACE_BYTES} bytes\n")
                self.close()
            else:
                self._file.write(line)
        except OSError:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _compact(message: Mapping[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"))
