"""A board made of software: the flash is a file (or memory), the key is in it, and nothing is protected.

SIMULATION ONLY. A real device keeps its key where no program of the host can read it; this one keeps it in a
0600 file that says INSECURE, so that the agent beside a virtual device can be given the same key. The file is
replaced atomically and read again for every request, as flash would be. Randomness is the system's.
"""

import functools
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from device_sim.board_network import publish_once
from device_sim.connection_faults import Endpoint
from device_sim.spp1_board import Flash, FlashFailure, NetFailure, flash_from_json, flash_to_json, is_text
from mtls.errors import ConfigFault, Fault
from mtls.identity import DeviceId, IdentityRule, identity_of
from mtls.keystore import key_pem, read_limited, read_private, write_private, write_public
from provisioning.spp1.protocol import Obj

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # SP 800-186 §3.2.1.3


def new_flash(hardware_serial: str = "") -> Flash:
    """A blank device; without a hardware serial it gets one of its own. Fault for one that cannot travel."""
    name = hardware_serial or f"SIM-{secrets.token_hex(4)}"
    if not is_text(name):
        raise Fault(
            "the hardware serial is not 1 to 64 printable ASCII characters", hint="for example: --serial SN-0001"
        )
    return Flash(hardware_serial=name, uid=secrets.token_hex(8))


def load_flash(path: Path) -> Flash:
    """The flash in a state file; ConfigFault naming the file for anything else."""
    try:
        return flash_from_json(read_private(path))
    except ValueError as error:
        raise ConfigFault(
            f"{path} is not a state file: {error}", hint="name another file; a new one is made blank"
        ) from error


def open_state(path: Path | None, hardware_serial: str) -> Flash:
    """The flash in `path`, made blank when there is none; Fault when the file is another device's."""
    if path is None:
        return new_flash(hardware_serial)
    if not path.exists():
        flash = new_flash(hardware_serial)
        write_private(path, flash_to_json(flash).encode("ascii"))
        return flash
    flash = load_flash(path)
    if hardware_serial and flash.hardware_serial != hardware_serial:
        raise Fault(
            f"{path} is the flash of {flash.hardware_serial}, not of {hardware_serial}",
            hint="leave --serial away to start that device, or name another --state file",
        )
    return flash


class SimulatedBoard:
    """A Board whose flash is the file `path`, or memory when there is none."""

    def __init__(self, flash: Flash, path: Path | None = None, *, network: bool = False) -> None:
        self._flash = flash
        self._path = path
        self.has_network = network

    def read_flash(self) -> Flash:
        """What is in the file now."""
        if self._path is not None:
            try:
                self._flash = flash_from_json(read_limited(self._path))
            except (Fault, ValueError) as error:
                raise FlashFailure(str(error)) from error
        return self._flash

    def write_flash(self, flash: Flash) -> None:
        """Replace the file as a whole."""
        if self._path is not None:
            try:
                write_private(self._path, flash_to_json(flash).encode("ascii"))
            except Fault as error:
                raise FlashFailure(str(error)) from error
        self._flash = flash

    def random(self, length: int) -> bytes:
        """The system's random bytes."""
        return os.urandom(length)

    def new_key(self, seed: bytes) -> bytes:
        """A key from 512 bits of the system's randomness, hashed together with the host's seed."""
        # Hashing both means that neither a known seed nor a weak generator alone decides the key.
        mixed = hashlib.sha512(b"device-sim key\0" + os.urandom(64) + seed).digest()
        key = ec.derive_private_key(int.from_bytes(mixed, "big") % (P256_ORDER - 1) + 1, ec.SECP256R1())
        return key.private_bytes(Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    def public_key(self, private_key: bytes) -> bytes:
        """The SubjectPublicKeyInfo of a key in flash."""
        return _spki(_load(private_key).public_key())

    def sign(self, private_key: bytes, message: bytes) -> bytes:
        """ECDSA with SHA-256."""
        return _load(private_key).sign(message, ec.ECDSA(hashes.SHA256()))

    def request(self, private_key: bytes, common_name: str) -> bytes:
        """A PKCS#10 request for the key."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        return builder.sign(_load(private_key), hashes.SHA256()).public_bytes(Encoding.DER)

    def publish(self, host: str, port: int, topic: str) -> None:
        """A real connection of this process, with the key from the simulated flash."""
        flash = self.read_flash()
        if not {Obj.CHAIN, Obj.CA} <= flash.objects.keys():
            raise NetFailure("no certificate")
        device_id = _device_id(flash).value
        key = key_pem(_load(flash.private_key))
        publish_once(
            Endpoint(host, port),
            device_id,
            key,
            flash.objects[Obj.CHAIN],
            flash.objects[Obj.CA],
            topic.replace("{id}", device_id),
        )

    def certified_key(self, chain: bytes) -> bytes | None:
        """The key in the first certificate of a PEM chain."""
        try:
            key = x509.load_pem_x509_certificate(chain).public_key()
        except Exception:  # whatever a parser makes of foreign bytes, the answer is "no certificate"
            return None
        return _spki(key) if isinstance(key, ec.EllipticCurvePublicKey) else None


@functools.lru_cache(maxsize=16)  # the state of a device follows from its key: it is asked for with every request
def _load(private_key: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_der_private_key(private_key, None)
    except (ValueError, TypeError) as error:
        raise FlashFailure("the key in flash is damaged") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FlashFailure("the key in flash is not a P-256 key")
    return key


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files that an agent beside the virtual device connects with."""

    id: str
    cert_file: Path
    key_file: Path
    ca_file: Path


def export_credentials(flash: Flash, folder: Path) -> Credentials:
    """Write a burned device's ID.crt, ID.key (0600) and ca.crt; Fault when it is not burned. SIMULATION ONLY.

    SPP/1 itself never lets a private key out: this reads the simulated flash past the protocol.
    """
    if not flash.private_key or not {Obj.CHAIN, Obj.CA} <= flash.objects.keys():
        raise Fault(
            f"device {flash.hardware_serial} holds no certificate yet",
            hint="burn it first: mqtt-provision burn --port PATH --dir CA",
        )
    device_id = _device_id(flash)
    files = Credentials(str(device_id), folder / f"{device_id}.crt", folder / f"{device_id}.key", folder / "ca.crt")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(f"cannot make folder {folder}: {error.strerror}", hint="name a folder that you own") from error
    write_private(files.key_file, key_pem(_load(flash.private_key)))
    write_public(files.cert_file, flash.objects[Obj.CHAIN])
    write_public(files.ca_file, flash.objects[Obj.CA])
    return files


def _device_id(flash: Flash) -> DeviceId:
    # The id becomes a file name: DeviceId forbids "/" and control characters, and "." names are refused here.
    try:
        found = identity_of(x509.load_pem_x509_certificate(flash.objects[Obj.CHAIN]), IdentityRule())
    except ValueError as error:
        raise Fault("the chain in flash holds no certificate", hint="erase the device and burn it again") from error
    if not isinstance(found, DeviceId) or found.value in {".", ".."}:
        raise Fault(f"the certificate in flash names no usable device: {found}", hint="burn the device again")
    return found
