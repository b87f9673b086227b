"""CRLs, the deny list, and what a stale or broken CRL means (R1-R4)."""

from __future__ import annotations

import base64
import subprocess
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from mtls.clock import Moment
from mtls.errors import ConfigFault, Reason, Refusal
from mtls.identity import DeviceId
from mtls.keystore import new_key, write_public
from mtls.profiles import BACKDATE, ISSUING_CA, ROOT_CA, Issuer, certificate_serial_hex, spki_sha256
from mtls.revocation import (
    MAX_CRLS,
    CrlSet,
    DenyList,
    RevokedEntry,
    StaleRule,
    build_crl,
    crl_urls,
    only_crls,
)
from mtls.trust import TrustStore, to_pem
from tests.support.pki import Pki, now

DENY = StaleRule()
WEEK = timedelta(days=7)
URL = "http://crl.example.com/a.crl"


@pytest.fixture(scope="module")
def trust(pki: Pki) -> TrustStore:
    return TrustStore.from_pem(pki.ca_file.read_bytes(), "ca.crt")


@pytest.fixture(scope="module")
def device(pki: Pki) -> x509.Certificate:
    return pki.device("dev-a", crl_url=URL).certificate


@pytest.fixture(scope="module")
def crl_der(pki: Pki) -> bytes:
    return crl_of(pki.issuing, [1, 2, 3]).public_bytes(Encoding.DER)


def crls(path: Path, trust: TrustStore) -> CrlSet:
    return CrlSet.from_pem(path.read_bytes(), trust, "crl.pem")


def reason(refusal: Refusal | None) -> Reason | None:
    return refusal.reason if refusal is not None else None


def judged(
    found: CrlSet, cert: x509.Certificate, trust: TrustStore, when: datetime | None = None, stale: StaleRule = DENY
) -> Reason | None:
    return reason(found.refusal(cert, trust, Moment(when or now()), stale))


def pem_of(*lists: x509.CertificateRevocationList) -> bytes:
    return b"".join(crl.public_bytes(Encoding.PEM) for crl in lists)


def crl_of(
    issuer: Issuer, serials: Sequence[int] = (), *, number: int = 1, **build: object
) -> x509.CertificateRevocationList:
    arguments: dict[str, object] = {"now": now(), "lifetime": WEEK, **build}
    entries = [RevokedEntry(serial, now()) for serial in serials]
    return build_crl(issuer, entries, number=number, **arguments)  # type: ignore[arg-type]


def raw_crl(issuer: Issuer, *extensions: tuple[x509.ExtensionType, bool], key: object = None) -> bytes:
    """A CRL with any extensions."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now() - timedelta(hours=1))
        .next_update(now() + WEEK)
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return pem_of(builder.sign(key or issuer.key, hashes.SHA256()))  # type: ignore[arg-type]


# --- a chain against its CRLs


def test_an_empty_crl_is_valid_and_lets_everybody_in(pki: Pki, trust: TrustStore, device: x509.Certificate) -> None:
    """R3: nobody is revoked."""
    found = crls(pki.crl(), trust)
    assert found.faults == ()
    assert judged(found, device, trust) is None


def test_a_revoked_leaf_is_refused_and_its_neighbour_is_not(
    pki: Pki, trust: TrustStore, device: x509.Certificate
) -> None:
    """R1, with the name of the CA and the number of the CRL in the detail."""
    found = crls(pki.crl([device]), trust)
    refusal = found.refusal(device, trust, Moment(now()), DENY)
    assert refusal is not None
    assert refusal.reason == Reason.CERTIFICATE_REVOKED
    assert "by 'test CA', CRL number " in refusal.detail
    assert judged(found, pki.device("dev-b").certificate, trust) is None


def test_a_revoked_issuing_ca_takes_its_leaves_with_it(pki: Pki, trust: TrustStore, device: x509.Certificate) -> None:
    """R4: the root's CRL counts; leaves that the root signed itself are not touched by it."""
    found = crls(pki.crl(issuer_revoked=[pki.issuing.certificate]), trust)
    assert judged(found, device, trust) == Reason.CERTIFICATE_REVOKED
    assert judged(found, pki.raw_leaf(issuer=pki.root).certificate, trust) is None


