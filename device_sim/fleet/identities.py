"""Identities for a fleet: a test CA in a folder, and a certificate for every device, right or wrong on purpose.

SIMULATION ONLY. Keys lie unencrypted on disk, made here and not in a device, and no ledger knows them; a folder
that holds a factory's ledger is refused. Certificates are made by the same profiles as real ones (P-256, about half a
millisecond each) and kept in the folder, so that the second run issues nothing. A wrong certificate differs from
the right one in what its name says and in nothing else; the table is in wrong_certificates.py.

`CertDir` is the other source: certificates that `mqtt-provision issue` made, one ID.crt and ID.key per device.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from device_sim.fleet.wrong_certificates import WRONG
from mtls.errors import ConfigFault, Fault
from mtls.identity import DeviceId
from mtls.keystore import PRIVATE, key_pem, load_key, new_key, read_limited, save_key, write_private, write_public
from mtls.profiles import DEVICE_OPERATIONAL, GATEWAY_SERVER, ISSUING_CA, ROOT_CA, SERVICE, Issuer
from mtls.revocation import RevokedEntry, build_crl
from mtls.trust import to_pem

CRL_LIFETIME = timedelta(days=7)
RENEW_BEFORE = timedelta(hours=1)  # a kept certificate that would expire during a run is made anew


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with what stands above it, its key, and the CAs that the gateway must come from."""

    device_id: str
    cert_file: Path
    key_file: Path
    ca_file: Path

    def certificate(self) -> x509.Certificate:
        """The leaf."""
        return x509.load_pem_x509_certificate(read_limited(self.cert_file))


class Identities(Protocol):
    """Where a fleet's certificates come from."""

    ca_file: Path

    def of(self, device_id: str) -> Identity:
        """The certificate of one device; ConfigFault when there is none."""


