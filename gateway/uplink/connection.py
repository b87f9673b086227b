"""One connection to the upstream: the only module here that imports paho-mqtt.

A `Connection` lives from one TCP connect to its loss and is never used again: no state of paho outlives it, and what
is unacknowledged is the spool's to send again. paho's `connect` blocks through name, TCP and TLS, so it runs on a
thread of its own, which is left to itself when it takes too long; from then on everything happens on the event loop,
by paho's `loop_read`, `loop_write` and `loop_misc`: no lock, no second thread, no select().

What the upstream can say is bounded: CONNACK within a time limit, packets within a size limit, anything that paho
chokes on ends the connection. Commands are acknowledged by hand, when the owner says so. Not judged here: what a
message means, and whether an acknowledgement was owed.

Spec: MQTT 3.1.1; with `mqtt5` MQTT 5.0 sections 3.1.2.11 and 3.2.2.3 (limits of both sides).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mtls.bounded_socket import MAX_PACKET_BYTES, BoundedSocket
from mtls.errors import Fault
from mtls.terminal import sanitise
from mtls.tls import explain_ssl_error

SOCKET_TIMEOUT_S: Final = 10.0  # of each step of TCP and TLS
KEEP_ALIVE_S: Final = 30  # a line that is half open is noticed within two of these
TICK_S: Final = 1.0
SESSION_EXPIRY_S: Final = 7 * 86400  # that an MQTT 5 upstream keeps commands for us; 3.1.1 leaves it the choice
RECEIVE_MAXIMUM: Final = 20  # commands not yet acknowledged by us
TCP_USER_TIMEOUT_MS: Final = 45_000  # data that nobody acknowledges ends the connection, even below TLS


class Owner(Protocol):
    """Who is told what happens on a connection, when paho has returned."""

    def connected(self, connection: Connection) -> None:
        """CONNACK said yes; nothing else is said before."""

    def acknowledged(self, packet_id: int, code: int) -> None:
        """PUBACK; `code` is 128 or more when an MQTT 5 upstream refuses the message."""

    def command(self, packet_id: int, topic: str, payload: bytes, qos: int, retained: bool) -> None:
        """A message of a subscription; one with QoS waits for `acknowledge`."""

    def subscribed(self, topic_filter: str, code: int) -> None:
        """The answer to one subscription; 128 or more is a refusal."""

    def writable(self) -> None:
        """The line takes more again."""

    def lost(self, why: str) -> None:
        """The connection is over; nothing is said after this."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the upstream is and what we are there."""

    host: str
    port: int
    client_id: str
    mqtt5: bool
    subscriptions: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def why_of(error: Exception) -> str:
    """What a failure of name, TCP or TLS means, in one sentence."""
    if isinstance(error, ssl.SSLError):
        _, sentence, hint = explain_ssl_error(error)
        return f"{sentence} ({hint})" if hint else sentence
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, OSError):
        return sanitise(error.strerror or str(error) or type(error).__name__)
    return type(error).__name__