def test_the_same_serial_under_another_ca_is_not_revoked(pki: Pki, trust: TrustStore) -> None:
    """A certificate serial means something together with its issuer only."""
    issued, direct = pki.raw_leaf(), pki.raw_leaf(issuer=pki.root)
    found = crls(pki.crl(issuer_revoked=[issued.certificate]), trust)
    assert judged(found, issued.certificate, trust) is None
    found = crls(pki.crl([direct.certificate]), trust)
    assert judged(found, direct.certificate, trust) is None


@pytest.mark.parametrize("which", ["issuing", "root"])
def test_a_missing_crl_of_any_ca_of_the_chain_refuses(
    which: str, pki: Pki, trust: TrustStore, device: x509.Certificate
) -> None:
    """R3: never silently ignored, the CA is named."""
    only = pki.root if which == "issuing" else pki.issuing
    found = CrlSet.from_pem(pem_of(crl_of(only)), trust, "crl.pem")
    refusal = found.refusal(device, trust, Moment(now()), DENY)
    missing = "test CA" if which == "issuing" else "test Root CA"
    assert refusal == Refusal(Reason.CRL_MISSING, f"no usable CRL of '{missing}'")


def test_a_set_that_could_not_be_read_refuses_everybody(trust: TrustStore, device: x509.Certificate) -> None:
    """A configured CRL file that is not there: fail closed, with what went wrong in the detail."""
    found = CrlSet.unusable(Refusal(Reason.CRL_MISSING, "crl.pem does not exist"))
    refusal = found.refusal(device, trust, Moment(now()), DENY)
    assert refusal == Refusal(Reason.CRL_MISSING, "no usable CRL of 'test CA' (crl.pem does not exist)")


@pytest.mark.parametrize("which", ["issuing", "root"])
@pytest.mark.parametrize(
    ("stale", "hours", "expected"),
    [
        ("deny", 0, None),
        ("deny", 1, Reason.CRL_STALE),
        ("grace 48h", 1, None),
        ("grace 48h", 48, None),
        ("grace 48h", 49, Reason.CRL_STALE),
    ],
)
def test_a_stale_crl_is_judged_by_the_rule(
    which: str, stale: str, hours: int, expected: Reason | None, pki: Pki, trust: TrustStore, device: x509.Certificate
) -> None:
    """R3: hours after nextUpdate, of the issuing CA's CRL and of the root's alike."""
    first, second = (WEEK, 9 * WEEK) if which == "issuing" else (9 * WEEK, WEEK)
    start = now().replace(microsecond=0)
    pem = pem_of(
        crl_of(pki.issuing, now=start, lifetime=first),
        crl_of(pki.root, now=start, lifetime=second),
    )
    found = CrlSet.from_pem(pem, trust, "crl.pem")
    when = start + WEEK + timedelta(hours=hours)
    assert judged(found, device, trust, when, StaleRule.parse(stale)) == expected


def test_a_revoked_certificate_stays_revoked_when_the_crl_is_stale(
    pki: Pki, trust: TrustStore, device: x509.Certificate
) -> None:
    """Neither grace nor staleness lets it back in."""
    found = crls(pki.crl([device]), trust)
    for stale in ("deny", "grace 9999h"):
        late = now() + 2 * WEEK
        assert judged(found, device, trust, late, StaleRule.parse(stale)) == Reason.CERTIFICATE_REVOKED


def test_a_crl_of_tomorrow_is_refused_with_both_times(pki: Pki, trust: TrustStore, device: x509.Certificate) -> None:
    """R6: the detail shows the clock, so that a wrong clock is found."""
    found = crls(pki.crl(now=now() + timedelta(days=1)), trust)
    refusal = found.refusal(device, trust, Moment(now()), DENY)
    assert refusal is not None
    assert refusal.reason == Reason.CRL_NOT_YET_VALID
    assert "clock=" in refusal.detail
    assert "thisUpdate=" in refusal.detail
    assert judged(found, device, trust, now() + timedelta(days=1)) is None


