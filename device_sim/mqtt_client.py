"""One MQTT connection of the agent: the only module here that imports paho-mqtt.

A `Connection` lives from one TCP connect to its loss and is never reused: no state of paho outlives it, and what
is unacknowledged is the outbox's to send again. Its loop is run by the caller with `step`, in one thread, on
poll() and with repeated reads while TLS holds decrypted bytes: paho's own loop uses select() and would fail from
descriptor 1024 on. paho's `connect` blocks through TCP and TLS, so both have a time limit.

Whatever ends a connection is a `ConnectionFault` with one sentence (connection_faults.py).
"""

import select
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from device_sim.connection_faults import (
    CONNECT_TIMEOUT_S,
    SPEAKS_NO_MQTT_311,
    ConnectionFault,
    Endpoint,
    connack_fault,
    connect_fault,
    lost_fault,
)
from mtls.bounded_socket import BoundedSocket
from mtls.errors import Reason

CONNACK_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 30
MAX_IN_FLIGHT = 20  # the gateway's max_inflight, and paho's own
QOS = 1
DISCONNECT_PROTOCOL_ERROR = 0x82  # MQTT 5 §3.14.2.1, as which paho reports its own MQTT_ERR_PROTOCOL


@dataclass(frozen=True, slots=True)
class State:
    """The topic that says whether the device is there: retained, and the last will."""

    topic: str
    online: bytes = b"online"
    offline: bytes = b"offline"


@dataclass(frozen=True, slots=True)
class Received:
    """A message from the gateway; it is the gateway's until `Connection.confirm`."""

    topic: str
    payload: bytes
    packet_id: int
    qos: int
    is_duplicate: bool


