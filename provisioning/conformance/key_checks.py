"""What docs/spp1.md, sections 4 and 6, asks of KEYGEN, CSR and PROVE: the key and the proofs that it is there."""

import hashlib
from collections.abc import Mapping
from functools import partial

from mtls.csr import CsrFault, verified_csr
from mtls.profiles import common_name
from provisioning.conformance.checking import Check
from provisioning.conformance.line import Failed
from provisioning.conformance.probe import CONF, KEY, Probe
from provisioning.possession import spki_der
from provisioning.spp1 import fields
from provisioning.spp1.protocol import (
    DEFAULT_SLOT,
    MAX_CSR_BYTES,
    SEED_BYTES,
    ErrorCode,
    Obj,
    Stage,
    State,
    Verb,
)

SEED = fields.encode_blob(b"conformance seed")
COMMON_NAME = "conformance-17"
NONCE = fields.encode_blob(b"n" * 32)
NOT_CANONICAL = NONCE[:-2] + chr(ord(NONCE[-2]) + 1) + "="  # the same 32 bytes, with a bit set that means nothing


def refusal(
    name: str,
    clause: str,
    must: str,
    state: State,
    code: ErrorCode,
    verb: Verb,
    values: Mapping[str, object],
    after: tuple[str, ...] = (),
) -> Check:
    """A check that is one request, refused with one code."""
    return Check(name, clause, must, state, partial(_refused, code, verb, values), after)


def _refused(code: ErrorCode, verb: Verb, values: Mapping[str, object], probe: Probe) -> None:
    probe.refused(code, verb, **values)


# --- KEYGEN ---


def _keygen(probe: Probe) -> None:
    _, existing = probe.keygen()
    if existing:
        raise Failed("a new key was called existing")
    probe.is_in(State.KEYED, "KEYGEN")


def _keygen_status(probe: Probe) -> None:
    reply = probe.ok(Verb.STATUS)
    if fields.texts(reply, "slots") != (DEFAULT_SLOT,):
        raise Failed(f"slots does not list {DEFAULT_SLOT}")
    if fields.digest(reply, "spki_sha256") != hashlib.sha256(probe.key()).digest():
        raise Failed("spki_sha256 is not the digest of the key that KEYGEN returns")


def _same_key(probe: Probe, before: bytes, **values: object) -> None:
    spki, existing = probe.keygen(**values)
    if spki != before:
        raise Failed("KEYGEN returned another key")
    if not existing:
        raise Failed("the key that was there was not called existing")


def _keygen_existing(probe: Probe) -> None:
    _same_key(probe, probe.key())


def _keygen_boot(probe: Probe) -> None:
    before = probe.key()
    probe.reset()
    if probe.key() != before:
        raise Failed("after a reset KEYGEN returned another key")


def _swap(probe: Probe) -> tuple[str, bytes]:
    """The digest of the key that was replaced, and the key that replaced it."""
    before = probe.key()
    named = hashlib.sha256(before).hexdigest()
    spki, existing = probe.keygen(if_spki=named)
    if spki == before or existing:
        raise Failed("the key that if_spki names was not replaced")
    return named, spki


def _keygen_swap(probe: Probe) -> None:
    _swap(probe)
    probe.is_in(State.KEYED, "replacing the key of a chain")


def _keygen_swap_other(probe: Probe) -> None:
    _same_key(probe, probe.key(), if_spki=hashlib.sha256(b"another key").hexdigest())


def _keygen_swap_again(probe: Probe) -> None:
    named, spki = _swap(probe)
    _same_key(probe, spki, if_spki=named)


def _keygen_seed(probe: Probe) -> None:
    first, _ = probe.keygen(seed=SEED)
    probe.erase()
    second, _ = probe.keygen(seed=SEED)
    if first == second:
        raise Failed("the same seed gave the same key")


_KEYGEN_ROWS: tuple[tuple[str, str, State, ErrorCode, dict[str, object]], ...] = (
    ("keygen-alg", "another alg: E_UNSUPPORTED", State.BLANK, ErrorCode.UNSUPPORTED, {**KEY, "alg": "rsa2048"}),
    ("keygen-slot", "another slot: E_ARG", State.BLANK, ErrorCode.ARG, {**KEY, "slot": "other"}),
    ("keygen-no-slot", "without slot: E_ARG", State.BLANK, ErrorCode.ARG, {"alg": KEY["alg"]}),
    ("keygen-if-spki", "a digest in upper case: E_ARG", State.KEYED, ErrorCode.ARG, {**KEY, "if_spki": "AB" * 32}),
    (
        "keygen-seed-long", "a seed of 33 bytes: E_ARG", State.BLANK, ErrorCode.ARG,
        {**KEY, "seed": fields.encode_blob(bytes(SEED_BYTES + 1))},
    ),
)  # fmt: skip