def test_a_crl_made_a_moment_ago_on_a_clock_a_little_ahead_is_good(
    pki: Pki, trust: TrustStore, device: x509.Certificate
) -> None:
    """Some minutes of skew between station and gateway are no outage."""
    ahead = now() + BACKDATE
    assert judged(crls(pki.crl(now=ahead + timedelta(minutes=4)), trust), device, trust) is None
    too_far = crls(pki.crl(now=ahead + timedelta(minutes=6)), trust)
    assert judged(too_far, device, trust) == Reason.CRL_NOT_YET_VALID


def test_a_leaf_of_no_known_ca_is_refused_whatever_the_crls_say(pki: Pki, trust: TrustStore) -> None:
    """The CRL is asked by the CA that signed, not by the name that is claimed."""
    forged = pki.raw_leaf(issuer=Issuer(pki.issuing.certificate, new_key())).certificate
    assert judged(crls(pki.crl(), trust), forged, trust) == Reason.ISSUER_UNKNOWN


def test_one_chain_in_good_standing_is_enough() -> None:
    """A cross-signed CA, one of whose certificates was revoked, goes on by the other; with both revoked it ends."""

    def root(name: str) -> Issuer:
        key = new_key()
        return Issuer(ROOT_CA.build(subject_cn=name, public_key=key.public_key(), issuer=None, key=key, now=now()), key)

    def below(issuer: Issuer, key: ec.EllipticCurvePrivateKey, name: str = "I") -> x509.Certificate:
        return ISSUING_CA.build(subject_cn=name, public_key=key.public_key(), issuer=issuer, now=now())

    first, second, key = root("1"), root("2"), new_key()
    one, two = below(first, key), below(second, key)
    trust = TrustStore.from_pem(to_pem([first.certificate, second.certificate, one, two]), "ca.crt")
    leaf = below(Issuer(one, key), new_key(), "x")

    def standing(*revoked: x509.Certificate) -> Reason | None:
        lists = [crl_of(Issuer(one, key))]
        for ca in (first, second):
            serials = [cert.serial_number for cert in revoked if cert.issuer == ca.certificate.subject]
            lists.append(crl_of(ca, serials))
        return judged(CrlSet.from_pem(pem_of(*lists), trust, "crl.pem"), leaf, trust)

    assert standing() is None
    assert standing(one) is None
    assert standing(two) is None
    assert standing(one, two) == Reason.CERTIFICATE_REVOKED


# --- reading a CRL file


