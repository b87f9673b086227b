"""What a scenario may expect, by name: one table of pure functions over what was measured.

An expectation parses its value once, when the file is read, and judges it over `Measured`: the figures of one group or
all, of one phase or the whole run. It sees no socket, no clock and no file. What was not measured (nobody listened,
a broker without an audit log) meets no expectation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from device_sim.attacks.report import AttackReport
from device_sim.fleet.figures import Figures
from gateway.config_values import Bad, Parse, seconds, whole
from mtls.errors import Reason

MANY = 10**9
ALL, NONE = "all", "none"
AUDIT_KEYS = ("event", "reason", "at_least")
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was seen of a group, or of all, in a phase or in the whole run."""

    figures: Figures
    connected: int  # at the end
    recovered_s: float | None = None  # None: not all were connected at the end
    lost: int | None = None  # acknowledged and never heard; None: nobody listened
    duplicates: int | None = None
    audit: Sequence[Mapping[str, Any]] | None = None  # None: there is no audit log to read
    attacks: AttackReport | None = None
    grown_bytes: int | None = None  # of the broker's memory; None: not our process


class Judged(NamedTuple):
    """What was wanted, what was seen, and whether that meets it."""

    wanted: str
    seen: str
    is_met: bool


class Scope(StrEnum):
    """Where an expectation may stand."""

    ANYWHERE = "anywhere"
    PHASE = "in a phase"
    WHOLE = "in the whole run's [[expect]]"


@dataclass(frozen=True, slots=True)
class Expectation:
    """One line of the table."""

    takes: str
    effect: str
    parse: Parse
    judge: Callable[[Any, Measured], Judged]
    scope: Scope = Scope.ANYWHERE


# --- values ---


def _share(value: Any, folder: Path) -> str | int:
    if value in (ALL, NONE):
        return str(value)
    try:
        return int(whole(0, MANY)(value, folder))
    except Bad:
        raise Bad('"all", "none" or a whole number') from None


def _reasons(value: Any, folder: Path) -> tuple[Reason, ...]:
    texts = value if isinstance(value, list) and value else [value]
    known = {reason.value for reason in Reason}
    if not all(isinstance(text, str) and text in known for text in texts):
        raise Bad('a reason code as "certificate_expired" (docs/gateway.md lists them), or a list of them')
    return tuple(Reason(text) for text in texts)


def _audit(value: Any, folder: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict) or "event" not in value or not value.keys() <= {*AUDIT_KEYS}:
        raise Bad(f"a table of event and, if wanted, reason and at_least ({', '.join(AUDIT_KEYS)})")
    if not isinstance(value["event"], str) or not isinstance(value.get("reason", ""), str):
        raise Bad("a table whose event and reason are strings")
    return MappingProxyType({**value, "at_least": whole(0, MANY)(value.get("at_least", 1), folder)})


def _traps(value: Any, folder: Path) -> tuple[str, ...]:
    if value is True:
        return ()
    if not isinstance(value, list) or not value or not all(isinstance(trap, str) for trap in value):
        raise Bad('true or a list of traps, as ["S1", "P1"]')
    return tuple(value)


# --- judgements ---


def _of(wanted: str | int, seen: int, total: int) -> Judged:
    number = {ALL: total, NONE: 0}.get(str(wanted), wanted)
    return Judged(str(wanted), f"{seen} of {total}", seen == number)


def _at_most(wanted: float, seen: float | None, unit: str = "") -> Judged:
    text = NOT_MEASURED if seen is None else f"{seen:.4g}{unit}" if isinstance(seen, float) else f"{seen}{unit}"
    return Judged(f"<= {wanted:g}{unit}", text, seen is not None and seen <= wanted)


def _recovered(wanted: float, measured: Measured) -> Judged:
    if measured.recovered_s is None:
        return Judged(f"<= {wanted:g} s", f"{measured.connected} of {measured.figures.devices} are back", False)
    return _at_most(wanted, measured.recovered_s, " s")


def _latency(share: float, name: str = "latency") -> Callable[[float, Measured], Judged]:
    def judge(wanted: float, measured: Measured) -> Judged:
        histogram = getattr(measured.figures, name)
        return _at_most(wanted, histogram.percentile(share) * 1000 if histogram.total else None, " ms")

    return judge


def _refused(wanted: tuple[Reason, ...], measured: Measured) -> Judged:
    refused = measured.figures.refused
    seen = ", ".join(f"{number} {reason}" for reason, number in refused.most_common()) or "no refusal"
    return Judged(", ".join(wanted), seen, bool(refused) and refused.keys() <= {*wanted})


