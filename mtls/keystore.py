"""Keys and other files that must be whole, private, or both.

A file is written beside its place, flushed to disk and renamed, so that a reader sees the old one or the new one and
never half of one; a private file has mode 0600 from the moment it exists. A key that others can read is refused, not
repaired: it may have been read already.

Keys are P-256 in PKCS#8 (RFC 5958), encrypted when a passphrase is given. Nothing here prints, logs or copies a key.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mtls.errors import ConfigFault, Fault
from mtls.identity import UNREADABLE

MAX_FILE_BYTES = 65536  # a key, a certificate chain, a deny list; a CRL has a limit of its own
PRIVATE = 0o600
PUBLIC = 0o644


def write_private(path: Path, data: bytes) -> None:
    """Put `data` at `path` atomically, readable by the owner only; an existing file is replaced whole."""
    _write(path, data, PRIVATE)


def write_public(path: Path, data: bytes) -> None:
    """Put `data` at `path` atomically, readable by everybody."""
    _write(path, data, PUBLIC)


def _write(path: Path, data: bytes, mode: int, *, replace: bool = True) -> None:
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        _fill(temporary, data, mode)
        if replace:
            temporary.rename(path)
        else:
            os.link(temporary, path)  # fails where a name exists already; a rename would take its place
            temporary.unlink()
        _sync_folder(path.parent)
    except FileExistsError:
        _remove(temporary)
        raise Fault(
            f"{path} exists already", hint="keys are never overwritten; choose another folder or move it away"
        ) from None
    except OSError as error:
        _remove(temporary)
        raise Fault(
            f"cannot write {path}: {error.strerror}", hint="check the folder, its permissions and the free space"
        ) from error
    except BaseException:  # Ctrl-C in the middle must not leave a key lying about under another name
        _remove(temporary)
        raise


def _fill(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_limited(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The content of a regular file of at most `max_bytes`; ConfigFault that names the file otherwise."""
    data, _ = _read(path, max_bytes)
    return data


def _read(path: Path, max_bytes: int) -> tuple[bytes, os.stat_result]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigFault(f"{path} is not a regular file", hint="name the file itself")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(max_bytes + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise ConfigFault(
            f"{path} does not exist", hint="check the path, in the configuration or in the command"
        ) from None
    except OSError as error:
        raise ConfigFault(f"cannot read {path}: {error.strerror}", hint="check its permissions") from error
    if len(data) > max_bytes:
        raise ConfigFault(f"{path} is larger than {max_bytes} bytes", hint="this is not the file that was meant")
    return data, status


def load_certificate(path: Path, hint: str) -> x509.Certificate:
    """The first certificate of a PEM file; ConfigFault with `hint` when there is none."""
    try:
        return x509.load_pem_x509_certificate(read_limited(path))
    except UNREADABLE as error:
        raise ConfigFault(f"{path} holds no certificate in PEM", hint=hint) from error


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """A key as PEM PKCS#8, encrypted when a passphrase is given."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def save_key(path: Path, key: ec.EllipticCurvePrivateKey, passphrase: bytes | None) -> None:
    """Write a new key file; one that exists is never overwritten (a key found by name is never reused either)."""
    _write(path, key_pem(key, passphrase), PRIVATE, replace=False)


def credential(path: Path) -> Path:
    """The systemd credential with a file's name, where this process was given one; else the file itself.

    So one configuration serves the unit, whose user cannot read root's key, and root, who checks it by hand.
    Source: systemd.exec(5), LoadCredential=.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and (given := Path(folder, path.name)).is_file():
        return given
    return path


def read_private(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The content of a file that only its owner can read; ConfigFault for one that others can, or a larger one.

    A systemd credential belongs to root and is opened to the service by an ACL, which shows as the group's read bit;
    its folder is private to the service, so that bit is allowed there.
    """
    data, status = _read(path, max_bytes)
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    allowed = 0o040 if credentials and path.resolve().is_relative_to(Path(credentials).resolve()) else 0
    if stat.S_IMODE(status.st_mode) & 0o077 & ~allowed:
        raise ConfigFault(
            f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o})",
            hint=f"if nobody else has read it: chmod 600 {path}; otherwise make a new key",
        )
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigFault(f"{path} belongs to user {status.st_uid}", hint="a key belongs to its user or to root")
    return data


def load_key(path: Path, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """A P-256 key from a file that only its owner can read; ConfigFault for anything else."""
    data = read_private(path)
    try:
        key = serialization.load_pem_private_key(data, passphrase)
    except TypeError as error:
        needs = "is encrypted" if passphrase is None else "is not encrypted"
        hint = "give its passphrase file" if passphrase is None else "leave the passphrase away"
        raise ConfigFault(f"{path} {needs}", hint=hint) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "has another passphrase or is damaged" if passphrase is not None else "is not a private key in PEM"
        raise ConfigFault(f"{path} {what}", hint="check the file and the passphrase") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigFault(f"{path} is not a P-256 key", hint="keys are P-256 everywhere")
    return key
