"""Sockets: accepts TCP, makes TLS handshakes within limits of number and time, and moves bytes.

A connection is refused, never queued, beyond `max_connections` or `max_handshakes_per_address`; beyond
`max_handshakes` the listener stops accepting and the kernel's backlog holds the rest for a moment.
No byte of MQTT is read before the handshake with a required client certificate is complete.

Handshakes are made by a few threads (`handshaking.py`), so that a storm of reconnects uses every core and the loop
goes on serving. It knows nothing of MQTT: what comes after the handshake is the broker's (`Opened`). Two callbacks
of the event loop do the work afterwards, `data_received` and the broker's flush; no connection has a task.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from gateway.broker.handshaking import Handshake, Handshaker
from gateway.broker.tls_stream import CLOSE_GRACE_S, TlsStream
from gateway.listening import listening_socket, neighbourhood
from mtls.errors import Reason, Refusal
from mtls.tls import explain_ssl_error

if TYPE_CHECKING:
    from gateway.broker.connection import Connection
    from gateway.broker.poller import Poller

BACKLOG = 1024
ACCEPT_BURST = 64  # sockets taken per readiness event, so that a storm does not starve the data
ACCEPT_PAUSE_S = 1.0  # when the process is out of descriptors

log = logging.getLogger("mqtt_gateway.transport")


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Bounds on connections before MQTT begins."""

    max_connections: int
    max_handshakes: int
    max_handshakes_per_address: int
    handshake_timeout_s: float


class Opened(Protocol):
    """What the listener asks of the broker."""

    poller: Poller  # reads and writes of its connections

    def opened(self, stream: TlsStream, handshake: Handshake) -> Connection | None:
        """A handshake is complete: judge the certificate; None refuses and the stream is closing already."""

    def received(self, connection: Connection, data: bytes) -> None:
        """Bytes arrived."""

    def unblocked(self, connection: Connection) -> None:
        """The peer has taken what was written to it."""

    def lost(self, connection: Connection, error: Exception | None) -> None:
        """The transport is closed."""

    def turned_away(self, address: str, refusal: Refusal) -> None:
        """A connection ended before MQTT began."""


class Client:
    """One accepted connection after its handshake: between its stream and the broker."""

    __slots__ = ("_broker", "_connection", "_released")

    def __init__(self, broker: Opened, released: Callable[[], None]) -> None:
        self._broker = broker
        self._released = released
        self._connection: Connection | None = None

    def start(self, stream: TlsStream, handshake: Handshake) -> None:
        """Have the certificate judged; bytes are taken only from one that is admitted, also those read already."""
        stream.start(self)
        try:
            self._connection = self._broker.opened(stream, handshake)
        except Exception:
            stream.abort()
            raise
        stream.deliver()

    def refuse(self, stream: TlsStream) -> None:
        """Close in order what never was a connection, so that the peer can read the alert."""
        stream.start(self)
        stream.close()

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._connection is not None:
            self._broker.received(self._connection, data)

    def pause_writing(self) -> None:
        """The peer does not take what is written."""
        if self._connection is not None:
            self._connection.blocked = True

    def resume_writing(self) -> None:
        """The peer has caught up."""
        if self._connection is not None:
            self._connection.blocked = False
            self._broker.unblocked(self._connection)

    def connection_lost(self, error: Exception | None) -> None:
        """The stream is closed."""
        if self._connection is not None:
            self._broker.lost(self._connection, error)
            self._connection = None
        self._released()


