"""The judgement of a leaf in our own code: who it is, and whether it is in good standing now."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from mtls.clock import Moment
from mtls.errors import Reason, Refusal
from mtls.identity import DeviceId, IdentityRule
from mtls.judgement import MAX_KNOWN_BYTES, MAX_LEAF_BYTES, KnownPeers, Peer, peer_of, standing
from mtls.keystore import new_key
from mtls.profiles import ISSUING_CA, Issuer, certificate_serial_hex, fingerprint_sha256, spki_sha256
from mtls.revocation import CrlSet, DenyList, StaleRule
from mtls.trust import TrustStore, to_pem
from tests.support.pki import Credential, Pki, now

RULE = IdentityRule()
DENY = StaleRule()
NOBODY = DenyList()
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@pytest.fixture(scope="module")
def trust(pki: Pki) -> TrustStore:
    return TrustStore.from_pem(pki.ca_file.read_bytes(), "ca.crt")


def der(credential: Credential | x509.Certificate) -> bytes:
    cert = credential if isinstance(credential, x509.Certificate) else credential.certificate
    return cert.public_bytes(Encoding.DER)


def verdict(credential: Credential | bytes, trust: TrustStore) -> Reason | str:
    """The id, or the reason of the refusal."""
    found = peer_of(credential if isinstance(credential, bytes) else der(credential), trust, RULE)
    return found.reason if isinstance(found, Refusal) else str(found.id)


def peer(credential: Credential, trust: TrustStore) -> Peer:
    found = peer_of(der(credential), trust, RULE)
    assert isinstance(found, Peer), found
    return found


def stands(
    who: Peer,
    trust: TrustStore,
    *,
    crls: CrlSet | None = None,
    deny: DenyList = NOBODY,
    when: datetime | None = None,
    stale: StaleRule = DENY,
) -> Refusal | None:
    return standing(who, trust=trust, crls=crls, stale=stale, deny=deny, now=Moment(when or now()))


# --- who it is


def test_a_peer_carries_the_facts_of_its_certificate(pki: Pki, trust: TrustStore) -> None:
    """Identity, issuer by key, subject, serial, fingerprint and dates: all that rules may read."""
    credential = pki.device("press-07", ou="services", o="Works")
    cert = credential.certificate
    assert peer(credential, trust) == Peer(
        id=DeviceId("press-07"),
        issuer_cn="test CA",
        issuer_spki_sha256=spki_sha256(pki.issuing.certificate),
        ou=("services",),
        o=("Works",),
        certificate_serial=certificate_serial_hex(cert),
        fingerprint_sha256=fingerprint_sha256(cert),
        not_before=cert.not_valid_before_utc,
        not_after=cert.not_valid_after_utc,
        leaf_der=der(cert),
    )


def test_admission_asks_no_more_than_identity_purpose_and_issuer(pki: Pki, trust: TrustStore) -> None:
    """S6: devices of other CAs have other profiles: no SAN, no key ids, no basic constraints, no key usage."""
    assert verdict(pki.raw_leaf(ca=None, digital_signature=None), trust) == "dev-a"
    assert verdict(pki.raw_leaf(eku=[SERVER, CLIENT]), trust) == "dev-a"
    assert verdict(pki.raw_leaf(issuer=pki.root), trust) == "dev-a"


def test_a_device_of_another_algorithm_is_admitted(pki: Pki, trust: TrustStore) -> None:
    """P-256 is for what we issue; an RSA device of a trusted CA is a device."""
    key = rsa.generate_private_key(65537, 2048)
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rsa-1")]))
        .issuer_name(pki.issuing.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now())
        .not_valid_after(now() + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([CLIENT]), critical=False)
        .sign(pki.issuing.key, hashes.SHA384())
    )
    assert verdict(der(cert), trust) == "rsa-1"


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        ({"cn": ()}, Reason.IDENTITY_MISSING),
        ({"cn": ("a", "b")}, Reason.IDENTITY_AMBIGUOUS),
        ({"cn": "dev-a\0x"}, Reason.IDENTITY_MALFORMED),
        ({"cn": "dev-a/x"}, Reason.IDENTITY_MALFORMED),
        ({"cn": "x" * 65}, Reason.IDENTITY_MALFORMED),
        ({"cn": "_x"}, Reason.IDENTITY_NOT_ALLOWED),
        ({"san": [x509.UniformResourceIdentifier("urn:mtls-gateway:device:dev-b")]}, Reason.IDENTITY_CONFLICT),
        ({"eku": None}, Reason.CERTIFICATE_USAGE),
        ({"eku": [SERVER]}, Reason.CERTIFICATE_USAGE),
        ({"eku": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]}, Reason.CERTIFICATE_USAGE),
        ({"digital_signature": False}, Reason.CERTIFICATE_USAGE),
        ({"ca": True}, Reason.CERTIFICATE_IS_CA),
        ({"self_signed": True}, Reason.ISSUER_UNKNOWN),
    ],
    ids=[
        *("none", "several", "nul", "slash", "long", "pattern", "conflict", "no-eku", "server-only", "any-eku"),
        *("no-digital-signature", "ca", "self-signed"),
    ],
)
def test_every_other_leaf_is_refused_with_its_reason(
    leaf: dict[str, object], reason: Reason, pki: Pki, trust: TrustStore
) -> None:
    """S5 and S6, one deviation each from the leaf that is admitted."""
    assert verdict(pki.raw_leaf(), trust) == "dev-a"
    assert verdict(pki.raw_leaf(**leaf), trust) == reason  # type: ignore[arg-type]


def test_a_ca_certificate_is_no_device(pki: Pki, trust: TrustStore) -> None:
    """Neither the issuing CA's own nor the root's: they have no clientAuth, and would be a CA if they had."""
    for issuer in (pki.issuing, pki.root):
        found = peer_of(der(issuer.certificate), trust, IdentityRule())
        assert isinstance(found, Refusal)


def test_a_leaf_of_a_foreign_ca_is_refused_and_the_claimed_issuer_named(
    pki: Pki, trust: TrustStore, tmp_path: Path
) -> None:
    """The name is escaped and cut: it is the peer's word."""
    stranger = Pki(tmp_path, "stranger")
    found = peer_of(der(stranger.device("dev-a")), trust, RULE)
    assert found == Refusal(Reason.ISSUER_UNKNOWN, "no trusted CA signed it; it names 'stranger CA'")
    key = new_key()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attribute = x509.NameAttribute(NameOID.COMMON_NAME, "\x1b[2J" + "x" * 9000, _validate=False)
        forged = (
            x509.CertificateBuilder()
            .subject_name(pki.raw_leaf().certificate.subject)
            .issuer_name(x509.Name([attribute]))
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now())
            .not_valid_after(now() + timedelta(days=1))
            .add_extension(x509.ExtendedKeyUsage([CLIENT]), critical=False)
            .sign(key, hashes.SHA256())
        )
    found = peer_of(der(forged), trust, RULE)
    assert isinstance(found, Refusal)
    assert found.reason == Reason.ISSUER_UNKNOWN
    assert found.detail.isprintable()
    assert len(found.detail) < 200


