"""Sessions: what the broker remembers of one client between and during connections, and how a message leaves it.

A session belongs to (identity, client identifier): what one identity left behind can never be resumed by another,
whatever it calls itself. It holds subscriptions, the outgoing queue, outgoing messages in flight (QoS 1 and 2), the
packet identifiers of received QoS 2 messages, and packet identifiers in quarantine.

No clock, no socket: a session writes packets to its `link` (the live connection, or None) and nothing else.
Every delivery is judged again when it leaves, because rights may have changed since the message was queued.

Spec: MQTT 3.1.1 sections 3.1.2.4 (session state), 4.3 (QoS), 4.4 (redelivery), 4.6 (ordering).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from gateway.broker.packets import PacketType, encode_ack, encode_publish
from gateway.broker.shares import Share, in_flight_bytes, subscription_bytes
from gateway.policy import Action

if TYPE_CHECKING:
    from gateway.policy import Grants
    from mtls.judgement import Peer

MAX_PACKET_ID = 65535
DEFAULT_QUEUE_MESSAGES = 1000  # mosquitto's max_queued_messages
MAX_QUEUE_BYTES = 16 * 1024 * 1024  # what the messages of one queue may cost in memory, the small ones' objects too
MESSAGE_OVERHEAD = 320  # objects of a queued message beside topic and payload; 290 to 300 bytes on CPython 3.11
WALK_CHUNK = 256  # retained messages sent per turn, so that a large tree never fills a write buffer at once
WALK_CHUNK_BYTES = 256 * 1024  # the same in bytes: few large ones are as much as many small ones


class Message:
    """One application message. Shared, never changed, by every session it goes to. `qos` is the published one.

    `head` is what stands before the packet identifier in a first delivery with QoS 1, once it is known. `kept` and
    `writer` are set on a retained one only: its topic was the how manieth to get a retained message, and by whom.
    """

    kept: int
    writer: str

    __slots__ = ("head", "kept", "number", "payload", "qos", "topic", "topic_raw", "writer")

    def __init__(self, topic: str, topic_raw: bytes, payload: bytes, qos: int) -> None:
        self.topic = topic
        self.topic_raw = topic_raw
        self.payload = payload
        self.qos = qos
        self.head = b""
        self.number = 0  # in the store, once a persistent session wants it

    def copy(self) -> Message:
        """The same message for a delivery of its own."""
        return Message(self.topic, self.topic_raw, self.payload, self.qos)

    @property
    def size(self) -> int:
        """Bytes of topic and payload."""
        return len(self.topic_raw) + len(self.payload)

    @property
    def cost_bytes(self) -> int:
        """What this message costs in a queue: ten bytes of payload are four hundred in memory."""
        return self.size + MESSAGE_OVERHEAD


class Link(Protocol):
    """The live connection as a session sees it: `outbox` is written by the broker's next flush of dirty links."""

    blocked: bool
    dirty: bool
    outbox: list[bytes]

    def send(self, packet: bytes) -> None:
        """Queue one encoded packet for writing."""

    def mark(self) -> None:
        """Have what was appended to `outbox` written."""

    def hold(self, packet: bytes) -> None:
        """Queue one encoded packet for writing when everything that was stored before it is on disk."""


def publish_head(topic_raw: bytes, payload: bytes) -> bytes:
    """A first delivery with QoS 1 up to its packet identifier."""
    whole = encode_publish(topic_raw, payload, 1, False, False, 1)
    return whole[: len(whole) - len(payload) - 2]


Outgoing = tuple[Message, int, bool]  # message, QoS of this delivery, RETAIN flag of this delivery
SessionKey = tuple[str, str]  # identity, client identifier


