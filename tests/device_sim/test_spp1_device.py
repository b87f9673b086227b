"""The device's session layer: frames in any pieces, at most once within a boot, and the gate of the states."""

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_sim.simulated_board import SimulatedBoard, new_flash, open_state
from device_sim.spp1_device import Device, Send, Wake
from provisioning.spp1.protocol import State, Verb
from tests.device_sim.spp1_host import SERIAL, Host, b64, frame, in_state, messages
from tests.support.pki import Pki

SPECIFICATION = Path(__file__).parents[2] / "docs" / "spp1.md"


def specified_states() -> dict[tuple[str, str], set[str]]:
    """The table of section 4 as it stands in the document: (verb, state) -> states that ok may leave."""
    text = SPECIFICATION.read_text(encoding="utf-8")
    header = "| verb | " + " | ".join(State) + " |"
    rows = text[text.index(header) :].split("\n\n")[0].splitlines()[2:]
    table = {}
    for row in rows:
        verb, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        for state, cell in zip(State, cells, strict=True):
            table[verb, str(state)] = set(re.findall(r"\w+", cell))
    return table


ARGUMENTS: dict[str, dict[str, Any]] = {
    "KEYGEN": {"slot": "id", "alg": "p256"},
    "CSR": {"slot": "id", "cn": "dev-1"},
    "BEGIN": {"obj": "conf", "len": 1, "sha256": "0" * 64, "txn": "t9"},
    "DATA": {"off": 0, "b64": "eA=="},
    "COMMIT": {"txn": "t1"},
    "READ": {"obj": "chain", "off": 0, "n": 16},
    "HASH": {"obj": "chain"},
    "TIME": {"unix": 1_800_000_000, "src": "t"},
    "SEAL": {"confirm": SERIAL, "policy": "final"},
    "ERASE": {"confirm": SERIAL},
}
STAGE = {State.SEALED: 3, State.CERTED: 1}


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("verb", [verb for verb in Verb if verb is not Verb.HELLO])
def test_every_verb_in_every_state_is_as_the_document_says(verb: Verb, state: State, pki: Pki) -> None:
    """A filled cell is served and leaves one of its states; an empty one is E_STATE or E_SEALED and changes nothing."""
    host = in_state(state, pki, policy="erasable")
    assert host.ok("STATUS")["state"] == state
    values = ARGUMENTS.get(verb, {})
    if verb is Verb.PROVE:
        values = {"slot": "id", "nonce": b64(b"n" * 32), "stage": STAGE.get(state, 1)}
    if verb is Verb.HASH and state is State.STAGED:
        values = {"obj": "key"}  # nothing is stored yet: any answer but E_STATE shows that the state serves it
    reply = host.ask(verb, **values)
    cell = specified_states()[verb, state]
    refusal = "E_SEALED" if state is State.SEALED else "E_STATE"
    if verb is Verb.RESET and cell:
        host.hello()
    after = host.ok("STATUS")["state"]
    if not cell:
        assert reply.get("e") == refusal
        assert after == state
    elif reply["r"] == "ok":
        assert after in cell
    else:
        # Served, and refused for a reason of its own: no such object, no such transaction, the wrong digest.
        assert reply["e"] in {"E_ARG", "E_LEN", "E_FORBIDDEN", "E_UNSUPPORTED"} or verb in {Verb.READ, Verb.HASH}


def test_every_byte_by_itself_gives_the_same_replies() -> None:
    """Half frames: wherever the line is cut, the device answers once and the same."""
    host = Host()
    hello = frame({"s": "", "i": 1, "c": "HELLO", "proto": [1], "station": "t", "nonce": b64(b"1" * 16)})
    replies: list[dict[str, Any]] = []
    for byte in hello:
        replies += host.send(bytes([byte]))
    assert [reply["r"] for reply in replies] == ["ok"]
    sid = replies[0]["sid"]
    status = frame({"s": sid, "i": 2, "c": "STATUS"})
    for cut in range(1, len(status)):
        request = frame({"s": sid, "i": 2 + cut, "c": "STATUS"})
        assert host.send(request[:cut]) + host.send(request[cut:]) != []


@pytest.mark.parametrize("position", range(1, 60, 3))
def test_a_damaged_frame_is_answered_by_silence(position: int) -> None:
    """Every flipped byte breaks CRC or form; the device says nothing and the next frame is whole again."""
    host = Host()
    host.hello()
    good = bytearray(host.request("STATUS"))
    good[position] ^= 0x01
    assert host.send(bytes(good)) == []
    assert host.ok("IDENT")["sn"] == SERIAL


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600))
def test_no_bytes_crash_the_device(noise: bytes) -> None:
    """Whatever comes over the line, the device lives and answers the next HELLO."""
    host = Host()
    host.send(noise)
    assert host.hello()["state"] == "BLANK"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=80) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
NAMES = ["slot", "alg", "if_spki", "seed", "cn", "nonce", "stage", "obj", "len", "sha256", "txn", "off"]
NAMES += ["b64", "n", "unix", "src", "confirm", "policy", "proto", "station"]


