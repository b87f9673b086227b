"""Trusted CAs: roots are the only anchors, and an issuer is the CA whose key verifies (S6)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from mtls.errors import ConfigFault
from mtls.keystore import new_key
from mtls.profiles import ISSUING_CA, ROOT_CA, Issuer, spki_sha256
from mtls.trust import MAX_CERTIFICATES, MAX_CHAIN, TrustStore, to_pem
from tests.support.pki import Pki, now


def store(*certificates: x509.Certificate) -> TrustStore:
    return TrustStore.from_pem(to_pem(certificates), "ca.crt")


def root(name: str = "R", key: ec.EllipticCurvePrivateKey | None = None, **build: object) -> Issuer:
    """A root, with its own key or a given one."""
    key = key or new_key()
    arguments: dict[str, object] = {"now": now(), **build}
    cert = ROOT_CA.build(subject_cn=name, public_key=key.public_key(), issuer=None, key=key, **arguments)  # type: ignore[arg-type]
    return Issuer(cert, key)


def below(issuer: Issuer, name: str = "I", key: ec.EllipticCurvePrivateKey | None = None, **build: object) -> Issuer:
    """An issuing CA."""
    key = key or new_key()
    arguments: dict[str, object] = {"now": now(), **build}
    cert = ISSUING_CA.build(subject_cn=name, public_key=key.public_key(), issuer=issuer, **arguments)  # type: ignore[arg-type]
    return Issuer(cert, key)


def bare_ca(
    name: str, *, issuer: Issuer | None = None, path_length: int | None = None, usage: x509.KeyUsage | None = None
) -> Issuer:
    """A CA of another maker: no key identifiers, perhaps no key usage."""
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(days=1))
        .not_valid_after(now() + timedelta(days=30))
        .add_extension(x509.BasicConstraints(True, path_length), critical=True)
    )
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    return Issuer(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def test_a_ca_file_is_split_into_roots_and_issuing_cas(pki: Pki) -> None:
    """In any order, with text between, and each certificate once."""
    root_pem, issuing_pem = to_pem([pki.root.certificate]), to_pem([pki.issuing.certificate])
    for pem in (root_pem + issuing_pem, issuing_pem + b"\nsite A\n" + root_pem + issuing_pem + root_pem):
        trust = TrustStore.from_pem(pem, "ca.crt")
        assert trust.roots == (pki.root.certificate,)
        assert trust.issuing == (pki.issuing.certificate,)
        assert trust.pem == pem
        assert trust.chains_of(pki.issuing.certificate) == ((pki.issuing.certificate, pki.root.certificate),)
        assert trust.chains_of(pki.root.certificate) == ((pki.root.certificate,),)


def test_a_root_alone_is_a_store(pki: Pki) -> None:
    """Its own leaves are known; those of an issuing CA that is not in the file are not."""
    trust = store(pki.root.certificate)
    assert trust.issuer_of(pki.raw_leaf(issuer=pki.root).certificate) == pki.root.certificate
    assert trust.issuer_of(pki.device("dev-a").certificate) is None


@pytest.mark.parametrize(
    ("pem", "sentence"),
    [
        (b"", "ca.crt holds no readable certificates"),
        (b"junk", "ca.crt holds no readable certificates"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "ca.crt holds no readable certificates"),
        (b"\x00\xff" * 100, "ca.crt holds no readable certificates"),
    ],
    ids=["empty", "text", "no-der", "binary"],
)
def test_junk_is_a_fault_that_names_the_file(pem: bytes, sentence: str) -> None:
    """One sentence, one hint, exit code 78."""
    with pytest.raises(ConfigFault) as caught:
        TrustStore.from_pem(pem, "ca.crt")
    assert str(caught.value) == sentence
    assert caught.value.hint
    assert caught.value.exit_code == 78


def test_a_truncated_file_is_a_fault(pki: Pki) -> None:
    """Cut anywhere in the first certificate; a file cut in the second is no smaller set of CAs either."""
    pem = pki.ca_file.read_bytes()
    for cut in range(30, pem.index(b"-----END"), 97):
        with pytest.raises(ConfigFault):
            TrustStore.from_pem(pem[:cut], "ca.crt")
    cut_in_root = pem[pem.index(b"-----BEGIN", 30) :] + pem[:200]
    with pytest.raises(ConfigFault, match=r"no self-signed root CA|no readable"):
        TrustStore.from_pem(cut_in_root, "ca.crt")


def test_an_issuing_ca_without_its_root_is_no_store(pki: Pki) -> None:
    """Only a self-signed root is an anchor: OpenSSL on 3.11 would trust nobody, and so do we, aloud."""
    with pytest.raises(ConfigFault, match="holds no self-signed root CA"):
        store(pki.issuing.certificate)


def test_a_root_that_only_says_that_it_signed_itself_is_none(pki: Pki) -> None:
    """Subject and issuer equal, signature of another key."""
    fake = bare_ca("R", issuer=bare_ca("R"))
    with pytest.raises(ConfigFault, match="holds no self-signed root CA"):
        store(fake.certificate)


def test_a_ca_below_no_root_of_the_file_is_a_fault(pki: Pki) -> None:
    """Left-over CAs are named rather than ignored; also one that bears a root's name and not its signature."""
    stranger = below(root("Other root"), "Stranger")
    namesake = below(root(pki.root.certificate.subject.rfc4514_string().removeprefix("CN=")), "Namesake")
    for issuer, name in ((stranger, "Stranger"), (namesake, "Namesake")):
        with pytest.raises(ConfigFault, match=f"no root in this file signed '{name}'"):
            store(pki.root.certificate, issuer.certificate)


