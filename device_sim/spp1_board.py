"""What an SPP/1 device machine needs of its board, and the record that its flash holds.

`Board` is the hardware abstraction: a flash that is written whole or not at all, a random generator, P-256.
A C implementation has these calls to port and nothing else. `Flash` is what survives a power cut; the
device's state in flash follows from it and is stored nowhere twice. No file, no clock and no port here.
Specification: docs/spp1.md, sections 2 and 4; the JSON form is the simulator's own.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from provisioning.spp1.protocol import MAX_OBJECT_BYTES, MAX_TEXT_CHARS, Obj, SealPolicy

FORMAT = 1
WARNING = "INSECURE simulated device: this file is its flash and holds its private key in the clear"
STORED_OBJECTS = (Obj.CHAIN, Obj.CA, Obj.CONF)
MAX_KEY_BYTES = 512  # a P-256 PKCS#8 is 138

_IDENTITY = ("model", "hw", "fw", "hardware_serial", "uid")


class FlashFailure(Exception):
    """Writing failed and the old content is still there, or reading back failed."""


class NetFailure(Exception):
    """The connection could not be made or was refused; str() says why, in few words."""


class RngFailure(Exception):
    """The random generator is not healthy; nothing may be derived from it."""


@dataclass(frozen=True, slots=True)
class Flash:
    """The content of a device's flash. `private_key` is PKCS#8 DER, empty without a key."""

    hardware_serial: str
    uid: str
    model: str = "device-sim"
    hw: str = "1"
    fw: str = "0.1.0"
    private_key: bytes = field(default=b"", repr=False)
    objects: Mapping[Obj, bytes] = field(default_factory=lambda: MappingProxyType({}))
    seal_policy: SealPolicy | None = None
    time_floor: int = 0


class Board(Protocol):
    """The hardware below the machine. Each call but `publish` returns at once, or raises a failure above."""

    @property
    def has_network(self) -> bool:
        """Whether `publish` is there to be called: the capability `net`."""

    def read_flash(self) -> Flash:
        """What is in flash now, read and not remembered."""

    def write_flash(self, flash: Flash) -> None:
        """Replace the content as a whole; power lost at any moment leaves the old one or the new one."""

    def random(self, length: int) -> bytes:
        """Bytes that nobody can guess."""

    def new_key(self, seed: bytes) -> bytes:
        """A new P-256 private key, PKCS#8 DER; `seed` is mixed into the generator and never replaces it."""

    def public_key(self, private_key: bytes) -> bytes:
        """Its SubjectPublicKeyInfo, DER."""

    def sign(self, private_key: bytes, message: bytes) -> bytes:
        """ECDSA with SHA-256, DER."""

    def request(self, private_key: bytes, common_name: str) -> bytes:
        """A PKCS#10 request with that common name, signed by the key, DER."""

    def publish(self, host: str, port: int, topic: str) -> None:
        """Connect to a gateway over mutual TLS with the key in flash, publish once with QoS 1, and disconnect.

        `{id}` in the topic is the device's id. NetFailure unless the gateway acknowledged.
        """

    def certified_key(self, chain: bytes) -> bytes | None:
        """The SubjectPublicKeyInfo in the first certificate of a PEM chain; None when there is none."""


def flash_to_json(flash: Flash) -> str:
    """The flash as the text of a state file; it says itself that it holds a secret."""
    image: dict[str, Any] = {"WARNING": WARNING, "format": FORMAT}
    image |= {name: getattr(flash, name) for name in _IDENTITY}
    image["private_key"] = base64.b64encode(flash.private_key).decode("ascii")
    image["objects"] = {obj: base64.b64encode(raw).decode("ascii") for obj, raw in flash.objects.items()}
    image["seal_policy"] = flash.seal_policy
    image["time_floor"] = flash.time_floor
    return json.dumps(image, indent=2) + "\n"


def flash_from_json(text: bytes) -> Flash:
    """The flash in a state file. ValueError with a sentence about the first thing that is wrong."""
    try:
        image = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(image, dict) or image.get("format") != FORMAT:
        raise ValueError(f"it is not a simulated device's flash of format {FORMAT}")
    known = {"WARNING", "format", "private_key", "objects", "seal_policy", "time_floor", *_IDENTITY}
    if image.keys() != known:
        raise ValueError(f"its keys are not {', '.join(sorted(known))}")
    objects = image["objects"]
    if not isinstance(objects, dict) or not objects.keys() <= set(STORED_OBJECTS):
        raise ValueError(f"objects holds more than {', '.join(STORED_OBJECTS)}")
    return Flash(
        **{name: _text(image, name) for name in _IDENTITY},
        private_key=_binary(image["private_key"], "private_key", MAX_KEY_BYTES),
        objects=MappingProxyType(
            {Obj(name): _binary(raw, name, MAX_OBJECT_BYTES[Obj(name)]) for name, raw in objects.items()}
        ),
        seal_policy=None if image["seal_policy"] is None else _policy(image["seal_policy"]),
        time_floor=_number(image["time_floor"]),
    )


def _text(image: Mapping[str, Any], name: str) -> str:
    value = image[name]
    if not is_text(value):
        raise ValueError(f"{name} is not a text of 1 to {MAX_TEXT_CHARS} printable ASCII characters")
    return str(value)


def is_text(value: object) -> bool:
    """Whether `value` may travel as an SPP/1 text."""
    return (
        isinstance(value, str) and 1 <= len(value) <= MAX_TEXT_CHARS and all(" " <= letter <= "~" for letter in value)
    )


def _binary(value: object, name: str, most: int) -> bytes:
    try:
        raw = base64.b64decode(value.encode("ascii") if isinstance(value, str) else b"!", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError(f"{name} is not base64") from None
    if len(raw) > most:
        raise ValueError(f"{name} is longer than {most} bytes")
    return raw


def _policy(value: object) -> SealPolicy:
    if value not in set(SealPolicy):
        raise ValueError(f"seal_policy is neither null nor one of {', '.join(SealPolicy)}")
    return SealPolicy(str(value))


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("time_floor is not a number of seconds")
    return value
