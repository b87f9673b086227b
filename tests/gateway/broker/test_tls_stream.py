"""A stream after its handshake, against a TLS client whose bytes the test holds in its hand."""

from __future__ import annotations

import _ssl
import asyncio
import contextlib
import ctypes
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from gateway.broker import tls_stream
from gateway.broker.poller import Poller
from gateway.broker.sealed import Sealed
from gateway.broker.tls_stream import DISCARD_BYTES, WRITE_HIGH_BYTES, TlsStream
from mtls.tls import client_context, server_context
from mtls.trust import TrustStore
from tests.support.gateway import DEADLINE_S
from tests.support.pki import Pki

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


@pytest.fixture(scope="module")
def contexts(pki: Pki) -> Contexts:
    """The gateway's context and a device's."""
    server, device = pki.server(), pki.device("dev-a")
    trust = TrustStore.from_pem(pki.ca_file.read_bytes(), "ca.crt")
    return (
        server_context(cert_file=server.cert_file, key_file=server.key_file, trust=trust),
        client_context(ca_file=pki.ca_file, cert_file=device.cert_file, key_file=device.key_file, check_hostname=False),
    )


class Told:
    """A receiver that keeps what it is told."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.events: list[str] = []
        self.lost: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.append(error)


class Pair:
    """A stream and its peer: a TLS client over memory, and the socket between them."""

    def __init__(self, contexts: Contexts, first: bytes) -> None:
        ours, self.sock = socket.socketpair()
        ours.setblocking(False)
        self.sock.setblocking(False)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = contexts[1].wrap_bio(self.incoming, self.outgoing)
        sealed = Sealed(ours, contexts[0])
        for _ in range(4):
            if _step(self.tls) and first:
                self.tls.write(first)
                first = b""
            sealed.incoming.write(self.outgoing.read())
            _step(sealed.tls)
            self.incoming.write(sealed.outgoing.read())
        self.told = Told()
        self.turns = 0
        self.poller = Poller(self._count)
        self.poller.open()
        self.stream = TlsStream(sealed, self.poller)
        self.stream.start(self.told)
        self.stream.deliver()

    def _count(self) -> None:
        self.turns += 1

    def records(self, *plain: bytes) -> bytes:
        """One TLS record for each."""
        for piece in plain:
            self.tls.write(piece)
        return self.outgoing.read()

    async def until(self, true: Callable[[], object]) -> None:
        await until(true)

    async def read(self, size: int) -> bytes:
        """What the client decrypts, `size` bytes or up to the end."""
        plain = b""
        async with asyncio.timeout(DEADLINE_S):
            while len(plain) < size:
                try:
                    piece = self.tls.read(65536)
                    if not piece:
                        break
                    plain += piece
                except ssl.SSLWantReadError:
                    received = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
                    self.incoming.write(received) if received else self.incoming.write_eof()
        return plain


async def until(true: Callable[[], object]) -> None:
    """Let the loop turn until something has happened in it."""
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - the stream under test has no event to wait for
            await asyncio.sleep(0)


def _step(tls: ssl.SSLObject) -> bool:
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


@asynccontextmanager
async def paired(contexts: Contexts, first: bytes = b"") -> AsyncIterator[Pair]:
    pair = Pair(contexts, first)
    try:
        yield pair
    finally:
        pair.stream.abort()
        pair.poller.close()
        pair.sock.close()


def run(contexts: Contexts, script: Callable[[Pair], Awaitable[None]], first: bytes = b"") -> None:
    async def main() -> None:
        async with paired(contexts, first) as pair:
            await script(pair)

    asyncio.run(main())


def test_records_that_are_there_come_in_one_piece(contexts: Contexts) -> None:
    """Three records and a half wait in the socket: one report of three, one of the last, nothing twice."""

    async def script(pair: Pair) -> None:
        sent = pair.records(b"a" * 10, b"b" * 2000, b"c" * 7, b"d" * 500)
        pair.sock.send(sent[:-200])
        await pair.until(lambda: pair.told.pieces)
        assert pair.told.pieces == [b"a" * 10 + b"b" * 2000 + b"c" * 7]
        pair.sock.send(sent[-200:])
        await pair.until(lambda: len(pair.told.pieces) > 1)
        assert pair.told.pieces[1:] == [b"d" * 500]
        assert pair.told.lost == []

    run(contexts, script)


def test_a_record_that_comes_byte_by_byte_is_one_piece(contexts: Contexts) -> None:
    """Any split of the stream gives the same bytes."""

    async def script(pair: Pair) -> None:
        for byte in pair.records(b"hello"):
            turns = pair.turns
            pair.sock.send(bytes([byte]))
            await pair.until(partial(_beyond, pair, turns))  # type: ignore[misc]
        assert pair.told.pieces == [b"hello"]

    run(contexts, script)


def test_bytes_that_came_with_the_handshake_are_not_left_there(contexts: Contexts) -> None:
    """What the client sent right behind its Finished is reported without another byte."""

    async def script(pair: Pair) -> None:
        await pair.until(lambda: pair.told.pieces)
        assert pair.told.pieces == [b"first"]

    run(contexts, script, first=b"first")


def test_a_garbled_record_ends_the_connection_with_an_alert(contexts: Contexts) -> None:
    """What came before it is reported, then the stream is lost, and the peer is told why."""

    async def script(pair: Pair) -> None:
        sent = bytearray(pair.records(b"good", b"bad"))
        sent[-1] ^= 1
        pair.sock.send(sent)
        await pair.until(lambda: pair.told.lost)
        assert pair.told.pieces == [b"good"]
        assert isinstance(pair.told.lost[0], ssl.SSLError)
        with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
            await pair.read(1)

    run(contexts, script)


def test_a_fault_of_the_receiver_ends_this_connection_only(contexts: Contexts) -> None:
    """The loop is told, the stream is lost, the poller goes on."""

    async def script(pair: Pair) -> None:
        faults: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        other = Pair(contexts, b"")
        pair.told.data_received = lambda data: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        pair.sock.send(pair.records(b"x"))
        await pair.until(lambda: pair.told.lost)
        assert isinstance(pair.told.lost[0], ZeroDivisionError)
        assert [type(fault["exception"]) for fault in faults] == [ZeroDivisionError]
        other.sock.send(other.records(b"y"))
        await other.until(lambda: other.told.pieces)
        other.stream.abort()
        other.poller.close()
        other.sock.close()

    run(contexts, script)


def test_a_peer_that_does_not_read_is_blocked_until_it_does(contexts: Contexts) -> None:
    """Two megabytes: the receiver is told to pause and to resume, once each, and every byte arrives in order."""

    async def script(pair: Pair) -> None:
        sent = b"".join(number.to_bytes(4, "big") for number in range(512 * 1024))
        pair.stream.write(sent)
        assert pair.told.events == ["pause"]
        assert pair.stream.get_write_buffer_size() > WRITE_HIGH_BYTES
        assert await pair.read(len(sent)) == sent
        await pair.until(lambda: pair.told.events == ["pause", "resume"])
        assert pair.stream.get_write_buffer_size() == 0

    run(contexts, script)


def test_the_last_bytes_come_before_the_end(contexts: Contexts) -> None:
    """Closed with much unsent: all of it, then close_notify, then FIN; the peer sees no ragged end."""

    async def script(pair: Pair) -> None:
        sent = b"z" * 700_000
        pair.stream.write(sent)
        pair.stream.close()
        pair.stream.write(b"too late")
        assert await pair.read(len(sent) + 1) == sent
        pair.sock.close()
        await pair.until(lambda: pair.told.lost)
        assert pair.told.lost == [None]

    run(contexts, script)


def test_a_closed_peer_that_sends_without_end_leaves_the_loop_to_others(contexts: Contexts) -> None:
    """What it sends is thrown away a piece at a turn: as fast as it may be, the other connections have theirs."""

    async def script(pair: Pair) -> None:
        pair.stream.close()
        sent, turns = 0, pair.turns
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += pair.sock.send(b"x" * 65536)
        assert sent > 2 * DISCARD_BYTES
        pair.sock.close()
        await pair.until(lambda: pair.told.lost)
        assert pair.turns - turns >= sent // DISCARD_BYTES

    run(contexts, script)


def test_paused_reading_leaves_bytes_with_the_kernel(contexts: Contexts) -> None:
    """Nothing is reported while paused, all of it after."""

    async def script(pair: Pair) -> None:
        pair.stream.pause_reading()
        turns = pair.turns
        pair.sock.send(pair.records(b"later"))
        await pair.until(lambda: pair.turns > turns)
        assert pair.told.pieces == []
        pair.stream.resume_reading()
        await pair.until(lambda: pair.told.pieces)
        assert pair.told.pieces == [b"later"]

    run(contexts, script)


def test_a_paused_peer_that_leaves_is_noticed(contexts: Contexts) -> None:
    """Its end is seen although nothing of it is read."""

    async def script(pair: Pair) -> None:
        pair.stream.pause_reading()
        pair.sock.close()
        await pair.until(lambda: pair.told.lost)
        assert pair.told.pieces == []

    run(contexts, script)


def test_a_key_update_is_answered(contexts: Contexts, pki: Pki) -> None:
    """`openssl s_client` asks for new keys (its command K) and talks on: both sides still understand each other."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            client = await _s_client(pki, listening.getsockname()[1])
            assert client.stdin is not None
            assert client.stdout is not None
            async with asyncio.timeout(DEADLINE_S):
                sealed = await _serve(listening, contexts[0])
                told, poller = Told(), Poller(lambda: None)
                poller.open()
                stream = TlsStream(sealed, poller)
                stream.start(told)
                client.stdin.write(b"K\n")
                await client.stdout.readuntil(b"KEYUPDATE")
                client.stdin.write(b"hello\n")
                await until(lambda: told.pieces)
                stream.write(b"world\n")
                await client.stdout.readuntil(b"world\n")
                client.stdin.close()
                stream.close()
                await client.communicate()
                poller.close()
        assert told.pieces == [b"hello\n"]

    asyncio.run(main())


