"""What each SPP/1 verb does to a device: one function per verb, a table at the end.

Theory: a device is its flash, its RAM and its board. RAM is made new in every boot, and so are the boot id,
the open transaction and the state VERIFIED in it. A verb first checks, then writes flash once, then changes
RAM, so that a failed or cut write leaves everything as it was. A "no" is a value (`No`); a field that breaks
its limits is a FieldFault, which the caller answers with E_ARG.

Frames, sessions and repeated requests are not known here (spp1_device.py), nor is which verb a state allows
(protocol.TRANSITIONS). Specification: docs/spp1.md, section 4.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from device_sim.spp1_board import Board, Flash, NetFailure
from provisioning.spp1 import fields
from provisioning.spp1.fields import Message
from provisioning.spp1.protocol import (
    ALGORITHM,
    BOOT_ID_BYTES,
    DEFAULT_SLOT,
    MAX_OBJECT_BYTES,
    MAX_SLOT_CHARS,
    MAX_TXN_CHARS,
    MAX_UNIX_TIME,
    PROVE_NONCE_BYTES,
    SEED_BYTES,
    ErrorCode,
    Obj,
    SealPolicy,
    Stage,
    State,
    Verb,
    prove_message,
)

RNG_NAME = "os-urandom"


@dataclass(frozen=True, slots=True)
class Ok:
    """Done; `fields` go into the reply. `is_reset`: the board resets once the reply has left."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    is_reset: bool = False


@dataclass(frozen=True, slots=True)
class No:
    """Refused; nothing in flash has changed."""

    code: ErrorCode
    text: str = ""


Answer = Ok | No


@dataclass(slots=True)
class Transaction:
    """A BEGIN that waits for its COMMIT; its bytes are in RAM, so a power cut forgets it."""

    obj: Obj
    length: int
    sha256: bytes
    txn: str
    content: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class Ram:
    """What a boot begins with and a reset forgets."""

    boot_id: bytes
    sid: bytes = b""
    open: Transaction | None = None
    committed_txn: str = ""  # the last successful COMMIT of this boot; "" says that there was none
    csr: bytes = b""
    is_verified: bool = False
    last_error: str = ""


@dataclass(slots=True)
class Unit:
    """One device: board and RAM, and the limit that its line sets for one DATA or READ."""

    board: Board
    ram: Ram
    chunk: int

    @property
    def state(self) -> State:
        """Follows from flash and RAM; it is not stored, so it cannot contradict them."""
        flash = self.board.read_flash()
        if flash.seal_policy is not None:
            return State.SEALED
        if self.ram.open is not None:
            return State.STAGED
        if self.ram.is_verified:
            return State.VERIFIED
        if Obj.CHAIN in flash.objects:
            return State.CERTED
        return State.KEYED if flash.private_key else State.BLANK


def power_on(board: Board, chunk: int) -> Unit:
    """The unit at the start of a boot."""
    return Unit(board, Ram(board.random(BOOT_ID_BYTES)), chunk)


# --- what it is ---


def ident(unit: Unit, request: Message) -> Answer:
    flash = unit.board.read_flash()
    texts = {"model": flash.model, "hw": flash.hw, "fw": flash.fw, "sn": flash.hardware_serial, "uid": flash.uid}
    return Ok({**texts, "rng": RNG_NAME, "algs": [ALGORITHM]})


def status(unit: Unit, request: Message) -> Answer:
    flash = unit.board.read_flash()
    key = flash.private_key
    return Ok(
        {
            "state": unit.state,
            "slots": [DEFAULT_SLOT] if key else [],
            "spki_sha256": _sha256_hex(unit.board.public_key(key)) if key else "",
            "sealed": flash.seal_policy is not None,
            "last_error": unit.ram.last_error,
        }
    )


# --- the key ---


def keygen(unit: Unit, request: Message) -> Answer:
    """Compare and swap: a key that is there is replaced only when the request names it."""
    slot = fields.text(request, "slot", most=MAX_SLOT_CHARS)
    algorithm = fields.text(request, "alg")
    swapped = fields.digest(request, "if_spki").hex() if "if_spki" in request else ""
    seed = fields.blob(request, "seed", least=1, most=SEED_BYTES) if "seed" in request else b""
    if slot != DEFAULT_SLOT:
        return No(ErrorCode.ARG, "no such slot")
    if algorithm != ALGORITHM:
        return No(ErrorCode.UNSUPPORTED, "p256 only")
    flash = unit.board.read_flash()
    if flash.private_key:
        present = unit.board.public_key(flash.private_key)
        if _sha256_hex(present) != swapped:
            return Ok({"spki": fields.encode_blob(present), "existing": True})
    key = unit.board.new_key(seed)
    # A chain certifies the key that goes, so it goes in the same write.
    kept: dict[Obj, bytes] = {obj: raw for obj, raw in flash.objects.items() if obj is not Obj.CHAIN}
    unit.board.write_flash(replace(flash, private_key=key, objects=MappingProxyType(kept)))
    unit.ram.open, unit.ram.csr, unit.ram.is_verified = None, b"", False
    return Ok({"spki": fields.encode_blob(unit.board.public_key(key)), "existing": False})


