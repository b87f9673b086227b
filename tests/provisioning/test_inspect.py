"""The inspector: it explains good files in 80 columns, names what is wrong with bad ones, and shows no secret."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtls.errors import ConfigFault
from mtls.keystore import key_pem, new_key, write_private
from mtls.profiles import PROFILES, certificate_serial_hex, fingerprint_sha256, spki_sha256
from provisioning.inspect import WIDTH, inspect_file
from tests.support.pki import Pki


def now() -> datetime:
    return datetime.now(UTC)


def saved(folder: Path, data: bytes) -> Path:
    path = folder / "file.pem"
    path.write_bytes(data)
    return path


def test_a_good_chain_is_explained_and_nothing_is_wrong(pki: Pki) -> None:
    """Identity, serial, fingerprint and SPKI are there, and both objects are found."""
    device = pki.device("insp-1")
    result = inspect_file(device.cert_file, now())
    facts = dict(result.items[0].facts)
    assert result.problems == ()
    assert facts["identity"] == "insp-1"
    assert facts["serial"] == certificate_serial_hex(device.certificate)
    assert facts["fingerprint"] == fingerprint_sha256(device.certificate)
    assert facts["spki sha256"] == spki_sha256(device.certificate)
    assert facts["signature"].startswith("verified")
    assert [item.kind for item in result.items] == ["certificate", "issuing CA certificate"]


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_what_a_profile_builds_the_inspector_calls_by_its_name(pki: Pki, tmp_path: Path, name: str) -> None:
    """Every profile's certificates match it, the self-signed root too."""
    profile, key = PROFILES[name], new_key()
    cert = profile.build(
        subject_cn="insp-2",
        public_key=key.public_key(),
        issuer=None if name == "root-ca" else pki.root if profile.is_ca else pki.issuing,
        key=key,
        now=now(),
        dns=["a.test"] if profile.needs_server_name else [],
    )
    result = inspect_file(saved(tmp_path, cert.public_bytes(Encoding.PEM)), now(), pki.ca_file)
    assert result.problems == ()
    assert name in dict(result.items[0].facts)["profile"]


def test_the_text_stays_within_80_columns(pki: Pki) -> None:
    """Fingerprints on one line, long values wrapped."""
    for path in (pki.ca_file, pki.device("x" * 64, ou="o" * 60).cert_file, pki.crl()):
        lines = inspect_file(path, now()).as_text().splitlines()
        assert max(len(line) for line in lines[1:]) <= WIDTH  # the first is the path
    assert fingerprint_sha256(pki.root.certificate) in inspect_file(pki.ca_file, now()).as_text()


def test_json_carries_the_same_facts(pki: Pki) -> None:
    """For programs: keys without spaces and a plain verdict."""
    row = json.loads(json.dumps(inspect_file(pki.device("insp-3").cert_file, now()).as_row()))
    assert row["ok"] is True
    assert row["items"][0]["identity"] == "insp-3"
    assert row["items"][0]["spki_sha256"]


def test_dates_are_judged_by_the_given_clock(pki: Pki) -> None:
    """Expired and not yet valid name both moments; near the end is a note, no fault."""
    device = pki.device("insp-4")
    end = device.certificate.not_valid_after_utc
    late = inspect_file(device.cert_file, end + timedelta(days=1))
    early = inspect_file(device.cert_file, device.certificate.not_valid_before_utc - timedelta(days=1))
    soon = inspect_file(device.cert_file, end - timedelta(days=5, hours=1))
    assert any(problem.startswith("expired: notAfter=") and "clock=" in problem for problem in late.problems)
    assert any(problem.startswith("not yet valid: notBefore=") for problem in early.problems)
    assert soon.problems == ()
    assert soon.items[0].notes == ("expires in 5 days",)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"ca": None}, "basic constraints"),
        ({"eku": None}, "extended key usage"),
        ({"digital_signature": False}, "key usage"),
        ({"not_after": datetime(2020, 1, 1, tzinfo=UTC), "not_before": datetime(2019, 1, 1, tzinfo=UTC)}, "expired"),
    ],
    ids=["no basic constraints", "no eku", "key usage", "expired"],
)
def test_what_differs_from_the_profile_is_named(pki: Pki, wrong: dict[str, object], named: str) -> None:
    """Each deliberate fault of a certificate shows up in words."""
    leaf = pki.raw_leaf(cn="insp-5", **wrong)  # type: ignore[arg-type]
    assert any(named in problem for problem in inspect_file(leaf.cert_file, now()).problems)


def test_a_certificate_without_an_identity_says_so(pki: Pki) -> None:
    """Two common names: the reason is the one the gateway would give."""
    facts = dict(inspect_file(pki.raw_leaf(cn=["a", "b"]).cert_file, now()).items[0].facts)
    assert facts["identity"].startswith("none (identity_ambiguous")


def test_a_signature_is_verified_only_with_a_ca_at_hand(pki: Pki, tmp_path: Path) -> None:
    """Alone it is said to be unverified; with the right CA verified; another CA of the same name proves nothing."""
    leaf = saved(tmp_path, pki.device("insp-6").certificate.public_bytes(Encoding.PEM))
    alone = dict(inspect_file(leaf, now()).items[0].facts)["signature"]
    right = dict(inspect_file(leaf, now(), pki.ca_file).items[0].facts)["signature"]
    other = Pki(tmp_path / "other")
    wrong = dict(inspect_file(leaf, now(), other.ca_file).items[0].facts)["signature"]
    assert (alone.startswith("not verified"), right.startswith("verified"), wrong.startswith("not verified")) == (
        True,
        True,
        True,
    )


