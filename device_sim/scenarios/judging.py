"""From what was measured to verdicts: pure, after the run.

The engine fills a `Span` for each phase; `sum_of` makes the run's of them. `Judge` picks out of a span what an
expectation speaks of (one group or all) and asks the table. Losses are of the whole run: what was acknowledged at the
end of a phase may be heard in the next.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from device_sim.attacks.report import AttackReport, Line
from device_sim.fleet.figures import Deliveries, Figures
from device_sim.scenarios.expectations import EXPECTATIONS, Measured
from device_sim.scenarios.model import Scenario, Wanted
from device_sim.scenarios.result import Verdict

AuditLine = Mapping[str, Any]


@dataclass(slots=True)
class Span:
    """What was measured of one phase, or of the run (phase "")."""

    phase: str
    groups: dict[str, Figures] = field(default_factory=dict)
    connected: Counter[str] = field(default_factory=Counter)  # at its end
    recovered_s: dict[str, float | None] = field(default_factory=dict)  # None: not all are back
    audit: list[AuditLine] | None = None  # None: there is no audit log to read
    attacked: list[Line] = field(default_factory=list)
    grown_bytes: int | None = None  # of the broker's memory; None: not our process


def sum_of(spans: Sequence[Span], grown_bytes: int | None) -> Span:
    """The whole run."""
    whole = Span("", grown_bytes=grown_bytes)
    for span in spans:
        for name, figures in span.groups.items():
            whole.groups.setdefault(name, Figures(devices=figures.devices)).add(figures)
        whole.attacked += span.attacked
        if span.audit is not None:
            whole.audit = [*(whole.audit or []), *span.audit]
    return whole


@dataclass(frozen=True, slots=True)
class Judge:
    """Asks the table of expectations about the spans of one run."""

    scenario: Scenario
    broker: str
    ids: Mapping[str, tuple[str, ...]]
    deliveries: Mapping[str, Deliveries]

    def verdicts(self, spans: Sequence[Span], whole: Span) -> tuple[Verdict, ...]:
        """One for each expectation: those of the phases in their order, then the run's."""
        by_phase = {span.phase: span for span in [*spans, whole]}
        wanted = [each for phase in self.scenario.phases for each in phase.wanted]
        return tuple(self._verdict(each, by_phase[each.phase]) for each in [*wanted, *self.scenario.wanted])

    def lost(self, devices: str = "") -> int | None:
        """Acknowledged and not heard; None when nobody listened."""
        return self._counted(devices, lambda deliveries: deliveries.lost)

    def duplicates(self, devices: str = "") -> int | None:
        """Heard too often; None when nobody listened."""
        return self._counted(devices, lambda deliveries: deliveries.duplicates)

    def attacks(self, span: Span) -> AttackReport | None:
        """The attacks that were carried out; None when there were none."""
        return AttackReport(self.broker, tuple(span.attacked)) if span.attacked else None

    # --- inside ---

    def _verdict(self, wanted: Wanted, span: Span) -> Verdict:
        judged = EXPECTATIONS[wanted.key].judge(wanted.value, self._measured(span, wanted.devices))
        return Verdict(wanted.key, wanted.phase, wanted.devices, judged.wanted, judged.seen, judged.is_met)

    def _measured(self, span: Span, devices: str) -> Measured:
        names = [name for name in span.groups if devices in ("", name)]
        figures = Figures(devices=sum(span.groups[name].devices for name in names))
        for name in names:
            figures.add(span.groups[name])
        times = [span.recovered_s.get(name) for name in names]
        known = [time for time in times if time is not None]
        return Measured(
            figures=figures,
            connected=sum(span.connected[name] for name in names),
            recovered_s=max(known, default=0.0) if len(known) == len(times) else None,
            lost=self.lost(devices),
            duplicates=self.duplicates(devices),
            audit=self._audit(span, devices),
            attacks=self.attacks(span),
            grown_bytes=span.grown_bytes,
        )

    def _audit(self, span: Span, devices: str) -> Sequence[AuditLine] | None:
        if span.audit is None or not devices:
            return span.audit
        # A peer that was refused in its TLS handshake has no name yet: such a line may be of any group.
        ids = {*self.ids[devices], None}
        return [line for line in span.audit if line.get("id") in ids]

    def _counted(self, devices: str, count: Callable[[Deliveries], int]) -> int | None:
        if not self.scenario.listen:
            return None
        return sum(count(deliveries) for name, deliveries in self.deliveries.items() if devices in ("", name))
