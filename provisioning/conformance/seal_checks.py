"""What docs/spp1.md, section 4, asks of the order of verbs, of ERASE, CONNECT and SEAL.

The wrong order is the table TRANSITIONS read backwards: every verb that a state does not serve is asked there. A device
is sealed `erasable` for these checks, and erased again; what needs the policy `final` is judged only when asked for,
because it cannot be undone.
"""

from collections.abc import Callable, Mapping
from functools import partial

from provisioning.conformance.checking import Check, NotAsked
from provisioning.conformance.key_checks import COMMON_NAME, NONCE
from provisioning.conformance.line import Failed
from provisioning.conformance.object_checks import NO_DIGEST
from provisioning.conformance.probe import KEY, Probe
from provisioning.spp1 import fields
from provisioning.spp1.protocol import (
    DEFAULT_SLOT,
    TRANSITIONS,
    Capability,
    ErrorCode,
    Obj,
    SealPolicy,
    Stage,
    State,
    Verb,
    refusal_code,
)

NO_SERIAL = "no such serial"
NOBODY: Mapping[str, object] = {"host": "127.0.0.1", "port": 1, "topic": "devices/{id}/state"}

# --- the order ---

# A request of each verb that nothing but the state refuses; CONNECT depends on a capability and stands below.
PLAIN: Mapping[Verb, Mapping[str, object]] = {
    Verb.KEYGEN: KEY,
    Verb.CSR: {"slot": DEFAULT_SLOT, "cn": COMMON_NAME},
    Verb.PROVE: {"slot": DEFAULT_SLOT, "nonce": NONCE, "stage": 1},
    Verb.BEGIN: {"obj": Obj.CONF, "len": 2, "sha256": NO_DIGEST, "txn": "o"},
    Verb.DATA: {"off": 0, "b64": fields.encode_blob(b"x")},
    Verb.COMMIT: {"txn": "o"},
    Verb.READ: {"obj": Obj.CONF, "off": 0, "n": 1},
    Verb.TIME: {"unix": 1, "src": "conformance"},
    Verb.RESET: {},
}


def _out_of_order(verb: Verb, state: State, probe: Probe) -> None:
    confirmed = {"confirm": probe.known_identity.sn, "policy": SealPolicy.ERASABLE}
    probe.refused(refusal_code(state), verb, **(confirmed if verb is Verb.SEAL else PLAIN[verb]))


def _order_check(state: State, verb: Verb) -> Check:
    name, code = f"order-{state}-{verb}".lower(), refusal_code(state)
    return Check(name, "4", f"{verb} in {state}: {code}", state, partial(_out_of_order, verb, state))


OUT_OF_ORDER: tuple[tuple[State, Verb], ...] = tuple(
    (state, verb) for state in State for verb in (*PLAIN, Verb.SEAL) if state not in TRANSITIONS[verb]
)

# --- ERASE ---


def _erase(probe: Probe) -> None:
    """From wherever it is: when this fails nothing else can be brought anywhere."""
    if probe.greet().state is State.BLANK:
        probe.keygen()
    probe.erase()
    probe.is_in(State.BLANK, "ERASE")


def _erase_key(probe: Probe) -> None:
    before = probe.key()
    probe.erase()
    if probe.key() == before:
        raise Failed("after ERASE KEYGEN returned the key of before")


def _erase_objects(probe: Probe) -> None:
    probe.write(Obj.CA, probe.ca)
    probe.erase()
    probe.refused(ErrorCode.STATE, Verb.HASH, obj=Obj.CA)


def _erase_blank(probe: Probe) -> None:
    probe.erase()


def _erase_confirm(probe: Probe) -> None:
    probe.refused(ErrorCode.ARG, Verb.ERASE, confirm=NO_SERIAL)


# --- CONNECT ---


def _connect(probe: Probe) -> None:
    if Capability.NET in probe.session.capabilities:
        raise NotAsked("the device declares net")
    probe.refused(ErrorCode.UNSUPPORTED, Verb.CONNECT, **NOBODY)


def _connect_nobody(probe: Probe) -> None:
    if Capability.NET not in probe.session.capabilities:
        raise NotAsked("the device does not declare net")
    probe.refused(ErrorCode.NET, Verb.CONNECT, **NOBODY)


# --- SEAL ---


