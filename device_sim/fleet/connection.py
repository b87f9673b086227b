"""One MQTT connection of a virtual device on an event loop that thousands share: paho's protocol, our socket.

paho's own `connect` blocks through TCP and TLS and its `loop` uses select(), which fails from descriptor 1024 on. So
TCP and TLS are made here without blocking, paho is handed the finished socket, and the loop's epoll calls paho's
`loop_read` and `loop_write`; reading is repeated while TLS holds decrypted bytes, of which no descriptor tells.
`_create_socket` is the one private name of paho's that this needs; a test fails when paho renames it.

A connection lives once. What ends it is a `ConnectionFault` with a public reason, given to `on_lost`.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from device_sim.connection_faults import (
    SPEAKS_NO_MQTT_311,
    ConnectionFault,
    Endpoint,
    connack_fault,
    connect_fault,
    lost_fault,
)
from device_sim.mqtt_client import DISCONNECT_PROTOCOL_ERROR
from gateway.broker.packets import Connect, encode_connect
from mtls.bounded_socket import BoundedSocket
from mtls.errors import Reason

DRIP_S = 0.25  # between two bytes of a slowloris
FIRST_LOOPBACK = int(ipaddress.IPv4Address("127.1.0.1"))
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a device asks for in its CONNECT."""

    client_id: str
    clean_session: bool = True
    keep_alive_s: int = 60
    will_topic: str = ""
    will_payload: bytes = b"offline"
    will_retain: bool = True


@dataclass(frozen=True, slots=True)
class Ears:
    """Who hears what happens on a connection."""

    on_acknowledged: Callable[[int], None]
    on_message: Callable[[str, bytes, bool], None]
    on_suback: Callable[[list[int]], None]
    on_lost: Callable[[ConnectionFault], None]


class _PreparedClient(paho.Client):
    """A paho client that takes a connected socket instead of making one."""

    prepared: ssl.SSLSocket

    def _create_socket(self) -> ssl.SSLSocket:
        return self.prepared


