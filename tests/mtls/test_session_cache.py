"""The TLS 1.2 session cache is off in the gateway's contexts, and would be on without the switch."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable

import pytest

from mtls import session_cache
from mtls.tls import client_context, server_context
from mtls.trust import TrustStore
from tests.support.pki import Pki


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
        lambda patch: patch.setattr(session_cache, "KNOWN_PYTHONS", ()),
        lambda patch: patch.setattr(session_cache, "_control", lambda: None),
        lambda patch: patch.setattr(session_cache, "_control", lambda: lambda *asked: 3),
    ],
    ids=["another Python", "no such function", "another mode than the default"],
)
def test_where_the_layout_is_not_known_nothing_is_touched(
    unknown: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """False, and no second call."""
    unknown(monkeypatch)
    assert session_cache.remember_no_sessions(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) is False
