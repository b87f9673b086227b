"""TLS servers to shake hands with: the standard library's, openssl's, and ports that speak anything but TLS."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.pki import Credential

DEADLINE_S = 10.0
_CRL_CHECK = ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on the loopback where `answer` deals with one connection after the other; it must return at its end."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.settimeout(DEADLINE_S)
            with sock, contextlib.suppress(OSError):
                answer(sock)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def server_side(
    server: Credential,
    *,
    ca_file: Path | None = None,
    crl_file: Path | None = None,
    mode: ssl.VerifyMode = ssl.CERT_REQUIRED,
    max_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    ciphers: str = "",
) -> ssl.SSLContext:
    """A context of the standard library, with nothing of ours; without `ca_file` it asks for no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = min_version, max_version
    context.load_cert_chain(server.cert_file, server.key_file)
    if ciphers:
        context.set_ciphers(ciphers)
    if ca_file is not None:
        context.verify_mode = mode
        context.load_verify_locations(ca_file)
    if crl_file is not None:
        context.load_verify_locations(crl_file)
        context.verify_flags |= _CRL_CHECK
    return context


def until_goodbye(connection: ssl.SSLSocket) -> None:
    """Read to the end, then close in order."""
    while connection.recv(4096):
        pass
    connection.unwrap()


def at_once(_: ssl.SSLSocket) -> None:
    """Close without an alert and without a word."""


def waits_for(done: threading.Event) -> Callable[[ssl.SSLSocket], None]:
    """Neither read nor close until the test is over."""
    return lambda _: _wait(done)


def _wait(done: threading.Event) -> None:
    done.wait(DEADLINE_S)


@contextmanager
def tls_server(context: ssl.SSLContext, then: Callable[[ssl.SSLSocket], None] = until_goodbye) -> Iterator[int]:
    """The port of a TLS server; `then` is what it does with a completed handshake."""

    def answer(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as connection:
            then(connection)

    with serving(answer) as port:
        yield port


@contextmanager
def asyncio_server(context: ssl.SSLContext) -> Iterator[int]:
    """A server on asyncio's own TLS, which closes without an alert when it refuses a client."""
    port: list[int] = []
    ready, done = threading.Event(), threading.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    async def serve() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
            port.append(server.sockets[0].getsockname()[1])
            ready.set()
            await asyncio.to_thread(done.wait, 60)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(DEADLINE_S)
    try:
        yield port[0]
    finally:
        done.set()
        thread.join(DEADLINE_S)


@contextmanager
def s_server(server: Credential, *options: str | Path) -> Iterator[int]:
    """The port of an `openssl s_server`, which prints it."""
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", server.cert_file, "-key", server.key_file]
    chain = ["-cert_chain", server.cert_file]
    process = subprocess.Popen(
        [*map(str, [*command, *chain, *options])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield _printed_port(process)
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


def _printed_port(process: subprocess.Popen[bytes]) -> int:
    said = b""
    assert process.stdout is not None
    while not (found := re.search(rb"ACCEPT \S*:(\d+)", said)):
        ready, _, _ = select.select([process.stdout], [], [], DEADLINE_S)
        assert ready, f"s_server said nothing of its port: {said!r}"
        more = process.stdout.read1(4096)  # type: ignore[attr-defined]
        assert more, f"s_server ended: {said!r}"
        said += more
    return int(found[1])


@contextmanager
def altering(port: int, alter: Callable[[bytes], bytes]) -> Iterator[int]:
    """A port that passes everything on to another, the server's TLS records altered on the way."""

    def answer(near: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as far:
            back = b""
            while True:
                ready, _, _ = select.select([near, far], [], [], DEADLINE_S)
                if near in ready:
                    data = near.recv(65536)
                    if not data:
                        return
                    far.sendall(data)
                if far in ready:
                    data = far.recv(65536)
                    if not data:
                        return
                    back += data
                    while len(back) >= 5 and len(back) >= 5 + int.from_bytes(back[3:5], "big"):
                        end = 5 + int.from_bytes(back[3:5], "big")
                        near.sendall(alter(back[:end]))
                        back = back[end:]
                if not ready:
                    return

    with serving(answer) as near_port:
        yield near_port
