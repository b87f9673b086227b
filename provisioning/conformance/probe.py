"""The device as a check finds it: in the state that the check starts from, with a key that can be certified.

`bring_to` leads a device to a state by the protocol alone, forward where that is possible and through ERASE where it
is not. The certificates are made here by a CA that lives in memory for one run and signs nothing else.
"""

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from mtls.errors import Fault
from mtls.keystore import new_key
from mtls.profiles import DEVICE_OPERATIONAL, ISSUING_CA, Issuer
from mtls.trust import to_pem
from provisioning.conformance.line import Failed, Line, Message, outcome_of
from provisioning.possession import is_signed_by, p256_key
from provisioning.spp1 import fields
from provisioning.spp1.host import Hello, Identity
from provisioning.spp1.protocol import (
    ALGORITHM,
    DEFAULT_SLOT,
    MAX_SIGNATURE_BYTES,
    P256_SPKI_BYTES,
    PROVE_NONCE_BYTES,
    ErrorCode,
    Kind,
    Obj,
    SealPolicy,
    Stage,
    State,
    Verb,
    prove_message,
)

DEVICE_ID = "conformance"
CONF = b'{"id":"conformance"}'
KEY: Mapping[str, str] = {"slot": DEFAULT_SLOT, "alg": ALGORITHM}


def public_key(spki: bytes) -> EllipticCurvePublicKey:
    """The key that the device returned; Failed when it is none that a certificate can name."""
    try:
        return p256_key(spki)
    except Fault as fault:
        raise Failed(str(fault)) from None


