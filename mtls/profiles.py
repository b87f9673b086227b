"""Certificate profiles as data: the object that builds a certificate is the object that checks it.

Each profile says what its certificates are for and what they must carry; `build` makes one that passes
`openssl verify -x509_strict`, `check` compares any certificate with the profile and returns every mismatch.
P-256 and SHA-256 everywhere. A profile is about form: `check` verifies no signature, no date and no revocation.

Sources: RFC 5280 section 4 (extensions), IEEE 802.1AR (birth and operational certificates), CA/Browser Forum practice
for random certificate serials.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from mtls.identity import UNREADABLE, URN_PREFIX, DeviceId, device_urn

BACKDATE: Final = timedelta(hours=1)  # a device whose clock is a little behind can use its certificate at once
SERIAL_BITS: Final = 128
FOREVER: Final = 36525  # days: RFC 5280 wants a date, a birth certificate wants none


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One point in which a certificate differs from a profile."""

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class Issuer:
    """A CA that can sign: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Profile:
    """What the certificates of one kind carry."""

    name: str
    lifetime: timedelta
    is_ca: bool = False
    path_len: int | None = None
    key_usage: frozenset[str] = frozenset({"digital_signature"})
    extended_key_usage: tuple[ObjectIdentifier, ...] = ()
    names_device: bool = False  # the subject is a device id, repeated as a URI in subjectAltName
    needs_server_name: bool = False

    def build(
        self,
        *,
        subject_cn: str,
        public_key: ec.EllipticCurvePublicKey,
        issuer: Issuer | None,
        now: datetime,
        key: ec.EllipticCurvePrivateKey | None = None,
        certificate_serial: int | None = None,
        ou: str | None = None,
        o: str | None = None,
        dns: Sequence[str] = (),
        ips: Sequence[str] = (),
        crl_url: str | None = None,
        spiffe_domain: str | None = None,
        lifetime: timedelta | None = None,
    ) -> x509.Certificate:
        """A signed certificate. `issuer` None makes it self-signed with `key`.

        notBefore is `now` less one hour, notAfter never later than the issuer's. ValueError when the subject is no
        DeviceId where the profile wants one, when a server name is missing, or when there is nobody to sign.
        """
        signer = issuer.key if issuer is not None else key
        if signer is None:
            raise ValueError("a self-signed certificate needs its key")
        if self.needs_server_name and not (dns or ips):
            raise ValueError("a server certificate needs a DNS name or an address")
        not_before, not_after = self._validity(now, lifetime, issuer)
        subject = _name(subject_cn, ou, o)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer is not None else subject)
            .public_key(public_key)
            .serial_number(certificate_serial if certificate_serial is not None else random_certificate_serial())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=self.is_ca, path_length=self.path_len), critical=True)
            .add_extension(_key_usage(self.key_usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        )
        if issuer is not None:
            builder = builder.add_extension(_authority_key_id(issuer.certificate), critical=False)
        if self.extended_key_usage:
            builder = builder.add_extension(x509.ExtendedKeyUsage(self.extended_key_usage), critical=False)
        alternative = self._alternative_names(subject_cn, dns, ips, spiffe_domain)
        if alternative:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        if crl_url:
            builder = builder.add_extension(_crl_distribution(crl_url), critical=False)
        return builder.sign(signer, hashes.SHA256())

    def _validity(self, now: datetime, lifetime: timedelta | None, issuer: Issuer | None) -> tuple[datetime, datetime]:
        not_before = now - BACKDATE
        not_after = now + (lifetime if lifetime is not None else self.lifetime)
        if issuer is not None:
            not_before = max(not_before, issuer.certificate.not_valid_before_utc)
            not_after = min(not_after, issuer.certificate.not_valid_after_utc)
        if not_after <= not_before:
            raise ValueError("the issuer's certificate has expired")
        return not_before, not_after

    def _alternative_names(
        self, subject_cn: str, dns: Sequence[str], ips: Sequence[str], spiffe_domain: str | None
    ) -> list[x509.GeneralName]:
        names: list[x509.GeneralName] = []
        if self.names_device:
            device_id = DeviceId(subject_cn)
            names.append(x509.UniformResourceIdentifier(device_urn(device_id)))
            if spiffe_domain:
                names.append(x509.UniformResourceIdentifier(f"spiffe://{spiffe_domain}/device/{device_id}"))
        names += [x509.DNSName(name) for name in dns]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ips]
        return names

    def check(self, cert: x509.Certificate, issuer: x509.Certificate | None = None) -> tuple[Mismatch, ...]:
        """Every point in which `cert` differs; with `issuer` also the key identifiers and the validity against it.

        What cannot be parsed is a mismatch, never an exception.
        """
        rows = [*self._form(), *(_below(issuer) if issuer is not None else ())]
        compared = ((what, _text(expected, cert), _text(read, cert)) for what, expected, read in rows)
        return tuple(Mismatch(*row) for row in compared if row[1] != row[2])

    def _form(self) -> list[_Row]:
        rows: list[_Row] = [
            ("certificate serial", "positive, at most 20 octets", _serial_text),
            ("public key", "P-256", _key_text),
            ("signature hash", "sha256", _hash_name),
            ("basic constraints", f"critical, ca={self.is_ca}, path_len={self.path_len}", _basic_constraints),
            ("key usage", "critical, " + " ".join(sorted(self.key_usage)), _found_key_usage),
            ("extended key usage", _oids(self.extended_key_usage), _found_extended_key_usage),
            ("subject key identifier", _own_key_id, _found_subject_key_id),
        ]
        if self.names_device:
            rows.append(("subjectAltName", _wanted_urn, _found_urn))
        if self.needs_server_name:
            rows.append(("subjectAltName", "a DNS name or an address", _found_server_name))
        return rows


_CA_USAGE: Final = frozenset({"key_cert_sign", "crl_sign"})
_CLIENT: Final = (ExtendedKeyUsageOID.CLIENT_AUTH,)

ROOT_CA: Final = Profile("root-ca", timedelta(days=20 * 365), is_ca=True, path_len=1, key_usage=_CA_USAGE)
ISSUING_CA: Final = Profile("issuing-ca", timedelta(days=10 * 365), is_ca=True, path_len=0, key_usage=_CA_USAGE)
DEVICE_BIRTH: Final = Profile(
    "device-birth", timedelta(days=FOREVER), extended_key_usage=_CLIENT, names_device=True
)  # IDevID: as long as the chain lives
DEVICE_OPERATIONAL: Final = Profile(
    "device", timedelta(days=2 * 365), extended_key_usage=_CLIENT, names_device=True
)  # LDevID
SERVICE: Final = Profile("service", timedelta(days=365), extended_key_usage=_CLIENT, names_device=True)
GATEWAY_SERVER: Final = Profile(
    "gateway-server", timedelta(days=365), extended_key_usage=(ExtendedKeyUsageOID.SERVER_AUTH,), needs_server_name=True
)
STATION: Final = Profile("station", timedelta(days=365), extended_key_usage=_CLIENT, names_device=True)
PROFILES: Final = {
    profile.name: profile
    for profile in (ROOT_CA, ISSUING_CA, DEVICE_BIRTH, DEVICE_OPERATIONAL, SERVICE, GATEWAY_SERVER, STATION)
}


def random_certificate_serial() -> int:
    """A positive random number of 128 bits; RFC 5280 section 4.1.2.2 allows 20 octets."""
    return secrets.randbits(SERIAL_BITS) or 1


def fingerprint_sha256(cert: x509.Certificate) -> str:
    """SHA-256 of the DER, lower-case hex."""
    return cert.fingerprint(hashes.SHA256()).hex()


def spki_sha256(key: ec.EllipticCurvePublicKey | x509.Certificate) -> str:
    """SHA-256 of the DER SubjectPublicKeyInfo, lower-case hex."""
    public_key = key.public_key() if isinstance(key, x509.Certificate) else key
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def certificate_serial_hex(cert: x509.Certificate) -> str:
    """The certificate serial as lower-case hex with an even number of digits."""
    digits = f"{cert.serial_number:x}"
    return digits if len(digits) % 2 == 0 else "0" + digits


def common_name(name: x509.Name) -> str:
    """The first common name, or an empty string."""
    attributes = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attributes[0].value) if attributes else ""


def _name(cn: str, ou: str | None, o: str | None) -> x509.Name:
    pairs = ((NameOID.ORGANIZATION_NAME, o), (NameOID.ORGANIZATIONAL_UNIT_NAME, ou), (NameOID.COMMON_NAME, cn))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs if value])


_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)


def _key_usage(usages: frozenset[str]) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in usages for name in _USAGES}, encipher_only=False, decipher_only=False)


def _authority_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """From the issuer's own SKI extension, never recomputed: a CA may have made its identifier in another way."""
    try:
        ski = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        raise ValueError("the CA's certificate has no subject key identifier") from None
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)


