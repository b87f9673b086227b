"""What a consumer upstream gets to read."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.uplink.envelope import Stamp, to_json, to_user_properties

STAMP = Stamp("press-07", "0f" * 8, 42, 1_764_068_645_123_456, "synced")


def test_the_json_envelope_says_who_when_and_which() -> None:
    """Every fact stands under its own name, the payload as text."""
    assert json.loads(to_json(STAMP, "devices/press-07/state", b"21.5", replayed=False)) == {
        "v": 1,
        "device_id": "press-07",
        "boot_id": "0f" * 8,
        "sequence": 42,
        "time": "2025-11-25T11:04:05.123Z",
        "time_state": "synced",
        "replayed": False,
        "topic": "devices/press-07/state",
        "payload": "21.5",
    }


@pytest.mark.parametrize("payload", [b"\xff\x00", b"a\x00b", b"\xed\xa0\x80"], ids=["bytes", "nul", "surrogate"])
def test_a_payload_that_is_no_text_comes_as_base64(payload: bytes) -> None:
    """Bytes are never repaired: they come whole, under another name."""
    found = json.loads(to_json(STAMP, "t", payload, replayed=True))
    assert "payload" not in found
    assert base64.b64decode(found["payload_base64"]) == payload


@given(st.binary(max_size=64))
def test_any_payload_comes_through_whole(payload: bytes) -> None:
    """Exactly one of the two forms is there, and it is the payload."""
    found = json.loads(to_json(STAMP, "t", payload, replayed=False))
    forms = [key for key in found if key.startswith("payload")]
    assert len(forms) == 1
    whole = found["payload"].encode() if forms == ["payload"] else base64.b64decode(found[forms[0]])
    assert whole == payload


def test_user_properties_say_the_same() -> None:
    """The MQTT 5 form has the same names and facts."""
    envelope = json.loads(to_json(STAMP, "t", b"x", replayed=True))
    found = dict(to_user_properties(STAMP, "t", replayed=True))
    assert found == {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in envelope.items()
        if key not in ("v", "payload")
    }


def test_a_time_before_1970_and_far_ahead_can_be_written() -> None:
    """A clock that is wrong by decades is still a time."""
    assert Stamp("", "", 1, -1, "unknown").time == "1969-12-31T23:59:59.999Z"
    assert Stamp("", "", 1, 4_102_444_800_000_000, "floor").time == "2100-01-01T00:00:00.000Z"
