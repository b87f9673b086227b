"""Handshakes that fail for one reason each: the verdict names it, and the twin without the reason is let in."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from mtls import handshake as watched
from mtls.errors import ConfigFault, Reason
from mtls.handshake import End, Handshake, perform
from mtls.handshake_alerts import About, Side, Verdict
from mtls.handshake_messages import (
    Alert,
    CertificateRequest,
    Chain,
    ClientHello,
    KeyExchange,
    ServerHello,
    Unread,
    authority_text,
    read_alert,
    read_message,
)
from mtls.handshake_verdict import judge
from mtls.identity import quiet_parser
from mtls.profiles import GATEWAY_SERVER, ISSUING_CA, ROOT_CA, Issuer
from mtls.tls import client_context
from mtls.trust import to_pem
from tests.support.pki import Credential, Pki, now
from tests.support.tls_servers import (
    altering,
    asyncio_server,
    at_once,
    s_server,
    server_side,
    serving,
    tls_server,
    waits_for,
)

Port = AbstractContextManager[int]
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = {"1.2": V12, "1.3": V13}
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time in which a local server can send an alert, instead of that of a far one."""
    monkeypatch.setattr(watched, "SETTLE_MIN_S", 0.15)


@dataclass(frozen=True)
class Ours:
    """The client's side of one attempt."""

    ca_file: Path
    credential: Credential | None = None
    server_name: str = "localhost"
    tls: str = ""
    timeout_s: float = 5.0
    goodbye_s: float = 5.0
    connect: str = "127.0.0.1"


def attempt(ours: Ours, port: int) -> tuple[Handshake, Verdict]:
    """One handshake and the verdict on it."""
    given = ours.credential
    context = client_context(
        ca_file=ours.ca_file,
        cert_file=given.cert_file if given else None,
        key_file=given.key_file if given else None,
        min_tls=ours.tls or "1.2",
        max_tls=ours.tls or "1.3",
    )
    with quiet_parser():
        about = About(
            server_name=ours.server_name,
            ca_file="ca.crt",
            authorities=tuple(x509.load_pem_x509_certificates(ours.ca_file.read_bytes())),
            cert_file="device.crt" if given else "",
            ours=tuple(x509.load_pem_x509_certificates(given.cert_file.read_bytes())) if given else (),
            offered=f"TLS {ours.tls}" if ours.tls else "TLS 1.3 and 1.2",
            now=datetime.now(UTC),
        )
    with socket.create_connection((ours.connect, port), 5) as sock:
        made = perform(sock, context, ours.server_name, timeout_s=ours.timeout_s, goodbye_s=ours.goodbye_s)
    return made, judge(made, about)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Another site's CAs, with other names."""
    return Pki(tmp_path_factory.mktemp("foreign"), name="foreign")


@pytest.fixture(scope="module")
def namesake(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Another site's CAs, with the same names."""
    return Pki(tmp_path_factory.mktemp("namesake"))


@pytest.fixture(scope="module")
def device(pki: Pki) -> Credential:
    """A device that is let in."""
    return pki.device("dev-a")


def server_leaf(pki: Pki, **wrong: object) -> Credential:
    """A server's certificate with something wrong."""
    arguments = {"cn": "localhost", "san": [x509.DNSName("localhost")], "eku": (ExtendedKeyUsageOID.SERVER_AUTH,)}
    return pki.raw_leaf(**{**arguments, **wrong})  # type: ignore[arg-type]


def mutual(pki: Pki, server: Credential | None = None, **settings: object) -> Port:
    """A server of the standard library that asks for certificates of the site."""
    return tls_server(server_side(server or pki.server(), **{"ca_file": pki.ca_file, **settings}))  # type: ignore[arg-type]


# --- what is fine


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["stdlib", "openssl"])
def test_a_mutual_handshake_is_told_in_order(pki: Pki, device: Credential, version: str, kind: str) -> None:
    """Every message of both sides is there, and the server's end of the connection answers our goodbye."""
    options = ("-Verify", "2", "-verify_return_error", "-CAfile", pki.ca_file, "-num_tickets", "0")
    port = mutual(pki) if kind == "stdlib" else s_server(pki.server(), *options)
    with port as number:
        made, verdict = attempt(Ours(pki.ca_file, device, tls=version), number)
    assert verdict == Verdict(True, None, (), "mutual TLS: each side has verified the other's certificate")
    assert (made.end, made.error, made.version) == (End.ANSWERED, None, f"TLS {version}")
    names = [("> " if m.is_ours else "< ") + m.name for m in made.messages if m.name not in ("alert", "session ticket")]
    assert names == EXPECTED[version]
    assert [m.at_ms for m in made.messages] == sorted(m.at_ms for m in made.messages)
    assert made.sent_bytes > sum(m.size for m in made.messages if m.is_ours)
    assert made.received_bytes > sum(m.size for m in made.messages if not m.is_ours)


