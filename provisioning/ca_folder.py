"""A CA's folder: which file is which, the lock that makes one signer, and how a new folder comes to be.

Every CA in it has a role, and its files are named after it: `root`, `issuing`, and `issuing-<key id>` for an issuing CA
that another one has followed, which signs no certificates any more but its CRLs. A key is a file, `ROLE.key`, or stays
in an HSM, whose URI `ROLE.pkcs11` holds. `ca.toml` has what the owner of the root allowed (`CaSettings`).

A folder is made beside its final place and renamed into it, so that a crash, a full disk or a wrong passphrase
leaves either a whole CA or none. Nothing here overwrites: an existing CA is never made again. The lock is flock(2)
on a file of its own (SQLite's locks on the ledger are not ours to borrow); it falls with its process.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mtls.errors import ConfigFault, Fault
from mtls.keystore import load_certificate, load_key, read_limited
from mtls.profiles import Issuer, spki_sha256
from provisioning.ca_settings import CaSettings
from provisioning.pkcs11_key import KeyUri, load_hsm_key

ROOT: Final = "root"
ISSUING: Final = "issuing"

INSECURE = "INSECURE-DEV"  # stands in the file name of every key that no passphrase protects
LOCK_TIMEOUT_S = 10.0  # signing takes milliseconds; a CRL of 100,000 entries about a second


@dataclass(frozen=True, slots=True)
class CaFolder:
    """The names in a CA's folder."""

    path: Path

    def certificate(self, role: str) -> Path:
        """The certificate of a CA."""
        return self.path / f"{role}.crt"

    def crl(self, role: str) -> Path:
        """The last CRL that a CA signed."""
        return self.path / f"{role}.crl"

    def hsm_uri(self, role: str) -> Path:
        """The file that names a CA's key in an HSM."""
        return self.path / f"{role}.pkcs11"

    @property
    def bundle(self) -> Path:
        """Root and issuing CA: what a gateway and a device trust."""
        return self.path / "ca.crt"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.db"

    @property
    def crl_bundle(self) -> Path:
        return self.path / "crl.pem"

    def key(self, role: str, *, insecure: bool) -> Path:
        """The private key of `root` or `issuing`."""
        return self.path / (f"{role}.{INSECURE}.key" if insecure else f"{role}.key")

    @property
    def settings(self) -> CaSettings:
        """What the owner of the root allowed this CA."""
        return CaSettings.load(self.path / "ca.toml")

    @property
    def insecure(self) -> bool:
        """Whether a CA's key lies there without a passphrase."""
        return any(self._is_insecure(role) for role in (ISSUING, ROOT))

    def _is_insecure(self, role: str) -> bool:
        """Whether a key lies there without a passphrase; both kinds at once is a fault."""
        kinds = [kind for kind in (False, True) if self.key(role, insecure=kind).exists()]
        if len(kinds) == 2:
            raise ConfigFault(
                f"{self.path} holds an encrypted and an unencrypted {role} key",
                hint=f"keep the one that matches {role}.crt and move the other away",
            )
        return kinds == [True]

    def has_key(self, role: str) -> bool:
        """Whether a CA's key is here, or named here."""
        files = (self.key(role, insecure=False), self.key(role, insecure=True), self.hsm_uri(role))
        return any(file.exists() for file in files)

    def load(self, role: str, passphrase: Callable[[], bytes]) -> ec.EllipticCurvePrivateKey:
        """A CA's key; its passphrase, or the HSM's PIN, is asked for only when it has one."""
        if self.hsm_uri(role).exists():
            uri = KeyUri.parse(read_limited(self.hsm_uri(role)).decode("ascii", "replace").strip())
            return load_hsm_key(uri, passphrase)
        insecure = self._is_insecure(role)
        path = self.key(role, insecure=insecure)
        if not path.exists():
            raise ConfigFault(
                f"there is no {path.name} in {self.path}",
                hint="bring the key back from its safe, or name another folder with --dir",
            )
        return load_key(path, None if insecure else passphrase())

    def issuer(self, role: str, passphrase: Callable[[], bytes]) -> Issuer:
        """A CA's certificate and key, which must belong together."""
        certificate, key = certificate_at(self.certificate(role)), self.load(role, passphrase)
        if spki_sha256(key.public_key()) != spki_sha256(certificate):
            raise ConfigFault(
                f"the {role} key in {self.path} does not belong to {role}.crt",
                hint="bring back the key and the certificate that were made together",
            )
        return Issuer(certificate, key)

    def former(self, now: datetime) -> list[str]:
        """The roles of former issuing CAs whose certificates are still valid: devices may hold leaves of theirs."""
        roles = sorted(path.stem for path in self.path.glob(f"{ISSUING}-*.crt"))
        return [role for role in roles if certificate_at(self.certificate(role)).not_valid_after_utc > now]

    @contextlib.contextmanager
    def locked(self, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold the folder as its one signer; a fault when another holds it for longer than `timeout_s`."""
        with self._open_lock("ca.lock") as descriptor:
            _wait_for(descriptor, self.path, timeout_s)
            yield

    @contextlib.contextmanager
    def burning(self, *, alone: bool = False) -> Iterator[None]:
        """Hold the right to move units: shared by everybody who burns, or `alone` to settle what they left."""
        with self._open_lock("burning.lock") as descriptor:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                who = "units are being burned" if alone else "unfinished units are being settled"
                raise Fault(
                    f"{who} with the CA at {self.path}", hint="wait for the other command to end, then repeat this one"
                ) from None
            yield

    @contextlib.contextmanager
    def _open_lock(self, name: str) -> Iterator[int]:
        try:
            descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigFault(
                f"cannot lock the CA at {self.path}: {error.strerror}",
                hint="name the CA's folder with --dir, and run as the user who owns it",
            ) from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def certificate_at(path: Path) -> x509.Certificate:
    """The certificate in a PEM file; ConfigFault when it is none."""
    return load_certificate(path, "restore it from a backup")


def _wait_for(descriptor: int, folder: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Fault(
                    f"another program has been signing with the CA at {folder} for {timeout_s:g} s",
                    hint="wait for it to end, then repeat the command",
                ) from None
            time.sleep(0.02)
        else:
            return


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A private folder that becomes `target` when the block ends well, and vanishes when it does not."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Fault(
            f"{target} exists and is not an empty folder",
            hint="a CA is never overwritten: choose another folder with --dir",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise Fault(f"cannot make a folder beside {target}: {error.strerror}") from None
    try:
        yield draft
        _sync_folder(draft)
        draft.rename(target)  # onto nothing or an empty folder, else the kernel refuses
        _sync_folder(target.parent)
    except OSError as error:
        raise Fault(
            f"cannot write {target}: {error.strerror}", hint="nothing was left behind; free space, then repeat"
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
