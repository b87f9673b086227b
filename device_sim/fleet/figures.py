"""What a fleet measured: counters, histograms, the course over time, and whether the simulator itself was the limit.

Durations of messages begin at the scheduled time, so a gateway that stalls is charged for every message that had to
wait, not only for the one that was on its way (no coordinated omission). The simulator charges itself the same way:
`lag` is how late it got round to what was due. When that, or its share of a core, is high, latencies are the
simulator's as much as the gateway's, and the report says so.
"""

import resource
import time
from collections import Counter
from dataclasses import dataclass, field, fields

from device_sim.fleet.histogram import Histogram

BUSY_SHARE = 0.9  # of one core
LATE_S = 0.1  # of the 99th percentile of lag


@dataclass(slots=True)
class Figures:
    """The numbers of one group of devices."""

    devices: int = 0
    scheduled: int = 0
    sent: int = 0
    acknowledged: int = 0
    dropped: int = 0  # by the device, because too many waited
    answered: int = 0  # commands
    admissions: int = 0
    admitted: set[str] = field(default_factory=set)  # devices that were let in at least once
    refused: Counter[str] = field(default_factory=Counter)  # reason -> attempts
    lost: Counter[str] = field(default_factory=Counter)  # reason -> connections
    subacks: Counter[int] = field(default_factory=Counter)
    connect: Histogram = field(default_factory=Histogram)
    latency: Histogram = field(default_factory=Histogram)
    lag: Histogram = field(default_factory=Histogram)
    storm: Histogram = field(default_factory=Histogram)  # after a reconnect storm, until all who were cut were back
    admissions_by_second: Counter[int] = field(default_factory=Counter)
    refusals_by_second: Counter[int] = field(default_factory=Counter)

    @property
    def storm_s(self) -> float | None:
        """How long a reconnect storm lasted, the longest if there were several; None when none has ended."""
        return self.storm.longest_s if self.storm.total else None

    def take(self) -> "Figures":
        """What was counted so far, as figures of its own; these begin anew, for the same devices."""
        taken = Figures(**{each.name: getattr(self, each.name) for each in fields(self)})
        fresh = Figures(devices=self.devices)
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))
        return taken

    def add(self, later: "Figures") -> None:
        """Take over what was counted in another span of time, or of other devices at the same time."""
        for each in fields(self):
            mine, other = getattr(self, each.name), getattr(later, each.name)
            if isinstance(mine, Histogram):
                mine.add(other)
            elif isinstance(mine, Counter | set):
                mine.update(other)
            elif each.name != "devices":
                setattr(self, each.name, mine + other)

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        return {
            "devices": self.devices,
            "admitted": len(self.admitted),
            "admissions": self.admissions,
            "refused": dict(self.refused),
            "connections_lost": dict(self.lost),
            "scheduled": self.scheduled,
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "dropped_by_device": self.dropped,
            "commands_answered": self.answered,
            "connect": self.connect.as_row(),
            "latency": self.latency.as_row(),
            **({} if self.storm_s is None else {"storm_recovered_s": round(self.storm_s, 3)}),
        }


@dataclass(slots=True)
class Deliveries:
    """What was acknowledged against what an observer heard, by topic and payload; QoS 1 may repeat, never lose."""

    acknowledged: Counter[int] = field(default_factory=Counter)
    heard: Counter[int] = field(default_factory=Counter)
    heard_by_group: Counter[str] = field(default_factory=Counter)

    def acknowledge(self, topic: str, payload: bytes) -> None:
        """A message that the gateway has taken over."""
        self.acknowledged[hash((topic, payload))] += 1

    def hear(self, topic: str, payload: bytes) -> None:
        """A message that reached the observer."""
        self.heard[hash((topic, payload))] += 1

    @property
    def lost(self) -> int:
        """Acknowledged and never heard."""
        return (self.acknowledged - self.heard).total()

    @property
    def duplicates(self) -> int:
        """Heard more often than acknowledged, of what was acknowledged at all."""
        return sum(max(0, self.heard[key] - count) for key, count in self.acknowledged.items())


@dataclass(frozen=True, slots=True)
class Load:
    """What the simulator itself cost, and how late it was."""

    seconds: float
    cpu_s: float
    peak_rss_bytes: int
    late_s: float
    processes: int = 1

    @property
    def core_share(self) -> float:
        """Of one core; of several processes their sum."""
        return self.cpu_s / self.seconds if self.seconds else 0.0

    def beside(self, other: "Load") -> "Load":
        """This and the load of other processes that ran at the same time."""
        return Load(
            seconds=max(self.seconds, other.seconds),
            cpu_s=self.cpu_s + other.cpu_s,
            peak_rss_bytes=self.peak_rss_bytes + other.peak_rss_bytes,
            late_s=max(self.late_s, other.late_s),
            processes=self.processes + other.processes,
        )

    @property
    def was_the_limit(self) -> bool:
        """Whether the figures say as much about the simulator as about the gateway."""
        return self.core_share > BUSY_SHARE * self.processes or self.late_s > LATE_S

    def sentence(self) -> str:
        """For the report."""
        among = f" in {self.processes} processes" if self.processes > 1 else ""
        memory, lag = f"{self.peak_rss_bytes / 1e6:.0f} MB", f"p99 lag {self.late_s * 1000:.1f} ms"
        used = f"{self.core_share:.0%} of a core{among}, {memory}, {lag}"
        if self.was_the_limit:
            return f"THE SIMULATOR WAS THE LIMIT ({used}): latencies are its own as much as the gateway's"
        return f"the simulator was not the limit ({used})"

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        return {
            "seconds": round(self.seconds, 3),
            "core_share": round(self.core_share, 3),
            "processes": self.processes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "lag_p99_ms": round(self.late_s * 1000, 3),
            "simulator_was_the_limit": self.was_the_limit,
        }


class LoadMeter:
    """Measures this process from its construction to `read`."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self, lag: Histogram) -> Load:
        """The load so far."""
        return Load(
            seconds=time.monotonic() - self._wall,
            cpu_s=time.process_time() - self._cpu,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            late_s=lag.percentile(99.0),
        )
