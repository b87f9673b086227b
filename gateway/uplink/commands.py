"""Commands: what comes down from the upstream, and where it may go.

An entry of [uplink] subscribe maps it, and its own local filter must match what comes out; a local topic that no entry
names cannot be reached from upstream, whatever is sent. From there on it is a message like others: devices receive it
if their policy lets them. It is not sent up again.

Acknowledged upstream when what it caused here is committed: with the writer's next group, in the order of arrival.
While the store has no room a command waits unacknowledged, and the upstream sends no more than its window holds.
What cannot be mapped is acknowledged as well, or it would come again for ever; it is counted and logged. So is what
arrives as retained: an order that was given some other day to whoever would come.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, Protocol

from gateway.uplink.topic_map import TopicMap
from mtls.terminal import sanitise

LOG_EVERY: Final = 1000
MAX_WAITING: Final = 1000  # commands that wait for room in the store; an upstream with a window sends fewer
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024  # and not so large ones

log = logging.getLogger("mqtt_gateway.uplink")


class Ground(Protocol):
    """The gateway as commands see it."""

    def may_take(self, topic: str) -> bool:
        """Whether a topic is one that this gateway handles."""

    @property
    def has_room(self) -> bool:
        """Whether what must be stored finds room now."""

    def deliver(self, topic: str, payload: bytes, qos: int, done: Callable[[], None]) -> None:
        """Deliver a message to local receivers; `done` is called when what it caused is on disk."""

    def settle(self, done: Callable[[], None]) -> None:
        """Call `done` after every `done` before it."""


class Commands:
    """Takes commands down."""

    def __init__(self, topics: TopicMap, ground: Ground) -> None:
        self.counts: Counter[str] = Counter()
        self._topics = topics
        self._ground = ground
        self._waiting: deque[tuple[str, bytes, int, bool, Callable[[], None]]] = deque()
        self._waiting_bytes = 0

    def take(self, topic: str, payload: bytes, qos: int, *, retained: bool, done: Callable[[], None]) -> bool:
        """One message of the upstream; `done` is called when it may be acknowledged. False when too many wait."""
        self._waiting.append((topic, payload, qos, retained, done))
        self._waiting_bytes += len(topic) + len(payload)
        self.go_on()
        return len(self._waiting) <= MAX_WAITING and self._waiting_bytes <= MAX_WAITING_BYTES

    def go_on(self) -> None:
        """Bring down what waits, as far as there is room."""
        while self._waiting and self._ground.has_room:
            topic, payload, qos, retained, done = self._waiting.popleft()
            self._waiting_bytes -= len(topic) + len(payload)
            found = self._topics.find(topic)
            if retained:
                self._refuse("retained", topic)
            elif found is None or not self._ground.may_take(found[1]):
                self._refuse("unmapped", topic)
            else:
                self.counts["delivered"] += 1
                self._ground.deliver(found[1], payload, min(qos, found[0].qos), done)
                continue
            self._ground.settle(done)

    def forget(self) -> None:
        """The connection is over: what waits is not acknowledged, and comes again."""
        self._waiting.clear()
        self._waiting_bytes = 0

    def _refuse(self, why: str, topic: str) -> None:
        self.counts[why] += 1
        if self.counts[why] % LOG_EVERY == 1:
            log.warning("a command from upstream goes nowhere (%s): %s", why, sanitise(topic))
