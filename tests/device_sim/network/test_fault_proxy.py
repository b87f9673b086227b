"""The fault proxy between plain sockets: every figure of a network does what its name says, and nothing else does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from device_sim.network.fault_proxy import Network, ThreadedProxy
from tests.device_sim.processes import wait_for

DEADLINE_S = 10.0


class Echo:
    """A server that sends back what it gets and counts it."""

    def __init__(self) -> None:
        self.received = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(65536):
                    self.received += len(data)
                    peer.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def make_proxy(echo: Echo) -> Iterator[Callable[..., ThreadedProxy]]:
    started: list[ThreadedProxy] = []

    def make(seed: int = 0, **figures: float) -> ThreadedProxy:
        proxy = ThreadedProxy("127.0.0.1", echo.port, network=Network(**figures), seed=seed)  # type: ignore[arg-type]
        started.append(proxy)
        return proxy.__enter__()

    yield make
    for proxy in started:
        proxy.__exit__()


def connected(proxy: ThreadedProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE_S)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            break
        data += piece
    return data


def send_quietly(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


def is_reset(sock: socket.socket) -> bool:
    """Read to the end; whether the connection was broken rather than kept."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


Maker = Callable[..., ThreadedProxy]


def test_a_perfect_network_forwards_every_byte_and_the_end(make_proxy: Maker) -> None:
    """The twin of every fault: half a megabyte comes back whole, then the stream ends."""
    data = bytes(range(256)) * 2048
    with connected(make_proxy()) as sock:
        threading.Thread(target=sock.sendall, args=(data,), daemon=True).start()
        assert read_exactly(sock, len(data)) == data
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_latency_is_added_in_each_direction_and_keeps_the_order(make_proxy: Maker) -> None:
    """100 ms there and 100 ms back, jitter or not."""
    with connected(make_proxy(latency_s=0.1, jitter_s=0.02)) as sock:
        started = time.monotonic()
        for number in range(20):
            sock.sendall(bytes((number,)))
        assert read_exactly(sock, 20) == bytes(range(20))
        assert 0.2 <= time.monotonic() - started < 2


def test_bandwidth_paces_each_direction(make_proxy: Maker) -> None:
    """60 kB through 100 kB/s, there and back, take as long as the line needs."""
    with connected(make_proxy(bytes_per_s=100_000)) as sock:
        started = time.monotonic()
        threading.Thread(target=sock.sendall, args=(bytes(60_000),), daemon=True).start()
        assert len(read_exactly(sock, 60_000)) == 60_000
        assert time.monotonic() - started > 0.4


@pytest.mark.parametrize("at", [1, 1000, 20_000])
def test_a_cut_at_byte_n_lets_exactly_n_bytes_through(make_proxy: Maker, echo: Echo, at: int) -> None:
    """The server gets N bytes, the client a reset."""
    with connected(make_proxy(cut_at_byte=at)) as sock:
        threading.Thread(target=send_quietly, args=(sock, bytes(40_000)), daemon=True).start()
        assert is_reset(sock)
    wait_for("the server's bytes", lambda: echo.received >= at)
    assert echo.received == at


def test_a_reset_rate_of_one_resets_at_the_first_byte_and_zero_never(make_proxy: Maker) -> None:
    """A chance of 1 is certain."""
    with connected(make_proxy(reset_rate=1.0)) as sock:
        sock.sendall(b"x")
        assert is_reset(sock)
    with connected(make_proxy(reset_rate=0.0)) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"


def test_the_same_seed_resets_after_the_same_number_of_chunks(make_proxy: Maker) -> None:
    """A run with resets repeats."""

    def chunks_until_reset(seed: int) -> int:
        with connected(make_proxy(seed=seed, reset_rate=0.1)) as sock:
            for number in range(1000):
                try:
                    sock.sendall(b"x")
                    if sock.recv(1) == b"":
                        return number
                except ConnectionError:
                    return number
        return -1

    counted = [chunks_until_reset(seed) for seed in (1, 1, 2, 2, 3)]
    assert counted[0] == counted[1]
    assert counted[2] == counted[3]
    assert len(set(counted)) > 1
    assert -1 not in counted


def test_half_open_holds_bytes_and_new_connections_until_it_is_over(make_proxy: Maker) -> None:
    """Nothing is forwarded, nothing is closed, and what was held comes through afterwards."""
    proxy = make_proxy()
    with connected(proxy) as old:
        old.sendall(b"a")
        assert old.recv(1) == b"a"
        proxy.set(is_half_open=True)
        old.sendall(b"b")
        old.settimeout(0.3)
        with pytest.raises(TimeoutError):
            old.recv(1)
        with connected(proxy) as new:
            new.sendall(b"c")
            new.settimeout(0.3)
            with pytest.raises(TimeoutError):
                new.recv(1)
            proxy.restore()
            for sock, letter in ((old, b"b"), (new, b"c")):
                sock.settimeout(DEADLINE_S)
                assert sock.recv(1) == letter


def test_a_line_that_is_down_resets_newcomers_and_a_cut_ends_everybody(make_proxy: Maker) -> None:
    """Two ways to have no network."""
    proxy = make_proxy()
    with connected(proxy) as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        assert proxy.connections == 1
        assert proxy.cut() == 1
        assert is_reset(sock)
    proxy.set(is_down=True)
    with contextlib.suppress(ConnectionError), connected(proxy) as sock:
        assert is_reset(sock)


@pytest.mark.parametrize("figures", [{"reset_rate": 1.5}, {"latency_s": -1}, {"cut_at_byte": -1}])
def test_a_network_that_cannot_be_is_refused(figures: dict[str, float]) -> None:
    """Chances beyond one and negative figures do not exist."""
    with pytest.raises(ValueError):
        Network(**figures)  # type: ignore[arg-type]
