"""A scenario's run in Prometheus' text format, for node_exporter's textfile folder or a Pushgateway.

Gauges, because each run is a value and none goes on from the last; latency as a histogram in seconds, whose sum is
exact within the histogram's 0.8 %. Reasons are ours and few; phases, groups and attacks are named in files of ours.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from device_sim.fleet.figures import Figures
from device_sim.fleet.histogram import Histogram
from device_sim.reports.markup import LONGEST_TEXT
from device_sim.scenarios.result import ScenarioResult
from mtls.terminal import sanitise

PREFIX: Final = "device_sim_"
BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

Sample = tuple[tuple[str, ...], float]
Place = tuple[str, str]  # phase and group


def as_prometheus(result: ScenarioResult) -> str:
    """The text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Result(result))
    return generate_latest(registry).decode()


class _Result(Collector):
    """Every figure of one run, each with its scenario and its broker."""

    def __init__(self, result: ScenarioResult) -> None:
        self._result = result

    def collect(self) -> Iterator[Metric]:
        """Called once, by generate_latest."""
        yield from self._run()
        yield from self._groups()
        result = self._result
        yield self._gauge(
            "expectation_met",
            "1 when the expectation was met.",
            ("phase", "devices", "expectation", "wanted"),
            [((v.phase, v.devices, v.expectation, v.wanted), v.is_met) for v in result.verdicts],
        )
        if result.attacks is not None:
            lines = result.attacks.lines
            yield self._gauge(
                "attack_held",
                "1 when the broker held against the attack.",
                ("trap", "attack"),
                [((line.attack.trap, line.attack.name), line.finding.held) for line in lines],
            )

    def _run(self) -> Iterator[Metric]:
        result, load = self._result, self._result.load
        figures = {
            "scenario_passed": (not result.failed, "1 when every expectation was met."),
            "scenario_started_timestamp_seconds": (result.started_at.timestamp(), "When the run began."),
            "scenario_seconds": (result.seconds, "How long the run took."),
            "acknowledged_lost": (result.lost, "Messages acknowledged and never heard by the observer."),
            "duplicates": (result.duplicates, "Messages heard more often than they were acknowledged."),
            "simulator_core_share": (load.core_share, "Of one core, used by the simulator itself."),
            "simulator_peak_rss_bytes": (load.peak_rss_bytes, "Resident memory of the simulator, at its highest."),
            "simulator_lag_p99_seconds": (load.late_s, "How late the simulator got round to what was due."),
            "simulator_was_the_limit": (load.was_the_limit, "1 when latencies are the simulator's as much."),
        }
        for name, (value, meaning) in figures.items():
            if value is not None:  # nobody listened
                yield self._gauge(name, meaning, (), [((), value)])

    def _groups(self) -> Iterator[Metric]:
        figures: list[tuple[Place, Figures]] = [
            ((phase.name, group), one) for phase in self._result.phases for group, one in phase.groups.items()
        ]
        place = ("phase", "devices")
        for name, meaning, value in (
            ("devices", "Devices of the group.", lambda one: one.devices),
            ("devices_admitted", "Devices that were let in at least once.", lambda one: len(one.admitted)),
            ("connections", "Connections that were let in.", lambda one: one.admissions),
            ("messages_scheduled", "Messages that were due.", lambda one: one.scheduled),
            ("messages_acknowledged", "Messages that were acknowledged.", lambda one: one.acknowledged),
            ("messages_dropped", "Messages that devices dropped, because too many waited.", lambda one: one.dropped),
        ):
            yield self._gauge(name, meaning, place, [(where, value(one)) for where, one in figures])
        for name, meaning, attribute in (
            ("connections_refused", "Connections that were refused.", "refused"),
            ("connections_lost", "Connections that were lost.", "lost"),
        ):
            samples = [
                ((*where, reason), float(count))
                for where, one in figures
                for reason, count in sorted(getattr(one, attribute).items())
            ]
            yield self._gauge(name, meaning, (*place, "reason"), samples)
        yield self._histogram("latency_seconds", "From the scheduled time to the acknowledgement.", place, figures)

    # --- families ---

    def _labels(self, labels: Iterable[str]) -> list[str]:
        return [sanitise(label, LONGEST_TEXT) for label in (self._result.name, self._result.broker, *labels)]

    def _gauge(self, name: str, meaning: str, labels: Iterable[str], samples: Iterable[Sample]) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, meaning, labels=["scenario", "broker", *labels])
        # A series stands once: the same expectation given twice has the same answer twice.
        for labelled, value in {tuple(self._labels(values)): float(value) for values, value in samples}.items():
            family.add_metric(labelled, value)
        return family

    def _histogram(
        self, name: str, meaning: str, labels: Iterable[str], figures: Iterable[tuple[Place, Figures]]
    ) -> Metric:
        family = HistogramMetricFamily(PREFIX + name, meaning, labels=["scenario", "broker", *labels])
        for place, one in figures:
            buckets, total = _buckets(one.latency)
            family.add_metric(self._labels(place), buckets, total)
        return family


def _buckets(durations: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative counts by upper bound, and the sum of all."""
    steps = list(durations.steps())
    bounded = [(f"{bound:g}", float(sum(n for seconds, n in steps if seconds <= bound))) for bound in BUCKETS_S]
    total = sum(seconds * count for seconds, count in steps)
    return [*bounded, ("+Inf", float(durations.total))], total
