"""One client's protocol state: bytes in, packets and decisions out. A state machine without I/O.

    AWAITING_CONNECT --CONNECT--> ADMITTING --accept()--> CONNECTED --DISCONNECT, error, close()--> CLOSED
                                      `------refuse()-------------------------------------------------^

The table `_HANDLERS` holds every legal pair of state and packet type; a pair that is not in it ends the connection
[MQTT-3.1.0-1, 3.1.0-2, 4.8.0-1]. The connection knows no socket, no clock and no policy file: admission, routing and
subscriptions are asked of its `Host` (the broker), and what is to be written collects in `outbox` until the host
flushes it, once per turn of its loop.

Most packets never come to the table: `forwarding.py` takes them straight from the receive buffer. Sizes are judged
from the fixed header, before a body is awaited.

It does not: judge certificates, keep time (the host's coarse wheel does), retry, or remember anything after close.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from gateway.broker import packets
from gateway.broker.forwarding import forward
from gateway.broker.host import Host, Route
from gateway.broker.outlet import Outlet, State
from gateway.broker.packets import (
    ConnectCode,
    MalformedPacket,
    PacketType,
    Publish,
    UnacceptableProtocol,
    Will,
    encode_ack,
)
from gateway.broker.sessions import Session
from mtls.errors import Reason, Refusal

if TYPE_CHECKING:
    from gateway.policy import Decision
    from mtls.judgement import Peer

CONNECT_BYTE: Final = 0x10
MAX_CACHED_ROUTES = 4096  # per connection; a backend that addresses every device needs one route per device
PACKETS_PER_TURN = 64  # judged in full before other connections have their turn; what is only forwarded is free
MAX_CACHED_TOPIC_BYTES = 256  # longer topics are routed every time, so that the cache stays small


class Connection(Outlet):
    """The protocol state of one connected client. `peer` is its judged certificate."""

    __slots__ = (
        "_buffer",
        "_needed",
        "_suspended",
        "address",
        "audited",
        "choked",
        "credit",
        "credited_at",
        "ending",
        "keep_alive_s",
        "last_tick",
        "max_packet_bytes",
        "peer",
        "publish_rate",
        "routes",
        "session",
        "slowed",
        "throttled",
        "timer",
        "user_name",
        "view",
        "will",
        "will_number",
        "wire",
        "withheld",
    )

    def __init__(self, host: Host, peer: Peer, address: str, *, connect_max_bytes: int) -> None:
        super().__init__(host)
        self.peer = peer
        self.address = address
        self.max_packet_bytes = connect_max_bytes  # until the CONNECT is accepted, then the role's limit
        self.keep_alive_s = 0
        self.last_tick = host.tick
        self.session: Session | None = None
        self.will: Will | None = None
        self.user_name: str | None = None
        self.ending: Refusal | None = None
        self.view: Any = None  # what plugins see of this connection; made when one asks
        self.will_number = 0  # of the will in the store
        self.wire: Any = None  # the transport's handle, set by the transport
        self.audited = False  # whether the host has written the line that says how this connection ended
        self.publish_rate: float | None = None  # messages per second; the host slows the reading
        self.credit = 0.0
        self.credited_at = 0.0
        self.throttled = False
        self.timer: Any = None  # the host's handle that ends the throttling
        self.slowed = False  # what waits for the disk is so much that nothing more is read
        self.choked = False  # so many answers wait for the peer that nothing more is read from it
        self._buffer: bytearray | None = None
        self._needed = 0
        self._suspended = False
        self.withheld: deque[Publish] | None = None  # what waits, unanswered, for room in the store
        self.routes: dict[bytes, Route] = {}

    # the end

    def close(self, reason: Reason, detail: str = "") -> None:
        """End the connection; what is in the outbox is still written."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self.ending = Refusal(reason, detail)
        self._buffer = None
        self.routes = {}
        self.held = self.withheld = None
        self.host.ended(self)

    # input

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer, in any split. Never raises on anything a peer can send."""
        if self.ending is not None:
            return
        if self._buffer is not None:
            self._buffer += data
            if self._suspended or len(self._buffer) < self._needed:
                return
            data = bytes(self._buffer)
            self._buffer = None
        elif self._suspended:
            self._buffer = bytearray(data)
            return
        try:
            consumed = self._consume(data)
        except MalformedPacket as malformed:
            self._fail(malformed)
            return
        if self.state is State.CLOSED:
            return
        if consumed:
            self.last_tick = self.host.tick
        if consumed < len(data):
            self._buffer = bytearray(data[consumed:]) if consumed else bytearray(data)

    def resume(self) -> None:
        """Go on reading after work that had to finish first."""
        self._suspended = False
        if self._buffer is not None:
            self._needed = 0
            self.receive(b"")

    @property
    def suspended(self) -> bool:
        """Whether packets wait for work that the host runs."""
        return self._suspended

    def _fail(self, malformed: MalformedPacket) -> None:
        before = self.state in (State.AWAITING_CONNECT, State.ADMITTING)
        self.close(Reason.CONNECT_MALFORMED if before else Reason.PROTOCOL_ERROR, str(malformed))

    def _consume(self, data: bytes) -> int:
        """Handle every complete packet in `data`; the number of bytes used."""
        position, end = 0, len(data)
        host, left = self.host, PACKETS_PER_TURN
        self._needed = 0  # known again when the rest is the beginning of a packet
        while end - position >= 2:
            if self.session is not None and not host.slow_lane and self.state is State.CONNECTED:
                position = forward(self, self.session, data, position, end)
                if end - position < 2:
                    break
            header = self._header(data, position)
            if header is None:
                break
            first, body, stop = header
            if not self._may_await(first, stop - body):
                break
            if stop > end:
                self._needed = stop - position
                break
            if host.slow_lane:
                host.packet_received(self, data[position:stop])
            _HANDLERS[self.state, first >> 4](self, first, data[body:stop])
            position = stop
            if self._suspended or self.state is State.CLOSED:
                break
            left -= 1
            if not left:
                self._suspend(_others_first())
                break
        return position

    def _header(self, data: bytes, position: int) -> tuple[int, int, int] | None:
        """First byte, start and end of the body; None while the fixed header is incomplete."""
        if self.state is State.AWAITING_CONNECT and data[position] != CONNECT_BYTE:
            raise MalformedPacket("MQTT-3.1.0-1", "the first packet is not CONNECT")
        return packets.fixed_header(data, position)

    def _may_await(self, first: int, length: int) -> bool:
        """Judge a packet by its fixed header, before its body is awaited or read."""
        if length > self.max_packet_bytes:
            early = self.state is State.AWAITING_CONNECT
            reason = Reason.CONNECT_TOO_LARGE if early else Reason.PACKET_TOO_LARGE
            self.close(reason, f"{length} bytes, limit {self.max_packet_bytes}")
            return False
        if (self.state, first >> 4) not in _HANDLERS:
            raise MalformedPacket("MQTT-3.1.0-2", f"packet type {first >> 4} when {self.state.value}")
        return True

    # CONNECT

    def _on_connect(self, first: int, body: bytes) -> None:
        try:
            connect = packets.decode_connect(body)
        except UnacceptableProtocol as unacceptable:
            self.refuse(ConnectCode.UNACCEPTABLE_PROTOCOL, Refusal(Reason.PROTOCOL_LEVEL, str(unacceptable)))
            return
        self.state = State.ADMITTING
        self.keep_alive_s = connect.keep_alive_s
        self.user_name = connect.user_name
        work = self.host.admit(self, connect)
        if work is not None:
            self._suspend(work)

    def accept(self, session: Session, will: Will | None, *, session_present: bool) -> None:
        """Answer CONNECT with 0, then send what the session has in flight and in its queue."""
        self.state = State.CONNECTED
        self.session = session
        self.will = will
        self.send(packets.encode_connack(session_present, ConnectCode.ACCEPTED))
        session.redeliver()
        self.host.pump(session)

    def refuse(self, code: int, refusal: Refusal) -> None:
        """Answer CONNECT with a return code and close; session present is 0 [MQTT-3.2.2-4, 3.2.2-5]."""
        self.send(packets.encode_connack(False, code))
        self.close(refusal.reason, refusal.detail)

    # packets of a connected client

    def _on_publish(self, first: int, body: bytes) -> None:
        publish = packets.decode_publish(first, body)
        host = self.host
        host.messages_in += 1
        if publish.qos and (self.withheld or not host.accepting) and host.withholds(self, publish):
            return
        self.act_on(publish)

    def act_on(self, publish: Publish) -> None:
        """Judge one PUBLISH and route it."""
        host = self.host
        if host.slow_lane:
            self._suspend(host.publish_slowly(self, publish))
            return
        decision = host.decide_publish(self, publish)
        if not decision.allowed:
            self.deny(publish, decision)
            return
        if publish.qos == 2 and self.repeated(publish.packet_id):
            return
        topic_raw = publish.topic.encode()
        route = host.publish(self, publish, topic_raw)
        self.answer(publish, stored=route.durable or publish.retain)
        if not publish.retain and len(topic_raw) <= MAX_CACHED_TOPIC_BYTES and self.state is State.CONNECTED:
            if len(self.routes) >= MAX_CACHED_ROUTES:
                self.routes.clear()
            self.routes[topic_raw] = route

    def repeated(self, packet_id: int) -> bool:
        """A QoS 2 PUBLISH not yet released is answered and not routed again [MQTT-4.3.3-2]."""
        if self.session is None or packet_id not in self.session.received:
            return False
        self.acknowledge(encode_ack(PacketType.PUBREC, packet_id), stored=self.session.durable)
        return True

    def answer(self, publish: Publish, *, stored: bool = False) -> None:
        """Acknowledge a PUBLISH that was accepted, or denied and dropped [MQTT-3.3.5-2]."""
        if publish.qos == 1:
            self.acknowledge(encode_ack(PacketType.PUBACK, publish.packet_id), stored=stored)
        elif publish.qos == 2 and self.session is not None:
            self.session.receive(publish.packet_id)
            stored = stored or self.session.durable
            self.acknowledge(encode_ack(PacketType.PUBREC, publish.packet_id), stored=stored)

    def deny(self, publish: Publish, decision: Decision) -> None:
        """Drop a denied PUBLISH: recorded, acknowledged, or the end of the connection if the role says so."""
        self.host.denied(self, publish, decision)
        if self.session is not None and self.session.grants.on_denied_publish == "disconnect":
            self.close(Reason.PUBLISH_DENIED, decision.rule)
            return
        self.answer(publish)

    def _suspend(self, work: Coroutine[Any, Any, None]) -> None:
        self._suspended = True
        self.host.run(self, work)

    def _on_puback(self, first: int, body: bytes) -> None:
        session, packet_id = self._live(packets.decode_packet_id(PacketType.PUBACK, body))
        session.acknowledged(packet_id)
        self.host.pump(session)

    def _on_pubrec(self, first: int, body: bytes) -> None:
        session, packet_id = self._live(packets.decode_packet_id(PacketType.PUBREC, body))
        session.received_by_peer(packet_id)

    def _on_pubrel(self, first: int, body: bytes) -> None:
        session, packet_id = self._live(packets.decode_packet_id(PacketType.PUBREL, body))
        session.release(packet_id)
        self.acknowledge(encode_ack(PacketType.PUBCOMP, packet_id), stored=session.durable)

    def _on_pubcomp(self, first: int, body: bytes) -> None:
        session, packet_id = self._live(packets.decode_packet_id(PacketType.PUBCOMP, body))
        session.completed(packet_id)
        self.host.pump(session)

    def _live(self, packet_id: int) -> tuple[Session, int]:
        assert self.session is not None  # noqa: S101 - CONNECTED implies a session
        return self.session, packet_id

    def _on_subscribe(self, first: int, body: bytes) -> None:
        packet_id, filters = packets.decode_subscribe(body)
        work = self.host.subscribe(self, packet_id, filters)
        if work is not None:
            self._suspend(work)

    def _on_unsubscribe(self, first: int, body: bytes) -> None:
        packet_id, filters = packets.decode_unsubscribe(body)
        self.host.unsubscribe(self, filters)
        session, _ = self._live(packet_id)
        self.acknowledge(encode_ack(PacketType.UNSUBACK, packet_id), stored=session.durable)

    def _on_pingreq(self, first: int, body: bytes) -> None:
        self.send(packets.PINGRESP)

    def _on_disconnect(self, first: int, body: bytes) -> None:
        self.will = None  # [MQTT-3.14.4-3]
        self.close(Reason.PEER_CLOSED, "DISCONNECT")

    def known_route(self, topic_raw: bytes) -> Route | None:
        """The route of a topic that this connection has been allowed to publish to, while it is still true."""
        route = self.routes.get(topic_raw)
        return route if route is not None and route.version == self.host.version else None

    def forget_routes(self) -> None:
        """Drop the route cache, when rights or limits changed."""
        self.routes.clear()


async def _others_first() -> None:
    """Nothing to do but to be run after what is due by then."""


_Handler = Callable[[Connection, int, bytes], None]
_HANDLERS: Final[dict[tuple[State, int], _Handler]] = {
    (State.AWAITING_CONNECT, PacketType.CONNECT): Connection._on_connect,
    (State.CONNECTED, PacketType.PUBLISH): Connection._on_publish,
    (State.CONNECTED, PacketType.PUBACK): Connection._on_puback,
    (State.CONNECTED, PacketType.PUBREC): Connection._on_pubrec,
    (State.CONNECTED, PacketType.PUBREL): Connection._on_pubrel,
    (State.CONNECTED, PacketType.PUBCOMP): Connection._on_pubcomp,
    (State.CONNECTED, PacketType.SUBSCRIBE): Connection._on_subscribe,
    (State.CONNECTED, PacketType.UNSUBSCRIBE): Connection._on_unsubscribe,
    (State.CONNECTED, PacketType.PINGREQ): Connection._on_pingreq,
    (State.CONNECTED, PacketType.DISCONNECT): Connection._on_disconnect,
}
