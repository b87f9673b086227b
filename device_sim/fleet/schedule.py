"""Who says what, and when: the whole plan of a fleet as a pure function of its seed.

`schedule` yields every message of a run in the order of its scheduled time, ties by device, with the time counted
from the start. No clock and no socket: the same plan gives the same lines, byte for byte, on any machine, and a run
that could not keep up is judged by the times that stand here, not by when it got round to it.
"""

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from device_sim.fleet.payloads import PayloadModel


class Message(NamedTuple):
    """One message of the plan; `at_s` counts from the start of the run."""

    at_s: float
    device: int
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the devices of one group say."""

    ids: tuple[str, ...]
    topic: str  # {id} is the device's
    payload: PayloadModel
    interval_s: float
    jitter: float  # share of the interval by which a message may come early or late
    seed: int
    starts_s: tuple[float, ...] = ()  # when each device is switched on; all at the start when nothing is said

    def topic_of(self, device: int) -> str:
        """The topic of one device."""
        return self.topic.replace("{id}", self.ids[device])


def schedule(traffic: Traffic, duration_s: float) -> Iterator[Message]:
    """Every message up to `duration_s`, in order."""
    queue: list[tuple[float, int, int]] = []
    timers = [random.Random(f"when:{traffic.seed}:{device}") for device in range(len(traffic.ids))]  # noqa: S311
    payloads = [traffic.payload.payloads(traffic.seed, device) for device in range(len(traffic.ids))]
    topics = [traffic.topic_of(device) for device in range(len(traffic.ids))]
    for device, timer in enumerate(timers):
        # Spread over the first interval: devices that were switched on at different times.
        on_s = traffic.starts_s[device] if traffic.starts_s else 0.0
        heapq.heappush(queue, (on_s + timer.random() * traffic.interval_s, device, 0))
    starts = [entry[0] for entry in sorted(queue, key=lambda entry: entry[1])]
    while queue:
        at_s, device, number = heapq.heappop(queue)
        if at_s >= duration_s:
            return
        yield Message(at_s, device, topics[device], next(payloads[device]))
        wobble = traffic.jitter * traffic.interval_s * (timers[device].random() - 0.5)
        # From the start and not from the last one: jitter does not add up.
        due_s = starts[device] + (number + 1) * traffic.interval_s + wobble
        heapq.heappush(queue, (max(due_s, at_s), device, number + 1))


def ramp(count: int, per_s: float, jitter: float, seed: int) -> list[float]:
    """When each device makes its first connection, in seconds from the start; `per_s` 0 means all at once."""
    if per_s <= 0:
        return [0.0] * count
    rng = random.Random(f"ramp:{seed}")  # noqa: S311 - reproducible on purpose
    return [max(0.0, (number + jitter * (rng.random() - 0.5)) / per_s) for number in range(count)]
