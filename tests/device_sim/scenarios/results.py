"""Results of runs that nobody made: what a report is given, with names that an attacker would choose where wanted."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime

from device_sim.attacks.ground import Finding
from device_sim.attacks.report import ATTACKS, AttackReport, Line
from device_sim.fleet.figures import Figures, Load
from device_sim.fleet.fleet import Sample
from device_sim.scenarios.result import PhaseResult, ScenarioResult, Verdict

LOAD = Load(seconds=40.0, cpu_s=12.0, peak_rss_bytes=210_000_000, late_s=0.02)
BUSY = Load(seconds=40.0, cpu_s=39.0, peak_rss_bytes=210_000_000, late_s=0.5)
MET = Verdict("acked_lost", "", "", "<= 0", "0", True)
NOT_MET = Verdict("refused", "ramp", "gone", "certificate_expired", "3 certificate_revoked", False)


def figures(
    seed: int = 0,
    *,
    messages: int = 400,
    start: float = 0,
    seconds: float = 8,
    refused: Mapping[str, int] | None = None,
) -> Figures:
    """Of one group in one phase; the same for the same seed."""
    chance, one = random.Random(seed), Figures(devices=20, scheduled=messages, sent=messages, acknowledged=messages)  # noqa: S311
    for number in range(20):
        one.admitted.add(f"d{number}")
        one.admissions += 1
        one.admissions_by_second[int(start + chance.random() * seconds)] += 1
    for _ in range(messages):
        one.latency.record(chance.lognormvariate(-6, 0.8))
    for reason, count in (refused or {}).items():
        one.refused[reason] += count
        for _ in range(count):
            one.refusals_by_second[int(start + chance.random() * seconds)] += 1
    return one


def result(
    *,
    name: str = "power-cut",
    names: tuple[str, ...] = ("ramp", "steady", "power-cut-of-the-whole-site", "recovery"),
    groups: tuple[str, ...] = ("sensors", "gone"),
    seconds: float = 8.0,
    messages: int = 400,
    verdicts: tuple[Verdict, ...] = (MET, NOT_MET),
    load: Load = LOAD,
    attacks: AttackReport | None = None,
    lost: int | None = 0,
) -> ScenarioResult:
    """A run of phases as long as each other, with every group in each."""
    phases = []
    for number, phase in enumerate(names):
        start = number * seconds
        measured = {
            group: figures(
                97 * number + place,
                messages=0 if place == 1 else messages,
                start=start,
                seconds=seconds,
                refused={"certificate_expired": 9, "certificate_revoked": 3} if place == 1 else None,
            )
            for place, group in enumerate(groups)
        }
        phases.append(PhaseResult(phase, start, seconds, measured))
    whole = seconds * len(names)
    course = tuple(Sample(float(at), min(40, 7 * at), max(0, 90 - 3 * at)) for at in range(int(whole)))
    return ScenarioResult(
        name=name,
        description="Every device loses its power at once.",
        broker="mqtt-gateway 0.1.0",
        seed=7,
        started_at=datetime(2026, 11, 25, 14, tzinfo=UTC),
        seconds=whole,
        phases=tuple(phases),
        verdicts=verdicts,
        course=course,
        load=load,
        lost=lost,
        duplicates=None if lost is None else 2,
        attacks=attacks,
    )


def attacked(through: frozenset[str] = frozenset()) -> AttackReport:
    """Every attack, of which these were let through."""
    return AttackReport(
        "mosquitto", tuple(Line(one, Finding(one.name not in through, f"seen of {one.name}")) for one in ATTACKS)
    )
