"""The uplink's place in the broker: a target of routing that takes what its map names, and a source of commands.

The uplink has no session: it is asked at routing, once per topic and version, what it wants, and is given every message
of that route with the identity that published it. Nobody is asked about receiving: what goes up is the site's decision,
made in [uplink] publish. Commands are routed as every message is, except that they do not go up again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.broker.host import distribute
from gateway.broker.sessions import Message
from gateway.store.place import free_bytes
from gateway.uplink.check import NEEDS_STORE, STORE_HINT
from gateway.uplink.intake import OWN_ORIGIN
from gateway.uplink.spool import Spool
from gateway.uplink.uplink import Uplink
from mtls.errors import ConfigFault

if TYPE_CHECKING:
    from datetime import datetime

    from gateway.broker.plane import DataPlane
    from gateway.keeping import Kept
    from gateway.uplink.settings import UplinkConfig


class _Ground:
    """What the uplink asks of the broker."""

    def __init__(self, plane: DataPlane, kept: Kept) -> None:
        self._plane = plane
        self._store = kept.store

    def may_take(self, topic: str) -> bool:
        """Whether a topic is one that this gateway handles."""
        return not self._plane.exchange.too_deep(topic)

    @property
    def has_room(self) -> bool:
        """Whether what must be stored finds room now."""
        return self._store.accepting

    def deliver(self, topic: str, payload: bytes, qos: int, done: Callable[[], None]) -> None:
        """Deliver a command to local receivers, whom the policy lets receive it."""
        plane, message = self._plane, Message(topic, topic.encode(), payload, qos)
        if plane.lane.asks_topics:
            plane.lane.spawn(self._deliver_slowly(message, done))
        else:
            distribute(message, plane.exchange.route(topic).targets, plane)
            self.settle(done)

    async def _deliver_slowly(self, message: Message, done: Callable[[], None]) -> None:
        await self._plane.lane.distribute(message, OWN_ORIGIN)
        self.settle(done)

    def settle(self, done: Callable[[], None]) -> None:
        """Call `done` when everything put into the store so far is on disk."""
        self._store.writer.put(lambda db: None, lambda _: done())


def build_uplink(
    plane: DataPlane, config: UplinkConfig, kept: Kept | None, now: Callable[[], tuple[datetime, str]]
) -> Uplink:
    """The uplink, in its place among the targets of routing; ConfigFault when it cannot work."""
    if kept is None:
        raise ConfigFault(NEEDS_STORE, hint=STORE_HINT)
    store = kept.store
    uplink = Uplink(
        config,
        Spool(store.writer, kept.spooled, store.spend),
        ground=_Ground(plane, kept),
        now=now,
        disk_bytes=lambda: max(0, free_bytes(store.limits.path.parent) - store.limits.min_free_bytes),
    )
    plane.exchange.uplink = uplink.intake
    return uplink
