"""A TLS connection as the broker uses it after its handshake: reads in batches, writes without blocking.

TLS works on two memory BIOs beside a plain socket. One `recv` takes all that the kernel has, however many records that
is, and whether there is more to decrypt is known without asking OpenSSL and being told no, which in Python costs as
much as a record. What TLS wants to tell the peer by itself (an alert, the answer to a key update) is sent from here.

A stream reads what is there, up to a bound, and reports it in one piece. Closing is orderly (last bytes, close_notify,
FIN, then what the peer still sends is thrown away) and bounded by a grace.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Final, Protocol

from gateway.broker.poller import READ, WRITE, Poller
from gateway.broker.sealed import Sealed

RECORD_BYTES: Final = 16384  # the most plaintext of one TLS record (RFC 8446 section 5.1)
RECEIVE_BYTES: Final = 16384  # of one peer in one turn; a BIO keeps the size that it once had, on an idle one too
DISCARD_BYTES: Final = 65536  # of a closed connection's peer in one turn; the grace ends it if the peer does not
SLICE_BYTES: Final = 16384  # encrypted in one go, for the same reason
WRITE_HIGH_BYTES: Final = 256 * 1024  # a peer with more unread bytes than this is blocked
WRITE_LOW_BYTES: Final = 64 * 1024
ANSWERS_MAX_BYTES: Final = 4 * 1024 * 1024  # a peer that makes TLS answer and takes none of it is cut
CLOSE_GRACE_S: Final = 1.0  # a closed connection that does not take its last bytes is cut; revoked means gone in 2 s


class Receiver(Protocol):
    """Who a stream reports to."""

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""

    def pause_writing(self) -> None:
        """The peer does not take what is written."""

    def resume_writing(self) -> None:
        """The peer has caught up."""

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is closed; called once, and last."""


