"""What the service manager is told, read on a real socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.notify import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "n"))
        listening.settimeout(5)
        yield listening


def test_every_state_is_told(manager: socket.socket, tmp_path: Path) -> None:
    """One datagram per state; RELOADING carries the monotonic clock, as Type=notify-reload wants it."""
    told = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "n")})
    told.ready("serving")
    assert manager.recv(100) == b"READY=1\nSTATUS=serving"
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    told.reloading()
    state, clock = manager.recv(100).decode().splitlines()
    assert state == "RELOADING=1"
    assert 0 <= int(clock.removeprefix("MONOTONIC_USEC=")) - before < 5_000_000
    told.alive()
    assert manager.recv(100) == b"WATCHDOG=1"
    told.stopping()
    assert manager.recv(100) == b"STOPPING=1"


def test_an_abstract_socket_is_reached() -> None:
    """systemd writes the leading NUL as @."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0gateway-notify-{os.getpid()}")
        listening.settimeout(5)
        ServiceManager({"NOTIFY_SOCKET": f"@gateway-notify-{os.getpid()}"}).alive()
        assert listening.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/no/such/socket"}])
def test_without_a_service_manager_nothing_happens(environment: dict[str, str]) -> None:
    """The twin: a gateway started by hand serves all the same."""
    ServiceManager(environment).ready("serving")


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_when_it_watches_this_process(environment: dict[str, str], wanted: float | None) -> None:
    """sd_watchdog_enabled(3)."""
    assert ServiceManager(environment).watchdog_s == wanted
