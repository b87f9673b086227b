"""A virtual device that exchanges files in a folder: the device's side of the station's dialect `file`.

Each call is one boot of it. Without a key it makes one and lays the CSR into the folder; later it looks whether
certificate and CAs have come, and takes them only when they are for its own key, name one device, and the CAs signed
them. It never takes anything out of the folder and never puts its key there.

SIMULATION ONLY: the key is a file (0600), which the agent can use.
"""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from device_sim.credentials import leaf_of
from mtls.errors import Fault
from mtls.identity import DeviceId, IdentityRule, identity_of
from mtls.keystore import load_key, new_key, read_limited, save_key, write_public
from mtls.profiles import spki_sha256
from mtls.trust import TrustStore

CSR_FILE, CERTIFICATE_FILE, CA_FILE = "device.csr", "device.crt", "ca.crt"


def boot(folder: Path, key_file: Path) -> str:
    """What the device has now, as one line; Fault when what lies in the folder is not for it."""
    if not key_file.exists():
        save_key(key_file, new_key(), None)
    key = load_key(key_file)
    if not (folder / CSR_FILE).exists():
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        write_public(folder / CSR_FILE, request.public_bytes(Encoding.PEM))
    if not all((folder / name).exists() for name in (CERTIFICATE_FILE, CA_FILE)):
        return f"waits for its certificate: {folder / CSR_FILE} is there"
    leaf, device_id = _taken(folder, key)
    return f"{device_id} has its certificate, valid until {leaf.not_valid_after_utc:%Y-%m-%d}"


def _taken(folder: Path, key: ec.EllipticCurvePrivateKey) -> tuple[x509.Certificate, DeviceId]:
    """The certificate, when it is good for this device; its dates are the agent's to judge, at each connection."""
    certificate, ca = folder / CERTIFICATE_FILE, folder / CA_FILE
    leaf = leaf_of(certificate)
    if spki_sha256(leaf) != spki_sha256(key.public_key()):
        raise Fault(f"{certificate} is for another key than this device's", hint="burn the device again")
    if TrustStore.from_pem(read_limited(ca), str(ca)).issuer_of(leaf) is None:
        raise Fault(f"no CA in {ca} signed {certificate}", hint="burn the device again")
    found = identity_of(leaf, IdentityRule())
    if not isinstance(found, DeviceId):
        raise Fault(f"{certificate} does not name one device", hint="burn the device again")
    return leaf, found
