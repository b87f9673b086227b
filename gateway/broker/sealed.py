"""A connected socket with TLS beside it: two memory BIOs, one for what came from the peer, one for what it is to get.

So a step of the handshake is one call, which any thread can make: take what has come, let OpenSSL work without the
interpreter's lock, send its answer. When a handshake fails the answer is the alert, and it is sent like any other, so
that a refused client learns why. What comes after the handshake is `tls_stream.py`'s.

It does not wait, and does not judge a certificate beyond what the context demands (`mtls/tls.py`).
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from typing import Final

STEP_BYTES: Final = 16384  # taken from the peer in one step; a client's flight with its chain is 2 to 4 KiB


class Sealed:
    """A non-blocking socket and the TLS state of its connection, with one user at a time."""

    __slots__ = ("incoming", "outgoing", "sock", "tls")

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming = ssl.MemoryBIO()  # bytes of the peer that TLS has not taken yet
        self.outgoing = ssl.MemoryBIO()  # bytes of TLS for the peer
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def advance(self) -> int:
        """One step of the handshake: EPOLLIN or EPOLLOUT for what the next one waits for, 0 when it is complete.

        Raises OSError, ssl.SSLError among them, when it has failed; the alert is sent by then. A client's first bytes
        are often there when its handshake is complete: they are in `incoming` then, and nobody has looked at them.
        """
        self._receive()
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            complete = False
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                self._send()
            raise
        else:
            complete = True
        self._send()
        if self.outgoing.pending:
            return select.EPOLLOUT
        if complete and not self.incoming.pending:
            with contextlib.suppress(OSError):  # nothing there yet, or its end, which whoever reads next will see
                self.incoming.write(self.sock.recv(STEP_BYTES))
        return 0 if complete else select.EPOLLIN

    def _receive(self) -> None:
        try:
            received = self.sock.recv(STEP_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        if received:
            self.incoming.write(received)
        else:
            self.incoming.write_eof()

    def _send(self) -> None:
        """Send what TLS has to say; what the socket does not take stays first in line."""
        data = self.outgoing.read()
        if not data:
            return
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        self.outgoing.write(data[sent:])