def _seal(probe: Probe) -> None:
    reply = probe.ok(Verb.SEAL, confirm=probe.known_identity.sn, policy=SealPolicy.ERASABLE)
    if not fields.flag(reply, "sealed"):
        raise Failed("SEAL was answered ok and sealed false")
    probe.is_in(State.SEALED, "SEAL")


def _seal_status(probe: Probe) -> None:
    if not fields.flag(probe.ok(Verb.STATUS), "sealed"):
        raise Failed("STATUS in SEALED says sealed false")


def _seal_again(probe: Probe) -> None:
    probe.seal()


def _seal_confirm(probe: Probe) -> None:
    probe.refused(ErrorCode.ARG, Verb.SEAL, confirm=NO_SERIAL, policy=SealPolicy.ERASABLE)


def _seal_policy(probe: Probe) -> None:
    probe.refused(ErrorCode.ARG, Verb.SEAL, confirm=probe.known_identity.sn, policy="for-now")


def _sealed_prove(probe: Probe) -> None:
    probe.prove(Stage.SEALED, probe.last_key)


def _sealed_serves(verb: Verb, values: Mapping[str, object]) -> Callable[[Probe], None]:
    def judge(probe: Probe) -> None:
        probe.ok(verb, **values)

    return judge


# --- SEAL with the policy `final` ---


def _only_if_asked(probe: Probe) -> None:
    if not probe.seal_final:
        raise NotAsked("seals for good: --seal-final")


def _first_policy_stays(probe: Probe) -> None:
    _only_if_asked(probe)
    probe.seal(SealPolicy.FINAL)
    probe.erase()
    probe.is_in(State.BLANK, "ERASE of a device sealed as erasable")


def _final(probe: Probe) -> None:
    _only_if_asked(probe)
    probe.seal(SealPolicy.FINAL)
    probe.refused(ErrorCode.SEALED, Verb.ERASE, confirm=probe.known_identity.sn)


ERASE_CHECKS: tuple[Check, ...] = (
    Check("erase", "4 ERASE", "leaves BLANK", None, _erase),
    Check("erase-key", "4 ERASE", "destroys the key", State.KEYED, _erase_key, ("erase",)),
    Check("erase-objects", "4 ERASE", "destroys the objects", State.KEYED, _erase_objects, ("erase",)),
    Check("erase-blank", "4 ERASE", "in BLANK: ok", State.BLANK, _erase_blank),
    Check("erase-confirm", "4 ERASE", "another confirm: E_ARG", State.KEYED, _erase_confirm),
)

SEAL_CHECKS: tuple[Check, ...] = (
    *(_order_check(state, verb) for state, verb in OUT_OF_ORDER if state is not State.SEALED),
    Check("connect", "4 CONNECT", "without net: E_UNSUPPORTED", State.VERIFIED, _connect),
    Check("connect-nobody", "4 CONNECT", "nobody listens there: E_NET", State.VERIFIED, _connect_nobody),
    Check("seal-confirm", "4 SEAL", "another confirm: E_ARG", State.VERIFIED, _seal_confirm),
    Check("seal-policy", "4 SEAL", "an unknown policy: E_ARG", State.VERIFIED, _seal_policy),
    Check("seal", "4 SEAL", "seals a VERIFIED device", State.VERIFIED, _seal),
    *(_order_check(state, verb) for state, verb in OUT_OF_ORDER if state is State.SEALED),
    Check("seal-status", "4 STATUS", "sealed is true in SEALED", State.SEALED, _seal_status),
    Check("seal-again", "4 SEAL", "in SEALED: ok", State.SEALED, _seal_again),
    Check("sealed-ident", "4 SEAL", "IDENT is served in SEALED", State.SEALED, _sealed_serves(Verb.IDENT, {})),
    Check("sealed-hash", "4 SEAL", "HASH is served in SEALED", State.SEALED,
          _sealed_serves(Verb.HASH, {"obj": Obj.CHAIN})),
    Check("sealed-prove", "6", "stage 3 is signed as stage 3", State.SEALED, _sealed_prove, ("prove",)),
    Check("sealed-erase-confirm", "4 ERASE", "another confirm: E_ARG", State.SEALED, _erase_confirm),
    Check("sealed-erase", "4 ERASE", "sealed as erasable: BLANK", State.SEALED, _erase, ("erase",)),
    Check("final-first", "4 SEAL", "the first policy stays", State.SEALED, _first_policy_stays),
    Check("final-erase", "4 ERASE", "sealed as final: E_SEALED", State.VERIFIED, _final),
)  # fmt: skip