def test_two_cas_of_one_name_are_told_apart_by_their_keys(pki: Pki, tmp_path: Path) -> None:
    """S6: the same CN below both; the peer's issuer key says which."""
    twin = Pki(tmp_path, "test")
    cas = [ca.certificate for ca in (pki.root, pki.issuing, twin.root, twin.issuing)]
    trust = TrustStore.from_pem(to_pem(cas), "ca.crt")
    for owner in (pki, twin):
        found = peer(owner.device("dev-a"), trust)
        assert found.issuer_cn == "test CA"
        assert found.issuer_spki_sha256 == spki_sha256(owner.issuing.certificate)


def test_a_leaf_without_its_chain_is_judged_the_same(pki: Pki) -> None:
    """F6: the issuing CA stands in the CA file; without it the leaf has no known issuer."""
    leaf = pki.device("dev-a")
    with_issuing = TrustStore.from_pem(pki.ca_file.read_bytes(), "ca.crt")
    assert verdict(leaf, with_issuing) == "dev-a"
    assert verdict(leaf, TrustStore.from_pem(pki.root_file.read_bytes(), "root.crt")) == Reason.ISSUER_UNKNOWN


# --- whatever a peer sends


def test_a_leaf_above_the_limit_is_refused_unread(pki: Pki, trust: TrustStore) -> None:
    """The limit itself is read."""
    assert verdict(b"\x30" * MAX_LEAF_BYTES, trust) == Reason.CERTIFICATE_UNREADABLE
    found = peer_of(der(pki.device("dev-a")) + b"\0" * MAX_LEAF_BYTES, trust, RULE)
    assert isinstance(found, Refusal)
    assert "limit 16384" in found.detail


