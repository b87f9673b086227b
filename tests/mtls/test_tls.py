"""TLS contexts, shown by real handshakes with the right CA and with the wrong one (S1, S12, R2-R4)."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from mtls.clock import Moment
from mtls.errors import ConfigFault, Reason, Refusal
from mtls.identity import IdentityRule
from mtls.judgement import Peer, peer_of, standing
from mtls.keystore import key_pem, new_key, write_private, write_public
from mtls.profiles import Issuer
from mtls.revocation import CrlSet, DenyList, StaleRule
from mtls.tls import client_context, explain_ssl_error, server_context
from mtls.trust import TrustStore, to_pem
from tests.mtls.handshakes import Side, handshake
from tests.support.pki import Credential, Pki, now

DAY = timedelta(days=1)
SERVER_AUTH = [ExtendedKeyUsageOID.SERVER_AUTH]
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
PAST: dict[str, Any] = {"not_before": now() - 3 * DAY, "not_after": now() - DAY}
FUTURE: dict[str, Any] = {"not_before": now() + DAY, "not_after": now() + 2 * DAY}
Reasons = tuple[Reason | None, Reason | None]


@pytest.fixture(scope="module")
def trust(pki: Pki) -> TrustStore:
    return TrustStore.from_pem(pki.ca_file.read_bytes(), "ca.crt")


@pytest.fixture(scope="module")
def server(pki: Pki) -> Credential:
    return pki.server()


@pytest.fixture(scope="module")
def device(pki: Pki) -> Credential:
    return pki.device("dev-a")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    return VERSIONS[request.param]


def serving(
    credential: Credential, trust: TrustStore, crls: Path | bytes | None = None, **more: object
) -> ssl.SSLContext:
    pem = crls.read_bytes() if isinstance(crls, Path) else crls
    files = {"cert_file": credential.cert_file, "key_file": credential.key_file}
    return server_context(**files, trust=trust, crls_pem=pem, **more)  # type: ignore[arg-type]


def showing(credential: Credential | None, ca_file: Path, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = client_context(
        ca_file=ca_file,
        cert_file=credential.cert_file if credential else None,
        key_file=credential.key_file if credential else None,
    )
    if version is not None:
        context.maximum_version = context.minimum_version = version
    return context


def reasons(sides: tuple[Side, Side]) -> Reasons:
    """What each side's error means; None for a side that got through."""
    first, second = (explain_ssl_error(side.error)[0] if side.error else None for side in sides)
    return first, second


# --- who gets through


def test_a_device_of_the_right_ca_gets_through_and_is_seen(
    pki: Pki, trust: TrustStore, server: Credential, device: Credential, version: ssl.TLSVersion
) -> None:
    """The server holds the leaf's DER, which is all that the judgement needs."""
    seen, held = handshake(serving(server, trust), showing(device, pki.ca_file, version))
    assert seen.is_up
    assert held.is_up
    assert seen.version == held.version == ("TLSv1.2" if version is ssl.TLSVersion.TLSv1_2 else "TLSv1.3")
    assert seen.peer_der == device.certificate.public_bytes(serialization.Encoding.DER)
    assert isinstance(peer_of(seen.peer_der, trust, IdentityRule()), Peer)


