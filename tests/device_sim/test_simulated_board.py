"""The simulated flash: whole, private, strict, and honest about being insecure."""

import json
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.simulated_board import SimulatedBoard, export_credentials, load_flash, new_flash, open_state
from device_sim.spp1_board import Flash, FlashFailure, flash_from_json, flash_to_json
from mtls.errors import ConfigFault, Fault
from provisioning.spp1.protocol import SealPolicy, State
from tests.device_sim.spp1_host import Host, in_state
from tests.support.pki import Pki


def burned(pki: Pki) -> Flash:
    host = in_state(State.CERTED, pki)
    assert host.write("ca", pki.ca_file.read_bytes()) == ""
    flash = host.board.read_flash()
    assert isinstance(flash, Flash)
    return flash


def test_the_state_file_is_private_and_says_what_it_is(tmp_path: Path) -> None:
    """0600, INSECURE in its text, and the key in it can be found by who looks for it."""
    path = tmp_path / "dev.json"
    host = Host(SimulatedBoard(open_state(path, "SN-1"), path))
    host.hello()
    host.keygen()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "INSECURE" in path.read_text()
    assert json.loads(path.read_text())["private_key"]


def test_a_device_is_the_same_after_a_restart(tmp_path: Path) -> None:
    """Serial, uid and key come out of the file again."""
    path = tmp_path / "dev.json"
    first = Host(SimulatedBoard(open_state(path, ""), path))
    first.hello()
    spki = first.keygen()
    second = Host(SimulatedBoard(open_state(path, ""), path))
    second.hello()
    assert second.keygen() == spki
    assert first.board.read_flash() == second.board.read_flash()


def test_the_flash_survives_its_own_format(pki: Pki) -> None:
    """Every field comes back."""
    flash = replace(burned(pki), seal_policy=SealPolicy.ERASABLE, time_floor=123)
    assert flash_from_json(flash_to_json(flash).encode()) == flash


@given(st.binary(max_size=300))
def test_no_file_crashes_the_loader(raw: bytes) -> None:
    """Anything that is no state file is a ValueError with a sentence."""
    with pytest.raises(ValueError, match=r"\w"):
        flash_from_json(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2),
        ("uid", ""),
        ("uid", "a\nb"),
        ("hardware_serial", "x" * 65),
        ("private_key", "???"),
        ("private_key", "A" * 4000),
        ("objects", {"key": "AAAA"}),
        ("objects", []),
        ("objects", {"conf": 7}),
        ("seal_policy", "open"),
        ("time_floor", -1),
        ("time_floor", True),
        ("extra", 1),
    ],
)
def test_a_state_file_with_a_wrong_value_is_refused(field: str, value: object, tmp_path: Path) -> None:
    """The fault names the file and what is wrong, and is a configuration fault."""
    path = tmp_path / "dev.json"
    open_state(path, "SN-1")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ConfigFault, match=r"dev\.json"):
        load_flash(path)


def test_a_loose_state_file_is_refused(tmp_path: Path) -> None:
    """It holds a key: readable by others means it is no secret any more."""
    path = tmp_path / "dev.json"
    open_state(path, "")
    path.chmod(0o644)
    with pytest.raises(ConfigFault, match="read by others"):
        load_flash(path)


def test_another_serial_is_another_device(tmp_path: Path) -> None:
    """--serial against a file of another device is a fault, not a new name."""
    path = tmp_path / "dev.json"
    open_state(path, "SN-1")
    assert open_state(path, "SN-1").hardware_serial == "SN-1"
    with pytest.raises(Fault, match="SN-1, not of SN-2"):
        open_state(path, "SN-2")


def test_a_flash_that_cannot_be_written_is_a_flash_failure(tmp_path: Path) -> None:
    """The folder is gone: E_FLASH to the host, and no half file."""
    path = tmp_path / "gone" / "dev.json"
    board = SimulatedBoard(new_flash("SN-1"), path)
    with pytest.raises(FlashFailure):
        board.write_flash(new_flash("SN-1"))
    with pytest.raises(FlashFailure):
        board.read_flash()


def test_the_credentials_of_a_burned_device_are_a_pair(pki: Pki, tmp_path: Path) -> None:
    """openssl says that key and certificate belong together and that the chain verifies; the key is private."""
    files = export_credentials(burned(pki), tmp_path / "agent")
    assert files.id == "dev-1"
    assert stat.S_IMODE(files.key_file.stat().st_mode) == 0o600
    commands: tuple[list[str | Path], ...] = (
        ["openssl", "x509", "-in", files.cert_file, "-noout", "-pubkey"],
        ["openssl", "pkey", "-in", files.key_file, "-pubout"],
    )
    public = [subprocess.run(command, check=True, capture_output=True).stdout for command in commands]
    assert public[0] == public[1]
    verify: list[str | Path] = ["openssl", "verify", "-x509_strict", "-CAfile", files.ca_file, files.cert_file]
    assert subprocess.run(verify, check=True, capture_output=True).stdout.endswith(b"OK\n")


def test_a_device_that_is_not_burned_has_no_credentials(pki: Pki, tmp_path: Path) -> None:
    """The twin: nothing is written, and the hint names the command."""
    flash = in_state(State.KEYED, pki).board.read_flash()
    with pytest.raises(Fault, match="holds no certificate") as caught:
        export_credentials(flash, tmp_path / "agent")
    assert "mqtt-provision burn" in caught.value.hint
    assert not (tmp_path / "agent").exists()


@pytest.mark.parametrize("hardware_serial", ["x" * 65, "a\nb", "größe"])
def test_a_serial_that_cannot_travel_is_refused(hardware_serial: str) -> None:
    """SPP/1 texts are printable ASCII of at most 64 characters."""
    with pytest.raises(Fault, match="hardware serial"):
        new_flash(hardware_serial)
