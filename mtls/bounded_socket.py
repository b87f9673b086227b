"""The TLS socket that every MQTT client here gets: it takes no packet without a limit, and remembers why it failed.

paho-mqtt asks a socket for the whole rest of a packet, up to 256 MiB, and reports every failure as a loss without a
reason. In TLS 1.3 a refused certificate shows only after the handshake, at the first read or as a write that fails.
A context makes such sockets when it is its `sslsocket_class`.
"""

from __future__ import annotations

import contextlib
import errno
import ssl
from typing import Any, Final

MAX_PACKET_BYTES: Final = 1024 * 1024  # of what the other side sends; the gateway's own limit is 256 KiB by default
_WAITS: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class PacketTooLarge(OSError):
    """The other side began a packet above the limit."""

    def __init__(self) -> None:
        super().__init__(errno.EMSGSIZE, f"it sent a packet of more than {MAX_PACKET_BYTES} bytes")


class BoundedSocket(ssl.SSLSocket):
    """`failure` is what ended it, None while it works."""

    failure: OSError | None = None

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except _WAITS:
            raise
        except BaseException:
            self.close()  # paho would leave it to the garbage collector
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            if buflen > MAX_PACKET_BYTES:  # paho asks for the whole rest of a packet
                raise PacketTooLarge
            return super().recv(buflen, flags)
        except _WAITS:
            raise
        except OSError as error:
            self.failure = error
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except _WAITS:
            raise
        except OSError as error:
            self.failure = error
            # A server that refused us has closed already, and its alert waits unread: it says more than the failed
            # write does. One read is enough: nothing else can stand before it.
            with contextlib.suppress(OSError):
                self.recv(1)
            raise
