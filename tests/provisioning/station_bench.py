"""A bench for burns without waiting: the virtual device behind a port whose clock moves only when asked.

The device is the real virtual device (`device_sim.simulation`), the CA and the ledger are real; only the time that
passes on the wire is made up, so that a device that is silent for 30 seconds costs none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from device_sim.faults import parse_faults
from device_sim.simulated_board import SimulatedBoard, new_flash
from device_sim.simulation import Simulation
from device_sim.spp1_board import Board
from provisioning.burning import Step, UnitOrder, Verdict, burn
from provisioning.ca import CertificateAuthority
from provisioning.port import PortFault
from provisioning.trace import Trace


@dataclass
class SimulatedPort:
    """A port to a simulation, with its own time."""

    simulation: Simulation
    name: str = "/dev/bench0"
    now: float = 0.0
    reopened: int = 0
    sent: list[bytes] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def read(self, timeout_s: float) -> bytes:
        end = self.now + timeout_s
        while True:
            data = self.simulation.due(self.now)
            if self.simulation.wants_replug:
                raise PortFault(f"{self.name} went away")
            due = self.simulation.next_due()
            if data or due > end:
                self.now = self.now if data else end
                return data
            self.now = max(self.now, due)

    def write(self, data: bytes) -> float:
        self.sent.append(data)
        self.simulation.receive(data, self.now)
        return 0.0

    def reopen(self, timeout_s: float) -> None:
        self.reopened += 1
        self.simulation.wants_replug = False


@dataclass
class Bench:
    """A station with its CA; every burn is one call."""

    ca: CertificateAuthority
    folder: Path

    def port(self, board: Board | None = None, *faults: str, seed: int = 0) -> SimulatedPort:
        return SimulatedPort(
            Simulation(board or SimulatedBoard(new_flash("SN-0001")), faults=parse_faults(faults), seed=seed)
        )

    def burn(
        self,
        port: SimulatedPort,
        *,
        progress: Callable[[Step], None] | None = None,
        order: UnitOrder | None = None,
    ) -> Verdict:
        with Trace.open(self.folder / "trace") as trace:
            return burn(
                port,
                self.ca,
                self.ca.ledger,
                station="line-a",
                order=order,
                trace=trace,
                progress=progress,
                clock=port.clock,
            )


@contextmanager
def open_bench(folder: Path) -> Iterator[Bench]:
    """A new CA and a station beside it."""
    CertificateAuthority.init(folder / "ca", "Bench", passphrase=None)
    with CertificateAuthority.open(folder / "ca", lambda: b"") as ca:
        yield Bench(ca, folder)