def test_a_chain_in_the_wrong_order_is_wrong(pki: Pki, tmp_path: Path) -> None:
    """TLS wants the leaf first and each next one its issuer."""
    leaf = pki.device("insp-7").certificate.public_bytes(Encoding.PEM)
    root, issuing = (issuer.certificate.public_bytes(Encoding.PEM) for issuer in (pki.root, pki.issuing))
    assert inspect_file(saved(tmp_path, leaf + issuing + root), now()).problems == ()
    problems = inspect_file(saved(tmp_path, leaf + root + issuing), now()).problems
    assert any("did not sign the one before it" in problem for problem in problems)


def test_crls_are_explained_and_judged(pki: Pki, tmp_path: Path) -> None:
    """Number, dates and the revoked; expired, or signed by another key, is wrong."""
    victim = pki.device("insp-8").certificate
    path = pki.crl([victim])
    good = inspect_file(path, now(), pki.ca_file)
    assert good.problems == ()
    assert certificate_serial_hex(victim) in good.as_text()
    expired = inspect_file(path, now() + timedelta(days=8), pki.ca_file).problems
    assert all(problem.startswith("expired: nextUpdate=") for problem in expired)
    assert len(expired) == 2
    foreign = inspect_file(path, now(), Pki(tmp_path / "other").ca_file).problems
    assert foreign == ("the signature does not match the key of the CA of this name",) * 2


def test_a_csr_is_explained_and_its_signature_judged(tmp_path: Path) -> None:
    """F2 at the desk: a tampered request is wrong."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wished")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(new_key(), hashes.SHA256())
    good = inspect_file(saved(tmp_path, csr.public_bytes(Encoding.PEM)), now())
    bad = inspect_file(saved(tmp_path, csr.public_bytes(Encoding.DER).replace(b"wished", b"wisher")), now())
    assert good.problems == ()
    assert ("wishes", "CN=wished") in good.items[0].facts
    assert bad.problems == ("the signature of the request does not match its public key",)


@pytest.mark.parametrize("passphrase", [None, b"correct horse"], ids=["plain", "encrypted"])
def test_a_key_is_described_without_being_shown(tmp_path: Path, passphrase: bytes | None) -> None:
    """F9: the public half at most."""
    key, path = new_key(), tmp_path / "device.key"
    write_private(path, key_pem(key, passphrase))
    result = inspect_file(path, now())
    text = result.as_text() + json.dumps(result.as_row())
    assert result.problems == ()
    assert f"{key.private_numbers().private_value:x}" not in text
    assert all(line not in text for line in path.read_text().splitlines() if "-----" not in line)
    assert (spki_sha256(key.public_key()) in text) is (passphrase is None)


def test_a_loose_or_foreign_key_is_wrong(tmp_path: Path) -> None:
    """Readable by others, and not P-256."""
    path = tmp_path / "device.key"
    write_private(path, key_pem(new_key()))
    path.chmod(0o644)
    assert any("mode 0644" in problem for problem in inspect_file(path, now()).problems)
    path.chmod(0o600)
    for foreign in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        path.write_bytes(foreign.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        assert any("not P-256" in problem for problem in inspect_file(path, now()).problems)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\0" * 100,
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMIIB",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        b"-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n",
    ],
    ids=["empty", "text", "zeros", "hollow", "cut", "openssh", "unknown label"],
)
def test_what_cannot_be_read_is_wrong_and_said_so(tmp_path: Path, data: bytes) -> None:
    """No exception, at least one problem, and the last line counts them."""
    result = inspect_file(saved(tmp_path, data), now())
    assert result.problems
    assert "wrong" in result.as_text().splitlines()[-1]


def test_a_truncated_chain_shows_what_is_left(pki: Pki, tmp_path: Path) -> None:
    """The whole certificate is explained, the cut one reported."""
    whole = pki.device("insp-9").cert_file.read_bytes()
    result = inspect_file(saved(tmp_path, whole[:-200]), now())
    assert len(result.items) == 1
    assert result.file_problems == ("a PEM block has no end: the file is cut short",)


def test_names_of_a_stranger_do_not_steer_the_terminal(pki: Pki) -> None:
    """Escape sequences and direction marks in a subject are printed as text."""
    leaf = pki.raw_leaf(cn="a\x1b[31m\u202eb")
    text = inspect_file(leaf.cert_file, now()).as_text()
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_file_that_is_none_is_a_fault(tmp_path: Path) -> None:
    """Missing, a folder, and a CA file without certificates."""
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigFault):
            inspect_file(path, now())
    path = saved(tmp_path, b"hello")
    with pytest.raises(ConfigFault, match="holds no certificate"):
        inspect_file(path, now(), path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1199), st.integers(1, 255))
def test_no_damaged_file_crashes_the_inspector(pki: Pki, tmp_path: Path, position: int, change: int) -> None:
    """One byte changed anywhere in a chain: described or reported, never raised."""
    data = bytearray((pki.folder / "ca.crt").read_bytes())
    data[position % len(data)] ^= change
    inspect_file(saved(tmp_path, bytes(data)), now()).as_text()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1199), st.integers(1, 255))
def test_no_damaged_certificate_crashes_the_inspector(pki: Pki, tmp_path: Path, position: int, change: int) -> None:
    """The same below the armour, where the parser has to cope."""
    data = bytearray(pki.issuing.certificate.public_bytes(Encoding.DER))
    data[position % len(data)] ^= change
    inspect_file(saved(tmp_path, bytes(data)), now()).as_text()