class Probe:
    """One device under judgement. `seal_final` lets the checks run that close it for good."""

    def __init__(self, line: Line, *, seal_final: bool = False) -> None:
        self.line = line
        self.seal_final = seal_final
        self.hello: Hello | None = None
        self.last_key = b""  # KEYGEN's last answer: a sealed device does not say it any more
        self._transactions = 0

    # --- requests that must be answered as said

    def ok(self, verb: Verb, **values: object) -> Message:
        """A request that is served."""
        reply = self.line.ask(verb, values)
        if reply["r"] != Kind.OK:
            raise Failed(f"{verb} was refused with {outcome_of(reply)}")
        return reply

    def refused(self, code: ErrorCode, verb: str, **values: object) -> None:
        """A request that is refused with this code."""
        outcome = outcome_of(self.line.ask(verb, values))
        if outcome != code:
            raise Failed(f"{verb} was answered {outcome}, not {code}")

    # --- what the device is

    def greet(self) -> Hello:
        """A new session."""
        self.hello = self.line.greet()
        return self.hello

    @property
    def session(self) -> Hello:
        """The present session; opened when there is none."""
        return self.hello or self.greet()

    def reset(self) -> Hello:
        """A new boot and a session in it."""
        self.hello = self.line.reset(self.session.boot_id)
        return self.hello

    def identity(self) -> Identity:
        """IDENT, read now."""
        return Identity.parse(self.ok(Verb.IDENT))

    @cached_property
    def known_identity(self) -> Identity:
        """IDENT as it was at first."""
        return self.identity()

    def state(self) -> State:
        """STATUS' state."""
        return fields.member(self.ok(Verb.STATUS), "state", State)

    def is_in(self, state: State, after: str) -> None:
        """Failed unless the device is in `state`."""
        found = self.state()
        if found is not state:
            raise Failed(f"after {after} it is {found}, not {state}")

    # --- leading it somewhere

    def bring_to(self, state: State) -> None:
        """Into this state, from wherever it is; a session must be there."""
        now = self.state()
        if _RANK[now] > _RANK[state] or now is State.STAGED:
            self.erase()
            now = State.BLANK
        for reached, step in _LADDER:
            if _RANK[now] < _RANK[reached] <= _RANK[state] and (reached is not State.STAGED or state is reached):
                step(self)
        self.is_in(state, f"the way to {state}")

    def erase(self) -> None:
        """ERASE, confirmed."""
        self.ok(Verb.ERASE, confirm=self.known_identity.sn)

    def keygen(self, **values: object) -> tuple[bytes, bool]:
        """(SubjectPublicKeyInfo, whether it was there before)."""
        reply = self.ok(Verb.KEYGEN, **{**KEY, **values})
        spki = fields.exact(reply, "spki", P256_SPKI_BYTES)
        public_key(spki)
        self.last_key = spki
        return spki, fields.flag(reply, "existing")

    def key(self) -> bytes:
        """The key that is there, or a new one."""
        return self.keygen()[0]

    def transaction(self) -> str:
        """A name that no transaction of this run has had."""
        self._transactions += 1
        return f"t{self._transactions}"

    def begin(self, obj: Obj, content: bytes, **values: object) -> str:
        """BEGIN for this content; the transaction's name."""
        txn = self.transaction()
        digest = hashlib.sha256(content).hexdigest()
        self.ok(Verb.BEGIN, **({"obj": obj, "len": len(content), "sha256": digest, "txn": txn} | values))
        return txn

    def send(self, content: bytes) -> None:
        """DATA, all of it in order."""
        for start in range(0, len(content), self.session.chunk):
            piece = content[start : start + self.session.chunk]
            reply = self.ok(Verb.DATA, off=start, b64=fields.encode_blob(piece))
            end = start + len(piece)
            fields.integer(reply, "off", least=end, most=end)

    def write(self, obj: Obj, content: bytes) -> str:
        """BEGIN, DATA and COMMIT; the transaction's name."""
        txn = self.begin(obj, content)
        self.send(content)
        self.ok(Verb.COMMIT, txn=txn)
        return txn

    def read(self, obj: Obj, length: int) -> bytes:
        """The first `length` bytes of an object by READ."""
        content = b""
        while len(content) < length:
            count = min(self.session.chunk, length - len(content))
            reply = self.ok(Verb.READ, obj=obj, off=len(content), n=count)
            fields.integer(reply, "off", least=len(content), most=len(content))
            content += fields.blob(reply, "b64", least=1, most=count)
        return content

    def digest(self, obj: Obj) -> bytes:
        """HASH."""
        return fields.digest(self.ok(Verb.HASH, obj=obj), "sha256")

    # --- certificates and proofs

    @cached_property
    def issuer(self) -> Issuer:
        """The CA of this run."""
        key, now = new_key(), datetime.now(UTC)
        cert = ISSUING_CA.build(
            subject_cn="SPP/1 conformance", public_key=key.public_key(), issuer=None, key=key, now=now
        )
        return Issuer(cert, key)

    def chain(self, spki: bytes | None = None) -> bytes:
        """A chain for the device's key, or for another."""
        key = public_key(self.key() if spki is None else spki)
        leaf = DEVICE_OPERATIONAL.build(subject_cn=DEVICE_ID, public_key=key, issuer=self.issuer, now=datetime.now(UTC))
        return to_pem([leaf, self.issuer.certificate])

    @property
    def ca(self) -> bytes:
        """The object `ca`."""
        return to_pem([self.issuer.certificate])

    def new_nonce(self) -> bytes:
        """A challenge."""
        return self.line.random_bytes(PROVE_NONCE_BYTES)

    def prove(self, stage: Stage, spki: bytes, nonce: bytes | None = None) -> None:
        """PROVE; Failed unless the signature is the key's over this session, boot, nonce and stage."""
        nonce = self.new_nonce() if nonce is None else nonce
        reply = self.ok(Verb.PROVE, slot=DEFAULT_SLOT, nonce=fields.encode_blob(nonce), stage=int(stage))
        signature = fields.blob(reply, "sig", least=1, most=MAX_SIGNATURE_BYTES)
        hello, identity, digest = self.session, self.known_identity, hashlib.sha256(spki).digest()
        message = prove_message(stage, hello.sid, nonce, hello.boot_id, identity.uid, identity.sn, DEFAULT_SLOT, digest)
        if not is_signed_by(public_key(spki), signature, message):
            raise Failed("the signature is not this key's over the message of section 6")

    def verify_key(self) -> None:
        """The stage-2 proof of a later boot, which makes a CERTED device VERIFIED."""
        self.reset()
        nonce = fields.encode_blob(self.new_nonce())
        self.ok(Verb.PROVE, slot=DEFAULT_SLOT, nonce=nonce, stage=int(Stage.RESET))

    def seal(self, policy: SealPolicy = SealPolicy.ERASABLE) -> None:
        """SEAL, confirmed."""
        self.ok(Verb.SEAL, confirm=self.known_identity.sn, policy=policy)


_RANK: Mapping[State, int] = {state: rank for rank, state in enumerate(State)}


def _certify(probe: Probe) -> None:
    probe.write(Obj.CHAIN, probe.chain())


# What leads from one state to the next; STAGED is beside the way, not on it.
_LADDER: tuple[tuple[State, Callable[[Probe], object]], ...] = (
    (State.KEYED, Probe.key),
    (State.STAGED, lambda probe: probe.begin(Obj.CONF, CONF)),
    (State.CERTED, _certify),
    (State.VERIFIED, Probe.verify_key),
    (State.SEALED, Probe.seal),
)
