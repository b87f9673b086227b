"""What a station tells: events, and the tally that is drawn from them. Pure: times come with the events.

An event is a flat set of plain values with a `kind`; its JSON is a public interface (`station run --json`), so that a
browser page or a plant's own system can follow. The tally counts this run; the ledger counts the work order.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from provisioning.verdict import Verdict

PORT, STEP, VERDICT, LABEL, LINE, END = "port", "step", "verdict", "label", "line", "end"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `at` is monotonic seconds, `port` "" for the whole station."""

    kind: str
    at: float
    port: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        """One line."""
        named = {"event": self.kind, "at": round(self.at, 3)}
        return json.dumps({**named, **self.facts, "port": self.port}, default=str)


@dataclass(slots=True)
class PortView:
    """What one port shows."""

    state: str = "absent"
    step: str = ""
    unit: str = ""
    verdict: str = ""
    step_since: float = 0.0


@dataclass(slots=True)
class Tally:
    """Ports, totals, first-pass yield, units per hour and mean step times of one run."""

    started_at: float
    ports: dict[str, PortView] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _seen: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _first_pass: int = 0
    _step_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _steps: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def take(self, event: Event) -> None:
        """Count one event."""
        if event.port:
            self._take_port(self.ports.setdefault(event.port, PortView()), event)
        if event.kind == VERDICT and event.facts["outcome"] is not None:
            self._take_verdict(event.facts)

    def _take_port(self, view: PortView, event: Event) -> None:
        if event.kind == STEP:
            self._end_step(view, event.at)
            view.state, view.step, view.step_since = "burning", event.facts["step"], event.at
            view.unit = event.facts.get("hardware_serial") or view.unit
        elif event.kind == VERDICT:
            self._end_step(view, event.at)
            view.verdict = str(event.facts["text"])
        elif event.kind == PORT:
            view.state = event.facts["state"]
            view.unit = event.facts.get("hardware_serial") or view.unit

    def _end_step(self, view: PortView, at: float) -> None:
        if view.step:
            self._step_s[view.step] += at - view.step_since
            self._steps[view.step] += 1
        view.step = ""

    def _take_verdict(self, facts: Mapping[str, Any]) -> None:
        outcome, box = str(facts["outcome"]), f"{facts['hardware_serial']} {facts['uid']}"
        self.outcomes[outcome] += 1
        self._first_pass += outcome in ("passed", "delivered") and self._seen[box] == 0
        self._seen[box] += 1

    @property
    def first_pass_yield(self) -> float:
        """Which part of the units seen passed the first time they were shown; 1 before the first."""
        return self._first_pass / len(self._seen) if self._seen else 1.0

    def units_per_hour(self, now: float) -> float:
        """Units passed per hour of this run."""
        return (self.outcomes["passed"] + self.outcomes["delivered"]) * 3600 / max(now - self.started_at, 0.001)

    def step_means(self) -> dict[str, float]:
        """Mean seconds per step."""
        return {step: round(self._step_s[step] / count, 3) for step, count in self._steps.items()}

    def as_row(self, now: float) -> dict[str, Any]:
        """The totals as plain values."""
        return {
            **{name: self.outcomes[name] for name in ("passed", "delivered", "failed", "quarantined", "open")},
            "first_pass_yield": round(self.first_pass_yield, 4),
            "units_per_hour": round(self.units_per_hour(now), 1),
            "step_means": self.step_means(),
        }


def verdict_facts(verdict: Verdict) -> dict[str, Any]:
    """A verdict as an event tells it."""
    return {**verdict.as_row(), "text": str(verdict)}