@pytest.mark.parametrize(
    "pem",
    [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
    ids=["empty", "junk", "certificate"],
)
def test_a_file_without_a_crl_is_a_fault_and_refuses(pem: bytes, trust: TrustStore, device: x509.Certificate) -> None:
    """Fail closed, without an exception."""
    found = CrlSet.from_pem(pem, trust, "crl.pem")
    assert found.entries == {}
    assert found.faults == (Refusal(Reason.CRL_INVALID, "crl.pem holds no CRL in PEM"),)
    assert judged(found, device, trust) == Reason.CRL_INVALID


def test_a_truncated_crl_is_a_fault_at_any_cut(pki: Pki, trust: TrustStore, device: x509.Certificate) -> None:
    """A download that broke off never counts as the rest of the list."""
    pem = pki.crl([device]).read_bytes()
    first = pem.index(b"-----END") + len(b"-----END X509 CRL-----") + 1
    for cut in (*range(25, first - 2, 61), first + 40, len(pem) - 30):
        found = CrlSet.from_pem(pem[:cut], trust, "crl.pem")
        assert [fault.reason for fault in found.faults] == [Reason.CRL_INVALID]
        assert judged(found, pki.device("dev-c").certificate, trust) == Reason.CRL_INVALID


def test_a_crl_of_an_unknown_ca_or_with_a_wrong_signature_is_a_fault(
    pki: Pki, trust: TrustStore, device: x509.Certificate, tmp_path: Path
) -> None:
    """Wrong issuer, right name with another key, one flipped bit in the signature."""
    stranger = Pki(tmp_path, "stranger")
    root_crl = pem_of(crl_of(pki.root))
    flipped = bytearray(crl_of(pki.issuing).public_bytes(Encoding.DER))
    flipped[-1] ^= 1
    cases = (
        pem_of(crl_of(stranger.issuing)),
        pem_of(crl_of(Issuer(pki.issuing.certificate, new_key()))),
        pem_of(x509.load_der_x509_crl(bytes(flipped))),
    )
    for bad in cases:
        found = CrlSet.from_pem(bad + root_crl, trust, "crl.pem")
        (fault,) = found.faults
        assert fault.reason == Reason.CRL_INVALID
        assert "no known CA signed the CRL of" in fault.detail
        assert judged(found, device, trust) == Reason.CRL_INVALID
        assert found.pem == root_crl


def test_a_bad_crl_beside_a_good_one_is_a_fault_and_the_good_one_holds(
    pki: Pki, trust: TrustStore, device: x509.Certificate, tmp_path: Path
) -> None:
    """Reported, and nobody is locked out by a stranger's list."""
    pem = pem_of(crl_of(Pki(tmp_path, "stranger").issuing)) + pki.crl().read_bytes()
    found = CrlSet.from_pem(pem, trust, "crl.pem")
    assert len(found.faults) == 1
    assert judged(found, device, trust) is None


def test_the_ca_that_signs_a_crl_must_be_allowed_to(trust: TrustStore) -> None:
    """A present key usage must allow cRLSign; an absent one allows it."""
    for usage, allowed in (
        (None, True),
        (x509.KeyUsage(False, False, False, False, False, True, True, False, False), True),
        (x509.KeyUsage(False, False, False, False, False, True, False, False, False), False),
    ):
        key, name = new_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "R")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now() - WEEK)
            .not_valid_after(now() + WEEK)
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier(b"id"), critical=False)
        )
        if usage is not None:
            builder = builder.add_extension(usage, critical=True)
        root = builder.sign(key, hashes.SHA256())
        found = CrlSet.from_pem(pem_of(crl_of(Issuer(root, key))), TrustStore.from_pem(to_pem([root]), "ca"), "crl")
        assert bool(found.entries) is allowed


def test_of_two_crls_of_one_ca_the_higher_number_counts(pki: Pki, trust: TrustStore, device: x509.Certificate) -> None:
    """In whatever order they stand; only the newer one is handed on to the TLS library."""
    old, new = crl_of(pki.issuing, number=7), crl_of(pki.issuing, [device.serial_number], number=8)
    root = crl_of(pki.root)
    for order in ((old, new, root), (root, new, old)):
        found = CrlSet.from_pem(pem_of(*order), trust, "crl.pem")
        assert found.entries[spki_sha256(pki.issuing.certificate)].number == 8
        assert judged(found, device, trust) == Reason.CERTIFICATE_REVOKED
        assert pem_of(new) in found.pem
        assert pem_of(old) not in found.pem


def test_nothing_but_crls_in_force_reaches_the_tls_library(pki: Pki, trust: TrustStore, tmp_path: Path) -> None:
    """A certificate in a fetched CRL file would become an anchor in OpenSSL's store."""
    intruder = to_pem([Pki(tmp_path, "intruder").root.certificate])
    pem = pki.crl().read_bytes()
    mixed = intruder + b"text\n" + pem + intruder
    assert sorted(CrlSet.from_pem(mixed, trust, "crl.pem").pem.splitlines()) == sorted(pem.splitlines())
    assert only_crls(mixed) == pem
    with pytest.raises(ValueError, match=r"asn1"):
        only_crls(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")


def idp(**kinds: object) -> x509.IssuingDistributionPoint:
    arguments: dict[str, object] = {
        "full_name": None, "relative_name": None, "only_contains_user_certs": False, "only_contains_ca_certs": False,
        "only_some_reasons": None, "indirect_crl": False, "only_contains_attribute_certs": False,
    } | kinds  # fmt: skip
    return x509.IssuingDistributionPoint(**arguments)  # type: ignore[arg-type]


RELATIVE = x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, "part")])


