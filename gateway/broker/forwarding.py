"""The fast path: most of what the gateway does, in one pass over the receive buffer.

PUBLISH with QoS 0 or 1 whose topic's bytes are in the connection's route cache, and PUBACK of QoS 1 deliveries, are
handled here; anything else, and anything that looks wrong, is left where it is for the table in `connection.py`,
which judges it in full. So nothing is decided here that was not decided there before, for this version of
subscriptions and rights. A QoS 0 packet goes to its receivers as the very bytes that came in.

The branches are written out and the names are local, because this loop runs for every message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.broker.host import distribute
from gateway.broker.sessions import Message, Session

if TYPE_CHECKING:
    from gateway.broker.connection import Connection

PUBLISH_QOS0: Final = 0x30  # no DUP, no RETAIN
PUBLISH_QOS1: Final = 0x32
PUBACK_BYTE: Final = 0x40
PUBACK_HEAD: Final = b"\x40\x02"
NO_PACKET_ID: Final = b"\x00\x00"


def forward(connection: Connection, session: Session, data: bytes, position: int, end: int) -> int:
    """Handle PUBLISH with QoS 0 or 1 on a known route, and PUBACK, until something else comes; the new position."""
    host, routes, limit = connection.host, connection.routes, connection.max_packet_bytes
    version, dirty, inflight = host.version, host.dirty, session.inflight
    published = acknowledged = 0
    if connection.withheld:
        return position  # what was withheld goes first
    while end - position >= 2:
        first, length = data[position], data[position + 1]
        if first == PUBACK_BYTE:
            if length != 2 or end - position < 4:
                break
            packet_id = data[position + 2] << 8 | data[position + 3]
            outgoing = inflight.get(packet_id)
            if outgoing is None or outgoing[1] != 1:
                break
            if session.durable:
                session.acknowledged(packet_id)
            else:
                del inflight[packet_id]
            acknowledged += 1
            position += 4
            continue
        if first != PUBLISH_QOS0 and first != PUBLISH_QOS1:
            break
        body = position + 2
        if length > 127:
            if body >= end or data[body] > 127:
                break
            length += (data[body] << 7) - 128
            body += 1
        stop = body + length
        if stop > end or length < 3 or length > limit:
            break
        topic_end = body + 2 + (data[body] << 8 | data[body + 1])
        route = routes.get(data[body + 2 : topic_end])
        if route is None or route.version != version:
            break
        if first == PUBLISH_QOS0:
            if topic_end > stop:
                break
            packet = data[position:stop]
            for target in route.sessions:
                link = target.link
                if link is None:
                    continue
                if link.blocked:
                    target.dropped += 1
                    host.dropped(target)
                    continue
                link.outbox.append(packet)
                if not link.dirty:
                    link.dirty = True
                    dirty.append(link)
            if route.uplink is not None:
                route.uplink.take(route.topic, data[topic_end:stop], 0, session.identity)
        else:
            payload_start = topic_end + 2
            if payload_start > stop:
                break
            packet_id_raw = data[topic_end:payload_start]
            if packet_id_raw == NO_PACKET_ID:
                break
            if route.durable and not host.accepting:
                break
            if route.targets:
                message = Message(route.topic, data[body + 2 : topic_end], data[payload_start:stop], 1)
                message.head = data[position:topic_end]
                distribute(message, route.targets, host)
            if route.uplink is not None:
                route.uplink.take(route.topic, data[payload_start:stop], 1, session.identity)
            if route.durable or connection.held:
                connection.hold(PUBACK_HEAD + packet_id_raw)
            else:
                connection.outbox.append(PUBACK_HEAD + packet_id_raw)
                if not connection.dirty:
                    connection.dirty = True
                    dirty.append(connection)
        published += 1
        position = stop
    host.messages_in += published
    if acknowledged and (session.queue or session.walks or session.durable):
        host.pump(session)
    if dirty:
        host.schedule_flush()
    return position
