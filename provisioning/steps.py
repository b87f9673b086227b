"""What each step of a burn does with the device, the CA and the ledger; the order is `station`'s.

A step either returns or raises: a Fault with its sentence, or a FieldFault for an answer that the protocol does not
allow. What the device must repeat (identity, digests, proofs) is compared here and nowhere else, and each
state of the unit is committed to the ledger before the step returns. Specification: docs/spp1.md, section 7.
"""

import hashlib
import json
from dataclasses import replace

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mtls.csr import csr_public_key
from mtls.errors import Fault
from mtls.identity import DeviceId
from mtls.profiles import spki_sha256
from mtls.terminal import sanitise
from provisioning.ca import issuable_id
from provisioning.ledger import (
    NAMES_ARE_FREE,
    TRANSITIONS,
    UNFINISHED,
    CertificateRow,
    Ledger,
    Presented,
    Unit,
    UnitState,
)
from provisioning.possession import is_signed_by, p256_key, spki_der
from provisioning.session import Session
from provisioning.signing import pem
from provisioning.spp1 import fields, host
from provisioning.spp1.protocol import (
    ALGORITHM,
    DEFAULT_SLOT,
    MAX_OBJECT_BYTES,
    MAX_SIGNATURE_BYTES,
    P256_SPKI_BYTES,
    PROVE_NONCE_BYTES,
    SEED_BYTES,
    Capability,
    Obj,
    Stage,
    State,
    Verb,
    prove_message,
)
from provisioning.unit_order import Named, Signer, UnitOrder, label_text

MIN_SIGNATURE_BYTES = 8  # the shortest DER SEQUENCE of two INTEGERs
SEALED_STATES = frozenset({UnitState.VERIFIED, UnitState.SEALED})  # of a unit whose device may be sealed already


class Contradiction(Fault):
    """Device and ledger tell two stories about one unit: nothing is made of it before a person has looked."""


class NothingLeft(Fault):
    """The device on the port is no unfinished unit, and only those were asked for."""


