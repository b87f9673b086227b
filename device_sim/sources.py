"""Where an agent's readings come from: a seeded model, a serial port, or standard input; one URL each.

    sim://temperature?interval=1&seed=7    serial:///dev/ttyUSB0?baud=115200&accept=json    -

A source runs in a thread of its own and hands over payloads one by one until it ends or is told to stop. A serial
source never ends: whatever happens to the port, it waits for the name to come back. URLs are strict: an unknown
setting is an error that names the known ones, since a misspelt `baud` would read garbage for ever.
"""

import os
import select
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

from device_sim.lines import Accept, LineAssembler
from device_sim.models import MODELS, readings
from device_sim.serial_port import AgentPort, PortLost
from mtls.errors import ConfigFault

Emit = Callable[[bytes], bool]  # False: nobody wants more
Narrate = Callable[[str], None]

STOP_POLL_S = 0.2  # how long a blocking read may hold up the end of the program
FIRST_RETRY_S = 0.2
LONGEST_RETRY_S = 5.0  # a device that is plugged in again is read within this time
STDIN = 0


class Source(Protocol):
    """A stream of readings; `name` is its topic level, `can_wait` says whether a full queue may hold it back."""

    @property
    def name(self) -> str:
        """The topic level below `telemetry`."""

    @property
    def can_wait(self) -> bool:
        """False for a sensor, which goes on measuring; True for a file."""

    def run(self, emit: Emit, stop: threading.Event, narrate: Narrate) -> None:
        """Emit readings until the source ends, `emit` says no, or `stop` is set."""


@dataclass(frozen=True, slots=True)
class SimSource:
    """A model's readings at an interval."""

    name: str
    interval_s: float
    seed: int
    can_wait: bool = False

    def run(self, emit: Emit, stop: threading.Event, narrate: Narrate) -> None:
        """The first reading comes at once."""
        for payload in readings(self.name, self.seed):
            if not emit(payload) or stop.wait(self.interval_s):
                return


@dataclass(frozen=True, slots=True)
class SerialSource:
    """The lines that a device writes to its serial port."""

    path: str
    baud: int = 115200
    accept: Accept = Accept.TEXT
    dtr: bool = True  # USB CDC devices send only while DTR is set
    rts: bool = True
    name: str = "serial"
    can_wait: bool = False

    def run(self, emit: Emit, stop: threading.Event, narrate: Narrate) -> None:
        """Read, for ever: a port that is lost is waited for."""
        pause_s, told = FIRST_RETRY_S, ""
        while not stop.is_set():
            try:
                port = AgentPort(self.path, baud=self.baud, dtr=self.dtr, rts=self.rts)
            except PortLost as lost:
                # Said once per reason: a device may stay away for days.
                told = self._tell(narrate, f"cannot open {self.path}: {lost}; waiting for it", told)
                stop.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_RETRY_S)
                continue
            narrate(f"reading {self.path}")
            pause_s, told = FIRST_RETRY_S, ""
            try:
                self._read(port, emit, stop)
            except PortLost as lost:
                narrate(f"{self.path} went away ({lost}); waiting for it")
                stop.wait(pause_s)
            finally:
                port.close()

    def _read(self, port: AgentPort, emit: Emit, stop: threading.Event) -> None:
        # A new assembler per opening: the half line before an unplug never meets the half line after it.
        lines = LineAssembler(self.accept, is_mid_line=True)
        while not stop.is_set():
            for payload in lines.feed(port.read(STOP_POLL_S)):
                if not emit(payload):
                    stop.set()
                    return

    @staticmethod
    def _tell(narrate: Narrate, text: str, told: str) -> str:
        if text != told:
            narrate(text)
        return text


@dataclass(frozen=True, slots=True)
class StdinSource:
    """The lines of standard input (or another descriptor), up to the end of the file."""

    accept: Accept = Accept.TEXT
    descriptor: int = STDIN
    name: str = "stdin"
    can_wait: bool = True

    def run(self, emit: Emit, stop: threading.Event, narrate: Narrate) -> None:
        """A last line needs no newline."""
        lines = LineAssembler(self.accept)
        is_open = True
        while is_open and not stop.is_set():
            if not select.select([self.descriptor], [], [], STOP_POLL_S)[0]:
                continue
            data = os.read(self.descriptor, 65536)
            is_open = bool(data)
            if not all(emit(payload) for payload in (lines.feed(data) if data else lines.end())):
                return
        if lines.counts.over_long or lines.counts.skipped:
            narrate(f"left out {lines.counts.over_long} over-long lines and {lines.counts.skipped} that are no text")


def counted(emit: Emit, count: int | None) -> Emit:
    """`emit` that wants no more after `count` readings."""
    left = count

    def limited(payload: bytes) -> bool:
        nonlocal left
        if left is None:
            return emit(payload)
        left -= 1
        return emit(payload) and left > 0

    return limited


# --- URLs ---


def parse_source(text: str) -> Source:
    """The source that a URL names; ConfigFault with the form that was expected."""
    if text == "-":
        return StdinSource()
    try:
        url = urlsplit(text)
        settings = dict(parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query)))
    except ValueError:
        url, settings = urlsplit(""), {}
    if url.scheme == "sim":
        return _sim(url.netloc, settings)
    if url.scheme == "serial" and not url.netloc and url.path.startswith("/"):
        return _serial(url.path, settings)
    raise ConfigFault(
        "the source is none of sim://MODEL, serial:///dev/NAME and -",
        hint='for example: --source "serial:///dev/ttyUSB0?baud=115200"',
    )


def _sim(model: str, settings: Mapping[str, str]) -> SimSource:
    if model not in MODELS:
        raise ConfigFault("the source names no model", hint=f"one of: {', '.join(f'sim://{name}' for name in MODELS)}")
    _known(settings, ("interval", "seed"))
    return SimSource(model, _seconds(settings.get("interval", "1")), _whole(settings, "seed", "0", 0, 2**63 - 1))


def _serial(path: str, settings: Mapping[str, str]) -> SerialSource:
    _known(settings, ("baud", "accept", "dtr", "rts"))
    accept = settings.get("accept", Accept.TEXT)
    if accept not in set(Accept):
        raise ConfigFault("accept is neither text nor json", hint="write accept=json for lines that are JSON objects")
    source = SerialSource(path, _whole(settings, "baud", "115200", 50, 4_000_000), Accept(accept))
    return replace(source, dtr=_switch(settings, "dtr"), rts=_switch(settings, "rts"))


def _known(settings: Mapping[str, str], names: tuple[str, ...]) -> None:
    if not settings.keys() <= set(names):
        raise ConfigFault("the source has an unknown setting", hint=f"known are: {', '.join(names)}")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.001 <= seconds <= 86400:
        raise ConfigFault("interval is not a number of seconds from 0.001 to 86400", hint="write interval=1")
    return seconds


def _whole(settings: Mapping[str, str], name: str, default: str, least: int, most: int) -> int:
    text = settings.get(name, default)
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
        raise ConfigFault(f"{name} is not a whole number from {least} to {most}", hint=f"write {name}={default}")
    return int(text)


_SWITCH: Mapping[str, bool] = MappingProxyType({"1": True, "0": False})


def _switch(settings: Mapping[str, str], name: str) -> bool:
    value = _SWITCH.get(settings.get(name, "1"))
    if value is None:
        raise ConfigFault(f"{name} is neither 0 nor 1", hint=f"write {name}=0 for a board that resets on it")
    return value
