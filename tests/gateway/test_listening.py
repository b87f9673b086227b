"""Ports of the gateway: IPv4 and IPv6 side by side, and a taken one named by its key."""

from __future__ import annotations

import contextlib
import socket

import pytest

from gateway.listening import listening_socket, neighbourhood
from mtls.errors import Fault


def test_ipv4_and_ipv6_listen_side_by_side_on_one_port() -> None:
    """`0.0.0.0` and `[::]`, as the listener's default has them; a client reaches the one that it asks for."""
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(listening_socket("0.0.0.0", 0, key="[x] bind", backlog=1))  # noqa: S104
        port = old.getsockname()[1]
        new = stack.enter_context(listening_socket("::", port, key="[x] bind", backlog=1))
        for address, listening in (("127.0.0.1", old), ("::1", new)):
            client = stack.enter_context(socket.create_connection((address, port), 5))
            listening.setblocking(True)
            listening.settimeout(5)
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getpeername()[:2] == client.getsockname()[:2]
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "an answer waits for no other"


@pytest.mark.parametrize(
    ("address", "counts_as"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_limit_per_address_counts_ipv6_by_its_network(address: str, counts_as: str) -> None:
    """A host has 2^64 addresses there."""
    assert neighbourhood(address) == counts_as


def test_a_taken_port_is_told_with_its_key() -> None:
    """The deny twin."""
    with (
        listening_socket("127.0.0.1", 0, key="[x] bind", backlog=1) as taken,
        pytest.raises(Fault, match=r"cannot listen on \[enrolment\] bind 127\.0\.0\.1:\d+: Address already in use"),
    ):
        listening_socket("127.0.0.1", taken.getsockname()[1], key="[enrolment] bind", backlog=1)
