"""SPP/1's tables are whole, fit the line that every device has, and say what the specification says."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.spp1 import fields
from provisioning.spp1.frames import INITIAL_MAX_LINE, LARGEST_MAX_LINE, crc32, encode_frame
from provisioning.spp1.protocol import (
    BOOT_ID_BYTES,
    DATA_OVERHEAD_BYTES,
    HELLO_NONCE_BYTES,
    LARGEST_CHUNK_BYTES,
    MAX_OBJECT_BYTES,
    MAX_SEQUENCE,
    MAX_SIGNATURE_BYTES,
    MAX_SLOT_CHARS,
    MAX_TEXT_CHARS,
    MAX_TXN_CHARS,
    MIN_CHUNK_BYTES,
    P256_SPKI_BYTES,
    PROVE_NONCE_BYTES,
    SEED_BYTES,
    SID_BYTES,
    TIMING,
    TRANSITIONS,
    ErrorCode,
    SealPolicy,
    State,
    Verb,
    chunk_limit,
    prove_message,
    refusal_code,
)

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "spp1.md").read_text(encoding="utf-8")

SID = fields.encode_blob(bytes(SID_BYTES))
NAME, SLOT, TXN, HEX = "n" * MAX_TEXT_CHARS, "s" * MAX_SLOT_CHARS, "t" * MAX_TXN_CHARS, "f" * 64


def blob(length: int) -> str:
    return fields.encode_blob(bytes(length))


LONGEST_REQUESTS: dict[Verb, dict[str, object]] = {
    Verb.HELLO: {"proto": [1], "station": NAME, "nonce": blob(HELLO_NONCE_BYTES)},
    Verb.IDENT: {},
    Verb.STATUS: {},
    Verb.KEYGEN: {"slot": SLOT, "alg": "p256", "if_spki": HEX, "seed": blob(SEED_BYTES)},
    Verb.CSR: {"slot": SLOT, "cn": NAME},
    Verb.PROVE: {"slot": SLOT, "nonce": blob(PROVE_NONCE_BYTES), "stage": 3},
    Verb.BEGIN: {"obj": "chain", "len": 8192, "sha256": HEX, "txn": TXN},
    Verb.DATA: {"off": 8192, "b64": blob(chunk_limit(INITIAL_MAX_LINE))},
    Verb.COMMIT: {"txn": TXN},
    Verb.READ: {"obj": "chain", "off": 8192, "n": LARGEST_CHUNK_BYTES},
    Verb.HASH: {"obj": "chain"},
    Verb.TIME: {"unix": 2**53 - 1, "src": NAME},
    Verb.RESET: {},
    Verb.SEAL: {"confirm": NAME, "policy": SealPolicy.ERASABLE},
    Verb.ERASE: {"confirm": NAME},
    Verb.CONNECT: {"host": NAME, "port": 65535, "topic": NAME},
}


@pytest.mark.parametrize("verb", Verb)
def test_the_longest_request_fits_into_the_shortest_line(verb: Verb) -> None:
    """A device with a line buffer of 256 bytes can be burned."""
    message = {"s": "" if verb is Verb.HELLO else SID, "i": MAX_SEQUENCE, "c": verb, **LONGEST_REQUESTS[verb]}
    encode_frame(message, max_line=INITIAL_MAX_LINE)


LONGEST_REPLIES: dict[str, dict[str, object]] = {
    "KEYGEN": {"spki": blob(P256_SPKI_BYTES), "existing": False},
    "PROVE": {"sig": blob(MAX_SIGNATURE_BYTES)},
    "READ": {"off": 8192, "b64": blob(chunk_limit(INITIAL_MAX_LINE))},
    "HELLO": {"proto": 1, "sid": SID, "max_line": 4096, "chunk": 2048, "caps": ["import_key"], "state": "VERIFIED",
              "boot_id": blob(BOOT_ID_BYTES)},
}  # fmt: skip


@pytest.mark.parametrize("name", LONGEST_REPLIES)
def test_the_longest_reply_of_fixed_size_fits_into_the_shortest_line(name: str) -> None:
    """The same the other way round."""
    encode_frame({"s": SID, "i": MAX_SEQUENCE, "r": "ok", **LONGEST_REPLIES[name]}, max_line=INITIAL_MAX_LINE)


@given(st.integers(INITIAL_MAX_LINE, LARGEST_MAX_LINE))
def test_a_chunk_of_the_limit_fits_its_line(max_line: int) -> None:
    """The reserve for everything but the base64 is enough at every line length, and never wastes a quarter."""
    chunk = chunk_limit(max_line)
    message = {"s": SID, "i": MAX_SEQUENCE, "c": "DATA", "off": max(MAX_OBJECT_BYTES.values()), "b64": blob(chunk)}
    assert len(encode_frame(message)) - 2 <= max_line
    assert chunk >= MIN_CHUNK_BYTES
    assert (chunk + 3) * 4 // 3 > max_line - DATA_OVERHEAD_BYTES - 4


def test_every_verb_has_its_row_in_every_table() -> None:
    """No verb without time limits, no verb without states."""
    assert set(TIMING) == set(TRANSITIONS) == set(Verb)


def test_what_a_sealed_device_serves_is_exactly_this() -> None:
    """After SEAL nothing can be changed: reading, proving, and what is idempotent."""
    served = {verb for verb, rows in TRANSITIONS.items() if State.SEALED in rows}
    assert served == {Verb.HELLO, Verb.IDENT, Verb.STATUS, Verb.HASH, Verb.PROVE, Verb.SEAL, Verb.ERASE}
    assert refusal_code(State.SEALED) is ErrorCode.SEALED
    assert {refusal_code(state) for state in State if state is not State.SEALED} == {ErrorCode.STATE}


def test_only_a_proof_leads_to_verified_and_only_verified_to_sealed() -> None:
    """The two moves that PASS rests on have one way each."""
    to_verified = {(verb, state) for verb, rows in TRANSITIONS.items() for state, after in rows.items()
                   if State.VERIFIED in after and state is not State.VERIFIED}  # fmt: skip
    to_sealed = {(verb, state) for verb, rows in TRANSITIONS.items() for state, after in rows.items()
                 if State.SEALED in after and state is not State.SEALED}  # fmt: skip
    assert to_verified == {(Verb.PROVE, State.CERTED)}
    assert to_sealed == {(Verb.SEAL, State.VERIFIED)}


# --- proof of possession

VECTOR = (2, b"\x11" * 16, b"\x22" * 32, b"\x33" * 16, "chip-7", "SN-0001", "id", b"\x44" * 32)


def test_the_prove_message_is_built_as_the_specification_says() -> None:
    """Byte by byte, written out by hand."""
    expected = (
        b"SPP1-PROVE-v1\x00\x02"
        + b"\x00\x10" + b"\x11" * 16
        + b"\x00\x20" + b"\x22" * 32
        + b"\x00\x10" + b"\x33" * 16
        + b"\x00\x06chip-7\x00\x07SN-0001\x00\x02id"
        + b"\x00\x20" + b"\x44" * 32
    )  # fmt: skip
    assert prove_message(*VECTOR) == expected


def test_moving_a_character_between_two_fields_changes_the_message() -> None:
    """The lengths in front make the fields unambiguous."""
    stage, sid, nonce, boot, _, _, slot, digest = VECTOR
    assert prove_message(stage, sid, nonce, boot, "ab", "c", slot, digest) != prove_message(
        stage, sid, nonce, boot, "a", "bc", slot, digest
    )


# --- the page for firmware engineers


def table_rows(first_cell: str) -> dict[str, list[str]]:
    """The rows of the table whose header starts with `first_cell`."""
    lines = PAGE.split(f"| {first_cell} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_page_has_the_table_of_states() -> None:
    """docs/spp1.md and TRANSITIONS are the same table."""
    rows = table_rows("verb | BLANK")
    expected = {str(verb): [", ".join(TRANSITIONS[verb].get(state, ())) for state in State] for verb in Verb}
    assert rows == expected


def test_the_page_has_the_table_of_times() -> None:
    """docs/spp1.md and TIMING are the same table."""
    expected = {
        str(verb): [f"{timing.timeout_s:g} s", str(timing.tries), f"{timing.busy_total_s:g} s"]
        for verb, timing in TIMING.items()
    }
    assert table_rows("verb | wait for a reply") == expected


def test_the_page_has_every_verb_and_every_error() -> None:
    """Nothing that the code knows is missing for who implements it elsewhere."""
    assert set(re.findall(r"^\*\*([A-Z]+)\*\*", PAGE, re.MULTILINE)) == {str(verb) for verb in Verb}
    assert set(table_rows("code")) == {str(code) for code in ErrorCode}


def test_the_pages_example_and_vector_are_right() -> None:
    """The figures that an implementer checks against."""
    message = prove_message(*VECTOR)
    assert f"a message of {len(message)} bytes" in PAGE
    assert hashlib.sha256(message).hexdigest() in PAGE
    (example,) = re.findall(r"⏎!P1 (\{.*?\}) \*([0-9a-f]{8})⏎", PAGE)
    assert example[1] == f"{crc32(example[0].encode()):08x}"


# --- values

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=80)),
    lambda inner: st.one_of(st.lists(inner, max_size=20), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=25,
)
READERS = {
    "text": lambda message: fields.text(message, "x"),
    "texts": lambda message: fields.texts(message, "x"),
    "integer": lambda message: fields.integer(message, "x"),
    "integers": lambda message: fields.integers(message, "x"),
    "flag": lambda message: fields.flag(message, "x"),
    "blob": lambda message: fields.blob(message, "x", most=40),
    "digest": lambda message: fields.digest(message, "x"),
    "member": lambda message: fields.member(message, "x", State),
}


@given(st.sampled_from(sorted(READERS)), json_values)
def test_a_field_is_of_its_kind_or_a_fault_that_does_not_echo_it(reader: str, value: object) -> None:
    """Whatever stands in a field: a value within its limits, or a FieldFault naming the field."""
    said = "x is fine"
    try:
        READERS[reader]({"x": value})
    except fields.FieldFault as fault:
        said = str(fault)
    assert said.startswith("x ")
    assert len(said) < 100


@pytest.mark.parametrize(
    ("reader", "value"),
    [
        ("text", ""), ("text", "a" * 65), ("text", "a\x07"), ("text", "é"), ("integer", True), ("integer", 1.0),
        ("integer", -1), ("integer", 2**31), ("texts", ["a"] * 17), ("flag", 1), ("blob", "QQ"), ("blob", "QR=="),
        ("blob", "QQ==\n"), ("blob", "-_=="), ("digest", "A" * 64), ("digest", "a" * 63), ("member", "blank"),
    ],
)  # fmt: skip
def test_a_value_beyond_its_limits_is_refused(reader: str, value: object) -> None:
    """Each limit of section 2, one step beyond."""
    with pytest.raises(fields.FieldFault):
        READERS[reader](json.loads(json.dumps({"x": value})))


@given(st.binary(max_size=40))
def test_binary_travels_both_ways(value: bytes) -> None:
    """The allow of the row above."""
    assert fields.blob({"x": fields.encode_blob(value)}, "x", most=40) == value
