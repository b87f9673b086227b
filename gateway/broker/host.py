"""What a connection asks of the broker, and where a topic goes: the seam between protocol state and data plane.

`Host` is what `connection.py` sees of the broker; tests of the protocol state give it a host of a few lines.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from gateway.broker.packets import encode_publish
from gateway.broker.sessions import Link, Message, Session

if TYPE_CHECKING:
    from gateway.broker.connection import Connection
    from gateway.broker.outlet import Outlet
    from gateway.broker.packets import Connect, Publish
    from gateway.policy import Decision
    from gateway.store.writer import Writer


class Upward(Protocol):
    """Where the site's messages go on to: one more target of routing, which has no session and no connection here."""

    @property
    def is_full(self) -> bool:
        """Whether a message that must not be lost cannot be taken now."""

    def wants(self, topic: str) -> int | None:
        """The most QoS with which a topic goes up; None when it does not."""

    def take(self, topic: str, payload: bytes, qos: int, origin: str) -> None:
        """Take one message published by the identity `origin`, empty for the gateway itself."""


class Route:
    """Where one topic goes, as of one version of subscriptions and policy.

    `sessions` are the targets of a QoS 0 message, `targets` the same with the QoS granted to each. `uplink` is there
    when the topic goes upstream as well. It is `durable` when a message with a QoS is stored for one of them.
    """

    __slots__ = ("durable", "sessions", "targets", "topic", "uplink", "version")

    def __init__(
        self,
        topic: str,
        targets: Sequence[tuple[Session, int]],
        version: int,
        uplink: Upward | None = None,
        uplink_qos: int = 0,
    ) -> None:
        self.topic = topic
        self.targets = tuple(targets)
        self.sessions = tuple(session for session, _ in targets)
        self.version = version
        self.uplink = uplink
        self.durable = bool(uplink_qos) or any(session.durable and qos for session, qos in targets)


class Host(Protocol):
    """What a connection asks of the broker."""

    tick: int
    messages_in: int
    dirty: list[Link]
    slow_lane: bool
    writer: Writer | None
    holders: dict[Outlet, None]

    @property
    def version(self) -> int:
        """The version of subscriptions and rights that a route must have."""

    def schedule_flush(self) -> None:
        """Have the outboxes of `dirty` written soon."""

    def run(self, connection: Connection, work: Coroutine[Any, Any, None]) -> None:
        """Run work that must finish before the connection's next packet is read, then call `resume`."""

    def admit(self, connection: Connection, connect: Connect) -> Coroutine[Any, Any, None] | None:
        """Judge a CONNECT; ends in `accept` or `refuse`; a coroutine if plugins are asked first."""

    def decide_publish(self, connection: Connection, publish: Publish) -> Decision:
        """Judge one PUBLISH, with retain."""

    def publish(self, connection: Connection, publish: Publish, topic_raw: bytes) -> Route:
        """Retain and route one permitted PUBLISH; its route."""

    def publish_slowly(self, connection: Connection, publish: Publish) -> Coroutine[Any, Any, None]:
        """The same with plugins asked; answers the PUBLISH itself."""

    @property
    def accepting(self) -> bool:
        """Whether everything that must be stored finds room."""

    def withholds(self, connection: Connection, publish: Publish) -> bool:
        """Whether a PUBLISH must wait, unanswered, until there is room for it; then the host has kept it."""

    def packet_received(self, connection: Connection, raw: bytes) -> None:
        """Tell of a packet, on the slow lane only."""

    def denied(self, connection: Connection, publish: Publish, decision: Decision) -> None:
        """Record a denied PUBLISH."""

    def dropped(self, session: Session) -> None:
        """Record that a message for a session was dropped."""

    def subscribe(
        self, connection: Connection, packet_id: int, filters: Sequence[tuple[str, int]]
    ) -> Coroutine[Any, Any, None] | None:
        """Judge and make subscriptions, answer SUBACK, start retained messages; a coroutine if plugins are asked."""

    def unsubscribe(self, connection: Connection, filters: Sequence[str]) -> None:
        """Remove subscriptions."""

    def pump(self, session: Session) -> None:
        """Send what a session's window allows now."""

    def ended(self, connection: Connection) -> None:
        """The connection is closed as far as the protocol goes; the transport is to be closed after a last flush."""


def distribute(message: Message, targets: Sequence[tuple[Session, int]], host: Host) -> None:
    """Deliver one message to its targets at the lower of published and granted QoS; QoS 0 is encoded once."""
    plain = b""
    for session, granted in targets:
        qos = granted if granted < message.qos else message.qos
        if qos:
            delivered = session.deliver(message, qos)
        else:
            link = session.link
            if link is None:
                continue
            delivered = not link.blocked
            if delivered:
                plain = plain or encode_publish(message.topic_raw, message.payload, 0, False, False, 0)
                link.send(plain)
            else:
                session.dropped += 1
        if not delivered:
            host.dropped(session)
