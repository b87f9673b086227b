"""Which CAs are trusted, and which of them signed a certificate.

A CA file holds roots and issuing CAs side by side, so that a device that sends only its leaf still verifies; only
self-signed roots are anchors. The issuer of a leaf is the CA whose *key* verifies its signature: names and key
identifiers pick the candidates and prove nothing.

Not judged here: dates, revocation, names of devices. Source: RFC 5280 section 6.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from mtls.errors import ConfigFault
from mtls.profiles import common_name, spki_sha256

MAX_CERTIFICATES = 64  # in one CA file


@dataclass(frozen=True, slots=True)
class TrustStore:
    """Roots (anchors) and the issuing CAs below them; `pem` is what was read.

    `chains` gives for each CA, by the SHA-256 of its key, the CA itself and those above it up to a root.
    """

    roots: tuple[x509.Certificate, ...]
    issuing: tuple[x509.Certificate, ...]
    pem: bytes
    chains: Mapping[str, tuple[x509.Certificate, ...]]

    @classmethod
    def from_pem(cls, pem: bytes, source: str) -> TrustStore:
        """Read a CA file; ConfigFault when there is no root in it, or anything that is no CA below one."""
        try:
            certificates = x509.load_pem_x509_certificates(pem)
        except ValueError as error:
            raise ConfigFault(
                f"{source} holds no readable certificates", hint="it must be PEM: root and issuing CAs"
            ) from error
        if len(certificates) > MAX_CERTIFICATES:
            raise ConfigFault(
                f"{source} holds more than {MAX_CERTIFICATES} certificates", hint="name the CAs of this site only"
            )
        for certificate in certificates:
            if not _is_ca(certificate):
                raise ConfigFault(
                    f"{source}: {common_name(certificate.subject)!a} is no CA certificate",
                    hint="only root and issuing CAs belong into a CA file",
                )
        roots = tuple(c for c in certificates if c.subject == c.issuer and _signed_by(c, c))
        if not roots:
            raise ConfigFault(f"{source} holds no self-signed root CA", hint="add the root CA: it is the only anchor")
        chains: dict[str, tuple[x509.Certificate, ...]] = {spki_sha256(root): (root,) for root in roots}
        issuing = _below(chains, [c for c in certificates if c not in roots], source)
        return cls(roots, issuing, pem, MappingProxyType(chains))

    def issuer_of(self, cert: x509.Certificate) -> x509.Certificate | None:
        """The CA of this store whose key verifies the certificate's signature, or None."""
        for candidate in (*self.issuing, *self.roots):
            if candidate.subject == cert.issuer and _signed_by(cert, candidate):
                return candidate
        return None


def _below(
    chains: dict[str, tuple[x509.Certificate, ...]], others: list[x509.Certificate], source: str
) -> tuple[x509.Certificate, ...]:
    """Add to `chains` the other certificates, each below a root directly or through another that is."""
    reached: list[x509.Certificate] = []
    pending = others
    while pending:
        found = [(cert, above) for cert in pending if (above := _chain_above(cert, chains)) is not None]
        if not found:
            name = common_name(pending[0].subject)
            raise ConfigFault(f"{source}: no root in this file signed {name!a}", hint="add its root, or remove it")
        for cert, above in found:
            chains[spki_sha256(cert)] = (cert, *above)
            reached.append(cert)
        pending = [cert for cert in pending if cert not in reached]
    return tuple(reached)


def _chain_above(
    cert: x509.Certificate, chains: Mapping[str, tuple[x509.Certificate, ...]]
) -> tuple[x509.Certificate, ...] | None:
    return next((c for c in chains.values() if c[0].subject == cert.issuer and _signed_by(cert, c[0])), None)


def _is_ca(cert: x509.Certificate) -> bool:
    try:
        return cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _signed_by(cert: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def to_pem(certificates: tuple[x509.Certificate, ...] | list[x509.Certificate]) -> bytes:
    """Certificates as one PEM, in order."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
