"""A TCP socket that listens, the same way for every port of the gateway, and whom a peer's address stands for."""

from __future__ import annotations

import functools
import ipaddress
import socket

from mtls.errors import Fault

TAKEN = "is another program on that port? see `ss -ltnp`, or choose another"
IPV6_HOST_BITS = 64  # a host picks any address of its /64 (RFC 4291 section 2.5.1)


@functools.lru_cache(maxsize=1024)  # of one connection it is asked several times
def neighbourhood(address: str) -> str:
    """What a limit per address counts by: an IPv4 address itself, of an IPv6 address its /64.

    Every host of an IPv6 network has 2^64 addresses there, and a limit for each of them would be none.
    """
    if ":" not in address:
        return address
    return str(ipaddress.IPv6Network((address.partition("%")[0], IPV6_HOST_BITS), strict=False))


def address_text(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # on Linux an accepted socket has it too
        sock.setblocking(False)
        sock.bind((host, port))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise Fault(
            f"cannot listen on {key} {address_text(host, port)}: {error.strerror or error}", hint=hint
        ) from error
    return sock