def test_a_device_certificate_in_a_ca_file_is_a_fault(pki: Pki) -> None:
    """Also a self-signed one: it would be an anchor for itself."""
    for leaf in (pki.device("dev-a"), pki.raw_leaf(self_signed=True), pki.raw_leaf(ca=None, self_signed=True)):
        with pytest.raises(ConfigFault, match="'dev-a' is no CA certificate"):
            store(pki.root.certificate, leaf.certificate)


def test_a_ca_whose_key_usage_forbids_signing_is_none() -> None:
    """A present key usage must allow keyCertSign; an absent one allows it."""
    signs = x509.KeyUsage(False, False, False, False, False, True, False, False, False)
    signs_not = x509.KeyUsage(True, False, False, False, False, False, True, False, False)
    store(bare_ca("none").certificate)
    store(bare_ca("signs", usage=signs).certificate)
    with pytest.raises(ConfigFault, match="'signs not' is no CA certificate"):
        store(bare_ca("signs not", usage=signs_not).certificate)


def test_too_many_cas_are_a_fault(pki: Pki) -> None:
    """Each costs a signature check per handshake."""
    certificates = [root(f"R{number}").certificate for number in range(MAX_CERTIFICATES)]
    store(*certificates)
    with pytest.raises(ConfigFault, match=f"more than {MAX_CERTIFICATES} certificates"):
        store(*certificates, pki.root.certificate)


def test_the_issuer_is_the_ca_whose_key_verifies(pki: Pki, tmp_path: Path) -> None:
    """S6: two CAs of one name; the name and the key identifier prove nothing."""
    twin = Pki(tmp_path, "test")
    assert twin.issuing.certificate.subject == pki.issuing.certificate.subject
    trust = store(*(ca.certificate for ca in (twin.root, pki.root, twin.issuing, pki.issuing)))
    for owner in (pki, twin):
        leaf = owner.device("dev-a").certificate
        assert trust.issuer_of(leaf) == owner.issuing.certificate
        (chain,) = trust.chains_of(owner.issuing.certificate)
        assert chain == (owner.issuing.certificate, owner.root.certificate)


def test_a_leaf_that_only_claims_a_known_issuer_has_none(pki: Pki) -> None:
    """Name and key identifier of our CA, signature of another key."""
    forged = pki.raw_leaf(issuer=Issuer(pki.issuing.certificate, new_key())).certificate
    honest = pki.raw_leaf().certificate
    trust = store(pki.root.certificate, pki.issuing.certificate)
    assert trust.issuer_of(honest) == pki.issuing.certificate
    assert trust.issuer_of(forged) is None
    assert trust.issuer_of(pki.raw_leaf(self_signed=True).certificate) is None
    assert trust.chains_of(forged) == ()


