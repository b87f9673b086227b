"""The TLS socket that paho gets: it takes no packet without a limit, and remembers why it failed.

paho asks a socket for the whole rest of a packet, up to 256 MiB, and reports every failure as a loss without a reason.
In TLS 1.3 a refused certificate shows only after the handshake, at the first read.
"""

from __future__ import annotations

import errno
import ssl
from typing import Any, Final

from mtls.terminal import sanitise
from mtls.tls import explain_ssl_error

MAX_PACKET_BYTES: Final = 1024 * 1024  # of what the upstream sends


class BoundedSocket(ssl.SSLSocket):
    """`failure` is what ended it, None while it works."""

    failure: OSError | None = None

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()  # paho would leave it to the garbage collector
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            if buflen > MAX_PACKET_BYTES:  # paho asks for the whole rest of a packet
                raise OSError(errno.EMSGSIZE, f"it sent a packet of more than {MAX_PACKET_BYTES} bytes")  # noqa: TRY301
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            self.failure = error
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            self.failure = error
            raise


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
