"""What came of a scenario: the figures of each phase and a verdict for each expectation.

The engine writes it, every report reads it, and nothing else passes between the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from device_sim.attacks.report import AttackReport
from device_sim.fleet.figures import Figures, Load
from device_sim.fleet.fleet import Sample


@dataclass(frozen=True, slots=True)
class Verdict:
    """One expectation, and whether what was seen meets it."""

    expectation: str  # its key in the file: "acked_lost", "refused", "p99_ms"
    phase: str  # the phase it belongs to; "" for the whole run
    devices: str  # the group of devices it speaks of; "" for all
    wanted: str  # "0", "certificate_expired", "<= 250"
    seen: str
    is_met: bool


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """One phase: when it began (seconds since the start of the run), how long it took, what each group measured."""

    name: str
    started_s: float
    seconds: float
    groups: Mapping[str, Figures]


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """One run of one scenario against one broker."""

    name: str
    description: str
    broker: str
    seed: int
    started_at: datetime  # UTC
    seconds: float
    phases: tuple[PhaseResult, ...]
    verdicts: tuple[Verdict, ...]
    course: tuple[Sample, ...]  # connections and backlog by second, of all groups together
    load: Load
    lost: int | None  # acknowledged and never heard; None when nobody listened
    duplicates: int | None
    attacks: AttackReport | None  # None when the scenario has none

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The expectations that were not met."""
        return tuple(verdict for verdict in self.verdicts if not verdict.is_met)

    @property
    def exit_code(self) -> int:
        """0 when every expectation was met."""
        return 1 if self.failed else 0