class Burn:
    """One unit on its way; the actions are named after the steps."""

    def __init__(self, session: Session, ca: Signer, ledger: Ledger, order: UnitOrder, station: str) -> None:
        self.session = session
        self.ledger = ledger
        self.identity: host.Identity | None = None
        self.unit: Unit | None = None
        self.certificate: CertificateRow | None = None
        self.was_sealed = False
        self.is_continued = False
        self.order = order
        self.station = station
        self._ca = ca
        self._key: ec.EllipticCurvePublicKey | None = None
        self._objects: dict[Obj, bytes] = {}

    @property
    def presented(self) -> Presented:
        """The attempt, with what the device has said of itself so far."""
        said, known = self.identity, self.order.presented
        if said is None:
            return known
        return replace(known, hardware_serial=said.sn, uid=said.uid, model=said.model, firmware=said.fw)

    # --- who is there

    def hello(self) -> None:
        try:
            fields.text({"station": self.station}, "station")
        except fields.FieldFault as error:
            raise Fault(f"the name of this station cannot travel: {error}", hint="name it with --station") from None
        self.was_sealed = self.session.connect().state is State.SEALED

    def ident(self) -> None:
        self.identity = identity = self.session.identify()
        if ALGORITHM not in identity.algs:
            raise Fault(f"the device cannot make {ALGORITHM} keys", hint="its firmware needs P-256")
        if self.order.model and identity.model != self.order.model:
            raise Fault(
                f"the device is a {sanitise(identity.model)}, the work order is for {self.order.model}",
                hint="sort the unit out, or begin the work order for its model",
            )
        if self.order.firmware and identity.fw not in self.order.firmware:
            raise Fault(
                f"the device runs firmware {sanitise(identity.fw)}, the work order wants "
                f"{' or '.join(self.order.firmware)}",
                hint="flash the firmware that the work order names, then burn the unit",
            )

    def reserve(self) -> None:
        identity = self._identity
        device_id = issuable_id(self._named.device_id)
        held = self.ledger.live_unit(hardware_serial=identity.sn, uid=identity.uid)
        is_same_box = held is not None and (held.hardware_serial, held.uid) == (identity.sn, identity.uid)
        if held is not None and is_same_box and held.state in UNFINISHED:
            self._take_up(held, device_id)
            return
        if self.order.unfinished_only:
            raise NothingLeft(f"{sanitise(identity.sn)} is not an unfinished unit", hint="mqtt-provision ledger list")
        self._refuse_rework()
        if self.was_sealed:
            self._erase()
        presented = replace(self.presented, attributes=self._named.attributes)
        self.unit = self.ledger.reserve(identity.sn, identity.uid, str(device_id), self.station, presented)

    @property
    def _named(self) -> Named:
        if self.order.naming is not None:
            return self.order.naming(self._identity)
        return Named(self.order.device_id or self._identity.sn.lower(), self.order.presented.attributes)

    def _refuse_rework(self) -> None:
        identity, rework = self._identity, self.order.rework
        failed = [
            unit
            for unit in self.ledger.units_named(identity.sn)
            if unit.uid == identity.uid and unit.state is UnitState.FAILED
        ]
        if rework is not None and len(failed) > rework:
            raise Fault(
                f"the unit failed {len(failed)} times, and the work order allows {rework} times rework",
                hint=f"set it aside: mqtt-provision scrap {sanitise(identity.sn)} --reason ...",
            )

    def _take_up(self, unit: Unit, device_id: DeviceId) -> None:
        """Continue a unit that an earlier run left unfinished."""
        is_told = self.order.device_id is not None or self.order.naming is not None
        if is_told and unit.device_id != str(device_id):
            raise Fault(
                f"the device is the unfinished {unit.device_id}, not {device_id}",
                hint=f"finish it with --id {unit.device_id}",
            )
        self.unit, self.is_continued = unit, unit.state is not UnitState.RESERVED
        row = self.ledger.certificate_of(unit)
        if row is not None and row.der is not None:
            if row.issuer_spki_sha256 != spki_sha256(self._ca.issuing):
                raise Contradiction(f"the certificate of {unit.device_id} is from another issuing CA than this one")
            leaf = x509.load_der_x509_certificate(row.der)
            key = leaf.public_key()
            self.certificate = row
            self._key = key if isinstance(key, ec.EllipticCurvePublicKey) else None
            self._prepare(leaf)
        if self.was_sealed and (self.certificate is None or unit.state not in SEALED_STATES):
            raise Contradiction(f"the device is sealed, and its unit in the ledger is only {unit.state}")

    def _erase(self) -> None:
        """A sealed device is emptied only when this ledger burned it and a person gave it free."""
        identity = self._identity
        own = [unit for unit in self.ledger.units_named(identity.sn) if unit.uid == identity.uid]
        if not own or own[-1].state not in NAMES_ARE_FREE:
            raise Fault(
                "the device is sealed already, and this ledger does not wait for its record",
                hint="see what the ledger knows: mqtt-provision ledger show SERIAL; one that came back for a new"
                " certificate: mqtt-provision retire SERIAL",
            )
        self.same_unit()
        self.session.call(Verb.ERASE, confirm=identity.sn)
        self.was_sealed = False

    def recover(self) -> None:
        """The device of a continued unit must hold the unit's key; what else it holds is written again."""
        status = self.session.call(Verb.STATUS).message
        found = fields.digest(status, "spki_sha256").hex() if status.get("spki_sha256") else ""
        if found != self._unit.spki_sha256:
            raise Contradiction(
                "the device holds another key than the ledger says" if found else "the device has lost its key",
                hint="look at the unit, then: mqtt-provision retire NAME, or scrap NAME",
            )
        self.same_unit()
        reply = self.session.call(Verb.KEYGEN, slot=DEFAULT_SLOT, alg=ALGORITHM).message  # no if_spki: only reads it
        spki = fields.exact(reply, "spki", P256_SPKI_BYTES)
        if hashlib.sha256(spki).hexdigest() != self._unit.spki_sha256:
            raise Contradiction("the device returned another key than its STATUS named")
        self._key = p256_key(spki)

    def same_unit(self) -> None:
        """IDENT again: a port is not a device, and another one may be plugged in by now."""
        differing = self._identity.differences(self.session.identify())
        if differing:
            raise Fault(
                f"another device answers now: {', '.join(differing)} differs",
                hint="leave the unit in its place until the verdict, then burn it again",
            )

    # --- key and certificate

    def keygen(self) -> None:
        values: dict[str, object] = {
            "slot": DEFAULT_SLOT,
            "alg": ALGORITHM,
            "seed": fields.encode_blob(self.session.random_bytes(SEED_BYTES)),
        }
        if self.session.hello_agreed.state is not State.BLANK:  # as it was; an erased device says so in STATUS
            status = self.session.call(Verb.STATUS).message
            if status.get("spki_sha256"):
                values["if_spki"] = fields.digest(status, "spki_sha256").hex()
        self.same_unit()
        reply = self.session.call(Verb.KEYGEN, **values).message
        if fields.flag(reply, "existing"):
            raise Fault(
                "the device kept a key from before instead of making a new one",
                hint="erase the device, then burn it again",
            )
        spki = fields.exact(reply, "spki", P256_SPKI_BYTES)
        self._key = p256_key(spki)
        self.unit = self.ledger.advance(self._unit, UnitState.KEYED, spki_sha256=hashlib.sha256(spki).hexdigest())

    def prove_keyed(self) -> None:
        self._prove(Stage.KEYED)

    def csr(self) -> None:
        if self.certificate is not None:
            return  # signed in an earlier run: never twice for one unit
        session = self.session
        request = host.read_csr(session.call, session.hello_agreed.chunk, slot=DEFAULT_SLOT, cn=self._unit.device_id)
        key = csr_public_key(request, "the device's CSR")
        if spki_der(key) != spki_der(self._proved_key):
            raise Fault("the device's CSR is for another key than the one it made")

    def issue(self) -> None:
        if self.certificate is None:
            order = self.order
            leaf, _ = self._ca.issue(
                issuable_id(self._unit.device_id),
                order.profile,
                self._proved_key,
                unit=self._unit,
                crl_url=order.crl_url,
                spiffe_domain=order.spiffe_domain,
                accept_clock=order.accept_clock,
            )
            self._prepare(leaf)
        self._reach(UnitState.ISSUED)
        self.certificate = self.ledger.certificate_of(self._unit)

    def _reach(self, state: UnitState) -> None:
        """Commit the next state, unless an earlier run of this unit has."""
        if state in TRANSITIONS[self._unit.state]:
            self.unit = self.ledger.advance(self._unit, state)

    def _prepare(self, leaf: x509.Certificate) -> None:
        conf = {**self.order.conf, "id": self._unit.device_id}
        self._objects = {
            Obj.CHAIN: pem(leaf, self._ca.issuing),
            Obj.CA: pem(self._ca.root, self._ca.issuing),
            Obj.CONF: json.dumps(conf, sort_keys=True, separators=(",", ":")).encode("ascii"),
        }

    # --- writing and reading back

    def write_chain(self) -> None:
        self._write(Obj.CHAIN)

    def write_ca(self) -> None:
        self._write(Obj.CA)

    def write_conf(self) -> None:
        self._write(Obj.CONF)

    def _write(self, obj: Obj) -> None:
        content = self._objects[obj]
        if len(content) > MAX_OBJECT_BYTES[obj]:
            raise Fault(f"{obj} has {len(content)} bytes, more than the {MAX_OBJECT_BYTES[obj]} a device takes")
        txn = f"{self._unit.id}-{obj}"
        session = self.session
        host.write_object(session.call, session.hello_agreed.chunk, obj, content, txn=txn, before=self.same_unit)

    def hash(self) -> None:
        self._compare_digests()
        self._reach(UnitState.WRITTEN)

    def hash_after_reset(self) -> None:
        self._compare_digests()

    def _compare_digests(self) -> None:
        for obj, content in self._objects.items():
            if host.read_hash(self.session.call, obj) != hashlib.sha256(content).digest():
                raise Fault(
                    f"the device does not hold the {obj} that was written: its digest differs",
                    hint="its flash is worn or its firmware loses writes; set the unit aside",
                )

    # --- reset, proof, seal, record

    def reset(self) -> None:
        self.same_unit()
        self.session.reset()

    def prove_reset(self) -> None:
        self._prove(Stage.RESET)
        self._reach(UnitState.VERIFIED)

    def label(self) -> None:
        """The scanned label must be this unit's: its hardware serial, its device id, or its QR code."""
        right = frozenset({self._identity.sn, self._unit.device_id, label_text(self._unit)})
        scanned = None if self.order.label is None else self.order.label(right)
        if scanned is None:
            raise Fault("no label was scanned in time", hint="scan the label of the unit in this port")
        if scanned not in right:
            raise Fault(
                f"the label says {sanitise(scanned, 64)}, the device is {sanitise(self._identity.sn)}",
                hint="find the unit that the label belongs to before either goes on",
            )

    def connect(self) -> None:
        """The unit itself connects to the gateway and publishes; that it did is the device's word."""
        gateway = self.order.gateway
        if gateway is None or Capability.NET not in self.session.hello_agreed.capabilities:
            raise Fault(
                "the device has no network of its own (capability net): it cannot be asked to connect",
                hint="leave --gateway away for this model",
            )
        self.session.call(Verb.CONNECT, host=gateway.host, port=gateway.port, topic=gateway.topic)

    def seal(self) -> None:
        self.same_unit()
        reply = self.session.call(Verb.SEAL, confirm=self._identity.sn, policy=self.order.seal_policy)
        if not fields.flag(reply.message, "sealed"):
            raise Fault("the device did not seal itself")
        self._reach(UnitState.SEALED)

    def prove_sealed(self) -> None:
        self._prove(Stage.SEALED)

    def record(self) -> None:
        self._reach(UnitState.SEALED)  # of a sealed device taken over from an earlier run
        self._reach(UnitState.RECORDED)

    def _prove(self, stage: Stage) -> None:
        agreed, identity, key = self.session.hello_agreed, self._identity, self._proved_key
        nonce = self.session.random_bytes(PROVE_NONCE_BYTES)
        reply = self.session.call(Verb.PROVE, slot=DEFAULT_SLOT, nonce=fields.encode_blob(nonce), stage=int(stage))
        signature = fields.blob(reply.message, "sig", least=MIN_SIGNATURE_BYTES, most=MAX_SIGNATURE_BYTES)
        digest = hashlib.sha256(spki_der(key)).digest()
        message = prove_message(
            stage, agreed.sid, nonce, agreed.boot_id, identity.uid, identity.sn, DEFAULT_SLOT, digest
        )
        if not is_signed_by(key, signature, message):
            raise Fault(
                "the device did not prove that it holds the key: its signature is not valid",
                hint="set the unit aside: its key is lost, or its firmware signs something else",
            )

    # --- what a step may rely on

    @property
    def _identity(self) -> host.Identity:
        if self.identity is None:
            raise Fault("no device has said who it is")
        return self.identity

    @property
    def _unit(self) -> Unit:
        if self.unit is None:
            raise Fault("the unit is not in the ledger")
        return self.unit

    @property
    def _proved_key(self) -> ec.EllipticCurvePublicKey:
        if self._key is None:
            raise Fault("the device has shown no key")
        return self._key