def _crl_distribution(url: str) -> x509.CRLDistributionPoints:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
    return x509.CRLDistributionPoints([point])


# --- what a certificate carries, as text to compare; ExtensionNotFound where there is nothing

_Reader = Callable[[x509.Certificate], str]
_Row = tuple[str, str | _Reader, _Reader]  # what, expected, found


def _text(wanted: str | _Reader, cert: x509.Certificate) -> str:
    if isinstance(wanted, str):
        return wanted
    try:
        return wanted(cert)
    except x509.ExtensionNotFound:
        return "none"
    except UNREADABLE:
        return "unreadable"


def _below(issuer: x509.Certificate) -> list[_Row]:
    inside = "not after the issuer's"
    return [
        ("authority key identifier", _text(_found_subject_key_id, issuer), _found_authority_key_id),
        (
            "notAfter",
            inside,
            lambda cert: inside if cert.not_valid_after_utc <= issuer.not_valid_after_utc else "later",
        ),
    ]


def _serial_text(cert: x509.Certificate) -> str:
    in_range = 0 < cert.serial_number < 1 << 159  # the first bit of 20 octets is the sign
    return "positive, at most 20 octets" if in_range else f"{cert.serial_number.bit_length()} bits or negative"


def _key_text(cert: x509.Certificate) -> str:
    key = cert.public_key()
    return "P-256" if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1) else "another"