@pytest.fixture(scope="module")
def valid(pki: Pki) -> bytes:
    credential = pki.device("dev-a", ou="o", crl_url="http://crl.example.com/a", spiffe_domain="factory.example")
    return der(credential)


@pytest.mark.parametrize("source", ["cn", "san-uri", "san-dns"])
def test_every_single_flipped_bit_is_survived(source: str, valid: bytes, trust: TrustStore) -> None:
    """A refusal, or the very same peer: never an exception, never another device."""
    rule = IdentityRule(source)  # type: ignore[arg-type]
    original = peer_of(valid, trust, rule)
    for position in range(len(valid)):
        for bit in range(0, 8, 1 if source == "cn" else 3):
            damaged = bytearray(valid)
            damaged[position] ^= 1 << bit
            survives(bytes(damaged), trust, rule, original)


def survives(leaf: bytes, trust: TrustStore, rule: IdentityRule, original: Peer | Refusal) -> None:
    found = peer_of(leaf, trust, rule)
    if isinstance(found, Refusal):
        assert found.detail.isprintable()
        return
    assert isinstance(original, Peer)  # only what the signature does not cover may differ
    assert (found.id, found.certificate_serial, found.not_after) == (
        original.id,
        original.certificate_serial,
        original.not_after,
    )


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_valid_leaf_is_survived(data: st.DataObject, valid: bytes, trust: TrustStore) -> None:
    """Bytes overwritten, cut out or put in, many at once."""
    damaged = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(damaged)))
        end = start + data.draw(st.integers(0, 12))
        damaged[start:end] = data.draw(st.binary(max_size=12))
    survives(bytes(damaged), trust, RULE, peer_of(valid, trust, RULE))


@given(st.binary(max_size=400))
def test_any_bytes_at_all_are_refused(trust: TrustStore, leaf: bytes) -> None:
    """Nothing that is not signed by a trusted CA is a peer."""
    assert verdict(leaf, trust) == Reason.CERTIFICATE_UNREADABLE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0603551d0e", "0603551d23"),
        ("a003020102", "a003020101"),
        ("a003020102", "a003020103"),
        ("861d" + b"urn:mtls".hex(), "a51d" + b"urn:mtls".hex()),
    ],
    ids=["extension-twice", "version-2", "version-4", "edi-party-name"],
)
def test_what_the_parser_raises_by_names_of_its_own_is_a_refusal(
    old: str, new: str, valid: bytes, trust: TrustStore
) -> None:
    """Duplicate extensions, odd versions and names of odd kinds are no ValueErrors in the library."""
    leaf = valid.replace(bytes.fromhex(old), bytes.fromhex(new), 1)
    assert leaf != valid
    assert verdict(leaf, trust) == Reason.CERTIFICATE_UNREADABLE


def test_the_verdict_is_the_same_where_warnings_are_errors_and_where_they_are_not(pki: Pki, trust: TrustStore) -> None:
    """The parser warns of odd names; a peer must not be able to write to our log, nor a filter change a verdict."""
    odd = [pki.raw_leaf(cn="x" * 65), pki.raw_leaf(cn="")]
    for action in ("error", "ignore", "always"):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter(action)
            assert [verdict(leaf, trust) for leaf in odd] == [Reason.IDENTITY_MALFORMED] * 2
        assert said == []


# --- whether it is in good standing now


def test_a_valid_device_is_in_good_standing_with_and_without_crls(pki: Pki, trust: TrustStore) -> None:
    """No CRL configured is a choice of the site's."""
    found = peer(pki.device("dev-a"), trust)
    assert stands(found, trust) is None
    crls = CrlSet.from_pem(pki.crl().read_bytes(), trust, "crl.pem")
    assert stands(found, trust, crls=crls) is None


def test_both_ends_of_the_validity_are_inside(pki: Pki, trust: TrustStore) -> None:
    """RFC 5280 section 4.1.2.5; one second beyond is outside, and the detail names clock and limit (R6)."""
    start, end = now().replace(microsecond=0) - timedelta(hours=1), now().replace(microsecond=0) + timedelta(hours=1)
    found = peer(pki.raw_leaf(not_before=start, not_after=end), trust)
    second = timedelta(seconds=1)
    for inside in (start, end):
        refusal = stands(found, trust, when=inside)
        assert refusal is None or "CA certificate" in refusal.detail
    early, late = stands(found, trust, when=start - second), stands(found, trust, when=end + second)
    assert early == Refusal(
        Reason.CERTIFICATE_NOT_YET_VALID,
        f"certificate: clock={(start - second).isoformat()}, notBefore={start.isoformat()}",
    )
    assert late == Refusal(
        Reason.CERTIFICATE_EXPIRED, f"certificate: clock={(end + second).isoformat()}, notAfter={end.isoformat()}"
    )


