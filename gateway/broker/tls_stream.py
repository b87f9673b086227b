"""A TLS connection as the broker uses it, after its handshake: reads in batches, writes without blocking.

The socket is an `ssl.SSLSocket`, not a memory BIO behind a transport of the event loop, for two reasons. OpenSSL then
writes its alerts to the peer itself, so that a refused client learns why; and the steps of a handshake can be made in
threads (`handshaking.py`), where OpenSSL works without the interpreter's lock.

A stream lives on one loop. It reads until a record is small or the socket is empty, so that a busy publisher is
handled in one go and a quiet device costs one read. Closing is orderly (last bytes, close_notify, FIN, then what the
peer still sends is thrown away) and bounded by a grace.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Final, Protocol

RECORD_BYTES: Final = 16384  # the most plaintext of one TLS record (RFC 8446 section 5.1)
SMALL_RECORD_BYTES: Final = 1024  # a smaller record ends a batch: more is seldom waiting behind it
BATCH_BYTES: Final = 256 * 1024  # read from one peer before the others have their turn
WRITE_HIGH_BYTES: Final = 256 * 1024  # a peer with more unread bytes than this is blocked
WRITE_LOW_BYTES: Final = 64 * 1024
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
        "_descriptor",
        "_discarding",
        "_loop",
        "_lost",
        "_paused",
        "_pending",
        "_receiver",
        "_throttled",
        "_tls",
        "_writing",
    )

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self._descriptor = tls.fileno()
        self._loop = asyncio.get_running_loop()
        self._receiver: Receiver | None = None
        self._pending = bytearray()
        self._writing = False  # the loop watches for room to write
        self._throttled = False  # the receiver was told to pause
        self._paused = False  # the receiver wants no more for now
        self._closing = False
        self._discarding = False  # our side is closed; what still comes is thrown away
        self._lost = False
        self._cut: asyncio.TimerHandle | None = None

    def start(self, receiver: Receiver) -> None:
        """Report to `receiver` from now on."""
        self._receiver = receiver
        self._loop.add_reader(self._descriptor, self._readable)

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._closing

    # reading

    def _readable(self) -> None:
        if self._discarding:
            self._discard()
            return
        if self._paused:
            self._peek()
            return
        if self._closing:
            return
        chunks: list[bytes] = []
        size = 0
        ended = False
        failure: Exception | None = None
        try:
            while size < BATCH_BYTES:
                data = self._tls.read(RECORD_BYTES)
                if not data:
                    ended = True
                    break
                chunks.append(data)
                size += len(data)
                if len(data) < SMALL_RECORD_BYTES and not self._tls.pending():
                    break
            else:
                self._loop.call_soon(self._readable)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            ended, failure = True, error
        if chunks:
            self.deliver(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if ended:
            self._lose(failure)

    def deliver(self, data: bytes) -> None:
        """Hand bytes to the receiver; a fault of ours ends this connection and no other."""
        if self._receiver is None:
            return
        try:
            self._receiver.data_received(data)
        except Exception as error:
            message = "a fault while bytes of a client were handled"
            self._loop.call_exception_handler({"message": message, "exception": error})
            self._lose(error)

    def _peek(self) -> None:
        """While nothing is to be read: only the peer's end is noticed, as long as nothing stands before it."""
        try:
            if socket.socket.recv(self._tls, 1, socket.MSG_PEEK):
                self._loop.remove_reader(self._descriptor)
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
        """Read again; records that TLS holds already are read without waiting for the socket."""
        if self._paused and not self._closing:
            self._paused = False
            self._loop.add_reader(self._descriptor, self._readable)
            self._loop.call_soon(self._readable)

    # writing

    def write(self, data: bytes) -> None:
        """Write without blocking; what the peer does not take now waits."""
        if self._closing:
            return
        if self._pending:
            self._pending += data
        else:
            sent = self._send(data)
            if sent < len(data) and not self._lost:
                self._pending += data[sent:]
                self._watch_writing()
        if len(self._pending) > WRITE_HIGH_BYTES and not self._throttled and self._receiver is not None:
            self._throttled = True
            self._receiver.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Bytes that the peer has not taken yet."""
        return len(self._pending)

    def _send(self, data: bytes | bytearray) -> int:
        """Write as many records as fit; the number of bytes taken."""
        sent, size = 0, len(data)
        view = memoryview(data) if size > RECORD_BYTES else data
        try:
            while sent < size:
                sent += self._tls.write(view[sent : sent + RECORD_BYTES] if size > RECORD_BYTES else data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            self._loop.call_soon(self._lose, error)
            return size
        return sent

    def _watch_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._descriptor, self._writable)

    def _writable(self) -> None:
        chunk = bytes(self._pending[:WRITE_LOW_BYTES])
        sent = self._send(chunk)
        del self._pending[:sent]
        if self._lost:
            return
        if not self._pending:
            self._writing = False
            self._loop.remove_writer(self._descriptor)
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
        self._cut = self._loop.call_later(CLOSE_GRACE_S, self.abort)
        self._loop.remove_reader(self._descriptor)
        if not self._pending:
            self._finish()

    def _finish(self) -> None:
        """Everything is written: close_notify and FIN, then wait for the peer's end."""
        with contextlib.suppress(OSError, ValueError):
            self._tls.unwrap()
        try:
            socket.socket.shutdown(self._tls, socket.SHUT_WR)
        except OSError as error:
            self._loop.call_soon(self._lose, error)
            return
        self._discarding = True
        self._loop.add_reader(self._descriptor, self._readable)

    def _discard(self) -> None:
        try:
            while socket.socket.recv(self._tls, 65536):
                pass
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
        self._lost = self._closing = True
        self._paused = False
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)
        self._pending.clear()
        if self._cut is not None:
            self._cut.cancel()
        self._tls.close()
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.connection_lost(error)
