"""Names, alternative names and public keys of X.509 in words, safe to print."""

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from mtls.terminal import sanitise

MAX_NAMES = 20  # alternative names shown of one certificate


def name_text(name: x509.Name) -> str:
    """A distinguished name as RFC 4514 writes it."""
    return sanitise(name.rfc4514_string()) or "(empty)"


def names_text(cert: x509.Certificate) -> list[tuple[str, str]]:
    """The subject alternative names, when there are some."""
    try:
        found = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    names = [sanitise(str(name.value)) for name in list(found)[:MAX_NAMES]]
    return [("names", ", ".join(names))]


def key_text(key: PublicKeyTypes) -> str:
    """Kind and size of a public key."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "P-256" if isinstance(key.curve, ec.SECP256R1) else f"elliptic curve {key.curve.name}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return type(key).__name__.lstrip("_")


def spki_text(key: PublicKeyTypes) -> str:
    """SHA-256 of the DER SubjectPublicKeyInfo of any kind of key, lower-case hex."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
