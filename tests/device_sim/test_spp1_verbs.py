"""What each verb does to flash and RAM, its refusals, and power lost between any two requests."""

import base64
import hashlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from device_sim.faults import FaultyBoard, parse_faults
from device_sim.simulated_board import SimulatedBoard, new_flash
from provisioning.spp1.protocol import MAX_OBJECT_BYTES, Obj, State
from tests.device_sim.spp1_host import SERIAL, Host, b64, chain_for, in_state
from tests.support.pki import Pki


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def keyed() -> tuple[Host, bytes]:
    host = Host()
    host.hello()
    return host, host.keygen()


# --- KEYGEN ---


def test_keygen_makes_one_key_and_returns_it_again() -> None:
    """The second KEYGEN gives the first one's key."""
    host, spki = keyed()
    again = host.ok("KEYGEN", slot="id", alg="p256")
    assert again["existing"] is True
    assert base64.b64decode(again["spki"]) == spki
    assert len(spki) == 91
    assert host.ok("STATUS")["spki_sha256"] == sha256(spki)


def test_keygen_swaps_only_the_key_it_names() -> None:
    """A digest of another key changes nothing; the right one makes a new key, once."""
    host, spki = keyed()
    assert host.ok("KEYGEN", slot="id", alg="p256", if_spki="0" * 64)["existing"] is True
    swapped = host.ok("KEYGEN", slot="id", alg="p256", if_spki=sha256(spki))
    assert swapped["existing"] is False
    assert swapped["spki"] != b64(spki)
    # The request once more, as after a reset that swallowed the reply: the new key is safe.
    repeated = host.ok("KEYGEN", slot="id", alg="p256", if_spki=sha256(spki))
    assert (repeated["existing"], repeated["spki"]) == (True, swapped["spki"])


def test_a_swapped_key_takes_its_chain_with_it(pki: Pki) -> None:
    """CERTED falls back to KEYED; the chain of a key that is gone is gone."""
    host = in_state(State.CERTED, pki)
    before = host.ok("STATUS")["spki_sha256"]
    host.keygen(if_spki=before)
    assert host.ok("STATUS")["state"] == "KEYED"
    assert host.code("HASH", obj="chain") == "E_STATE"


def test_the_seed_does_not_decide_the_key() -> None:
    """Two devices given the same seed make different keys."""
    hosts = [Host(), Host()]
    for host in hosts:
        host.hello()
    assert len({host.keygen(seed=b64(b"s" * 32)) for host in hosts}) == 2


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"alg": "rsa2048"}, "E_UNSUPPORTED"),
        ({"slot": "other"}, "E_ARG"),
        ({"slot": "x" * 17}, "E_ARG"),
        ({"if_spki": "0" * 63}, "E_ARG"),
        ({"if_spki": "A" * 64}, "E_ARG"),
        ({"seed": ""}, "E_ARG"),
        ({"seed": b64(b"s" * 33)}, "E_ARG"),
        ({"seed": "not base64"}, "E_ARG"),
    ],
)
def test_keygen_refuses(values: dict[str, Any], code: str) -> None:
    """Each wrong field has its code, and no key is made."""
    host = Host()
    host.hello()
    assert host.code("KEYGEN", **{"slot": "id", "alg": "p256", **values}) == code
    assert host.ok("STATUS")["slots"] == []


def test_an_ill_generator_makes_no_key() -> None:
    """E_RNG, and the device stays BLANK."""
    host = Host(FaultyBoard(SimulatedBoard(new_flash(SERIAL)), parse_faults(["rng-error"])))
    host.hello()
    assert host.code("KEYGEN", slot="id", alg="p256") == "E_RNG"
    assert host.ok("STATUS")["state"] == "BLANK"


# --- CSR ---


