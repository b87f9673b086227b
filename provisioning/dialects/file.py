"""file as a dialect: a device that exchanges files in a folder, such as a USB stick, a share, or a mounted image.

    device.csr    from the device: the CSR of a key that it made (PEM or DER)
    device.crt    from the station: its certificate and the issuing CA's
    ca.crt        from the station: the root's certificate and the issuing CA's

Such a device says nothing but its CSR. So it is named by its key: hardware serial and chip id are the digest of the
public key, and another CSR in the folder is another device. It is not reset and signs no nonce of ours, so a unit is
WRITTEN at best. Its private key is not asked for, and not read should it lie there. What stands in the place of the two
certificates before this ledger wrote it is somebody else's, and stays as it is.
"""

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mtls.csr import MAX_CSR_BYTES, csr_public_key
from mtls.errors import Fault
from mtls.identity import UNREADABLE
from mtls.keystore import MAX_FILE_BYTES
from mtls.profiles import spki_sha256
from provisioning.dialects.declared import Ability, Declared
from provisioning.dialects.device import Conversation, Device, DeviceGone
from provisioning.folder import Folder
from provisioning.spp1.host import Identity
from provisioning.spp1.protocol import ALGORITHM, Obj

CSR_FILE = "device.csr"
FILES: Mapping[Obj, str] = MappingProxyType({Obj.CHAIN: "device.crt", Obj.CA: "ca.crt"})
SERIAL_CHARS = 16  # of the digest, in what stands for a hardware serial; the chip id has all of it

FILE = Declared(
    name="file",
    device="a device, or its host, that exchanges files in a folder",
    abilities=frozenset((Ability.DEVICE_KEY, Ability.CSR, Ability.KEY_READABLE, Ability.READ_BACK, Ability.BURN)),
    conditions={Ability.DEVICE_KEY: "where its CSR was made on it"},
    max_bytes=dict.fromkeys(FILES, MAX_FILE_BYTES),
)


class FileDevice(Device):
    """A device behind a folder."""

    def __init__(self, talk: Conversation[Folder]) -> None:
        super().__init__(FILE, slot=CSR_FILE)
        self._folder, self._trace, self._clock = talk.port, talk.trace, talk.clock
        self._is_named = talk.order.device_id is not None or talk.order.unfinished_only

    def begin_step(self, step: str) -> None:
        self._trace.note(step, self._clock())

    # --- who is there

    def hello(self) -> bool:
        if not self._is_named:
            raise Fault("the device in a folder does not say what it is called", hint="name it with --id")
        if self._read(CSR_FILE, MAX_CSR_BYTES) is None:
            raise Fault(
                f"there is no {CSR_FILE} in {self._folder.name}",
                hint="have the device put it there: openssl req -new -key device.key -subj / -out device.csr",
            )
        self.read_key()
        return False

    def identify(self) -> Identity:
        digest = self.held_key()
        sn = f"key-{digest[:SERIAL_CHARS]}"
        return Identity(model="", hw="", fw="", sn=sn, uid=digest, rng="", algs=(ALGORITHM,))

    # --- key and CSR

    def held_key(self) -> str:
        return spki_sha256(self.read_key())

    def make_key(self, device_id: str, held: str) -> ec.EllipticCurvePublicKey:
        """The key is made already; what must be shown is that nobody has certified it."""
        for name in FILES.values():
            found = self._read(name, MAX_FILE_BYTES)
            if found is not None:
                raise Fault(
                    f"{name} is in {self._folder.name} already: {_whose(found, held)}",
                    hint="nothing is overwritten: move it away when you know whose it is, and have a new CSR made",
                )
        return self.read_key()

    def read_key(self) -> ec.EllipticCurvePublicKey:
        return csr_public_key(self.csr(""), f"{self._folder.name}/{CSR_FILE}")

    def csr(self, device_id: str) -> bytes:
        found = self._read(CSR_FILE, MAX_CSR_BYTES)
        if found is None:
            raise DeviceGone(
                f"{CSR_FILE} is not in {self._folder.name} any more",
                hint="mount the device again, then burn the unit again: it is continued",
            )
        return found

    # --- objects

    def write(self, obj: Obj, content: bytes, *, txn: str, before: Callable[[], None]) -> None:
        name = FILES[obj]
        if self._read(name, MAX_FILE_BYTES) not in (None, content):
            raise Fault(
                f"another {name} was put into {self._folder.name} meanwhile",
                hint="find out who else writes there; nothing is overwritten",
            )
        before()
        self._folder.write(name, content)
        self._trace.line(">", f"{name} {_facts(content)}", self._clock())

    def holds(self, obj: Obj, content: bytes) -> bool:
        self.csr("")  # whether the device is there at all
        return self._read(FILES[obj], MAX_FILE_BYTES) == content

    def _read(self, name: str, max_bytes: int) -> bytes | None:
        found = self._folder.read(name, max_bytes)
        self._trace.line("<", f"{name} {'-' if found is None else _facts(found)}", self._clock())
        return found


def _facts(content: bytes) -> str:
    return f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}"


def _whose(content: bytes, held: str) -> str:
    """For a person who finds a file in the place of a certificate."""
    try:
        key = x509.load_pem_x509_certificate(content).public_key()
    except UNREADABLE:
        return "no certificate"
    is_its_own = isinstance(key, ec.EllipticCurvePublicKey) and spki_sha256(key) == held
    return "a certificate for the key of this device" if is_its_own else "a certificate for another key"
