"""Espressif's `esp_secure_cert` partition as an image: certificates and key in TLV entries, ready to be flashed.

One entry is a header (magic, flags, three reserved bytes, type, subtype, length), the data, zeros up to a multiple of
16, and a CRC-32 over all of that, little-endian throughout. The last entry holds the SHA-256 of everything before it;
what is left of the partition is 0xFF. A certificate or key in PEM carries its trailing NUL, because mbedTLS wants it.

`parse` accepts exactly what `image` makes and says what is wrong with anything else; it is what reads the written file
back. The key in an image lies in the clear: flash encryption is the device's business, and the file is 0600.

Spec: Espressif's esp_secure_cert_mgr, TLV format; judged in the tests by Espressif's own parser.
"""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from mtls.errors import Fault
from provisioning.dialects.declared import Ability, Declared

MAGIC = 0xBA5EBA11
PARTITION_TYPE = 0x3F
PARTITION_OFFSET = 0xD000
PARTITION_BYTES = 0x2000
ALIGNMENT = 16  # what an encrypted flash is written in
ERASED = 0xFF
_HEADER = struct.Struct("<IB3xBBH")
_CRC = struct.Struct("<I")

ESP_SECURE_CERT = Declared(
    name="esp-secure-cert",
    device="a partition image, made by mqtt-provision issue --format",
    abilities=frozenset({Ability.READ_BACK}),
)


class EntryType(IntEnum):
    """What an entry holds; Espressif's numbers."""

    CA_CERTIFICATE = 0
    DEVICE_CERTIFICATE = 1
    PRIVATE_KEY = 2
    INTEGRITY = 9


class ImageFault(Fault):
    """An image that cannot be made, or is not one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One TLV entry; `content` may be a private key and is kept out of every representation."""

    type: EntryType
    content: bytes = field(repr=False)
    subtype: int = 0

    @property
    def key(self) -> tuple[EntryType, int]:
        """What stands once in an image."""
        return self.type, self.subtype


def entries_of(chain_pem: bytes, ca_pem: bytes, key_pem: bytes) -> tuple[Entry, ...]:
    """The entries of a device: its chain, the CAs that it trusts, its key."""
    return (
        Entry(EntryType.DEVICE_CERTIFICATE, chain_pem + b"\0"),
        Entry(EntryType.CA_CERTIFICATE, ca_pem + b"\0"),
        Entry(EntryType.PRIVATE_KEY, key_pem + b"\0"),
    )


def image(entries: Sequence[Entry]) -> bytes:
    """The whole partition; ImageFault when the entries do not fit or one stands twice."""
    if len({entry.key for entry in entries}) != len(entries):
        raise ImageFault("two entries of an esp_secure_cert image have one type and subtype")
    written = b"".join(_encode(entry) for entry in entries)
    written += _encode(Entry(EntryType.INTEGRITY, hashlib.sha256(written).digest()))
    if len(written) > PARTITION_BYTES:
        raise ImageFault(
            f"the esp_secure_cert image needs {len(written)} bytes, more than the {PARTITION_BYTES} of its partition",
            hint="give the device fewer CA certificates",
        )
    return written.ljust(PARTITION_BYTES, bytes([ERASED]))


def parse(content: bytes) -> tuple[Entry, ...]:
    """The entries of an image, the integrity entry checked and left out; ImageFault says what is wrong and where."""
    if len(content) != PARTITION_BYTES:
        raise ImageFault(f"an esp_secure_cert image has {PARTITION_BYTES} bytes, this one {len(content)}")
    entries: list[Entry] = []
    offset = 0
    while offset + _HEADER.size <= len(content) and content[offset : offset + 4] != bytes([ERASED] * 4):
        entry, end = _decode(content, offset)
        if entry.key in {known.key for known in entries}:
            raise ImageFault(f"a second entry of type {entry.type} at offset {offset:#x}")
        if entry.type is EntryType.INTEGRITY:
            if entry.content != hashlib.sha256(content[:offset]).digest():
                raise ImageFault(f"the digest at offset {offset:#x} is not that of the entries before it")
            if content[end:].strip(bytes([ERASED])):
                raise ImageFault(f"something stands behind the last entry at offset {end:#x}")
            return tuple(entries)
        entries.append(entry)
        offset = end
    raise ImageFault(f"no integrity entry before offset {offset:#x}")


def _encode(entry: Entry) -> bytes:
    if not 0 < len(entry.content) <= 0xFFFF:
        raise ImageFault(f"an entry of type {entry.type} has {len(entry.content)} bytes, 1 to 65535 are possible")
    head = _HEADER.pack(MAGIC, 0, entry.type, entry.subtype, len(entry.content))
    body = head + entry.content + bytes(-len(entry.content) % ALIGNMENT)
    return body + _CRC.pack(zlib.crc32(body, 0xFFFFFFFF))


def _decode(content: bytes, offset: int) -> tuple[Entry, int]:
    magic, flags, kind, subtype, length = _HEADER.unpack_from(content, offset)
    if magic != MAGIC:
        raise ImageFault(f"no entry begins at offset {offset:#x}")
    data = offset + _HEADER.size
    crc_at = data + length + -length % ALIGNMENT
    if length == 0 or crc_at + _CRC.size > len(content):
        raise ImageFault(f"the entry at offset {offset:#x} says it has {length} bytes")
    if zlib.crc32(content[offset:crc_at], 0xFFFFFFFF) != _CRC.unpack_from(content, crc_at)[0]:
        raise ImageFault(f"the checksum of the entry at offset {offset:#x} is wrong")
    if flags or kind not in set(EntryType):
        raise ImageFault(f"the entry at offset {offset:#x} has type {kind} and flags {flags:#x}, which are not ours")
    return Entry(EntryType(kind), content[data : data + length], subtype), crc_at + _CRC.size
