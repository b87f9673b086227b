"""What is in a certificate, chain, CRL, CSR or key file, and what is wrong with it.

Every finding is collected, none is raised: a file is described as far as it can be read. A certificate is compared
with the profile that it comes closest to; a signature is verified with the CAs in the same file or those given, and
said to be unverified otherwise. Not judged: revocation, and whether a gateway's policy would admit it. Private keys
are described by their public half; nothing of the private one is returned.
"""

import re
import stat
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

from mtls.csr import csr_public_key
from mtls.errors import ConfigFault, Fault, Refusal
from mtls.identity import UNREADABLE, IdentityRule, identity_of
from mtls.keystore import read_limited
from mtls.profiles import PROFILES, certificate_serial_hex, fingerprint_sha256
from mtls.terminal import sanitise
from mtls.trust import is_signed_by
from provisioning.describe import key_text, name_text, names_text, spki_text
from provisioning.signing import serial_hex

MAX_FILE_BYTES = 16 * 1024 * 1024  # a CRL may be large
MAX_ITEMS = 64  # certificates in one file
LISTED_SERIALS = 10  # revoked certificate serials shown; a CRL may hold a hundred thousand
EXPIRES_SOON = timedelta(days=30)
WIDTH = 80
LABEL_WIDTH = 13  # with its indent leaves 65 columns: a SHA-256 in hex stays on one line

_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\s.*?-----END \1-----", re.DOTALL)
_ANY_BEGIN = re.compile(rb"-----BEGIN ")

ABSENT_OR_UNREADABLE: tuple[type[Exception], ...] = (x509.ExtensionNotFound, *UNREADABLE)

