"""Scanned labels: lines from standard input or from a scanner's serial port, matched to the units that wait for one.

A line is a label, or the name of a port and a label. With a port's name it is that port's; without, it is the waiting
port's whose unit it names, or the only one that waits. A label that fits no waiting unit while several wait is
nobody's: it is told and dropped, and the units go on waiting. Whether a label is right is judged by the burn, not here.
"""

import os
import select
import threading
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial

from mtls.terminal import sanitise
from provisioning.port import PortFault, SerialPort

MAX_LABEL_BYTES = 256  # a QR code with a URL stays below
LABEL_LIMIT_S = 60.0  # an operator who is called away; then the unit fails and waits to be shown again
LOOK_S = 0.2
READ_BYTES = 4096
SCANNER_BAUD = 9600  # what scanners are delivered with; over USB it does not matter
STDIN = 0

Told = Callable[[str, str], None]  # a port, or "" for the station, and a sentence


class Scanner:
    """Labels in, answers out; `feed` and `ask` may be called from different threads."""

    def __init__(self, ports: Collection[str], told: Told, *, limit_s: float = LABEL_LIMIT_S) -> None:
        self._ports = ports
        self._told = told
        self._limit_s = limit_s
        self._changed = threading.Condition()
        self._waiting: dict[str, frozenset[str]] = {}
        self._scanned: dict[str, str] = {}

    def ask(self, port: str, right: frozenset[str], stopped: Callable[[], bool] = lambda: False) -> str | None:
        """Wait for the label of the unit at `port`, whose right ones are `right`; None when none comes in time."""
        deadline = time.monotonic() + self._limit_s
        with self._changed:
            self._waiting[port] = right
            self._scanned.pop(port, None)
            self._told(port, "scan the label of the unit")
            try:
                while port not in self._scanned and time.monotonic() < deadline and not stopped():
                    self._changed.wait(LOOK_S)
                return self._scanned.pop(port, None)
            finally:
                del self._waiting[port]

    def feed(self, line: str) -> None:
        """One scanned line."""
        text = line.strip()
        if not text:
            return
        with self._changed:
            port, label = self._addressed(text)
            if port in self._waiting:
                self._scanned[port] = label
                self._changed.notify_all()
                return
        self._told("", f"the label {sanitise(text, 64)} belongs to no unit that waits for one")

    def _addressed(self, text: str) -> tuple[str, str]:
        first, _, rest = text.partition(" ")
        if first in self._ports and rest:
            return first, rest.strip()
        fitting = [port for port, right in self._waiting.items() if text in right]
        if len(fitting) == 1:
            return fitting[0], text
        return (next(iter(self._waiting)), text) if len(self._waiting) == 1 else ("", text)


class _Lines:
    """Bytes in, whole lines out; scanners end a line with CR, LF or both."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        self._rest = self._rest[-MAX_LABEL_BYTES:]
        return [line[-MAX_LABEL_BYTES:].decode("utf-8", "replace") for line in lines]


Stopped = Callable[[], bool]
Lines = Callable[[Stopped], Iterator[str]]


def label_lines(source: str) -> Lines:
    """The lines of standard input for `-`, else those of a scanner on a serial port."""
    return _lines_of_input if source == "-" else partial(_lines_of_port, source)


def _lines_of_input(stopped: Stopped) -> Iterator[str]:
    lines = _Lines()
    while not stopped():
        if not select.select([STDIN], [], [], LOOK_S)[0]:
            continue
        if not (data := os.read(STDIN, READ_BYTES)):
            return
        yield from lines.feed(data)


def one_label(source: str, told: Callable[[str], None]) -> Callable[[frozenset[str]], str | None]:
    """For one port: ask for the label when the unit needs it, then take the first line that comes."""

    def ask(right: frozenset[str]) -> str | None:
        told("scan the label of the unit")
        deadline = time.monotonic() + LABEL_LIMIT_S
        lines = (line.strip() for line in label_lines(source)(lambda: time.monotonic() >= deadline))
        return next((line for line in lines if line), None)

    return ask


def _lines_of_port(path: str, stopped: Stopped) -> Iterator[str]:
    # An unplugged scanner is waited for: its port comes back.
    lines = _Lines()
    while not stopped():
        try:
            with SerialPort(path, SCANNER_BAUD) as port:
                while not stopped():
                    yield from lines.feed(port.read(LOOK_S))
        except PortFault:
            time.sleep(LOOK_S)
