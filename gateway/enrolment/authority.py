"""The issuing CA of this gateway: its key, and the record of every certificate that it signed.

A CA has one signer. So this one is not the factory's, whose ledger would not know what is signed here: a folder with
a ledger or a root key in it is refused, and so is a CA that ca_file does not hold. The record gets its line before a
certificate leaves, and is what an operator revokes by. It is JSON lines: id, certificate serial, key, dates.

Certificate serials are random, 128 bits: a draw that the record knows already means a broken random generator.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from mtls.errors import ConfigFault, Fault
from mtls.keystore import load_certificate, load_key, read_limited, write_private
from mtls.profiles import ISSUING_CA, Issuer, certificate_serial_hex, common_name, spki_sha256
from mtls.trust import TrustStore

CERTIFICATE: Final = "issuing.crt"
KEY: Final = "issuing.key"
CRL: Final = "issuing.crl"
RECORD: Final = "issued.jsonl"
FACTORY_FILES: Final = ("ledger.db", "root.key", "root.INSECURE-DEV.key")
MAX_RECORD_BYTES: Final = 64 * 1024 * 1024  # some 200,000 certificates; ended ones are dropped at the start

log = logging.getLogger("mqtt_gateway.enrolment")


def load_issuer(folder: Path, trust: TrustStore) -> Issuer:
    """The CA in `folder`; ConfigFault when it is none of this site's, or is the factory's."""
    for name in FACTORY_FILES:
        if (folder / name).exists():
            raise ConfigFault(
                f"[enrolment] issuing_ca_dir {folder} holds {name}: it is a factory's CA",
                hint="a CA has one signer: make the gateway's own with mqtt-provision ca issuing",
            )
    path = folder / CERTIFICATE
    certificate = load_certificate(path, "mqtt-provision ca issuing makes it")
    key = load_key(folder / KEY)
    if spki_sha256(key.public_key()) != spki_sha256(certificate):
        raise ConfigFault(f"{folder / KEY} is not the key of {path}", hint="name the pair that was made together")
    mismatches = ISSUING_CA.check(certificate)
    if mismatches:
        raise ConfigFault(f"{path} is no issuing CA: {mismatches[0]}", hint="mqtt-provision ca issuing makes one")
    if certificate not in trust.issuing:
        raise ConfigFault(
            f"[enrolment] issuing_ca_dir: {common_name(certificate.subject)!a} is not in ca_file",
            hint="add issuing.crt to ca_file: what it signs must be trusted here",
        )
    return Issuer(certificate, key)


@dataclass(frozen=True, slots=True)
class Issued:
    """One line of the record."""

    id: str
    certificate_serial: str
    spki_sha256: str
    not_after: datetime

    def line(self) -> bytes:
        """As it stands in the file."""
        row = {
            "id": self.id,
            "certificate_serial": self.certificate_serial,
            "spki_sha256": self.spki_sha256,
            "not_after": self.not_after.isoformat(),
        }
        return json.dumps(row).encode() + b"\n"

    @classmethod
    def of(cls, device_id: str, certificate: x509.Certificate) -> Issued:
        """The line of a new certificate."""
        return cls(
            device_id,
            certificate_serial_hex(certificate),
            spki_sha256(certificate),
            certificate.not_valid_after_utc,
        )


class Record:
    """What was issued. One gateway at a time writes it; reads and writes block for a disk's moment."""

    def __init__(self, folder: Path, now: datetime) -> None:
        self._path = folder / RECORD
        self._owner_of: dict[str, str] = {}
        self._serials: set[str] = set()
        self._bytes = 0
        kept = [issued for issued in self._read() if issued.not_after >= now]
        for issued in kept:
            self._remember(issued)
        write_private(self._path, b"".join(issued.line() for issued in kept))

    def owner_of(self, spki: str) -> str | None:
        """Whose key this is, if a certificate for it was issued here."""
        return self._owner_of.get(spki)

    def add(self, issued: Issued) -> None:
        """Commit a line; Fault when it cannot be, and then the certificate must not leave."""
        line = issued.line()
        if issued.certificate_serial in self._serials:
            raise Fault("a random certificate serial came twice", hint="this machine's random generator is broken")
        if self._bytes + len(line) > MAX_RECORD_BYTES:
            raise Fault(f"{self._path} is full", hint="restart the gateway: lines of ended certificates are dropped")
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(line)
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._bytes)  # half a line would spoil the next one
            raise Fault(f"cannot write {self._path}: {error.strerror}", hint="check the free space") from error
        self._remember(issued)

    def _remember(self, issued: Issued) -> None:
        self._owner_of[issued.spki_sha256] = issued.id
        self._serials.add(issued.certificate_serial)
        self._bytes += len(issued.line())

    def _read(self) -> Iterator[Issued]:
        if not self._path.exists():
            return
        for number, line in enumerate(read_limited(self._path, MAX_RECORD_BYTES).splitlines(), 1):
            try:
                row = json.loads(line)
                yield Issued(
                    str(row["id"]),
                    str(row["certificate_serial"]),
                    str(row["spki_sha256"]),
                    datetime.fromisoformat(row["not_after"]),
                )
            except (ValueError, KeyError, TypeError):
                # The last line of a power cut: its certificate never left.
                log.warning("%s, line %d cannot be read and is dropped", self._path, number)
