"""Options that several commands of `mqtt-provision` share, and the CA that they open.

Only what at least two command groups use stands here. A passphrase comes from a file or from a prompt on a terminal,
never from an argument or the environment.
"""

import functools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mtls.cli import narrate, path_option
from provisioning.ca import CertificateAuthority
from provisioning.ca_folder import CaFolder
from provisioning.custody.root import RootAuthority
from provisioning.ledger import Ledger
from provisioning.ledger_schema import REVOCATION_REASONS
from provisioning.passphrase import new_passphrase, passphrase_source
from provisioning.port import DEFAULT_BAUD

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def warn_insecure(folder: CaFolder) -> None:
    """A development CA is never used in silence."""
    if folder.insecure:
        narrate(f"warning: {folder.path} is an INSECURE-DEV CA: its keys have no passphrase, for tests only")


dir_option = path_option("--dir", "folder", required=True, metavar="CA", help="The CA's folder.")
out_option = path_option("--out", required=True, metavar="DIR", help="Folder for the files; made when missing.")
passphrase_option = path_option(
    "--passphrase-file", metavar="F", help="File (0600) with the passphrase; else it is asked for."
)
clock_option = click.option("--accept-clock", is_flag=True, help="Sign although the clock went back.")
station_option = click.option(
    "--station", default=socket.gethostname, metavar="NAME", help="Name for the record; default: the host's."
)
baud_option = click.option("--baud", type=click.IntRange(1200, 4_000_000), default=DEFAULT_BAUD, show_default=True)


def reason_option(default: str) -> Decorator:
    """Why a certificate is revoked; click would write the choices on one line of the help."""
    help_ = f"Why: {', '.join(REVOCATION_REASONS)}."
    choice = click.Choice(REVOCATION_REASONS)
    return click.option("--reason", type=choice, default=default, show_default=True, metavar="REASON", help=help_)


json_option = click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")


@dataclass(frozen=True, slots=True)
class CaAccess:
    """Which CA, how to unlock it, and whether its clock is taken as it is."""

    folder: Path
    passphrase_file: Path | None = None
    accept_clock: bool = False

    def open(self) -> CertificateAuthority:
        """Open it, and say so on every use when its keys are unprotected."""
        warn_insecure(CaFolder(self.folder))
        return CertificateAuthority.open(self.folder, passphrase_source(self.passphrase_file))

    def open_root(self) -> RootAuthority:
        """The same of a root, whose issuing CAs may be elsewhere."""
        warn_insecure(CaFolder(self.folder))
        return RootAuthority.open(self.folder, passphrase_source(self.passphrase_file))


def signing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that signs, handed over as one `access`."""

    @dir_option
    @passphrase_option
    @clock_option
    @functools.wraps(command)
    def with_access(folder: Path, passphrase_file: Path | None, accept_clock: bool, **others: Any) -> Any:
        return command(CaAccess(folder, passphrase_file, accept_clock), **others)

    return with_access


def open_ledger(folder: Path) -> Ledger:
    """The ledger alone: reading it needs neither certificates nor keys."""
    files = CaFolder(folder)
    warn_insecure(files)
    return Ledger.open(files.ledger)


insecure_option = click.option(
    "--insecure-dev", is_flag=True, help="Leave the key without a passphrase, and say so in its name."
)


def new_key_passphrase(file: Path | None, insecure_dev: bool) -> bytes | None:
    """The passphrase of a new key; None leaves it unprotected, which must be asked for in so many words."""
    if insecure_dev and file is not None:
        raise click.UsageError("--insecure-dev and a passphrase file exclude each other")
    return None if insecure_dev else new_passphrase(file)