# --- CSR ---


def _csr_bytes(probe: Probe) -> bytes:
    reply = probe.ok(Verb.CSR, slot=DEFAULT_SLOT, cn=COMMON_NAME)
    length = fields.integer(reply, "len", least=1, most=MAX_CSR_BYTES)
    csr = probe.read(Obj.CSR, length)
    if hashlib.sha256(csr).digest() != fields.digest(reply, "sha256"):
        raise Failed("READ csr does not bring the bytes whose digest CSR announced")
    return csr


def _csr(probe: Probe) -> None:
    _csr_bytes(probe)


def _csr_signature(probe: Probe) -> None:
    try:
        verified_csr(_csr_bytes(probe), "the CSR")
    except CsrFault as fault:
        raise Failed(str(fault)) from None


def _csr_key(probe: Probe) -> None:
    if spki_der(verified_csr(_csr_bytes(probe), "the CSR")[1]) != probe.key():
        raise Failed("the CSR is for another key than KEYGEN returned")


def _csr_name(probe: Probe) -> None:
    if common_name(verified_csr(_csr_bytes(probe), "the CSR")[0].subject) != COMMON_NAME:
        raise Failed("the subject's CN is not cn")


def _csr_after_boot(probe: Probe) -> None:
    _csr_bytes(probe)
    probe.reset()
    probe.refused(ErrorCode.STATE, Verb.READ, obj=Obj.CSR, off=0, n=1)


def _csr_after_keygen(probe: Probe) -> None:
    _csr_bytes(probe)
    _swap(probe)
    probe.refused(ErrorCode.STATE, Verb.READ, obj=Obj.CSR, off=0, n=1)


_CSR_ROWS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("csr-slot", "another slot: E_ARG", {"slot": "other", "cn": COMMON_NAME}),
    ("csr-cn-long", "a cn of 65 characters: E_ARG", {"slot": DEFAULT_SLOT, "cn": "x" * 65}),
    ("csr-cn-ascii", "a cn that is no ASCII: E_ARG", {"slot": DEFAULT_SLOT, "cn": "caf\u00e9"}),
)


# --- PROVE ---


def _prove(probe: Probe) -> None:
    probe.prove(Stage.KEYED, probe.key())


def _prove_nonce(probe: Probe) -> None:
    spki = probe.key()
    probe.ok(Verb.PROVE, slot=DEFAULT_SLOT, nonce=NONCE, stage=int(Stage.KEYED))
    probe.prove(Stage.KEYED, spki)


def _prove_session(probe: Probe) -> None:
    spki, nonce = probe.key(), probe.new_nonce()
    probe.prove(Stage.KEYED, spki, nonce)
    probe.greet()
    probe.prove(Stage.KEYED, spki, nonce)


def _prove_boot(probe: Probe) -> None:
    spki, nonce = probe.key(), probe.new_nonce()
    probe.prove(Stage.KEYED, spki, nonce)
    probe.reset()
    probe.prove(Stage.KEYED, spki, nonce)


def _prove_stage(probe: Probe) -> None:
    spki = probe.key()
    probe.reset()
    probe.prove(Stage.RESET, spki)


def _prove_verifies(probe: Probe) -> None:
    probe.verify_key()
    probe.is_in(State.VERIFIED, "a stage-2 PROVE")


def _prove_same_boot(probe: Probe) -> None:
    probe.write(Obj.CONF, CONF)
    probe.refused(ErrorCode.STATE, Verb.PROVE, slot=DEFAULT_SLOT, nonce=NONCE, stage=int(Stage.RESET))


def _prove_stays(probe: Probe) -> None:
    probe.prove(Stage.KEYED, probe.key())
    probe.is_in(State.CERTED, "a stage-1 PROVE")


