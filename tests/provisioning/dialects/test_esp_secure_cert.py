"""The esp_secure_cert image, judged by Espressif's own parser and by its every byte."""

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from provisioning.dialects.esp_secure_cert import (
    PARTITION_BYTES,
    Entry,
    EntryType,
    ImageFault,
    entries_of,
    image,
    parse,
)
from tests.device_sim.processes import run_tool
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


def test_the_command_writes_an_image_that_espressifs_parser_takes(tmp_path: Path) -> None:
    """`issue --format esp-secure-cert`: one private file, no key beside it; a second time is refused."""
    assert run_tool("mqtt-provision", "ca", "init", "--insecure-dev", "--dir", tmp_path / "CA").returncode == 0
    issue = ("mqtt-provision", "issue", "press-09", "--dir", tmp_path / "CA", "--out", tmp_path / "out")
    done = run_tool(*issue, "--format", "esp-secure-cert")
    assert done.returncode == 0, done.stderr
    image_file = tmp_path / "out" / "press-09.bin"
    assert done.stdout.split() == [str(image_file)]
    assert list((tmp_path / "out").iterdir()) == [image_file]
    assert image_file.stat().st_mode & 0o777 == 0o600
    assert espressif_says(image_file).count("✓ VALID") == 4
    chain, _, key = parse(image_file.read_bytes())
    leaf = x509.load_pem_x509_certificate(chain.content)
    own = serialization.load_pem_private_key(key.content.rstrip(b"\0"), None)
    assert leaf.public_key() == own.public_key()
    before = image_file.read_bytes()
    again = run_tool(*issue, "--format", "esp-secure-cert")
    assert (again.returncode, "exists already" in again.stderr) == (1, True)
    assert image_file.read_bytes() == before