def test_the_request_is_signed_by_the_slots_key() -> None:
    """A whole PKCS#10 request for the key that KEYGEN returned, read in pieces."""
    host, spki = keyed()
    made = host.ok("CSR", slot="id", cn="press-07")
    raw = b"".join(
        base64.b64decode(host.ok("READ", obj="csr", off=offset, n=100)["b64"]) for offset in range(0, made["len"], 100)
    )
    csr = x509.load_der_x509_csr(raw)
    assert csr.is_signature_valid
    assert csr.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki
    assert csr.subject.rfc4514_string() == "CN=press-07"
    assert (len(raw), sha256(raw)) == (made["len"], made["sha256"])


@pytest.mark.parametrize("end", ["KEYGEN", "ERASE", "RESET"])
def test_the_request_goes_with_its_key_or_its_boot(end: str) -> None:
    """There until the next KEYGEN that swaps, ERASE or boot."""
    host, spki = keyed()
    host.ok("CSR", slot="id", cn="press-07")
    values = {"KEYGEN": {"slot": "id", "alg": "p256", "if_spki": sha256(spki)}, "ERASE": {"confirm": SERIAL}}
    host.ok(end, **values.get(end, {}))
    host.hello()
    assert host.code("READ", obj="csr", off=0, n=10) == "E_STATE"


# --- PROVE ---


def test_a_proof_verifies_over_the_message_of_the_specification(pki: Pki) -> None:
    """Stages 1, 2 and 3 in their places, each over this session, this boot and this nonce."""
    host, spki = keyed()
    assert host.proves(1, spki)
    assert host.write("chain", chain_for(pki, spki)) == ""
    host.ok("RESET")
    host.hello()
    assert host.proves(2, spki)
    assert host.ok("STATUS")["state"] == "VERIFIED"
    host.ok("SEAL", confirm=SERIAL, policy="final")
    assert host.proves(3, spki)


def test_a_lying_proof_does_not_verify() -> None:
    """The twin: a device that signs with another key is found out."""
    host = Host(FaultyBoard(SimulatedBoard(new_flash(SERIAL)), parse_faults(["lying-prove"])))
    host.hello()
    spki = host.keygen()
    with pytest.raises(InvalidSignature):
        host.proves(1, spki)


def test_stage_two_needs_a_boot_after_the_commit(pki: Pki) -> None:
    """In the boot of the COMMIT it is E_STATE and the device stays CERTED."""
    host = in_state(State.CERTED, pki)
    assert host.prove(2) == "E_STATE"
    assert host.ok("STATUS")["state"] == "CERTED"
    host.ok("RESET")
    host.hello()
    assert host.prove(2) == ""
    assert host.ok("STATUS")["state"] == "VERIFIED"


def test_any_commit_asks_for_a_new_boot(pki: Pki) -> None:
    """VERIFIED, then another object written: no longer verified, and not again before a reset."""
    host = in_state(State.VERIFIED, pki)
    assert host.write("conf", b"{}") == ""
    assert host.ok("STATUS")["state"] == "CERTED"
    assert host.prove(2) == "E_STATE"
    assert host.code("SEAL", confirm=SERIAL, policy="final") == "E_STATE"


@pytest.mark.parametrize(
    ("state", "stage", "code"),
    [
        (State.KEYED, 2, "E_STATE"),
        (State.KEYED, 3, "E_STATE"),
        (State.STAGED, 2, "E_STATE"),
        (State.VERIFIED, 3, "E_STATE"),
        (State.SEALED, 1, "E_STATE"),
        (State.SEALED, 2, "E_STATE"),
        (State.KEYED, 0, "E_ARG"),
        (State.KEYED, 4, "E_ARG"),
    ],
)
def test_a_stage_out_of_its_place_is_refused(state: State, stage: int, code: str, pki: Pki) -> None:
    """A signature for a stage exists only in the states of that stage."""
    assert in_state(state, pki).prove(stage) == code