class Listener:
    """The mutual-TLS listener. `context` gives the TLS context in force, so that a reload needs no new listener."""

    def __init__(
        self,
        broker: Opened,
        binds: Sequence[tuple[str, int]],
        limits: TransportLimits,
        context: Callable[[], ssl.SSLContext],
    ) -> None:
        self._broker = broker
        self._binds = tuple(binds)
        self._limits = limits
        self._context = context
        self._sockets: list[socket.socket] = []
        self._handshakes: Counter[str] = Counter()  # by neighbourhood
        self._handshaking = 0
        self._handshaker = Handshaker(self._handshaken, limits.handshake_timeout_s)
        self._paused = False
        self._idle: asyncio.Future[None] | None = None
        self.connections = 0  # open connections, handshaking ones included
        self.handshakes = 0  # finished ones
        self.handshake_failures: Counter[Reason] = Counter()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Bound addresses; port 0 is resolved."""
        return [cast("tuple[str, int]", sock.getsockname()[:2]) for sock in self._sockets]

    def open(self) -> None:
        """Bind and listen on every address; Fault when one cannot be had."""
        for host, port in self._binds:
            self._sockets.append(listening_socket(host, port, key="[listener] bind", backlog=BACKLOG))
        self._handshaker.open()
        self._watch()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.add_reader(sock.fileno(), self._accept, sock)

    def _unwatch(self) -> None:
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.remove_reader(sock.fileno())

    async def close(self) -> None:
        """Stop listening, abandon unfinished handshakes."""
        if self._sockets:
            self._unwatch()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        for handshake in self._handshaker.close():
            handshake.sealed.sock.close()
            self._abandoned(handshake.address)

    async def drained(self) -> None:
        """Wait for the last connection to be closed in order; who does not answer is cut at the end of the grace."""
        if self.connections:
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._idle}, timeout=2 * CLOSE_GRACE_S)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPT_BURST):
            if self._handshaking >= self._limits.max_handshakes:
                self._paused = True
                self._unwatch()
                return
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors: the rest stays in the backlog, and asking on would be a loop
                log.warning("cannot accept for %s s: %s", ACCEPT_PAUSE_S, error)
                self._paused = True
                self._unwatch()
                asyncio.get_running_loop().call_later(ACCEPT_PAUSE_S, self._go_on)
                return
            self._admit_socket(sock, str(address[0]))

    def _admit_socket(self, sock: socket.socket, address: str) -> None:
        if self.connections >= self._limits.max_connections:
            reason = Reason.TOO_MANY_CONNECTIONS
        elif self._handshakes[neighbourhood(address)] >= self._limits.max_handshakes_per_address:
            reason = Reason.TOO_MANY_HANDSHAKES
        else:
            self._begin(sock, address)
            return
        sock.close()
        self._broker.turned_away(address, Refusal(reason))

    def _begin(self, sock: socket.socket, address: str) -> None:
        self.connections += 1
        self._handshaking += 1
        self._handshakes[neighbourhood(address)] += 1
        sock.setblocking(False)
        try:
            self._handshaker.begin(sock, self._context(), address)
        except OSError as error:  # gone already
            sock.close()
            self._failed(address, error)
            self._abandoned(address)

    def _handshaken(self, handshake: Handshake) -> None:
        """A handshake has ended; afterwards the stream lives by itself."""
        address, error = handshake.address, handshake.error
        if error is None:
            self.handshakes += 1
            self._over(address)
            Client(self._broker, self._released).start(self._stream(handshake), handshake)
            return
        self._failed(address, error)
        if isinstance(error, ssl.SSLError):  # its place is taken until the peer has had a moment to read the alert
            Client(self._broker, lambda: self._abandoned(address)).refuse(self._stream(handshake))
        else:
            handshake.sealed.sock.close()
            self._abandoned(address)

    def _stream(self, handshake: Handshake) -> TlsStream:
        return TlsStream(handshake.sealed, self._broker.poller)

    def _failed(self, address: str, error: Exception) -> None:
        refusal = _refusal_of(error)
        self.handshake_failures[refusal.reason] += 1
        self._broker.turned_away(address, refusal)

    def _over(self, address: str) -> None:
        """A handshake takes no place any more."""
        self._handshaking -= 1
        near = neighbourhood(address)
        self._handshakes[near] -= 1
        if not self._handshakes[near]:
            del self._handshakes[near]
        self._go_on()

    def _abandoned(self, address: str) -> None:
        self._over(address)
        self._released()

    def _released(self) -> None:
        self.connections -= 1
        if not self.connections and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _go_on(self) -> None:
        """Accept again after a pause."""
        if self._paused and self._sockets:
            self._paused = False
            self._watch()


def _refusal_of(error: Exception) -> Refusal:
    """Why a handshake failed, as a refusal."""
    if isinstance(error, TimeoutError):
        return Refusal(Reason.HANDSHAKE_TIMEOUT)
    reason, sentence, _ = explain_ssl_error(error)
    return Refusal(reason, sentence)
