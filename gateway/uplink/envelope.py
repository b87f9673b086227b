"""What a message looks like upstream: its payload, and where and when it came in.

Every message carries the device that published it, the boot of the gateway that took it and its number among that
device's messages of that boot. These three together are unique: a consumer that has seen them has a duplicate
before it. Time is the gateway's own at that moment, with what the gateway then knew about its clock; no consumer
should order by time while the state is not `synced`. `replayed` says that the message came from the backlog: newer
ones of the same device may have come before it, and it may have been sent before.

Three forms: a JSON object around the payload (any broker, any protocol version), MQTT 5 user properties beside an
untouched payload, or nothing at all. Pure: text and bytes in, bytes and pairs out.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

VERSION: Final = 1  # of the JSON object; a consumer refuses one that it does not know


class Envelope(StrEnum):
    """[uplink] envelope."""

    JSON = "json"
    MQTT5 = "mqtt5"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Stamp:
    """Where and when a message came in. `device_id` is empty when the gateway itself is the origin."""

    device_id: str
    boot_id: str
    sequence: int
    time_us: int  # since 1970, by the gateway's clock
    time_state: str

    @property
    def time(self) -> str:
        """RFC 3339, UTC, milliseconds."""
        moment = datetime.fromtimestamp(self.time_us // 1_000_000, UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S}.{self.time_us // 1000 % 1000:03d}Z"


def to_json(stamp: Stamp, topic: str, payload: bytes, *, replayed: bool) -> bytes:
    """The JSON object: `payload` when the bytes are text, else `payload_base64`; never both."""
    found = {
        "v": VERSION,
        "device_id": stamp.device_id,
        "boot_id": stamp.boot_id,
        "sequence": stamp.sequence,
        "time": stamp.time,
        "time_state": stamp.time_state,
        "replayed": replayed,
        "topic": topic,
        **_body(payload),
    }
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


def _body(payload: bytes) -> dict[str, str]:
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # valid JSON, but many a database refuses it
        return {"payload_base64": base64.b64encode(payload).decode("ascii")}
    return {"payload": text}


def to_user_properties(stamp: Stamp, topic: str, *, replayed: bool) -> list[tuple[str, str]]:
    """The same facts as MQTT 5 user properties, in this order."""
    return [
        ("device_id", stamp.device_id),
        ("boot_id", stamp.boot_id),
        ("sequence", str(stamp.sequence)),
        ("time", stamp.time),
        ("time_state", stamp.time_state),
        ("replayed", "true" if replayed else "false"),
        ("topic", topic),
    ]