class FleetConnection:
    """From one `open` to its loss."""

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext, wish: Wish, ears: Ears, *, number: int = 0) -> None:
        self.endpoint = endpoint
        self.wish = wish
        self.fault: ConnectionFault | None = None
        self.is_accepted = False
        self.is_session_present = False
        self._context = context
        self._ears = ears
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._socket: ssl.SSLSocket | None = None
        self._client = self._prepare()

    # --- the life of it ---

    async def open(self, timeout_s: float, *, is_slowloris: bool = False) -> None:
        """Connect, shake hands, CONNECT and wait for CONNACK; ConnectionFault when any of it fails."""
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    self._socket = await self._connected_socket()
                    await self._shake_hands(self._socket)
                except OSError as error:
                    raise connect_fault(error, self.endpoint) from error
                if is_slowloris:
                    await self._drip(self._socket)
                self._client.prepared = self._socket
                self._note(self._client.reconnect())
                await self._connack
        except TimeoutError:
            self._fail(ConnectionFault(Reason.CONNECT_TIMEOUT, f"{self.endpoint} did not answer in {timeout_s:g} s"))
        except ConnectionFault as fault:
            self._fail(fault)
        except asyncio.CancelledError:
            self.abort()
            raise
        if self.fault is not None:
            self.abort()
            raise self.fault

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> int:
        """Send; the packet id that `on_acknowledged` will name (QoS 0: once it is written)."""
        return self._client.publish(topic, payload, qos=qos, retain=retain).mid

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        """Ask for a filter; the answer goes to `on_suback`."""
        self._client.subscribe(topic_filter, qos)

    def send_raw(self, data: bytes) -> None:
        """Bytes that paho would not send, straight into TLS."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(data)

    def stop_reading(self) -> None:
        """From now on nothing that the gateway sends is read."""
        if self._socket is not None and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)

    def misc(self) -> None:
        """Keep alive; to be called about once a second."""
        if self.fault is None:
            self._note(self._client.loop_misc())

    def close(self) -> None:
        """DISCONNECT in order, so that the will does not fire."""
        self._client.on_disconnect = None  # an end of ours is no loss
        with contextlib.suppress(OSError, ValueError):
            self._client.disconnect()
            self._client.loop_write()  # paho leaves it to the loop, which gets no turn before the socket is closed
        self.abort(is_reset=False)

    def abort(self, *, is_reset: bool = True) -> None:
        """Let go of the socket without a word; with a RST unless told otherwise."""
        sock = self._socket
        if sock is None or sock.fileno() < 0:
            return
        self._forget(sock)
        with contextlib.suppress(OSError):
            if is_reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()

    # --- TCP and TLS ---

    async def _connected_socket(self) -> ssl.SSLSocket:
        infos = await self._loop.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = infos[0]
        raw = socket.socket(family, kind, protocol)
        try:
            raw.setblocking(False)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if family == socket.AF_INET and ipaddress.ip_address(address[0]).is_loopback:
                # A gateway on this machine sees one address per device, as it would in the field: its limits per
                # address would otherwise take the whole fleet for one peer.
                raw.bind((str(ipaddress.IPv4Address(FIRST_LOOPBACK + self._number % 0xFFFF)), 0))
            await self._loop.sock_connect(raw, address)
            return self._context.wrap_socket(raw, server_hostname=self.endpoint.host, do_handshake_on_connect=False)
        except BaseException:
            raw.close()
            raise

    async def _shake_hands(self, sock: ssl.SSLSocket) -> None:
        while True:
            try:
                sock.do_handshake()
            except ssl.SSLWantReadError:
                await self._ready(sock, self._loop.add_reader, self._loop.remove_reader)
            except ssl.SSLWantWriteError:
                await self._ready(sock, self._loop.add_writer, self._loop.remove_writer)
            else:
                return

    async def _ready(self, sock: ssl.SSLSocket, add: Callable[..., Any], remove: Callable[..., Any]) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        add(sock, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            remove(sock)

    async def _drip(self, sock: ssl.SSLSocket) -> None:
        """A CONNECT byte by byte, much too slowly, until the gateway has had enough."""
        packet = encode_connect(Connect(self.wish.client_id, True, 60, None, None, None))
        for byte in packet * 100:
            try:
                sock.send(bytes((byte,)))
                if sock.recv(1) == b"":
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                await asyncio.sleep(DRIP_S)
            except OSError as error:
                raise lost_fault(error, self.endpoint, was_accepted=False) from error

    # --- paho ---

    def _prepare(self) -> _PreparedClient:
        self._context.sslsocket_class = BoundedSocket
        client = _PreparedClient(
            CallbackAPIVersion.VERSION2,
            client_id=self.wish.client_id,
            clean_session=self.wish.clean_session,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.max_inflight_messages_set(0)  # no limit: what is unacknowledged is bounded by the device
        if self.wish.will_topic:
            client.will_set(self.wish.will_topic, self.wish.will_payload, qos=1, retain=self.wish.will_retain)
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = lambda client, userdata, sock: self._forget(sock)
        client.on_socket_register_write = self._on_wants_to_write
        client.on_socket_unregister_write = self._on_has_written
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = lambda client, userdata, mid, code, properties: self._ears.on_acknowledged(mid)
        client.on_subscribe = lambda client, userdata, mid, codes, properties: self._ears.on_suback(
            [code.value for code in codes]
        )
        client.on_message = lambda client, userdata, message: self._ears.on_message(
            message.topic, bytes(message.payload), message.dup
        )
        client.connect_async(self.endpoint.host, self.endpoint.port, keepalive=self.wish.keep_alive_s)
        return client

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:
        self._loop.add_reader(sock, self._on_readable)

    def _on_wants_to_write(self, client: Any, userdata: Any, sock: Any) -> None:
        self._loop.add_writer(sock, lambda: self._note(self._client.loop_write()))

    def _on_has_written(self, client: Any, userdata: Any, sock: Any) -> None:
        if sock.fileno() >= 0:  # paho says it once more of a socket that is closed, when it is collected itself
            self._loop.remove_writer(sock)

    def _forget(self, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)

    def _on_readable(self) -> None:
        self._note(self._client.loop_read())
        sock = self._socket
        while self.fault is None and sock is not None and sock.fileno() >= 0 and sock.pending():
            self._note(self._client.loop_read())

    def _on_connect(self, client: Any, userdata: Any, flags: Any, code: Any, properties: Any) -> None:
        if code.is_failure:
            self._fail(connack_fault(code.value, self.endpoint))
            return
        self.is_accepted, self.is_session_present = True, bool(flags.session_present)
        if not self._connack.done():
            self._connack.set_result(None)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, code: Any, properties: Any) -> None:
        is_protocol = code.value == DISCONNECT_PROTOCOL_ERROR
        self._note(MQTTErrorCode.MQTT_ERR_PROTOCOL if is_protocol else MQTTErrorCode.MQTT_ERR_CONN_LOST)

    def _note(self, code: MQTTErrorCode) -> None:
        if code == MQTTErrorCode.MQTT_ERR_SUCCESS or self.fault is not None:
            return
        if code == MQTTErrorCode.MQTT_ERR_PROTOCOL and not self.is_accepted:
            self._fail(connack_fault(SPEAKS_NO_MQTT_311, self.endpoint))
            return
        failure = self._socket.failure if isinstance(self._socket, BoundedSocket) else None
        self._fail(lost_fault(failure, self.endpoint, was_accepted=self.is_accepted))

    def _fail(self, fault: ConnectionFault) -> None:
        if self.fault is not None:
            return
        self.fault = fault
        if not self._connack.done():
            self._connack.set_result(None)
        if self.is_accepted:
            self._ears.on_lost(fault)
