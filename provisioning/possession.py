"""Public keys and proofs of possession as a device presents them: parsed strictly, verified, nothing repaired.

A key is exactly a DER SubjectPublicKeyInfo of an uncompressed P-256 point; a proof is a DER ECDSA signature over
the bytes of docs/spp1.md, section 6. That the key is new is the ledger's question, and which box holds it is a
question that no signature answers.
"""

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from mtls.errors import Fault


def spki_der(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as DER SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def p256_key(spki: bytes) -> ec.EllipticCurvePublicKey:
    """The key in a DER SubjectPublicKeyInfo; a fault unless it is P-256 on the curve and in canonical form."""
    try:
        key = load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Fault("the public key that the device returned cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Fault("the public key that the device returned is not on the curve P-256")
    # Two encodings of one key would have two digests, and a key counts as new by its digest.
    if spki_der(key) != spki:
        raise Fault("the public key that the device returned is not in canonical form")
    return key


def is_signed_by(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is this key's ECDSA with SHA-256 over `message`."""
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