class CertDir:
    """A folder of certificates made elsewhere: ID.crt, ID.key and one ca.crt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca_file = folder / "ca.crt"
        if not self.ca_file.is_file():
            raise ConfigFault(f"{self.ca_file} does not exist", hint="mqtt-provision issue ID --dir CA --out DIR")

    def of(self, device_id: str) -> Identity:
        """The pair of files of that name."""
        cert_file, key_file = self.folder / f"{device_id}.crt", self.folder / f"{device_id}.key"
        if not cert_file.is_file():
            raise ConfigFault(
                f"{cert_file} does not exist", hint=f"mqtt-provision issue {device_id} --dir CA --out DIR"
            )
        return Identity(device_id, cert_file, key_file, self.ca_file)

    def names(self) -> list[str]:
        """Every device that has a certificate and a key here, in order."""
        return sorted(path.stem for path in self.folder.glob("*.crt") if path.with_suffix(".key").is_file())


class SimulationCa:
    """A root and an issuing CA in `folder`, made there when it is empty."""

    def __init__(self, folder: Path, name: str = "simulation") -> None:
        if (folder / "ledger.db").exists():
            raise ConfigFault(
                f"{folder} is a factory's CA", hint="give the simulator a folder of its own; it makes a test CA there"
            )
        self.folder = folder
        self.ca_file = folder / "ca.crt"
        self.crl_file = folder / "crl.pem"
        self._devices = folder / "devices"
        self._crls: dict[str, x509.CertificateRevocationList] = {}
        self._revoked: dict[int, datetime] = {}
        if not self.ca_file.exists():
            self._make(name)
        self.root, self.issuing = self._load("root"), self._load("issuing")
        self._ca_pem = to_pem([self.issuing.certificate])
        if not self.crl_file.exists():
            self.publish_crl(self.crl_file)

    def of(self, device_id: str) -> Identity:
        """The certificate of a device, from the folder or new."""
        path = self._devices / f"{DeviceId(device_id)}.pem"
        with contextlib.suppress(ConfigFault, ValueError):
            leaf = x509.load_pem_x509_certificate(read_limited(path))
            if leaf.not_valid_after_utc > datetime.now(UTC) + RENEW_BEFORE:
                return Identity(device_id, path, path, self.ca_file)
        return self.new(device_id)

    def new(
        self,
        device_id: str,
        *,
        lifetime: timedelta | None = None,
        ou: str | None = None,
        ahead: timedelta = timedelta(0),
    ) -> Identity:
        """A new key and certificate for a device; with `ou`, for a service of that organizational unit.

        `ahead` is by how much the clock of whoever signed it was fast.
        """
        key = new_key()
        profile = DEVICE_OPERATIONAL if ou is None else SERVICE
        leaf = profile.build(
            subject_cn=device_id,
            public_key=key.public_key(),
            issuer=self.issuing,
            now=datetime.now(UTC) + ahead,
            ou=ou,
            lifetime=lifetime,
        )
        return self._keep(device_id, leaf, key_pem(key))

    def wrong(self, device_id: str, how: str) -> Identity:
        """A certificate with one thing wrong, by a name of `WRONG`; Fault for another name."""
        if how not in WRONG:
            raise Fault(f"there is no wrong certificate {how!r}", hint=f"one of: {', '.join(WRONG)}")
        key = new_key()
        leaf = WRONG[how].make(device_id, key, self.issuing)
        return self._keep(f"{how}.{device_id}", leaf, key_pem(key), device_id=device_id)

    def server(self, folder: Path, *, lifetime: timedelta | None = None) -> Identity:
        """A gateway's certificate for localhost and 127.0.0.1, as server.crt and server.key in `folder`."""
        key = new_key()
        leaf = GATEWAY_SERVER.build(
            subject_cn="localhost",
            public_key=key.public_key(),
            issuer=self.issuing,
            now=datetime.now(UTC),
            dns=("localhost",),
            ips=("127.0.0.1",),
            lifetime=lifetime,
        )
        folder.mkdir(parents=True, exist_ok=True)
        files = Identity("localhost", folder / "server.crt", folder / "server.key", self.ca_file)
        write_public(files.cert_file, to_pem([leaf]) + self._ca_pem)
        write_private(files.key_file, key_pem(key))
        return files

    def revoke(self, *identities: Identity) -> None:
        """Note certificates as revoked; `publish_crl` tells the world."""
        for identity in identities:
            self._revoked[identity.certificate().serial_number] = datetime.now(UTC)

    def publish_crl(
        self,
        path: Path,
        *,
        lifetime: timedelta = CRL_LIFETIME,
        age: timedelta = timedelta(0),
        is_issuing_revoked: bool = False,
    ) -> None:
        """Write issuing and root CRL to `path`, newer than the last; with an `age` beyond `lifetime`, stale ones."""
        now, blocks = datetime.now(UTC) - age, b""
        entries = [RevokedEntry(number, moment) for number, moment in self._revoked.items()]
        above = [RevokedEntry(self.issuing.certificate.serial_number, now)] if is_issuing_revoked else []
        for name, issuer, revoked in (("issuing", self.issuing, entries), ("root", self.root, above)):
            previous = None if age else self._crls.get(name)
            number = int(datetime.now(UTC).timestamp() * 1e6)
            crl = build_crl(issuer, revoked, now=now, number=number, lifetime=lifetime, previous=previous)
            if not age:
                self._crls[name] = crl
            blocks += crl.public_bytes(Encoding.PEM)
        write_public(path, blocks)

    # --- inside ---

    def _make(self, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        now, root_key, issuing_key = datetime.now(UTC), new_key(), new_key()
        root = ROOT_CA.build(
            subject_cn=f"{name} root CA", public_key=root_key.public_key(), issuer=None, key=root_key, now=now
        )
        issuing = ISSUING_CA.build(
            subject_cn=f"{name} issuing CA",
            public_key=issuing_key.public_key(),
            issuer=Issuer(root, root_key),
            now=now,
        )
        for role, cert, key in (("root", root, root_key), ("issuing", issuing, issuing_key)):
            write_public(self.folder / f"{role}.crt", to_pem([cert]))
            save_key(self.folder / f"{role}.key", key, None)
        write_public(self.ca_file, to_pem([root, issuing]))  # the last: with it the CA is there

    def _load(self, role: str) -> Issuer:
        certificate = x509.load_pem_x509_certificate(read_limited(self.folder / f"{role}.crt"))
        return Issuer(certificate, load_key(self.folder / f"{role}.key"))

    def _keep(self, name: str, leaf: x509.Certificate, key: bytes, device_id: str = "") -> Identity:
        """One file with key and chain. Not flushed to disk: 2,000 flushes cost minutes, and a torn file is re-made."""
        self._devices.mkdir(exist_ok=True)
        path, draft = self._devices / f"{name}.pem", self._devices / f".{name}.{os.getpid()}"
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key + to_pem([leaf]) + self._ca_pem)
        draft.rename(path)
        return Identity(device_id or name, path, path, self.ca_file)


def names_of(prefix: str, count: int) -> Sequence[str]:
    """The ids of a fleet: `sim-00001` and on."""
    return [f"{prefix}{number:05d}" for number in range(1, count + 1)]
