"""Handshakes on threads: what silent, slow and vanished peers cost the others, judged by clients of the ssl module."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from select import EPOLLOUT

import pytest

from gateway.broker import handshaking
from gateway.broker.handshaking import Handshake, Handshaker
from mtls.tls import client_context, server_context
from mtls.trust import TrustStore
from tests.support.pki import Pki

DEADLINE_S = 10.0
LONG_S = 60.0  # a time limit that no test waits for
SILENT = 40  # many more than there are threads


class Bench:
    """A handshaker, the clients of it, and a queue of what has ended."""

    def __init__(self, pki: Pki, timeout_s: float) -> None:
        trust = TrustStore.from_pem(pki.ca_file.read_bytes(), "ca.crt")
        server, device = pki.server(), pki.device("dev-a")
        self.serving = server_context(cert_file=server.cert_file, key_file=server.key_file, trust=trust)
        self.showing = client_context(ca_file=pki.ca_file, cert_file=device.cert_file, key_file=device.key_file)
        self.showing_nothing = client_context(ca_file=pki.ca_file)
        self.handshaker = Handshaker(self.end, timeout_s)
        self.ended: asyncio.Queue[Handshake] = asyncio.Queue()
        self.sockets: list[socket.socket] = []
        self.faulty = 0  # how many of the next outcomes are met by a fault of ours

    def end(self, handshake: Handshake) -> None:
        """What the listener would be."""
        self.sockets.append(handshake.sealed.sock)
        if self.faulty:
            self.faulty -= 1
            raise RuntimeError("a fault of ours")
        self.ended.put_nowait(handshake)

    def connected(self) -> socket.socket:
        """The client's end of a connection on which a handshake has begun."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            theirs = socket.create_connection(listening.getsockname(), DEADLINE_S)
            ours, _ = listening.accept()
        ours.setblocking(False)
        self.handshaker.begin(ours, self.serving, "127.0.0.1")
        self.sockets.append(theirs)
        return theirs

    async def shake(self, data: bytes = b"", *, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """A client that has made its handshake and sent `data` right after it."""

        def shake(sock: socket.socket) -> ssl.SSLSocket:
            tls = (context or self.showing).wrap_socket(sock, server_hostname="localhost")
            tls.sendall(data)
            return tls

        tls = await asyncio.to_thread(shake, self.connected())
        self.sockets.append(tls)
        return tls

    async def outcome(self) -> Handshake:
        """The next handshake that has ended."""
        return await asyncio.wait_for(self.ended.get(), DEADLINE_S)


@asynccontextmanager
async def bench(pki: Pki, timeout_s: float = LONG_S) -> AsyncIterator[Bench]:
    made = Bench(pki, timeout_s)
    made.handshaker.open()
    try:
        yield made
    finally:
        for handshake in made.handshaker.close():
            handshake.sealed.sock.close()
        for sock in made.sockets:
            sock.close()


def threads() -> int:
    return sum(thread.name.startswith("handshake-") for thread in threading.enumerate())


def test_a_handshake_ends_on_the_loop_with_the_clients_certificate(pki: Pki) -> None:
    """The outcome is a usable connection: no error, the leaf is there, and bytes go both ways."""

    async def run() -> None:
        async with bench(pki) as made:
            client = await made.shake()
            handshake = await made.outcome()
            assert handshake.error is None
            sealed = handshake.sealed
            assert sealed.tls.getpeercert(binary_form=True)
            sealed.tls.write(b"hello")
            sealed.sock.send(sealed.outgoing.read())
            assert client.recv(5) == b"hello"

    asyncio.run(run())


def test_what_came_with_the_last_message_is_read_once(pki: Pki) -> None:
    """Bytes sent right after the handshake are either taken already or still to be read, never both and never lost."""

    async def run() -> None:
        async with bench(pki) as made:
            for _ in range(5):
                await made.shake(b"first bytes")
                sealed = (await made.outcome()).sealed
                sealed.sock.settimeout(DEADLINE_S)
                if not sealed.incoming.pending:
                    sealed.incoming.write(sealed.sock.recv(100))
                assert sealed.tls.read(100) == b"first bytes"
                assert sealed.incoming.pending == 0

    asyncio.run(run())


def test_silent_peers_occupy_no_thread(pki: Pki) -> None:
    """Many more silent peers than threads, some after half a ClientHello: the next client is served at once."""

    async def run() -> None:
        async with bench(pki) as made:
            for number in range(SILENT):
                silent = made.connected()
                if number % 2:
                    silent.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
            await made.shake()
            assert (await made.outcome()).error is None

    asyncio.run(run())


def test_peers_that_always_have_a_step_to_make_keep_no_outcome_back(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread ever finds nothing to do, and the loop is woken for who is done all the same."""
    restless: set[int] = set()
    step = handshaking._step
    monkeypatch.setattr(handshaking, "_step", lambda each: EPOLLOUT if each.descriptor in restless else step(each))

    async def run() -> None:
        async with bench(pki) as made:
            for _ in range(threads() + 2):
                busy = made.connected()
                restless.update(each.descriptor for each in made.handshaker._under_way.values())
                busy.send(b"\x16")
            await made.shake()
            assert (await made.outcome()).error is None

    asyncio.run(run())


def test_a_silent_peer_is_ended_at_the_time_limit(pki: Pki) -> None:
    """Silence, and half a ClientHello, end in a time-out that the peer sees as the end of the stream."""

    async def run() -> None:
        async with bench(pki, timeout_s=0.05) as made:
            peers = [made.connected(), made.connected()]
            peers[1].sendall(b"\x16\x03\x01\x02\x00\x01\x00")
            for _ in peers:
                handshake = await made.outcome()
                assert isinstance(handshake.error, TimeoutError)
                handshake.sealed.sock.close()
            for peer in peers:
                assert await asyncio.to_thread(end_of, peer)

    asyncio.run(run())


def end_of(peer: socket.socket) -> bool:
    """Whether the other side has ended the stream; a reset is an end as well."""
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_client_without_certificate_fails_and_reads_the_alert(pki: Pki) -> None:
    """The outcome says why, and OpenSSL has told the client already."""

    async def run() -> None:
        async with bench(pki) as made:
            client = await made.shake(context=made.showing_nothing)
            handshake = await made.outcome()
            assert isinstance(handshake.error, ssl.SSLError)
            with pytest.raises(ssl.SSLError, match="ALERT_CERTIFICATE_REQUIRED"):
                client.recv(1)

    asyncio.run(run())


def test_a_peer_that_resets_ends_its_own_handshake_only(pki: Pki) -> None:
    """A reset is an outcome like another; the client after it is served."""

    async def run() -> None:
        async with bench(pki) as made:
            vanished = made.connected()
            vanished.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            vanished.close()
            assert isinstance((await made.outcome()).error, OSError)
            await made.shake()
            assert (await made.outcome()).error is None

    asyncio.run(run())


def test_a_fault_after_one_handshake_is_reported_and_keeps_no_other_waiting(pki: Pki) -> None:
    """What raises on the loop goes to its exception handler; later outcomes come as always."""

    async def run() -> None:
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
        async with bench(pki) as made:
            made.faulty = 1
            await made.shake()
            await made.shake()
            assert (await made.outcome()).error is None
        assert [type(fault) for fault in faults] == [RuntimeError]

    asyncio.run(run())


def test_closing_ends_the_threads_and_gives_back_what_is_unfinished(pki: Pki) -> None:
    """No thread is left, whatever its peers were doing, and nothing more is reported."""

    async def run() -> None:
        made = Bench(pki, LONG_S)
        before = threads()
        made.handshaker.open()
        assert threads() > before
        peers = [made.connected() for _ in range(SILENT)]
        abandoned = made.handshaker.close()
        assert len(abandoned) == SILENT
        assert threads() == before
        assert made.ended.empty()
        for sock in (*peers, *(handshake.sealed.sock for handshake in abandoned)):
            sock.close()

    asyncio.run(run())
