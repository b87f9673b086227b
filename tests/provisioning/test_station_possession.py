"""A public key is one canonical P-256 SubjectPublicKeyInfo, and a proof is its signature over exactly these bytes."""

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from mtls.errors import Fault
from provisioning.possession import is_signed_by, p256_key, spki_der

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


def der_of(public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def compressed(key: ec.EllipticCurvePublicKey) -> bytes:
    """The same key with a compressed point: valid DER, another digest."""
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    head = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
    bits = b"\x03" + bytes([len(point) + 1]) + b"\x00" + point
    return b"\x30" + bytes([len(head) + len(bits)]) + head + bits


def damaged(spki: bytes) -> bytes:
    return spki[:-1] + bytes([spki[-1] ^ 1])


def test_a_p256_key_is_read() -> None:
    """The allow: the key comes back, and its encoding is the one it came in."""
    assert p256_key(der_of(KEY.public_key())) == KEY.public_key()
    assert spki_der(p256_key(der_of(KEY.public_key()))) == der_of(KEY.public_key())


@pytest.mark.parametrize(
    ("spki", "words"),
    [
        (der_of(ec.generate_private_key(ec.SECP384R1()).public_key()), "not on the curve P-256"),
        (der_of(ec.generate_private_key(ec.SECP256K1()).public_key()), "not on the curve P-256"),
        (der_of(rsa.generate_private_key(65537, 2048).public_key()), "not on the curve P-256"),
        (der_of(ed25519.Ed25519PrivateKey.generate().public_key()), "not on the curve P-256"),
        (compressed(KEY.public_key()), "not in canonical form"),
        (der_of(KEY.public_key()) + b"\x00", "cannot be read"),
        (damaged(der_of(KEY.public_key())), "cannot be read"),
        (b"", "cannot be read"),
    ],
    ids=["p384", "k256", "rsa", "ed25519", "compressed", "trailing byte", "off the curve", "empty"],
)
def test_another_kind_of_key_is_refused(spki: bytes, words: str) -> None:
    """Curve and form are allow-listed: one key has one digest."""
    with pytest.raises(Fault, match=words):
        p256_key(spki)


@given(st.binary(max_size=100))
def test_no_bytes_break_the_reading_of_a_key(spki: bytes) -> None:
    """Arbitrary bytes are a fault with a sentence."""
    with pytest.raises(Fault, match="public key"):
        p256_key(spki)


@given(st.binary(max_size=80))
def test_only_the_right_key_over_the_right_bytes_signs(junk: bytes) -> None:
    """The right signature is accepted; of another key, over other bytes, or arbitrary bytes are not."""
    signature = KEY.sign(b"message", ec.ECDSA(hashes.SHA256()))
    public = KEY.public_key()
    assert is_signed_by(public, signature, b"message")
    assert not is_signed_by(OTHER.public_key(), signature, b"message")
    assert not is_signed_by(public, signature, b"massage")
    assert not is_signed_by(public, KEY.sign(b"message", ec.ECDSA(hashes.SHA384())), b"message")
    assert not is_signed_by(public, junk, b"message")
