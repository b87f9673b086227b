"""A TCP socket that listens, the same way for every port of the gateway."""

from __future__ import annotations

import socket

from mtls.errors import Fault

TAKEN = "is another program on that port? see `ss -ltnp`, or choose another"


def listening_socket(host: str, port: int, *, key: str, backlog: int, hint: str = TAKEN) -> socket.socket:
    """A non-blocking listening socket; Fault naming the configuration `key` when it cannot be had.

    An IPv6 address stands for IPv6 only, so that `0.0.0.0` and `[::]` can be bound side by side.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise Fault(f"cannot listen on {key} {host}:{port}: {error.strerror or error}", hint=hint) from error
    return sock