def test_a_device_that_sends_only_its_leaf_gets_through(
    pki: Pki, trust: TrustStore, server: Credential, device: Credential, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    """F6: the issuing CA stands in the gateway's CA file, and completes the chain."""
    leaf = tmp_path / "leaf.crt"
    write_public(leaf, to_pem([device.certificate]))
    client = showing(Credential(leaf, device.key_file, device.certificate), pki.ca_file, version)
    seen, _ = handshake(serving(server, trust), client)
    assert seen.is_up


def refused_by_server(pki: Pki, stranger: Pki) -> dict[str, tuple[Credential | None, Reasons, Reasons]]:
    """A client's certificate, and what server and client make of it with TLS 1.2 and with 1.3."""
    unknown = (Reason.ISSUER_UNKNOWN, Reason.ISSUER_UNKNOWN)
    forged = (Reason.ISSUER_UNKNOWN, Reason.HANDSHAKE_FAILED)  # the alert says "decrypt error"
    usage = (Reason.CERTIFICATE_USAGE, Reason.CERTIFICATE_USAGE)
    expired = (Reason.CERTIFICATE_EXPIRED, Reason.CERTIFICATE_EXPIRED)
    early = (Reason.CERTIFICATE_NOT_YET_VALID, Reason.HANDSHAKE_FAILED)  # the alert says "bad certificate"
    none = (Reason.NO_CERTIFICATE, Reason.HANDSHAKE_FAILED), (Reason.NO_CERTIFICATE, Reason.NO_CERTIFICATE)
    return {
        "none": (None, *none),
        "foreign CA": (stranger.device("dev-a"), unknown, unknown),
        "self-signed": (pki.raw_leaf(self_signed=True), unknown, unknown),
        "forged": (pki.raw_leaf(issuer=Issuer(pki.issuing.certificate, new_key())), forged, forged),
        "expired": (pki.raw_leaf(**PAST), expired, expired),
        "not yet valid": (pki.raw_leaf(**FUTURE), early, early),
        "a server's": (pki.raw_leaf(eku=SERVER_AUTH), usage, usage),
        "no digital signature": (pki.raw_leaf(digital_signature=False), usage, usage),
    }


def test_nobody_else_gets_through(
    pki: Pki, stranger: Pki, trust: TrustStore, server: Credential, version: ssl.TLSVersion
) -> None:
    """S1: no certificate, a wrong one, an expired one: the handshake fails, and both sides know why."""
    for name, (credential, with_12, with_13) in refused_by_server(pki, stranger).items():
        sides = handshake(serving(server, trust), showing(credential, pki.ca_file, version))
        expected = with_12 if version is ssl.TLSVersion.TLSv1_2 else with_13
        # The alert of a server that refused may be lost when it closes at once; the client never gets a byte.
        assert reasons(sides)[0] == expected[0], name
        assert reasons(sides)[1] in (expected[1], Reason.PEER_CLOSED), name
        assert not sides[1].is_up, name


def test_what_openssl_lets_through_our_own_judgement_stops(
    pki: Pki, trust: TrustStore, server: Credential, version: ssl.TLSVersion
) -> None:
    """A leaf that is a CA, or that names no purpose, passes the handshake and is nobody all the same."""
    for leaf, reason in (({"ca": True}, Reason.CERTIFICATE_IS_CA), ({"eku": None}, Reason.CERTIFICATE_USAGE)):
        seen, _ = handshake(serving(server, trust), showing(pki.raw_leaf(**leaf), pki.ca_file, version))
        assert seen.peer_der is not None
        found = peer_of(seen.peer_der, trust, IdentityRule())
        assert not isinstance(found, Peer)
        assert found.reason == reason


def test_only_roots_are_anchors(pki: Pki, server: Credential, device: Credential, version: ssl.TLSVersion) -> None:
    """An issuing CA beside another root does not make its leaves trusted (no partial chains)."""
    context = serving(server, TrustStore.from_pem(pki.ca_file.read_bytes(), "ca.crt"))
    assert not context.verify_flags & ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    anchors = {cert["subject"] for cert in context.get_ca_certs()}
    assert len(anchors) == 2
    client = client_context(ca_file=pki.root_file)
    assert not client.verify_flags & ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    issuing_only = pki.folder / "issuing-only.crt"
    write_public(issuing_only, to_pem([pki.issuing.certificate]))
    _, held = handshake(context, showing(device, issuing_only, version))
    assert held.error is not None
    assert explain_ssl_error(held.error)[0] == Reason.ISSUER_UNKNOWN


# --- versions, ciphers, tickets


def old_client(device: Credential, pki: Pki, version: ssl.TLSVersion, ciphers: str) -> ssl.SSLContext:
    """A client as careless as possible."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(pki.ca_file)
    context.load_cert_chain(device.cert_file, device.key_file)
    context.set_ciphers(ciphers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize("old", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=["1.0", "1.1"])
def test_nothing_below_tls_1_2_is_served(
    old: ssl.TLSVersion, pki: Pki, trust: TrustStore, server: Credential, device: Credential
) -> None:
    """S1."""
    seen, held = handshake(serving(server, trust), old_client(device, pki, old, "ALL:@SECLEVEL=0"))
    assert isinstance(seen.error, ssl.SSLError)
    assert seen.error.reason == "UNSUPPORTED_PROTOCOL"
    assert not held.is_up


@pytest.mark.parametrize(
    ("ciphers", "allowed"),
    [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", True),
        ("ECDHE-ECDSA-AES256-GCM-SHA384", True),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", True),
        ("ECDHE-ECDSA-AES128-SHA256", False),
        ("ECDHE-ECDSA-AES256-SHA", False),
        ("ECDHE-ECDSA-AES128-CCM8", False),
        ("AES128-GCM-SHA256", False),
        ("DHE-RSA-AES128-GCM-SHA256", False),
    ],
)
def test_tls_1_2_is_served_with_ecdhe_and_aead_only(
    ciphers: str, allowed: bool, pki: Pki, trust: TrustStore, server: Credential, device: Credential
) -> None:
    """No CBC, no static key exchange, no shortened tags."""
    client = old_client(device, pki, ssl.TLSVersion.TLSv1_2, ciphers)
    seen, held = handshake(serving(server, trust), client)
    assert seen.is_up is held.is_up is allowed
    if allowed:
        assert seen.cipher == ciphers
    else:
        assert isinstance(seen.error, ssl.SSLError)
        assert seen.error.reason == "NO_SHARED_CIPHER"


def test_min_tls_1_3_refuses_1_2(pki: Pki, trust: TrustStore, server: Credential, device: Credential) -> None:
    """And serves 1.3; any other value is a fault of the configuration."""
    context = serving(server, trust, min_tls="1.3")
    assert handshake(context, showing(device, pki.ca_file))[0].version == "TLSv1.3"
    assert not handshake(context, showing(device, pki.ca_file, ssl.TLSVersion.TLSv1_2))[0].is_up
    for wrong in ("1.1", "", "2"):
        with pytest.raises(ConfigFault, match=r"min_tls = .* is not one of 1.2, 1.3"):
            serving(server, trust, min_tls=wrong)


def test_the_switches_of_the_context(pki: Pki, trust: TrustStore, server: Credential) -> None:
    """What no handshake with a well-behaved client can show."""
    for context in (serving(server, trust), client_context(ca_file=pki.ca_file)):
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert context.security_level >= 1
        assert context.verify_mode is ssl.CERT_REQUIRED
    context = serving(server, trust)
    assert context.options & ssl.OP_NO_TICKET
    assert context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert context.num_tickets == 0


def test_no_tickets_are_given_out(
    pki: Pki, trust: TrustStore, server: Credential, device: Credential, version: ssl.TLSVersion
) -> None:
    """S12: a stock context gives tickets, which shows that the test can see them."""
    stock = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    stock.load_cert_chain(server.cert_file, server.key_file)
    _, held = handshake(stock, showing(device, pki.ca_file, version))
    assert held.tickets == 1
    _, held = handshake(serving(server, trust), showing(device, pki.ca_file, version))
    assert held.is_up
    assert held.tickets == 0


def test_tls_1_3_does_not_resume(pki: Pki, trust: TrustStore, server: Credential, device: Credential) -> None:
    """Without tickets there is nothing to resume by: every handshake is a full one."""
    context, client = serving(server, trust), showing(device, pki.ca_file, ssl.TLSVersion.TLSv1_3)
    _, first = handshake(context, client)
    seen, _ = handshake(context, client, session=first.session)
    assert seen.is_up
    assert seen.session_reused is False


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_full_handshake_proves_the_issuer(
    pki: Pki, trust: TrustStore, server: Credential, device: Credential, version: ssl.TLSVersion
) -> None:
    """The certificate whose key verified the leaf, byte for byte the one in the CA file."""
    seen, _ = handshake(serving(server, trust), showing(device, pki.ca_file, version))
    assert seen.is_up
    assert seen.proven_issuer == pki.issuing.certificate.public_bytes(serialization.Encoding.DER)


def test_an_issuer_that_only_the_client_has_is_proven_and_not_trusted(
    pki: Pki, server: Credential, tmp_path: Path
) -> None:
    """A CA below our root that only the client has: OpenSSL takes it, our own judgement does not."""
    roots_only = TrustStore.from_pem(pki.root_file.read_bytes(), "root.crt")
    seen, _ = handshake(serving(server, roots_only), showing(pki.device("dev-a"), pki.ca_file))
    assert seen.is_up
    assert seen.peer_der is not None
    assert seen.proven_issuer == pki.issuing.certificate.public_bytes(serialization.Encoding.DER)
    found = peer_of(seen.peer_der, roots_only, IdentityRule(), seen.proven_issuer)
    assert isinstance(found, Refusal)
    assert found.reason is Reason.ISSUER_UNKNOWN


def test_a_resumed_session_proves_nothing(
    pki: Pki, trust: TrustStore, server: Credential, device: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S12: nothing was verified in that handshake, so the issuer is found by its key."""
    monkeypatch.setattr("mtls.tls.remember_no_sessions", lambda context: False)
    context, client = serving(server, trust), showing(device, pki.ca_file, ssl.TLSVersion.TLSv1_2)
    _, held = handshake(context, client)
    resumed, _ = handshake(context, client, session=held.session)
    assert resumed.session_reused is True
    assert resumed.proven_issuer is None


def test_a_resumed_tls_1_2_session_is_judged_by_its_leaf(
    pki: Pki, trust: TrustStore, server: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S12: OpenSSL's session cache skips CRL and dates; the leaf's DER is still there, and our judgement refuses."""
    monkeypatch.setattr("mtls.tls.remember_no_sessions", lambda context: False)  # as where it cannot be switched off
    device = pki.device("dev-a")
    context = serving(server, trust, pki.crl())
    client = showing(device, pki.ca_file, ssl.TLSVersion.TLSv1_2)
    first, held = handshake(context, client)
    assert first.session_reused is False
    resumed, again = handshake(context, client, session=held.session)
    assert resumed.session_reused is True  # else this test shows nothing
    assert again.is_up
    assert resumed.peer_der == device.certificate.public_bytes(serialization.Encoding.DER)
    peer = peer_of(resumed.peer_der, trust, IdentityRule())
    assert isinstance(peer, Peer)
    for revoked, expected in (((), None), ((device.certificate,), Reason.CERTIFICATE_REVOKED)):
        crls = CrlSet.from_pem(pki.crl(revoked).read_bytes(), trust, "crl.pem")
        refusal = standing(peer, trust=trust, crls=crls, stale=StaleRule(), deny=DenyList(), now=Moment(now()))
        assert (refusal.reason if refusal else None) == expected


def test_a_session_of_before_a_reload_is_not_resumed_after_it(
    pki: Pki, trust: TrustStore, server: Credential, version: ssl.TLSVersion
) -> None:
    """R1: a new context knows no old sessions, so the revoked device makes a full handshake, which fails."""
    device, neighbour = pki.device("dev-a"), pki.device("dev-b")
    before = serving(server, trust, pki.crl())
    after = serving(server, trust, pki.crl([device.certificate]))
    for credential, gets_through in ((device, False), (neighbour, True)):
        client = showing(credential, pki.ca_file, version)
        _, held = handshake(before, client)
        assert held.is_up
        seen, _ = handshake(after, client, session=held.session)
        assert seen.is_up is gets_through
        assert not seen.session_reused


# --- CRLs at the handshake


def test_crls_are_checked_up_the_whole_chain(
    pki: Pki, trust: TrustStore, server: Credential, device: Credential, version: ssl.TLSVersion, stranger: Pki
) -> None:
    """R3, R4: an empty CRL is valid; revoked, missing, foreign, of tomorrow or stale ones refuse with their reason."""
    leaf_only = pki.crl().read_bytes().split(b"-----END X509 CRL-----\n")[0] + b"-----END X509 CRL-----\n"
    cases: dict[str, tuple[Path | bytes, Reason | None]] = {
        "empty": (pki.crl(), None),
        "leaf revoked": (pki.crl([device.certificate]), Reason.CERTIFICATE_REVOKED),
        "issuing CA revoked": (pki.crl(issuer_revoked=[pki.issuing.certificate]), Reason.CERTIFICATE_REVOKED),
        "root's missing": (leaf_only, Reason.CRL_MISSING),
        "foreign": (stranger.crl(), Reason.CRL_MISSING),
        "stale": (pki.crl(now=now() - 10 * DAY), Reason.CRL_STALE),
        "of tomorrow": (pki.crl(now=now() + DAY), Reason.CRL_NOT_YET_VALID),
    }
    for name, (crls, reason) in cases.items():
        sides = handshake(serving(server, trust, crls), showing(device, pki.ca_file, version))
        assert reasons(sides)[0] == reason, name
        assert sides[1].is_up is (reason is None), name


def test_with_grace_the_dates_are_left_to_our_own_judgement(
    pki: Pki, trust: TrustStore, server: Credential, device: Credential, version: ssl.TLSVersion
) -> None:
    """R3: OpenSSL refuses a stale CRL by itself; without its clock our judgement still stops what is too late."""
    stale = pki.crl(now=now() - 10 * DAY)
    context = serving(server, trust, stale, own_dates=True)
    assert context.verify_flags & 0x200000
    seen, _ = handshake(context, showing(device, pki.ca_file, version))
    assert seen.is_up
    expired = pki.raw_leaf(**PAST)
    seen, _ = handshake(context, showing(expired, pki.ca_file, version))
    assert seen.peer_der is not None
    peer = peer_of(seen.peer_der, trust, IdentityRule())
    assert isinstance(peer, Peer)
    crls = CrlSet.from_pem(stale.read_bytes(), trust, "crl.pem")
    grace = StaleRule.parse("grace 240h")
    refusal = standing(peer, trust=trust, crls=crls, stale=grace, deny=DenyList(), now=Moment(now()))
    assert refusal is not None
    assert refusal.reason == Reason.CERTIFICATE_EXPIRED
    revoked = serving(server, trust, pki.crl([device.certificate]), own_dates=True)
    assert reasons(handshake(revoked, showing(device, pki.ca_file, version)))[0] == Reason.CERTIFICATE_REVOKED


def test_a_certificate_in_a_crl_file_is_no_anchor(
    pki: Pki, trust: TrustStore, server: Credential, stranger: Pki, version: ssl.TLSVersion
) -> None:
    """OpenSSL loads whatever stands in the file: a stranger's root in a fetched CRL file must stay a stranger's."""
    crls = to_pem([stranger.root.certificate, stranger.issuing.certificate]) + pki.crl().read_bytes()
    crls += stranger.crl().read_bytes()
    context = serving(server, trust, crls)
    assert len(context.get_ca_certs()) == 2
    sides = handshake(context, showing(stranger.device("dev-a"), pki.ca_file, version))
    assert reasons(sides)[0] == Reason.ISSUER_UNKNOWN


@pytest.mark.parametrize(
    ("pem", "sentence"),
    [
        (b"", "the CRL file holds no CRL"),
        (b"junk", "the CRL file holds no CRL"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "holds a CRL that cannot be parsed"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n", "holds a CRL that cannot be parsed"),
    ],
    ids=["empty", "junk", "damaged", "truncated"],
)
def test_crls_that_cannot_be_used_are_a_fault(pem: bytes, sentence: str, trust: TrustStore, server: Credential) -> None:
    """Never a context without the check."""
    with pytest.raises(ConfigFault, match=sentence):
        serving(server, trust, pem)


def test_a_full_disk_is_a_fault(
    pki: Pki, trust: TrustStore, server: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL takes CRLs from a file only, so one is made for a moment; nothing of it stays."""

    def full(*_: object, **__: object) -> object:
        raise OSError(28, "No space left on device")

    crls = pki.crl()
    monkeypatch.setattr("mtls.tls.tempfile.NamedTemporaryFile", full)
    with pytest.raises(ConfigFault, match="No space left on device"):
        serving(server, trust, crls)


def test_no_temporary_file_stays(
    pki: Pki, trust: TrustStore, server: Credential, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also none after a failure."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    serving(server, trust, pki.crl())
    with pytest.raises(ConfigFault):
        serving(server, trust, b"junk")
    assert list(tmp_path.iterdir()) == []


# --- the server's own files


def test_a_key_that_is_not_the_certificates_is_a_fault(pki: Pki, trust: TrustStore, server: Credential) -> None:
    """R7: matched before anything is swapped; both files are named."""
    other = pki.server()
    with pytest.raises(ConfigFault) as caught:
        server_context(cert_file=server.cert_file, key_file=other.key_file, trust=trust)
    assert str(caught.value) == f"{other.key_file} is not the key of {server.cert_file}"


def test_each_unusable_server_file_is_a_fault(pki: Pki, trust: TrustStore, server: Credential, tmp_path: Path) -> None:
    """Missing, loose, encrypted, cut short, or something else altogether."""
    loose, sealed, cut, junk = (tmp_path / name for name in ("loose.key", "sealed.key", "cut.key", "junk.crt"))
    shutil.copy(server.key_file, loose)
    loose.chmod(0o644)
    write_private(sealed, key_pem(new_key(), b"passphrase"))
    write_private(cut, server.key_file.read_bytes()[:100])
    write_public(junk, b"junk")
    for cert_file, key_file, sentence in (
        (server.cert_file, tmp_path / "none.key", "none.key does not exist"),
        (tmp_path / "none.crt", server.key_file, "none.crt does not exist"),
        (server.cert_file, loose, "can be read by others"),
        (server.cert_file, sealed, "sealed.key is encrypted"),
        (server.cert_file, cut, "cannot be used"),
        (junk, server.key_file, "cannot be used"),
        (server.key_file, server.key_file, "cannot be used"),
    ):
        with pytest.raises(ConfigFault, match=sentence) as caught:
            server_context(cert_file=cert_file, key_file=key_file, trust=trust)
        assert caught.value.hint


def test_a_file_that_vanishes_while_it_is_read_is_a_fault(
    trust: TrustStore, server: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal may be swapping files at this very moment."""

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", gone)
    with pytest.raises(ConfigFault, match="cannot be read: No such file or directory"):
        serving(server, trust)


def test_a_server_with_an_rsa_key_of_another_ca_is_served(pki: Pki, trust: TrustStore, tmp_path: Path) -> None:
    """The gateway's certificate may come from elsewhere; P-256 is for the keys that we make."""
    key = rsa.generate_private_key(65537, 2048)
    cert_file, key_file = tmp_path / "server.crt", tmp_path / "server.key"
    write_private(
        key_file,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    request = ["openssl", "req", "-x509", "-key", str(key_file), "-out", str(cert_file), "-days", "1"]
    request += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(request, check=True, capture_output=True)
    context = server_context(cert_file=cert_file, key_file=key_file, trust=trust)
    device = pki.device("dev-a")
    client = client_context(ca_file=cert_file, cert_file=device.cert_file, key_file=device.key_file)
    assert handshake(context, client)[0].is_up


# --- the client


def test_a_client_verifies_the_server(
    pki: Pki, trust: TrustStore, device: Credential, version: ssl.TLSVersion, stranger: Pki
) -> None:
    """Right CA and right name, and each way to be wrong, with its reason."""
    good = pki.server()

    def outcome(server: Credential, name: str = "localhost", ca: Path = pki.ca_file) -> Reason | None:
        sides = handshake(serving(server, trust), showing(device, ca, version), server_hostname=name)
        return reasons(sides)[1]

    assert outcome(good) is None
    assert outcome(good, "127.0.0.1") is None
    assert outcome(good, ca=pki.root_file) is None
    assert outcome(good, ca=stranger.ca_file) == Reason.ISSUER_UNKNOWN
    assert outcome(good, "gateway.example.com") == Reason.IDENTITY_CONFLICT
    assert outcome(good, "127.0.0.2") == Reason.IDENTITY_CONFLICT
    assert outcome(pki.raw_leaf(cn="localhost", eku=SERVER_AUTH, **PAST)) == Reason.CERTIFICATE_EXPIRED
    assert outcome(pki.raw_leaf(cn="localhost", eku=SERVER_AUTH, **FUTURE)) == Reason.CERTIFICATE_NOT_YET_VALID
    assert outcome(pki.raw_leaf(cn="localhost", self_signed=True)) == Reason.ISSUER_UNKNOWN
    assert outcome(pki.device("localhost")) == Reason.CERTIFICATE_USAGE


def test_without_host_name_check_the_ca_still_counts(
    pki: Pki, trust: TrustStore, server: Credential, stranger: Pki, device: Credential
) -> None:
    """For a gateway that is addressed by a name that is not its own."""
    for ca_file, expected in ((pki.ca_file, None), (stranger.ca_file, Reason.ISSUER_UNKNOWN)):
        client = client_context(
            ca_file=ca_file, cert_file=device.cert_file, key_file=device.key_file, check_hostname=False
        )
        assert reasons(handshake(serving(server, trust), client, server_hostname="other"))[1] == expected


def test_each_unusable_client_file_is_a_fault(pki: Pki, device: Credential, tmp_path: Path) -> None:
    """CA file of junk, missing, of a key; half a pair; a loose key; another key."""
    junk = tmp_path / "junk"
    write_public(junk, b"junk")
    for ca_file, sentence in (
        (junk, "holds no CA certificates"),
        (device.key_file, "holds no CA certificates"),
        (tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(ConfigFault, match=sentence):
            client_context(ca_file=ca_file)
    for cert_file, key_file in ((device.cert_file, None), (None, device.key_file)):
        with pytest.raises(ConfigFault, match="is only one half of a pair"):
            client_context(ca_file=pki.ca_file, cert_file=cert_file, key_file=key_file)
    with pytest.raises(ConfigFault, match="is not the key of"):
        client_context(ca_file=pki.ca_file, cert_file=device.cert_file, key_file=pki.device("b").key_file)


# --- errors, explained


@pytest.fixture
def plain_port() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    theirs.settimeout(0.2)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (b"220 mail.example.com ESMTP\r\n" * 4, Reason.HANDSHAKE_FAILED, "does not speak TLS"),
        (b"", Reason.PEER_CLOSED, "closed the connection"),
        (None, Reason.HANDSHAKE_TIMEOUT, "took too long"),
    ],
    ids=["other-protocol", "closed", "silent"],
)
def test_a_port_that_does_not_speak_tls_is_explained(
    answer: bytes | None,
    reason: Reason,
    words: str,
    pki: Pki,
    plain_port: tuple[socket.socket, socket.socket],
) -> None:
    """Another protocol, a closed connection, silence."""
    ours, theirs = plain_port

    def serve() -> None:
        ours.recv(4096)
        if answer is not None:
            ours.sendall(answer)
            ours.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(OSError) as caught:
        client_context(ca_file=pki.ca_file).wrap_socket(theirs, server_hostname="localhost")
    thread.join(5)
    found, sentence, _ = explain_ssl_error(caught.value)
    assert found == reason
    assert words in sentence


def test_plain_http_on_the_tls_port_is_explained(
    trust: TrustStore, server: Credential, plain_port: tuple[socket.socket, socket.socket]
) -> None:
    """A browser or a health check without TLS."""
    ours, theirs = plain_port
    theirs.sendall(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(ssl.SSLError) as caught:
        serving(server, trust).wrap_socket(ours, server_side=True)
    assert explain_ssl_error(caught.value)[:2] == (Reason.HANDSHAKE_FAILED, "the peer speaks HTTP on this port")


def alert(name: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {name}] {name.lower().replace('_', ' ')} (_ssl.c:2580)")
    error.reason = name
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (alert("SSLV3_ALERT_CERTIFICATE_EXPIRED"), Reason.CERTIFICATE_EXPIRED),
        (alert("SSLV3_ALERT_CERTIFICATE_REVOKED"), Reason.CERTIFICATE_REVOKED),
        (alert("TLSV1_ALERT_UNKNOWN_CA"), Reason.ISSUER_UNKNOWN),
        (alert("SSLV3_ALERT_BAD_CERTIFICATE"), Reason.HANDSHAKE_FAILED),
        (alert("SSLV3_ALERT_CERTIFICATE_UNKNOWN"), Reason.HANDSHAKE_FAILED),
        (alert("SSL/TLS_ALERT_CERTIFICATE_REVOKED"), Reason.CERTIFICATE_REVOKED),
        (alert("TLSV13_ALERT_CERTIFICATE_REQUIRED"), Reason.NO_CERTIFICATE),
        (alert("SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"), Reason.CERTIFICATE_USAGE),
        (alert("TLSV1_ALERT_DECRYPT_ERROR"), Reason.HANDSHAKE_FAILED),
        (alert("SSLV3_ALERT_HANDSHAKE_FAILURE"), Reason.HANDSHAKE_FAILED),
        (alert("TLSV1_ALERT_PROTOCOL_VERSION"), Reason.HANDSHAKE_FAILED),
        (alert("TLSV1_ALERT_INTERNAL_ERROR"), Reason.HANDSHAKE_FAILED),
        (ConnectionResetError(104, "Connection reset by peer"), Reason.PEER_CLOSED),
        (BrokenPipeError(32, "Broken pipe"), Reason.PEER_CLOSED),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), Reason.PEER_CLOSED),
        (EOFError(), Reason.PEER_CLOSED),
        (TimeoutError("timed out"), Reason.HANDSHAKE_TIMEOUT),
        (ValueError("\x1b[2Jsurprise"), Reason.HANDSHAKE_FAILED),
    ],
    ids=lambda value: getattr(value, "reason", None) or type(value).__name__,
)
def test_every_error_has_one_reason_and_one_sentence(error: BaseException, reason: Reason) -> None:
    """Lower case, no final period, nothing of the peer's text; an alert names our certificate, not the other's."""
    found, sentence, hint = explain_ssl_error(error)
    assert found == reason
    assert sentence.isprintable()
    assert "surprise" not in sentence
    assert sentence[0].islower()
    assert not sentence.endswith(".")
    assert not hint.endswith(".")
    if "ALERT" in str(error) and "CERTIFICATE" in str(error) and reason is not Reason.NO_CERTIFICATE:
        assert "our certificate" in sentence


def test_a_name_that_does_not_match_is_said(
    pki: Pki, trust: TrustStore, server: Credential, device: Credential
) -> None:
    """The name that was asked for stands in the sentence."""
    _, held = handshake(serving(server, trust), showing(device, pki.ca_file), server_hostname="gw.example.com")
    assert held.error is not None
    _, sentence, hint = explain_ssl_error(held.error, server_name="gw.example.com")
    assert sentence == "the server's certificate is for another name (gw.example.com)"
    assert hint
