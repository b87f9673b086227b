"""A station's issuing CA: its key is made where it stays, certified by the root elsewhere, and followed in time.

`begin` and `follow` make the next key and its CSR beside what is in force; `install` puts the root's answer in force.
Until then nothing has changed. A CA that another one follows keeps its files under a name of its own (`issuing-<key
id>`): it signs no certificates any more, but its CRLs, for as long as devices hold leaves of its.

The switch is a row of renames under the CA's lock, each of which can be repeated: after a crash the same `install`
finishes it, and until then the CA refuses to sign, because key and certificate do not match.
"""

import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from mtls.csr import MAX_CSR_BYTES, csr_public_key
from mtls.errors import ConfigFault, Fault
from mtls.keystore import new_key, read_limited, save_key, write_public
from mtls.profiles import ISSUING_CA, ROOT_CA, common_name, spki_sha256
from provisioning.ca import CertificateAuthority
from provisioning.ca_folder import ISSUING, ROOT, CaFolder, certificate_at, new_folder
from provisioning.ca_settings import CaSettings, key_id
from provisioning.crls import crl_at, replace_crl
from provisioning.custody.root import RootAuthority, Station
from provisioning.ledger import Ledger, utc_now
from provisioning.pkcs11_key import HsmKey, KeyUri, make_hsm_key

NEXT: Final = "next"
SUFFIXES: Final = (".key", ".INSECURE-DEV.key", ".pkcs11")


def begin(
    folder: Path,
    name: str,
    out: Path,
    *,
    passphrase: bytes | None,
    key: KeyUri | None = None,
    pin: Callable[[], bytes] = bytes,
    clock: Callable[[], datetime] = utc_now,
) -> str:
    """A new station: a folder with a ledger, the first key, and its CSR also at `out`; the key's SPKI digest."""
    with new_folder(folder) as draft_path:
        Ledger.create(CaFolder(draft_path).ledger, clock=clock).close()
        digest = _make_next(CaFolder(draft_path), name, passphrase, key, pin)
        write_public(out, (draft_path / "next.csr").read_bytes())
    return digest


def follow(
    folder: CaFolder,
    out: Path,
    *,
    passphrase: bytes | None,
    key: KeyUri | None = None,
    pin: Callable[[], bytes] = bytes,
) -> str:
    """The next key of a station that has an issuing CA, and its CSR also at `out`; nothing changes in force."""
    name = common_name(certificate_at(folder.certificate(ISSUING)).subject).removesuffix(" issuing CA")
    with folder.locked():
        if folder.has_key(NEXT):
            raise Fault(
                f"{folder.path} waits for the certificate of its next key already",
                hint="take its next.csr to the root, then: mqtt-provision ca install FOLDER --dir CA",
            )
        digest = _make_next(folder, name, passphrase, key, pin)
        write_public(out, (folder.path / "next.csr").read_bytes())
    return digest


def _make_next(
    folder: CaFolder, name: str, passphrase: bytes | None, uri: KeyUri | None, pin: Callable[[], bytes]
) -> str:
    Station(name)  # refuses a name that a certificate cannot carry
    key: ec.EllipticCurvePrivateKey
    if uri is None:
        key = new_key()
        save_key(folder.key(NEXT, insecure=passphrase is None), key, passphrase)
    else:
        key = make_hsm_key(uri, pin)
        write_public(folder.hsm_uri(NEXT), uri.text.encode())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} issuing CA")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    write_public(folder.path / "next.csr", request.public_bytes(Encoding.PEM))
    if isinstance(key, HsmKey):
        key.close()
    return spki_sha256(key.public_key())


def install(folder: CaFolder, brought: CaFolder, now: datetime) -> x509.Certificate:
    """Put into force what the root signed for the next key; a Fault, and nothing changed, unless it fits.

    Not verified at the first time: that this root is the right one. Its fingerprint is for the operator to compare.
    """
    with folder.locked():
        certificate, root = certificate_at(brought.certificate(ISSUING)), certificate_at(brought.certificate(ROOT))
        _refuse_other(folder, certificate, root, now)
        settings = brought.settings
        root_crl = crl_at(brought.crl(ROOT))
        if folder.certificate(ISSUING).exists():
            _set_aside(folder, certificate)
        write_public(folder.certificate(ROOT), root.public_bytes(Encoding.PEM))
        replace_crl(folder.crl(ROOT), root_crl, root)
        if settings != CaSettings():
            write_public(folder.path / "ca.toml", settings.to_toml().encode())
        _take_next_key(folder)
        write_public(folder.certificate(ISSUING), certificate.public_bytes(Encoding.PEM))
        folder.crl(ISSUING).unlink(missing_ok=True)
        (folder.path / "next.csr").unlink(missing_ok=True)
    return certificate


