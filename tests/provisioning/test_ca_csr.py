"""CSRs (F2): the signature is checked, the wishes are ignored, the key is P-256; judged with OpenSSL's own CSRs."""

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from mtls.csr import MAX_CSR_BYTES, CsrFault, csr_public_key
from mtls.identity import DeviceId
from mtls.profiles import DEVICE_OPERATIONAL, common_name, spki_sha256
from provisioning.ca import CertificateAuthority

NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "wished")])


def make_csr(key: ec.EllipticCurvePrivateKey | None = None) -> x509.CertificateSigningRequest:
    """A request that wishes to be a CA, a server and somebody else."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(NAME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("gateway.test")]), critical=False)
        .sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER], ids=["pem", "der"])
def test_the_key_of_a_good_csr_is_returned(encoding: Encoding) -> None:
    """The one thing a CSR is good for."""
    key = ec.generate_private_key(ec.SECP256R1())
    found = csr_public_key(make_csr(key).public_bytes(encoding), "device.csr")
    assert found.public_numbers() == key.public_key().public_numbers()


def test_a_csr_made_by_openssl_is_accepted(tmp_path: Path) -> None:
    """What an operator makes by hand."""
    key, csr = tmp_path / "k.pem", tmp_path / "k.csr"
    make_key = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)]
    subprocess.run(make_key, check=True, timeout=30)
    subprocess.run(
        ["openssl", "req", "-new", "-key", str(key), "-subj", "/CN=x", "-out", str(csr)], check=True, timeout=30
    )
    assert csr_public_key(csr.read_bytes(), "k.csr").curve.name == "secp256r1"


@pytest.mark.parametrize("what", ["subject", "key", "signature"])
def test_a_tampered_csr_is_refused(what: str) -> None:
    """F2: the library loads all three without complaint, so loading proves nothing."""
    csr = make_csr()
    der = bytearray(csr.public_bytes(Encoding.DER))
    if what == "subject":
        der = der.replace(b"wished", b"wisher")
    elif what == "key":
        old = csr.public_key().public_numbers()  # type: ignore[union-attr]
        new = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
        der = der.replace(old.x.to_bytes(32, "big"), new.x.to_bytes(32, "big"))  # type: ignore[union-attr]
        der = der.replace(old.y.to_bytes(32, "big"), new.y.to_bytes(32, "big"))  # type: ignore[union-attr]
    else:
        der[-1] ^= 1
    x509.load_der_x509_csr(bytes(der))
    with pytest.raises(CsrFault, match=r"signature of device\.csr does not match") as caught:
        csr_public_key(bytes(der), "device.csr")
    assert caught.value.hint


def test_the_wishes_of_a_csr_are_ignored(ca: CertificateAuthority) -> None:
    """F2: neither name, CA flag, server usage nor alternative name comes into the certificate."""
    key = csr_public_key(make_csr().public_bytes(Encoding.PEM), "device.csr")
    leaf, _ = ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, key)
    extensions = leaf.extensions
    assert common_name(leaf.subject) == "dev-1"
    assert spki_sha256(leaf) == spki_sha256(key)
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == []


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["rsa", "p-384", "secp256k1", "ed25519"],
)
def test_other_keys_than_p256_are_refused(key: rsa.RSAPrivateKey) -> None:
    """F2: algorithm and curve are allow-listed."""
    hash_algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    csr = x509.CertificateSigningRequestBuilder().subject_name(NAME).sign(key, hash_algorithm)
    with pytest.raises(CsrFault, match=r"not on the curve P-256|not with ECDSA"):
        csr_public_key(csr.public_bytes(Encoding.PEM), "device.csr")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        make_csr().public_bytes(Encoding.PEM)[:200],
        make_csr().public_bytes(Encoding.DER)[:-20],
        b"x" * (MAX_CSR_BYTES + 1),
    ],
    ids=["empty", "text", "hollow", "cut pem", "cut der", "huge"],
)
def test_what_is_no_csr_is_one_sentence(data: bytes) -> None:
    """Truncated, foreign or huge files."""
    with pytest.raises(CsrFault, match=r"device\.csr"):
        csr_public_key(data, "device.csr")


@given(st.binary(max_size=400))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    """Whatever a device sends, the answer is a key or a fault."""
    with pytest.raises(CsrFault):
        csr_public_key(data, "device.csr")


DER = make_csr().public_bytes(Encoding.DER)


@given(st.integers(0, len(DER) - 1), st.integers(1, 255))
def test_no_flipped_byte_is_accepted(position: int, change: int) -> None:
    """F2: every byte of a CSR is either under the signature or part of it."""
    damaged = bytearray(DER)
    damaged[position] ^= change
    with pytest.raises(CsrFault):
        csr_public_key(bytes(damaged), "device.csr")