class Connection:
    """One connection to the gateway, made by the constructor or not at all (ConnectionFault)."""

    def __init__(
        self,
        endpoint: Endpoint,
        context: ssl.SSLContext,
        client_id: str,
        state: State,
        subscriptions: Sequence[str] = (),
    ) -> None:
        """With `subscriptions` the session persists, so that the gateway keeps what comes while we are away."""
        self.endpoint = endpoint
        self.acknowledged: list[int] = []
        self.received: list[Received] = []
        self.refused: list[str] = []  # the filters that the gateway did not grant
        self._subscriptions = tuple(subscriptions)
        self._accepted = False
        self._fault: ConnectionFault | None = None
        self._socket: object = None
        self._client = self._prepare(endpoint, context, client_id, state)
        try:
            self._client.reconnect()
        except OSError as error:
            raise connect_fault(error, endpoint) from error
        self._await_connack()
        if self._subscriptions:
            self._client.subscribe([(topic_filter, QOS) for topic_filter in self._subscriptions])

    @property
    def is_lost(self) -> bool:
        """Whether the connection is over."""
        return self._fault is not None

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> int:
        """Send; the packet id that `acknowledged` will hold once the gateway has it (QoS 0: once it is sent)."""
        return self._client.publish(topic, payload, qos=qos, retain=retain).mid

    def confirm(self, received: Received) -> None:
        """PUBACK: what the message asked for has been done."""
        self._client.ack(received.packet_id, received.qos)

    def step(self, timeout_s: float, *wakers: int) -> None:
        """Wait for the network or one of `wakers`, at most `timeout_s`; ConnectionFault when the connection is lost."""
        if self._has_pending():
            timeout_s = 0.0
        happened = self._poll(timeout_s, wakers)
        if happened & (select.POLLIN | select.POLLHUP | select.POLLERR) or self._has_pending():
            self._note(self._client.loop_read())
            while self._fault is None and self._has_pending():
                self._note(self._client.loop_read())
        if self._fault is None and (happened & select.POLLOUT or self._client.want_write()):
            self._note(self._client.loop_write())
        if self._fault is None:
            self._note(self._client.loop_misc())
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """End in order: DISCONNECT, so that the will does not fire."""
        self._client.disconnect()
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while self._fault is None and self._client.want_write() and time.monotonic() < deadline:
            self._note(self._client.loop_write())
        self.abandon()

    def abandon(self) -> None:
        """Let go of the socket without a word."""
        if isinstance(self._socket, socket.socket):
            self._socket.close()

    # --- inside ---

    def _prepare(self, endpoint: Endpoint, context: ssl.SSLContext, client_id: str, state: State) -> paho.Client:
        context.sslsocket_class = BoundedSocket
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=not self._subscriptions,  # what we send is the queue's to keep, not paho's
            manual_ack=bool(self._subscriptions),  # sound for QoS 1 only: with QoS 2 PUBREC leaves before we see it
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(MAX_IN_FLIGHT)
        client.tls_set_context(context)
        client.will_set(state.topic, state.offline, qos=QOS, retain=True)
        client.on_socket_open = self._on_socket_open
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.connect_async(endpoint.host, endpoint.port, keepalive=KEEP_ALIVE_S)
        return client

    def _await_connack(self) -> None:
        deadline = time.monotonic() + CONNACK_TIMEOUT_S
        try:
            while not self._accepted:
                left = deadline - time.monotonic()
                if left <= 0:
                    self._fault = ConnectionFault(
                        Reason.CONNECT_TIMEOUT, f"{self.endpoint} did not answer CONNECT in {CONNACK_TIMEOUT_S:g} s"
                    )
                self.step(max(0.0, left))
        except ConnectionFault:
            self.abandon()
            raise

    def _poll(self, timeout_s: float, wakers: tuple[int, ...]) -> int:
        if not isinstance(self._socket, socket.socket) or self._socket.fileno() < 0:
            return select.POLLIN
        poller = select.poll()
        poller.register(self._socket, select.POLLIN | (select.POLLOUT if self._client.want_write() else 0))
        for waker in wakers:
            poller.register(waker, select.POLLIN)
        return dict(poller.poll(max(0, round(timeout_s * 1000)))).get(self._socket.fileno(), 0)

    def _has_pending(self) -> bool:
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.fileno() >= 0 and self._socket.pending() > 0

    def _note(self, code: MQTTErrorCode) -> None:
        if code == MQTTErrorCode.MQTT_ERR_SUCCESS or self._fault is not None:
            return
        if code == MQTTErrorCode.MQTT_ERR_PROTOCOL and not self._accepted:
            # Return code 1, or no CONNACK at all: paho keeps the first to itself, to try MQTT 3.1 instead.
            self._fault = connack_fault(SPEAKS_NO_MQTT_311, self.endpoint)
            return
        failure = self._socket.failure if isinstance(self._socket, BoundedSocket) else None
        self._fault = lost_fault(failure, self.endpoint, was_accepted=self._accepted)

    def _on_socket_open(self, client: Any, userdata: Any, opened: object) -> None:
        # Kept from here on: paho drops its own reference when the very first write fails.
        self._socket = opened

    def _on_connect(self, client: Any, userdata: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        if code.is_failure:
            self._fault = connack_fault(code.value, self.endpoint)
        else:
            self._accepted = True

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        is_protocol = code.value == DISCONNECT_PROTOCOL_ERROR
        self._note(MQTTErrorCode.MQTT_ERR_PROTOCOL if is_protocol else MQTTErrorCode.MQTT_ERR_CONN_LOST)

    def _on_publish(self, client: Any, userdata: Any, mid: int, code: Any, properties: Any) -> None:
        # For QoS 0 this comes before `publish` has returned; the list does not care about the order.
        self.acknowledged.append(mid)

    def _on_message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        self.received.append(Received(message.topic, bytes(message.payload), message.mid, message.qos, message.dup))

    def _on_subscribe(self, client: Any, userdata: Any, mid: int, codes: list[ReasonCode], properties: Any) -> None:
        pairs = zip(self._subscriptions, codes, strict=False)
        self.refused += [topic_filter for topic_filter, code in pairs if code.is_failure]
