"""A whole shift on virtual devices: many units, random faults from a seed, and books that must reconcile exactly.

    python -m tests.provisioning.shift --units 1000 --ports 8 --faults 0.02 --seed 7

The station is the real program in its own process; devices and operator are here. Seven kinds of fault: a noisy line,
a pulled cable, lost power, kill -9 of the station, a device with another's key, a wrong label, and a disk that takes no
byte (RLIMIT_FSIZE of the station, so that the system itself refuses the write).
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from device_sim.simulated_board import SimulatedBoard
from mtls.profiles import fingerprint_sha256
from provisioning.burning import BURNING
from provisioning.ca import CertificateAuthority
from provisioning.ledger import CertificateState, Counts, Ledger, UnitState
from provisioning.records.verify import verify_ledger
from provisioning.spp1.protocol import Obj
from tests.provisioning.virtual_line import Socket, Unit, blank, events_of, sockets, station

KINDS = ("noise", "cable", "power", "kill", "duplicate-key", "wrong-label", "full-disk")
NOISE = ("drop=0.02", "flip=0.02", "duplicate=0.05", "split=0.05", "delay=0.02", "chatter=0.1")
VERBS = ("KEYGEN", "PROVE", "CSR", "BEGIN", "DATA", "COMMIT", "HASH", "SEAL")
STEPS = [str(step) for step, _ in BURNING if str(step) not in ("label", "connect", "record")]
FULL_DISK_S = 1.0
FINAL = ("passed", "failed", "quarantined")
ORDER = 'version = 1\norder = "SHIFT"\nquantity = 1000000\nid = "press-{serial}"\n'


class ClonedBoard(SimulatedBoard):
    """A board whose generator makes a key that another unit has."""

    def __init__(self, original: SimulatedBoard, serial: str) -> None:
        super().__init__(blank(serial).board.read_flash())
        self._original = original

    def new_key(self, seed: bytes) -> bytes:
        return self._original.read_flash().private_key


@dataclass
class Shift:
    """One run; `report` holds what came of it."""

    folder: Path
    units: int
    ports: int
    rate: float
    seed: int
    made: dict[str, Unit] = field(default_factory=dict)
    planned: dict[int, str] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    _number: int = 0
    _passed: list[str] = field(default_factory=list)
    _pending: dict[str, tuple[str, str]] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Work until every unit has its verdict, settle, and compare everything."""
        self._plan()
        (self.folder / "wo.toml").write_text(ORDER)
        CertificateAuthority.init(self.folder / "ca", "Shift", passphrase=None)
        began = time.monotonic()
        with sockets(self.folder, self.ports) as line:
            for socket in line.values():
                self._put_next(socket)
            while any(socket.unit is not None for socket in line.values()):
                self._one_process(line)
            seconds = time.monotonic() - began
            settled = self._resume(line)
        return {**self._books(), "seconds": round(seconds, 1), "resume": settled}

    def _plan(self) -> None:
        draw = random.Random(self.seed)  # noqa: S311
        count = max(len(KINDS), round(self.units * self.rate))
        numbers = draw.sample(range(self.ports + 1, self.units + 1), count)
        self.planned = {number: KINDS[index % len(KINDS)] for index, number in enumerate(numbers)}
        self._draw = draw

    # --- the operator

    def _put_next(self, socket: Socket) -> None:
        if self._number >= self.units:
            socket.take_out()
            return
        self._number += 1
        kind, serial = self.planned.get(self._number, ""), f"{self._number:06}"
        unit = blank(serial, seed=self.seed + self._number)
        if kind == "noise":
            unit.faults = NOISE
        elif kind == "power":
            unit.faults = (f"power-loss-after={self._draw.choice(VERBS)}",)
        elif kind == "duplicate-key":
            original = self.made[self._draw.choice(self._passed)].board
            assert isinstance(original, SimulatedBoard)
            unit.board = ClonedBoard(original, serial)
        if kind in ("noise", "power", "duplicate-key"):
            self.happened[kind] += 1
        elif kind:
            self._pending[serial] = (kind, self._draw.choice(STEPS))
        self.made[serial] = unit
        socket.put(unit)

    def _one_process(self, line: dict[str, Socket]) -> None:
        """One life of the station: until it is killed, the line stops, or nothing is left to do."""
        links = {name: socket.link for name, socket in line.items()}
        options = (links, "--expect-label", "-")
        with station(self.folder / "ca", self.folder / "wo.toml", *options, limit_s=3600.0) as process:
            for event in events_of(process):
                self._take(event, line, process)
                if all(socket.unit is None for socket in line.values()) and process.poll() is None:
                    process.send_signal(signal.SIGINT)
            process.wait(60)

    def _take(self, event: dict[str, Any], line: dict[str, Socket], process: subprocess.Popen[str]) -> None:
        port = event["port"]
        socket = line.get(port)
        unit = socket.unit if socket is not None else None
        if socket is None or unit is None:
            return
        serial = unit.hardware_serial
        if event["event"] == "label":
            self._scan(process, port, serial)
        elif event["event"] == "step" and self._pending.get(serial, ("", ""))[1] == event["step"]:
            self._strike(self._pending[serial][0], serial, socket, process)
        is_final = event["event"] == "verdict" and event["outcome"] in FINAL
        is_recorded = event["event"] == "port" and event.get("state") == "recorded"
        if (is_final or is_recorded) and event["hardware_serial"] == serial:
            self.verdicts[event["outcome"] if is_final else "passed, told before the kill"] += 1
            if is_recorded or event["passed"]:
                self._passed.append(serial)
            self._put_next(socket)

    def _scan(self, process: subprocess.Popen[str], port: str, serial: str) -> None:
        assert process.stdin is not None
        is_wrong = self._pending.get(serial, ("", ""))[0] == "wrong-label"
        if is_wrong:
            del self._pending[serial]
            self.happened["wrong-label"] += 1
        try:
            process.stdin.write(f"{port} {'999999' if is_wrong else serial}\n")
            process.stdin.flush()
        except BrokenPipeError:
            return  # killed meanwhile; the next process asks again

    def _strike(self, kind: str, serial: str, socket: Socket, process: subprocess.Popen[str]) -> None:
        if kind == "wrong-label":
            return
        del self._pending[serial]
        self.happened[kind] += 1
        if kind == "cable":
            unit = socket.take_out()
            assert unit is not None
            socket.put(unit)
        elif kind == "kill":
            process.kill()
        else:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            threading.Timer(FULL_DISK_S, _restore, (process, unlimited)).start()

    def _resume(self, line: dict[str, Socket]) -> int:
        command = [sys.executable, "-c", "from provisioning.cli import main; main()", "resume", "--set-aside-all"]
        done = subprocess.run([*command, "--dir", str(self.folder / "ca")], capture_output=True, text=True, check=False)
        return done.returncode

    # --- the books

    def _books(self) -> dict[str, Any]:
        with Ledger.open(self.folder / "ca" / "ledger.db") as ledger:
            counts, problems = ledger.counts(), list(verify_ledger(ledger).problems)
            problems += list(self._wrong(ledger))
            ended = [attempt for attempt in ledger.attempts() if attempt.outcome in ("failed", "quarantined")]
            failures = [f"{attempt.hardware_serial} {attempt.step}: {attempt.reason}" for attempt in ended]
        if counts.started != counts.passed + counts.failed + counts.quarantined or counts.started != self.units:
            problems.append(f"started {counts.started} of {self.units} units does not add up")
        return {
            "seed": self.seed,
            "units": self.units,
            "counts": row(counts),
            "faults": dict(sorted(self.happened.items())),
            "verdicts": dict(self.verdicts),
            "failures": failures,
            "problems": problems,
        }

    def _wrong(self, ledger: Ledger) -> Iterator[str]:
        recorded = {unit.hardware_serial: unit for unit in ledger.units(state=UnitState.RECORDED)}
        valid = {row.subject: row for row in ledger.certificates(state=CertificateState.ISSUED) if row.unit_id}
        keys, serials = set(), set()
        for serial, unit in self.made.items():
            flash = unit.board.read_flash()
            row = valid.get(f"press-{serial}")
            if (serial in recorded) != (flash.seal_policy is not None) or (serial in recorded) != (row is not None):
                yield f"{serial}: ledger, certificate and device do not agree"
            if row is None:
                continue
            leaf = x509.load_pem_x509_certificate(flash.objects[Obj.CHAIN])
            if fingerprint_sha256(leaf) != row.fingerprint_sha256:
                yield f"{serial}: the device holds another certificate"
            if row.spki_sha256 in keys or row.certificate_serial in serials:
                yield f"{serial}: a key or a certificate serial stands twice"
            keys.add(row.spki_sha256)
            serials.add(row.certificate_serial)


def _restore(process: subprocess.Popen[str], limits: tuple[int, int]) -> None:
    if process.poll() is None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)


def row(counts: Counts) -> dict[str, int]:
    names = ("started", "passed", "failed", "quarantined", "open")
    return {name: getattr(counts, name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--ports", type=int, default=8)
    parser.add_argument("--faults", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=7)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Shift(Path(folder), told.units, told.ports, told.faults, told.seed).run()
    print(json.dumps(report, indent=2))
    sys.exit(1 if report["problems"] else 0)


if __name__ == "__main__":
    main()
