"""A scenario's result for people at a terminal, in 80 columns, and for programs as JSON."""

import json
import textwrap
from collections.abc import Iterator

from device_sim.scenarios.result import PhaseResult, ScenarioResult, Verdict

COLUMNS = 80
GROUP_WIDTH = 14
HEADING = (
    f"{'':{GROUP_WIDTH}} {'admitted':>11} {'acknowledged':>15} {'p50 ms':>8} {'p99 ms':>8} {'refused':>8} {'lost':>6}"
)


def as_text(result: ScenarioResult) -> str:
    """What was run, the figures of each phase, and a line for each expectation; failed ones come last."""
    met = [_verdict(verdict) for verdict in result.verdicts if verdict.is_met]
    failed = [_verdict(verdict) for verdict in result.failed]
    return "\n".join(
        [
            _within(f"{result.name}: {result.description}" if result.description else result.name),
            f"against {result.broker}, seed {result.seed}, {result.seconds:.1f} s",
            "",
            *([HEADING] if any(phase.groups for phase in result.phases) else []),
            *(line for phase in result.phases for line in _phase(phase)),
            "",
            *met,
            *failed,
            "",
            _within(result.load.sentence()),
            _conclusion(result),
        ]
    )


def _phase(phase: PhaseResult) -> Iterator[str]:
    yield f"{phase.name} ({phase.seconds:.1f} s)"
    for name, figures in phase.groups.items():
        latency = figures.latency
        yield (
            f"  {name[: GROUP_WIDTH - 2]:{GROUP_WIDTH - 2}} {f'{len(figures.admitted)} of {figures.devices}':>11} "
            f"{f'{figures.acknowledged} of {figures.scheduled}':>15} {latency.percentile(50) * 1000:8.1f} "
            f"{latency.percentile(99) * 1000:8.1f} {figures.refused.total():8} {figures.lost.total():6}"
        )
        for title, counted in (("refused", figures.refused), ("lost", figures.lost)):
            if counted:
                reasons = ", ".join(f"{number} {reason}" for reason, number in counted.most_common())
                yield _within(f"{title}: {reasons}", " " * 4)


def _verdict(verdict: Verdict) -> str:
    place = " ".join(part for part in (verdict.phase or "whole run", verdict.devices) if part)
    wanted, seen = f"{verdict.expectation} {verdict.wanted}", verdict.seen
    line = f"{'met' if verdict.is_met else 'FAILED':7}{place:24} {wanted}"
    if len(line) + len(seen) + 2 <= COLUMNS:
        return f"{line}: {seen}"
    return f"{_within(line)}:\n{_within(seen, ' ' * 9)}"


def _within(text: str, indent: str = "") -> str:
    return textwrap.fill(text, COLUMNS, initial_indent=indent, subsequent_indent=f"{indent}  ")


def _conclusion(result: ScenarioResult) -> str:
    number = len(result.verdicts)
    if not result.failed:
        return f"PASS: {number} of {number} expectations met"
    return f"FAIL: {len(result.failed)} of {number} expectations not met"


def as_json(result: ScenarioResult) -> str:
    """Everything that the table shows and more, as one object."""
    heard = {} if result.lost is None else {"acknowledged_lost": result.lost, "duplicates": result.duplicates}
    row = {
        "scenario": result.name,
        "description": result.description,
        "broker": result.broker,
        "seed": result.seed,
        "started_at": result.started_at.isoformat(timespec="milliseconds"),
        "seconds": round(result.seconds, 3),
        "passed": not result.failed,
        "expectations": [
            {
                "expectation": verdict.expectation,
                "phase": verdict.phase,
                "devices": verdict.devices,
                "wanted": verdict.wanted,
                "seen": verdict.seen,
                "met": verdict.is_met,
            }
            for verdict in result.verdicts
        ],
        "phases": [
            {
                "phase": phase.name,
                "started_s": round(phase.started_s, 3),
                "seconds": round(phase.seconds, 3),
                "devices": {name: figures.as_row() for name, figures in phase.groups.items()},
            }
            for phase in result.phases
        ],
        **heard,
        "simulator": result.load.as_row(),
        "attacks": None if result.attacks is None else result.attacks.as_row(),
    }
    return json.dumps(row, indent=1)
