"""Certificate profiles: every extension, judged by OpenSSL and by the profile that built it (F5, F6)."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mtls.identity import quiet_parser
from mtls.keystore import new_key, write_public
from mtls.profiles import (
    DEVICE_BIRTH,
    DEVICE_OPERATIONAL,
    GATEWAY_SERVER,
    ISSUING_CA,
    PROFILES,
    ROOT_CA,
    SERVICE,
    STATION,
    Issuer,
    Mismatch,
    Profile,
    certificate_serial_hex,
    common_name,
    fingerprint_sha256,
    random_certificate_serial,
    spki_sha256,
)
from mtls.trust import to_pem
from tests.support.pki import Pki, now

CLIENTS = (DEVICE_BIRTH, DEVICE_OPERATIONAL, SERVICE, STATION)
LEAVES = (*CLIENTS, GATEWAY_SERVER)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
URL = "http://crl.example.com/issuing.crl"


def made(profile: Profile, pki: Pki, **build: object) -> x509.Certificate:
    """A certificate of a profile below the test CA."""
    names = {"dns": ["localhost"], "ips": ["127.0.0.1", "::1"]} if profile is GATEWAY_SERVER else {}
    arguments: dict[str, object] = {"issuer": pki.issuing, "now": now(), "crl_url": URL, **names, **build}
    return profile.build(subject_cn="press-07", public_key=new_key().public_key(), **arguments)  # type: ignore[arg-type]


def openssl(*arguments: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[str]:
    """The independent judge."""
    return subprocess.run(
        ["openssl", *map(str, arguments)], input=data.decode(), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("profile", LEAVES, ids=lambda profile: profile.name)
def test_openssl_finds_nothing_wrong_under_strict_rules(profile: Profile, pki: Pki, tmp_path: Path) -> None:
    """RFC 5280 to the letter, for the purpose it was made for and for no other."""
    leaf = tmp_path / "leaf.crt"
    write_public(leaf, to_pem([made(profile, pki)]))
    issuing = tmp_path / "issuing.crt"
    write_public(issuing, to_pem([pki.issuing.certificate]))
    purpose, other = ("sslserver", "sslclient") if profile is GATEWAY_SERVER else ("sslclient", "sslserver")
    strict = ("verify", "-x509_strict", "-check_ss_sig", "-CAfile", pki.root_file, "-untrusted", issuing)
    allowed = openssl(*strict, "-purpose", purpose, leaf)
    assert allowed.returncode == 0, allowed.stderr
    denied = openssl(*strict, "-purpose", other, leaf)
    assert "unsuitable certificate purpose" in denied.stderr
    assert "unable to get issuer certificate" in openssl("verify", "-CAfile", issuing, leaf).stderr


@pytest.mark.parametrize("which", ["root", "issuing"])
def test_the_ca_certificates_pass_strict_rules_too(which: str, pki: Pki, tmp_path: Path) -> None:
    """Root and issuing CA, as CAs."""
    path = tmp_path / "ca.crt"
    write_public(path, to_pem([getattr(pki, which).certificate]))
    judged = openssl("verify", "-x509_strict", "-check_ss_sig", "-CAfile", pki.root_file, path)
    assert judged.returncode == 0, judged.stderr


def test_an_issuing_ca_cannot_make_another_ca(pki: Pki, tmp_path: Path) -> None:
    """pathLen 0: OpenSSL refuses what is below a CA that an issuing CA signed."""
    key = new_key()
    below = ISSUING_CA.build(subject_cn="Rogue CA", public_key=key.public_key(), issuer=pki.issuing, now=now())
    leaf, chain = tmp_path / "leaf.crt", tmp_path / "chain.crt"
    write_public(leaf, to_pem([made(DEVICE_OPERATIONAL, pki, issuer=Issuer(below, key))]))
    write_public(chain, to_pem([below, pki.issuing.certificate]))
    judged = openssl("verify", "-CAfile", pki.root_file, "-untrusted", chain, leaf)
    assert "path length constraint exceeded" in judged.stderr


@pytest.mark.parametrize("profile", LEAVES, ids=lambda profile: profile.name)
def test_a_leaf_carries_exactly_these_extensions(profile: Profile, pki: Pki) -> None:
    """The list, with what is critical; nothing less and nothing more."""
    cert = made(profile, pki)
    extensions = {type(e.value): (e.value, e.critical) for e in cert.extensions}
    assert extensions.keys() == {
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.ExtendedKeyUsage,
        x509.SubjectKeyIdentifier,
        x509.AuthorityKeyIdentifier,
        x509.SubjectAlternativeName,
        x509.CRLDistributionPoints,
    }
    critical = {kind for kind, (_, is_critical) in extensions.items() if is_critical}
    assert critical == {x509.BasicConstraints, x509.KeyUsage}
    assert extensions[x509.BasicConstraints][0] == x509.BasicConstraints(ca=False, path_length=None)
    usage = extensions[x509.KeyUsage][0]
    assert usage == x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if profile is GATEWAY_SERVER else ExtendedKeyUsageOID.CLIENT_AUTH
    assert list(extensions[x509.ExtendedKeyUsage][0]) == [purpose]
    public_key = cert.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    assert extensions[x509.SubjectKeyIdentifier][0] == x509.SubjectKeyIdentifier.from_public_key(public_key)
    (point,) = extensions[x509.CRLDistributionPoints][0]
    assert point.full_name == [x509.UniformResourceIdentifier(URL)]


@pytest.mark.parametrize(("which", "path_len"), [("root", 1), ("issuing", 0)])
def test_a_ca_carries_exactly_these_extensions(which: str, path_len: int, pki: Pki) -> None:
    """May sign certificates and CRLs, and do nothing else."""
    cert = getattr(pki, which).certificate
    extensions = {type(e.value): (e.value, e.critical) for e in cert.extensions}
    above = {x509.AuthorityKeyIdentifier} if which == "issuing" else set()
    assert extensions.keys() == {x509.BasicConstraints, x509.KeyUsage, x509.SubjectKeyIdentifier} | above
    assert extensions[x509.BasicConstraints] == (x509.BasicConstraints(ca=True, path_length=path_len), True)
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    assert extensions[x509.KeyUsage] == (usage, True)


@pytest.mark.parametrize("profile", CLIENTS, ids=lambda profile: profile.name)
def test_a_client_names_its_device_twice(profile: Profile, pki: Pki) -> None:
    """As common name and as a URN; as a SPIFFE id when there is a domain."""
    cert = made(profile, pki, ou="services", o="Works", spiffe_domain="factory.example")
    san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == [
        "urn:mtls-gateway:device:press-07",
        "spiffe://factory.example/device/press-07",
    ]
    assert cert.subject.rfc4514_string() == "CN=press-07,OU=services,O=Works"
    assert common_name(cert.subject) == "press-07"
    assert common_name(x509.Name([])) == ""


def test_a_server_names_hosts_and_addresses_and_no_device(pki: Pki) -> None:
    """Clients compare names of the SAN only."""
    san = made(GATEWAY_SERVER, pki).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["localhost"]
    assert san.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    ]
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == []


def test_the_authority_key_id_is_the_issuers_own_and_not_recomputed(pki: Pki, tmp_path: Path) -> None:
    """F6: a foreign CA may make its identifier in another way; strict verification must hold all the same."""
    key, name = new_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Foreign Root")])
    foreign = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now() - timedelta(days=1))
        .not_valid_after(now() + timedelta(days=30))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(b"by hand"), critical=False)
        .sign(key, hashes.SHA256())
    )
    leaf = made(DEVICE_OPERATIONAL, pki, issuer=Issuer(foreign, key))
    assert leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == b"by hand"
    for path, cert in ((tmp_path / "root.crt", foreign), (tmp_path / "leaf.crt", leaf)):
        write_public(path, to_pem([cert]))
    judged = openssl("verify", "-x509_strict", "-CAfile", tmp_path / "root.crt", tmp_path / "leaf.crt")
    assert judged.returncode == 0, judged.stderr
    assert DEVICE_OPERATIONAL.check(leaf, foreign) == ()


def test_an_issuer_without_a_key_id_is_refused(pki: Pki) -> None:
    """The deny twin: nothing is invented in its place."""
    bare = pki.raw_leaf(ca=True)
    with pytest.raises(ValueError, match="no subject key identifier"):
        made(DEVICE_OPERATIONAL, pki, issuer=Issuer(bare.certificate, new_key()))


# --- validity


def chain_at(when: datetime) -> tuple[Issuer, Issuer]:
    """A root made at a moment and an issuing CA made two hours later."""
    root_key, key = new_key(), new_key()
    root = ROOT_CA.build(subject_cn="R", public_key=root_key.public_key(), issuer=None, key=root_key, now=when)
    above = Issuer(root, root_key)
    later = when + timedelta(hours=2)
    issuing = ISSUING_CA.build(subject_cn="I", public_key=key.public_key(), issuer=above, now=later)
    return above, Issuer(issuing, key)


def test_not_before_is_one_hour_ago_and_never_before_the_issuers(pki: Pki) -> None:
    """A device whose clock is a little behind can use its certificate at once; a chain must still nest."""
    _, issuing = chain_at(NOON - timedelta(days=1))
    assert made(SERVICE, pki, issuer=issuing, now=NOON).not_valid_before_utc == NOON - timedelta(hours=1)
    _, young = chain_at(NOON - timedelta(hours=2))
    assert made(SERVICE, pki, issuer=young, now=NOON).not_valid_before_utc == young.certificate.not_valid_before_utc
    assert young.certificate.not_valid_before_utc == NOON - timedelta(hours=1)


def test_not_after_is_the_lifetime_and_never_after_the_issuers(pki: Pki) -> None:
    """F6: clamped to the chain; a birth certificate lives as long as its chain."""
    root, issuing = chain_at(NOON)
    assert made(SERVICE, pki, issuer=issuing, now=NOON).not_valid_after_utc == NOON + timedelta(days=365)
    short = made(SERVICE, pki, issuer=issuing, now=NOON, lifetime=timedelta(days=3))
    assert short.not_valid_after_utc == NOON + timedelta(days=3)
    birth = made(DEVICE_BIRTH, pki, issuer=issuing, now=NOON)
    assert birth.not_valid_after_utc == issuing.certificate.not_valid_after_utc
    assert issuing.certificate.not_valid_after_utc <= root.certificate.not_valid_after_utc


def test_an_expired_issuer_cannot_issue(pki: Pki) -> None:
    """There would be no moment at which the chain is valid."""
    _, issuing = chain_at(NOON)
    with pytest.raises(ValueError, match="the issuer's certificate has expired"):
        made(SERVICE, pki, issuer=issuing, now=NOON + timedelta(days=4000))


def test_a_birth_certificate_below_a_root_without_end_is_dated_by_generalized_time(tmp_path: Path) -> None:
    """From 2050 on a date is a GeneralizedTime; OpenSSL reads it."""
    key = new_key()
    cert = ROOT_CA.build(
        subject_cn="R", public_key=key.public_key(), issuer=None, key=key, now=NOON, lifetime=timedelta(days=36525)
    )
    dates = openssl("x509", "-noout", "-enddate", data=cert.public_bytes(Encoding.PEM)).stdout
    assert dates.strip() == "notAfter=Mar  2 12:00:00 2126 GMT"


# --- what build refuses


@pytest.mark.parametrize("name", ["a/b", "+", "", "x" * 65, "a b"], ids=ascii)
def test_a_device_certificate_is_only_made_for_a_device_id(name: str, pki: Pki) -> None:
    """F11, S5: what admission would refuse is never issued."""
    with pytest.raises(ValueError, match=r"device id|length"):
        DEVICE_OPERATIONAL.build(subject_cn=name, public_key=new_key().public_key(), issuer=pki.issuing, now=now())


def test_a_server_needs_a_name_and_a_self_signed_certificate_its_key(pki: Pki) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="needs a DNS name or an address"):
        made(GATEWAY_SERVER, pki, dns=[], ips=[])
    with pytest.raises(ValueError, match="needs its key"):
        made(ROOT_CA, pki, issuer=None)
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        made(GATEWAY_SERVER, pki, ips=["300.0.0.1"])


# --- certificate serials and digests


def test_certificate_serials_are_random_128_bit_numbers() -> None:
    """F5: positive, within 20 octets, never twice, and no bit of them stands still."""
    serials = [random_certificate_serial() for _ in range(400)]
    assert len(set(serials)) == len(serials)
    assert all(0 < serial < 1 << 128 for serial in serials)
    ones, zeros = 0, (1 << 128) - 1
    for serial in serials:
        ones |= serial
        zeros &= serial
    assert ones == (1 << 128) - 1
    assert zeros == 0


@pytest.mark.parametrize("serial", [1, 0xABC, 0x80, 0x0DEADBEEF, (1 << 128) - 1], ids=hex)
def test_serial_fingerprint_and_key_digest_read_as_openssl_prints_them(serial: int, pki: Pki) -> None:
    """One spelling everywhere: lower-case hex, whole bytes."""
    cert = made(SERVICE, pki, certificate_serial=serial)
    pem = cert.public_bytes(Encoding.PEM)
    printed = openssl("x509", "-noout", "-serial", "-fingerprint", "-sha256", data=pem).stdout.lower().replace(":", "")
    assert f"serial={certificate_serial_hex(cert)}\n" in printed
    assert f"fingerprint={fingerprint_sha256(cert)}\n" in printed
    assert len(certificate_serial_hex(cert)) % 2 == 0
    key = openssl("x509", "-noout", "-pubkey", data=pem).stdout
    spki = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"], input=key.encode(), capture_output=True, check=True
    ).stdout
    digest = subprocess.run(["openssl", "sha256", "-r"], input=spki, capture_output=True, check=True).stdout
    assert digest.decode().split()[0] == spki_sha256(cert)
    public_key = cert.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    assert spki_sha256(public_key) == spki_sha256(cert)


# --- check


def test_the_profile_that_builds_is_the_profile_that_checks(pki: Pki) -> None:
    """No mismatch with its own profile, some with every other that differs."""
    assert ROOT_CA.check(pki.root.certificate) == ()
    assert ISSUING_CA.check(pki.issuing.certificate, pki.root.certificate) == ()
    for profile in LEAVES:
        cert = made(profile, pki)
        assert profile.check(cert, pki.issuing.certificate) == ()
        agreeing = {other.name for other in PROFILES.values() if not other.check(cert)}
        assert agreeing == ({p.name for p in CLIENTS} if profile in CLIENTS else {profile.name})


def test_every_mismatch_is_reported_at_once(pki: Pki) -> None:
    """A person mends all of it in one go."""
    wrong = pki.raw_leaf(cn="a/b", eku=None, ca=True, digital_signature=False).certificate
    found = {mismatch.what for mismatch in DEVICE_OPERATIONAL.check(wrong, pki.issuing.certificate)}
    assert found == {
        "basic constraints",
        "key usage",
        "extended key usage",
        "subject key identifier",
        "authority key identifier",
        "subjectAltName",
    }


def test_a_mismatch_reads_as_a_sentence(pki: Pki) -> None:
    """What was expected and what was found."""
    (mismatch,) = DEVICE_OPERATIONAL.check(
        DEVICE_OPERATIONAL.build(
            subject_cn="dev-a", public_key=ec.generate_private_key(ec.SECP384R1()).public_key(),
            issuer=pki.issuing, now=now(),
        )
    )  # fmt: skip
    assert mismatch == Mismatch("public key", "P-256", "another")
    assert str(mismatch) == "public key: expected P-256, found another"


def variations(pki: Pki) -> dict[str, tuple[x509.Certificate, str]]:
    """A device certificate with one thing changed each, and the mismatch that must be found."""
    key = new_key()

    def built(
        serial: int = 5, *, signed_by: hashes.SHA384 | None = None, **other: x509.ExtensionType
    ) -> x509.Certificate:
        extensions: dict[str, tuple[x509.ExtensionType, bool]] = {
            "bc": (x509.BasicConstraints(False, None), True),
            "ku": (x509.KeyUsage(True, *([False] * 8)), True),
            "eku": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
            "ski": (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            "san": (x509.SubjectAlternativeName([x509.UniformResourceIdentifier("urn:mtls-gateway:device:d")]), False),
        }
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "d")]))
            .issuer_name(pki.issuing.certificate.subject)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now())
            .not_valid_after(now() + timedelta(days=1))
        )
        for name, (value, critical) in extensions.items():
            builder = builder.add_extension(other.get(name, value), critical and name not in other)
        return builder.sign(pki.issuing.key, signed_by or hashes.SHA256())

    other = x509.UniformResourceIdentifier("urn:mtls-gateway:device:e")
    both = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    return {
        "as it should be": (built(), ""),
        "sha384": (built(signed_by=hashes.SHA384()), "signature hash"),
        "basic constraints not critical": (built(bc=x509.BasicConstraints(False, None)), "basic constraints"),
        "key usage not critical": (built(ku=x509.KeyUsage(True, *([False] * 8))), "key usage"),
        "one key usage more": (built(ku=x509.KeyUsage(True, True, *([False] * 7))), "key usage"),
        "one purpose more": (built(eku=x509.ExtendedKeyUsage(both)), "extended key usage"),
        "unknown purpose": (built(eku=x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.2.3.4")])), "extended key usage"),
        "another key's id": (built(ski=x509.SubjectKeyIdentifier(b"x" * 20)), "subject key identifier"),
        "another device": (built(san=x509.SubjectAlternativeName([other])), "subjectAltName"),
        "no device": (built(san=x509.SubjectAlternativeName([x509.DNSName("d")])), "subjectAltName"),
        "long certificate serial": (built((1 << 159) - 1), ""),
    }  # fmt: skip


def test_every_single_deviation_is_found(pki: Pki) -> None:
    """One thing changed at a time, one mismatch each, and none for the certificate as it should be."""
    for name, (cert, what) in variations(pki).items():
        assert [mismatch.what for mismatch in DEVICE_OPERATIONAL.check(cert)] == ([what] if what else []), name


def test_an_issuer_without_a_key_id_is_a_mismatch_and_no_exception(pki: Pki) -> None:
    """CAs of others come without one; the check of what stands below such a CA has an answer all the same."""
    bare, device = pki.raw_leaf(ca=True).certificate, pki.device("dev-a").certificate
    found = {mismatch.what: mismatch.expected for mismatch in DEVICE_OPERATIONAL.check(device, bare)}
    assert found["authority key identifier"] == "none"


def test_a_certificate_that_outlives_its_issuer_is_found(pki: Pki) -> None:
    """And one of another issuer, by the key identifier."""
    later = pki.raw_leaf(not_after=pki.issuing.certificate.not_valid_after_utc + timedelta(days=1)).certificate
    assert "notAfter" in {m.what for m in DEVICE_OPERATIONAL.check(later, pki.issuing.certificate)}
    device = pki.device("dev-a").certificate
    found = [m.what for m in DEVICE_OPERATIONAL.check(device, pki.root.certificate)]
    assert found == ["authority key identifier"]


def test_a_server_without_a_name_is_found(pki: Pki) -> None:
    """Both without any SAN and with one that names no host."""
    for san in ([], [x509.UniformResourceIdentifier("urn:x:y")]):
        cert = pki.raw_leaf(san=san, eku=[ExtendedKeyUsageOID.SERVER_AUTH]).certificate
        assert "subjectAltName" in {m.what for m in GATEWAY_SERVER.check(cert)}


def test_what_cannot_be_parsed_is_a_mismatch(pki: Pki) -> None:
    """A certificate that holds an extension twice is described, it does not raise."""
    der = pki.device("dev-a").certificate.public_bytes(Encoding.DER)
    ski, aki = bytes.fromhex("0603551d0e"), bytes.fromhex("0603551d23")
    twice = x509.load_der_x509_certificate(der.replace(aki, ski))
    found = {m.what: m.found for m in DEVICE_OPERATIONAL.check(twice, pki.issuing.certificate)}
    assert found["basic constraints"] == found["authority key identifier"] == "unreadable"
    with quiet_parser():
        negative = x509.load_der_x509_certificate(_with_serial(der, 0x80))
        assert [m.what for m in DEVICE_OPERATIONAL.check(negative)] == ["certificate serial"]


def _with_serial(der: bytes, value: int) -> bytes:
    """The certificate serial's content octets, all set to one value."""
    match = re.search(rb"\xa0\x03\x02\x01\x02\x02(.)", der, re.DOTALL)
    assert match is not None
    start, length = match.end(), match[1][0]
    return der[:start] + bytes([value]) * length + der[start + length :]
