"""A certified key as files: `NAME.crt` (leaf and issuing CA), `NAME.key` (0600) and `ca.crt`, all or none.

Nothing is overwritten and no key found by name is used again: the key is new, or it stays with whoever made the
CSR. The key is written before anything is signed, so that a full disk costs no certificate; when a later write
fails, what was written is taken back and the certificate is revoked.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mtls.errors import Fault
from mtls.keystore import key_pem, new_key, read_limited, read_private, save_key, write_private, write_public
from mtls.profiles import certificate_serial_hex
from provisioning.ca import CertificateAuthority
from provisioning.dialects import esp_secure_cert
from provisioning.signing import pem

Sign = Callable[[ec.EllipticCurvePublicKey], list[x509.Certificate]]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was written where; `key` is None when the key never was here, or is in an image with all the rest."""

    certificate: Path
    key: Path | None
    ca: Path
    certificate_serial: str
    not_after: datetime

    @classmethod
    def of(cls, leaf: x509.Certificate, certificate: Path, key: Path | None, ca: Path) -> Self:
        """With the facts of the certificate."""
        return cls(certificate, key, ca, certificate_serial_hex(leaf), leaf.not_valid_after_utc)

    @property
    def files(self) -> list[Path]:
        """The paths that were written or found as they must be."""
        return list(dict.fromkeys(path for path in (self.certificate, self.key, self.ca) if path is not None))

    def as_row(self) -> dict[str, str | None]:
        """For JSON."""
        return {
            "certificate": str(self.certificate),
            "key": None if self.key is None else str(self.key),
            "ca": str(self.ca),
            "certificate_serial": self.certificate_serial,
            "not_after": self.not_after.isoformat(),
        }


def deliver(
    ca: CertificateAuthority,
    out: Path,
    name: str,
    sign: Sign,
    *,
    public_key: ec.EllipticCurvePublicKey | None = None,
) -> Delivery:
    """Sign `public_key`, or a new key, and write the files into `out`, which is made when it is missing."""
    certificate, key, bundle = out / f"{name}.crt", out / f"{name}.key", out / "ca.crt"
    _refuse_existing(certificate, key)
    _refuse_other_ca(bundle, ca.bundle_pem)
    is_made_here = public_key is None
    with _all_or_none(out) as taken_back:
        if public_key is None:
            public_key = _new_key_in(key, taken_back)
        chain = _signed(ca, sign, public_key, taken_back)
        taken_back.callback(certificate.unlink, missing_ok=True)
        write_public(certificate, pem(*chain))
        if not bundle.exists():
            taken_back.callback(bundle.unlink, missing_ok=True)
            write_public(bundle, ca.bundle_pem)
    return Delivery.of(chain[0], certificate, key if is_made_here else None, bundle)


def deliver_image(ca: CertificateAuthority, out: Path, name: str, sign: Sign) -> Delivery:
    """Sign a new key and write `NAME.bin`, an esp_secure_cert partition with chain, CAs and key in it (mode 0600).

    The key is in no other file. The image is read back before it counts as written.
    """
    path = out / f"{name}.bin"
    _refuse_existing(path)
    private_key = new_key()
    with _all_or_none(out) as taken_back:
        chain = _signed(ca, sign, private_key.public_key(), taken_back)
        taken_back.callback(path.unlink, missing_ok=True)
        entries = esp_secure_cert.entries_of(pem(*chain), ca.bundle_pem, key_pem(private_key))
        write_private(path, esp_secure_cert.image(entries))
        if esp_secure_cert.parse(read_private(path)) != entries:
            raise Fault(f"{path} does not hold what was written", hint="the disk is failing: use another one")
    return Delivery.of(chain[0], path, None, path)


@contextlib.contextmanager
def _all_or_none(out: Path) -> Iterator[contextlib.ExitStack]:
    """The folder for files; what is put on the stack is done, newest first, when one of them cannot be written."""
    with contextlib.ExitStack() as taken_back:
        _make_folder(out, taken_back)
        yield taken_back
        taken_back.pop_all()  # all is written: nothing is taken back


def _new_key_in(path: Path, taken_back: contextlib.ExitStack) -> ec.EllipticCurvePublicKey:
    private_key = new_key()
    taken_back.callback(path.unlink, missing_ok=True)
    save_key(path, private_key, None)
    return private_key.public_key()


def _signed(
    ca: CertificateAuthority, sign: Sign, key: ec.EllipticCurvePublicKey, taken_back: contextlib.ExitStack
) -> list[x509.Certificate]:
    chain = sign(key)
    taken_back.callback(_revoke, ca, chain[0])
    return chain


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists() or path.is_symlink():
            raise Fault(
                f"{path} exists already",
                hint="nothing is overwritten: choose another folder with --out, or move the file away",
            )


def _refuse_other_ca(bundle: Path, bundle_pem: bytes) -> None:
    if bundle.exists() and read_limited(bundle) != bundle_pem:
        raise Fault(
            f"{bundle} belongs to another CA",
            hint="devices of two CAs do not share a folder: choose another one with --out",
        )


def _make_folder(out: Path, taken_back: contextlib.ExitStack) -> None:
    try:
        missing = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(f"cannot make the folder {out}: {error.strerror}", hint="name another with --out") from None
    if missing:
        taken_back.callback(_remove_if_empty, out)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _revoke(ca: CertificateAuthority, leaf: x509.Certificate) -> None:
    # The first fault is the one to tell; a ledger on the same full disk must not hide it.
    with contextlib.suppress(Fault):
        ca.revoke(certificate_serial=certificate_serial_hex(leaf), reason="cessationOfOperation")
