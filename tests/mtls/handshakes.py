"""Real TLS handshakes over a socket pair: the standard library's client against its server."""

from __future__ import annotations

import socket
import ssl
import threading
from dataclasses import dataclass

from mtls.tls import proven_issuer

TIMEOUT_S = 10


@dataclass(frozen=True)
class Side:
    """What one side saw: the failure, or the facts of the connection."""

    error: Exception | None = None
    version: str | None = None
    cipher: str = ""
    peer_der: bytes | None = None
    proven_issuer: bytes | None = None
    session: ssl.SSLSession | None = None
    session_reused: bool | None = None
    tickets: int = 0

    @property
    def is_up(self) -> bool:
        return self.error is None


def handshake(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    *,
    server_hostname: str | None = "localhost",
    session: ssl.SSLSession | None = None,
) -> tuple[Side, Side]:
    """One connection: handshake, one byte from the server, orderly close. What the server and the client saw.

    The client reads: with TLS 1.3 it learns of a refusal only then.
    """
    ours, theirs = socket.socketpair()
    seen: list[Side] = []

    def serve() -> None:
        try:
            with ours, server.wrap_socket(ours, server_side=True) as connection:
                seen.append(_facts(connection))
                connection.sendall(b"!")
                connection.unwrap()
        except Exception as error:
            seen[:] = seen or [Side(error)]

    for end in (ours, theirs):
        end.settimeout(TIMEOUT_S)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with theirs, client.wrap_socket(theirs, server_hostname=server_hostname, session=session) as connection:
            if connection.recv(1):
                client_side = _facts(connection)
                connection.unwrap()
            else:
                client_side = Side(EOFError("closed without a byte"))
    except Exception as error:
        client_side = Side(error)
    thread.join(TIMEOUT_S)
    return seen[0], client_side


def _facts(connection: ssl.SSLSocket) -> Side:
    cipher = connection.cipher()
    session = connection.session
    return Side(
        version=connection.version(),
        cipher=cipher[0] if cipher else "",
        proven_issuer=proven_issuer(connection),
        peer_der=connection.getpeercert(binary_form=True),
        session=session,
        session_reused=connection.session_reused,
        tickets=int(session.has_ticket) if session else 0,
    )
