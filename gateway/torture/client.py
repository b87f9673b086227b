"""An MQTT client for the torture: it loses its connection at any moment and goes on where it was.

Publisher and subscriber keep the client's half of the session state (MQTT 3.1.1 section 3.1.2.4) in memory across
connections, as a careful device would on its flash: what is not acknowledged is sent again with DUP, in order.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final

from gateway.broker import packets
from gateway.broker.packets import Connect, PacketType, encode_ack
from gateway.broker.sessions import MAX_PACKET_ID
from gateway.torture.tally import Receiver, Tally

TOPIC: Final = "torture/{device}/data"
CONNECT_TIMEOUT_S: Final = 15.0
PAUSE_S: Final = 0.001  # between two answers that a publisher looks at: the broker is tortured, not measured
READ_BYTES: Final = 65536


class Wire:
    """One connection: whole packets in, bytes out. ConnectionError when it is over."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = b""
        self.session_present = False

    @classmethod
    async def open(cls, port: int, context: ssl.SSLContext, client_id: str) -> Wire:
        """Connect with clean session 0."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            streams = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
            wire = cls(*streams)
            wire.send(packets.encode_connect(Connect(client_id, False, 60, None, None, None)))
            first, body = await wire.packet()
            if first >> 4 != PacketType.CONNACK or body[1]:
                raise ConnectionRefusedError(f"CONNACK {body[1:2].hex()}")
            wire.session_present = bool(body[0])
            return wire

    def send(self, data: bytes) -> None:
        """Write bytes; a lost connection shows when reading."""
        if not self._writer.is_closing():
            self._writer.write(data)

    async def packet(self) -> tuple[int, bytes]:
        """The next packet: first byte and body."""
        while True:
            header = packets.fixed_header(self._buffer, 0) if len(self._buffer) > 1 else None
            if header is not None and header[2] <= len(self._buffer):
                first, start, stop = header
                body, self._buffer = self._buffer[start:stop], self._buffer[stop:]
                return first, body
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise ConnectionResetError("the broker closed the connection")
            self._buffer += data

    def close(self) -> None:
        """Drop the connection, without DISCONNECT."""
        self._writer.transport.abort()


class Publisher:
    """A device that numbers its messages and counts one as acknowledged at PUBACK, or at PUBREC for QoS 2.

    At PUBREC, because from then on it must not send the message again: the broker is answerable for it.
    """

    def __init__(self, device: str, qos: int, window: int, size: int, tally: Tally) -> None:
        self.device = device
        self.enough = False  # publish nothing new, only settle what is open
        self._qos = qos
        self._window = window
        self._size = size
        self._tally = tally
        self._topic = TOPIC.format(device=device).encode()
        self._sequence = 0
        self._packet_id = 0
        self._open: dict[int, int] = {}  # packet identifier -> sequence, in order
        self._released: dict[int, None] = {}

    @property
    def settled(self) -> bool:
        """Whether nothing is open."""
        return not self._open and not self._released

    async def run(self, wire: Wire) -> None:
        """Publish until the connection is lost, or all is settled and it is enough."""
        self._resend(wire)
        while not (self.enough and self.settled):
            while not self.enough and len(self._open) + len(self._released) < self._window:
                self._publish(wire)
            await asyncio.sleep(PAUSE_S)
            self._answer(wire, *await wire.packet())

    def _resend(self, wire: Wire) -> None:
        for packet_id, sequence in self._open.items():
            self._tally.resent += 1
            wire.send(self._packet(packet_id, sequence, dup=True))
        for packet_id in self._released:
            wire.send(encode_ack(PacketType.PUBREL, packet_id))

    def _publish(self, wire: Wire) -> None:
        self._sequence += 1
        self._packet_id = self._packet_id % MAX_PACKET_ID + 1
        self._open[self._packet_id] = self._sequence
        self._tally.published += 1
        wire.send(self._packet(self._packet_id, self._sequence, dup=False))

    def _packet(self, packet_id: int, sequence: int, *, dup: bool) -> bytes:
        payload = f"{self.device} {sequence} ".encode().ljust(self._size, b".")
        return packets.encode_publish(self._topic, payload, self._qos, False, dup, packet_id)

    def _answer(self, wire: Wire, first: int, body: bytes) -> None:
        kind, packet_id = first >> 4, int.from_bytes(body[:2], "big")
        if kind in (PacketType.PUBACK, PacketType.PUBREC):
            sequence = self._open.pop(packet_id, None)
            if sequence is not None:
                self._tally.acknowledged.append((self.device, sequence))
        if kind == PacketType.PUBREC:
            self._released[packet_id] = None
            wire.send(encode_ack(PacketType.PUBREL, packet_id))
        elif kind == PacketType.PUBCOMP:
            self._released.pop(packet_id, None)


class Subscriber:
    """A persistent session that wants everything. Acknowledges what `answers` lets it."""

    def __init__(self, name: str, qos: int, tally: Tally, answers: Callable[[], bool]) -> None:
        self.name = name
        self.subscribed = False
        self._qos = qos
        self._tally = tally
        self._answers = answers
        self._receiver = tally.receivers.setdefault(name, Receiver())
        self._held: set[int] = set()  # QoS 2 identifiers taken and not released

    async def subscribe(self, wire: Wire) -> None:
        """Make the subscription, and wait for SUBACK."""
        if self.subscribed and not wire.session_present:
            self._tally.sessions_lost += 1
            self._held.clear()
        wire.send(packets.encode_subscribe(1, [(TOPIC.format(device="+"), self._qos)]))
        while not self.subscribed or not wire.session_present:
            first, body = await wire.packet()
            if first >> 4 == PacketType.SUBACK:
                self.subscribed = True
                return
            self._take(wire, first, body)

    async def run(self, wire: Wire) -> None:
        """Receive until the connection is lost."""
        if not (self.subscribed and wire.session_present):
            await self.subscribe(wire)
        while True:
            self._take(wire, *await wire.packet())

    def _take(self, wire: Wire, first: int, body: bytes) -> None:
        kind = first >> 4
        if kind == PacketType.PUBLISH:
            self._message(wire, packets.decode_publish(first, body))
        elif kind == PacketType.PUBREL:
            packet_id = int.from_bytes(body[:2], "big")
            self._held.discard(packet_id)
            wire.send(encode_ack(PacketType.PUBCOMP, packet_id))

    def _message(self, wire: Wire, publish: packets.Publish) -> None:
        device, sequence, _ = publish.payload.split(b" ", 2)
        if publish.qos != 2 or publish.packet_id not in self._held:
            once = publish.qos == 2
            self._receiver.take(device.decode(), int(sequence), dup=publish.dup, once=once)
        if publish.qos == 2:
            self._held.add(publish.packet_id)
            wire.send(encode_ack(PacketType.PUBREC, publish.packet_id))
        elif publish.qos == 1 and self._answers():
            wire.send(encode_ack(PacketType.PUBACK, publish.packet_id))