@pytest.mark.parametrize("nonce", [b"", b"n" * 31, b"n" * 33])
def test_a_nonce_has_its_length(nonce: bytes) -> None:
    """32 bytes; anything else is E_ARG."""
    host, _ = keyed()
    assert host.prove(1, nonce) == "E_ARG"


# --- BEGIN, DATA, COMMIT ---


def test_an_object_is_written_whole_and_read_back(pki: Pki) -> None:
    """BEGIN, DATA, COMMIT; HASH and READ give what was written."""
    host, spki = keyed()
    chain = chain_for(pki, spki)
    assert host.write("chain", chain) == ""
    assert host.ok("HASH", obj="chain")["sha256"] == sha256(chain)
    assert base64.b64decode(host.ok("READ", obj="chain", off=10, n=20)["b64"]) == chain[10:30]
    assert host.ok("READ", obj="chain", off=len(chain), n=20)["b64"] == ""
    assert host.code("READ", obj="chain", off=len(chain) + 1, n=20) == "E_ARG"


def test_nothing_is_in_flash_before_the_commit(pki: Pki) -> None:
    """Until COMMIT the old object is served, by READ and HASH, and by a device that lost power."""
    host, _ = keyed()
    assert host.write("conf", b"old") == ""
    host.begin("conf", b"new", "t2")
    host.ok("DATA", off=0, b64=b64(b"new"))
    assert host.ok("HASH", obj="conf")["sha256"] == sha256(b"old")
    host.power_on()
    assert host.hello()["state"] == "KEYED"
    assert host.ok("HASH", obj="conf")["sha256"] == sha256(b"old")
    assert host.code("COMMIT", txn="t2") == "E_ARG"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"obj": "key"}, "E_FORBIDDEN"),
        ({"obj": "csr"}, "E_ARG"),
        ({"obj": "other"}, "E_ARG"),
        ({"len": 0}, "E_LEN"),
        ({"len": MAX_OBJECT_BYTES[Obj.CONF] + 1}, "E_NOSPACE"),
        ({"len": -1}, "E_ARG"),
        ({"sha256": "x"}, "E_ARG"),
        ({"txn": ""}, "E_ARG"),
        ({"txn": "x" * 33}, "E_ARG"),
    ],
)
def test_begin_refuses(values: dict[str, Any], code: str) -> None:
    """Each wrong field has its code, and no transaction is open."""
    host, _ = keyed()
    assert host.code("BEGIN", **{"obj": "conf", "len": 3, "sha256": "0" * 64, "txn": "t", **values}) == code
    assert host.ok("STATUS")["state"] == "KEYED"


def test_data_is_addressed() -> None:
    """The same bytes again are fine; a gap, other bytes, or more than announced are not, and move nothing."""
    host, _ = keyed()
    host.begin("conf", b"abcdef")
    assert host.ok("DATA", off=0, b64=b64(b"abcd"))["off"] == 4
    assert host.ok("DATA", off=0, b64=b64(b"abcd"))["off"] == 4
    assert host.ok("DATA", off=1, b64=b64(b"bc"))["off"] == 3
    assert host.code("DATA", off=5, b64=b64(b"f")) == "E_ARG"
    assert host.code("DATA", off=2, b64=b64(b"XX")) == "E_ARG"
    assert host.code("DATA", off=4, b64=b64(b"efg")) == "E_LEN"
    assert host.code("DATA", off=4, b64="") == "E_ARG"
    assert host.code("DATA", off=4, b64=b64(b"x" * 685)) == "E_ARG"
    assert host.ok("DATA", off=4, b64=b64(b"ef"))["off"] == 6
    host.ok("COMMIT", txn="t1")
    assert host.ok("HASH", obj="conf")["sha256"] == sha256(b"abcdef")


