"""What a run found: every row of every round, the machine, and the medians and ratios that come of it.

A ratio is formed inside one round of one run, where both brokers met the same machine, and the median is taken of the
ratios. Several runs are put together the same way.
"""

import os
import platform
import ssl
import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from benchmarks.brokers import mosquitto
from benchmarks.generator import Limit, Row
from benchmarks.works import Work


@dataclass(frozen=True, slots=True)
class Run:
    """One call of `python -m benchmarks`."""

    machine: dict[str, str]
    works: tuple[Work, ...]
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        works = [asdict(work) for work in self.works]
        return {"machine": self.machine, "works": works, "rows": [row.as_json() for row in self.rows]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        works = tuple(Work(**work) for work in values["works"])
        return cls(values["machine"], works, tuple(Row.from_json(row) for row in values["rows"]))


@dataclass(frozen=True, slots=True)
class Line:
    """A kind of work over all rounds: medians by broker, and the gateway's ratio to the others."""

    work: Work
    figures: dict[str, float]
    rates: dict[str, float]
    ratio: float | None  # to mosquitto; the KiB themselves for idle
    to_amqtt: float | None
    rounds: int
    limits: dict[str, Limit]  # by broker: who was at the end of its core in most rounds

    @property
    def verdict(self) -> str:
        """The goal, reached or not."""
        judged = self.figures.get("gateway") if self.work.kind == "idle" else self.ratio
        return "" if judged is None else self.work.verdict(judged)


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """One line per kind of work, in the order in which they were measured; works of one name are one kind."""
    works = {work.name: work for run in runs for work in run.works}
    return [line for work in works.values() if (line := _line(work, runs)).figures]


def _line(work: Work, runs: Sequence[Run]) -> Line:
    rounds = [_brokers(work, run, number) for run in runs for number in {row.round for row in run.rows}]
    rows = [row for brokers in rounds for row in brokers.values()]
    names = dict.fromkeys(row.broker for row in rows)

    def medians(value: Callable[[Row], float]) -> dict[str, float]:
        return {name: statistics.median(value(row) for row in rows if row.broker == name) for name in names}

    def ratio_to(other: str) -> float | None:
        pairs = [(brokers["gateway"], brokers[other]) for brokers in rounds if {"gateway", other} <= brokers.keys()]
        ratios = [ours.figure / theirs.figure for ours, theirs in pairs if theirs.figure]
        return statistics.median(ratios) if ratios else None

    limits = {name: statistics.mode(row.limit for row in rows if row.broker == name) for name in names}
    figures, rates = medians(lambda row: row.figure), medians(lambda row: row.per_second)
    return Line(work, figures, rates, ratio_to("mosquitto"), ratio_to("amqtt"), len(rounds), limits)


def _brokers(work: Work, run: Run, number: int) -> dict[str, Row]:
    return {row.broker: row for row in run.rows if (row.work, row.round) == (work.name, number)}


def machine() -> dict[str, str]:
    """What the figures depend on."""
    models = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith(("model name", "Model"))]
    said = "" if (tool := mosquitto()) is None else _output([tool, "-h"]).partition("\n")[0]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": f"{os.cpu_count()} x {models[0].partition(':')[2].strip() if models else platform.machine()}",
        "system": f"Linux {platform.release().partition('-')[0]}, {platform.machine()}",
        "python": f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}",
        "mosquitto": said or "not installed",
        "amqtt": f"amqtt {version('amqtt')}",
    }


def _lines(path: Path) -> Iterable[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
