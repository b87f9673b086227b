"""A PKI for tests: a root, an issuing CA, devices and servers, and certificates that are wrong on purpose."""

from __future__ import annotations

import ipaddress
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mtls.keystore import key_pem, new_key, write_private, write_public
from mtls.profiles import DEVICE_OPERATIONAL, GATEWAY_SERVER, ISSUING_CA, ROOT_CA, Issuer, Profile
from mtls.revocation import RevokedEntry, build_crl
from mtls.trust import to_pem


@dataclass(frozen=True)
class Credential:
    """A certificate file (leaf first, then its issuing CA) and its key file."""

    cert_file: Path
    key_file: Path
    certificate: x509.Certificate


def now() -> datetime:
    """The time, as certificates take it."""
    return datetime.now(UTC)


class Pki:
    """One root and one issuing CA in a folder."""

    def __init__(self, folder: Path, name: str = "test") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._numbers = itertools.count(1)
        root_key, issuing_key = new_key(), new_key()
        root = ROOT_CA.build(
            subject_cn=f"{name} Root CA", public_key=root_key.public_key(), issuer=None, key=root_key, now=now()
        )
        self.root = Issuer(root, root_key)
        issuing = ISSUING_CA.build(
            subject_cn=f"{name} CA", public_key=issuing_key.public_key(), issuer=self.root, now=now()
        )
        self.issuing = Issuer(issuing, issuing_key)
        self.root_file = folder / "root.crt"
        self.ca_file = folder / "ca.crt"
        write_public(self.root_file, to_pem([root]))
        write_public(self.ca_file, to_pem([root, issuing]))
        self._crls: dict[str, x509.CertificateRevocationList] = {}

    def device(self, device_id: str, *, profile: Profile = DEVICE_OPERATIONAL, **build: Any) -> Credential:
        """A device certificate as the station would issue it."""
        key = new_key()
        arguments = {"issuer": self.issuing, "now": now(), **build}
        return self._save(profile.build(subject_cn=device_id, public_key=key.public_key(), **arguments), key)

    def server(
        self, dns: Sequence[str] = ("localhost",), ips: Sequence[str] = ("127.0.0.1",), **build: Any
    ) -> Credential:
        """A server certificate."""
        key = new_key()
        arguments = {"issuer": self.issuing, "now": now(), **build}
        name = dns[0] if dns else ips[0]
        cert = GATEWAY_SERVER.build(subject_cn=name, public_key=key.public_key(), dns=dns, ips=ips, **arguments)
        return self._save(cert, key)

    def crl(
        self, revoked: Sequence[x509.Certificate] = (), *, lifetime: timedelta = timedelta(days=7), **build: Any
    ) -> Path:
        """Root and issuing CRL in one file; each call is newer than the last. `issuer_revoked` go into the root's."""
        above: Sequence[x509.Certificate] = build.pop("issuer_revoked", ())
        past = "now" in build  # a CRL of another day is no successor of the last one
        when: datetime = build.pop("now", now())
        blocks = b""
        for label, issuer, certs in (("issuing", self.issuing, revoked), ("root", self.root, above)):
            crl = build_crl(
                issuer,
                [RevokedEntry(cert.serial_number, when) for cert in certs],
                now=when,
                number=next(self._numbers),
                lifetime=lifetime,
                previous=None if past else self._crls.get(label),
            )
            if not past:
                self._crls[label] = crl
            blocks += crl.public_bytes(Encoding.PEM)
        path = self.folder / f"crl{next(self._numbers)}.pem"
        write_public(path, blocks)
        return path

    def raw_leaf(
        self,
        *,
        cn: str | Sequence[str] = "dev-a",
        san: Sequence[x509.GeneralName] = (),
        eku: Sequence[x509.ObjectIdentifier] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,),
        ca: bool | None = False,
        digital_signature: bool | None = True,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        issuer: Issuer | None = None,
        self_signed: bool = False,
        extra_names: Sequence[tuple[x509.ObjectIdentifier, str]] = (),
    ) -> Credential:
        """A leaf with anything wrong that a test asks for."""
        key = new_key()
        signer = Issuer(self.issuing.certificate, key) if self_signed else issuer or self.issuing
        names = [cn] if isinstance(cn, str) else list(cn)
        attributes = [x509.NameAttribute(oid, value) for oid, value in extra_names]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names that are wrong on purpose
            attributes += [x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False) for name in names]
        subject = x509.Name(attributes)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if self_signed else signer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or now() - timedelta(hours=1))
            .not_valid_after(not_after or now() + timedelta(days=1))
        )
        if ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if eku is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(eku)), critical=False)
        if digital_signature is not None:
            usage = x509.KeyUsage(
                digital_signature, False, not digital_signature, False, False, bool(ca), False, False, False
            )
            builder = builder.add_extension(usage, critical=True)
        if san:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(san)), critical=False)
        return self._save(builder.sign(signer.key, hashes.SHA256()), key)

    def _save(self, cert: x509.Certificate, key: Any) -> Credential:
        number = next(self._numbers)
        cert_file, key_file = self.folder / f"leaf{number}.crt", self.folder / f"leaf{number}.key"
        write_public(cert_file, to_pem([cert, self.issuing.certificate]))
        write_private(key_file, key_pem(key))
        return Credential(cert_file, key_file, cert)


def ip(address: str) -> x509.IPAddress:
    """A subject alternative name for an address."""
    return x509.IPAddress(ipaddress.ip_address(address))
