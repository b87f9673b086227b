"""The broker's side of the store: sessions begin and come back, answers wait for commits, and a full store withholds.

A PUBLISH that the store has no room for is neither routed nor answered: it waits in its connection, in order, at most
`max_inflight` of them, while reading goes on and PINGREQ is answered. When there is room it is judged as if it came
now. After `full_grace_s`, or beyond the bound, the connection is closed without PUBACK [MQTT-4.8.0-2]. Topics of a
drop-oldest class make room for themselves instead: the oldest stored messages of such classes go, and are counted.

What cannot be admitted at a start stays on disk, dormant: a changed configuration deletes nothing. Only a session whose
certificate was revoked or denied is forgotten.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from gateway.admission import refusal_of
from gateway.broker import entry, wills
from gateway.broker.connection import Connection
from gateway.broker.live import KEEPS_SESSION
from gateway.broker.pace import read_on
from gateway.broker.sessions import Message, Session, SessionKey
from gateway.broker.stored_session import StoredSession
from gateway.policy import Grants
from gateway.policy.topics import matches, parse_filter, parse_topic
from gateway.store.journal import Journal, QueueFigures, Restored, SessionRow
from mtls.errors import Reason, Refusal
from mtls.judgement import Peer, peer_of

if TYPE_CHECKING:
    from gateway.broker.host import Route
    from gateway.broker.packets import Publish
    from gateway.broker.plane import DataPlane
    from gateway.keeping import Kept

IDENTITY_SHARE: Final = 4  # one identity's sessions may hold a quarter: what nobody fetches must not fill the store
MAX_WAITING_BYTES: Final = 16 * 1024 * 1024  # not on disk yet; beyond it publishers are not read
MAX_HELD_ANSWERS: Final = 1000  # of one connection while the disk does not write
MAX_WITHHELD_BYTES: Final = 64 * 1024 * 1024  # of all connections together
LOOK_S: Final = 10.0  # how often the age of the oldest message is looked at
AGE_S: Final = 600  # how often the time that sessions were away is written down
PURGED: Final = frozenset({Reason.CERTIFICATE_REVOKED, Reason.CERTIFICATE_DENIED})


class Durability:
    """What the data plane asks of the store. It is the `Shelf` of every stored session."""

    def __init__(self, plane: DataPlane, kept: Kept) -> None:
        self._plane = plane
        self._restored: Restored | None = kept.restored
        self._config = kept.config
        self._drop_oldest = tuple(parse_filter(each) for each in kept.config.drop_oldest_topics)
        self._drops = kept.config.full == "drop-oldest" or bool(self._drop_oldest)
        self.store = kept.store
        self.journal = Journal(kept.store, kept.restored)
        self._identity_max_bytes = kept.config.max_bytes // IDENTITY_SHARE
        self.dormant: dict[SessionKey, SessionRow] = {}
        self._stored: dict[int, StoredSession] = {}
        self._withholding: dict[Connection, float] = {}  # since when
        self._withheld_by: Counter[Connection] = Counter()  # bytes
        self._withheld_bytes = 0
        self._slowed: dict[Connection, None] = {}
        self._evicting = False
        self._aged_at = time.monotonic()
        self._looked_at = 0.0
        journal = self.journal
        self.launch, self.release, self.done, self.trim = journal.launch, journal.release, journal.done, journal.trim
        self.receive, self.complete = journal.receive, journal.complete
        self.subscribe, self.unsubscribe = journal.subscribe, journal.unsubscribe
        self.page, self.in_flight = journal.page, journal.in_flight

    # start

    def start(self) -> None:
        """Take up what was stored, judged by the rules of now, and fire the wills that the last end left due."""
        restored, self._restored = self._restored, None
        if restored is None:
            return
        self.store.start(self._settled)
        for topic, payload, qos, writer in restored.retained:
            self._plane.exchange.retain(Message(topic, topic.encode(), payload, qos), writer)
        for row in restored.sessions:
            self._take_up(row)
        for will in restored.wills:
            wills.fire_stored(self._plane, will)
            self.journal.will_over(will.number)

    def _take_up(self, row: SessionRow) -> None:
        state = self._plane.state
        peer = peer_of(row.leaf_der, state.trust, state.policy.identity)
        if row.offline_s > state.config.limits.session_expiry_s:
            self.journal.forget(row.number)
            return
        refusal = peer if isinstance(peer, Refusal) else refusal_of(state, peer, self._plane.clock())
        if isinstance(peer, Peer) and refusal is not None and refusal.reason in PURGED:
            self._plane.audit.write("purged", peer=peer, client_id=row.client_id, reason=refusal.reason)
            self.journal.forget(row.number)
            return
        if refusal is not None and refusal.reason not in KEEPS_SESSION:
            self.dormant[row.identity, row.client_id] = row
            return
        grants = peer if isinstance(peer, Refusal) else state.grants(peer, row.client_id)
        if isinstance(grants, Grants) and isinstance(peer, Peer) and str(peer.id) == row.identity:
            self._restore(row, peer, grants)
        else:
            self.dormant[row.identity, row.client_id] = row

    def _restore(self, row: SessionRow, peer: Peer, grants: Grants) -> StoredSession:
        session = self._session(peer, row.client_id, grants, row.number)
        session.restore(row.subscriptions, row.received)
        session.restore_queue(*row.queue)
        session.disconnected_at = time.monotonic() - row.offline_s
        self._plane.exchange.restore(session)
        entry.judge_subscriptions(self._plane, session)
        return session

    # sessions

    def _session(self, peer: Peer, client_id: str, grants: Grants, number: int) -> StoredSession:
        window = self._plane.state.config.limits.max_inflight
        session = StoredSession(peer, client_id, grants, window=window, shelf=self, number=number)
        self._stored[number] = session
        return session

    def begin_session(self, peer: Peer, client_id: str, grants: Grants) -> Session:
        """A new persistent session."""
        return self._session(peer, client_id, grants, self.journal.begin(str(peer.id), client_id, peer.leaf_der))

    def wake(self, peer: Peer, client_id: str, grants: Grants) -> Session | None:
        """The dormant session that this client has come back for."""
        row = self.dormant.pop((str(peer.id), client_id), None)
        return self._restore(row, peer, grants) if row is not None else None

    def give_up(self, session: Session, reason: Reason) -> bool:
        """A session that the rules of now do not admit: put to sleep, unless its certificate was revoked or denied.

        False when it is not a stored one or must be forgotten. A changed configuration deletes nothing (D7).
        """
        if not isinstance(session, StoredSession) or reason in PURGED:
            return False
        self._plane.exchange.put_away(session)
        self._stored.pop(session.number, None)
        self.dormant[session.key] = _row_of(session)
        return True

    def wake_all(self) -> None:
        """The rules have changed: who is admitted by them now?"""
        rows, self.dormant = list(self.dormant.values()), {}
        for row in rows:
            self._take_up(row)

    def renew(self, session: Session) -> None:
        """A stored session's client has come back; its certificate of now is what the next start judges."""
        if isinstance(session, StoredSession):
            self.journal.renew(session.number, session.peer.leaf_der)

    def forget(self, session: int) -> None:
        """A session is no more."""
        self._stored.pop(session, None)
        self.journal.forget(session)

    def has_share(self, session: StoredSession, size: int) -> bool:
        """Whether one more message of `size` fits into what the sessions of one identity may hold together."""
        held = session.depth_bytes
        return session.share.may_store(held, held + size, self._identity_max_bytes)

    def keep(self, session: int, message: Message, qos: int, retain: bool, packet_id: int, size: int) -> int:
        """Queue a message for a session; its body is kept once for all of them. The message's number."""
        if message.number:
            self.journal.deliver(session, message.number, qos, retain, packet_id, size)
        else:
            droppable = self._drops and self._may_be_dropped(message.topic)
            message.number = self.journal.keep(session, message, qos, retain, packet_id, size, droppable=droppable)
        return message.number

    def pump(self, session: Session) -> None:
        """Send what a session's window allows."""
        self._plane.pump(session)

    def retain(self, message: Message, *, kept: bool) -> None:
        """A retained message was kept, or forgotten."""
        self.journal.retain(message.topic, message.payload if kept else b"", message.qos, message.writer)

    # commits

    def _settled(self) -> None:
        """A commit is done, or there is room, or none any more."""
        plane, committed = self._plane, self.store.writer.committed
        holders = plane.holders
        for connection in list(holders):
            if not connection.settle(committed):
                del holders[connection]
        if self._slowed and self.store.writer.waiting_bytes < MAX_WAITING_BYTES // 2:
            slowed, self._slowed = self._slowed, {}
            for connection in slowed:
                connection.slowed = False
                connection.last_tick = plane.tick
                read_on(connection)
        if self.store.accepting:
            self.journal.exhausted = False
            for connection in list(self._withholding):
                self._go_on(connection)

    @property
    def is_overfull(self) -> bool:
        """Whether the disk does not write, and as much waits for it as may."""
        return self.store.writer.trouble is not None and self.store.writer.waiting_bytes >= MAX_WAITING_BYTES

    def slows(self, connection: Connection) -> bool:
        """Whether so much waits for the disk that this connection must not be read for now.

        While the disk does not write at all, reading goes on, so that PINGREQ is answered. Who keeps asking for what
        must be stored is closed then: nothing of it is answered, and memory is not the disk.
        """
        if self.store.writer.trouble is not None:
            held = sum(len(packets) for _, packets in connection.held or ())
            if held > MAX_HELD_ANSWERS or (held and self.is_overfull):
                connection.close(Reason.STORE_FULL, f"the disk does not write, and {held} answers wait for it")
            return False
        if self.store.writer.waiting_bytes < MAX_WAITING_BYTES:
            return False
        connection.slowed = True
        self._slowed[connection] = None
        return True

    def turn(self, now: float) -> None:
        """The clock: what has waited too long for room is given up, and room is looked for."""
        for connection, since in list(self._withholding.items()):
            if now - since > self._config.full_grace_s:
                connection.close(Reason.STORE_FULL, f"no room for {self._config.full_grace_s:g} s")
            else:
                self._go_on(connection)
        if not self.store.accepting:
            self.store.measure()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self.journal.look(now)
        if now - self._aged_at >= AGE_S:
            away = [number for number, session in self._stored.items() if session.link is None]
            self.journal.aged(away, int(now - self._aged_at))
            self._aged_at = now

    def discard(self, connection: Connection) -> None:
        """A connection has ended."""
        self._slowed.pop(connection, None)
        self._forget_withheld(connection)

    # a full store

    def withholds(self, connection: Connection, publish: Publish) -> bool:
        """Keep a PUBLISH that the store has no room for; False when it can go on."""
        if not connection.withheld and self._has_room(connection, publish):
            return False
        if connection.withheld is None:
            connection.withheld = deque()
        connection.withheld.append(publish)
        self._withholding.setdefault(connection, time.monotonic())
        self._plane.counts["withheld"] += 1
        self._weigh(connection, len(publish.payload))
        most = self._plane.state.config.limits.max_inflight
        if len(connection.withheld) > most or self._withheld_bytes > MAX_WITHHELD_BYTES:
            connection.close(Reason.STORE_FULL, f"{len(connection.withheld)} messages wait for room, limit {most}")
        return True

    def _has_room(self, connection: Connection, publish: Publish) -> bool:
        route = connection.known_route(publish.topic.encode()) or self._plane.exchange.route(publish.topic)
        if route.uplink is not None and route.durable and route.uplink.is_full:
            return False
        return self.store.accepting or not _is_stored(connection, publish, route) or self._make_room(publish.topic)

    def _weigh(self, connection: Connection, size: int) -> None:
        self._withheld_by[connection] += size
        self._withheld_bytes += size

    def _forget_withheld(self, connection: Connection) -> None:
        self._withholding.pop(connection, None)
        self._withheld_bytes -= self._withheld_by.pop(connection, 0)

    def _go_on(self, connection: Connection) -> None:
        """There is room: what was withheld goes first."""
        while (
            connection.withheld
            and not connection.suspended
            and self.store.accepting
            and self._has_room(connection, connection.withheld[0])
        ):
            publish = connection.withheld.popleft()
            self._weigh(connection, -len(publish.payload))
            connection.act_on(publish)
        if not connection.withheld:
            self._forget_withheld(connection)

    def _may_be_dropped(self, topic: str) -> bool:
        if self._config.full == "drop-oldest":
            return True
        return self._drops and any(matches(each, parse_topic(topic)) for each in self._drop_oldest)

    def _make_room(self, topic: str) -> bool:
        """Drop the oldest messages of classes that allow it, for one of such a class."""
        if self.store.writer.trouble is not None or self.journal.exhausted or not self._may_be_dropped(topic):
            return False
        if not self._evicting:
            self._evicting = True
            self.journal.evict(self._evicted)
        return True

    def _evicted(self, lost: Sequence[tuple[int, int, int]]) -> None:
        self._evicting = False
        count = 0
        for number, messages, size in lost:
            count += messages
            session = self._stored.get(number)
            if session is not None:
                session.lost(messages, size)
                session.dropped += messages
        if count:
            self._plane.counts["evicted"] += count
            self._plane.audit.write("dropped", reason=Reason.STORE_FULL, detail=f"{count} oldest of drop-oldest topics")

    def report(self) -> dict[str, Any]:
        """Figures for status and metrics."""
        return {
            **self.store.report(),
            "sessions": len(self._stored),
            "dormant_sessions": len(self.dormant),
            "queued": sum(session.depth for session in self._stored.values()),
            "queued_bytes": sum(session.depth_bytes for session in self._stored.values()),
            "oldest_s": round(self.journal.oldest_s, 1),
            "withheld": sum(len(c.withheld or ()) for c in self._withholding),
            "withheld_total": self._plane.counts["withheld"],
            "evicted": self._plane.counts["evicted"],
        }


def _is_stored(connection: Connection, publish: Publish, route: Route) -> bool:
    """Whether a PUBLISH would be stored: retained, for its packet identifier, or for someone who wants it."""
    if publish.retain or (publish.qos == 2 and connection.session is not None and connection.session.durable):
        return True
    return route.durable


def _row_of(session: StoredSession) -> SessionRow:
    """A session as it stands in the store; of a queue that is not known to be empty one message at least."""
    return SessionRow(
        number=session.number,
        identity=session.identity,
        client_id=session.client_id,
        leaf_der=session.peer.leaf_der,
        offline_s=0,
        subscriptions=tuple(session.subscriptions.items()),
        received=frozenset(session.received),
        queue=QueueFigures(max(session.depth, 0 if session.complete else 1), session.depth_bytes, session.in_flight),
    )