@pytest.mark.parametrize("takes", [False, True], ids=["takes-nothing", "takes-the-answers"])
def test_a_flood_of_key_updates_is_cut_unless_the_answers_are_taken(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch, takes: bool
) -> None:
    """What TLS makes for a peer by itself is bounded: one that takes nothing is cut, one that does is served."""

    async def script(pair: Pair) -> None:
        filling = b"z" * 1_000_000  # more than the kernel keeps: what follows waits in the stream
        pair.stream.write(filling)
        waiting = pair.stream.get_write_buffer_size()
        monkeypatch.setattr(tls_stream, "ANSWERS_MAX_BYTES", waiting + 500)
        if takes:
            assert await pair.read(len(filling)) == filling
            await pair.until(lambda: pair.stream.get_write_buffer_size() == 0)
        for _ in range(100):
            turns = pair.turns
            pair.sock.send(_key_update(pair))
            await pair.until(partial(_beyond, pair, turns))
            if pair.told.lost:
                break
        assert pair.told.lost == ([] if takes else [None])
        if takes:
            pair.sock.send(pair.records(b"still here"))
            await pair.until(lambda: pair.told.pieces)
            pair.stream.write(b"so am I")
            assert await pair.read(7) == b"so am I"

    run(contexts, script)


def _beyond(pair: Pair, turns: int) -> bool:
    return pair.turns > turns


