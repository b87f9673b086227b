"""All attacks against one broker, and what it let through, as text, for JSON and for JUnit XML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from device_sim.attacks import admission, operation, topics
from device_sim.attacks.ground import Attack, Finding, Target, carry_out
from device_sim.reports.junit import Case, Suite

PATIENCE_S = {"gateway": 4.0}  # its limits of time are set to 2 s on the site that is made for it
FOREIGN_PATIENCE_S = 12.0  # beyond the limits that ours has by default

ATTACKS: tuple[Attack, ...] = (*admission.ATTACKS, *topics.ATTACKS, *operation.ATTACKS)


def patience_with(kind: str) -> float:
    """How long a limit of time may take to act in a broker of this kind."""
    return PATIENCE_S.get(kind, FOREIGN_PATIENCE_S)


@dataclass(frozen=True, slots=True)
class Line:
    """One attack and what came of it."""

    attack: Attack
    finding: Finding


@dataclass(frozen=True, slots=True)
class AttackReport:
    """What came of all attacks on one broker."""

    broker: str
    lines: tuple[Line, ...]

    @property
    def let_through(self) -> tuple[Line, ...]:
        """The attacks that the broker did not hold against."""
        return tuple(line for line in self.lines if not line.finding.held)

    @property
    def exit_code(self) -> int:
        """0 when every attack was held."""
        return 1 if self.let_through else 0

    def as_text(self) -> str:
        """A table for people."""
        wide = max(len(line.attack.name) for line in self.lines)
        rows = [
            f"{'held' if line.finding.held else 'LET THROUGH':11}  {line.attack.trap:3}  {line.attack.name:{wide}}  "
            f"{line.finding.evidence}"
            for line in self.lines
        ]
        held = len(self.lines) - len(self.let_through)
        return "\n".join([f"{self.broker}: {held} of {len(self.lines)} attacks held", "", *rows])

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        rows = [
            {
                "trap": line.attack.trap,
                "attack": line.attack.name,
                "must": line.attack.must,
                "held": line.finding.held,
                "evidence": line.finding.evidence,
            }
            for line in self.lines
        ]
        return {"broker": self.broker, "let_through": len(self.let_through), "attacks": rows}

    def as_suite(self) -> Suite:
        """For CI servers: one test case per attack."""
        cases = (
            Case(
                line.attack.trap,
                line.attack.name,
                wanted=line.attack.must,
                seen=None if line.finding.held else line.finding.evidence,
            )
            for line in self.lines
        )
        return Suite(self.broker, tuple(cases))


def attack(
    target: Target,
    broker: str,
    *,
    attacks: Sequence[Attack] = ATTACKS,
    patience_s: float = 4.0,
    progress: Callable[[Attack], None] = lambda _: None,
) -> AttackReport:
    """Carry out attacks one after the other."""
    lines = []
    for one in attacks:
        progress(one)
        lines.append(Line(one, carry_out(one, target, patience_s=patience_s)))
    return AttackReport(broker, tuple(lines))
