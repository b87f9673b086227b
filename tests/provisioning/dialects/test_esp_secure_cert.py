"""The esp_secure_cert image, judged by Espressif's own parser and by its every byte."""

import subprocess
from pathlib import Path

import pytest

from provisioning.dialects.esp_secure_cert import (
    PARTITION_BYTES,
    Entry,
    EntryType,
    ImageFault,
    entries_of,
    image,
    parse,
)
from tests.provisioning.dialects.judge import judge
from tests.support.pki import Pki

PARSE = "import sys; from esp_secure_cert.tlv_parser import process_tlv_entries; process_tlv_entries(sys.argv[1])"


@pytest.fixture
def entries(pki: Pki) -> tuple[Entry, ...]:
    device = pki.device("press-07")
    return entries_of(device.cert_file.read_bytes(), pki.ca_file.read_bytes(), device.key_file.read_bytes())


def espressif_says(path: Path) -> str:
    python = judge("esp-secure-cert-tool==2.6.1")
    return subprocess.run([python, "-c", PARSE, path], capture_output=True, text=True, check=True, timeout=60).stdout


def test_espressifs_parser_finds_every_entry_valid(entries: tuple[Entry, ...], tmp_path: Path) -> None:
    """Type, length and checksum of all four, certificates and key word for word."""
    (tmp_path / "image.bin").write_bytes(image(entries))
    said = espressif_says(tmp_path / "image.bin")
    assert said.count("✓ VALID") == 4
    assert "INVALID" not in said
    assert "Total TLV entries: 4" in said
    for entry in entries:
        lines = [line.strip() for line in said.splitlines()]
        assert all(line in lines for line in entry.content.rstrip(b"\n\0").decode().splitlines())


def test_espressifs_parser_sees_a_flipped_byte(entries: tuple[Entry, ...], tmp_path: Path) -> None:
    """The deny twin: the judge can say no."""
    broken = bytearray(image(entries))
    broken[40] ^= 1
    (tmp_path / "image.bin").write_bytes(broken)
    assert "✗ INVALID" in espressif_says(tmp_path / "image.bin")


def test_an_image_is_read_back_as_it_was_made(entries: tuple[Entry, ...]) -> None:
    """Whole partition, certificates and key with their NUL, the rest erased."""
    made = image(entries)
    assert (len(made), made[-64:]) == (PARTITION_BYTES, b"\xff" * 64)
    assert parse(made) == entries
    assert all(entry.content.endswith(b"\n\0") for entry in entries)


def test_any_changed_byte_is_found(entries: tuple[Entry, ...]) -> None:
    """Over the whole image, what is erased included."""
    made = image(entries)
    for position in range(0, PARTITION_BYTES, 7):
        broken = bytearray(made)
        broken[position] ^= 0x10
        with pytest.raises(ImageFault):
            parse(bytes(broken))


@pytest.mark.parametrize("content", [b"", bytes(PARTITION_BYTES), b"\xff" * PARTITION_BYTES, b"\xff" * 100])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    """Empty, zeros, an erased partition, too short."""
    with pytest.raises(ImageFault):
        parse(content)


def test_entries_that_do_not_fit_or_stand_twice_are_refused() -> None:
    """Before a byte is written."""
    with pytest.raises(ImageFault, match="more than the 8192"):
        image([Entry(EntryType.CA_CERTIFICATE, bytes([1]) * 8192)])
    with pytest.raises(ImageFault, match="one type and subtype"):
        image([Entry(EntryType.CA_CERTIFICATE, b"a"), Entry(EntryType.CA_CERTIFICATE, b"b")])
    with pytest.raises(ImageFault, match="0 bytes"):
        image([Entry(EntryType.CA_CERTIFICATE, b"")])
    assert len(parse(image([Entry(EntryType.CA_CERTIFICATE, b"a"), Entry(EntryType.CA_CERTIFICATE, b"b", 1)]))) == 2


def test_a_key_shows_in_no_representation(entries: tuple[Entry, ...]) -> None:
    """An entry may end in a log."""
    assert "PRIVATE" not in repr(entries).replace("PRIVATE_KEY", "")
