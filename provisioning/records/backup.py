"""Backup and restore of a CA's folder: one tar file, the ledger copied while others write to it.

Keys are copied as they lie, so an encrypted key stays encrypted; the file is private all the same. What is in a backup
is a list of names known here: a tar file is never unpacked by the names it brings. A restored folder is made whole or
not at all, never over another one, and its ledger is verified. What happened after the backup is not in it.
"""

import io
import re
import sqlite3
import tarfile
import tempfile
from pathlib import Path

from mtls.errors import ConfigFault, Fault
from mtls.keystore import read_limited, write_private, write_public
from provisioning.ca_folder import INSECURE, CaFolder, new_folder
from provisioning.ledger import Ledger
from provisioning.records.verify import Findings, verify_ledger

LEDGER = "ledger.db"
# Every file of every role that a CA's folder can hold (`CaFolder`), and what is the folder's own.
KEPT = re.compile(
    rf"(root|issuing|issuing-[0-9a-f]{{12}}|next|station)(\.{INSECURE}\.key|\.(key|crt|crl|csr|pkcs11))"
    r"|ca\.(crt|toml)|crl\.pem|ledger\.db"
)
MAX_MEMBER_BYTES = 4 * 1024**3  # a ledger of two million units


def back_up(folder: Path, out: Path) -> list[str]:
    """Write the backup and return the names in it; an existing file is a fault and stays as it is."""
    if out.exists():
        raise Fault(f"{out} exists already", hint="nothing is overwritten: name another file with --out")
    saved: list[str] = []
    with CaFolder(folder).locked(), tempfile.TemporaryDirectory(dir=folder, prefix=".backup.") as scratch:
        _copy_ledger(folder / LEDGER, Path(scratch) / LEDGER)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name in sorted(path.name for path in folder.iterdir() if KEPT.fullmatch(path.name)):
                _add(tar, name, Path(scratch) / name if name == LEDGER else folder / name)
                saved.append(name)
        write_private(out, packed.getvalue())
    return saved


def _copy_ledger(source: Path, target: Path) -> None:
    with Ledger.open(source) as ledger:
        ledger.copy_to(target)


def _add(tar: tarfile.TarFile, name: str, source: Path) -> None:
    data = read_limited(source, MAX_MEMBER_BYTES)
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o600
    tar.addfile(member, io.BytesIO(data))


def restore_backup(file: Path, folder: Path) -> Findings:
    """Make `folder` from a backup and verify its ledger; a fault for a file that is none, or a ledger that is wrong."""
    members = _members(file)
    for needed in (LEDGER, "root.crt"):
        if needed not in members:
            raise ConfigFault(f"{file} is no backup of a CA: {needed} is missing", hint="name another file")
    with new_folder(folder) as draft:
        for name, data in members.items():
            (write_private if name.endswith((".key", ".db")) else write_public)(draft / name, data)
        with Ledger.open(draft / LEDGER) as ledger:
            findings = verify_ledger(ledger)
        if findings.problems:
            raise ConfigFault(f"the ledger in {file} is wrong: {findings.problems[0]}", hint="take an older backup")
    return findings


def _members(file: Path) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(file, mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() and KEPT.fullmatch(member.name) else None
                if content is None or member.size > MAX_MEMBER_BYTES or member.name in members:
                    raise ConfigFault(f"{file} holds more than a backup of a CA does", hint="name another file")
                members[member.name] = content.read()
    except (tarfile.TarError, EOFError, sqlite3.Error):
        raise ConfigFault(
            f"{file} is no backup", hint="it is made by: mqtt-provision backup --dir CA --out FILE"
        ) from None
    except OSError as error:
        raise ConfigFault(f"cannot read {file}: {error.strerror}", hint="check the path") from None
    return members