_STATE, _ARG = ErrorCode.STATE, ErrorCode.ARG
_PROVE_ROWS: tuple[tuple[str, str, State, ErrorCode, dict[str, object]], ...] = (
    ("prove-2-keyed", "stage 2 in KEYED: E_STATE", State.KEYED, _STATE, {"stage": 2}),
    ("prove-3-verified", "stage 3 before SEAL: E_STATE", State.VERIFIED, _STATE, {"stage": 3}),
    ("prove-stage-4", "a stage of 4: E_ARG", State.KEYED, _ARG, {"stage": 4}),
    ("prove-stage-1.0", "an integer written 1.0: E_ARG", State.KEYED, _ARG, {"stage": 1.0}),
    ("prove-nonce-31", "a nonce of 31 bytes: E_ARG", State.KEYED, _ARG, {"nonce": fields.encode_blob(b"n" * 31)}),
    ("prove-nonce-b64", "base64 that is not canonical: E_ARG", State.KEYED, _ARG, {"nonce": NOT_CANONICAL}),
    ("prove-slot", "another slot: E_ARG", State.KEYED, _ARG, {"slot": "other"}),
)
_PLAIN_PROVE: dict[str, object] = {"slot": DEFAULT_SLOT, "nonce": NONCE, "stage": 1}

KEY_CHECKS: tuple[Check, ...] = (
    Check("keygen", "4 KEYGEN", "makes a P-256 key, and BLANK is KEYED", State.BLANK, _keygen),
    Check("keygen-status", "4 STATUS", "slots and spki_sha256 name the key", State.KEYED, _keygen_status),
    Check("keygen-existing", "4 KEYGEN", "a key that is there is returned", State.KEYED, _keygen_existing),
    Check("keygen-boot", "4 KEYGEN", "the key survives a boot", State.KEYED, _keygen_boot, ("reset-keyed",)),
    Check("keygen-swap", "4 KEYGEN", "if_spki replaces key and chain", State.CERTED, _keygen_swap),
    Check("keygen-swap-other", "4 KEYGEN", "if_spki of another key changes nothing", State.KEYED,
          _keygen_swap_other, ("keygen-existing",)),
    Check("keygen-swap-again", "4 KEYGEN", "a repeated swap keeps the new key", State.KEYED,
          _keygen_swap_again, ("keygen-existing", "keygen-swap-other")),
    Check("keygen-seed", "4 KEYGEN", "a seed does not replace the generator", State.BLANK,
          _keygen_seed, ("erase-key",)),
    *(refusal(n, "4 KEYGEN", must, state, code, Verb.KEYGEN, v) for n, must, state, code, v in _KEYGEN_ROWS),
    Check("csr", "4 CSR", "READ brings the bytes that CSR announced", State.KEYED, _csr),
    Check("csr-signature", "4 CSR", "its signature is right", State.KEYED, _csr_signature, ("csr",)),
    Check("csr-key", "4 CSR", "it is for the slot's key", State.KEYED, _csr_key, ("csr-signature",)),
    Check("csr-cn", "4 CSR", "its subject's CN is cn", State.KEYED, _csr_name, ("csr-signature",)),
    Check("csr-boot", "2", "no csr after a boot: E_STATE", State.KEYED, _csr_after_boot, ("csr", "reset")),
    Check("csr-keygen", "2", "no csr after a new key: E_STATE", State.KEYED, _csr_after_keygen, ("csr",)),
    *(refusal(n, "4 CSR", must, State.KEYED, ErrorCode.ARG, Verb.CSR, v) for n, must, v in _CSR_ROWS),
    Check("prove", "6", "stage 1: the key signs this message", State.KEYED, _prove),
    Check("prove-nonce", "6", "every nonce gets a signature of its own", State.KEYED, _prove_nonce, ("prove",)),
    Check("prove-session", "6", "every session gets its own", State.KEYED, _prove_session, ("prove",)),
    Check("prove-boot", "6", "every boot gets its own", State.KEYED, _prove_boot, ("prove", "keygen-boot")),
    Check("prove-2", "6", "stage 2 is signed as stage 2", State.CERTED, _prove_stage, ("prove", "reset-certed")),
    Check("prove-2-verifies", "4 PROVE", "stage 2 makes CERTED VERIFIED", State.CERTED,
          _prove_verifies, ("reset-certed",)),
    Check("prove-2-boot", "4 PROVE", "stage 2 in COMMIT's boot: E_STATE", State.CERTED, _prove_same_boot),
    Check("prove-1-stays", "4 PROVE", "stage 1 does not make it VERIFIED", State.CERTED, _prove_stays, ("prove",)),
    *(refusal(n, "4 PROVE", must, state, code, Verb.PROVE, _PLAIN_PROVE | v)
      for n, must, state, code, v in _PROVE_ROWS),
)  # fmt: skip
