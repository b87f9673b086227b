"""SPP/1 as a dialect: the verbs of docs/spp1.md, section 5, behind what a burn asks of a device."""

import hashlib
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec

from mtls.errors import Fault
from provisioning.dialects.declared import Ability, Declared
from provisioning.dialects.device import Conversation, Device, DeviceGone
from provisioning.port import PortFault
from provisioning.possession import is_signed_by, p256_key, spki_der
from provisioning.session import Port, Session
from provisioning.spp1 import fields, host
from provisioning.spp1.frames import FrameTooLong
from provisioning.spp1.host import DeviceRefused, DeviceSilent, Identity, ReplyFault
from provisioning.spp1.protocol import (
    ALGORITHM,
    DEFAULT_SLOT,
    MAX_OBJECT_BYTES,
    MAX_SIGNATURE_BYTES,
    P256_SPKI_BYTES,
    PROVE_NONCE_BYTES,
    SEED_BYTES,
    Capability,
    ErrorCode,
    Obj,
    SealPolicy,
    Stage,
    State,
    Verb,
    prove_message,
)
from provisioning.unit_order import Gateway

MIN_SIGNATURE_BYTES = 8  # the shortest DER SEQUENCE of two INTEGERs
LOOKS = 4  # a look is a HELLO and an IDENT, each with its repetitions

SPP1 = Declared(
    name="spp1",
    device="a device on a serial port that speaks SPP/1",
    abilities=frozenset(Ability),
    conditions={Ability.CONNECT: "capability net", Ability.ERASE: "unless sealed for good"},
    max_bytes={obj: MAX_OBJECT_BYTES[obj] for obj in (Obj.CHAIN, Obj.CA, Obj.CONF)},
)


class Spp1Device(Device):
    """A device on a port that speaks SPP/1."""

    def __init__(self, talk: Conversation[Port]) -> None:
        super().__init__(SPP1, slot=DEFAULT_SLOT)
        self._session = Session(talk.port, station=talk.station, trace=talk.trace, clock=talk.clock)
        self._station = talk.station

    def begin_step(self, step: str) -> None:
        self._session.begin_step(step)

    def hello(self) -> bool:
        try:
            fields.text({"station": self._station}, "station")
        except fields.FieldFault as error:
            raise Fault(f"the name of this station cannot travel: {error}", hint="name it with --station") from None
        agreed = self._session.connect()
        if Capability.NET not in agreed.capabilities:
            self.abilities -= {Ability.CONNECT}
        return agreed.state is State.SEALED

    def look(self, timeout_s: float) -> Identity | None:
        self._session.begin_step("look", limit_s=timeout_s * LOOKS)
        try:
            return self._session.identify() if self._session.knock(timeout_s) else None
        except PortFault:
            raise
        except Fault:
            return None

    def identify(self) -> Identity:
        return self._session.identify()

    # --- key and CSR

    def held_key(self) -> str:
        if self._session.hello_agreed.state is State.BLANK:
            return ""
        status = self._session.call(Verb.STATUS).message
        return fields.digest(status, "spki_sha256").hex() if status.get("spki_sha256") else ""

    def make_key(self, device_id: str, held: str) -> ec.EllipticCurvePublicKey:
        session = self._session
        seed = fields.encode_blob(session.random_bytes(SEED_BYTES))
        values: dict[str, object] = {"slot": DEFAULT_SLOT, "alg": ALGORITHM, "seed": seed}
        if held:
            values["if_spki"] = held
        reply = session.call(Verb.KEYGEN, **values).message
        if fields.flag(reply, "existing"):
            raise Fault(
                "the device kept a key from before instead of making a new one",
                hint="erase the device, then burn it again",
            )
        return p256_key(fields.exact(reply, "spki", P256_SPKI_BYTES))

    def read_key(self) -> ec.EllipticCurvePublicKey:
        # Without if_spki a key that is there is only returned.
        reply = self._session.call(Verb.KEYGEN, slot=DEFAULT_SLOT, alg=ALGORITHM).message
        return p256_key(fields.exact(reply, "spki", P256_SPKI_BYTES))

    def csr(self, device_id: str) -> bytes:
        session = self._session
        return host.read_csr(session.call, session.hello_agreed.chunk, slot=DEFAULT_SLOT, cn=device_id)

    # --- objects, reset, proof, seal

    def write(self, obj: Obj, content: bytes, *, txn: str, before: Callable[[], None]) -> None:
        session = self._session
        host.write_object(session.call, session.hello_agreed.chunk, obj, content, txn=txn, before=before)

    def holds(self, obj: Obj, content: bytes) -> bool:
        return host.read_hash(self._session.call, obj) == hashlib.sha256(content).digest()

    def reset(self) -> None:
        self._session.reset()

    def prove(self, stage: Stage, identity: Identity, key: ec.EllipticCurvePublicKey) -> bool:
        agreed, nonce = self._session.hello_agreed, self._session.random_bytes(PROVE_NONCE_BYTES)
        values: dict[str, object] = {"slot": DEFAULT_SLOT, "nonce": fields.encode_blob(nonce), "stage": int(stage)}
        reply = self._session.call(Verb.PROVE, **values)
        signature = fields.blob(reply.message, "sig", least=MIN_SIGNATURE_BYTES, most=MAX_SIGNATURE_BYTES)
        digest = hashlib.sha256(spki_der(key)).digest()
        message = prove_message(
            stage, agreed.sid, nonce, agreed.boot_id, identity.uid, identity.sn, DEFAULT_SLOT, digest
        )
        return is_signed_by(key, signature, message)

    def connect(self, gateway: Gateway) -> None:
        self._session.call(Verb.CONNECT, host=gateway.host, port=gateway.port, topic=gateway.topic)

    def seal(self, identity: Identity, policy: SealPolicy) -> bool:
        return fields.flag(self._session.call(Verb.SEAL, confirm=identity.sn, policy=policy).message, "sealed")

    def erase(self, identity: Identity) -> None:
        self._session.call(Verb.ERASE, confirm=identity.sn)

    # --- the end

    def translated(self, error: Exception) -> Exception:
        if isinstance(error, fields.FieldFault):
            return ReplyFault(self._session.last_verb, str(error))
        if isinstance(error, FrameTooLong):
            return Fault(str(error), hint="shorten the station's name")
        rebooted = isinstance(error, DeviceRefused) and error.code is ErrorCode.SESSION
        if isinstance(error, DeviceSilent) or rebooted:
            return DeviceGone(str(error), hint=getattr(error, "hint", ""))
        return error

    def close(self) -> None:
        self._session.close()