def csr(unit: Unit, request: Message) -> Answer:
    if fields.text(request, "slot", most=MAX_SLOT_CHARS) != DEFAULT_SLOT:
        return No(ErrorCode.ARG, "no such slot")
    common_name = fields.text(request, "cn")
    unit.ram.csr = unit.board.request(unit.board.read_flash().private_key, common_name)
    return Ok({"len": len(unit.ram.csr), "sha256": _sha256_hex(unit.ram.csr)})


_PROVE_STATES: Mapping[int, frozenset[State]] = MappingProxyType(
    {
        Stage.KEYED: frozenset({State.KEYED, State.STAGED, State.CERTED, State.VERIFIED}),
        Stage.RESET: frozenset({State.CERTED, State.VERIFIED}),
        Stage.SEALED: frozenset({State.SEALED}),
    }
)


def prove(unit: Unit, request: Message) -> Answer:
    """Sign the nonce; a stage-2 proof in a boot after the COMMIT's makes the device VERIFIED."""
    slot = fields.text(request, "slot", most=MAX_SLOT_CHARS)
    nonce = fields.exact(request, "nonce", PROVE_NONCE_BYTES)
    stage = fields.integer(request, "stage", least=Stage.KEYED, most=Stage.SEALED)
    if slot != DEFAULT_SLOT:
        return No(ErrorCode.ARG, "no such slot")
    state = unit.state
    if state not in _PROVE_STATES[stage]:
        return No(ErrorCode.STATE, f"no stage {stage} in {state}")
    if stage == Stage.RESET and unit.ram.committed_txn:
        return No(ErrorCode.STATE, "stage 2 needs a reset after COMMIT")
    flash = unit.board.read_flash()
    digest = hashlib.sha256(unit.board.public_key(flash.private_key)).digest()
    message = prove_message(
        stage, unit.ram.sid, nonce, unit.ram.boot_id, flash.uid, flash.hardware_serial, slot, digest
    )
    signature = unit.board.sign(flash.private_key, message)
    unit.ram.is_verified = unit.ram.is_verified or stage == Stage.RESET
    return Ok({"sig": fields.encode_blob(signature)})


# --- writing objects ---


def begin(unit: Unit, request: Message) -> Answer:
    """Open a transaction in RAM and drop an open one; flash is not touched."""
    name = fields.text(request, "obj")
    length = fields.integer(request, "len")
    sha256 = fields.digest(request, "sha256")
    txn = fields.text(request, "txn", most=MAX_TXN_CHARS)
    if name == Obj.KEY:
        return No(ErrorCode.FORBIDDEN, "keys are made here")
    if name not in {Obj.CHAIN, Obj.CA, Obj.CONF}:
        return No(ErrorCode.ARG, "no such object to write")
    if length == 0:
        return No(ErrorCode.LEN, "nothing to write")
    if length > MAX_OBJECT_BYTES[Obj(name)]:
        return No(ErrorCode.NO_SPACE, f"{name} has room for {MAX_OBJECT_BYTES[Obj(name)]} bytes")
    unit.ram.open = Transaction(Obj(name), length, sha256, txn)
    unit.ram.is_verified = False  # what VERIFIED vouched for is about to change
    return Ok()


def data(unit: Unit, request: Message) -> Answer:
    """Append addressed bytes; bytes that are there already, unchanged, are fine."""
    offset = fields.integer(request, "off")
    piece = fields.blob(request, "b64", least=1, most=unit.chunk)
    stage = unit.ram.open
    if stage is None:
        return No(ErrorCode.STATE, "no transaction is open")
    end = offset + len(piece)
    if end > stage.length:
        return No(ErrorCode.LEN, f"beyond the {stage.length} bytes announced")
    if end <= len(stage.content) and stage.content[offset:end] == piece:
        return Ok({"off": end})
    if offset != len(stage.content):
        return No(ErrorCode.ARG, f"expected off {len(stage.content)}")
    stage.content += piece
    return Ok({"off": end})


def commit(unit: Unit, request: Message) -> Answer:
    """Check everything, then replace the object in one write; an error closes the transaction."""
    txn = fields.text(request, "txn", most=MAX_TXN_CHARS)
    if unit.ram.open is None:
        is_repeated = txn == unit.ram.committed_txn
        return Ok() if is_repeated else No(ErrorCode.ARG, "no such transaction")
    stage, unit.ram.open = unit.ram.open, None
    flash = unit.board.read_flash()
    wrong = _commit_fault(unit, flash, stage, txn)
    if wrong is not None:
        return wrong
    objects = MappingProxyType({**flash.objects, stage.obj: bytes(stage.content)})
    unit.board.write_flash(replace(flash, objects=objects))
    unit.ram.committed_txn = txn
    return Ok()


