"""The data plane: connections, routing and delivery of one broker, on one event loop and without locks.

It is the `Host` of every connection and what the listener opens connections to. Order of judgement for each: the
certificate when the handshake is done (`opened`), then CONNECT (`entry.py`); only an admitted client touches a
session, and a refusal at any step leaves nothing behind but one audit line.

Per packet there is no task, no timer and no log formatting. What is to be written collects per connection and leaves
once per turn of the loop, or earlier when much was read in this turn, which bounds what can collect.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from amqtt.events import BrokerEvents

from gateway.admission import admit_certificate
from gateway.broker import entry, leaving
from gateway.broker.arrivals import Arrivals
from gateway.broker.connection import Connection
from gateway.broker.durability import Durability
from gateway.broker.exchange import SUBACK_FAILURE, Exchange, ExchangeLimits
from gateway.broker.host import Route, distribute
from gateway.broker.lane import PluginLane
from gateway.broker.outlet import Outlet, State
from gateway.broker.pace import choke, read_on, throttle
from gateway.broker.packets import Connect, Publish, encode_suback
from gateway.broker.poller import Poller
from gateway.broker.sessions import Link, Message, Session
from gateway.broker.wheel import Wheel, ticks
from gateway.policy import Decision
from mtls.clock import Moment
from mtls.errors import Reason, Refusal
from mtls.judgement import Peer

if TYPE_CHECKING:
    from amqtt.plugins.manager import PluginManager

    from gateway.audit import AuditLog
    from gateway.broker import handshaking, tls_stream
    from gateway.keeping import Kept
    from gateway.security import SecurityState

FLUSH_AFTER_BYTES = 1024 * 1024  # read in one turn before outboxes are written at once, which bounds them

log = logging.getLogger("mqtt_gateway.broker")


class DataPlane:
    """Every connection of one broker. `state` is the verified security set in force; reload replaces it."""

    def __init__(
        self,
        state: SecurityState,
        audit: AuditLog,
        clock: Callable[[], Moment],
        plugins: PluginManager[Any],
        kept: Kept | None = None,
    ) -> None:
        limits = state.config.limits
        self.state = state
        self.audit = audit
        self.clock = clock
        self.judged = clock()  # when everything that lives was judged last
        self.exchange = Exchange(
            ExchangeLimits(limits.max_topic_levels, limits.max_subscriptions_per_session, limits.retained_max_bytes)
        )
        self.live: dict[Connection, None] = {}
        self.counts: Counter[str] = Counter()
        self.messages_in = 0
        self.messages_out = 0
        self.tick = 0
        self.dirty: list[Link] = []
        self.poller = Poller(self._after_turn)
        self.arrivals = Arrivals()  # until CONNECT is answered
        self.wheel: Wheel[Connection] = Wheel()  # keep alive
        self.lane = PluginLane(self, plugins)
        self.slow_lane = self.lane.per_packet
        self.durability = Durability(self, kept) if kept is not None else None
        self.writer = kept.store.writer if kept is not None else None
        self.holders: dict[Outlet, None] = {}  # connections with answers that wait for a commit
        self._walking: set[Session] = set()
        self._flush_scheduled = False
        self._unflushed_bytes = 0
        self._work: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End every connection. Wills are not fired by our own shutdown."""
        for connection in list(self.live):
            connection.will = None
            connection.close(Reason.SHUTDOWN)
        self._flush()
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        await self.lane.close()
        if self.durability is not None:
            await self.durability.store.close()

    def turn(self) -> None:
        """One tick of the coarse wheels: CONNECT and keep alive deadlines that fall due now."""
        self.tick += 1
        if self.durability is not None:
            self.durability.turn(time.monotonic())
        for connection in self.arrivals.overdue(self.tick):
            if connection.state in (State.AWAITING_CONNECT, State.ADMITTING):
                connection.close(Reason.CONNECT_TIMEOUT)
        for connection in self.wheel.pop(self.tick):
            if connection.state is not State.CONNECTED:
                continue
            due = connection.last_tick + entry.keep_alive_ticks(connection)
            if connection.throttled:
                due = self.tick + ticks(connection.keep_alive_s)
            if due <= self.tick:
                connection.close(Reason.KEEP_ALIVE_TIMEOUT, f"keep alive {connection.keep_alive_s} s")
            else:
                self.wheel.add(connection, due)

    # what the listener asks

    def turned_away(self, address: str, refusal: Refusal) -> None:
        """A connection ended before MQTT began."""
        self.counts[f"refused.{refusal.reason}"] += 1
        self.audit.write("refused", reason=refusal.reason, detail=refusal.detail, address=address)

    def opened(self, stream: tls_stream.TlsStream, handshake: handshaking.Handshake) -> Connection | None:
        """Judge the certificate of a finished handshake; resumed or not, it is this connection's leaf."""
        limits = self.state.config.limits
        verdict = admit_certificate(self.state, handshake.leaf_der, self.clock(), handshake.proven_issuer)
        if isinstance(verdict, Peer) and self.arrivals.are_full(verdict.id, limits.max_connections):
            verdict = Refusal(Reason.TOO_MANY_CONNECTIONS, f"without CONNECT, of {verdict.id}")
        if isinstance(verdict, Refusal):
            self.turned_away(handshake.address, verdict)
            stream.close()
            return None
        connection = Connection(self, verdict, handshake.address, connect_max_bytes=limits.connect_max_bytes)
        connection.wire = stream
        self.live[connection] = None
        self.arrivals.add(connection, self.tick + ticks(limits.connect_timeout_s))
        return connection

    def received(self, connection: Connection, data: bytes) -> None:
        """Bytes of one client."""
        before = self.messages_in
        connection.receive(data)
        self._unflushed_bytes += len(data)
        if self._unflushed_bytes > FLUSH_AFTER_BYTES:
            self._flush()
        throttle(self, connection, self.messages_in - before)
        choke(connection)
        slowed = self.durability is not None and self.durability.slows(connection)
        if slowed or connection.suspended:
            connection.wire.pause_reading()

    def unblocked(self, connection: Connection) -> None:
        """A slow peer has caught up."""
        if connection.choked:
            connection.choked = False
            read_on(connection)
        if connection.session is not None:
            self.pump(connection.session)

    def lost(self, connection: Connection, error: Exception | None) -> None:
        """The transport is gone."""
        connection.close(Reason.PEER_CLOSED, type(error).__name__ if error is not None else "")

    # what a connection asks

    @property
    def accepting(self) -> bool:
        """Whether everything that must be stored finds room."""
        uplink = self.exchange.uplink
        return (self.durability is None or self.durability.store.accepting) and not (uplink and uplink.is_full)

    def withholds(self, connection: Connection, publish: Publish) -> bool:
        """Whether a PUBLISH must wait, unanswered, for room in the store."""
        return self.durability is not None and self.durability.withholds(connection, publish)

    @property
    def version(self) -> int:
        """The version of subscriptions and rights that a route must have."""
        return self.exchange.version

    def schedule_flush(self) -> None:
        """Write the outboxes of dirty links at the end of this turn."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            if not self.poller.turning:
                asyncio.get_running_loop().call_soon(self._flush)

    def _after_turn(self) -> None:
        if self._flush_scheduled:
            self._flush()

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._unflushed_bytes = 0
        dirty, self.dirty = self.dirty, []
        for link in cast("list[Connection]", dirty):
            link.dirty = False
            self.write_out(link)
        if self._walking:
            walking, self._walking = self._walking, set()
            for session in walking:
                if session.walk(self.exchange.retained.get):
                    self._walk_later(session)

    def write_out(self, connection: Connection) -> None:
        """Write what a connection's outbox holds."""
        outbox = connection.outbox
        if not outbox:
            return
        connection.outbox = []
        if connection.wire.is_closing():
            return
        self.messages_out += len(outbox)
        if self.lane.watches_sent:
            self.lane.sent(connection, outbox)
        connection.wire.write(outbox[0] if len(outbox) == 1 else b"".join(outbox))

    def run(self, connection: Connection, work: Coroutine[Any, Any, None]) -> None:
        """Run work that a connection waits for; a failure ends the connection, fail closed."""
        task = asyncio.get_running_loop().create_task(self._finish(connection, work))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _finish(self, connection: Connection, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("a plugin failed; the connection of %s is closed", connection.peer.id)
            connection.close(Reason.PLUGIN_REFUSED, "plugin failed")
        before = self.messages_in
        connection.resume()
        throttle(self, connection, self.messages_in - before)
        choke(connection)
        read_on(connection)

    def admit(self, connection: Connection, connect: Connect) -> Coroutine[Any, Any, None] | None:
        """Judge a CONNECT."""
        return entry.admit(self, connection, connect)

    def decide_publish(self, connection: Connection, publish: Publish) -> Decision:
        """Judge one PUBLISH."""
        return self.exchange.decide_publish(_session(connection), publish.topic, publish.retain)

    def publish(self, connection: Connection, publish: Publish, topic_raw: bytes) -> Route:
        """Retain and route one permitted PUBLISH; its route."""
        message = Message(publish.topic, topic_raw, publish.payload, publish.qos)
        return self.emit(message, retain=publish.retain, peer=connection.peer, route=connection.known_route(topic_raw))

    def publish_slowly(self, connection: Connection, publish: Publish) -> Coroutine[Any, Any, None]:
        """The same with plugins asked."""
        return self.lane.publish(connection, publish)

    def packet_received(self, connection: Connection, raw: bytes) -> None:
        """Tell plugins that watch packets."""
        if self.lane.watches_received:
            self.lane.received(connection, raw)

    def retain(self, message: Message, peer: Peer | None) -> None:
        """Keep a retained message within the byte bound, or forget one; plugins that listen are told."""
        changes = bool(message.payload) or self.exchange.retained.get(message.topic) is not None
        kept = self.exchange.retain(message, str(peer.id) if peer is not None else "")
        if changes and self.durability is not None:
            self.durability.retain(message, kept=kept)
        if not kept:
            self.audit.write("denied", peer=peer, reason=Reason.QUEUE_FULL, rule="limits.retained_max_bytes")
        elif changes:
            self.lane.retained(message)

    def emit(self, message: Message, *, retain: bool, peer: Peer | None, route: Route | None = None) -> Route:
        """Retain and deliver a message that is permitted; its route, which is looked up when it is not given."""
        if retain:
            self.retain(message, peer)
        route = route or self.exchange.route(message.topic)
        distribute(message, route.targets, self)
        if route.uplink is not None:
            origin = str(peer.id) if peer is not None else ""
            route.uplink.take(message.topic, message.payload, message.qos, origin)
        return route

    def denied(self, connection: Connection, publish: Publish, decision: Decision) -> None:
        """Record a denied PUBLISH."""
        what = Reason.RETAIN_DENIED if publish.retain else Reason.PUBLISH_DENIED
        self.record_denial(connection, what, publish.topic, decision)

    def record_denial(self, connection: Connection, what: Reason, topic: str, decision: Decision | None) -> None:
        """Count and audit one denial of a topic; `decision` is None when a plugin said no."""
        self.counts[f"denied.{what}"] += 1
        self.audit.write(
            "denied",
            peer=connection.peer,
            client_id=_session(connection).client_id,
            reason=what,
            detail=str(decision.reason) if decision is not None else str(Reason.PLUGIN_REFUSED),
            rule=decision.rule if decision is not None else "",
            topic=topic,
        )

    def dropped(self, session: Session) -> None:
        """Count a message that a session could not take; the audit log limits the lines."""
        self.counts["dropped"] += 1
        if session.dropped == 1 or session.dropped % 1000 == 0:
            self.audit.write(
                "denied",
                peer=session.peer,
                client_id=session.client_id,
                reason=Reason.QUEUE_FULL,
                detail=f"{session.dropped} messages dropped",
            )

    def subscribe(
        self, connection: Connection, packet_id: int, filters: Sequence[tuple[str, int]]
    ) -> Coroutine[Any, Any, None] | None:
        """Judge and make subscriptions, answer SUBACK, then send retained messages."""
        if self.lane.asks_topics:
            return self.lane.subscribe(connection, packet_id, filters)
        most = self.state.config.limits.max_subscriptions_per_session
        codes = [self.subscribe_one(connection, topic_filter, qos) for topic_filter, qos in filters[:most]]
        codes += self.refuse_surplus(connection, len(filters) - most)
        self.finish_subscribe(connection, packet_id, filters, codes)
        return None

    def refuse_surplus(self, connection: Connection, count: int) -> list[int]:
        """More filters in one SUBSCRIBE than a session may have: refused unjudged, with one audit line for all."""
        if count <= 0:
            return []
        decision = Decision(False, Reason.SUBSCRIBE_DENIED, "", "limits.max_subscriptions_per_session", 0, "")
        self.record_denial(connection, Reason.SUBSCRIBE_DENIED, f"{count} more filters", decision)
        return [SUBACK_FAILURE] * count

    def subscribe_one(self, connection: Connection, topic_filter: str, qos: int) -> int:
        """One filter: the granted QoS, or 0x80 and an audit line."""
        session = _session(connection)
        decision = self.exchange.decide_subscribe(session, topic_filter)
        if not decision.allowed:
            self.record_denial(connection, Reason.SUBSCRIBE_DENIED, topic_filter, decision)
            return SUBACK_FAILURE
        self.exchange.subscribe(session, topic_filter, qos)
        return qos

    def finish_subscribe(
        self,
        connection: Connection,
        packet_id: int,
        filters: Sequence[tuple[str, int]],
        codes: Sequence[int],
        permitted: Mapping[str, list[str]] | None = None,
    ) -> None:
        """Answer SUBACK and start sending retained messages: all, or by filter those that plugins permitted."""
        session = _session(connection)
        connection.acknowledge(encode_suback(packet_id, codes), stored=session.durable)
        for (topic_filter, _), code in zip(filters, codes, strict=True):
            if code != SUBACK_FAILURE:
                asked = iter(permitted[topic_filter]) if permitted is not None else None
                session.start_walk(topic_filter, asked or self.exchange.retained_topics(topic_filter), code)
                self.lane.event(BrokerEvents.CLIENT_SUBSCRIBED, connection, topic=topic_filter, qos=code)
        self.pump(session)

    def unsubscribe(self, connection: Connection, filters: Sequence[str]) -> None:
        """Remove subscriptions."""
        for topic_filter in self.exchange.unsubscribe(_session(connection), filters):
            self.lane.event(BrokerEvents.CLIENT_UNSUBSCRIBED, connection, topic=topic_filter)

    def pump(self, session: Session) -> None:
        """Send what a session's window allows; what is left of retained messages waits for the next turn."""
        if session.pump():
            self._walk_later(session)

    def _walk_later(self, session: Session) -> None:
        self._walking.add(session)
        self.schedule_flush()

    def ended(self, connection: Connection) -> None:
        """A connection is over."""
        leaving.leave(self, connection)


def _session(connection: Connection) -> Session:
    assert connection.session is not None  # noqa: S101 - only connected clients publish and subscribe
    return connection.session
