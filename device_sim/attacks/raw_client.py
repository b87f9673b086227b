"""An MQTT client that can say anything: one TLS connection, bytes out, whole packets in, a deadline on everything.

It is no MQTT library on purpose: an attack sends what no library would. Packets are read by the codec of the gateway
(`gateway/broker/packets.py`) and judged here.
"""

import socket
import ssl
import time
from typing import NamedTuple, Self

from gateway.broker import packets
from gateway.broker.framing import fixed_header
from gateway.broker.packets import Connect, PacketType, Will

DEADLINE_S = 5.0
READ_BYTES = 65536


class Closed(Exception):
    """The broker closed the connection, or refused TLS."""


class Answer(NamedTuple):
    """What came of a CONNECT: the return code, None when the connection was closed instead."""

    code: int | None
    session_present: bool = False

    @property
    def is_admitted(self) -> bool:
        """Whether the broker let it in."""
        return self.code == 0

    def __str__(self) -> str:
        return "closed without CONNACK" if self.code is None else f"CONNACK {self.code}"


class RawClient:
    """One connection, with TLS made; Closed when it is refused."""

    def __init__(self, port: int, context: ssl.SSLContext, *, session: ssl.SSLSession | None = None) -> None:
        raw = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each CONNECT waits 40 ms for a delayed ACK
        try:
            self.socket = context.wrap_socket(raw, server_hostname="127.0.0.1", session=session)
        except OSError as error:
            raw.close()
            raise Closed(str(error)) from error
        self._buffer = b""
        self._packet_id = 100

    def send(self, data: bytes) -> None:
        """Bytes as they are; Closed when nobody takes them."""
        try:
            self.socket.settimeout(DEADLINE_S)
            self.socket.sendall(data)
        except OSError as error:
            raise Closed(str(error)) from error

    def read(self, timeout_s: float = DEADLINE_S) -> tuple[int, bytes]:
        """The next packet; Closed at the end of the stream, TimeoutError when nothing comes."""
        deadline = time.monotonic() + timeout_s
        while True:
            header = fixed_header(self._buffer, 0) if self._buffer else None
            if header is not None and header[2] <= len(self._buffer):
                first, start, stop = header
                body, self._buffer = self._buffer[start:stop], self._buffer[stop:]
                return first, body
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self.socket.recv(READ_BYTES)
            except TimeoutError:
                raise
            except OSError as error:
                raise Closed(str(error)) from error
            if not data:
                raise Closed
            self._buffer += data

    def connect(
        self, client_id: str, *, clean: bool = True, keep_alive_s: int = 60, will: Will | None = None
    ) -> Answer:
        """CONNECT; what came of it."""
        try:
            self.send(packets.encode_connect(Connect(client_id, clean, keep_alive_s, will, None, None)))
            first, body = self.read()
        except (Closed, TimeoutError):
            return Answer(None)
        return Answer(body[1], bool(body[0])) if first >> 4 == PacketType.CONNACK else Answer(None)

    def subscribe(self, *filters: tuple[str, int], packet_id: int = 1) -> list[int]:
        """SUBSCRIBE; the return codes, [] when the connection was closed instead."""
        try:
            self.send(packets.encode_subscribe(packet_id, filters))
            while True:
                first, body = self.read()
                if first >> 4 == PacketType.SUBACK:
                    return list(body[2:])
        except (Closed, TimeoutError):
            return []

    def publish(self, topic: str, payload: bytes = b"x", qos: int = 0, *, retain: bool = False) -> None:
        """PUBLISH, without waiting for an answer."""
        self._packet_id += 1  # the last one's PUBACK may be unread [MQTT-2.3.1-2]
        self.send(packets.encode_publish(topic.encode(), payload, qos, retain, False, self._packet_id if qos else 0))

    def heard(self, payload: bytes, timeout_s: float = DEADLINE_S) -> packets.Publish | None:
        """The PUBLISH with this payload, whatever comes before it; None when it does not come."""
        deadline = time.monotonic() + timeout_s
        try:
            while (left := deadline - time.monotonic()) > 0:
                first, body = self.read(left)
                if first >> 4 != PacketType.PUBLISH:
                    continue
                message = packets.decode_publish(first, body)
                if message.qos == 1:
                    self.send(packets.encode_ack(PacketType.PUBACK, message.packet_id))
                if message.payload == payload:
                    return message
        except (Closed, TimeoutError):
            pass
        return None

    def is_alive(self, timeout_s: float = DEADLINE_S) -> bool:
        """Whether a PINGREQ is answered; what comes before is skipped."""
        deadline = time.monotonic() + timeout_s
        try:
            self.send(packets.PINGREQ)
            while (left := deadline - time.monotonic()) > 0:
                if self.read(left)[0] >> 4 == PacketType.PINGRESP:
                    return True
        except (Closed, TimeoutError):
            pass
        return False

    def is_closed_within(self, seconds: float) -> bool:
        """Whether the broker ends the connection in that time."""
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.read(left)
        except Closed:
            return True
        except TimeoutError:
            pass
        return False

    def disconnect(self) -> None:
        """DISCONNECT, TLS goodbye, close."""
        try:
            self.send(packets.DISCONNECT)
            self.socket.settimeout(1.0)
            self.socket.unwrap()
        except (Closed, OSError, ValueError):
            pass
        self.close()

    def close(self) -> None:
        """Close without a DISCONNECT."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