class Connection:
    """One connection. Made by `dial.open_connection`, which also says when it has its CONNACK."""

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext, owner: Owner) -> None:
        context.sslsocket_class = BoundedSocket
        self.endpoint = endpoint
        self.blocked = False  # the line takes no more for now
        self.receive_maximum = 65535  # unacknowledged messages that the upstream allows
        self.max_packet_bytes: int | None = None  # that an MQTT 5 upstream takes
        self.connack: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._client = self._prepare(context)
        self._socket: Any = None
        self._over = False
        self._registered = False
        self._filters: dict[int, str] = {}
        self._plain: set[int] = set()  # identifiers that paho gave to QoS 0 messages not yet written
        self._news: list[tuple[Any, ...]] = []  # what paho's callbacks said; passed on when paho has returned
        self._timer: asyncio.TimerHandle | None = None

    def _prepare(self, context: ssl.SSLContext) -> paho.Client:
        endpoint = self.endpoint
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=endpoint.client_id,
            clean_session=None if endpoint.mqtt5 else not endpoint.subscriptions,
            protocol=paho.MQTTv5 if endpoint.mqtt5 else paho.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = SOCKET_TIMEOUT_S
        client.max_inflight_messages_set(0)  # the window is the owner's
        client.max_queued_messages_set(0)
        client.tls_set_context(context)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        return client

    # life

    def dial(self) -> None:
        """TCP, TLS and CONNECT; blocks, and is called on a thread. OSError and ssl.SSLError say what failed."""
        endpoint, properties = self.endpoint, None
        if endpoint.mqtt5:
            properties = _properties(PacketTypes.CONNECT)
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = MAX_PACKET_BYTES
            if endpoint.subscriptions:
                properties.SessionExpiryInterval = SESSION_EXPIRY_S
        self._client.connect(
            endpoint.host,
            endpoint.port,
            keepalive=KEEP_ALIVE_S,
            clean_start=not endpoint.subscriptions if endpoint.mqtt5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            properties=properties,
        )

    def attach(self) -> None:
        """From here on the event loop drives the connection."""
        if self._over or self._socket is None or self._socket.fileno() < 0:
            self._end("it closed the connection at once")
            return
        self._client.on_socket_register_write = _nothing  # paho writes when `flush` says so
        self._client.on_socket_unregister_write = _nothing
        self._client.on_socket_close = self._on_socket_close
        self._loop.add_reader(self._socket.fileno(), self._readable)
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self._run(self._flush)

    def close(self) -> None:
        """End in order."""
        if not self._over and self._client.socket() is not None:
            self._over = True  # what paho says now is our own doing
            with contextlib.suppress(OSError, ValueError):
                self._client.disconnect()
                self._client.loop_write()
        self.abandon()

    def abandon(self) -> None:
        """Let go of the socket without a word."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(self._socket, socket.socket):
            self._forget(self._socket)
            self._socket.close()

    def close_socket(self) -> None:
        """The same on the thread of `dial`, when nobody waits for it any more."""
        if isinstance(self._socket, socket.socket):
            self._socket.close()

    # what the owner asks

    def publish(self, topic: str, payload: bytes, qos: int, properties: Sequence[tuple[str, str]]) -> int:
        """Queue a PUBLISH for the next `flush`; its packet identifier, which no message in flight has."""
        packed = None
        if properties:
            packed = _properties(PacketTypes.PUBLISH)
            packed.UserProperty = list(properties)
        info = self._client.publish(topic, payload, qos=qos, properties=packed)
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # the identifiers went round while one was in flight
            return self.publish(topic, payload, qos, properties)
        if not qos:
            self._plain.add(info.mid)
        return info.mid

    def acknowledge(self, packet_id: int) -> None:
        """Answer a command with PUBACK."""
        if not self._over:
            self._client.ack(packet_id, 1)
            self.flush()

    def flush(self) -> None:
        """Write what is queued, as far as the line takes it."""
        if not self._over:
            self._run(self._flush)

    # inside

    def _run(self, step: Any) -> None:
        """One step of paho's; whatever it raises ends the connection, and what it said is passed on afterwards."""
        try:
            step()
        except Exception as error:
            self._news.append((None, f"it sent what no client understands ({type(error).__name__})"))
        news, self._news = self._news, []
        for tell, *facts in news:
            if tell is None:
                self._end(*facts)
            elif not self._over:
                tell(*facts)

    def _flush(self) -> None:
        self._client.loop_write()
        self.blocked = self._client.want_write()
        if self.blocked != self._registered and self._socket.fileno() >= 0:
            self._registered = self.blocked
            if self.blocked:
                self._loop.add_writer(self._socket.fileno(), self._writable)
            else:
                self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        self._run(self._read)

    def _read(self) -> None:
        self._client.loop_read()
        while self._client.socket() is not None and self._socket.pending():
            self._client.loop_read()
        if self._client.want_write() and self._client.socket() is not None:
            self._flush()

    def _writable(self) -> None:
        self._run(self._flush)
        if not self._over and not self.blocked:
            self._owner.writable()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self._run(self._client.loop_misc)
        self.flush()

    def _end(self, why: str) -> None:
        if self._over:
            return
        failure = self._socket.failure if isinstance(self._socket, BoundedSocket) else None
        if failure is not None:
            why = why_of(failure)
        self.abandon()
        if not self.connack.done():
            self.connack.set_exception(Fault(why))
        else:
            self._owner.lost(why)

    def _forget(self, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())

    # what paho says

    def _on_socket_open(self, client: Any, userdata: Any, opened: Any) -> None:
        self._socket = opened
        with contextlib.suppress(OSError, AttributeError):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_USER_TIMEOUT_MS)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_socket_close(self, client: Any, userdata: Any, closing: Any) -> None:
        self._forget(closing)

    def _on_connect(self, client: Any, userdata: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        if code.is_failure:
            self._news.append((None, f"it refused CONNECT: {sanitise(str(code))}"))
            return
        self.receive_maximum = getattr(properties, "ReceiveMaximum", self.receive_maximum)
        self.max_packet_bytes = getattr(properties, "MaximumPacketSize", None)
        self._news.append((self._accepted,))

    def _accepted(self) -> None:
        if self.connack.done():
            self._end("it answered CONNECT twice")
            return
        self.connack.set_result(None)
        self._owner.connected(self)
        for topic_filter, qos in self.endpoint.subscriptions:
            packet_id = self._client.subscribe(topic_filter, qos)[1]
            if packet_id is not None:
                self._filters[packet_id] = topic_filter
        self.flush()

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        self._news.append((None, f"the connection is lost: {sanitise(str(code))}"))

    def _on_publish(self, client: Any, userdata: Any, mid: int, code: ReasonCode, properties: Any) -> None:
        # Said of QoS 0 too, once it is written, and its identifier may be that of a message in flight.
        if mid in self._plain:
            self._plain.discard(mid)
        else:
            self._news.append((self._owner.acknowledged, mid, code.value))

    def _on_message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        facts = (message.mid, topic, bytes(message.payload), message.qos, bool(message.retain))
        self._news.append((self._owner.command, *facts))

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, codes: Sequence[ReasonCode], properties: Any) -> None:
        topic_filter = self._filters.pop(mid, None)
        if topic_filter is not None and codes:
            self._news.append((self._owner.subscribed, topic_filter, codes[0].value))


def _properties(packet_type: int) -> Any:
    return Properties(packet_type)  # type: ignore[no-untyped-call]


def _nothing(*_: Any) -> None:
    """For paho, which writes by itself when nobody has taken that over."""
