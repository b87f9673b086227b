"""Revocation: certificate revocation lists, the deny list, and what to do when a CRL is too old.

A CRL is used only when the key of a known CA verifies it. What cannot be used is never silently ignored: a CA whose
CRL is missing, invalid or stale has every certificate of its refused, unless the operator allowed a grace.
An empty CRL is a valid CRL.

Sources: RFC 5280 section 5 (CRLs), section 6.3 (use of them). Delta CRLs and CRLs of limited scope are not supported
and count as invalid.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from mtls.clock import Moment
from mtls.errors import ConfigFault, Reason, Refusal
from mtls.identity import UNREADABLE, DeviceId
from mtls.keystore import read_limited
from mtls.profiles import BACKDATE, Issuer, common_name, spki_sha256
from mtls.terminal import sanitise
from mtls.trust import Chain, TrustStore

MAX_CRL_BYTES: Final = 16 * 1024 * 1024  # some 400,000 revoked certificates
MAX_DENY_BYTES: Final = 1024 * 1024
MAX_SERIAL_BYTES: Final = 32  # of a certificate serial; RFC 5280 allows 20, some CAs use more, and so do the denied
SKEW: Final = timedelta(minutes=5)  # a CRL made a moment ago on a station whose clock is a little ahead

DENY_KINDS: Final = ("ids", "certificate_serials", "fingerprints")  # the keys of a deny.toml
MAX_CRLS: Final = 128  # in one file; every one costs a signature check

_BEGIN, _END = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"
_GRACE = re.compile(r"grace (\d{1,4})h", re.ASCII)
# As certificates are compared: whole bytes, no leading zero byte. Anything else could never match.
_SPELLING: Final = {
    "certificate_serials": re.compile(rf"(?!00.)(?:[0-9a-f]{{2}}){{1,{MAX_SERIAL_BYTES}}}"),
    "fingerprints": re.compile(r"[0-9a-f]{64}"),
}


@dataclass(frozen=True, slots=True)
class DenyList:
    """Identities, certificate serials and fingerprints (both lower-case hex) that are refused at once.

    A fingerprint names one encoding: who holds a certificate can make a twin whose ECDSA signature is written
    differently and verifies all the same. To lock a device out, deny its id or the certificate serial.
    """

    ids: frozenset[str] = frozenset()
    certificate_serials: frozenset[str] = frozenset()
    fingerprints: frozenset[str] = frozenset()

    @classmethod
    def from_file(cls, path: Path) -> DenyList:
        """Read a deny.toml; ConfigFault for a missing file, an unknown key or a value that could match nothing."""
        try:
            table = tomllib.loads(read_limited(path, MAX_DENY_BYTES).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigFault(f"{path}: {sanitise(str(error))}", hint="a deny list is TOML") from error
        unknown = sorted(set(table).difference(DENY_KINDS))
        if unknown:
            raise ConfigFault(f"{path}: unknown key {unknown[0]!a}", hint=f"known keys: {', '.join(DENY_KINDS)}")
        fields = {kind: _strings(path, kind, table.get(kind, [])) for kind in DENY_KINDS}
        for key, spelling in _SPELLING.items():
            for value in fields[key]:
                if not spelling.fullmatch(value):
                    raise ConfigFault(
                        f"{path}: {key}: {sanitise(value)!a} is not hex as mqtt-provision inspect prints it",
                        hint="lower case, whole bytes; a fingerprint has 64 digits",
                    )
        for value in fields["ids"]:
            _check_id(path, value)
        return cls(**{key: frozenset(value) for key, value in fields.items()})

    def to_toml(self) -> str:
        """The list as a deny.toml."""
        rows = self.row().items()
        return "".join(f"{kind} = [{', '.join(map(_quoted, values))}]\n" for kind, values in rows)

    def row(self) -> dict[str, list[str]]:
        """The entries of each kind, sorted."""
        return {kind: sorted(getattr(self, kind)) for kind in DENY_KINDS}

    def __len__(self) -> int:
        return len(self.ids) + len(self.certificate_serials) + len(self.fingerprints)

    def refusal(self, device_id: DeviceId, certificate_serial: str, fingerprint_sha256: str) -> Refusal | None:
        """Why this device or certificate is denied, or None."""
        if device_id.value in self.ids:
            return Refusal(Reason.CERTIFICATE_DENIED, "id is on the deny list")
        if certificate_serial in self.certificate_serials:
            return Refusal(Reason.CERTIFICATE_DENIED, "certificate serial is on the deny list")
        if fingerprint_sha256 in self.fingerprints:
            return Refusal(Reason.CERTIFICATE_DENIED, "fingerprint is on the deny list")
        return None


def _strings(path: Path, key: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigFault(f"{path}: {key} is not a list of strings", hint=f'write {key} = ["...", "..."]')
    return value


def _check_id(path: Path, value: str) -> None:
    try:
        DeviceId(value)
    except ValueError as error:
        raise ConfigFault(f"{path}: ids: {error}", hint="write the id as mqtt-gateway sessions prints it") from error


def _quoted(text: str) -> str:
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text) + '"'


@dataclass(frozen=True, slots=True)
class StaleRule:
    """What a CRL past its nextUpdate means: refuse, or go on for a while."""

    grace: timedelta = timedelta(0)

    @classmethod
    def parse(cls, text: str) -> StaleRule:
        """`deny` or `grace 48h`; ValueError for anything else."""
        if text == "deny":
            return cls()
        match = _GRACE.fullmatch(text)
        if match is None or int(match[1]) == 0:
            raise ValueError(f'{text!a} is neither "deny" nor "grace <hours>h"')
        return cls(timedelta(hours=int(match[1])))


@dataclass(frozen=True, slots=True)
class CrlEntry:
    """One verified CRL. `scope` is empty for all certificates of the CA, else those with one of these CRL URLs."""

    issuer_cn: str
    number: int | None
    this_update: datetime
    next_update: datetime | None
    revoked: frozenset[int] = field(repr=False)
    scope: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CrlSet:
    """The CRLs in force, by the SHA-256 of their CA's key. `faults` says what of the file could not be used.

    `pem` holds the CRLs in force and nothing else: whatever else stood in the file, a certificate for one, must not
    get into a TLS library's store.
    """

    entries: Mapping[str, CrlEntry]
    faults: tuple[Refusal, ...]
    pem: bytes = field(repr=False)

    @classmethod
    def from_pem(cls, pem: bytes, trust: TrustStore, source: str) -> CrlSet:
        """Read a CRL file. Nothing in it is an exception: what cannot be used is a fault and refuses its CA."""
        entries: dict[str, CrlEntry] = {}
        kept: dict[str, bytes] = {}
        faults: list[Refusal] = []
        blocks = list(islice(_blocks(pem), MAX_CRLS + 1))
        if not blocks:
            faults.append(Refusal(Reason.CRL_INVALID, f"{source} holds no CRL in PEM"))
        elif len(blocks) > MAX_CRLS:
            faults.append(Refusal(Reason.CRL_INVALID, f"{source} holds more than {MAX_CRLS} CRLs"))
        for block in blocks[:MAX_CRLS]:
            verified = _verified(block, trust, source)
            if isinstance(verified, Refusal):
                faults.append(verified)
                continue
            spki, entry, canonical = verified
            held = entries.get(spki)
            if held is None or (entry.number or 0, entry.this_update) > (held.number or 0, held.this_update):
                entries[spki], kept[spki] = entry, canonical
        return cls(entries, tuple(faults), b"".join(kept.values()))

    @classmethod
    def unusable(cls, refusal: Refusal) -> CrlSet:
        """A set that refuses everybody: a CRL file is configured and cannot be read."""
        return cls({}, (refusal,), b"")

    def refusal(self, cert: x509.Certificate, trust: TrustStore, now: Moment, stale: StaleRule) -> Refusal | None:
        """Why a certificate, or every chain above it, is refused; None when usable CRLs list none of one chain."""
        issuer = trust.issuer_of(cert)
        if issuer is None:
            return Refusal(Reason.ISSUER_UNKNOWN, "no trusted CA signed it")
        refusals = [
            self.chain_refusal(cert.serial_number, lambda: crl_urls(cert), chain, now, stale)
            for chain in trust.chains_of(issuer)
        ]
        return None if None in refusals else refusals[0]

    def chain_refusal(
        self, certificate_serial: int, urls: Callable[[], frozenset[str]], chain: Chain, now: Moment, stale: StaleRule
    ) -> Refusal | None:
        """Why a certificate is refused below this chain of CAs: each is looked up in the CRL of the CA above it.

        `urls` gives the certificate's CRL distribution points, and is asked only when a CRL is for some of them.
        """
        for ca in chain:
            refusal = self._listed(certificate_serial, urls, ca, now, stale)
            if refusal is not None:
                return refusal
            certificate_serial, urls = ca.serial_number, partial(crl_urls, ca)
        return None

    def _listed(
        self,
        certificate_serial: int,
        urls: Callable[[], frozenset[str]],
        issuer: x509.Certificate,
        now: Moment,
        stale: StaleRule,
    ) -> Refusal | None:
        entry = self.entries.get(spki_sha256(issuer))
        if entry is None:
            reason = self.faults[0].reason if self.faults else Reason.CRL_MISSING
            why = f" ({self.faults[0].detail})" if self.faults else ""
            return Refusal(reason, f"no usable CRL of {common_name(issuer.subject)!a}{why}")
        if now.synced and entry.this_update > now.at + SKEW:
            return Refusal(Reason.CRL_NOT_YET_VALID, _times(entry, now))
        if certificate_serial in entry.revoked:
            return Refusal(Reason.CERTIFICATE_REVOKED, f"by {entry.issuer_cn!a}, CRL number {entry.number}")
        if entry.scope and not entry.scope & urls():
            return Refusal(Reason.CRL_MISSING, f"the CRL of {entry.issuer_cn!a} is for another distribution point")
        if entry.next_update is not None and now.at > entry.next_update + stale.grace:
            return Refusal(Reason.CRL_STALE, _times(entry, now))
        return None


def _times(entry: CrlEntry, now: Moment) -> str:
    until = entry.next_update.isoformat() if entry.next_update is not None else "none"
    return f"{now}, thisUpdate={entry.this_update.isoformat()}, nextUpdate={until}"


def only_crls(pem: bytes) -> bytes:
    """The CRLs of a PEM file, written anew, and nothing else of it; ValueError when one of them cannot be parsed."""
    return b"".join(x509.load_pem_x509_crl(block).public_bytes(Encoding.PEM) for block in _blocks(pem))


def crl_urls(cert: x509.Certificate) -> frozenset[str]:
    """Where a certificate says that its CRL is published; nothing when it says nothing that can be read."""
    try:
        points = cert.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        return frozenset()
    except UNREADABLE:
        return frozenset()
    return frozenset(url for point in points for url in _urls(point.full_name))


def _urls(names: Sequence[x509.GeneralName] | None) -> list[str]:
    return [name.value for name in names or () if isinstance(name, x509.UniformResourceIdentifier)]


def _blocks(pem: bytes) -> Iterator[bytes]:
    """Each CRL block of a PEM file, in one pass: the file may come from the network."""
    start = pem.find(_BEGIN)
    while start >= 0:
        end = pem.find(_END, start)
        if end < 0:
            yield pem[start:]  # cut short: it must not go unnoticed
            return
        yield pem[start : end + len(_END)] + b"\n"
        start = pem.find(_BEGIN, end)


def _verified(block: bytes, trust: TrustStore, source: str) -> tuple[str, CrlEntry, bytes] | Refusal:
    """The key that signed a CRL, the CRL, and its PEM; or why it cannot be used."""
    try:
        crl = x509.load_pem_x509_crl(block)
        issuer_cn = sanitise(common_name(crl.issuer), 64)
        signers = [ca for ca in (*trust.issuing, *trust.roots) if is_crl_of(crl, ca)]
        if not signers:
            return Refusal(Reason.CRL_INVALID, f"{source}: no known CA signed the CRL of {issuer_cn!a}")
        scope = _scope(crl)
        if scope is None:
            return Refusal(Reason.CRL_INVALID, f"{source}: the CRL of {issuer_cn!a} is a delta or of limited scope")
        revoked = frozenset(entry.serial_number for entry in crl)
        entry = CrlEntry(issuer_cn, _number(crl), crl.last_update_utc, crl.next_update_utc, revoked, scope)
        return spki_sha256(signers[0]), entry, crl.public_bytes(Encoding.PEM)
    except UNREADABLE:
        return Refusal(Reason.CRL_INVALID, f"{source} holds a CRL that cannot be parsed")


def is_crl_of(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    """Whether a CA of that name signed a CRL, with a key whose usage, if it has one, allows cRLSign."""
    if ca.subject != crl.issuer:
        return False
    try:
        if not ca.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign:
            return False
    except x509.ExtensionNotFound:
        pass
    return crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]


def _scope(crl: x509.CertificateRevocationList) -> frozenset[str] | None:
    """The distribution points whose certificates a CRL is for, empty for all; None for what is not supported."""
    scope: frozenset[str] = frozenset()
    for extension in crl.extensions:
        value = extension.value
        if isinstance(value, x509.IssuingDistributionPoint):
            scope = frozenset(_urls(value.full_name))
            limits = (
                value.only_contains_user_certs,
                value.only_contains_ca_certs,
                value.only_contains_attribute_certs,
                value.indirect_crl,
                value.only_some_reasons is not None,
                value.relative_name is not None,
                value.full_name is not None and not scope,
            )
            if any(limits):
                return None
        elif isinstance(value, x509.DeltaCRLIndicator) or (
            extension.critical and isinstance(value, x509.UnrecognizedExtension)
        ):
            return None
    return scope


def _number(crl: x509.CertificateRevocationList) -> int | None:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None


@dataclass(frozen=True, slots=True)
class RevokedEntry:
    """One line of a CRL to be made."""

    certificate_serial: int
    revoked_at: datetime
    reason: x509.ReasonFlags | None = None


def build_crl(
    issuer: Issuer,
    revoked: Sequence[RevokedEntry],
    *,
    now: datetime,
    number: int,
    lifetime: timedelta,
    previous: x509.CertificateRevocationList | None = None,
) -> x509.CertificateRevocationList:
    """A signed CRL whose thisUpdate is strictly later than the previous one's and whose number is higher.

    OpenSSL takes a CRL with the same thisUpdate second for the same CRL. thisUpdate is backdated as notBefore is, so
    that many CRLs in one second, each a second later than the last, are all valid at once, also where a clock is a
    little behind. ValueError when the number does not grow.
    """
    this_update = (now - BACKDATE).replace(microsecond=0)
    if previous is not None:
        if number <= (_number(previous) or 0):
            raise ValueError(f"CRL number {number} is not above the previous one's")
        this_update = max(this_update, previous.last_update_utc + timedelta(seconds=1))
    ski = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(this_update)
        .next_update(now.replace(microsecond=0) + lifetime)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for entry in revoked:
        line = x509.RevokedCertificateBuilder(entry.certificate_serial, entry.revoked_at.replace(microsecond=0), [])
        if entry.reason is not None:
            line = line.add_extension(x509.CRLReason(entry.reason), critical=False)
        builder = builder.add_revoked_certificate(line.build())
    key: ec.EllipticCurvePrivateKey = issuer.key
    return builder.sign(key, hashes.SHA256())
