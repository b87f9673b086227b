"""The kinds of work, as data: what is done, how it is scored, and what it should come to beside mosquitto."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["connect", "fan-in", "fan-out", "broadcast", "open loop", "idle"]
Score = Literal["per_cpu_second", "per_second", "p99_ms", "kib_per_connection"]

PAYLOAD_BYTES = 100
WINDOW = 100  # messages on their way at a time, over all devices
OPEN_LOOP_RATE = 2_000.0
CONNECTS = 1_000  # two seconds of work: half a second showed the noise of the machine more than the broker
TOPICS = {
    "fan-in": "devices/{id}/telemetry",
    "open loop": "devices/{id}/telemetry",
    "fan-out": "devices/{id}/cmd",
    "broadcast": "broadcast/cmd",
}


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work with so many devices. `goal` and `floor` are ratios to mosquitto, or KiB for idle."""

    kind: Kind
    devices: int
    goal: float
    floor: float
    qos: int = 0
    score: Score = "per_cpu_second"

    @property
    def name(self) -> str:
        """As the tables call it."""
        devices = f"{self.devices:,} device{'' if self.devices == 1 else 's'}"
        match self.kind:
            case "connect":
                return "full connects" if self.score == "per_cpu_second" else "full connects, wall time, two cores"
            case "fan-in":
                return f"fan-in QoS {self.qos}, {devices}"
            case "fan-out":
                return f"fan-out to own topics, {devices}"
            case "broadcast":
                return f"broadcast, 1 to {self.devices:,}"
            case "open loop":
                return f"open loop {OPEN_LOOP_RATE:,.0f} msg/s, p99 ms"
            case "idle":
                return f"idle KiB per connection, {self.devices:,} connections"

    @property
    def fan(self) -> int:
        """How many receive one message."""
        return self.devices if self.kind == "broadcast" else 1

    @property
    def batch(self) -> int:
        """Messages per write: a backend that feeds many devices fills a packet, a device sends what it has."""
        return 10 if self.kind == "fan-out" else 1

    @property
    def window(self) -> int:
        return max(WINDOW, self.fan)

    @property
    def higher_is_better(self) -> bool:
        return self.score in ("per_cpu_second", "per_second")

    def verdict(self, figure: float) -> str:
        """What a ratio, or the KiB of an idle connection, comes to."""
        good, bad = (figure >= self.goal, figure < self.floor)
        if not self.higher_is_better:
            good, bad = (figure <= self.goal, figure > self.floor)
        return "reached" if good else "below the floor" if bad else "missed"


def works(sizes: Sequence[int], idle_connections: int, *, connects: int, two_cores: bool) -> list[Work]:
    """All that is measured: everything with the first size, what grows with the fleet with the others too."""
    first = sizes[0]
    found = [
        Work(
            "idle", idle_connections, 40, 64, score="kib_per_connection"
        ),  # first: a fresh process has no spare memory
        Work("connect", connects, 1.4, 1.1),
        Work("fan-in", first, 1.2, 0.9),
        Work("fan-in", first, 1.0, 0.7, qos=1),
        Work("fan-out", first, 1.2, 0.9),
        Work("broadcast", first, 1.3, 1.0),
        Work("open loop", first, 1.5, 3.0, score="p99_ms"),
    ]
    for size in sizes[1:]:
        found += [Work("fan-in", size, 1.2, 0.9), Work("fan-out", size, 1.2, 0.9), Work("broadcast", size, 1.3, 1.0)]
    if two_cores:
        found.append(Work("connect", connects, 1.3, 1.15, score="per_second"))
    return found
