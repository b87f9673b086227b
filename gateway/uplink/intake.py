"""What comes in for the upstream: named for the other side, stamped, and put into the spool within its bounds.

A message goes with the lower of its own QoS and its entry's. QoS 1 goes through the spool; QoS 0 is passed on while
there is a line, is lost otherwise, and that is counted. A QoS 2 publisher is served as with QoS 1: exactly-once ends at
the gateway, and the stamp lets a consumer drop the duplicates.

When the spool is full, by its own bound or because the disk is, `is_full` says so under `withhold`, and the broker
withholds acknowledgements until there is room; a message that nobody acknowledges (a will, a plugin's) is then lost
and counted. `drop-oldest` deletes the oldest rows instead, and counts them. The bound can be passed by one message.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Final

from gateway.uplink.envelope import Stamp
from gateway.uplink.lanes import ROW_OVERHEAD
from gateway.uplink.pacing import Meter
from gateway.uplink.sender import Sender
from gateway.uplink.spool import Spool
from gateway.uplink.topic_map import TopicMap

OWN_ORIGIN: Final = "$uplink"  # of what came down from the upstream, and does not go up again; no identity has a `$`
RATE_HALF_LIFE_S: Final = 300.0  # of what comes in, for estimates
MAX_KNOWN_TOPICS: Final = 10_000  # whose names upstream are remembered
MAX_KNOWN_CHARACTERS: Final = 256  # a longer one is looked up each time: 10,000 topics of 64 KiB are not to be held

Now = Callable[[], tuple[datetime, str]]
"""The time, and what is known of the clock."""


class Intake:
    """Takes messages for one spool. `has_room` says whether the disk takes more at all."""

    def __init__(
        self,
        topics: TopicMap,
        spool: Spool,
        sender: Sender,
        *,
        boot_id: str,
        now: Now,
        max_bytes: int,
        drop_oldest: bool,
        has_room: Callable[[], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self.boot_id = boot_id
        self.max_bytes = max_bytes
        self.messages_in = Meter(RATE_HALF_LIFE_S, monotonic())
        self.bytes_in = Meter(RATE_HALF_LIFE_S, monotonic())
        self._topics = topics
        self._spool = spool
        self._sender = sender
        self._now = now
        self._drop_oldest = drop_oldest
        self._has_room = has_room
        self._monotonic = monotonic
        self._sequences: dict[str, int] = {}
        self._known: dict[str, tuple[int, str] | None] = {}

    @property
    def is_full(self) -> bool:
        """Whether a message that must not be lost cannot be taken now."""
        return not self._drop_oldest and (self._spool.accounted_bytes >= self.max_bytes or not self._has_room())

    def wants(self, topic: str) -> int | None:
        """The most QoS with which a topic goes up; None when it does not."""
        found = self._named(topic)
        return found[0] if found is not None else None

    def take(self, topic: str, payload: bytes, qos: int, origin: str) -> None:
        """Take one message published by `origin`, empty for the gateway itself."""
        found = self._named(topic)
        if found is None or origin == OWN_ORIGIN:
            return
        most, remote = found
        if not min(qos, most):
            if not self._sender.pass_on(self._stamp(origin), topic, remote, payload):
                self.dropped["qos0_no_line"] += 1
            return
        size = len(topic) + len(remote) + len(payload) + ROW_OVERHEAD
        over = self._spool.accounted_bytes + size - self.max_bytes
        if self._drop_oldest and (over > 0 or not self._has_room()):
            self._spool.make_room(max(over, size), self.max_bytes, self._made_room)
        elif self.is_full:
            self.dropped["spool_full"] += 1
            return
        monotonic = self._monotonic()
        self.messages_in.add(1, monotonic)
        self.bytes_in.add(size, monotonic)
        self._spool.add(self._stamp(origin), topic, remote, payload)

    def _made_room(self, rows: int, _: int) -> None:
        self.dropped["spool_full"] += rows

    def _named(self, topic: str) -> tuple[int, str] | None:
        """QoS and name of a topic upstream, remembered."""
        if topic in self._known:
            return self._known[topic]
        found = self._topics.find(topic)
        named = (found[0].qos, found[1]) if found is not None else None
        if len(topic) <= MAX_KNOWN_CHARACTERS:
            if len(self._known) >= MAX_KNOWN_TOPICS:
                self._known.clear()
            self._known[topic] = named
        return named

    def _stamp(self, origin: str) -> Stamp:
        sequence = self._sequences[origin] = self._sequences.get(origin, 0) + 1
        moment, state = self._now()
        return Stamp(origin, self.boot_id, sequence, int(moment.timestamp() * 1_000_000), state)
