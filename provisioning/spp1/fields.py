"""Typed, bounded access to the fields of an SPP/1 message; both sides read what the other says through it.

Every reader names the field it wants and the limits it accepts, and raises FieldFault for anything else: a
value of the wrong type, too long, out of range, not canonical base64. Unknown fields are ignored, as the
protocol wants. Nothing is repaired and nothing is echoed: a fault names the field, never the peer's value.
Specification: docs/spp1.md, "Values".
"""

import base64
import binascii
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from provisioning.spp1.protocol import MAX_LIST_ITEMS, MAX_SEQUENCE, MAX_TEXT_CHARS, SHA256_BYTES

Message = Mapping[str, Any]
Choice = TypeVar("Choice", bound=StrEnum)

_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


class FieldFault(ValueError):
    """A field that is missing or not what the protocol allows; str() names it."""


def encode_blob(value: bytes) -> str:
    """Binary as it travels: base64 with padding, one line."""
    return base64.b64encode(value).decode("ascii")


def text(message: Message, name: str, *, most: int = MAX_TEXT_CHARS, least: int = 1) -> str:
    """A text of `least` to `most` printable ASCII characters."""
    value = message.get(name)
    if not isinstance(value, str) or not least <= len(value) <= most or not _PRINTABLE.fullmatch(value):
        raise FieldFault(f"{name} is not a text of {least} to {most} printable characters")
    return value


def texts(message: Message, name: str) -> tuple[str, ...]:
    """A list of at most MAX_LIST_ITEMS texts."""
    value = message.get(name)
    if not isinstance(value, list) or len(value) > MAX_LIST_ITEMS:
        raise FieldFault(f"{name} is not a list of at most {MAX_LIST_ITEMS} texts")
    return tuple(text({name: item}, name) for item in value)


def integer(message: Message, name: str, *, most: int = MAX_SEQUENCE, least: int = 0) -> int:
    """An integer from `least` to `most`; true, false and 1.0 are none."""
    value = message.get(name)
    if type(value) is not int or not least <= value <= most:
        raise FieldFault(f"{name} is not an integer from {least} to {most}")
    return value


def integers(message: Message, name: str) -> tuple[int, ...]:
    """A list of at most MAX_LIST_ITEMS integers."""
    value = message.get(name)
    if not isinstance(value, list) or len(value) > MAX_LIST_ITEMS:
        raise FieldFault(f"{name} is not a list of at most {MAX_LIST_ITEMS} integers")
    return tuple(integer({name: item}, name) for item in value)


def flag(message: Message, name: str) -> bool:
    """true or false."""
    value = message.get(name)
    if not isinstance(value, bool):
        raise FieldFault(f"{name} is neither true nor false")
    return value


def blob(message: Message, name: str, *, most: int, least: int = 0) -> bytes:
    """Canonical base64 of `least` to `most` bytes."""
    value = message.get(name)
    if not isinstance(value, str) or len(value) > (most + 2) // 3 * 4:
        raise FieldFault(f"{name} is not base64 of {least} to {most} bytes")
    try:
        raw = base64.b64decode(value.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise FieldFault(f"{name} is not base64") from None
    if not least <= len(raw) <= most or encode_blob(raw) != value:
        raise FieldFault(f"{name} is not canonical base64 of {least} to {most} bytes")
    return raw


def exact(message: Message, name: str, length: int) -> bytes:
    """Canonical base64 of exactly `length` bytes."""
    return blob(message, name, most=length, least=length)


def digest(message: Message, name: str) -> bytes:
    """A SHA-256, which travels as 64 lower-case hex digits, so that people can compare it with sha256sum."""
    value = message.get(name)
    if not isinstance(value, str) or not _HEX_DIGEST.fullmatch(value):
        raise FieldFault(f"{name} is not the {2 * SHA256_BYTES} lower-case hex digits of a SHA-256")
    return bytes.fromhex(value)


def member(message: Message, name: str, choices: type[Choice]) -> Choice:
    """One of an enum's values."""
    value = message.get(name)
    for choice in choices:
        if choice.value == value:
            return choice
    raise FieldFault(f"{name} is none of the protocol's {choices.__name__} values")
