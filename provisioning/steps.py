"""What each step of a burn does with the device, the CA and the ledger; the order is `burning`'s.

A step either returns or raises. What the device must repeat (identity, digests, proofs) is compared here and nowhere
else, and each state of the unit is committed to the ledger before the step returns. What a device can do is asked of
its abilities, never of its dialect's name. Order and reasons: docs/spp1.md, section 7, and docs/dialects.md.
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
from provisioning.dialects.declared import FOR_PASS, Ability
from provisioning.dialects.device import Device
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
from provisioning.made_key import MadeKey, made_key_of, may_be_replaced, note_key_asked, note_key_made
from provisioning.possession import spki_der
from provisioning.signing import pem
from provisioning.spp1.host import Identity
from provisioning.spp1.protocol import ALGORITHM, Obj, Stage
from provisioning.unit_order import Named, Signer, UnitOrder, label_text

SEALED_STATES = frozenset({UnitState.VERIFIED, UnitState.SEALED})  # of a unit whose device may be sealed already


class Contradiction(Fault):
    """Device and ledger tell two stories about one unit: nothing is made of it before a person has looked."""


class NothingLeft(Fault):
    """The device on the port is no unfinished unit, and only those were asked for."""


class Burn:
    """One unit on its way; the actions are named after the steps."""

    def __init__(self, device: Device, ca: Signer, ledger: Ledger, order: UnitOrder, station: str) -> None:
        self.device = device
        self.ledger = ledger
        self.identity: Identity | None = None
        self.unit: Unit | None = None
        self.certificate: CertificateRow | None = None
        self.was_sealed = False
        self.is_continued = False
        self.order = order
        self.station = station
        self._ca = ca
        self._key: ec.EllipticCurvePublicKey | None = None
        self._csr = b""
        self._objects: dict[Obj, bytes] = {}

    @property
    def presented(self) -> Presented:
        """The attempt, with what the device has said of itself so far."""
        said, known = self.identity, replace(self.order.presented, dialect=self.device.declared.name)
        if said is None:
            return known
        return replace(known, hardware_serial=said.sn, uid=said.uid, model=said.model, firmware=said.fw)

    # --- who is there

    def hello(self) -> None:
        self.device.declared.require(self.order.needs)
        self.was_sealed = self.device.hello()

    def ident(self) -> None:
        self.identity = identity = self.device.identify()
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
                hint=f"set it aside: mqtt-provision scrap {sanitise(identity.sn)} --reason TEXT",
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
                " certificate: mqtt-provision retire SERIAL --reason TEXT",
            )
        self.same_unit()
        self.device.erase(identity)
        self.was_sealed = False

    def recover(self) -> None:
        """The device of a continued unit must hold the unit's key; what else it holds is written again."""
        found = self.device.held_key()
        made = self._made_key()
        if not found or found != (self._unit.spki_sha256 if made is None else made.held):
            raise Contradiction(
                "the device holds another key than the ledger says" if found else "the device has lost its key",
                hint="look at the unit, then: mqtt-provision retire NAME --reason TEXT, or scrap",
            )
        self.same_unit()
        key = self.device.read_key() if made is None else csr_public_key(made.csr, "the CSR in the ledger")
        if hashlib.sha256(spki_der(key)).hexdigest() != self._unit.spki_sha256:
            raise Contradiction("the device returned another key than the one it said it holds")
        self._key, self._csr = key, b"" if made is None else made.csr

    def _made_key(self) -> MadeKey | None:
        """What the ledger keeps of a key whose public half the device shows only once; None for other devices."""
        if Ability.KEY_READABLE in self.device.abilities:
            return None
        made = made_key_of(self.ledger, self._unit)
        if made is None or made.slot != self.device.slot:
            raise Contradiction(
                "the ledger has no CSR of the key in this place of the device",
                hint=f"burn it where it was begun: {made.slot}" if made else "mqtt-provision retire NAME --reason TEXT",
            )
        return made

    def same_unit(self) -> None:
        """IDENT again: a port is not a device, and another one may be plugged in by now."""
        differing = self._identity.differences(self.device.identify())
        if differing:
            raise Fault(
                f"another device answers now: {', '.join(differing)} differs",
                hint="leave the unit in its place until the verdict, then burn it again",
            )

    # --- key and certificate

    def keygen(self) -> None:
        device, unit = self.device, self._unit
        held, is_shown_once = device.held_key(), Ability.KEY_READABLE not in device.abilities
        if is_shown_once:
            if held and not may_be_replaced(self.ledger, unit, device.slot):
                raise Fault(
                    f"{device.slot} of the device holds a key that this ledger knows nothing of",
                    hint="it may be somebody else's identity: delete it with its owner's tool, or name another place",
                )
            note_key_asked(self.ledger, unit, device.slot)
        self.same_unit()
        self._key = key = device.make_key(unit.device_id, held)
        if is_shown_once:
            self._take_csr()
            note_key_made(self.ledger, unit, MadeKey(device.slot, device.held_key(), self._csr))
        self.unit = self.ledger.advance(
            self._unit, UnitState.KEYED, spki_sha256=hashlib.sha256(spki_der(key)).hexdigest()
        )

    def prove_keyed(self) -> None:
        self._prove(Stage.KEYED)

    def csr(self) -> None:
        if self.certificate is None and not self._csr:  # signed in an earlier run: never twice for one unit
            self._take_csr()

    def _take_csr(self) -> None:
        self._csr = self.device.csr(self._unit.device_id)
        if spki_der(csr_public_key(self._csr, "the device's CSR")) != spki_der(self._proved_key):
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
        conf = json.dumps({**self.order.conf, "id": self._unit.device_id}, sort_keys=True, separators=(",", ":"))
        self._objects = {
            Obj.CHAIN: pem(leaf, self._ca.issuing),
            Obj.CA: pem(self._ca.root, self._ca.issuing),
            Obj.CONF: conf.encode("ascii"),
        }
        if Ability.CONF not in self.device.abilities:
            del self._objects[Obj.CONF]

    # --- writing and reading back

    def write_chain(self) -> None:
        self._write(Obj.CHAIN)

    def write_ca(self) -> None:
        self._write(Obj.CA)

    def write_conf(self) -> None:
        self._write(Obj.CONF)

    def _write(self, obj: Obj) -> None:
        content, most = self._objects[obj], self.device.declared.max_bytes[obj]
        if len(content) > most:
            raise Fault(f"{obj} has {len(content)} bytes, more than the {most} a device takes")
        self.device.write(obj, content, txn=f"{self._unit.id}-{obj}", before=self.same_unit)

    def hash(self) -> None:
        self._compare_digests()
        self._reach(UnitState.WRITTEN)

    def hash_after_reset(self) -> None:
        self._compare_digests()

    def _compare_digests(self) -> None:
        for obj, content in self._objects.items():
            if not self.device.holds(obj, content):
                raise Fault(
                    f"the device does not hold the {obj} that was written: its digest differs",
                    hint="its flash is worn or its firmware loses writes; set the unit aside",
                )

    # --- reset, proof, seal, record

    def reset(self) -> None:
        self.same_unit()
        self.device.reset()
        self._accept(Ability.RESET)

    def prove_reset(self) -> None:
        self._prove(Stage.RESET)
        if self.device.abilities >= FOR_PASS:
            self._reach(UnitState.VERIFIED)

    def _accept(self, ability: Ability) -> None:
        """A device that has shown that it cannot do what PASS needs goes on only if the order says so."""
        if ability not in self.device.abilities and not self.order.accept_written:
            raise Fault(
                f"this device cannot pass: it does not do what its dialect may ({ability})",
                hint="newer firmware may; or accept units that are only WRITTEN: --accept-written",
            )

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
        if gateway is None or Ability.CONNECT not in self.device.abilities:
            raise Fault(
                "the device has no network of its own (capability net): it cannot be asked to connect",
                hint="leave --gateway away for this model",
            )
        self.device.connect(gateway)

    def seal(self) -> None:
        self.same_unit()
        if not self.device.seal(self._identity, self.order.seal_policy):
            raise Fault("the device did not seal itself")
        self._reach(UnitState.SEALED)

    def prove_sealed(self) -> None:
        self._prove(Stage.SEALED)

    def record(self) -> None:
        """PASS needs a proof after a reset; a unit without is delivered, and its verdict says WRITTEN."""
        abilities = self.device.abilities
        if not abilities >= FOR_PASS:
            self._reach(UnitState.DELIVERED)
            if self._unit.state is not UnitState.DELIVERED:
                raise Contradiction("the device proved its key in an earlier run, and cannot now")
            return
        if Ability.SEAL in abilities:
            self._reach(UnitState.SEALED)  # of a sealed device taken over from an earlier run
        self._reach(UnitState.RECORDED)

    def _prove(self, stage: Stage) -> None:
        if Ability.PROOF not in self.device.abilities or self.device.prove(stage, self._identity, self._proved_key):
            return
        self._accept(Ability.PROOF)
        if Ability.PROOF in self.device.abilities:
            raise Fault(
                "the device did not prove that it holds the key: its signature is not valid",
                hint="set the unit aside: its key is lost, or its firmware signs something else",
            )

    # --- what a step may rely on

    @property
    def _identity(self) -> Identity:
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
