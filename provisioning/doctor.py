"""`doctor`: whether this station may begin its shift; every check is one line, and nothing is changed or opened.

Looked at: the clock, the CA's dates and quota, its CRLs, the permissions of its folder, the disk, the ports and what
else on this machine grabs ports, the ledger. A serial port is not opened, because that resets boards. Not looked at:
whether the clock runs ahead, which nothing on this machine can see.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from cryptography import x509

from mtls.checkup import Check, Level, disk, looked, modem_manager, synchronised
from mtls.profiles import common_name, spki_sha256
from provisioning.ca_folder import INSECURE, ISSUING, ROOT, CaFolder, certificate_at
from provisioning.crls import crl_at, next_update
from provisioning.ledger import Ledger
from provisioning.records.verify import verify_ledger
from provisioning.signing import clock_fault, program_date

LITTLE_DISK_BYTES = 1024**3
NO_DISK_BYTES = 50 * 1024**2  # a shift's ledger and traces
LITTLE_LIFE = timedelta(days=60)
LITTLE_CRL_LIFE = timedelta(days=2)
LITTLE_QUOTA = 0.1  # of it


def examine(folder: CaFolder, ports: Iterable[str], now: datetime) -> list[Check]:
    """All checks, in the order in which they are mended; a check that cannot be made has failed."""
    checks = [synchronised("certificates carry this clock's time")]
    for name, look in (("ca", _ca), ("crl", _crls), ("keys", _keys), ("ledger", _ledger)):
        checks += looked(name, partial(look, folder, now))
    room = disk(folder.path, "the ledger", little_bytes=LITTLE_DISK_BYTES, none_bytes=NO_DISK_BYTES)
    return [*checks, room, *(_port(path) for path in ports), modem_manager()]


def _ca(folder: CaFolder, now: datetime) -> Iterator[Check]:
    for role in (ISSUING, ROOT):
        certificate = certificate_at(folder.certificate(role))
        left = certificate.not_valid_after_utc - now
        level = Level.FAIL if left <= timedelta() else Level.WARN if left < LITTLE_LIFE else Level.OK
        detail = f"{common_name(certificate.subject)} is valid until {certificate.not_valid_after_utc:%Y-%m-%d}"
        yield Check("ca", level, detail, "" if level is Level.OK else "mqtt-provision ca rotate --dir CA")
        if role == ISSUING:
            yield _quota(folder, certificate)


def _quota(folder: CaFolder, issuing: x509.Certificate) -> Check:
    quota = folder.settings.quota
    with Ledger.open(folder.ledger) as ledger:
        used = ledger.signed_by(spki_sha256(issuing))
    if quota is None:
        return Check("quota", Level.OK, f"{used} certificates signed, no quota")
    left = quota - used
    level = Level.FAIL if left <= 0 else Level.WARN if left < quota * LITTLE_QUOTA else Level.OK
    return Check("quota", level, f"{used} of {quota} certificates signed")


def _crls(folder: CaFolder, now: datetime) -> Iterator[Check]:
    for role in (ISSUING, ROOT):
        crl = crl_at(folder.crl(role))
        ends = next_update(crl)
        left = ends - now
        level = Level.FAIL if left <= timedelta() else Level.WARN if left < LITTLE_CRL_LIFE else Level.OK
        hint = "" if level is Level.OK else "mqtt-provision crl --dir CA --out FILE, and publish it by a timer"
        yield Check("crl", level, f"{common_name(crl.issuer)}: next update {ends:%Y-%m-%d %H:%M}", hint)


def _keys(folder: CaFolder, now: datetime) -> Iterator[Check]:
    loose = [path for path in (folder.path, *folder.path.iterdir()) if _is_loose(path)]
    for path in loose:
        yield Check("keys", Level.FAIL, f"{path} can be read by others", "find out who has read it; chmod go= PATH")
    if folder.insecure:
        yield Check("keys", Level.WARN, "the keys have no passphrase", "an --insecure-dev CA is for tests only")
    if folder.key(ROOT, insecure=folder.insecure).exists() and not folder.insecure:
        yield Check("keys", Level.WARN, "the root's key lies here", "move it to a safe place")
    if not loose:
        yield Check("keys", Level.OK, "private to their owner")


def _is_loose(path: Path) -> bool:
    is_private = path.is_dir() or path.suffix in {".key", ".db"} or INSECURE in path.name
    return is_private and bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def _ledger(folder: CaFolder, now: datetime) -> Iterator[Check]:
    with Ledger.open(folder.ledger) as ledger:
        found, unfinished = verify_ledger(ledger), ledger.unfinished()
        fault = clock_fault(now, ledger.last_signing(), program_date())
    if fault is not None:
        yield Check("clock", Level.FAIL, str(fault), fault.hint)
    for problem in found.problems:
        yield Check("ledger", Level.FAIL, problem, "restore the last backup, or ask who wrote to it")
    if not found.problems:
        yield Check("ledger", Level.OK, f"agrees with itself, {found.counts.started} attempts")
    if unfinished:
        names = ", ".join(unit.device_id for unit in unfinished[:5])
        yield Check("ledger", Level.WARN, f"{len(unfinished)} unfinished units: {names}", "mqtt-provision resume")


def _port(path: str) -> Check:
    name = f"port {path}"
    try:
        is_serial = stat.S_ISCHR(Path(path).stat().st_mode)
    except OSError as error:
        return Check(name, Level.FAIL, (error.strerror or str(error)).lower(), "ls -l /dev/serial/by-path")
    if not is_serial:
        return Check(name, Level.FAIL, "is not a serial port", "ls -l /dev/serial/by-path")
    if not os.access(path, os.R_OK | os.W_OK):
        return Check(name, Level.FAIL, "permission denied", "join the group that owns it (dialout), then log in again")
    return Check(name, Level.OK, "is there, and may be opened")
