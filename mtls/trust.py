"""Which CAs are trusted, and which of them signed a certificate.

A CA file holds roots and issuing CAs side by side, so that a device that sends only its leaf still verifies; only
self-signed roots are anchors. The issuer of a leaf is the CA whose *key* verifies its signature: names and key
identifiers pick the candidates and prove nothing.

Not judged here: dates, revocation, names of devices. Source: RFC 5280 section 6.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mtls.errors import ConfigFault
from mtls.identity import UNREADABLE
from mtls.profiles import common_name, spki_sha256

MAX_CERTIFICATES = 64  # in one CA file
MAX_CHAIN = 8  # CAs from issuing CA to root; two are usual
MAX_CHAINS = 16  # ways up from one key: a CA is renewed or cross-signed a few times at most

Chain = tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA of a trust store, with what every judgement of a leaf asks of it."""

    certificate: x509.Certificate
    der: bytes
    subject: x509.Name
    common_name: str
    spki_sha256: str

    @classmethod
    def of(cls, ca: x509.Certificate) -> Self:
        """Read a CA certificate once."""
        return cls(ca, ca.public_bytes(Encoding.DER), ca.subject, common_name(ca.subject), spki_sha256(ca))


@dataclass(frozen=True, slots=True)
class TrustStore:
    """Roots (anchors) and the issuing CAs below them; `pem` is what was read.

    `chains` gives for each CA, by the SHA-256 of its key, every way up to a root: first the CA itself, last the root.
    There is more than one way when a CA was renewed with its key or cross-signed.
    """

    roots: tuple[x509.Certificate, ...]
    issuing: tuple[x509.Certificate, ...]
    pem: bytes
    chains: Mapping[str, tuple[Chain, ...]]
    authorities: tuple[Authority, ...]

    @classmethod
    def from_pem(cls, pem: bytes, source: str) -> TrustStore:
        """Read a CA file; ConfigFault when there is no root in it, or anything that is no CA below one."""
        certificates = _certificates(pem, source)
        roots = tuple(c for c in certificates if c.subject == c.issuer and is_signed_by(c, c))
        if not roots:
            raise ConfigFault(f"{source} holds no self-signed root CA", hint="add the root CA: it is the only anchor")
        issuing = tuple(c for c in certificates if c not in roots)
        chains: dict[str, tuple[Chain, ...]] = {}
        for ca in (*roots, *issuing):
            found = tuple(_ways_up((ca,), roots, issuing))
            if not found:
                raise ConfigFault(
                    f"{source}: no root in this file signed {common_name(ca.subject)!a}",
                    hint="add its root, or remove it",
                )
            key = spki_sha256(ca)
            chains[key] = (*chains.get(key, ()), *found)[:MAX_CHAINS]
        authorities = tuple(Authority.of(ca) for ca in (*issuing, *roots))
        return cls(roots, issuing, pem, MappingProxyType(chains), authorities)

    def authority_of(self, cert: x509.Certificate, proven_issuer: bytes | None = None) -> Authority | None:
        """The CA of this store whose key verifies the certificate's signature, or None.

        `proven_issuer` is the DER of a certificate whose key is known to verify it already, as the TLS library finds
        out in a full handshake (`tls.proven_issuer`). It spares the signature of a CA that is that very certificate;
        any other is verified here.
        """
        name = cert.issuer
        for candidate in self.authorities:
            if candidate.subject != name:
                continue
            if candidate.der == proven_issuer or is_signed_by(cert, candidate.certificate):
                return candidate
        return None

    def issuer_of(self, cert: x509.Certificate) -> x509.Certificate | None:
        """The certificate of that CA."""
        found = self.authority_of(cert)
        return found.certificate if found is not None else None

    def completes(self, server_pem: bytes) -> bool:
        """Whether a server whose file holds its own certificate alone could be given an issuing CA from here to send.

        By name only: nothing is verified.
        """
        try:
            certificates = x509.load_pem_x509_certificates(server_pem)
            return len(certificates) == 1 and any(ca.subject == certificates[0].issuer for ca in self.issuing)
        except UNREADABLE:
            return True  # whatever OpenSSL makes of it

    def chains_of(self, ca: x509.Certificate) -> tuple[Chain, ...]:
        """Every way up from a CA of this store; none for another certificate."""
        return self.chains.get(spki_sha256(ca), ())


def _certificates(pem: bytes, source: str) -> list[x509.Certificate]:
    """The CA certificates of a file, each once."""
    try:
        certificates = list(dict.fromkeys(x509.load_pem_x509_certificates(pem)))
        no_ca = [c for c in certificates if not _is_ca(c)]
        named = common_name(no_ca[0].subject) if no_ca else ""
    except UNREADABLE as error:
        raise ConfigFault(
            f"{source} holds no readable certificates", hint="it must be PEM: root and issuing CAs"
        ) from error
    if no_ca:
        raise ConfigFault(
            f"{source}: {named!a} is no CA certificate", hint="only root and issuing CAs belong into a CA file"
        )
    if len(certificates) > MAX_CERTIFICATES:
        raise ConfigFault(
            f"{source} holds more than {MAX_CERTIFICATES} certificates", hint="name the CAs of this site only"
        )
    return certificates


def _ways_up(path: Chain, roots: Chain, issuing: Chain) -> Iterator[Chain]:
    """Every chain that continues `path` up to a root: each key once, path length constraints kept (section 6.1.4)."""
    top = path[-1]
    if top in roots:
        yield path
        return
    if len(path) == MAX_CHAIN:
        return
    keys = {spki_sha256(ca) for ca in path}
    for above in (*roots, *issuing):
        if above.subject != top.issuer or spki_sha256(above) in keys or not is_signed_by(top, above):
            continue
        limit = above.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        if limit is None or len(path) <= limit:
            yield from _ways_up((*path, above), roots, issuing)


def _is_ca(cert: x509.Certificate) -> bool:
    """Basic constraints say so, and a key usage does not say otherwise (RFC 5280 sections 4.2.1.3 and 4.2.1.9)."""
    try:
        if not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return cert.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as missing:
        return missing.oid == x509.KeyUsage.oid


def is_signed_by(cert: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether the CA's key verifies the certificate's signature, and the CA has the issuer's name."""
    try:
        cert.verify_directly_issued_by(ca)
    except UNREADABLE:
        return False
    return True


def to_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Certificates as one PEM, in order."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