def _key_update(pair: Pair) -> bytes:
    """A record that asks for new keys; Python has no name for it, so OpenSSL is asked with its own pointer."""
    # struct PySSLSocket: the head of an object, the Socket, then the SSL *
    address = id(pair.tls._sslobj) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)  # type: ignore[attr-defined]
    assert ctypes.CDLL(_ssl.__file__).SSL_key_update(ctypes.c_void_p.from_address(address), 1) == 1
    pair.tls.do_handshake()
    return pair.outgoing.read()


async def _s_client(pki: Pki, port: int) -> asyncio.subprocess.Process:
    openssl, device = shutil.which("openssl"), pki.device("dev-b")
    assert openssl is not None
    shown = ("-cert", device.cert_file, "-key", device.key_file, "-CAfile", pki.ca_file, "-tls1_3")
    return await asyncio.create_subprocess_exec(
        *(openssl, "s_client", "-connect", f"127.0.0.1:{port}", *shown),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def _serve(listening: socket.socket, context: ssl.SSLContext) -> Sealed:
    loop = asyncio.get_running_loop()
    sock, _ = await loop.sock_accept(listening)
    sealed = Sealed(sock, context)
    while not _step(sealed.tls):
        await loop.sock_sendall(sock, sealed.outgoing.read())
        sealed.incoming.write(await loop.sock_recv(sock, 65536))
    await loop.sock_sendall(sock, sealed.outgoing.read())
    return sealed