@pytest.mark.parametrize(
    ("sent", "announced", "txn", "code"),
    [
        (b"abc", sha256(b"abc"), "other", "E_ARG"),
        (b"ab", sha256(b"abc"), "t1", "E_LEN"),
        (b"abd", sha256(b"abc"), "t1", "E_HASH"),
    ],
)
def test_a_commit_that_does_not_fit_closes_the_transaction(sent: bytes, announced: str, txn: str, code: str) -> None:
    """Wrong txn, length or digest: the old object stays, and the right COMMIT comes too late."""
    host, _ = keyed()
    assert host.write("conf", b"old", "t0") == ""
    host.ok("BEGIN", obj="conf", len=3, sha256=announced, txn="t1")
    host.ok("DATA", off=0, b64=b64(sent))
    assert host.code("COMMIT", txn=txn) == code
    assert host.ok("STATUS")["state"] == "KEYED"
    assert host.code("COMMIT", txn="t1") == "E_ARG"
    assert host.ok("HASH", obj="conf")["sha256"] == sha256(b"old")


def test_a_chain_for_another_key_is_refused(pki: Pki) -> None:
    """E_KEYMISMATCH, also for a chain that is no certificate; the device stays KEYED."""
    host, _ = keyed()
    _, other = keyed()
    assert host.write("chain", chain_for(pki, other)) == "E_KEYMISMATCH"
    assert host.write("chain", b"no certificate") == "E_KEYMISMATCH"
    assert host.write("chain", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n") == "E_KEYMISMATCH"
    assert host.ok("STATUS")["state"] == "KEYED"


def test_the_last_commit_may_be_repeated() -> None:
    """The same txn again in the same boot: ok, and nothing moves; an older one: E_ARG."""
    host, _ = keyed()
    assert host.write("conf", b"one", "t1") == ""
    assert host.write("conf", b"two", "t2") == ""
    host.ok("COMMIT", txn="t2")
    assert host.code("COMMIT", txn="t1") == "E_ARG"
    assert host.ok("HASH", obj="conf")["sha256"] == sha256(b"two")


def test_a_flash_that_fails_keeps_the_old_object() -> None:
    """E_FLASH, the old object stays, and the state is the one before BEGIN."""
    board = SimulatedBoard(new_flash(SERIAL))
    host = Host(board)
    host.hello()
    host.keygen()
    assert host.write("conf", b"old") == ""
    faulty = FaultyBoard(board, parse_faults(["flash-error=COMMIT"]))
    host.board = faulty
    host.power_on()
    host.hello()
    faulty.verb = "COMMIT"
    assert host.write("conf", b"new") == "E_FLASH"
    assert host.ok("STATUS")["last_error"] == "E_FLASH"
    assert host.ok("STATUS")["state"] == "KEYED"
    assert board.read_flash().objects == {"conf": b"old"}


# --- READ, HASH ---


@pytest.mark.parametrize("state", [state for state in State if state is not State.SEALED])
def test_the_private_key_is_never_read(state: State, pki: Pki) -> None:
    """E_FORBIDDEN in every state, by READ and by HASH."""
    host = in_state(state, pki)
    assert host.code("READ", obj="key", off=0, n=16) == "E_FORBIDDEN"
    assert host.code("HASH", obj="key") == "E_FORBIDDEN"


def test_hash_is_of_what_flash_holds_now() -> None:
    """Rotten flash gives another digest: HASH reads back, it does not remember."""
    board = FaultyBoard(SimulatedBoard(new_flash(SERIAL)), parse_faults(["wrong-digest"]))
    host = Host(board)
    host.hello()
    host.keygen()
    assert host.write("conf", b"good") == ""
    board.verb = "HASH"
    assert host.ok("HASH", obj="conf")["sha256"] != sha256(b"good")


# --- TIME, SEAL, ERASE ---


def test_time_goes_forward_only(pki: Pki) -> None:
    """An earlier time is ok and changes nothing; after SEAL it is refused."""
    host, _ = keyed()
    for unix in (100, 300, 200):
        host.ok("TIME", unix=unix, src="station")
    assert host.board.read_flash().time_floor == 300
    assert host.code("TIME", unix=-1, src="x") == "E_ARG"
    assert in_state(State.SEALED, pki).code("TIME", unix=400, src="x") == "E_SEALED"


@pytest.mark.parametrize(("confirm", "policy"), [("SN-0002", "final"), (SERIAL, "whenever")])
def test_a_seal_needs_the_serial_and_a_policy(confirm: str, policy: str, pki: Pki) -> None:
    """Another serial or an unknown policy is E_ARG and seals nothing."""
    host = in_state(State.VERIFIED, pki)
    assert host.code("SEAL", confirm=confirm, policy=policy) == "E_ARG"
    assert host.ok("STATUS")["sealed"] is False


def test_a_seal_survives_power_and_keeps_its_policy(pki: Pki) -> None:
    """Sealed is sealed after a boot; sealing again is ok and does not loosen it."""
    host = in_state(State.SEALED, pki)
    host.power_on()
    assert host.hello()["state"] == "SEALED"
    host.ok("SEAL", confirm=SERIAL, policy="erasable")
    assert host.code("ERASE", confirm=SERIAL) == "E_SEALED"
    assert host.ok("STATUS")["sealed"] is True


def test_an_erasable_seal_may_be_erased_by_serial(pki: Pki) -> None:
    """The twin: with the serial as confirmation everything is destroyed, and erasing again is ok."""
    host = in_state(State.SEALED, pki, policy="erasable")
    assert host.code("ERASE", confirm="SN-0002") == "E_ARG"
    host.ok("ERASE", confirm=SERIAL)
    flash = host.board.read_flash()
    assert (flash.private_key, dict(flash.objects), flash.seal_policy) == (b"", {}, None)
    assert host.ok("STATUS")["state"] == "BLANK"
    host.ok("ERASE", confirm=SERIAL)


# --- power loss between the steps ---


def steps(pki: Pki) -> list[str]:
    """The burn's requests by name; each is asked of a host below."""
    return ["keygen", "csr", "begin", "data", "commit", "reset", "prove", "seal"]


def take(host: Host, step: str, pki: Pki) -> None:
    """One step of a burn, as a station would repeat it after it found the device again."""
    flash = host.board.read_flash()
    spki = host.board.public_key(flash.private_key) if flash.private_key else b""
    if step == "keygen":
        host.keygen()
    elif step == "csr":
        host.ok("CSR", slot="id", cn="d")
    elif step == "begin":
        host.begin("chain", b"x" * 600, "tx")
    elif step == "data":
        host.begin("chain", b"x" * 600, "tx")
        host.ok("DATA", off=0, b64=b64(b"x" * 600))
    elif step == "commit":
        assert host.write("chain", chain_for(pki, spki)) == ""
    elif step == "reset":
        host.ok("RESET")
        host.hello()
    elif step == "prove":
        assert host.prove(2) == ""
    else:
        host.ok("SEAL", confirm=SERIAL, policy="final")


SURVIVES = {"keygen": "KEYED", "csr": "KEYED", "begin": "KEYED", "data": "KEYED", "commit": "CERTED"}
SURVIVES |= {"reset": "CERTED", "prove": "CERTED", "seal": "SEALED"}


@pytest.mark.parametrize("last", SURVIVES)
def test_power_lost_after_any_step_leaves_a_whole_state(last: str, pki: Pki) -> None:
    """What was in flash is there, what was in RAM is gone, and the burn can be finished from there."""
    host = Host()
    host.hello()
    names = steps(pki)
    for step in names[: names.index(last) + 1]:
        take(host, step, pki)
    host.power_on()
    assert host.hello()["state"] == SURVIVES[last]
    if SURVIVES[last] == "KEYED":
        take(host, "commit", pki)
        take(host, "reset", pki)
    if SURVIVES[last] != "SEALED":
        take(host, "prove", pki)
        take(host, "seal", pki)
    assert host.ok("STATUS")["state"] == "SEALED"
