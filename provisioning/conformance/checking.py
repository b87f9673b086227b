"""One check as data, and the run of a table of checks: PASS, FAIL or SKIPPED, each with its reason.

Theory: a check says in which state the device must be before it. Leading it there is not what is judged: when that
fails the check is SKIPPED with the reason, and the check whose subject it is says FAIL. So one defect is one FAIL, or
a few, and never a page of them. A device that no longer answers HELLO ends the judging: the rest is SKIPPED at once.

A run in which a check was skipped against its will is no proof: `conforms` is then false.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from provisioning.conformance.line import Failed, Silent
from provisioning.conformance.probe import Probe
from provisioning.spp1.fields import FieldFault
from provisioning.spp1.protocol import State


class Outcome(StrEnum):
    """What came of a check."""

    PASS = "PASS"  # noqa: S105 - no password
    FAIL = "FAIL"
    SKIPPED = "SKIPPED"


class NotAsked(Exception):
    """The check does not apply to this device, or was not asked for; str() says why."""


@dataclass(frozen=True, slots=True)
class Check:
    """One requirement: where the specification makes it, what must happen, and who judges it."""

    name: str
    clause: str  # of docs/spp1.md: the section, and the verb
    must: str
    state: State | None  # the device is brought there first; None: wherever it is
    judge: Callable[[Probe], None]
    after: tuple[str, ...] = ()  # the checks without which this one says nothing


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one check. `is_open`: it was to be judged and could not be."""

    check: Check
    outcome: Outcome
    reason: str = ""
    is_open: bool = False

    def as_row(self) -> dict[str, object]:
        """All of it as plain values, for JSON."""
        check = self.check
        words = {"check": check.name, "clause": check.clause, "must": check.must}
        return {**words, "outcome": self.outcome, "reason": self.reason}


def conforms(results: Iterable[Result]) -> bool:
    """Whether every check that applies was judged and passed."""
    return all(result.outcome is not Outcome.FAIL and not result.is_open for result in results)


def run(checks: Iterable[Check], probe: Probe) -> Iterator[Result]:
    """Judge in the order of the table."""
    without: set[str] = set()
    gone = ""
    for check in checks:
        if gone:
            result = _skipped(check, gone)
        elif missing := [name for name in check.after if name in without]:
            result = _skipped(check, f"says nothing without {missing[0]}")
        else:
            result, gone = _judge(check, probe)
        if result.outcome is not Outcome.PASS:
            without.add(check.name)
        yield result


def _skipped(check: Check, reason: str) -> Result:
    return Result(check, Outcome.SKIPPED, reason, is_open=True)


def _judge(check: Check, probe: Probe) -> tuple[Result, str]:
    """The result, and why no further check can be judged, if so."""
    if check.state is not None:
        try:
            probe.greet()
        except Silent:
            gone = "the device no longer answers HELLO"
            return _skipped(check, gone), gone
        except _NO as no:
            return _skipped(check, f"no session: {no}"), ""
        try:
            probe.bring_to(check.state)
        except _NO as no:
            return _skipped(check, f"not in {check.state}: {no}"), ""
    try:
        check.judge(probe)
    except NotAsked as reason:
        return Result(check, Outcome.SKIPPED, str(reason)), ""
    except _NO as no:
        return Result(check, Outcome.FAIL, str(no)), ""
    return Result(check, Outcome.PASS), ""


# What a device got wrong. A Fault is no answer of the device: the port is gone, and the run ends.
_NO = (Failed, FieldFault)
