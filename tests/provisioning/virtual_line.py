"""A line of virtual devices on pseudo-terminals, with somebody who swaps them: what a station sees all shift.

The station runs as its own process (`station run --json`); here are the devices, one thread per port, and the operator,
who reads the verdicts and puts the next unit into the port.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device_sim.faults import parse_faults
from device_sim.simulated_board import SimulatedBoard, new_flash
from device_sim.simulation import Simulation
from device_sim.spp1_board import Board
from device_sim.virtual_device import Terminal
from device_sim.virtual_device import run as run_virtual_device
from provisioning.spp1.protocol import Verb

WAIT_S = 30.0
STATION_LIMIT_S = 60.0


@dataclass
class Unit:
    """One device in somebody's hand."""

    board: Board
    faults: tuple[str, ...] = ()
    seed: int = 0

    @property
    def hardware_serial(self) -> str:
        return self.board.read_flash().hardware_serial


@dataclass
class Socket:
    """One port of the fixture: a device is put in, and taken out again."""

    link: Path
    delays: Mapping[Verb, float] = field(default_factory=dict)
    unit: Unit | None = None
    simulation: Simulation | None = None
    _thread: threading.Thread | None = None
    _stop: int = -1

    def put(self, unit: Unit) -> None:
        self.take_out()
        wake, self._stop = os.pipe()
        self.unit = unit
        self.simulation = Simulation(
            unit.board, faults=parse_faults(unit.faults), seed=unit.seed, delays=self.delays, interval_s=3600.0,
            now=time.monotonic(),
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, args=(self.simulation, wake))
        self._thread.start()

    def _run(self, simulation: Simulation, wake: int) -> None:
        try:
            run_virtual_device(simulation, Terminal(self.link), wake, time.monotonic)
        finally:
            os.close(wake)

    def take_out(self) -> Unit | None:
        unit, self.unit = self.unit, None
        if self._thread is not None:
            os.write(self._stop, b"x")
            self._thread.join(WAIT_S)
            os.close(self._stop)
            assert not self._thread.is_alive()
            self._thread = None
        return unit


@contextmanager
def sockets(folder: Path, count: int, delays: Mapping[Verb, float] | None = None) -> Iterator[dict[str, Socket]]:
    """Empty sockets, named 1, 2, ...; what is in them at the end is taken out."""
    made = {str(number): Socket(folder / f"port{number}", delays or {}) for number in range(1, count + 1)}
    try:
        yield made
    finally:
        for socket in made.values():
            socket.take_out()


def blank(serial: str, *faults: str, seed: int = 0) -> Unit:
    return Unit(SimulatedBoard(new_flash(serial)), faults, seed)


@contextmanager
def station(
    ca: Path, order: Path, links: Mapping[str, Path], *more: str, json_: bool = True, limit_s: float = STATION_LIMIT_S
) -> Iterator[subprocess.Popen[str]]:
    """`mqtt-provision station run` as its user starts it; killed at the end if it still runs."""
    command = [sys.executable, "-c", "from provisioning.cli import main; main()", "station", "run"]
    ports = [f"--port={name}={link}" for name, link in links.items()]
    options = ["--work-order", str(order), "--dir", str(ca), "--station", "line-a", *ports, *more]
    with subprocess.Popen(
        [*command, *options, *(["--json"] if json_ else [])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        # A station that hangs fails the test by the end of its events, and not the whole run.
        watchdog = threading.Timer(limit_s, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            if process.poll() is None:
                process.kill()
                process.wait(WAIT_S)


def events_of(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """The station's events until it ends."""
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def work(
    process: subprocess.Popen[str],
    line: Mapping[str, Socket],
    units: Iterator[Unit],
    seen: Callable[[dict[str, Any]], None] = lambda event: None,
) -> list[dict[str, Any]]:
    """The operator: fill every socket, and after each final verdict put the next unit in; the verdicts."""
    verdicts = []
    for socket in line.values():
        put_next(socket, units)
    for event in events_of(process):
        seen(event)
        if event["event"] != "verdict" or event["outcome"] in (None, "open"):
            continue
        verdicts.append(event)
        put_next(line[event["port"]], units)
    return verdicts


def put_next(socket: Socket, units: Iterator[Unit]) -> None:
    unit = next(units, None)
    if unit is None:
        socket.take_out()
    else:
        socket.put(unit)