@pytest.mark.parametrize(
    "extension",
    [
        (idp(only_contains_user_certs=True), True),
        (idp(only_contains_ca_certs=True), True),
        (idp(only_contains_attribute_certs=True), True),
        (idp(indirect_crl=True), True),
        (idp(only_some_reasons=frozenset({x509.ReasonFlags.key_compromise})), True),
        (idp(relative_name=RELATIVE), True),
        (idp(full_name=[x509.DNSName("crl.example.com")]), True),
        (x509.DeltaCRLIndicator(1), True),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),
    ],
    ids=["users", "cas", "attributes", "indirect", "reasons", "relative", "other-name", "delta", "unknown-critical"],
)
def test_a_delta_crl_or_one_of_limited_scope_is_a_fault(
    extension: tuple[x509.ExtensionType, bool], pki: Pki, trust: TrustStore, device: x509.Certificate
) -> None:
    """What is not on a part of the list may be on another part."""
    found = CrlSet.from_pem(raw_crl(pki.issuing, extension) + pem_of(crl_of(pki.root)), trust, "crl.pem")
    (fault,) = found.faults
    assert "is a delta or of limited scope" in fault.detail
    assert judged(found, device, trust) == Reason.CRL_INVALID


def test_an_unknown_extension_that_is_not_critical_changes_nothing(
    pki: Pki, trust: TrustStore, device: x509.Certificate
) -> None:
    """The allow twin; such a CRL has no number either."""
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    found = CrlSet.from_pem(raw_crl(pki.issuing, (extension, False)) + pem_of(crl_of(pki.root)), trust, "crl.pem")
    assert found.faults == ()
    assert found.entries[spki_sha256(pki.issuing.certificate)].number is None
    assert judged(found, device, trust) is None


def test_a_crl_of_one_distribution_point_is_for_its_certificates_only(
    pki: Pki, trust: TrustStore, device: x509.Certificate
) -> None:
    """R4: a leaf that names this CRL's URL is judged by it; one that names another, or none, has no CRL."""
    scope = idp(full_name=[x509.UniformResourceIdentifier(URL)])
    found = CrlSet.from_pem(raw_crl(pki.issuing, (scope, True)) + pem_of(crl_of(pki.root)), trust, "crl.pem")
    assert found.faults == ()
    assert crl_urls(device) == {URL}
    assert judged(found, device, trust) is None
    for other in (pki.device("dev-b"), pki.device("dev-c", crl_url=URL + "2")):
        assert judged(found, other.certificate, trust) == Reason.CRL_MISSING


def test_distribution_points_that_cannot_be_parsed_are_none(pki: Pki) -> None:
    """Hence such a certificate has no CRL where a CRL is for some points only."""
    der = pki.device("dev-a", crl_url=URL).certificate.public_bytes(Encoding.DER)
    at = der.index(bytes.fromhex("0603551d1f"))
    broken = der[: at + 7] + b"\x02" + der[at + 8 :]
    assert crl_urls(x509.load_der_x509_certificate(broken)) == frozenset()


