"""A group of virtual devices on the running event loop: started along a ramp, fed from the schedule, stopped in order.

One task gives every device its messages when they are due, one task keeps connections alive, and every device has a
task for its connections. Nothing is threaded: a fleet uses one core, and several fleets may share a loop.
"""

import asyncio
import contextlib
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from device_sim.connection_faults import Endpoint
from device_sim.fleet.device import Device, Group, Waiting
from device_sim.fleet.figures import Deliveries, Figures
from device_sim.fleet.identities import Identities
from device_sim.fleet.schedule import Message, Traffic, ramp, schedule

DESCRIPTORS_BESIDE = 256  # what a process needs besides one descriptor per device
TURN = 50  # messages between two looks at the sockets, when many are due
DRAIN_S = 5.0
STORM_LOOK_S = 0.02
Journal = Callable[[Message], None]


def allow_descriptors(count: int) -> None:
    """Raise this process's limit of open files as far as its own rights go."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + DESCRIPTORS_BESIDE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@dataclass(frozen=True, slots=True)
class Sample:
    """One second of the course of a run."""

    at_s: float
    connected: int
    backlog: int


class Share(NamedTuple):
    """Which devices of a group one process drives: every `of`th, beginning with `first`."""

    first: int = 0
    of: int = 1


WHOLE = Share()


class Fleet:
    """Use `start`, then `stop`; both on the running loop."""

    def __init__(
        self,
        group: Group,
        endpoint: Endpoint,
        identities: Identities,
        *,
        deliveries: Deliveries | None = None,
        journal: Journal | None = None,
        share: Share = WHOLE,
    ) -> None:
        self.group = group
        numbers = range(share.first, len(group.ids), share.of)
        self.figures = Figures(devices=len(numbers))
        self.deliveries = deliveries if deliveries is not None else Deliveries()
        self.course: list[Sample] = []
        self._journal = journal
        self._share = share
        self._tasks: list[asyncio.Task[None]] = []
        settings = (endpoint, identities, self.figures, self.deliveries)
        self.devices = [Device(group, number, *settings) for number in numbers]
        self._twins = [Device(group, number, *settings) for number in (numbers if self._has_twins else ())]
        allow_descriptors(len(self.devices) + len(self._twins))

    @property
    def _has_twins(self) -> bool:
        return "duplicate-client-id" in self.group.faults

    @property
    def connected(self) -> int:
        """Devices that are connected now."""
        return sum(device.is_connected for device in self.devices)

    @property
    def backlog(self) -> int:
        """Messages of all devices without an acknowledgement."""
        return sum(device.backlog for device in self.devices)

    def start(self, duration_s: float, *, started_s: float | None = None) -> None:
        """Begin to connect and to speak; messages are scheduled for `duration_s` from now."""
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        starts = ramp(len(self.group.ids), self.group.ramp_per_s, self.group.ramp_jitter, self.group.seed)
        own = starts[self._share.first :: self._share.of]
        for device, after_s in zip([*self.devices, *self._twins], [*own, *own], strict=False):
            device.started_s = begin_s if started_s is None else started_s
            self._tasks.append(loop.create_task(device.live(after_s)))
        self._tasks.append(loop.create_task(self._keep_alive(begin_s if started_s is None else started_s)))
        self._talk = loop.create_task(self._speak(begin_s, duration_s, tuple(starts)))
        if "reconnect-storm" in self.group.faults:
            self._tasks.append(loop.create_task(self._storm(self.group.faults.number("reconnect-storm"))))
        for task in self._tasks:
            task.add_done_callback(self._end_with)

    async def finish(self, within_s: float = DRAIN_S) -> None:
        """Wait until everything scheduled was said, and for outstanding acknowledgements a while.

        Back at once when a task has failed, as that of a device without a certificate does; `stop` raises what it was.
        """
        await asyncio.wait([self._talk])
        if self._talk.cancelled() or self._talk.exception() is not None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.backlog:  # noqa: ASYNC110 - the backlog is the sum of thousands of queues
                    await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Disconnect every device in order; raises what a task has failed with."""
        for task in [*self._tasks, self._talk]:
            task.cancel()
        results = await asyncio.gather(*self._tasks, self._talk, return_exceptions=True)
        for device in [*self.devices, *self._twins]:
            device.end()
        for result in results:
            if isinstance(result, Exception):
                raise result

    # --- inside ---

    def _end_with(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._talk.cancel()

    async def _speak(self, begin_s: float, duration_s: float, starts_s: tuple[float, ...]) -> None:
        loop, group = asyncio.get_running_loop(), self.group
        every_ms = group.faults.number("flood")
        whose = (group.victim,) * len(group.ids) if "foreign-topic" in group.faults else group.ids
        interval_s = every_ms / 1000 if every_ms else group.interval_s
        traffic = Traffic(whose, group.topic, group.payload, interval_s, group.jitter, group.seed, starts_s)
        plan = (each for each in schedule(traffic, duration_s) if each.device % self._share.of == self._share.first)
        for number, message in enumerate(plan):
            due_s = begin_s + message.at_s
            ahead_s = due_s - loop.time()
            if ahead_s > 0 or number % TURN == 0:
                await asyncio.sleep(max(0.0, ahead_s))
            self.figures.lag.record(max(0.0, loop.time() - due_s))
            self.figures.scheduled += 1
            if self._journal is not None:
                self._journal(message)
            self.devices[message.device // self._share.of].offer(Waiting(due_s, message.topic, message.payload))
        await asyncio.sleep(max(0.0, begin_s + duration_s - loop.time()))

    async def _storm(self, after_s: float) -> None:
        """Cut every connection at once, and see how long it takes until all are back."""
        await asyncio.sleep(after_s)
        loop = asyncio.get_running_loop()
        began_s, wanted = loop.time(), max(1, self.connected)
        for device in self.devices:
            device.cut()
        while self.connected < wanted:  # noqa: ASYNC110 - of thousands of connections, each an event of its own
            await asyncio.sleep(STORM_LOOK_S)
        self.figures.storm.record(loop.time() - began_s)

    async def _keep_alive(self, started_s: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.course.append(Sample(round(loop.time() - started_s, 2), self.connected, self.backlog))
            # A tenth of the devices at a time: a thousand calls in a row would be a thousand messages late.
            for part in range(10):
                for device in [*self.devices[part::10], *self._twins[part::10]]:
                    device.tick()
                await asyncio.sleep(0.1)