def _acknowledged(wanted: str | int, measured: Measured) -> Judged:
    figures = measured.figures
    if isinstance(wanted, int):
        return Judged(f">= {wanted}", str(figures.acknowledged), figures.acknowledged >= wanted)
    return _of(wanted, figures.acknowledged, figures.scheduled)


def _audited(wanted: Mapping[str, Any], measured: Measured) -> Judged:
    fields = {key: wanted[key] for key in ("event", "reason") if key in wanted}
    text = f">= {wanted['at_least']} {' '.join(fields.values())}"
    if measured.audit is None:
        return Judged(text, "no audit log", False)
    number = sum(all(line.get(key) == value for key, value in fields.items()) for line in measured.audit)
    return Judged(text, f"{number} lines", number >= wanted["at_least"])


def _attacks_held(wanted: tuple[str, ...], measured: Measured) -> Judged:
    text = ", ".join(wanted) or "every attack"
    lines = measured.attacks.lines if measured.attacks is not None else ()
    chosen = [line for line in lines if not wanted or line.attack.trap in wanted]
    missing = {*wanted} - {line.attack.trap for line in lines}
    if missing or not chosen:
        return Judged(text, f"not carried out: {', '.join(sorted(missing)) or 'any attack'}", False)
    through = [line.attack for line in chosen if not line.finding.held]
    seen = ", ".join(f"{attack.trap} {attack.name}" for attack in through)
    return Judged(
        text, f"let through: {seen}" if through else f"{len(chosen)} of {len(chosen)} attacks held", not through
    )


EXPECTATIONS: Mapping[str, Expectation] = MappingProxyType(
    {
        "admitted": Expectation(
            '"all", "none" or N',
            "so many devices were let in at least once",
            _share,
            lambda wanted, measured: _of(wanted, len(measured.figures.admitted), measured.figures.devices),
        ),
        "connected": Expectation(
            '"all", "none" or N',
            "so many devices are connected at the end of the phase",
            _share,
            lambda wanted, measured: _of(wanted, measured.connected, measured.figures.devices),
            Scope.PHASE,
        ),
        "refused": Expectation(
            "reason, or a list",
            "devices were refused, and for no other reason than these",
            _reasons,
            _refused,
        ),
        "connections_lost_max": Expectation(
            "N",
            "at most so many connections were lost, for whatever reason",
            whole(0, MANY),
            lambda wanted, measured: _at_most(wanted, measured.figures.lost.total()),
        ),
        "acknowledged": Expectation(
            '"all", "none" or N',
            "every scheduled message was acknowledged, or none, or at least N were",
            _share,
            _acknowledged,
        ),
        "acked_lost": Expectation(
            "N",
            "at most so many messages were acknowledged and not heard by the observer",
            whole(0, MANY),
            lambda wanted, measured: _at_most(wanted, measured.lost),
            Scope.WHOLE,
        ),
        "duplicates_max": Expectation(
            "N",
            "at most so many were heard more often than they were acknowledged",
            whole(0, MANY),
            lambda wanted, measured: _at_most(wanted, measured.duplicates),
            Scope.WHOLE,
        ),
        "p50_ms": Expectation("N", "latency of half the messages", seconds(0, MANY), _latency(50)),
        "p99_ms": Expectation("N", "latency of 99 % of the messages", seconds(0, MANY), _latency(99)),
        "connect_p99_ms": Expectation(
            "N", "time of 99 % of the connects, TLS included", seconds(0, MANY), _latency(99, "connect")
        ),
        "recovered_within_s": Expectation(
            "N",
            "all devices are connected so soon after the phase's last action, and stay so",
            seconds(0, MANY),
            _recovered,
            Scope.PHASE,
        ),
        "audit": Expectation(
            "{ event, reason, at_least }",
            "the gateway's audit log has such lines; with devices, none that name another device",
            _audit,
            _audited,
        ),
        "attacks_held": Expectation(
            "true, or a list of traps", "these attacks were carried out, and all were held", _traps, _attacks_held
        ),
        "memory_growth_max_mb": Expectation(
            "N",
            "the broker's resident memory grew by no more",
            seconds(0, MANY),
            lambda wanted, measured: _at_most(
                wanted, None if measured.grown_bytes is None else measured.grown_bytes / 1e6, " MB"
            ),
        ),
    }
)
