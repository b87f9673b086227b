"""One TLS handshake over a connected socket, watched from the client's side: messages, times, bytes, and how it ended.

A handshake that fails is a result here, not an exception. The messages come from CPython's private
`SSLContext._msg_callback`, in one place (`_watch`); where it is missing the result holds no messages and the rest of
it all the same. What they mean is judged elsewhere (`handshake_verdict.py`).

With TLS 1.3 the client is done before the server has looked at its certificate; a refusal comes as an alert at the
first read, an acceptance as nothing at all. So after the handshake we listen for a while, then say close_notify and
listen again: a server that ends the connection in answer to that had read past our Finished, and would have sent its
alert before. What is not known even then: whether it would refuse this certificate by rules above TLS.

Limits: one deadline for the whole handshake, bytes from the peer, number of messages.
Sources: RFC 8446 sections 4.4.2.4, 4.6.2 and 6.1, appendix E.1.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

from mtls.handshake_messages import NOT_FATAL, Alert, Content, read_alert, read_message

HANDSHAKE_TIMEOUT_S: Final = 10.0  # as long as the gateway gives its clients
SETTLE_MIN_S: Final = 1.0  # how long we listen for an alert before we say goodbye: this, or three answers' time
SETTLE_MAX_S: Final = 3.0
GOODBYE_S: Final = 3.0  # how long we wait for the end of the connection after our close_notify
MAX_RECEIVED_BYTES: Final = 262_144  # OpenSSL takes 100 KiB of certificates; a server that sends more is none
MAX_MESSAGES: Final = 64  # a full handshake has about 12
_RECORDS: Final = frozenset({20, 21, 22, 23})  # first byte of any TLS record
FIRST_BYTES: Final = 64

T = TypeVar("T")


class End(StrEnum):
    """How the time after the handshake ended."""

    NOT_REACHED = "not_reached"  # the handshake failed
    REFUSED = "refused"  # the server sent an alert
    CLOSED = "closed"  # the server ended the connection by itself, without an alert
    ANSWERED = "answered"  # the server ended the connection in answer to our close_notify, or sent data
    SILENT = "silent"  # neither an alert nor an end within the time limit


@dataclass(frozen=True, slots=True)
class Message:
    """One handshake message or alert; `at_ms` since the socket was connected."""

    at_ms: float
    is_ours: bool
    name: str
    size: int
    content: Content


@dataclass(frozen=True, slots=True)
class Handshake:
    """What happened. `error` is None when the handshake was completed; `leaf` is the server's certificate as DER."""

    messages: tuple[Message, ...]
    is_watched: bool
    error: Exception | None
    end: End
    version: str
    cipher: str
    leaf: bytes | None
    first_bytes: bytes
    sent_bytes: int
    received_bytes: int
    handshake_ms: float

    def first(self, kind: type[T], *, ours: bool = False) -> T | None:
        """The content of the first message of a kind from one side."""
        return next((m.content for m in self.messages if m.is_ours is ours and isinstance(m.content, kind)), None)

    @property
    def alert(self) -> Alert | None:
        """The alert with which the server ended the connection."""
        alerts = [m.content for m in self.messages if not m.is_ours and isinstance(m.content, Alert)]
        return next((alert for alert in alerts if alert.code not in NOT_FATAL), None)

    @property
    def is_tls(self) -> bool:
        """The peer's first byte begins a TLS record."""
        return bool(self.first_bytes) and self.first_bytes[0] in _RECORDS


class TooMuch(ConnectionError):
    """The peer sent more than any handshake needs."""


def perform(
    sock: socket.socket,
    context: ssl.SSLContext,
    server_name: str,
    *,
    timeout_s: float = HANDSHAKE_TIMEOUT_S,
    goodbye_s: float = GOODBYE_S,
    clock: Callable[[], float] = time.monotonic,
) -> Handshake:
    """Make one handshake on a connected socket and say goodbye; the socket stays the caller's to close.

    `context` must be a new one: it is watched from now on. The server's name is verified as the context says.
    """
    started = clock()
    seen: list[Message] = []
    is_watched = _watch(context, seen, lambda: (clock() - started) * 1000)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    wire = _Wire(sock, incoming, outgoing, clock, started + timeout_s)
    error: Exception | None = None
    try:
        wire.drive(tls.do_handshake)
    except OSError as failure:  # ssl.SSLError, TimeoutError and TooMuch are OSErrors
        error = failure
    handshake_s = clock() - started
    version, cipher, leaf = tls.version() or "", tls.cipher(), _leaf(tls)
    end, late = _listen(tls, wire, seen, goodbye_s) if error is None else (End.NOT_REACHED, None)
    return Handshake(
        messages=tuple(m for m in seen if not (wire.is_cut and m.is_ours and m.content == _OF_A_CUT)),
        is_watched=is_watched,
        error=error or late,
        end=end,
        version=version.replace("TLSv", "TLS "),
        cipher=cipher[0] if cipher else "",
        leaf=leaf,
        first_bytes=wire.first_bytes,
        sent_bytes=wire.sent,
        received_bytes=wire.received,
        handshake_ms=handshake_s * 1000,
    )


