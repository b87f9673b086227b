"""Whether a certificate is renewed, and the new one: facts in, a certificate or a refusal out. Pure but for signing.

The order never changes: the certificate that the request came with is judged exactly as the broker judges it (revoked
is refused before anything is looked at), then the clock, then the window, and only then the request itself.
A renewal changes the key and the dates and nothing else: subject and subjectAltName of the CSR must be those of the
certificate (RFC 7030 section 4.2.2), and what it asks for otherwise is not looked at. Who would get another subject
from our profile than he has is a device of another CA, and is refused.

Not verified here: that the peer holds the old key (the handshake does).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from gateway.admission import admit_certificate
from mtls.clock import Moment
from mtls.csr import CsrFault, names_of, verified_csr
from mtls.errors import Reason, Refusal
from mtls.judgement import Peer
from mtls.profiles import BACKDATE, DEVICE_OPERATIONAL, Issuer, common_name, spki_sha256

if TYPE_CHECKING:
    from gateway.security import SecurityState

SPIFFE: Final = "spiffe://"
MAX_ATTEMPTS: Final = 10  # of one identity within ATTEMPTS_S; an agent that fails asks a handful of times
ATTEMPTS_S: Final = 3600.0
MAX_TRACKED: Final = 10_000  # identities; a flood of others pushes out the oldest


@dataclass(frozen=True, slots=True)
class RenewalRules:
    """When and with which keys certificates are renewed."""

    window: float  # the last part of a certificate's life
    same_key: bool


class Attempts:
    """How often each identity has asked; `monotonic` is an argument."""

    def __init__(self) -> None:
        self._of: dict[str, list[float]] = {}

    def refusal(self, device_id: str, monotonic: float) -> Refusal | None:
        """Count one attempt; a refusal when there were too many."""
        recent = [at for at in self._of.pop(device_id, ()) if monotonic - at < ATTEMPTS_S]
        is_full = len(recent) >= MAX_ATTEMPTS
        self._of[device_id] = recent if is_full else [*recent, monotonic]
        if len(self._of) > MAX_TRACKED:
            del self._of[next(iter(self._of))]
        return Refusal(Reason.TOO_MANY_RENEWALS, f"limit {MAX_ATTEMPTS} within {ATTEMPTS_S:.0f} s") if is_full else None


def may_renew(state: SecurityState, leaf_der: bytes | None, now: Moment, rules: RenewalRules) -> Peer | Refusal:
    """Whether this certificate may be renewed now, whatever the request will be."""
    peer = admit_certificate(state, leaf_der, now)
    if isinstance(peer, Refusal):
        return peer
    if not now.synced:
        return Refusal(Reason.CLOCK_UNSYNCED, f"{now}: no certificate is dated by it")
    begins = peer.not_after - (peer.not_after - peer.not_before) * rules.window
    if now.at < begins:
        return Refusal(Reason.RENEWAL_TOO_EARLY, f"{now}, from {begins.isoformat(timespec='seconds')} on")
    return peer


def renewed(
    peer: Peer,
    csr_der: bytes,
    issuer: Issuer,
    rules: RenewalRules,
    now: datetime,
    owner_of: Callable[[str], str | None],
) -> x509.Certificate | Refusal:
    """The new certificate. `owner_of` says for whom a certificate of a key was issued here before."""
    old = x509.load_der_x509_certificate(peer.leaf_der)
    try:
        csr, key = verified_csr(csr_der, "the request")
    except CsrFault as fault:
        return Refusal(Reason.CSR_INVALID, str(fault))
    if names_of(csr) is None or names_of(csr) != names_of(old):
        return Refusal(Reason.CSR_NAMES_DIFFER, "subject and subjectAltName must be those of the certificate")
    spki = spki_sha256(key)
    if spki == spki_sha256(old) and not rules.same_key:
        return Refusal(Reason.KEY_REUSED, "the certificate has this key already, and [enrolment] same_key is false")
    if owner_of(spki) not in (None, str(peer.id)):
        return Refusal(Reason.KEY_REUSED, "a certificate of another device was issued for this key")
    return _signed(old, csr, issuer, now)


def _signed(
    old: x509.Certificate, csr: x509.CertificateSigningRequest, issuer: Issuer, now: datetime
) -> x509.Certificate | Refusal:
    life = old.not_valid_after_utc - old.not_valid_before_utc
    try:
        new = DEVICE_OPERATIONAL.build(
            subject_cn=common_name(old.subject),
            public_key=csr.public_key(),  # type: ignore[arg-type]  # verified_csr lets P-256 keys alone through
            issuer=issuer,
            now=now,
            ou=_only(old, NameOID.ORGANIZATIONAL_UNIT_NAME),
            o=_only(old, NameOID.ORGANIZATION_NAME),
            spiffe_domain=_spiffe_domain(old),
            lifetime=min(DEVICE_OPERATIONAL.lifetime, max(life - BACKDATE, life / 2)),
        )
    except ValueError as error:
        return Refusal(Reason.NOT_RENEWABLE, str(error))
    if names_of(new) != names_of(old) or DEVICE_OPERATIONAL.check(new, issuer.certificate):
        return Refusal(Reason.NOT_RENEWABLE, "the certificate is not of a profile that this gateway issues")
    if new.not_valid_after_utc <= old.not_valid_after_utc:
        return Refusal(Reason.NOT_RENEWABLE, "the gateway's issuing CA ends too soon to renew anything")
    return new


def _only(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str | None:
    values = certificate.subject.get_attributes_for_oid(oid)
    return str(values[0].value) if values else None


def _spiffe_domain(certificate: x509.Certificate) -> str | None:
    """The domain of a name of the second form that we issue."""
    names = names_of(certificate)
    for name in names[1] if names is not None else ():
        if isinstance(name, x509.UniformResourceIdentifier) and name.value.startswith(SPIFFE):
            return name.value.removeprefix(SPIFFE).partition("/")[0]
    return None