def publish(folder: CaFolder, passphrase: Callable[[], bytes], clock: Callable[[], datetime] = utc_now) -> None:
    """The first CRL of what was installed, and the bundle that gateways trust."""
    with CertificateAuthority.open(folder.path, passphrase, clock=clock) as ca:
        write_public(folder.bundle, ca.bundle_pem)
        ca.write_crl()


def _refuse_other(folder: CaFolder, certificate: x509.Certificate, root: x509.Certificate, now: datetime) -> None:
    request = folder.path / "next.csr"
    if not request.exists():
        raise Fault(
            f"{folder.path} waits for no certificate",
            hint="make the next key first: mqtt-provision ca request, or ca rotate",
        )
    wanted = csr_public_key(read_limited(request, MAX_CSR_BYTES), str(request))
    if spki_sha256(certificate) != spki_sha256(wanted):
        raise Fault("the issuing CA's certificate is for another key than next.csr", hint="have next.csr signed")
    wrong = [*ISSUING_CA.check(certificate, root), *ROOT_CA.check(root)]
    if wrong or not _signed(certificate, root):
        what = str(wrong[0]) if wrong else "its root did not sign it"
        raise Fault(f"what was brought is no issuing CA of this program: {what}", hint="have next.csr signed again")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise Fault("the issuing CA's certificate is not valid now", hint="check the clocks of both machines")
    known = folder.certificate(ROOT)
    if known.exists() and spki_sha256(certificate_at(known)) != spki_sha256(root):
        raise Fault("what was brought is of another root", hint="another root needs a new folder: ca request")


def _signed(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _set_aside(folder: CaFolder, following: x509.Certificate) -> None:
    """Give the CA in force a name of its own; done already when a crash cut the last `install` short."""
    present = certificate_at(folder.certificate(ISSUING))
    if spki_sha256(present) == spki_sha256(following):
        return
    role = f"{ISSUING}-{key_id(present)[:12]}"
    for suffix in (*SUFFIXES, ".crl", ".crt"):  # the certificate last: without it the others are not looked at
        file, kept = folder.path / f"{ISSUING}{suffix}", folder.path / f"{role}{suffix}"
        if file.exists() and not kept.exists():
            kept.hardlink_to(file)


def _take_next_key(folder: CaFolder) -> None:
    """The next key takes the place of the one in force, whichever kind of key each of them is."""
    for suffix in SUFFIXES:
        following = folder.path / f"{NEXT}{suffix}"
        if following.exists():
            for other in SUFFIXES:
                (folder.path / f"{ISSUING}{other}").unlink(missing_ok=True)
            following.rename(folder.path / f"{ISSUING}{suffix}")


def rotate_with_root(
    folder: CaFolder,
    passphrase: Callable[[], bytes],
    key_passphrase: bytes | None,
    *,
    lifetime: timedelta | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> x509.Certificate:
    """`ca rotate` where the root's key lies in the same folder: request, signature and switch at once."""
    if not folder.has_key(ROOT):
        raise ConfigFault(
            f"the root's key is not in {folder.path}",
            hint="write a request for it instead: mqtt-provision ca rotate --dir CA --out next.csr",
        )
    if not folder.has_key(NEXT):
        follow(folder, folder.path / "next.csr", passphrase=key_passphrase)
    name = common_name(certificate_at(folder.certificate(ISSUING)).subject).removesuffix(" issuing CA")
    with (
        tempfile.TemporaryDirectory(dir=folder.path) as temporary,
        RootAuthority.open(folder.path, passphrase, clock=clock) as root,
    ):
        answer, station = Path(temporary) / "answer", Station(name, lifetime, folder.settings)
        certificate = root.sign_request(folder.path / "next.csr", station, answer)
        install(folder, CaFolder(answer), clock())
    publish(folder, passphrase, clock)
    return certificate