def test_a_renewed_ca_has_a_chain_for_each_of_its_certificates() -> None:
    """Same name, same key, new dates: either may be the one that is valid."""
    top = root()
    old = below(top)
    new = below(top, key=old.key)
    trust = store(top.certificate, old.certificate, new.certificate)
    chains = trust.chains[spki_sha256(old.certificate)]
    assert chains == ((old.certificate, top.certificate), (new.certificate, top.certificate))


def test_a_cross_signed_ca_has_a_chain_to_each_root() -> None:
    """A change of roots goes through a time with both."""
    first, second = root("First"), root("Second")
    issuing = below(first)
    crossed = below(second, key=issuing.key)
    trust = store(first.certificate, second.certificate, issuing.certificate, crossed.certificate)
    assert set(trust.chains[spki_sha256(issuing.certificate)]) == {
        (issuing.certificate, first.certificate),
        (crossed.certificate, second.certificate),
    }


def test_a_root_that_was_certified_by_an_older_one_stays_an_anchor() -> None:
    """Its cross certificate is one more way up, not the end of its own."""
    older, newer = bare_ca("Older"), root("Newer")
    key = newer.key
    cross = ROOT_CA.build(subject_cn="Newer", public_key=key.public_key(), issuer=root("Older", older.key), now=now())
    trust = store(older.certificate, newer.certificate, cross)
    ways = trust.chains[spki_sha256(newer.certificate)]
    assert (newer.certificate,) in ways
    assert (cross, older.certificate) in ways


def line_of_cas(count: int, path_length: int | None) -> list[x509.Certificate]:
    """A root with a path length, and `count` CAs below it, one under the other."""
    line = [bare_ca("Root", path_length=path_length)]
    for number in range(1, count + 1):
        line.append(bare_ca(f"CA {number}", issuer=line[-1]))
    return [ca.certificate for ca in line]


@pytest.mark.parametrize(("path_length", "allowed"), [(0, 0), (1, 1), (None, MAX_CHAIN - 1)])
def test_a_path_length_is_kept(path_length: int | None, allowed: int) -> None:
    """RFC 5280 section 4.2.1.9, and a limit of our own where there is none; the fault names who is too deep."""
    line = line_of_cas(allowed, path_length)
    assert store(*line).chains_of(line[-1]) == (tuple(reversed(line)),)
    with pytest.raises(ConfigFault, match=f"no root in this file signed 'CA {allowed + 1}'"):
        store(*line_of_cas(allowed + 1, path_length))


def test_two_cas_that_certify_each_other_do_not_run_in_circles() -> None:
    """A loop has no root in it: a fault, at once."""
    left, right = new_key(), new_key()
    top = root()
    one = below(top, "One", left)
    two = ISSUING_CA.build(subject_cn="Two", public_key=right.public_key(), issuer=one, now=now())
    back = ISSUING_CA.build(subject_cn="One", public_key=left.public_key(), issuer=Issuer(two, right), now=now())
    with pytest.raises(ConfigFault, match="no root in this file signed 'Two'"):
        store(top.certificate, two, back)


def test_a_proven_issuer_spares_the_signature_of_that_very_ca_only(pki: Pki, tmp_path: Path) -> None:
    """What proves another certificate, even one of the same name, proves nothing here: the signature decides."""
    twin = Pki(tmp_path, "test")
    trust = store(pki.root.certificate, pki.issuing.certificate)
    ours, theirs = (ca.issuing.certificate.public_bytes(Encoding.DER) for ca in (pki, twin))
    honest, forged = pki.device("dev-a").certificate, twin.device("dev-a").certificate
    for proven in (ours, theirs, None, b""):
        found = trust.authority_of(honest, proven)
        assert found is not None
        assert found.certificate == pki.issuing.certificate
    assert trust.authority_of(forged, theirs) is None
    assert trust.authority_of(forged) is None


def test_a_proven_issuer_of_another_name_is_no_issuer(pki: Pki) -> None:
    """Names pick the candidates: a CA of the store that the leaf does not name is not asked."""
    trust = store(pki.root.certificate, pki.issuing.certificate)
    stranger = pki.raw_leaf(self_signed=True).certificate
    assert trust.authority_of(stranger, pki.issuing.certificate.public_bytes(Encoding.DER)) is None
