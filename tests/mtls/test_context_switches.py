"""No TLS 1.2 session is kept and no chain is searched in the gateway's contexts, and would be without the switches."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mtls import context_switches
from mtls.keystore import write_public
from mtls.tls import client_context, server_context
from mtls.trust import TrustStore, to_pem
from tests.support.pki import Credential, Pki


def make_and_close(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """One TLS 1.2 connection that both sides close in order."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def serve() -> None:
            with server.wrap_socket(ours, server_side=True) as tls:
                tls.recv(1)
                tls.unwrap()

        thread = threading.Thread(target=serve)
        thread.start()
        with client.wrap_socket(theirs, server_hostname="localhost") as tls:
            tls.sendall(b"x")
            tls.unwrap()
        thread.join(10)


def contexts(pki: Pki) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    trust = TrustStore.from_pem(pki.ca_file.read_bytes(), "ca.crt")
    pair, device = pki.server(), pki.device("dev-a")
    client = client_context(ca_file=pki.ca_file, cert_file=device.cert_file, key_file=device.key_file)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    return server_context(cert_file=pair.cert_file, key_file=pair.key_file, trust=trust), client


def test_the_gateways_context_keeps_no_session(pki: Pki) -> None:
    """Ten orderly TLS 1.2 connections leave nothing in the cache."""
    server, client = contexts(pki)
    for _ in range(10):
        make_and_close(server, client)
    assert server.session_stats()["number"] == 0


def test_without_the_switch_openssl_keeps_every_session(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deny twin: the same ten connections are all remembered, so the test above can fail."""
    monkeypatch.setattr("mtls.tls.remember_no_sessions", lambda context: False)
    server, client = contexts(pki)
    for _ in range(10):
        make_and_close(server, client)
    assert server.session_stats()["number"] == 10


@pytest.mark.parametrize(
    "unknown",
    [
        lambda patch: patch.setattr(context_switches, "KNOWN_PYTHONS", ()),
        lambda patch: patch.setattr(context_switches, "_control", lambda: None),
        lambda patch: patch.setattr(context_switches, "_control", lambda: lambda *asked: 3),
    ],
    ids=["another Python", "no such function", "another mode than the default"],
)
def test_where_the_layout_is_not_known_nothing_is_touched(
    unknown: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """False, and no second call."""
    unknown(monkeypatch)
    assert context_switches.remember_no_sessions(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) is False
    assert context_switches.search_no_chain(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) is False


def certificates_sent(context: ssl.SSLContext, root: Path) -> int:
    """How many certificates `openssl s_client` is sent by a server with this context; it verifies by the root alone."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            sock, _ = listening.accept()
            with sock, contextlib.suppress(OSError):
                context.wrap_socket(sock, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        command = ["openssl", "s_client", "-connect", address, "-showcerts", "-CAfile", str(root)]
        done = subprocess.run(
            [*command, "-verify_return_error"], input=b"", capture_output=True, timeout=30, check=False
        )
        thread.join(10)
    assert b"Verification: OK" in done.stdout, done.stdout + done.stderr
    return done.stdout.count(b"BEGIN CERTIFICATE")


def serving(pki: Pki, pair: Credential, ca_file: Path) -> ssl.SSLContext:
    trust = TrustStore.from_pem(ca_file.read_bytes(), ca_file.name)
    context = server_context(cert_file=pair.cert_file, key_file=pair.key_file, trust=trust)
    context.verify_mode = ssl.CERT_NONE
    return context


def alone(pair: Credential) -> Credential:
    """The same certificate in a file without its issuing CA."""
    write_public(pair.cert_file, to_pem([pair.certificate]))
    return pair


def test_a_server_below_the_root_sends_its_own_certificate_and_not_the_root(pki: Pki) -> None:
    """A client has the root already; searching for it would cost a tenth of every handshake."""
    pair = alone(pki.server(issuer=pki.root))
    assert certificates_sent(serving(pki, pair, pki.ca_file), pki.root_file) == 1


def test_without_the_switch_openssl_searches_and_sends_the_root(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deny twin."""
    monkeypatch.setattr("mtls.tls.search_no_chain", lambda context: False)
    pair = alone(pki.server(issuer=pki.root))
    assert certificates_sent(serving(pki, pair, pki.ca_file), pki.root_file) == 2


def test_a_server_whose_file_lacks_the_issuing_ca_is_given_it_from_the_ca_file(pki: Pki) -> None:
    """It serves on as it did: OpenSSL finds the chain."""
    assert certificates_sent(serving(pki, alone(pki.server()), pki.ca_file), pki.root_file) == 3


def test_a_server_whose_file_is_complete_sends_the_file(pki: Pki) -> None:
    """Leaf and issuing CA."""
    assert certificates_sent(serving(pki, pki.server(), pki.ca_file), pki.root_file) == 2