def test_a_clock_of_1970_names_itself(pki: Pki, trust: TrustStore) -> None:
    """R6: a gateway that booted without a clock says so in the refusal."""
    refusal = stands(peer(pki.device("dev-a"), trust), trust, when=datetime(1970, 1, 1, tzinfo=UTC))
    assert refusal is not None
    assert refusal.reason == Reason.CERTIFICATE_NOT_YET_VALID
    assert "clock=1970-01-01T00:00:00+00:00, notBefore=" in refusal.detail


@pytest.mark.parametrize("years", [11, 21], ids=["issuing", "root"])
def test_an_expired_ca_takes_its_leaves_with_it(years: int, pki: Pki, trust: TrustStore) -> None:
    """R6: issuing CA and root are judged too, even where a leaf outlives them."""
    late = now() + timedelta(days=365 * years)
    found = peer(pki.raw_leaf(not_after=late + timedelta(days=1)), trust)
    refusal = stands(found, trust, when=late)
    assert refusal is not None
    assert refusal.reason == Reason.CERTIFICATE_EXPIRED
    assert refusal.detail.startswith("CA certificate: ")


def test_a_renewed_ca_carries_on_where_the_old_certificate_expired(pki: Pki, trust: TrustStore) -> None:
    """Same key, new dates, both in the file: one chain in good standing is enough."""
    key = new_key()
    build = {"subject_cn": "Line CA", "public_key": key.public_key(), "issuer": pki.root}
    old = ISSUING_CA.build(now=now(), lifetime=timedelta(minutes=1), **build)  # type: ignore[arg-type]
    new = ISSUING_CA.build(now=now(), **build)  # type: ignore[arg-type]
    leaf = pki.raw_leaf(issuer=Issuer(old, key))
    soon = now() + timedelta(hours=1)
    only_old = TrustStore.from_pem(to_pem([pki.root.certificate, old]), "ca.crt")
    both = TrustStore.from_pem(to_pem([pki.root.certificate, old, new]), "ca.crt")
    refusal = stands(peer(leaf, only_old), only_old, when=soon)
    assert refusal is not None
    assert refusal.reason == Reason.CERTIFICATE_EXPIRED
    assert stands(peer(leaf, both), both, when=soon) is None


def test_a_peer_whose_ca_was_taken_out_of_the_file_is_refused(pki: Pki, trust: TrustStore, tmp_path: Path) -> None:
    """A live session is judged again with the store of the reload."""
    found = peer(pki.device("dev-a"), trust)
    other = TrustStore.from_pem(Pki(tmp_path, "other").ca_file.read_bytes(), "ca.crt")
    assert stands(found, other) == Refusal(Reason.ISSUER_UNKNOWN, "'test CA' is no longer trusted")


def test_the_deny_list_refuses_by_id_serial_and_fingerprint(pki: Pki, trust: TrustStore) -> None:
    """R1: and leaves the neighbour alone."""
    found, neighbour = peer(pki.device("dev-a"), trust), peer(pki.device("dev-b"), trust)
    lists = (
        DenyList(ids=frozenset({"dev-a"})),
        DenyList(certificate_serials=frozenset({found.certificate_serial})),
        DenyList(fingerprints=frozenset({found.fingerprint_sha256})),
    )
    for deny in lists:
        refusal = stands(found, trust, deny=deny)
        assert refusal is not None
        assert refusal.reason == Reason.CERTIFICATE_DENIED
        assert stands(neighbour, trust, deny=deny) is None


def test_the_crl_refuses_leaf_and_issuing_ca(pki: Pki, trust: TrustStore) -> None:
    """R1, R4: the neighbour stays; a revoked issuing CA takes both."""
    a, b = pki.device("dev-a"), pki.device("dev-b")
    leaf_revoked = CrlSet.from_pem(pki.crl([a.certificate]).read_bytes(), trust, "crl.pem")
    ca_revoked = CrlSet.from_pem(pki.crl(issuer_revoked=[pki.issuing.certificate]).read_bytes(), trust, "crl.pem")

    def reason(credential: Credential, crls: CrlSet) -> Reason | None:
        refusal = stands(peer(credential, trust), trust, crls=crls)
        return refusal.reason if refusal else None

    assert reason(a, leaf_revoked) == Reason.CERTIFICATE_REVOKED
    assert reason(b, leaf_revoked) is None
    assert reason(a, ca_revoked) == reason(b, ca_revoked) == Reason.CERTIFICATE_REVOKED


