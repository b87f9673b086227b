"""An issuing CA for a gateway that renews certificates (`[enrolment]`): made at the factory, used at the site.

A CA has one signer, so a gateway never gets the station's issuing CA: it gets one of its own below the same root. Its
key is not encrypted, because a gateway starts by itself; whoever takes that key can name any device of the site, and
the answer is to revoke this CA, which is in the ledger like every certificate. Its CRL is empty and lives as long as
the CA: what a gateway renewed is revoked by the gateways' deny lists.
"""

from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from mtls.errors import Fault
from mtls.keystore import new_key, save_key, write_public
from mtls.profiles import Issuer
from mtls.revocation import build_crl
from provisioning.custody.root import RootAuthority
from provisioning.signing import pem


def make_site_ca(root: RootAuthority, name: str, out: Path, *, now: datetime, accept_clock: bool = False) -> list[Path]:
    """Key, certificate and CRL of a new issuing CA in the folder `out`. The files."""
    key_file, certificate_file, crl_file = (out / f"issuing.{kind}" for kind in ("key", "crt", "crl"))
    if any(path.exists() for path in (key_file, certificate_file, crl_file)):
        raise Fault(f"{out} holds an issuing CA already", hint="choose another folder with --out")
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(f"cannot make {out}: {error.strerror}") from None
    key = new_key()
    certificate = root.certify(key.public_key(), name, accept_clock=accept_clock)
    life = certificate.not_valid_after_utc - now
    crl = build_crl(Issuer(certificate, key), [], now=now, number=1, lifetime=life)
    save_key(key_file, key, None)
    write_public(certificate_file, pem(certificate))
    write_public(crl_file, crl.public_bytes(Encoding.PEM))
    return [certificate_file, key_file, crl_file]