@settings(max_examples=150, deadline=None)
@given(verb=st.sampled_from(list(Verb)), fields=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8))
def test_no_values_crash_a_verb(verb: str, fields: dict[str, Any]) -> None:
    """A field of any type and size is answered by ok or an error of the protocol, in one frame that fits."""
    host = Host()
    host.hello()
    host.keygen()
    data = host.request(verb, **fields)
    for reply in host.send(data):
        assert reply["r"] in {"ok", "err"}
        assert reply["r"] == "ok" or reply["e"].startswith("E_")


def test_a_repeated_request_is_replayed_and_not_repeated(pki: Pki) -> None:
    """Same i, same bytes: the same reply, byte for byte, and the key was made once."""
    host = Host()
    host.hello()
    request = host.request("KEYGEN", slot="id", alg="p256")
    first, second = host.send(request), host.send(request)
    assert first == second
    assert first[0]["existing"] is False


def test_the_same_number_with_other_bytes_is_refused_and_the_stored_reply_stays() -> None:
    """Same i, other CRC: E_ARG; the request that was answered can still be replayed."""
    host = Host()
    host.hello()
    request = host.request("IDENT")
    first = host.send(request)
    assert host.send(frame({"s": host.sid, "i": host.sequence, "c": "STATUS"}))[0]["e"] == "E_ARG"
    assert host.send(request) == first


def test_an_older_request_is_not_answered() -> None:
    """A late copy of an earlier request changes nothing and says nothing."""
    host = Host()
    host.hello()
    late = host.request("KEYGEN", slot="id", alg="p256")
    host.ok("IDENT")
    assert host.send(late) == []
    assert host.ok("STATUS")["state"] == "BLANK"


@pytest.mark.parametrize("sid", ["", b64(b"0" * 16), "x"])
def test_a_request_of_another_session_is_refused(sid: str) -> None:
    """Another sid, or none: E_SESSION, and nothing is done."""
    host = Host()
    host.hello()
    reply = host.send(frame({"s": sid, "i": 99, "c": "KEYGEN", "slot": "id", "alg": "p256"}))[0]
    assert (reply["e"], reply["s"], reply["i"]) == ("E_SESSION", sid, 99)
    assert host.ok("STATUS")["state"] == "BLANK"


def test_no_session_survives_a_reset() -> None:
    """After a reset the old sid is E_SESSION, boot id and sid are new."""
    host = Host()
    first = host.hello()
    host.ok("RESET")
    assert host.send(frame({"s": first["sid"], "i": 50, "c": "STATUS"}))[0]["e"] == "E_SESSION"
    second = host.hello()
    assert first["boot_id"] != second["boot_id"]
    assert first["sid"] != second["sid"]


def test_a_hello_with_the_same_nonce_is_replayed_and_another_opens_a_new_session() -> None:
    """The nonce tells a repeated HELLO from a new one; the boot id is the boot's, not the session's."""
    host = Host()
    hello = frame({"s": "", "i": 1, "c": "HELLO", "proto": [1], "station": "t", "nonce": b64(b"a" * 16)})
    first = host.send(hello)
    host.sid = first[0]["sid"]
    host.sequence = 1
    host.ok("IDENT")
    assert host.send(hello) == first
    assert host.ok("IDENT")["r"] == "ok"
    other = host.hello()
    assert other["sid"] != first[0]["sid"]
    assert other["boot_id"] == first[0]["boot_id"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"proto": [2, 3]}, "E_VERSION"),
        ({"proto": "1"}, "E_ARG"),
        ({"nonce": "AA=="}, "E_ARG"),
        ({"station": ""}, "E_ARG"),
        ({"station": "x" * 65}, "E_ARG"),
    ],
)
def test_a_hello_that_cannot_be_served_opens_no_session(fields: dict[str, Any], code: str) -> None:
    """No common version or a malformed field is refused, and the session before goes on."""
    host = Host()
    host.hello()
    hello = {"s": "", "i": 9, "c": "HELLO", "proto": [1], "station": "t", "nonce": b64(b"z" * 16)}
    assert host.send(frame(hello | fields))[0]["e"] == code
    host.sequence = 9
    assert host.ok("STATUS")["state"] == "BLANK"


def test_unknown_fields_and_versions_beside_ours_are_ignored() -> None:
    """A newer host is understood as far as it speaks our language."""
    host = Host()
    hello = {"s": "", "i": 1, "c": "HELLO", "proto": [7, 1], "station": "t", "nonce": b64(b"z" * 16), "later": {}}
    assert host.send(frame(hello))[0]["proto"] == 1


@pytest.mark.parametrize(
    "message",
    [
        {"i": 1, "c": "STATUS"},
        {"s": "", "c": "STATUS"},
        {"s": "", "i": 0, "c": "HELLO"},
        {"s": "", "i": True, "c": "HELLO"},
        {"s": 1, "i": 1, "c": "HELLO"},
        {"s": "", "i": 1},
        {"s": "", "i": 1, "c": "x" * 65},
    ],
)
def test_a_frame_that_is_nobodys_request_is_ignored(message: dict[str, Any]) -> None:
    """Without a usable s, i and c there is nothing to answer."""
    assert Host().send(frame(message)) == []


