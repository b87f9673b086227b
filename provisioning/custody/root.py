"""The root CA where it is kept, off the network: it signs issuing CAs and its own CRL, and nothing else.

What crosses to a station and back is public and fits on a stick: a request one way; certificate, root certificate, the
root's CRL and `ca.toml` the other way. A station's key is made at the station (or in its HSM), or made here for it and
carried encrypted. Whom a request may be signed for is the operator's decision: its signature shows that its key exists,
not who holds it, so the fingerprint of the key is printed and is to be compared by a second way.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mtls.csr import MAX_CSR_BYTES, csr_public_key
from mtls.errors import Fault
from mtls.keystore import new_key, read_limited, save_key, write_public
from mtls.profiles import ISSUING_CA, Issuer, spki_sha256
from mtls.terminal import sanitise
from provisioning.ca_folder import ISSUING, ROOT, CaFolder, certificate_at, new_folder
from provisioning.ca_settings import CaSettings
from provisioning.crls import ROOT_CRL_LIFETIME, CrlLine, crl_line, crls_pem, next_crl
from provisioning.ledger import CertificateRow, Ledger, utc_now
from provisioning.pkcs11_key import HsmKey, KeyUri, make_hsm_key
from provisioning.signing import pem, refuse_clock, self_signed, sign

MAX_NAME_CHARS = 60


@dataclass(frozen=True, slots=True)
class Station:
    """What a new issuing CA is to be called and may do."""

    name: str
    lifetime: timedelta | None = None  # the profile's, and never beyond the root's end
    settings: CaSettings = field(default_factory=CaSettings)

    def __post_init__(self) -> None:
        if not (0 < len(self.name) <= MAX_NAME_CHARS and self.name.isprintable()):
            raise Fault(
                f"'{sanitise(self.name)}' cannot be a CA's name", hint=f"1 to {MAX_NAME_CHARS} printable characters"
            )


class RootAuthority:
    """An open root CA folder; use as a context manager or close it."""

    def __init__(
        self, folder: CaFolder, ledger: Ledger, passphrase: Callable[[], bytes], clock: Callable[[], datetime]
    ) -> None:
        self.folder = folder
        self.ledger = ledger
        self._passphrase = functools.cache(passphrase)
        self._clock = clock

    @classmethod
    def init(
        cls,
        folder: Path,
        name: str,
        *,
        passphrase: bytes | None,
        key: KeyUri | None = None,
        pin: Callable[[], bytes] = bytes,
        accept_clock: bool = False,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Make a root CA, its ledger and its empty CRL in a new folder; `key` makes its key in an HSM."""
        now = clock()
        refuse_clock(now, None, accept_clock=accept_clock)
        with new_folder(folder) as draft_path:
            draft = CaFolder(draft_path)
            made = new_key() if key is None else make_hsm_key(key, pin)
            try:
                with Ledger.create(draft.ledger, clock=clock) as ledger:
                    root = self_signed(ledger, f"{name} root CA", now, made)
                    write_public(draft.certificate(ROOT), pem(root.certificate))
                    if key is None:
                        save_key(draft.key(ROOT, insecure=passphrase is None), made, passphrase)
                    else:
                        write_public(draft.hsm_uri(ROOT), key.text.encode())
                    next_crl(draft.crl(ROOT), root, ledger, now, ROOT_CRL_LIFETIME)
            finally:
                _close(made)

    @classmethod
    def open(cls, folder: Path, passphrase: Callable[[], bytes], *, clock: Callable[[], datetime] = utc_now) -> Self:
        """Open a root CA; its passphrase is asked for only when it signs."""
        files = CaFolder(folder)
        return cls(files, Ledger.open(files.ledger, clock=clock), passphrase, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()

    def sign_request(
        self, request: Path, station: Station, out: Path, *, accept_clock: bool = False
    ) -> x509.Certificate:
        """Certify the key of a station's CSR, and write what the station needs into the new folder `out`."""
        key = csr_public_key(read_limited(request, MAX_CSR_BYTES), str(request))
        with new_folder(out) as draft:
            return self._certify(key, station, CaFolder(draft), accept_clock=accept_clock)

    def issue_station(
        self, station: Station, out: Path, passphrase: bytes | None, *, accept_clock: bool = False
    ) -> x509.Certificate:
        """Make a station's key as well: a whole CA folder at `out`, its key encrypted, to be carried to the station."""
        with new_folder(out) as draft_path:
            draft, key = CaFolder(draft_path), new_key()
            save_key(draft.key(ISSUING, insecure=passphrase is None), key, passphrase)
            certificate = self._certify(key.public_key(), station, draft, accept_clock=accept_clock)
            with Ledger.create(draft.ledger, clock=self._clock) as ledger:
                issuer = Issuer(certificate, key)
                crl = next_crl(draft.crl(ISSUING), issuer, ledger, self._clock(), timedelta(days=7))
            root_crl = draft.crl(ROOT).read_bytes()
            write_public(draft.crl_bundle, root_crl + crls_pem([crl]))
            return certificate

    def _certify(
        self, key: ec.EllipticCurvePublicKey, station: Station, out: CaFolder, *, accept_clock: bool
    ) -> x509.Certificate:
        subject = f"{station.name} issuing CA"
        certificate = self.certify(key, subject, station.lifetime, accept_clock=accept_clock)
        root = certificate_at(self.folder.certificate(ROOT))
        write_public(out.certificate(ROOT), pem(root))
        write_public(out.certificate(ISSUING), pem(certificate))
        write_public(out.bundle, pem(root, certificate))
        write_public(out.crl(ROOT), self.folder.crl(ROOT).read_bytes())
        if station.settings != CaSettings():
            write_public(out.path / "ca.toml", station.settings.to_toml().encode())
        return certificate

    def certify(
        self, key: ec.EllipticCurvePublicKey, subject: str, lifetime: timedelta | None = None, *, accept_clock: bool
    ) -> x509.Certificate:
        """One issuing CA's certificate; without `lifetime` the profile's, and never beyond the root's end."""
        with self.folder.locked():
            now = self._clock()
            refuse_clock(now, self.ledger.last_signing(), accept_clock=accept_clock)
            root = self.folder.issuer(ROOT, self._passphrase)
            try:
                self.ledger.revoke_orphans(spki_sha256(root.certificate))
                return sign(self.ledger, root, ISSUING_CA, subject, key, now=now, wishes={"lifetime": lifetime})
            finally:
                _close(root.key)

    def revoke_station(self, name: str, reason: str) -> list[CertificateRow]:
        """Revoke every issuing CA of this name; it takes effect with the root's next CRL."""
        found = self.ledger.certificates(subject=f"{name} issuing CA") or self.ledger.certificates(subject=name)
        rows = [row for row in found if row.profile == ISSUING_CA.name and row.der is not None]
        if not rows:
            raise Fault(
                f"this root has signed no issuing CA {sanitise(name)}", hint="mqtt-provision ledger list --dir ROOT"
            )
        return [self.ledger.revoke(row.id, reason) for row in rows]

    def write_crl(
        self, out: Path | None = None, *, lifetime: timedelta = ROOT_CRL_LIFETIME, accept_clock: bool = False
    ) -> CrlLine:
        """Sign the root's next CRL."""
        with self.folder.locked():
            now = self._clock()
            refuse_clock(now, self.ledger.last_signing(), accept_clock=accept_clock)
            root = self.folder.issuer(ROOT, self._passphrase)
            try:
                crl = next_crl(self.folder.crl(ROOT), root, self.ledger, now, lifetime, accept_clock=accept_clock)
            finally:
                _close(root.key)
            if out is not None:
                write_public(out, crls_pem([crl]))
        return crl_line(crl)


def _close(key: ec.EllipticCurvePrivateKey) -> None:
    if isinstance(key, HsmKey):
        key.close()
