"""A scenario's run for CI servers: a suite per phase, a case per expectation, a case per attack.

An attack that was let through is a failed case also when no expectation of the scenario speaks of it: a CI server
shows what was seen, the exit code says what was expected.
"""

from device_sim.reports.junit import Case, Suite, document
from device_sim.scenarios.result import ScenarioResult, Verdict

WHOLE_RUN = "the whole run"


def as_junit(result: ScenarioResult) -> str:
    """The file."""
    phases = [
        Suite(f"{result.name}: {phase.name}", _cases(result, phase.name), phase.seconds) for phase in result.phases
    ]
    attacks = [result.attacks.as_suite()] if result.attacks is not None else []
    return document([*phases, Suite(f"{result.name}: {WHOLE_RUN}", _cases(result, ""), result.seconds), *attacks])


def _cases(result: ScenarioResult, phase: str) -> tuple[Case, ...]:
    classname = f"{result.name}.{phase or WHOLE_RUN}"
    return tuple(
        Case(classname, _name(one), wanted=one.wanted, seen=None if one.is_met else one.seen or "nothing")
        for one in result.verdicts
        if one.phase == phase
    )


def _name(one: Verdict) -> str:
    return f"{one.expectation} {one.wanted}" + (f" ({one.devices})" if one.devices else "")