class Session:
    """The state of one (identity, client identifier).

    `grants` and `peer` are those of the newest connection: after a renewal the new certificate's facts apply.
    """

    __slots__ = (
        "clean",
        "client_id",
        "disconnected_at",
        "dropped",
        "grants",
        "identity",
        "inflight",
        "last_id",
        "link",
        "peer",
        "quarantined",
        "queue",
        "queued_bytes",
        "received",
        "released",
        "share",
        "subscriptions",
        "walks",
        "window",
    )

    durable = False  # whether what this session holds outlives the process
    depth_bytes = unread = 0  # bytes queued on disk; messages that are in flight and only on disk

    def __init__(self, peer: Peer, client_id: str, grants: Grants, *, clean: bool, window: int) -> None:
        self.peer = peer
        self.identity = str(peer.id)
        self.client_id = client_id
        self.grants = grants
        self.clean = clean
        self.window = window
        self.link: Link | None = None
        self.subscriptions: dict[str, int] = {}
        self.inflight: dict[int, Outgoing] = {}  # sent, not acknowledged; in order of sending
        self.released: dict[int, int] = {}  # PUBREC received, PUBREL sent; in that order [MQTT-4.6.0-4]
        self.received: set[int] = set()  # QoS 2 packet identifiers received and not yet released
        self.quarantined: set[int] = set()
        self.queue: deque[Outgoing] | None = None
        self.queued_bytes = 0
        self.share = Share()  # the identity's, once this session is filed
        self.walks: dict[str, tuple[Iterator[str], int]] | None = None
        self.last_id = 0
        self.dropped = 0
        self.disconnected_at = 0.0

    @property
    def key(self) -> SessionKey:
        """What the session is filed under."""
        return (self.identity, self.client_id)

    def may_receive(self, topic: str) -> bool:
        """Whether the policy in force lets this session be sent `topic`."""
        return self.grants.decide(Action.RECEIVE, topic).allowed

    # outgoing

    def deliver(self, message: Message, qos: int, retain: bool = False) -> bool:
        """Send or queue one message at `qos`; the caller has judged the right to receive it.

        False when this or an older message was dropped: a QoS 0 message to a blocked peer, or a full queue.
        A QoS 0 message to a session without a connection is not kept, and that is no drop.
        """
        link = self.link
        if qos == 0:
            if link is None:
                return True
            if link.blocked:
                self.dropped += 1
                return False
            link.send(encode_publish(message.topic_raw, message.payload, 0, retain, False, 0))
            return True
        if link is not None and not link.blocked and self.queue is None and self._window_is_open():
            self._launch(link, message, qos, retain)
            return True
        return self._enqueue((message, qos, retain))

    def _launch(self, link: Link, message: Message, qos: int, retain: bool) -> None:
        """Send what needs an acknowledgement."""
        packet_id = self._free_packet_id()
        self.inflight[packet_id] = (message, qos, retain)
        if qos == 1 and not retain:
            head = message.head
            if not head:
                head = message.head = publish_head(message.topic_raw, message.payload)
            link.outbox.append(b"%b%c%c%b" % (head, packet_id >> 8, packet_id & 255, message.payload))
            if not link.dirty:
                link.mark()
        else:
            link.send(encode_publish(message.topic_raw, message.payload, qos, retain, False, packet_id))

    def _free_packet_id(self) -> int:
        """An identifier not in use [MQTT-2.3.1-4]; the window keeps most of the 65,535 free."""
        packet_id = self.last_id % MAX_PACKET_ID + 1
        while packet_id in self.inflight or packet_id in self.released or packet_id in self.quarantined:
            packet_id = packet_id % MAX_PACKET_ID + 1
        self.last_id = packet_id
        return packet_id

    def _enqueue(self, outgoing: Outgoing) -> bool:
        size = outgoing[0].cost_bytes
        full = self._is_full(size)
        hopeless = full and not self.share.may_queue(self.queued_bytes, size)  # even if all that waits here went
        if hopeless or (full and self.grants.limits.queue_full == "drop-newest"):
            self.dropped += 1
            return False
        while full and self.queue and self._is_full(size):
            self._pop_queue()
            self.dropped += 1
        if self.queue is None:
            self.queue = deque()
        self.queue.append(outgoing)
        self._weigh(size)
        return not full

    def _is_full(self, size: int) -> bool:
        """Whether the queue, or those of the identity together, have no room for one more message of `size`."""
        now, then = self.queued_bytes, self.queued_bytes + size
        most = self.grants.limits.queue_messages or DEFAULT_QUEUE_MESSAGES
        return len(self.queue or ()) >= most or then > MAX_QUEUE_BYTES or not self.share.may_queue(now, then)

    def _weigh(self, size: int) -> None:
        self.queued_bytes += size
        self.share.queued_bytes += size

    def _pop_queue(self) -> Outgoing | None:
        if not self.queue:
            return None
        outgoing = self.queue.popleft()
        self._weigh(-outgoing[0].cost_bytes)
        if not self.queue:
            self.queue = None
        return outgoing

    def pump(self) -> bool:
        """Send what the window and the peer allow of the queue; whether retained messages could be sent now."""
        link = self.link
        while link is not None and not link.blocked and self._window_is_open():
            outgoing = self._pop_queue()
            if outgoing is None:
                return bool(self.walks)
            self._send(link, outgoing)
        return False  # the next acknowledgement, or the peer's reading, pumps again

    def walk(self, current: Callable[[str], Message | None]) -> bool:
        """Send retained messages of new subscriptions; whether some are left for the next turn.

        Only once a turn, after what was sent before has gone out: a packet of a few bytes must not be able to ask for
        megabytes many times over. `current` gives the retained message of a topic now: one replaced since was
        delivered live already.
        """
        link = self.link
        budget, bytes_left = WALK_CHUNK, WALK_CHUNK_BYTES
        while link is not None and not link.blocked and budget and bytes_left > 0:
            if self.queue or not self._window_is_open():
                return False  # the next acknowledgement pumps again
            outgoing = self._next_of_walk(current)
            if outgoing is None:
                return False
            budget -= 1
            bytes_left -= outgoing[0].size
            self._send(link, outgoing)
        return bool(self.walks) and link is not None and not link.blocked

    def _window_is_open(self) -> bool:
        return len(self.inflight) + len(self.released) < self.window

    def _send(self, link: Link, outgoing: Outgoing) -> None:
        message, qos, retain = outgoing
        if not self.may_receive(message.topic):
            return
        if qos:
            self._launch(link, message, qos, retain)
        else:
            link.send(encode_publish(message.topic_raw, message.payload, 0, retain, False, 0))

    def start_walk(self, topic_filter: str, topics: Iterator[str], qos: int) -> None:
        """Send retained messages of `topics` to a subscription just made; a newer walk of the filter replaces it."""
        if self.walks is None:
            self.walks = {}
        self.walks[topic_filter] = (topics, qos)

    def _next_of_walk(self, current: Callable[[str], Message | None]) -> Outgoing | None:
        while self.walks:
            topic_filter, (topics, granted) = next(iter(self.walks.items()))
            for topic in topics:
                message = current(topic)
                if message is not None:
                    return message, min(message.qos, granted), True
            del self.walks[topic_filter]
        self.walks = None
        return None

    def acknowledged(self, packet_id: int) -> None:
        """PUBACK: a QoS 1 delivery is done. An unknown identifier is ignored."""
        outgoing = self.inflight.get(packet_id)
        if outgoing is not None and outgoing[1] == 1:
            del self.inflight[packet_id]

    def received_by_peer(self, packet_id: int) -> None:
        """PUBREC: drop the message, answer PUBREL [MQTT-4.3.3-1]; an unknown identifier is answered as well."""
        outgoing = self.inflight.get(packet_id)
        if outgoing is not None:
            if outgoing[1] != 2:
                return
            del self.inflight[packet_id]
            self.released[packet_id] = outgoing[0].number
        if self.link is not None:
            self.link.send(encode_ack(PacketType.PUBREL, packet_id))

    def completed(self, packet_id: int) -> None:
        """PUBCOMP: a QoS 2 delivery is done."""
        self.released.pop(packet_id, None)

    # what the peer sends

    def receive(self, packet_id: int) -> None:
        """A QoS 2 message was taken; its identifier is remembered until PUBREL."""
        self.received.add(packet_id)

    def release(self, packet_id: int) -> None:
        """PUBREL: the identifier is free again."""
        self.received.discard(packet_id)

    def subscribed(self, topic_filter: str, qos: int) -> None:
        """A subscription was made or replaced."""
        if topic_filter not in self.subscriptions:
            self.share.subscription_bytes += subscription_bytes(topic_filter)
        self.subscriptions[topic_filter] = qos

    def unsubscribed(self, topic_filter: str) -> bool:
        """A subscription ends; whether there was one."""
        if self.subscriptions.pop(topic_filter, None) is None:
            return False
        self.share.subscription_bytes -= subscription_bytes(topic_filter)
        return True

    # life

    def attach(self, link: Link, peer: Peer, grants: Grants) -> None:
        """A connection takes this session up; facts and rights are the new connection's."""
        if self.link is None:
            self._weigh(-in_flight_bytes(self))
        self.link = link
        self.peer = peer
        self.grants = grants

    def detach(self, monotonic: float) -> None:
        """The connection is gone. Retained messages not yet sent are not owed: the subscription saw none of them."""
        if self.link is not None:
            self._weigh(in_flight_bytes(self))
        self.link = None
        self.walks = None
        self.disconnected_at = monotonic

    def redeliver(self) -> None:
        """Send again what was in flight, with DUP and the same identifiers, in order [MQTT-4.4.0-1].

        A message that may no longer be received is dropped and its identifier kept out of use on this connection.
        """
        link = self.link
        if link is None:
            return
        self.quarantined.clear()
        for packet_id in self.released:
            link.send(encode_ack(PacketType.PUBREL, packet_id))
        for packet_id, (message, qos, retain) in list(self.inflight.items()):
            if self.may_receive(message.topic):
                link.send(encode_publish(message.topic_raw, message.payload, qos, retain, True, packet_id))
            else:
                del self.inflight[packet_id]
                self.quarantined.add(packet_id)

    @property
    def in_flight(self) -> int:
        """Messages sent and not acknowledged to the end, in memory and on disk."""
        return len(self.inflight) + len(self.released) + self.unread

    @property
    def queued(self) -> int:
        """Messages waiting in the queue."""
        return len(self.queue) if self.queue else 0

    def purge(self) -> int:
        """Forget every message of this session; the number forgotten."""
        count = self.queued + len(self.inflight)
        self.queue = None
        self._weigh(-self.queued_bytes)
        self.inflight.clear()
        self.released.clear()
        self.received.clear()
        self.walks = None
        return count