def test_a_stale_crl_follows_the_rule(pki: Pki, trust: TrustStore) -> None:
    """R3, F10: deny refuses, grace goes on for its hours; a missing CRL has no grace."""
    found = peer(pki.device("dev-a"), trust)
    crls = CrlSet.from_pem(pki.crl(lifetime=timedelta(hours=1)).read_bytes(), trust, "crl.pem")
    late = now() + timedelta(hours=5)
    refusal = stands(found, trust, crls=crls, when=late)
    assert refusal is not None
    assert refusal.reason == Reason.CRL_STALE
    assert "nextUpdate=" in refusal.detail
    grace = StaleRule.parse("grace 48h")
    assert stands(found, trust, crls=crls, when=late, stale=grace) is None
    gone = CrlSet.unusable(Refusal(Reason.CRL_MISSING, "crl.pem does not exist"))
    refusal = stands(found, trust, crls=gone, stale=grace)
    assert refusal is not None
    assert refusal.reason == Reason.CRL_MISSING


def test_a_crl_of_one_distribution_point_is_compared_with_the_leafs_own(pki: Pki, trust: TrustStore) -> None:
    """R4: read from the DER of the connection's leaf, only where a CRL is limited to points."""
    url = "http://crl.example.com/a.crl"
    point = x509.IssuingDistributionPoint([x509.UniformResourceIdentifier(url)], None, False, False, None, False, False)
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(pki.issuing.certificate.subject)
        .last_update(now() - timedelta(hours=1))
        .next_update(now() + timedelta(days=1))
        .add_extension(point, critical=True)
        .sign(pki.issuing.key, hashes.SHA256())
    )
    blocks = pki.crl().read_bytes().split(b"-----BEGIN X509 CRL-----")
    root_crl = b"-----BEGIN X509 CRL-----" + blocks[2]
    crls = CrlSet.from_pem(crl.public_bytes(Encoding.PEM) + root_crl, trust, "crl.pem")
    assert crls.faults == ()
    assert stands(peer(pki.device("dev-a", crl_url=url), trust), trust, crls=crls) is None
    refusal = stands(peer(pki.device("dev-b"), trust), trust, crls=crls)
    assert refusal is not None
    assert refusal.reason == Reason.CRL_MISSING


def test_known_peers_are_what_peer_of_says(pki: Pki, trust: TrustStore) -> None:
    """First and again: the same facts, found once."""
    known, device = KnownPeers(trust, RULE), der(pki.device("dev-a"))
    first = known.peer_of(device)
    assert first == peer_of(device, trust, RULE)
    assert known.peer_of(device) is first


def test_a_refusal_is_not_remembered(pki: Pki, trust: TrustStore) -> None:
    """A stranger cannot fill the memory."""
    known = KnownPeers(trust, RULE)
    for leaf in (pki.raw_leaf(self_signed=True), pki.raw_leaf(eku=None)):
        assert isinstance(known.peer_of(der(leaf)), Refusal)
        assert isinstance(known.peer_of(der(leaf)), Refusal)
    assert len(known) == 0


def test_a_certificate_of_unusual_size_is_not_remembered(pki: Pki, trust: TrustStore) -> None:
    """What a known CA signed, however large, cannot fill the memory either."""
    known = KnownPeers(trust, RULE)
    large = der(pki.raw_leaf(san=[x509.UniformResourceIdentifier("https://example.com/" + "x" * MAX_KNOWN_BYTES)]))
    assert isinstance(known.peer_of(large), Peer)
    assert len(known) == 0


def test_the_longest_unused_peer_is_forgotten(pki: Pki, trust: TrustStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is bounded; who comes back stays in it."""
    monkeypatch.setattr("mtls.judgement.MAX_KNOWN", 2)
    known = KnownPeers(trust, RULE)
    a, b, c = (der(pki.device(f"dev-{letter}")) for letter in "abc")
    first, second = known.peer_of(a), known.peer_of(b)
    assert known.peer_of(a) is first
    known.peer_of(c)
    assert len(known) == 2
    assert known.peer_of(a) is first
    assert known.peer_of(b) is not second
    assert known.peer_of(b) == second
