"""The judgement of a connection's certificate in our own code, from the leaf's DER alone.

A resumed TLS 1.2 session skips every check of the TLS library, and a live connection outlives the moment of its
handshake. So every admission and every reload judges the leaf again: `peer_of` says who it is and whether it may be a
client at all, `standing` whether it is so now (dates, deny list, CRL, up the whole chain).

Admission asks no more of a certificate than identity, a client's usage and a known issuer: devices of other CAs have
other profiles. Not verified here: that the peer holds the key (the handshake does), and which ids an issuer may name
(the policy does).

Sources: RFC 5280 sections 4.2.1.3 (key usage), 4.2.1.9 (basic constraints), 4.2.1.12 (extended key usage), 6.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mtls.clock import Moment
from mtls.errors import Reason, Refusal
from mtls.identity import UNREADABLE, DeviceId, IdentityRule, identity_of, quiet_parser
from mtls.profiles import certificate_serial_hex, common_name
from mtls.revocation import CrlSet, DenyList, StaleRule, crl_urls
from mtls.terminal import sanitise
from mtls.trust import Chain, TrustStore

MAX_LEAF_BYTES: Final = 16384  # a device certificate has about 700; the largest sensible one far below this
MAX_KNOWN: Final = 8192  # certificates remembered: more than a site has devices, and 24 MB when all have their most
MAX_KNOWN_BYTES: Final = 2048


@dataclass(frozen=True, slots=True)
class Peer:
    """The facts of one certificate that rules may read. Hex is lower-case, times are aware UTC."""

    id: DeviceId
    issuer_cn: str
    issuer_spki_sha256: str
    ou: tuple[str, ...]
    o: tuple[str, ...]
    certificate_serial: str
    fingerprint_sha256: str
    not_before: datetime
    not_after: datetime
    leaf_der: bytes


def peer_of(
    leaf_der: bytes, trust: TrustStore, rule: IdentityRule, proven_issuer: bytes | None = None
) -> Peer | Refusal:
    """Who a leaf certificate names, if it is a client certificate of a known CA. No dates, no revocation.

    `proven_issuer`: see `TrustStore.authority_of`.
    """
    if len(leaf_der) > MAX_LEAF_BYTES:
        return Refusal(Reason.CERTIFICATE_UNREADABLE, f"{len(leaf_der)} bytes, limit {MAX_LEAF_BYTES}")
    with quiet_parser():
        return _peer_of(leaf_der, trust, rule, proven_issuer)


class KnownPeers:
    """`peer_of` under one trust store and one rule, with a memory: what it says of a DER never changes.

    Devices reconnect with the certificate they had. Only what a known CA signed is remembered, the longest unused is
    forgotten, and a certificate of unusual size is judged every time, so that the memory stays small. Dates, CRL and
    deny list are no part of it: `standing` judges those each time.
    """

    def __init__(self, trust: TrustStore, rule: IdentityRule) -> None:
        self._trust = trust
        self._rule = rule
        self._known: dict[bytes, Peer] = {}

    def __len__(self) -> int:
        return len(self._known)

    def peer_of(self, leaf_der: bytes, proven_issuer: bytes | None = None) -> Peer | Refusal:
        """What `peer_of` says."""
        peer = self._known.pop(leaf_der, None)
        if peer is None:
            found = peer_of(leaf_der, self._trust, self._rule, proven_issuer)
            if isinstance(found, Refusal) or len(leaf_der) > MAX_KNOWN_BYTES:
                return found
            peer = found
            if len(self._known) >= MAX_KNOWN:
                del self._known[next(iter(self._known))]
        self._known[leaf_der] = peer
        return peer


def _peer_of(leaf_der: bytes, trust: TrustStore, rule: IdentityRule, proven_issuer: bytes | None) -> Peer | Refusal:
    try:
        cert = x509.load_der_x509_certificate(leaf_der)
        device_id = identity_of(cert, rule)
        if isinstance(device_id, Refusal):
            return device_id
        for check in _USAGE_CHECKS:
            refusal = check(cert)
            if refusal is not None:
                return refusal
        issuer = trust.authority_of(cert, proven_issuer)
        if issuer is None:
            named = sanitise(common_name(cert.issuer), 64)
            return Refusal(Reason.ISSUER_UNKNOWN, f"no trusted CA signed it; it names {named!a}")
        return facts_of(cert, leaf_der, device_id, issuer.common_name, issuer.spki_sha256)
    except UNREADABLE:
        return Refusal(Reason.CERTIFICATE_UNREADABLE, "the certificate cannot be parsed")


def facts_of(
    cert: x509.Certificate, leaf_der: bytes, device_id: DeviceId, issuer_cn: str, issuer_spki_sha256: str
) -> Peer:
    """What rules may read of a certificate, as it stands; nothing is verified here."""
    subject = cert.subject
    return Peer(
        id=device_id,
        issuer_cn=issuer_cn,
        issuer_spki_sha256=issuer_spki_sha256,
        ou=_values(subject, NameOID.ORGANIZATIONAL_UNIT_NAME),
        o=_values(subject, NameOID.ORGANIZATION_NAME),
        certificate_serial=certificate_serial_hex(cert),
        fingerprint_sha256=hashlib.sha256(leaf_der).hexdigest(),
        not_before=cert.not_valid_before_utc,
        not_after=cert.not_valid_after_utc,
        leaf_der=leaf_der,
    )


def _values(name: x509.Name, oid: x509.ObjectIdentifier) -> tuple[str, ...]:
    return tuple(str(attribute.value) for attribute in name.get_attributes_for_oid(oid))


def _has_client_usage(cert: x509.Certificate) -> Refusal | None:
    try:
        usages = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return Refusal(Reason.CERTIFICATE_USAGE, "no extended key usage, clientAuth is required")
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        return Refusal(Reason.CERTIFICATE_USAGE, "extended key usage without clientAuth")
    return None


def _is_no_ca(cert: x509.Certificate) -> Refusal | None:
    try:
        is_ca = cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return None
    return Refusal(Reason.CERTIFICATE_IS_CA, "a CA certificate is no device") if is_ca else None


def _may_sign(cert: x509.Certificate) -> Refusal | None:
    try:
        usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
    if usage.digital_signature:
        return None
    return Refusal(Reason.CERTIFICATE_USAGE, "key usage without digitalSignature")


_USAGE_CHECKS: Final[tuple[Callable[[x509.Certificate], Refusal | None], ...]] = (
    _has_client_usage,
    _is_no_ca,
    _may_sign,
)


def standing(
    peer: Peer,
    *,
    trust: TrustStore,
    crls: CrlSet | None,
    stale: StaleRule,
    deny: DenyList,
    now: Moment,
) -> Refusal | None:
    """Why a peer is not in good standing now, or None. `crls` None means that the site has configured no CRL.

    Of a moment that is only a floor, what had ended before it is refused, and nothing for beginning after it.
    """
    chains = trust.chains.get(peer.issuer_spki_sha256, ())
    if not chains:
        return Refusal(Reason.ISSUER_UNKNOWN, f"{peer.issuer_cn!a} is no longer trusted")
    refusal = _dates("certificate", peer.not_before, peer.not_after, now) or deny.refusal(
        peer.id, peer.certificate_serial, peer.fingerprint_sha256
    )
    if refusal is not None:
        return refusal
    refusals = [_chain_refusal(peer, chain, crls, stale, now) for chain in chains]
    return None if None in refusals else refusals[0]


def _chain_refusal(peer: Peer, chain: Chain, crls: CrlSet | None, stale: StaleRule, now: Moment) -> Refusal | None:
    for ca in chain:
        refusal = _dates("CA certificate", ca.not_valid_before_utc, ca.not_valid_after_utc, now)
        if refusal is not None:
            return refusal
    if crls is None:
        return None
    return crls.chain_refusal(int(peer.certificate_serial, 16), lambda: _crl_urls(peer), chain, now, stale)


def _crl_urls(peer: Peer) -> frozenset[str]:
    return crl_urls(x509.load_der_x509_certificate(peer.leaf_der))


def _dates(what: str, not_before: datetime, not_after: datetime, now: Moment) -> Refusal | None:
    """Both ends are inside the validity (RFC 5280 section 4.1.2.5)."""
    if now.synced and now.at < not_before:
        return Refusal(Reason.CERTIFICATE_NOT_YET_VALID, f"{what}: {now}, notBefore={not_before.isoformat()}")
    if now.at > not_after:
        return Refusal(Reason.CERTIFICATE_EXPIRED, f"{what}: {now}, notAfter={not_after.isoformat()}")
    return None