Fact = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Item:
    """One object of a file: facts in the order they are read, notes, and what is wrong with it."""

    kind: str
    facts: tuple[Fact, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inspection:
    """All objects of a file; `file_problems` are those of the file as a whole."""

    file: str
    items: tuple[Item, ...]
    file_problems: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that is wrong."""
        return (*self.file_problems, *(problem for item in self.items for problem in item.problems))

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        items = [
            {"kind": item.kind, **{key.replace(" ", "_"): value for key, value in item.facts}}
            | {"notes": list(item.notes), "problems": list(item.problems)}
            for item in self.items
        ]
        return {"file": self.file, "items": items, "problems": list(self.problems), "ok": not self.problems}

    def as_text(self) -> str:
        """For people, in 80 columns."""
        lines = [sanitise(self.file)]
        for number, item in enumerate(self.items, 1):
            lines += ["", f"{number}. {item.kind}"]
            lines += [_wrapped(f"  {label:<{LABEL_WIDTH}}", value) for label, value in item.facts]
            lines += [_wrapped("  note: ", note) for note in item.notes]
            lines += [_wrapped("  wrong: ", problem) for problem in item.problems]
        lines += ["", *(_wrapped("wrong: ", problem) for problem in self.file_problems)]
        count = len(self.problems)
        lines.append("nothing wrong found" if not count else f"{count} {'thing' if count == 1 else 'things'} wrong")
        return "\n".join(lines)


def _wrapped(head: str, text: str) -> str:
    indent = " " * len(head) if len(head) > 8 else " " * 6
    return textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=indent) if text else head.rstrip()


def inspect_file(path: Path, now: datetime, ca_file: Path | None = None) -> Inspection:
    """Describe a file; ConfigFault when it cannot be read at all. `ca_file` lends its CAs to verify signatures."""
    data = read_limited(path, MAX_FILE_BYTES)
    ca_data = read_limited(ca_file) if ca_file is not None else b""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")  # what the parser only warns of (a negative serial) is wrong all the same
        lent = _certificates_in(ca_data)
        blocks = _blocks(data)
        cas = [*_certificates_in(data), *lent]
        items = tuple(_item(label, block, path, now, cas) for label, block in blocks[:MAX_ITEMS])
        problems = _file_problems(data, blocks)
    if ca_file is not None and not lent:
        raise ConfigFault(f"{ca_file} holds no certificate", hint="name the CA file that came with the certificate")
    problems += sorted({f"the parser warns: {sanitise(str(warning.message))}" for warning in warned})
    return Inspection(str(path), items, tuple(problems))


# --- the file


def _blocks(data: bytes) -> list[tuple[str, bytes]]:
    """PEM blocks with their labels, or one DER object with the label it parses as."""
    if b"-----BEGIN" in data:
        return [(match[1].decode(), match[0]) for match in _PEM_BLOCK.finditer(data)]
    for label, load in _DER_LOADERS.items():
        try:
            load(data)
        except UNREADABLE:
            continue
        return [(label, data)]
    return []


_DER_LOADERS: dict[str, Callable[[bytes], object]] = {
    "CERTIFICATE": x509.load_der_x509_certificate,
    "X509 CRL": x509.load_der_x509_crl,
    "CERTIFICATE REQUEST": x509.load_der_x509_csr,
    "PRIVATE KEY": lambda data: serialization.load_der_private_key(data, None),
}


def _certificates_in(data: bytes) -> list[x509.Certificate]:
    found = []
    for label, block in _blocks(data)[:MAX_ITEMS]:
        if label == "CERTIFICATE":
            try:
                found.append(_load_certificate(block))
            except UNREADABLE:
                continue  # reported where the block is described
    return found


def _file_problems(data: bytes, blocks: Sequence[tuple[str, bytes]]) -> list[str]:
    if not blocks and not _ANY_BEGIN.search(data):
        return ["neither PEM nor a DER certificate, CRL, CSR or key" if data.strip() else "the file is empty"]
    problems = []
    if len(_ANY_BEGIN.findall(data)) > len(blocks):
        problems.append("a PEM block has no end: the file is cut short")
    if len(blocks) > MAX_ITEMS:
        problems.append(f"only the first {MAX_ITEMS} of {len(blocks)} objects were looked at")
    chain = _certificates_in(data)
    if chain and not _is_ca(chain[0]):
        for position, (lower, upper) in enumerate(pairwise(chain), 2):
            if not is_signed_by(lower, upper):
                problems.append(f"certificate {position} did not sign the one before it: a chain goes leaf first")
    return problems


def _item(label: str, block: bytes, path: Path, now: datetime, cas: Sequence[x509.Certificate]) -> Item:
    try:
        if label == "CERTIFICATE":
            return _certificate_item(_load_certificate(block), now, cas)
        if label == "X509 CRL":
            return _crl_item(_load_crl(block), now, cas)
        if label in ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"):
            return _csr_item(block, path)
        if label.endswith("PRIVATE KEY"):
            return _key_item(label, block, path)
    except UNREADABLE:
        return Item(label.lower(), (), (), ("it cannot be parsed: damaged, or not what its label says",))
    return Item(label.lower(), (), (), (f"unknown kind of PEM block: {label}",))


# --- certificates


def _load_certificate(block: bytes) -> x509.Certificate:
    pem = block.startswith(b"-----BEGIN")
    return x509.load_pem_x509_certificate(block) if pem else x509.load_der_x509_certificate(block)


def _certificate_item(cert: x509.Certificate, now: datetime, cas: Sequence[x509.Certificate]) -> Item:
    issuer = next((ca for ca in cas if is_signed_by(cert, ca)), None)
    profile, mismatches = _nearest_profile(cert, None if issuer == cert else issuer)  # a root needs no AKI
    problems = [f"profile {profile}: {mismatch}" for mismatch in mismatches]
    facts = [
        ("subject", name_text(cert.subject)),
        ("issuer", name_text(cert.issuer)),
        ("profile", profile if not mismatches else f"none (nearest: {profile})"),
        *names_text(cert),
        ("not before", f"{cert.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC"),
        ("not after", f"{cert.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"),
        ("serial", certificate_serial_hex(cert)),
        ("public key", key_text(cert.public_key())),
        ("fingerprint", fingerprint_sha256(cert)),
        ("spki sha256", spki_text(cert.public_key())),
        ("signature", _signature_text(issuer, cert)),
    ]
    if not _is_ca(cert):
        identity = identity_of(cert, IdentityRule())
        facts.insert(3, ("identity", f"none ({identity})" if isinstance(identity, Refusal) else str(identity)))
    problems += _date_problems(cert.not_valid_before_utc, cert.not_valid_after_utc, now, "notBefore", "notAfter")
    return Item(_kind(cert), tuple(facts), tuple(_soon(cert, now)), tuple(problems))


def _kind(cert: x509.Certificate) -> str:
    if not _is_ca(cert):
        return "certificate"
    return "root CA certificate" if is_signed_by(cert, cert) else "issuing CA certificate"


def _nearest_profile(cert: x509.Certificate, issuer: x509.Certificate | None) -> tuple[str, list[str]]:
    if issuer is not None and not _has_key_id(issuer):
        issuer = None  # a foreign CA without an SKI: nothing to compare the AKI with
    checked = {name: [str(m) for m in profile.check(cert, issuer)] for name, profile in PROFILES.items()}
    nearest = min(checked, key=lambda name: (len(checked[name]), PROFILES[name].is_ca != _is_ca(cert)))
    equal = [name for name, mismatches in checked.items() if not mismatches]
    return " or ".join(equal) or nearest, checked[nearest]


def _has_key_id(ca: x509.Certificate) -> bool:
    try:
        ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except ABSENT_OR_UNREADABLE:
        return False
    return True


def _signature_text(issuer: x509.Certificate | None, cert: x509.Certificate) -> str:
    if issuer is None:
        return "not verified: its CA is not in this file (give it with --ca)"
    return "its own (self-signed)" if issuer == cert else f"verified with the key of {name_text(issuer.subject)}"


def _is_ca(cert: x509.Certificate) -> bool:
    try:
        return cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except ABSENT_OR_UNREADABLE:
        return False


def _date_problems(start: datetime, end: datetime | None, now: datetime, first: str, last: str) -> list[str]:
    clock = f"clock={now:%Y-%m-%dT%H:%M:%SZ}"
    if now < start:
        return [f"not yet valid: {first}={start:%Y-%m-%dT%H:%M:%SZ}, {clock}"]
    if end is not None and now > end:
        return [f"expired: {last}={end:%Y-%m-%dT%H:%M:%SZ}, {clock}"]
    return []


def _soon(cert: x509.Certificate, now: datetime) -> list[str]:
    left = cert.not_valid_after_utc - now
    return [f"expires in {left.days} days"] if timedelta(0) <= left < EXPIRES_SOON else []


# --- CRLs


def _load_crl(block: bytes) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(block) if block.startswith(b"-----BEGIN") else x509.load_der_x509_crl(block)


def _crl_item(crl: x509.CertificateRevocationList, now: datetime, cas: Sequence[x509.Certificate]) -> Item:
    namesakes = [ca for ca in cas if ca.subject == crl.issuer]
    signer = next((ca for ca in namesakes if _crl_signed_by(crl, ca)), None)
    serials = [serial_hex(entry.serial_number) for entry in crl]
    problems = _date_problems(crl.last_update_utc, crl.next_update_utc, now, "thisUpdate", "nextUpdate")
    signature = "not verified: its CA is not in this file (give it with --ca)"
    if signer is not None:
        signature = f"verified with the key of {name_text(signer.subject)}"
    elif namesakes:
        signature = "wrong"
        problems.append("the signature does not match the key of the CA of this name")
    shown = ", ".join(serials[:LISTED_SERIALS])
    if len(serials) > LISTED_SERIALS:
        shown += f" and {len(serials) - LISTED_SERIALS} more"
    next_update = f"{crl.next_update_utc:%Y-%m-%d %H:%M:%S} UTC" if crl.next_update_utc else "none"
    facts = (
        ("issuer", name_text(crl.issuer)),
        ("number", _crl_number(crl)),
        ("this update", f"{crl.last_update_utc:%Y-%m-%d %H:%M:%S} UTC"),
        ("next update", next_update),
        ("revoked", f"{len(serials)}" + (f": {shown}" if serials else "")),
        ("signature", signature),
    )
    return Item("certificate revocation list", facts, (), tuple(problems))


def _crl_number(crl: x509.CertificateRevocationList) -> str:
    try:
        return str(crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number)
    except x509.ExtensionNotFound:
        return "none"


def _crl_signed_by(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type]
    except UNREADABLE:
        return False


# --- CSRs and keys


def _csr_item(block: bytes, path: Path) -> Item:
    pem = block.startswith(b"-----BEGIN")
    csr = x509.load_pem_x509_csr(block) if pem else x509.load_der_x509_csr(block)
    problems = []
    try:
        csr_public_key(block, "the request")
    except Fault as fault:
        problems.append(str(fault))
    facts = (
        ("wishes", name_text(csr.subject)),
        ("public key", key_text(csr.public_key())),
        ("spki sha256", spki_text(csr.public_key())),
        ("signature", "verified with its own key" if not problems else "not accepted"),
    )
    return Item(
        "certificate signing request", facts, ("the names it wishes are ignored when it is signed",), tuple(problems)
    )


def _key_item(label: str, block: bytes, path: Path) -> Item:
    problems = []
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        problems.append(f"others can read this key (mode {mode:04o}): chmod 600, and make a new key if somebody did")
    if label == "ENCRYPTED PRIVATE KEY" or b"ENCRYPTED" in block[:200]:
        return Item("private key", (("protection", "encrypted with a passphrase"),), (), tuple(problems))
    pem = block.startswith(b"-----BEGIN")
    key: PrivateKeyTypes = (
        serialization.load_pem_private_key(block, None) if pem else serialization.load_der_private_key(block, None)
    )
    public: PublicKeyTypes = key.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        problems.append(f"it is {key_text(public)}, not P-256")
    facts = (
        ("protection", "none: who has the file has the key"),
        ("public key", key_text(public)),
        ("spki sha256", spki_text(public)),
    )
    return Item("private key", facts, (), tuple(problems))