class TlsStream:
    """One TLS connection after its handshake, on the running loop."""

    __slots__ = (
        "_closing",
        "_cut",
        "_discarding",
        "_incoming",
        "_lost",
        "_outgoing",
        "_paused",
        "_pending",
        "_poller",
        "_receiver",
        "_sock",
        "_throttled",
        "_tls",
        "_watched",
    )

    def __init__(self, sealed: Sealed, poller: Poller) -> None:
        self._sock = sealed.sock
        self._tls = sealed.tls
        self._incoming = sealed.incoming
        self._outgoing = sealed.outgoing
        self._poller = poller
        self._receiver: Receiver | None = None
        self._pending = bytearray()  # encrypted, not taken by the socket yet
        self._watched = 0  # what the poller watches for
        self._throttled = False  # the receiver was told to pause
        self._paused = False  # the receiver wants no more for now
        self._closing = False
        self._discarding = False  # our side is closed; what still comes is thrown away
        self._lost = False
        self._cut: asyncio.TimerHandle | None = None

    def start(self, receiver: Receiver) -> None:
        """Report to `receiver` from now on."""
        self._receiver = receiver
        self._watch(self._watched | READ)

    def deliver(self) -> None:
        """Report the bytes that came with the handshake."""
        if not self._closing:
            self._decrypt()

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._closing

    def _watch(self, events: int) -> None:
        if events != self._watched and not self._lost:
            self._watched = events
            self._poller.watch(self._sock.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        """What the poller calls: READ, WRITE or an error, which reading finds out about."""
        if events & WRITE:
            self._writable()
        if events & ~WRITE and not self._lost:
            if self._paused or self._closing:
                self._look()
            else:
                self._readable()

    # reading

    def _readable(self) -> None:
        try:
            received = self._sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if not received:
            self._lose(None)
            return
        self._incoming.write(received)
        self._decrypt()

    def _decrypt(self) -> None:
        """Report everything that can be decrypted in one piece."""
        incoming, read = self._incoming, self._tls.read
        chunks: list[bytes] = []
        ended, failure = False, None
        try:
            while incoming.pending and not ended:
                chunk = read(RECORD_BYTES)
                if chunk:
                    chunks.append(chunk)
                else:
                    ended = True  # close_notify
        except ssl.SSLWantReadError:
            pass  # the rest of a record is to come
        except OSError as error:
            ended, failure = True, error
        if self._outgoing.pending:
            self._answer()
        if chunks and self._receiver is not None:
            self._report(self._receiver, chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if ended:
            self._lose(failure)

    def _report(self, receiver: Receiver, data: bytes) -> None:
        try:
            receiver.data_received(data)
        except Exception as error:  # a fault of ours ends this connection and no other
            message = "a fault while bytes of a client were handled"
            asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
            self._lose(error)

    def _answer(self) -> None:
        """Send what TLS has to say by itself; a peer that only asks for that and takes none of it is cut."""
        self._push(self._outgoing.read())
        if len(self._pending) > ANSWERS_MAX_BYTES:
            self._lose(None)

    def _look(self) -> None:
        """While nothing is to be read: only the peer's end is noticed, as long as nothing stands before it."""
        if self._discarding:
            self._discard()
            return
        try:
            if self._sock.recv(1, socket.MSG_PEEK):
                self._watch(self._watched & ~READ)
            else:
                self._lose(None)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._lose(error)

    def pause_reading(self) -> None:
        """Read nothing until resumed; the peer feels it through TCP."""
        self._paused = not self._closing

    def resume_reading(self) -> None:
        """Read again."""
        if self._paused and not self._closing:
            self._paused = False
            self._watch(self._watched | READ)

    # writing

    def write(self, data: bytes) -> None:
        """Write without blocking; what the peer does not take now waits."""
        if self._closing:
            return
        try:
            if len(data) <= SLICE_BYTES:
                self._tls.write(data)
                encrypted = self._outgoing.read()
            else:
                encrypted = self._encrypt_long(data)
        except OSError as error:
            asyncio.get_running_loop().call_soon(self._lose, error)
            return
        self._push(encrypted)

    def _encrypt_long(self, data: bytes) -> bytes:
        view = memoryview(data)
        parts: list[bytes] = []
        for start in range(0, len(data), SLICE_BYTES):
            self._tls.write(view[start : start + SLICE_BYTES])
            parts.append(self._outgoing.read())
        return b"".join(parts)

    def _push(self, encrypted: bytes) -> None:
        """Send what the socket takes now; the rest waits for room."""
        if self._pending:
            self._pending += encrypted
        else:
            try:
                sent = self._sock.send(encrypted)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                asyncio.get_running_loop().call_soon(self._lose, error)
                return
            if sent == len(encrypted):
                return
            self._pending += encrypted[sent:]
            self._watch(self._watched | WRITE)
        if len(self._pending) > WRITE_HIGH_BYTES and not self._throttled and self._receiver is not None:
            self._throttled = True
            self._receiver.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Bytes that the peer has not taken yet."""
        return len(self._pending)

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._pending[:WRITE_LOW_BYTES])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        del self._pending[:sent]
        if not self._pending:
            self._watch(self._watched & ~WRITE)
            if self._closing:
                self._finish()
                return
        if self._throttled and len(self._pending) < WRITE_LOW_BYTES and self._receiver is not None:
            self._throttled = False
            self._receiver.resume_writing()

    # closing

    def close(self) -> None:
        """Close in order: what is pending first, cut at the end of the grace."""
        if self._closing:
            return
        self._closing = True
        self._paused = False
        self._cut = asyncio.get_running_loop().call_later(CLOSE_GRACE_S, self.abort)
        if self._pending:
            self._watch(self._watched & ~READ)
        else:
            self._finish()

    def _finish(self) -> None:
        """Everything is written: close_notify and FIN, then wait for the peer's end."""
        with contextlib.suppress(ssl.SSLError, ValueError):  # want-read: close_notify is made, the peer's is not there
            self._tls.unwrap()
        try:
            self._sock.send(self._outgoing.read())
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            asyncio.get_running_loop().call_soon(self._lose, error)
            return
        self._discarding = True
        self._watch(READ)

    def _discard(self) -> None:
        """One piece in a turn: who sends as fast as it is thrown away must not keep the loop from everybody else."""
        try:
            if self._sock.recv(DISCARD_BYTES):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self._lose(None)

    def abort(self) -> None:
        """Cut the connection now."""
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._watch(0)
        self._lost = self._closing = True
        self._paused = False
        self._pending.clear()
        if self._cut is not None:
            self._cut.cancel()
        self._sock.close()
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.connection_lost(error)