def test_an_unknown_verb_is_unsupported() -> None:
    """A verb of a later version is refused by name and does not end the session."""
    host = Host()
    host.hello()
    assert host.code("DANCE") == "E_UNSUPPORTED"
    assert host.ok("STATUS")["last_error"] == "E_UNSUPPORTED"


def test_lines_may_be_longer_after_hello_and_not_before() -> None:
    """256 bytes until HELLO agreed on more; then up to max_line."""
    host = Host()
    long_hello = {"s": "", "i": 1, "c": "HELLO", "proto": [1], "station": "t", "nonce": b64(b"z" * 16), "x": "y" * 200}
    assert host.send(frame(long_hello)) == []
    agreed = host.hello()
    assert agreed["max_line"] == 1024
    assert host.ask("STATUS", x="y" * 700)["r"] == "ok"
    assert host.send(host.request("STATUS", x="y" * 1100)) == []


def test_every_reply_fits_into_the_line_agreed() -> None:
    """Before HELLO 256 bytes, whatever the peer's own s is; afterwards max_line, a full READ included."""
    host = Host()
    effects = host.device.receive(frame({"s": "s" * 64, "i": 2**31 - 1, "c": "STATUS"}))
    assert all(len(effect.data.strip()) <= 256 for effect in effects if isinstance(effect, Send))
    hello = host.hello()
    host.keygen()
    content = b"c" * 2000
    for offset in range(0, 2000, hello["chunk"]):
        if not offset:
            host.begin("conf", content)
        host.ok("DATA", off=offset, b64=b64(content[offset : offset + hello["chunk"]]))
    host.ok("COMMIT", txn="t1")
    effects = host.device.receive(host.request("READ", obj="conf", off=0, n=hello["chunk"]))
    assert all(len(effect.data.strip()) <= 1024 for effect in effects if isinstance(effect, Send))
    assert len(base64.b64decode(messages(b"".join(e.data for e in effects if isinstance(e, Send)))[0]["b64"])) == 684


@settings(max_examples=80, deadline=None)
@given(
    sid=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=64), proto=st.sampled_from([[], "x"])
)
def test_no_session_id_pushes_a_reply_over_the_line(sid: str, proto: Any) -> None:
    """Quotes and backslashes double on the wire; the refusal still fits into 256 bytes."""
    host = Host()
    nonce = b64(b"z" * 16)
    for message in (
        {"s": sid, "i": 2**31 - 1, "c": "HELLO", "proto": proto, "station": "t", "nonce": nonce},
        {"s": sid, "i": 2**31 - 1, "c": "HELLO", "proto": [1], "station": "", "nonce": nonce},
        {"s": sid, "i": 2**31 - 1, "c": "STATUS"},
    ):
        effects = host.device.receive(frame(message))
        assert all(len(effect.data.strip()) <= 256 for effect in effects if isinstance(effect, Send))


def test_a_flash_that_cannot_be_read_is_told_and_survived(tmp_path: Path) -> None:
    """The state file is gone: E_FLASH to HELLO and to every verb, and all is well when it is back."""
    path = tmp_path / "dev.json"
    host = Host(SimulatedBoard(open_state(path, SERIAL), path))
    host.hello()
    path.rename(tmp_path / "away")
    assert host.code("STATUS") == "E_FLASH"
    hello = {"s": "", "i": 50, "c": "HELLO", "proto": [1], "station": "t", "nonce": b64(b"y" * 16)}
    assert host.send(frame(hello))[0]["e"] == "E_FLASH"
    (tmp_path / "away").rename(path)
    host.sequence = 60
    assert host.hello()["state"] == "BLANK"


def test_a_slow_verb_says_busy_and_is_done_once() -> None:
    """busy at once, busy again to a repetition, E_BUSY to anything else, and the reply when the time is over."""
    device = Device(SimulatedBoard(new_flash(SERIAL)), duration_ms={Verb.KEYGEN: 800})
    hello = frame({"s": "", "i": 1, "c": "HELLO", "proto": [1], "station": "t", "nonce": b64(b"z" * 16)})
    sid = messages(sent(device.receive(hello)))[0]["sid"]
    keygen = frame({"s": sid, "i": 2, "c": "KEYGEN", "slot": "id", "alg": "p256"})
    effects = device.receive(keygen)
    assert Wake(800) in effects
    assert messages(sent(effects))[0]["r"] == "busy"
    assert messages(sent(device.receive(keygen)))[0]["r"] == "busy"
    other = frame({"s": sid, "i": 3, "c": "STATUS"})
    assert messages(sent(device.receive(other)))[0]["e"] == "E_BUSY"
    done = messages(sent(device.wake()))[0]
    assert (done["r"], done["existing"]) == ("ok", False)
    assert messages(sent(device.receive(keygen)))[0] == done
    assert device.wake() == []


def sent(effects: list[Any]) -> bytes:
    return b"".join(effect.data for effect in effects if isinstance(effect, Send))