def _hash_name(cert: x509.Certificate) -> str:
    algorithm = cert.signature_hash_algorithm
    return algorithm.name if algorithm is not None else "none"


def _basic_constraints(cert: x509.Certificate) -> str:
    found = cert.extensions.get_extension_for_class(x509.BasicConstraints)
    return f"{_mark(found.critical)}ca={found.value.ca}, path_len={found.value.path_length}"


def _found_key_usage(cert: x509.Certificate) -> str:
    found = cert.extensions.get_extension_for_class(x509.KeyUsage)
    return _mark(found.critical) + " ".join(sorted(name for name in _USAGES if getattr(found.value, name)))


def _mark(critical: bool) -> str:
    return "critical, " if critical else ""


def _oids(oids: Sequence[ObjectIdentifier]) -> str:
    return " ".join(sorted(oid._name if oid._name != "Unknown OID" else oid.dotted_string for oid in oids)) or "none"


def _found_extended_key_usage(cert: x509.Certificate) -> str:
    return _oids(list(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value))


def _own_key_id(cert: x509.Certificate) -> str:
    key: Any = cert.public_key()  # RFC 5280 section 4.2.1.2, method 1
    return x509.SubjectKeyIdentifier.from_public_key(key).digest.hex()


def _found_subject_key_id(cert: x509.Certificate) -> str:
    return cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def _found_authority_key_id(cert: x509.Certificate) -> str:
    found = cert.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    return found.key_identifier.hex() if found.key_identifier else "none"


def _wanted_urn(cert: x509.Certificate) -> str:
    try:
        return device_urn(DeviceId(common_name(cert.subject)))
    except ValueError:
        return "a device id"


def _found_urn(cert: x509.Certificate) -> str:
    san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = san.get_values_for_type(x509.UniformResourceIdentifier)
    return next((uri for uri in uris if uri.startswith(URN_PREFIX)), "none")


def _found_server_name(cert: x509.Certificate) -> str:
    san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = any(isinstance(name, x509.DNSName | x509.IPAddress) for name in san)
    return "a DNS name or an address" if found else "none"
