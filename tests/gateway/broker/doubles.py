"""What the pure machines of the broker see of the world, in a few lines each: a link, rights, a host."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from gateway.broker.connection import Connection
from gateway.broker.host import Route
from gateway.broker.packets import Connect, Publish, encode_suback
from gateway.broker.sessions import Link, Message, Session
from gateway.policy import Action, Decision, Grants
from gateway.policy.model import Limits
from mtls.errors import Reason, Refusal
from mtls.identity import DeviceId
from mtls.judgement import Peer

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def peer(name: str = "dev-a") -> Peer:
    """The facts of a made-up certificate."""
    return Peer(DeviceId(name), "CA", "spki", (), (), "01", "ff", NOW, NOW + timedelta(days=1), b"der")


def yes(allowed: bool = True) -> Decision:
    """A decision."""
    return Decision(allowed, Reason.GRANTED if allowed else Reason.NO_GRANT, "", "rule", 0, "")


@dataclass
class Rights:
    """Grants that allow all but the topics in `denied`."""

    denied: set[str] = field(default_factory=set)
    limits: Limits = field(default_factory=Limits)
    on_denied_publish: str = "drop"

    def decide(self, action: Action, topic: str) -> Decision:
        return yes(topic not in self.denied)

    def decide_publish(self, topic: str, *, retain: bool) -> Decision:
        return yes(topic not in self.denied and not (retain and f"retain {topic}" in self.denied))


def grants(*denied: str, on_denied_publish: str = "drop", **limits: Any) -> Grants:
    """Rights in the type of the policy's own."""
    return cast(Grants, Rights(set(denied), Limits(**limits), on_denied_publish))


class Wire:
    """A link that keeps what is sent to it."""

    def __init__(self) -> None:
        self.blocked = False
        self.dirty = False
        self.outbox: list[bytes] = []
        self.marks = 0

    def send(self, packet: bytes) -> None:
        self.outbox.append(packet)

    def hold(self, packet: bytes) -> None:
        self.outbox.append(packet)

    def mark(self) -> None:
        self.dirty = True
        self.marks += 1

    def taken(self) -> list[bytes]:
        """What was sent since the last call."""
        sent, self.outbox, self.dirty = self.outbox, [], False
        return sent


def session(
    client_id: str = "c", *denied: str, window: int = 20, clean: bool = False, name: str = "dev-a", **limits: Any
) -> Session:
    """A session without a link."""
    return Session(peer(name), client_id, grants(*denied, **limits), clean=clean, window=window)


def linked(made: Session) -> Wire:
    """A link for a session."""
    wire = Wire()
    made.attach(wire, made.peer, made.grants)
    return wire


def message(topic: str = "t", payload: bytes = b"x", qos: int = 1) -> Message:
    """A message as PUBLISH makes it."""
    return Message(topic, topic.encode(), payload, qos)


class FakeHost:
    """A broker of one connection: it admits, routes to `targets`, and writes down what it is told."""

    def __init__(self) -> None:
        self.tick = 1
        self.messages_in = 0
        self.dirty: list[Link] = []
        self.slow_lane = False
        self.writer: Any = None
        self.holders: dict[Any, None] = {}
        self.accepting = True
        self.version = 1
        self.flushes = 0
        self.told: list[tuple[Any, ...]] = []
        self.work: list[Coroutine[Any, Any, None]] = []
        self.session = session()
        self.targets: list[tuple[Session, int]] = []
        self.verdict = "accept"
        self.rights = True

    def schedule_flush(self) -> None:
        self.flushes += 1

    def withholds(self, connection: Connection, publish: Publish) -> bool:
        return False

    def run(self, connection: Connection, work: Coroutine[Any, Any, None]) -> None:
        self.told.append(("run",))
        self.work.append(work)

    def finish(self, connection: Connection) -> None:
        """Do the oldest work that was handed over, then let the connection go on."""
        asyncio.run(self.work.pop(0))
        connection.resume()

    def admit(self, connection: Connection, connect: Connect) -> Coroutine[Any, Any, None] | None:
        self.told.append(("admit", connect))
        if self.verdict == "ask":
            return self._admit_later(connection)
        if self.verdict == "refuse":
            connection.refuse(5, Refusal(Reason.NO_ROLE, "why"))
        else:
            self.session.attach(connection, connection.peer, self.session.grants)
            connection.accept(self.session, connect.will, session_present=True)
        return None

    async def _admit_later(self, connection: Connection) -> None:
        self.session.attach(connection, connection.peer, self.session.grants)
        connection.accept(self.session, None, session_present=False)

    def decide_publish(self, connection: Connection, publish: Publish) -> Decision:
        self.told.append(("decide", publish.topic, publish.retain))
        return yes(self.rights)

    def publish(self, connection: Connection, publish: Publish, topic_raw: bytes) -> Route:
        self.told.append(("publish", publish.topic, publish.payload, publish.qos, publish.retain, topic_raw))
        return Route(publish.topic, self.targets, self.version)

    async def publish_slowly(self, connection: Connection, publish: Publish) -> None:
        self.told.append(("slowly", publish.topic))
        connection.answer(publish)

    def packet_received(self, connection: Connection, raw: bytes) -> None:
        self.told.append(("packet", raw))

    def denied(self, connection: Connection, publish: Publish, decision: Decision) -> None:
        self.told.append(("denied", publish.topic, decision.rule))

    def dropped(self, session: Session) -> None:
        self.told.append(("dropped", session.client_id))

    def subscribe(
        self, connection: Connection, packet_id: int, filters: Sequence[tuple[str, int]]
    ) -> Coroutine[Any, Any, None] | None:
        self.told.append(("subscribe", packet_id, tuple(filters)))
        if self.verdict == "ask":
            return self._subscribe_later(connection, packet_id)
        connection.send(encode_suback(packet_id, [qos for _, qos in filters]))
        return None

    async def _subscribe_later(self, connection: Connection, packet_id: int) -> None:
        connection.send(encode_suback(packet_id, [0x80]))

    def unsubscribe(self, connection: Connection, filters: Sequence[str]) -> None:
        self.told.append(("unsubscribe", tuple(filters)))

    def pump(self, session: Session) -> None:
        self.told.append(("pump", session.client_id))
        session.pump()

    def ended(self, connection: Connection) -> None:
        assert connection.ending is not None
        self.told.append(("ended", connection.ending.reason, connection.ending.detail))