EXPECTED = {
    "1.3": [
        *("> client hello", "< server hello", "< encrypted extensions", "< certificate request", "< certificate"),
        *("< certificate verify", "< finished", "> certificate", "> certificate verify", "> finished"),
    ],
    "1.2": [
        *("> client hello", "< server hello", "< certificate", "< server key exchange", "< certificate request"),
        *("< server hello done", "> certificate", "> client key exchange", "> certificate verify", "> finished"),
        "< finished",
    ],
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_messages_say_what_openssl_says(pki: Pki, device: Credential, version: str) -> None:
    """Versions, suite, group, names of CAs and certificates are those that the TLS library itself reports."""
    options = ("-Verify", "2", "-CAfile", pki.ca_file, "-groups", "P-256")
    with s_server(pki.server(), *options) as port:
        made, _ = attempt(Ours(pki.ca_file, device, tls=version), port)
    hello, chosen = made.first(ClientHello, ours=True), [m.content for m in made.messages if not m.is_ours]
    request, shown, sent = made.first(CertificateRequest), made.first(Chain), made.first(Chain, ours=True)
    assert hello is not None
    assert hello.server_name == "localhost"
    assert hello.versions == (int(VERSIONS[version]),)
    groups = [c.group for c in chosen if isinstance(c, ServerHello | KeyExchange) and c.group]
    assert groups[-1] == 0x0017
    final = [c for c in chosen if isinstance(c, ServerHello)][-1]
    suites = {c["id"] & 0xFFFF: c["name"] for c in client_context(ca_file=pki.ca_file).get_ciphers()}
    assert suites[final.cipher] == made.cipher
    assert request is not None
    assert {authority_text(der) for der in request.authorities} == {"CN=test CA", "CN=test Root CA"}
    assert shown is not None
    assert shown.certificates[0] == made.leaf
    assert sent is not None
    assert x509.load_der_x509_certificate(sent.certificates[0]) == device.certificate


def test_a_repeated_hello_is_called_one(pki: Pki, device: Credential) -> None:
    """TLS 1.3 with a group that was not guessed: the first server hello is a retry request, the second is not."""
    with s_server(pki.server(), "-Verify", "2", "-CAfile", pki.ca_file, "-groups", "P-384") as port:
        made, verdict = attempt(Ours(pki.ca_file, device, tls="1.3"), port)
    assert verdict.is_ok
    assert [m.name for m in made.messages][:4] == [
        *("client hello", "hello retry request"),
        *("client hello", "server hello"),
    ]


def test_an_address_is_verified_and_not_sent(pki: Pki, device: Credential) -> None:
    """A server named by its address is found in the certificate's addresses; no name goes into the hello."""
    with mutual(pki) as port:
        made, verdict = attempt(Ours(pki.ca_file, device, server_name="127.0.0.1"), port)
    hello = made.first(ClientHello, ours=True)
    assert verdict.is_ok
    assert hello is not None
    assert hello.server_name == ""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_that_asks_nobody_is_not_taken_for_mutual_tls(pki: Pki, device: Credential, version: str) -> None:
    """With a certificate in hand plain TLS is a no; without one it is what was asked for."""
    with tls_server(server_side(pki.server())) as port:
        _, verdict = attempt(Ours(pki.ca_file, device, tls=version), port)
        _, plain = attempt(Ours(pki.ca_file, tls=version), port)
    assert (verdict.is_ok, verdict.reason, verdict.at_fault) == (False, Reason.NO_CERTIFICATE, (Side.SERVER,))
    assert plain.is_ok
    assert "plain TLS" in plain.sentence


def test_a_server_that_asks_and_does_not_insist_is_said_to_let_anybody_in(pki: Pki, device: Credential) -> None:
    """Optional client certificates: fine, and named, since a server should not be left so by mistake."""
    with mutual(pki, mode=ssl.CERT_OPTIONAL) as port:
        _, without = attempt(Ours(pki.ca_file), port)
        _, with_one = attempt(Ours(pki.ca_file, device), port)
    assert without.is_ok
    assert "without one" in without.sentence
    assert "each side" in with_one.sentence


# --- what fails: one row, one reason, and its twin


@dataclass(frozen=True)
class Fault:
    """What goes wrong, what must be said, and the same attempt without the fault."""

    wrong: Callable[[Pki, Pki, Pki], tuple[Port, Ours]]
    reason: Reason
    first: Side
    says: str
    versions: tuple[str, ...] = ("1.3", "1.2")
    alert: str = ""
    twin: Callable[[Pki, Pki, Pki], tuple[Port, Ours]] = field(
        default=lambda pki, _, __: (mutual(pki), Ours(pki.ca_file, pki.device("dev-a")))
    )


def _server_expired(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki, server_leaf(pki, not_before=now() - 9 * DAY, not_after=now() - DAY)), _fine(pki)


def _server_not_yet(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki, server_leaf(pki, not_before=now() + DAY, not_after=now() + 9 * DAY)), _fine(pki)


def _both_expired(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    past = {"not_before": now() - 9 * DAY, "not_after": now() - DAY}
    return mutual(pki, server_leaf(pki, **past)), Ours(pki.ca_file, pki.raw_leaf(**past))  # type: ignore[arg-type]


def _both_not_yet(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    to_come = {"not_before": now() + DAY, "not_after": now() + 9 * DAY}
    return mutual(pki, server_leaf(pki, **to_come)), Ours(pki.ca_file, pki.raw_leaf(**to_come))  # type: ignore[arg-type]


def _wrong_ca(pki: Pki, foreign: Pki, _: Pki) -> tuple[Port, Ours]:
    return mutual(pki), replace(_fine(pki), ca_file=foreign.ca_file)


def _ca_of_the_same_name(pki: Pki, _: Pki, namesake: Pki) -> tuple[Port, Ours]:
    return mutual(pki), replace(_fine(pki), ca_file=namesake.ca_file)


def _no_root(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    file = pki.folder / "issuing-only.crt"
    file.write_bytes(to_pem([pki.issuing.certificate]))
    return mutual(pki), replace(_fine(pki), ca_file=file)


def _self_signed(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    alone = server_leaf(pki, self_signed=True)
    alone.cert_file.write_bytes(to_pem([alone.certificate]))
    return mutual(pki, alone), _fine(pki)


def _leaf_only(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    bare = pki.server()
    bare.cert_file.write_bytes(to_pem([bare.certificate]))
    return tls_server(server_side(bare)), Ours(pki.root_file)  # with a CA file the library would complete the chain


def _leaf_and_issuing(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return tls_server(server_side(pki.server())), Ours(pki.root_file)


def _other_name(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki), replace(_fine(pki), server_name="gateway.local")


def _other_address(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki), replace(_fine(pki), server_name="127.0.0.2")


def _a_device_as_server(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    wrong = server_leaf(pki, eku=(ExtendedKeyUsageOID.CLIENT_AUTH,))
    return mutual(pki, wrong), _fine(pki)


def _ours_expired(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki), Ours(pki.ca_file, pki.raw_leaf(not_before=now() - 9 * DAY, not_after=now() - DAY))


def _ours_not_yet(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki), Ours(pki.ca_file, pki.raw_leaf(not_before=now() + DAY, not_after=now() + 9 * DAY))


def _ours_revoked(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    gone = pki.device("dev-gone")
    return mutual(pki, crl_file=pki.crl([gone.certificate])), Ours(pki.ca_file, gone)


def _another_revoked(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki, crl_file=pki.crl([pki.device("dev-gone").certificate])), _fine(pki)


def _stale_crl(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki, crl_file=pki.crl(now=now() - 9 * DAY, lifetime=DAY)), _fine(pki)


def _fresh_crl(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki, crl_file=pki.crl()), _fine(pki)


def _ours_no_client(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki), Ours(pki.ca_file, pki.raw_leaf(eku=(ExtendedKeyUsageOID.SERVER_AUTH,)))


def _ours_foreign(pki: Pki, foreign: Pki, _: Pki) -> tuple[Port, Ours]:
    return mutual(pki), Ours(pki.ca_file, foreign.device("dev-a"))


def _ours_foreign_and_asked(pki: Pki, foreign: Pki, _: Pki) -> tuple[Port, Ours]:
    port = s_server(pki.server(), "-Verify", "2", "-verify_return_error", "-CAfile", pki.ca_file)
    return port, Ours(pki.ca_file, foreign.device("dev-a"))


def _ours_asked(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return s_server(pki.server(), "-Verify", "2", "-verify_return_error", "-CAfile", pki.ca_file), _fine(pki)


def _ours_of_the_same_name(pki: Pki, _: Pki, namesake: Pki) -> tuple[Port, Ours]:
    return mutual(pki), Ours(pki.ca_file, namesake.device("dev-a"))


def _without_key_identifier(pki: Pki, _: Pki, namesake: Pki) -> tuple[Port, Ours]:
    theirs = namesake.raw_leaf()  # the CA is found by its name, so its signature is tried
    theirs.cert_file.write_bytes(to_pem([theirs.certificate]))
    return mutual(pki), Ours(pki.ca_file, theirs)


def _ours_missing(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki), Ours(pki.ca_file)


def _old_server(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki, max_version=V12), replace(_fine(pki), tls="1.3")


def _new_server(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki, min_version=V13), replace(_fine(pki), tls="1.2")


def _other_ciphers(pki: Pki, _: Pki, __: Pki) -> tuple[Port, Ours]:
    return mutual(pki, max_version=V12, ciphers="ECDHE-ECDSA-AES128-SHA256"), _fine(pki)


def _fine(pki: Pki) -> Ours:
    return Ours(pki.ca_file, pki.device("dev-a"))


FAULTS = {
    "server expired": Fault(_server_expired, Reason.CERTIFICATE_EXPIRED, Side.SERVER_CERTIFICATE, "notAfter="),
    "server not yet valid": Fault(_server_not_yet, Reason.CERTIFICATE_NOT_YET_VALID, Side.OUR_CLOCK, "notBefore="),
    "our clock ahead": Fault(_both_expired, Reason.CERTIFICATE_EXPIRED, Side.OUR_CLOCK, "our own certificate"),
    "our clock behind": Fault(_both_not_yet, Reason.CERTIFICATE_NOT_YET_VALID, Side.OUR_CLOCK, "our own files"),
    "wrong CA": Fault(_wrong_ca, Reason.ISSUER_UNKNOWN, Side.OUR_CA_FILE, "from CN=test CA, which is not in ca.crt"),
    "CA of the same name": Fault(_ca_of_the_same_name, Reason.ISSUER_UNKNOWN, Side.OUR_CA_FILE, "with another key"),
    "CA file without a root": Fault(_no_root, Reason.ISSUER_UNKNOWN, Side.OUR_CA_FILE, "the self-signed root above it"),
    "server self-signed": Fault(_self_signed, Reason.ISSUER_UNKNOWN, Side.OUR_CA_FILE, "is self-signed"),
    "server sends its leaf only": Fault(
        _leaf_only, Reason.ISSUER_UNKNOWN, Side.OUR_CA_FILE, "from CN=test CA", twin=_leaf_and_issuing
    ),
    "another name": Fault(
        _other_name, Reason.IDENTITY_CONFLICT, Side.OUR_NAME, "is for localhost, 127.0.0.1, not for gateway.local"
    ),
    "another address": Fault(_other_address, Reason.IDENTITY_CONFLICT, Side.OUR_NAME, "not for 127.0.0.2"),
    "server without serverAuth": Fault(
        _a_device_as_server, Reason.CERTIFICATE_USAGE, Side.SERVER_CERTIFICATE, "lacks serverAuth"
    ),
    "ours expired": Fault(
        _ours_expired, Reason.CERTIFICATE_EXPIRED, Side.OUR_CERTIFICATE, "our certificate", alert="certificate_expired"
    ),
    "ours not yet valid": Fault(
        _ours_not_yet, Reason.CERTIFICATE_NOT_YET_VALID, Side.OUR_CLOCK, "notBefore=", alert="bad_certificate"
    ),
    "ours revoked": Fault(
        *(_ours_revoked, Reason.CERTIFICATE_REVOKED, Side.OUR_CERTIFICATE, "revoked"),
        alert="certificate_revoked",
        twin=_another_revoked,
    ),
    "their CRL stale": Fault(
        *(_stale_crl, Reason.CERTIFICATE_EXPIRED, Side.SERVER_CA, "by this machine's clock it is valid"),
        alert="certificate_expired",
        twin=_fresh_crl,
    ),
    "ours without clientAuth": Fault(
        *(_ours_no_client, Reason.CERTIFICATE_USAGE, Side.OUR_CERTIFICATE, "lacks clientAuth"),
        alert="unsupported_certificate",
    ),
    "ours of another CA": Fault(
        *(_ours_foreign, Reason.ISSUER_UNKNOWN, Side.OUR_CERTIFICATE, "our certificate, CN=foreign CA"),
        alert="unknown_ca",
    ),
    "ours of another CA, and asked": Fault(
        *(_ours_foreign_and_asked, Reason.ISSUER_UNKNOWN, Side.OUR_CERTIFICATE, "the server asks for CN=test"),
        alert="unknown_ca",
        twin=_ours_asked,
    ),
    "ours of a CA of the same name": Fault(
        *(_ours_of_the_same_name, Reason.ISSUER_UNKNOWN, Side.OUR_CERTIFICATE, "same name, another key"),
        alert="unknown_ca",
    ),
    "ours of a CA of the same name, found by name": Fault(
        *(_without_key_identifier, Reason.ISSUER_UNKNOWN, Side.OUR_CERTIFICATE, "same name, another key"),
        alert="decrypt_error",
    ),
    "none given": Fault(_ours_missing, Reason.NO_CERTIFICATE, Side.OUR_CERTIFICATE, "none was given"),
    "no TLS 1.3 there": Fault(
        *(_old_server, Reason.HANDSHAKE_FAILED, Side.OUR_OFFER, "we offer TLS 1.3"), ("1.3",), alert="protocol_version"
    ),
    "no TLS 1.2 there": Fault(
        *(_new_server, Reason.HANDSHAKE_FAILED, Side.OUR_OFFER, "we offer TLS 1.2"), ("1.2",), alert="protocol_version"
    ),
    "no common cipher": Fault(
        *(_other_ciphers, Reason.HANDSHAKE_FAILED, Side.OUR_OFFER, "none of the cipher suites"),
        ("1.2",),
        alert="handshake_failure",
    ),
}


@pytest.mark.parametrize(
    ("name", "version"), [(name, version) for name, fault in FAULTS.items() for version in fault.versions]
)
def test_a_fault_is_named_and_its_twin_is_let_in(
    pki: Pki, foreign: Pki, namesake: Pki, name: str, version: str
) -> None:
    """The verdict says no, why, and what is at fault; the same attempt without the fault is fine."""
    fault = FAULTS[name]
    port, ours = fault.wrong(pki, foreign, namesake)
    with port as number:
        made, verdict = attempt(replace(ours, tls=version), number)
    assert (verdict.is_ok, verdict.reason) == (False, fault.reason), verdict
    assert verdict.at_fault[0] is fault.first
    assert fault.says in verdict.sentence
    assert verdict.hint
    if fault.alert:
        assert str(made.alert) == fault.alert
    port, ours = fault.twin(pki, foreign, namesake)
    with port as number:
        _, verdict = attempt(replace(ours, tls=version), number)
    assert verdict.is_ok, verdict


def test_the_ca_above_the_server_is_named_when_it_has_expired(tmp_path: Path) -> None:
    """Not the leaf but the issuing CA is past its notAfter, and is the one that is named; a longer one is fine."""
    root_key, key, leaf_key = (Pki(tmp_path / str(n)).issuing.key for n in range(3))
    then = now() - 9 * DAY
    root = Issuer(
        ROOT_CA.build(subject_cn="Old Root", public_key=root_key.public_key(), issuer=None, key=root_key, now=then),
        root_key,
    )
    for lifetime, is_fine in ((8 * DAY, False), (30 * DAY, True)):
        issuing = ISSUING_CA.build(
            subject_cn="Old CA", public_key=key.public_key(), issuer=root, now=then, lifetime=lifetime
        )
        forever = replace_issuer_dates(issuing, root)
        leaf = GATEWAY_SERVER.build(
            subject_cn="localhost",
            public_key=leaf_key.public_key(),
            issuer=Issuer(forever, key),
            now=now(),
            dns=["localhost"],
        )
        server = _saved(tmp_path / f"server{is_fine}", leaf, issuing, leaf_key)
        ca_file = tmp_path / "root.crt"
        ca_file.write_bytes(to_pem([root.certificate]))
        with tls_server(server_side(server)) as port:
            _, verdict = attempt(Ours(ca_file), port)
        assert verdict.is_ok is is_fine
        if not is_fine:
            assert "the CA certificate 'Old CA' above the server's has expired" in verdict.sentence


def replace_issuer_dates(issuing: x509.Certificate, root: Issuer) -> x509.Certificate:
    """The same CA as it was renewed: a leaf that it signs outlives the old certificate."""
    key = issuing.public_key()
    return ISSUING_CA.build(subject_cn="Old CA", public_key=key, issuer=root, now=now())  # type: ignore[arg-type]


def _saved(stem: Path, leaf: x509.Certificate, issuing: x509.Certificate, key: object) -> Credential:
    from mtls.keystore import key_pem, write_private

    cert_file, key_file = stem.with_suffix(".crt"), stem.with_suffix(".key")
    cert_file.write_bytes(to_pem([leaf, issuing]))
    write_private(key_file, key_pem(key))  # type: ignore[arg-type]
    return Credential(cert_file, key_file, leaf)


def test_a_key_of_another_certificate_is_found_before_anybody_is_called(pki: Pki, device: Credential) -> None:
    """Key and certificate that do not belong together are a fault of the files."""
    with pytest.raises(ConfigFault, match="is not the key of"):
        attempt(Ours(pki.ca_file, replace(device, key_file=pki.device("dev-b").key_file)), 1)


def test_a_signature_altered_on_the_way_is_noticed(pki: Pki) -> None:
    """TLS 1.2, one bit of the server's signed key share: the server has not proved its key; unaltered it has."""

    def flip(record: bytes) -> bytes:
        is_key_exchange = record[0] == 22 and record[5] == 12
        return record[:-1] + bytes([record[-1] ^ 1]) if is_key_exchange else record

    for alter, is_fine in ((flip, False), (bytes, True)):
        with tls_server(server_side(pki.server())) as far, altering(far, alter) as port:
            _, verdict = attempt(Ours(pki.ca_file, tls="1.2"), port)
        assert verdict.is_ok is is_fine
        if not is_fine:
            assert verdict.at_fault == (Side.SERVER_CERTIFICATE, Side.PORT)
            assert "cannot prove" in verdict.sentence


# --- after the handshake


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_that_closes_without_an_alert_is_not_taken_for_acceptance(
    pki: Pki, device: Credential, version: str
) -> None:
    """A deny list closes so: the handshake is complete and the answer is no, of the server's own rules perhaps."""
    with tls_server(server_side(pki.server(), ca_file=pki.ca_file), at_once) as port:
        made, verdict = attempt(Ours(pki.ca_file, device, tls=version), port)
    assert (made.end, verdict.reason) == (End.CLOSED, Reason.PEER_CLOSED)
    assert Side.SERVER_RULES in verdict.at_fault


@pytest.mark.parametrize("version", VERSIONS)
def test_silence_after_the_handshake_is_no_proof(pki: Pki, device: Credential, version: str) -> None:
    """A server that answers nothing, not even our goodbye: acceptance is not known, and that is not a yes."""
    done = threading.Event()
    context = server_side(pki.server(), ca_file=pki.ca_file)
    with tls_server(context, waits_for(done)) as port:
        made, verdict = attempt(Ours(pki.ca_file, device, tls=version, goodbye_s=0.2), port)
        done.set()
    assert (made.end, verdict.is_ok) == (End.SILENT, False)
    assert "not known" in verdict.sentence


def test_a_late_alert_is_waited_for(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS 1.3, an alert that comes after we stopped listening: it is found when we say goodbye."""
    monkeypatch.setattr(watched, "SETTLE_MIN_S", 0.0)
    monkeypatch.setattr(watched, "SETTLE_MAX_S", 0.0)
    with mutual(pki) as port:
        made, verdict = attempt(Ours(pki.ca_file, tls="1.3"), port)
    assert (made.end, verdict.reason) == (End.REFUSED, Reason.NO_CERTIFICATE)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_plainly_wrong_with_us_is_named_without_an_alert(pki: Pki, device: Credential, version: str) -> None:
    """A server on asyncio refuses without an alert: our own files tell why, or nothing is claimed."""
    past = {"not_before": now() - 9 * DAY, "not_after": now() - DAY}
    cases = (
        (None, Reason.NO_CERTIFICATE),
        (pki.raw_leaf(**past), Reason.CERTIFICATE_EXPIRED),  # type: ignore[arg-type]
        (pki.raw_leaf(eku=(ExtendedKeyUsageOID.SERVER_AUTH,)), Reason.CERTIFICATE_USAGE),
        (pki.raw_leaf(self_signed=True), Reason.PEER_CLOSED),
    )
    with asyncio_server(server_side(pki.server(), ca_file=pki.ca_file)) as port:
        for given, reason in cases:
            made, verdict = attempt(Ours(pki.ca_file, given, tls=version), port)
            assert made.alert is None
            assert (verdict.is_ok, verdict.reason) == (False, reason), verdict
        _, verdict = attempt(Ours(pki.ca_file, device, tls=version), port)
        assert verdict.is_ok, verdict


# --- what is no TLS server


def says(words: bytes) -> Callable[[socket.socket], None]:
    def answer(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(words)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass

    return answer


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it answers in HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it is an SSH server"),
        (b"\x20\x02\x00\x01", "it answers in MQTT without TLS"),
        (b"\x1b[31mhello", "it begins with 1b 5b 33 31"),
    ],
)
def test_a_port_that_speaks_something_else_is_named(pki: Pki, words: bytes, said: str) -> None:
    """What a port answers in, as far as it can be told, and never its raw bytes."""
    with serving(says(words)) as port:
        _, verdict = attempt(Ours(pki.ca_file), port)
    assert (verdict.is_ok, verdict.at_fault) == (False, (Side.PORT,))
    assert said in verdict.sentence
    assert "\x1b" not in verdict.sentence


def test_a_port_that_closes_at_once_is_named(pki: Pki) -> None:
    """Nothing was said at all."""
    with serving(lambda sock: None) as port:
        _, verdict = attempt(Ours(pki.ca_file), port)
    assert verdict.reason is Reason.PEER_CLOSED
    assert "without a word" in verdict.sentence or "in the middle" in verdict.sentence


@pytest.mark.parametrize(("first", "said"), [(b"", "said nothing"), (b"\x16\x03\x03\x00\x7a\x02", "fell silent")])
def test_silence_ends_at_the_time_limit(pki: Pki, first: bytes, said: str) -> None:
    """A peer that says nothing, or stops in the middle of a record, keeps nobody longer than the limit."""
    done = threading.Event()

    def answer(sock: socket.socket) -> None:
        sock.sendall(first)
        done.wait(10)

    with serving(answer) as port:
        made, verdict = attempt(Ours(pki.ca_file, timeout_s=0.3), port)
        done.set()
    assert verdict.reason is Reason.HANDSHAKE_TIMEOUT
    assert said in verdict.sentence
    assert 250 < made.handshake_ms < 3000


def test_a_dripping_peer_is_held_to_the_same_limit(pki: Pki) -> None:
    """One byte at a time does not renew the deadline."""
    done = threading.Event()

    def answer(sock: socket.socket) -> None:
        for byte in b"\x16\x03\x03\x40\x00" + bytes(4000):
            if done.wait(0.02):
                return
            sock.sendall(bytes([byte]))

    with serving(answer) as port:
        made, verdict = attempt(Ours(pki.ca_file, timeout_s=0.3), port)
        done.set()
    assert verdict.reason is Reason.HANDSHAKE_TIMEOUT
    assert made.handshake_ms < 3000


def test_a_flood_is_cut_off(pki: Pki) -> None:
    """A peer that sends without end is left after the limit of bytes or at the first wrong one."""

    def answer(sock: socket.socket) -> None:
        record = b"\x16\x03\x03\x40\x00" + b"\x0b\x00\xff\xff" + bytes(16380)
        with contextlib.suppress(OSError):
            for _ in range(1000):
                sock.sendall(record)

    with serving(answer) as port:
        made, verdict = attempt(Ours(pki.ca_file), port)
    assert not verdict.is_ok
    assert made.received_bytes <= watched.MAX_RECEIVED_BYTES + 16384


# --- the private callback


def test_the_message_callback_still_is_what_we_take_it_for(pki: Pki, device: Credential) -> None:
    """CPython's `SSLContext._msg_callback`: direction, version, content type, message type, and the whole message."""
    context = client_context(ca_file=pki.ca_file, cert_file=device.cert_file, key_file=device.key_file)
    seen: list[tuple[str, int, int, int, bytes]] = []

    def note(conn: object, direction: str, version: int, content_type: int, kind: int, data: bytes) -> None:
        seen.append((direction, int(version), int(content_type), int(kind), data))

    context._msg_callback = note  # type: ignore[attr-defined]
    with (
        mutual(pki) as port,
        socket.create_connection(("127.0.0.1", port), 5) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as connection,
    ):
        connection.unwrap()
    handshakes = [row for row in seen if row[2] == 22]
    assert {row[0] for row in seen} == {"read", "write"}
    assert handshakes[0][0] == "write"
    assert all(data[0] == kind and int.from_bytes(data[1:4], "big") == len(data) - 4 for *_, kind, data in handshakes)
    assert {row[1] for row in handshakes} == {int(V13)}
    assert ("write", int(V13), 21, 0, b"\x01\x00") in seen


@pytest.mark.parametrize("version", VERSIONS)
def test_without_the_callback_the_answer_is_the_same_and_coarser(
    pki: Pki, foreign: Pki, device: Credential, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No messages, and still who is let in, who is not, and why, as far as the library says."""
    monkeypatch.setattr(watched, "_watch", lambda *_: False)
    with mutual(pki) as port:
        made, fine = attempt(Ours(pki.ca_file, device, tls=version), port)
        _, without = attempt(Ours(pki.ca_file, tls=version), port)
        _, unknown = attempt(Ours(pki.ca_file, foreign.device("dev-a"), tls=version), port)
        _, other = attempt(Ours(pki.ca_file, device, server_name="gateway.local", tls=version), port)
        _, wrong = attempt(Ours(foreign.ca_file, device, tls=version), port)
    assert (made.is_watched, made.messages, made.version) == (False, (), f"TLS {version}")
    assert fine.is_ok
    assert unknown.reason is Reason.ISSUER_UNKNOWN
    assert not without.is_ok
    assert other.reason is Reason.IDENTITY_CONFLICT
    assert wrong.reason is Reason.ISSUER_UNKNOWN


def test_a_python_without_the_callback_is_noticed(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback is looked for, not assumed."""
    context = client_context(ca_file=pki.ca_file)
    assert watched._watch(context, [], lambda: 0.0)
    monkeypatch.delattr(ssl.SSLContext, "_msg_callback")
    monkeypatch.setattr(ssl, "SSLContext", object)
    assert not watched._watch(context, [], lambda: 0.0)


# --- bytes that are no messages


@given(st.binary(max_size=300), st.sampled_from([0x0303, 0x0304]))
def test_no_bytes_break_the_reader(data: bytes, version: int) -> None:
    """Whatever comes: a name and a content, never an exception."""
    name, content = read_message(data, version)
    assert name
    assert content is not None
    assert isinstance(read_alert(data), Alert | Unread)
    assert authority_text(data)


@given(st.data())
def test_a_message_cut_anywhere_is_unread_or_shorter(data: st.DataObject) -> None:
    """Real messages with their ends cut off and bytes changed: still never an exception."""
    message = bytearray(data.draw(st.sampled_from(_recorded())))
    for _ in range(data.draw(st.integers(0, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    read_message(
        bytes(message[: data.draw(st.integers(0, len(message)))]), data.draw(st.sampled_from([0x0303, 0x0304]))
    )


_RECORDED: list[bytes] = []


def _recorded() -> list[bytes]:
    """The client hellos of this machine's TLS library, made once."""
    if not _RECORDED:
        for version in (V12, V13):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = context.maximum_version = version
            out = ssl.MemoryBIO()
            tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            _RECORDED.append(out.read()[5:])
    return _RECORDED


def test_a_message_beyond_the_limit_is_not_read() -> None:
    """A certificate message of a megabyte is named and passed over; one below the limit is read."""
    entry = (5).to_bytes(3, "big") + b"abcde"
    small = b"\x0b" + (3 + len(entry)).to_bytes(3, "big") + len(entry).to_bytes(3, "big") + entry
    assert read_message(small, 0x0303) == ("certificate", Chain((b"abcde",)))
    name, content = read_message(b"\x0b" + os.urandom(1_000_000), 0x0303)
    assert (name, isinstance(content, Unread)) == ("certificate", True)
