"""The torture: publishers that number their messages, subscribers that come and go, and a broker that is killed.

Every round starts the broker, lets the clients work, and kills it with SIGKILL at a moment that the seed chose, every
other time when it has just begun to write. At the end it is started once more, everything open is settled, and each
subscriber takes what is left; then the tally says what is missing. Same seed, same moments; what the machine does in
between is its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.torture.client import Publisher, Subscriber, Wire
from gateway.torture.subject import Subject, choose
from gateway.torture.tally import Round, Tally
from mtls.errors import Fault

QUIET_S: Final = 2.0  # nothing new for so long at the end: what is not there now does not come
DRAIN_TIMEOUT_S: Final = 300.0
WINDOW: Final = 20
ANSWER_SHARE: Final = 0.97  # of QoS 1 messages that a subscriber acknowledges at once; the rest come again


@dataclass(frozen=True, slots=True)
class Plan:
    """What a torture does. Half of the publishers use QoS 2, and so does every other subscriber."""

    rounds: int
    seed: int
    publishers: int = 6
    subscribers: int = 3
    payload_bytes: int = 100


class Torture:
    """One run. `told` is called with (rounds done, messages acknowledged) after each."""

    def __init__(self, plan: Plan, folder: Path, command: str | None, told: Callable[[int, int], None]) -> None:
        self._plan = plan
        self._rng = random.Random(plan.seed)  # noqa: S311 - it must repeat
        self._kills = choose(self._rng, plan.rounds)
        self._told = told
        self.tally = Tally()
        self._publishers = [
            Publisher(f"dev-{n}", 1 + n % 2, WINDOW, plan.payload_bytes, self.tally) for n in range(plan.publishers)
        ]
        self._final = False
        self._subscribers = [
            Subscriber(f"sub-{n}", 1 + n % 2, self.tally, self._answers) for n in range(plan.subscribers)
        ]
        names = [each.device for each in self._publishers] + [each.name for each in self._subscribers]
        self._subject = Subject(folder, names, command)

    def _answers(self) -> bool:
        return self._final or self._rng.random() < ANSWER_SHARE

    async def run(self) -> Tally:
        """Every round, then the last start and the drain. Fault when the broker does not start."""
        try:
            for number, moment in enumerate(self._kills, 1):
                start_s, backlog = await self._start()
                before = len(self.tally.acknowledged)
                async with _Clients(self) as clients:
                    clients.work()
                    await self._subject.kill_at(moment)
                self.tally.rounds.append(Round(start_s, backlog, len(self.tally.acknowledged) - before))
                self._told(number, len(self.tally.acknowledged))
            await self._settle()
        finally:
            await self._subject.kill()
        return self.tally

    async def _start(self) -> tuple[float, int]:
        backlog = self.tally.backlog()
        start_s = await self._subject.start()
        for subscriber in self._subscribers:
            if not subscriber.subscribed:
                wire = await self.open(subscriber.name)
                await subscriber.subscribe(wire)
                wire.close()
        return start_s, backlog

    async def open(self, name: str) -> Wire:
        """A connection of one client."""
        return await Wire.open(self._subject.port, self._subject.context(name), name)

    async def _settle(self) -> None:
        await self._start()
        self._final = True
        for publisher in self._publishers:
            publisher.enough = True
        async with _Clients(self) as clients:
            clients.work()
            deadline = time.monotonic() + DRAIN_TIMEOUT_S
            seen, since = -1, time.monotonic()
            while time.monotonic() - since < QUIET_S:
                if time.monotonic() > deadline:
                    raise Fault(f"messages still came after {DRAIN_TIMEOUT_S:g} s", hint="use fewer rounds")
                now = sum(r.count + r.duplicated for r in self.tally.receivers.values())
                if now != seen or not all(publisher.settled for publisher in self._publishers):
                    seen, since = now, time.monotonic()
                await asyncio.sleep(0.1)

    async def publish(self, publisher: Publisher) -> None:
        """One publisher, connected again whenever it loses its connection."""
        while not (publisher.enough and publisher.settled):
            with contextlib.suppress(OSError, TimeoutError):
                wire = await self.open(publisher.device)
                try:
                    await publisher.run(wire)
                finally:
                    wire.close()
            await asyncio.sleep(0.02)

    async def receive(self, subscriber: Subscriber) -> None:
        """One subscriber, there for a while and away for a while; at the end there to stay."""
        while True:
            if not self._final:
                await asyncio.sleep(self._rng.uniform(0, 0.4))
            stay_s = DRAIN_TIMEOUT_S if self._final else self._rng.uniform(0.05, 0.6)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(stay_s):
                    wire = await self.open(subscriber.name)
                    try:
                        await subscriber.run(wire)
                    finally:
                        wire.close()
            await asyncio.sleep(0.02)

    @property
    def clients(self) -> tuple[list[Publisher], list[Subscriber]]:
        """Who takes part."""
        return self._publishers, self._subscribers


class _Clients:
    """The tasks of all clients; ended when the block is left."""

    def __init__(self, torture: Torture) -> None:
        self._torture = torture
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> _Clients:
        return self

    def work(self) -> None:
        """Begin."""
        publishers, subscribers = self._torture.clients
        self._tasks += [asyncio.create_task(self._torture.publish(each)) for each in publishers]
        self._tasks += [asyncio.create_task(self._torture.receive(each)) for each in subscribers]

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        done = await asyncio.gather(*self._tasks, return_exceptions=True)
        faults = [each for each in done if isinstance(each, Exception)]
        if faults:
            raise faults[0]
