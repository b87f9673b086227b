"""A persistent session whose queue is on disk: in memory stand what is in flight and the next page of the queue.

    message --deliver--> row (queued) --launch--> row with packet identifier --commit--> sent --PUBACK--> row deleted
                                                             PUBREC -> row released --commit--> PUBREL --PUBCOMP--> gone

Everything that leaves for the client leaves after the commit that holds what the client's answer relies on: a PUBLISH
after its packet identifier, a PUBREL after the PUBREC [MQTT-4.3.3-1, 4.4.0-1]. The link's `hold` sees to that.

The queue in memory is the beginning of the queue on disk; `complete` says that it is all of it. A client that is away
has none in memory, and one that comes back reads its queue page by page, so that a backlog of any size costs a page.
What was in flight leaves memory as well; it is read when the client connects, and nothing is sent before that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from gateway.broker.packets import PacketType, encode_ack, encode_publish
from gateway.broker.sessions import Link, Message, Outgoing, Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.policy import Grants
    from mtls.judgement import Peer

MEMORY_MESSAGES = 256  # of the queue's beginning that are held in memory as well
MEMORY_BYTES = 1024 * 1024
MESSAGE_ROW_BYTES = 128  # what a queued message's rows and index cost on disk beside topic and payload


class Row(Protocol):
    """One message as the store gives it back."""

    @property
    def number(self) -> int: ...
    @property
    def topic_raw(self) -> bytes: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def published_qos(self) -> int: ...
    @property
    def qos(self) -> int: ...
    @property
    def retain(self) -> bool: ...
    @property
    def packet_id(self) -> int: ...
    @property
    def released(self) -> bool: ...


class Shelf(Protocol):
    """Where a session's state is written; every call returns at once."""

    def has_share(self, session: StoredSession, size: int) -> bool:
        """Whether one more message of `size` fits into the session's share of the store."""

    def keep(self, session: int, message: Message, qos: int, retain: bool, packet_id: int, size: int) -> int:
        """Queue a message for a session, or with a packet identifier put it in flight; the message's number."""

    def launch(self, session: int, message: int, packet_id: int) -> None: ...
    def release(self, session: int, message: int) -> None: ...
    def done(self, session: int, message: int) -> None: ...
    def trim(self, session: int) -> None: ...
    def receive(self, session: int, packet_id: int) -> None: ...
    def complete(self, session: int, packet_id: int) -> None: ...
    def subscribe(self, session: int, topic_filter: str, qos: int) -> None: ...
    def unsubscribe(self, session: int, topic_filter: str) -> None: ...
    def forget(self, session: int) -> None: ...
    def page(self, session: int, after: int, then: Callable[[tuple[Sequence[Row], bool]], None]) -> None: ...
    def in_flight(self, session: int, then: Callable[[Sequence[Row]], None]) -> None: ...
    def pump(self, session: Session) -> None:
        """Send what the session's window allows, as after an acknowledgement."""