def _watch(context: ssl.SSLContext, seen: list[Message], now_ms: Callable[[], float]) -> bool:
    """Have every message noted in `seen`; False when this Python has no such callback."""
    versions = [int(ssl.TLSVersion.TLSv1_2)]

    def note(_conn: Any, direction: str, version: int, content_type: int, _kind: Any, data: bytes) -> None:
        if len(seen) >= MAX_MESSAGES:
            return
        is_ours = direction == "write"
        if content_type == _HANDSHAKE:
            versions[0] = int(version)
            name, content = read_message(data, versions[0])
            seen.append(Message(now_ms(), is_ours, name, len(data), content))
        elif content_type == _ALERT:
            seen.append(Message(now_ms(), is_ours, "alert", len(data), read_alert(data)))

    if not hasattr(ssl.SSLContext, "_msg_callback"):
        return False
    watched: Any = context
    watched._msg_callback = note
    return True


# decode_error, which OpenSSL writes to a connection that the peer has cut: nobody reads it
_OF_A_CUT: Final = Alert(50)
_ALERT: Final = 21
_HANDSHAKE: Final = 22


@dataclass(slots=True)
class _Wire:
    """Moves bytes between a socket and the TLS library until a deadline."""

    sock: socket.socket
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    clock: Callable[[], float]
    deadline: float
    sent: int = 0
    received: int = 0
    first_bytes: bytes = b""
    first_answer_s: float = 0.0
    is_cut: bool = False
    _begun: float = 0.0

    def drive(self, step: Callable[[], T]) -> T:
        """Call `step` until it needs no more bytes; raises what it or the socket raises, TimeoutError at the end."""
        self._begun = self._begun or self.clock()
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._send()
                self._receive()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._send()  # our alert: the server's log should say why
                raise
            else:
                self._send()
                return result

    def _send(self) -> None:
        data = self.outgoing.read()
        if data:
            self.sock.settimeout(self._left())
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its alert may still wait to be read
                self.sock.sendall(data)
            self.sent += len(data)

    def _receive(self) -> None:
        self.sock.settimeout(self._left())
        data = self.sock.recv(16384)
        if not self.received:
            self.first_answer_s = self.clock() - self._begun
            self.first_bytes = data[:FIRST_BYTES]
        self.received += len(data)
        if self.received > MAX_RECEIVED_BYTES:
            raise TooMuch
        if data:
            self.incoming.write(data)
        else:
            self.is_cut = True
            self.incoming.write_eof()

    def _left(self) -> float:
        left = self.deadline - self.clock()
        if left <= 0:
            raise TimeoutError("the deadline of the handshake has passed")
        return left


def _listen(tls: ssl.SSLObject, wire: _Wire, seen: list[Message], goodbye_s: float) -> tuple[End, Exception | None]:
    """Wait for an alert, say close_notify, wait for the end: how it went, and the error that carried an alert."""
    wire.deadline = wire.clock() + min(SETTLE_MAX_S, max(SETTLE_MIN_S, 3 * wire.first_answer_s))
    try:
        data = wire.drive(lambda: tls.read(1))
    except TimeoutError:
        pass  # nothing came: that is what acceptance looks like
    except OSError as error:
        return _ended(error, seen, End.CLOSED)
    else:
        return (End.ANSWERED, None) if data else (End.CLOSED, None)
    wire.deadline = wire.clock() + goodbye_s
    try:
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()  # says goodbye; waiting in it would swallow an alert that comes instead of an answer
        wire.drive(lambda: tls.read(1))
    except TimeoutError:
        return End.SILENT, None
    except OSError as error:
        return _ended(error, seen, End.ANSWERED)
    return End.ANSWERED, None


def _ended(error: OSError, seen: list[Message], otherwise: End) -> tuple[End, Exception | None]:
    alerted = any(not m.is_ours and isinstance(m.content, Alert) and m.content.code not in NOT_FATAL for m in seen)
    if alerted or (isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")):
        return End.REFUSED, error
    return otherwise, None


def _leaf(tls: ssl.SSLObject) -> bytes | None:
    try:
        return tls.getpeercert(binary_form=True)
    except ValueError:  # the handshake did not get that far
        return None
