"""What each step of a burn does with the device, the CA and the ledger; the order is `station`'s.

A step either returns or raises: a Fault with its sentence, or a FieldFault for an answer that the protocol does not
allow. What the device must repeat (identity, digests, proofs) is compared here and nowhere else, and each
state of the unit is committed to the ledger before the step returns. Specification: docs/spp1.md, section 7.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mtls.csr import csr_public_key
from mtls.errors import Fault
from mtls.profiles import DEVICE_BIRTH, Profile
from provisioning.ca import CertificateAuthority, issuable_id
from provisioning.ledger import CertificateRow, Ledger, LedgerFault, Unit, UnitState
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
    Obj,
    SealPolicy,
    Stage,
    State,
    Verb,
    prove_message,
)

MIN_SIGNATURE_BYTES = 8  # the shortest DER SEQUENCE of two INTEGERs
SEALED_STATES = frozenset({UnitState.VERIFIED, UnitState.SEALED})  # of a unit whose device may be sealed already


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """What the unit is to become; nothing of it comes from the device.

    `device_id` None takes the hardware serial, lower-cased. `conf` is what the device gets to know beside its id.
    """

    device_id: str | None = None
    profile: Profile = DEVICE_BIRTH
    conf: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    seal_policy: SealPolicy = SealPolicy.FINAL
    crl_url: str | None = None
    spiffe_domain: str | None = None
    accept_clock: bool = False


class Burn:
    """One unit on its way; the actions are named after the steps."""

    def __init__(
        self, session: Session, ca: CertificateAuthority, ledger: Ledger, order: WorkOrder, station: str
    ) -> None:
        self.session = session
        self.ledger = ledger
        self.identity: host.Identity | None = None
        self.unit: Unit | None = None
        self.certificate: CertificateRow | None = None
        self.was_sealed = False
        self._ca = ca
        self._order = order
        self._station = station
        self._key: ec.EllipticCurvePublicKey | None = None
        self._objects: dict[Obj, bytes] = {}

    # --- who is there

    def hello(self) -> None:
        try:
            fields.text({"station": self._station}, "station")
        except fields.FieldFault as error:
            raise Fault(f"the name of this station cannot travel: {error}", hint="name it with --station") from None
        self.was_sealed = self.session.connect().state is State.SEALED

    def ident(self) -> None:
        self.identity = self.session.identify()
        if ALGORITHM not in self.identity.algs:
            raise Fault(f"the device cannot make {ALGORITHM} keys", hint="its firmware needs P-256")

    def reserve(self) -> None:
        identity = self._identity
        device_id = issuable_id(self._order.device_id or identity.sn.lower())
        left_over = self.ledger.live_unit(hardware_serial=identity.sn, uid=identity.uid)
        is_same_box = left_over is not None and (left_over.hardware_serial, left_over.uid) == (
            identity.sn,
            identity.uid,
        )
        if self.was_sealed:
            self._take_over(left_over if is_same_box else None, str(device_id))
            return
        if left_over is not None and is_same_box and left_over.state is not UnitState.RECORDED:
            self.ledger.fail(left_over, left_over.step or str(left_over.state), "left unfinished; burned anew")
        self.unit = self.ledger.reserve(identity.sn, identity.uid, str(device_id), self._station)

    def _take_over(self, unit: Unit | None, device_id: str) -> None:
        """Continue with a unit whose device was sealed before an earlier run could record it."""
        if unit is None or unit.state not in SEALED_STATES:
            raise Fault(
                "the device is sealed already, and this ledger does not wait for its record",
                hint="see what the ledger knows: mqtt-provision ledger show SERIAL; a sealed unit is not burned again",
            )
        if self._order.device_id is not None and unit.device_id != device_id:
            raise Fault(
                f"the sealed device is {unit.device_id}, not {device_id}", hint=f"finish it with --id {unit.device_id}"
            )
        row = self.ledger.certificate_of(unit)
        if row is None or row.der is None:
            raise LedgerFault(f"the ledger has no certificate for unit {unit.id}")
        self.unit, self.certificate = unit, row
        leaf = x509.load_der_x509_certificate(row.der)
        key = leaf.public_key()
        self._key = key if isinstance(key, ec.EllipticCurvePublicKey) else None
        self._prepare(leaf)

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
        if self.session.hello_agreed.state is not State.BLANK:
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
        session = self.session
        request = host.read_csr(session.call, session.hello_agreed.chunk, slot=DEFAULT_SLOT, cn=self._unit.device_id)
        key = csr_public_key(request, "the device's CSR")
        if spki_der(key) != spki_der(self._proved_key):
            raise Fault("the device's CSR is for another key than the one it made")

    def issue(self) -> None:
        order = self._order
        leaf, _ = self._ca.issue(
            issuable_id(self._unit.device_id),
            order.profile,
            self._proved_key,
            unit=self._unit,
            crl_url=order.crl_url,
            spiffe_domain=order.spiffe_domain,
            accept_clock=order.accept_clock,
        )
        self.unit = self.ledger.advance(self._unit, UnitState.ISSUED)
        self.certificate = self.ledger.certificate_of(self._unit)
        self._prepare(leaf)

    def _prepare(self, leaf: x509.Certificate) -> None:
        conf = {**self._order.conf, "id": self._unit.device_id}
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
        self.unit = self.ledger.advance(self._unit, UnitState.WRITTEN)

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
        self.unit = self.ledger.advance(self._unit, UnitState.VERIFIED)

    def seal(self) -> None:
        self.same_unit()
        reply = self.session.call(Verb.SEAL, confirm=self._identity.sn, policy=self._order.seal_policy)
        if not fields.flag(reply.message, "sealed"):
            raise Fault("the device did not seal itself")
        self.unit = self.ledger.advance(self._unit, UnitState.SEALED)

    def prove_sealed(self) -> None:
        self._prove(Stage.SEALED)

    def record(self) -> None:
        if self._unit.state is UnitState.VERIFIED:  # a sealed device taken over from an earlier run
            self.unit = self.ledger.advance(self._unit, UnitState.SEALED)
        self.unit = self.ledger.advance(self._unit, UnitState.RECORDED)

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