class StoredSession(Session):
    """The state of one (identity, client identifier) with clean session 0, on disk under `number`."""

    __slots__ = ("_after", "_asking", "_newest", "_shelf", "complete", "depth", "depth_bytes", "number", "unread")

    durable = True

    def __init__(self, peer: Peer, client_id: str, grants: Grants, *, window: int, shelf: Shelf, number: int) -> None:
        super().__init__(peer, client_id, grants, clean=False, window=window)
        self.number = number
        self.complete = True  # the queue in memory is the whole queue
        self.depth = 0  # messages queued, on disk and in memory
        self.depth_bytes = 0
        self.unread = 0  # in flight before this connection and not read yet
        self._shelf = shelf
        self._after = 0  # the newest message that was taken into memory
        self._newest = 0  # the newest message that was queued
        self._asking = False

    def restore(self, subscriptions: Sequence[tuple[str, int]], received: frozenset[int]) -> None:
        """Take up what stood in the store; the exchange indexes the subscriptions."""
        self.subscriptions.update(subscriptions)
        self.received.update(received)

    def restore_queue(self, depth: int, depth_bytes: int, in_flight: int) -> None:
        """Take up the figures of the queue; its messages stay on disk."""
        self.depth, self.unread = depth, in_flight
        self._store(depth_bytes)
        self.complete = depth == 0

    # outgoing

    def deliver(self, message: Message, qos: int, retain: bool = False) -> bool:
        """Keep one message, and send it when its row is on disk; QoS 0 is not kept."""
        if qos == 0:
            return super().deliver(message, qos, retain)
        link = self.link
        if (
            link is not None
            and not link.blocked
            and self.complete
            and not self.queue
            and not self.unread
            and self._window_is_open()
        ):
            self._keep_and_send(link, message, qos, retain)
            return True
        return self._enqueue((message, qos, retain))

    def _keep_and_send(self, link: Link, message: Message, qos: int, retain: bool) -> None:
        packet_id = self._free_packet_id()
        number = self._shelf.keep(self.number, message, qos, retain, packet_id, _cost(message))
        self._after = self._newest = number
        self.inflight[packet_id] = (message, qos, retain)
        link.hold(encode_publish(message.topic_raw, message.payload, qos, retain, False, packet_id))

    def _launch(self, link: Link, message: Message, qos: int, retain: bool) -> None:
        """Send from the queue. A retained message for a new subscription was in no queue: it is a delivery anew."""
        if retain:
            self._keep_and_send(link, message.copy(), qos, retain)
            return
        packet_id = self._free_packet_id()
        self._shelf.launch(self.number, message.number, packet_id)
        self.inflight[packet_id] = (message, qos, retain)
        link.hold(encode_publish(message.topic_raw, message.payload, qos, retain, False, packet_id))

    def _enqueue(self, outgoing: Outgoing) -> bool:
        """Keep a message that cannot be sent now, within the role's bound and the session's share of the store."""
        message, qos, retain = outgoing
        limits, size = self.grants.limits, _cost(message)
        most = limits.queue_messages
        full = (most is not None and self.depth >= most) or not self._shelf.has_share(self, size)
        if full and limits.queue_full == "drop-newest":
            self.dropped += 1
            return False
        number = self._shelf.keep(self.number, message, qos, retain, 0, size)
        self.depth += 1
        self._store(size)
        self._newest = number
        if self.complete and self.link is not None:
            self._remember(outgoing)
        else:
            self.complete = False
        if full:
            self._drop_oldest()
        return not full

    def _remember(self, outgoing: Outgoing) -> None:
        """Hold a queued message in memory too, while the whole queue fits there."""
        if self.queue is None:
            self.queue = deque()
        size = _cost(outgoing[0])
        if len(self.queue) >= MEMORY_MESSAGES or self.queued_bytes + size > MEMORY_BYTES:
            self.complete = False
            return
        self.queue.append(outgoing)
        self._weigh(size)
        self._after = self._newest

    def _drop_oldest(self) -> None:
        if self.queue:
            outgoing = self._pop_queue()
            if outgoing is not None:
                self._shelf.done(self.number, outgoing[0].number)
        elif not self._asking:  # a page on its way may hold the oldest; the next drop is in time as well
            self._shelf.trim(self.number)
            self.lost(1, self.depth_bytes // max(1, self.depth))
        self.dropped += 1

    def lost(self, count: int, size: int) -> None:
        """Messages of the queue were dropped on disk."""
        self.depth = max(0, self.depth - count)
        self._store(-min(size, self.depth_bytes) if self.depth else -self.depth_bytes)

    def _store(self, size: int) -> None:
        self.depth_bytes += size
        self.share.stored_bytes += size

    def _pop_queue(self) -> Outgoing | None:
        outgoing = None
        if self.queue:
            outgoing = self.queue.popleft()
            size = _cost(outgoing[0])
            self._weigh(-size)
            self.lost(1, size)
        if not self.queue:
            self.queue = None
        return outgoing

    def pump(self) -> bool:
        """Send what the window and the peer allow of the queue; whether retained messages could be sent now."""
        link = self.link
        while link is not None and not link.blocked and not self.unread and self._window_is_open():
            outgoing = self._pop_queue()
            if outgoing is not None:
                self._send(link, outgoing)
            elif not self.complete:
                self._ask_for_page()
                return False
            else:
                return bool(self.walks)
        return False

    def walk(self, current: Callable[[str], Message | None]) -> bool:
        """Send retained messages of new subscriptions, when nothing that was queued before waits any more."""
        if self.unread or not self.complete:
            return False
        return super().walk(current)

    def _send(self, link: Link, outgoing: Outgoing) -> None:
        message, qos, retain = outgoing
        if qos and not retain and not self.may_receive(message.topic):
            self._shelf.done(self.number, message.number)
            return
        super()._send(link, outgoing)

    def _ask_for_page(self) -> None:
        if self._asking:
            return
        self._asking = True
        newest, link = self._newest, self.link

        def arrived(answer: tuple[Sequence[Row], bool]) -> None:
            self._asking = False
            if self.link is not link or link is None:
                if self.link is not None:
                    self._shelf.pump(self)
                return
            rows, is_all = answer
            self._fill(rows)
            self.complete = is_all and self._newest == newest
            if self.complete and not rows:
                self.lost(self.depth, self.depth_bytes)
            self._shelf.pump(self)

        self._shelf.page(self.number, self._after, arrived)

    def _fill(self, rows: Sequence[Row]) -> None:
        self.queue = self.queue or deque()
        for row in rows:
            message = _message(row)
            self.queue.append((message, row.qos, row.retain))
            self._weigh(_cost(message))
            self._after = row.number

    # answers of the peer

    def acknowledged(self, packet_id: int) -> None:
        """PUBACK: a QoS 1 delivery is done."""
        outgoing = self.inflight.get(packet_id)
        if outgoing is not None and outgoing[1] == 1:
            del self.inflight[packet_id]
            self._shelf.done(self.number, outgoing[0].number)

    def received_by_peer(self, packet_id: int) -> None:
        """PUBREC: noted, and answered with PUBREL once that is on disk [MQTT-4.3.3-1]."""
        outgoing = self.inflight.get(packet_id)
        if outgoing is not None:
            if outgoing[1] != 2:
                return
            del self.inflight[packet_id]
            self.released[packet_id] = outgoing[0].number
            self._shelf.release(self.number, outgoing[0].number)
        if self.link is not None:
            self.link.hold(encode_ack(PacketType.PUBREL, packet_id))

    def completed(self, packet_id: int) -> None:
        """PUBCOMP: a QoS 2 delivery is done."""
        number = self.released.pop(packet_id, None)
        if number is not None:
            self._shelf.done(self.number, number)

    # what the peer sends

    def receive(self, packet_id: int) -> None:
        """A QoS 2 message was taken."""
        super().receive(packet_id)
        self._shelf.receive(self.number, packet_id)

    def release(self, packet_id: int) -> None:
        """PUBREL: the identifier is free again."""
        if packet_id in self.received:
            self._shelf.complete(self.number, packet_id)
        super().release(packet_id)

    def subscribed(self, topic_filter: str, qos: int) -> None:
        """A subscription was made or replaced."""
        super().subscribed(topic_filter, qos)
        self._shelf.subscribe(self.number, topic_filter, qos)

    def unsubscribed(self, topic_filter: str) -> bool:
        """A subscription ends; whether there was one."""
        there = super().unsubscribed(topic_filter)
        if there:
            self._shelf.unsubscribe(self.number, topic_filter)
        return there

    # life

    def detach(self, monotonic: float) -> None:
        """The connection is gone: the queue and what is in flight are on disk, and need no room in memory."""
        self.unread += len(self.inflight) + len(self.released)
        self.inflight.clear()
        self.released.clear()
        super().detach(monotonic)
        self.complete = self.complete and not self.queue  # not by `depth`: what is evicted may be counted off twice
        self.queue = None
        self._weigh(-self.queued_bytes)
        self._after = 0

    def redeliver(self) -> None:
        """Send again what was in flight, when it has been read."""
        link = self.link
        if link is None:
            return
        if self.unread:
            self._shelf.in_flight(self.number, lambda rows: self._read(rows, link))
            return
        self.quarantined.clear()
        for packet_id in self.released:
            link.hold(encode_ack(PacketType.PUBREL, packet_id))
        for packet_id, (message, qos, retain) in list(self.inflight.items()):
            if self.may_receive(message.topic):
                link.hold(encode_publish(message.topic_raw, message.payload, qos, retain, True, packet_id))
            else:
                del self.inflight[packet_id]
                self._shelf.done(self.number, message.number)
                self.quarantined.add(packet_id)

    def _read(self, rows: Sequence[Row], asked_for: Link) -> None:
        if self.link is not asked_for:
            return  # asked for a connection that is over: some of it may be acknowledged by now
        self.unread = 0
        for row in rows:
            if row.released:
                self.released[row.packet_id] = row.number
            else:
                self.inflight[row.packet_id] = (_message(row), row.qos, row.retain)
            self.last_id = row.packet_id
        self.redeliver()
        self._shelf.pump(self)

    @property
    def queued(self) -> int:
        """Messages waiting in the queue, on disk and in memory."""
        return self.depth

    def purge(self) -> int:
        """Forget this session's messages, in memory and on disk; the number forgotten."""
        count = self.depth + self.unread + len(self.inflight)
        super().purge()
        self.lost(self.depth, self.depth_bytes)
        self.unread = 0
        self.complete = True
        self._shelf.forget(self.number)
        return count


def _cost(message: Message) -> int:
    """What a queued message is accounted with on disk."""
    return len(message.topic_raw) + len(message.payload) + MESSAGE_ROW_BYTES


def _message(row: Row) -> Message:
    message = Message(row.topic_raw.decode(), row.topic_raw, row.payload, row.published_qos)
    message.number = row.number
    return message