def _commit_fault(unit: Unit, flash: Flash, stage: Transaction, txn: str) -> No | None:
    content = bytes(stage.content)
    if txn != stage.txn:
        return No(ErrorCode.ARG, "another transaction is open")
    if len(content) != stage.length:
        return No(ErrorCode.LEN, f"{len(content)} of {stage.length} bytes")
    if hashlib.sha256(content).digest() != stage.sha256:
        return No(ErrorCode.HASH, "not the digest announced")
    own = unit.board.public_key(flash.private_key)
    if stage.obj is Obj.CHAIN and unit.board.certified_key(content) != own:
        return No(ErrorCode.KEY_MISMATCH, "the certificate is for another key")
    return None


# --- reading objects ---


def _stored(unit: Unit, request: Message) -> bytes | No:
    name = fields.text(request, "obj")
    if name == Obj.KEY:
        return No(ErrorCode.FORBIDDEN, "a key never leaves")
    if name not in set(Obj):
        return No(ErrorCode.ARG, "no such object")
    raw = unit.ram.csr if name == Obj.CSR else unit.board.read_flash().objects.get(Obj(name), b"")
    return raw or No(ErrorCode.STATE, "nothing there")


def read(unit: Unit, request: Message) -> Answer:
    offset = fields.integer(request, "off")
    length = fields.integer(request, "n", least=1, most=unit.chunk)
    raw = _stored(unit, request)
    if isinstance(raw, No):
        return raw
    if offset > len(raw):
        return No(ErrorCode.ARG, f"off is beyond {len(raw)}")
    return Ok({"off": offset, "b64": fields.encode_blob(raw[offset : offset + length])})


def digest(unit: Unit, request: Message) -> Answer:
    raw = _stored(unit, request)
    return raw if isinstance(raw, No) else Ok({"sha256": _sha256_hex(raw)})


# --- life ---


def set_time(unit: Unit, request: Message) -> Answer:
    """Move the time floor forward; an earlier time changes nothing."""
    unix = fields.integer(request, "unix", most=MAX_UNIX_TIME)
    fields.text(request, "src")
    flash = unit.board.read_flash()
    if unix > flash.time_floor:
        unit.board.write_flash(replace(flash, time_floor=unix))
    return Ok()


def reset(unit: Unit, request: Message) -> Answer:
    return Ok(is_reset=True)


def seal(unit: Unit, request: Message) -> Answer:
    """Close the device; sealed already is fine, and the first policy stays."""
    confirm = fields.text(request, "confirm")
    policy = fields.text(request, "policy")
    flash = unit.board.read_flash()
    if confirm != flash.hardware_serial:
        return No(ErrorCode.ARG, "confirm is not my serial")
    if policy not in set(SealPolicy):
        return No(ErrorCode.ARG, "no such policy")
    if flash.seal_policy is None:
        unit.board.write_flash(replace(flash, seal_policy=SealPolicy(policy)))
    return Ok({"sealed": True})


def connect(unit: Unit, request: Message) -> Answer:
    """Make the real connection that the device will make in the field; nothing in flash or RAM changes."""
    host = fields.text(request, "host")
    port = fields.integer(request, "port", least=1, most=65535)
    topic = fields.text(request, "topic")
    if not unit.board.has_network:
        return No(ErrorCode.UNSUPPORTED, "no network")
    try:
        unit.board.publish(host, port, topic)
    except NetFailure as failure:
        return No(ErrorCode.NET, str(failure))
    return Ok()


def erase(unit: Unit, request: Message) -> Answer:
    """Destroy key and objects; model, serial, uid and time floor are the board's and stay."""
    confirm = fields.text(request, "confirm")
    flash = unit.board.read_flash()
    if flash.seal_policy is SealPolicy.FINAL:
        return No(ErrorCode.SEALED, "sealed for good")
    if confirm != flash.hardware_serial:
        return No(ErrorCode.ARG, "confirm is not my serial")
    blank = replace(flash, private_key=b"", objects=MappingProxyType({}), seal_policy=None)
    if blank != flash:
        unit.board.write_flash(blank)
    unit.ram.open, unit.ram.csr, unit.ram.is_verified, unit.ram.committed_txn = None, b"", False, ""
    return Ok()


def _sha256_hex(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


# HELLO is not here: it makes the session that every other verb needs (spp1_device.py).
VERBS: Mapping[Verb, Callable[[Unit, Message], Answer]] = MappingProxyType(
    {
        Verb.IDENT: ident,
        Verb.STATUS: status,
        Verb.KEYGEN: keygen,
        Verb.CSR: csr,
        Verb.PROVE: prove,
        Verb.BEGIN: begin,
        Verb.DATA: data,
        Verb.COMMIT: commit,
        Verb.READ: read,
        Verb.HASH: digest,
        Verb.TIME: set_time,
        Verb.RESET: reset,
        Verb.SEAL: seal,
        Verb.ERASE: erase,
        Verb.CONNECT: connect,
    }
)