def test_many_blocks_are_cut_off_and_hostile_ones_cost_one_pass(trust: TrustStore) -> None:
    """A fetched file of 16 MiB of openings is read once, not once per opening."""
    block = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
    many = CrlSet.from_pem(block * (MAX_CRLS + 5), trust, "crl.pem")
    assert many.faults[0] == Refusal(Reason.CRL_INVALID, f"crl.pem holds more than {MAX_CRLS} CRLs")
    assert len(many.faults) == MAX_CRLS + 1
    before = monotonic()
    hostile = CrlSet.from_pem(b"-----BEGIN X509 CRL-----\n" * (16 * 1024 * 1024 // 25), trust, "crl.pem")
    assert monotonic() - before < 10
    assert hostile.entries == {}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_damaged_crl_raises_or_counts(data: st.DataObject, crl_der: bytes, trust: TrustStore) -> None:
    """One byte changed anywhere is a fault, or the very same list (the count of unused bits is not signed)."""
    position = data.draw(st.integers(0, len(crl_der) - 1))
    change = data.draw(st.integers(1, 255))
    damaged = bytearray(crl_der)
    damaged[position] ^= change
    pem = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(damaged) + b"-----END X509 CRL-----\n"
    found = CrlSet.from_pem(pem, trust, "crl.pem")
    if found.entries:
        assert [entry.revoked for entry in found.entries.values()] == [{1, 2, 3}]
    else:
        assert [fault.reason for fault in found.faults] == [Reason.CRL_INVALID]


# --- making a CRL


def test_openssl_reads_the_crl_and_refuses_by_it(pki: Pki, tmp_path: Path) -> None:
    """The independent judge of `build_crl`: revoked, its neighbour, the issuing CA, and a CRL that is missing."""
    revoked, neighbour = pki.device("dev-a"), pki.device("dev-b")

    def verify(leaf: Path, crl: Path) -> str:
        command = ["openssl", "verify", "-x509_strict", "-crl_check_all", "-CRLfile", str(crl)]
        command += ["-CAfile", str(pki.ca_file), str(leaf)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    crl = pki.crl([revoked.certificate])
    assert "certificate revoked" in verify(revoked.cert_file, crl)
    assert verify(neighbour.cert_file, crl) == f"{neighbour.cert_file}: OK\n"
    above = pki.crl(issuer_revoked=[pki.issuing.certificate])
    assert "certificate revoked" in verify(neighbour.cert_file, above)
    only = tmp_path / "only.pem"
    write_public(only, pem_of(crl_of(pki.issuing)))
    assert "unable to get certificate CRL" in verify(neighbour.cert_file, only)


def test_this_update_is_strictly_later_and_the_number_grows(pki: Pki) -> None:
    """R2: twenty CRLs within one second are twenty different ones for OpenSSL, all of them valid at once."""
    when = now()
    previous = crl_of(pki.issuing, now=when)
    assert previous.last_update_utc == (when - BACKDATE).replace(microsecond=0)
    assert previous.next_update_utc == when.replace(microsecond=0) + WEEK
    for number in range(2, 22):
        following = crl_of(pki.issuing, number=number, now=when, previous=previous)
        assert following.last_update_utc - previous.last_update_utc == timedelta(seconds=1)
        assert following.last_update_utc < when
        previous = following
    assert previous.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 21


def test_a_number_that_does_not_grow_is_refused(pki: Pki) -> None:
    """An older CRL must not be able to look like the newer one."""
    previous = crl_of(pki.issuing, number=5)
    for number in (4, 5):
        with pytest.raises(ValueError, match=rf"CRL number {number} is not above the previous one's"):
            crl_of(pki.issuing, number=number, previous=previous)
    crl_of(pki.issuing, number=6, previous=previous)


def test_a_crl_says_when_why_and_by_which_key(pki: Pki) -> None:
    """Entries with date and reason; the authority key id is the issuer's own."""
    when = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    entries = [RevokedEntry(7, when, x509.ReasonFlags.key_compromise), RevokedEntry(8, when)]
    crl = build_crl(pki.issuing, entries, now=now(), number=1, lifetime=WEEK)
    seven, eight = crl
    assert seven.revocation_date_utc == when.replace(microsecond=0)
    assert seven.extensions.get_extension_for_class(x509.CRLReason).value.reason == x509.ReasonFlags.key_compromise
    assert len(eight.extensions) == 0
    ski = pki.issuing.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    aki = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert aki.key_identifier == ski.digest


# --- the stale rule


@pytest.mark.parametrize(("text", "hours"), [("deny", 0), ("grace 1h", 1), ("grace 48h", 48), ("grace 9999h", 9999)])
def test_a_stale_rule_is_deny_or_a_grace_in_hours(text: str, hours: int) -> None:
    """As the configuration spells it."""
    assert StaleRule.parse(text) == StaleRule(timedelta(hours=hours))


@pytest.mark.parametrize(
    "text",
    ["", "allow", "grace", "grace 48", "grace 0h", "grace -1h", "grace 48h ", "Deny", "grace 10000h", "grace ٤٨h"],
)
def test_any_other_stale_rule_is_refused(text: str) -> None:
    """Nothing is read as "ignore"."""
    with pytest.raises(ValueError, match="is neither"):
        StaleRule.parse(text)


# --- the deny list


def deny_file(folder: Path, text: str) -> Path:
    path = folder / "deny.toml"
    path.write_text(text)
    return path


PRINT = "ab" * 32


def test_a_deny_list_refuses_by_id_serial_and_fingerprint(tmp_path: Path) -> None:
    """Each with its own sentence; what is on no list passes."""
    text = f'ids = ["dev-a"]\ncertificate_serials = ["0a1b"]\nfingerprints = ["{PRINT}"]\n'
    deny = DenyList.from_file(deny_file(tmp_path, text))
    refusals = [
        deny.refusal(DeviceId("dev-a"), "ff", "cd" * 32),
        deny.refusal(DeviceId("dev-b"), "0a1b", "cd" * 32),
        deny.refusal(DeviceId("dev-b"), "ff", PRINT),
    ]
    assert {reason(refusal) for refusal in refusals} == {Reason.CERTIFICATE_DENIED}
    assert len({refusal.detail for refusal in refusals if refusal}) == 3
    assert deny.refusal(DeviceId("dev-b"), "ff", "cd" * 32) is None


def test_an_empty_deny_list_denies_nobody(tmp_path: Path) -> None:
    """Also the file without any key, and the list made in code."""
    for deny in (DenyList(), DenyList.from_file(deny_file(tmp_path, ""))):
        assert deny.refusal(DeviceId("dev-a"), "01", PRINT) is None


def test_a_deny_list_comes_back_from_its_toml(tmp_path: Path) -> None:
    """Whatever letters the ids have."""
    deny = DenyList(frozenset({"a", 'q"\\', "Gerät"}), frozenset({"01", "ff" * 20}), frozenset({PRINT}))
    assert DenyList.from_file(deny_file(tmp_path, deny.to_toml())) == deny
    assert tomllib.loads(DenyList().to_toml()) == {"ids": [], "certificate_serials": [], "fingerprints": []}


def test_a_serial_is_denied_as_inspect_prints_it(pki: Pki, tmp_path: Path) -> None:
    """The two spellings are one."""
    serial = certificate_serial_hex(pki.device("dev-a").certificate)
    deny = DenyList.from_file(deny_file(tmp_path, f'certificate_serials = ["{serial}"]'))
    assert reason(deny.refusal(DeviceId("dev-a"), serial, "")) == Reason.CERTIFICATE_DENIED


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ids = [", "deny.toml: "),
        ("serials = []", "unknown key 'serials'"),
        ('ids = "dev-a"', "ids is not a list of strings"),
        ("ids = [1]", "ids is not a list of strings"),
        ('ids = ["a/b"]', "ids: a device id cannot contain '/'"),
        ('ids = ["dev-*", ""]', "ids: a device id has 1 to 64 characters"),
        ('certificate_serials = ["0A"]', "certificate_serials: '0A' is not hex"),
        ('certificate_serials = ["abc"]', "certificate_serials: 'abc' is not hex"),
        ('certificate_serials = ["00ab"]', "certificate_serials: '00ab' is not hex"),
        ('certificate_serials = ["0a:1b"]', "certificate_serials: '0a:1b' is not hex"),
        ('certificate_serials = [""]', "certificate_serials: '' is not hex"),
        (f'fingerprints = ["{PRINT[:-2]}"]', "is not hex as mqtt-provision inspect prints it"),
        (f'fingerprints = ["{PRINT.upper()}"]', "is not hex as mqtt-provision inspect prints it"),
        ("x = " + "[" * 3000, "deny.toml: "),
    ],
    ids=[
        "toml",
        "unknown",
        "no-list",
        "number",
        "id",
        "empty-id",
        "upper",
        "odd",
        "zeros",
        "colons",
        "empty",
        "short",
        "upper-print",
        "deep",
    ],
)
def test_a_deny_list_that_could_not_hold_what_was_meant_is_a_fault(text: str, sentence: str, tmp_path: Path) -> None:
    """An entry that can match nothing would be a revocation that does nothing."""
    with pytest.raises(ConfigFault) as caught:
        DenyList.from_file(deny_file(tmp_path, text))
    assert sentence in str(caught.value)
    assert str(tmp_path / "deny.toml") in str(caught.value)
    assert caught.value.hint


def test_a_deny_list_that_is_no_text_or_not_there_is_a_fault(tmp_path: Path) -> None:
    """Never an empty list in its place."""
    path = tmp_path / "deny.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigFault):
        DenyList.from_file(path)
    with pytest.raises(ConfigFault, match="does not exist"):
        DenyList.from_file(tmp_path / "nowhere.toml")
