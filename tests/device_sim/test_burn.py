"""The virtual device against the real station: two programs, one pseudo-terminal, nothing shared but the line."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_sim.faults import FAULTS, Takes
from device_sim.simulated_board import load_flash
from provisioning.spp1.protocol import SealPolicy
from tests.device_sim.processes import device_sim, run_tool, wait_for

# Survived by resending, by a busy, or by opening the port again; every other fault must end in FAIL.
SURVIVED = (
    "duplicate=0.3",
    "split=0.3",
    "delay=0.2",
    "chatter=0.3",
    "slow=KEYGEN",
    "reset-on-open",
    "replug-on-reset",
    "noise=0.0001",
)
FATAL = (
    *("drop=1", "flip=1", "silent-at=CSR", "power-loss=BEGIN", "power-loss-after=CSR", "power-loss-byte=1200"),
    *("no-reset", "same-boot-id", "bad-csr-signature", "wrong-key", "lying-prove", "wrong-digest"),
    *("wrong-digest-after-reset", "forgets-key", "change-uid-after-reset", "flash-error=COMMIT", "rng-error"),
)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ca") / "CA"
    done = run_tool("mqtt-provision", "ca", "init", "--insecure-dev", "--dir", folder, "--name", "Line A")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "dev0"
    assert not (tmp_path / "dev0").is_symlink()


def burn(link: Path, ca: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run_tool("mqtt-provision", "burn", "--port", link, "--dir", ca, *more)


def test_a_burn_passes_once_and_the_credentials_are_real(ca: Path, link: Path, tmp_path: Path) -> None:
    """PASS and SEALED; a second burn is refused; openssl verifies what the simulated flash holds."""
    state = tmp_path / "dev.json"
    with device_sim("virtual-device", "--link", link, "--state", state, "--serial", "SN-100") as device:
        wait_for("link", link.is_symlink)
        first = burn(link, ca, "--id", "press-100")
        assert (first.returncode, first.stdout.split()[0]) == (0, "PASS"), first.stdout + first.stderr
        sealed = load_flash(state)
        assert sealed.seal_policy is SealPolicy.FINAL
        second = burn(link, ca, "--id", "press-101")
        assert second.returncode == 1
        assert "PASS" not in second.stdout
        assert load_flash(state) == sealed
        assert device.stop() == 0
    exported = run_tool(
        "device-sim", "virtual-device", "--state", state, "--export-credentials", tmp_path / "a", "--json"
    )
    files = json.loads(exported.stdout)
    assert files["id"] == "press-100"
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", files["ca"], files["cert"]]
    assert subprocess.run(verify, capture_output=True, check=True).stdout.endswith(b"OK\n")


def test_every_fault_is_either_survived_or_fatal() -> None:
    """The two lists below cover the whole table."""
    listed = {text.partition("=")[0] for text in (*SURVIVED, *FATAL)}
    assert listed == set(FAULTS)


@pytest.mark.parametrize("fault", SURVIVED)
def test_a_fault_of_the_line_is_survived(fault: str, ca: Path, link: Path) -> None:
    """PASS, and the device is sealed."""
    hardware_serial = f"OK-{fault.partition('=')[0]}"
    with device_sim("virtual-device", "--link", link, "--serial", hardware_serial, "--fault", fault, "--seed", "3"):
        wait_for("link", link.is_symlink)
        done = burn(link, ca)
        assert (done.returncode, done.stdout.split()[0]) == (0, "PASS"), done.stdout + done.stderr


@pytest.mark.parametrize("fault", FATAL)
def test_a_fault_of_the_device_ends_in_fail(fault: str, ca: Path, link: Path, tmp_path: Path) -> None:
    """FAIL with a step, exit 1, and never a sealed device."""
    state = tmp_path / "dev.json"
    hardware_serial = f"NO-{fault.partition('=')[0]}"
    arguments = ("--link", link, "--serial", hardware_serial, "--fault", fault, "--state", state)
    with device_sim("virtual-device", *arguments):
        wait_for("link", link.is_symlink)
        done = burn(link, ca)
        assert (done.returncode, done.stdout.split()[0]) == (1, "FAIL"), done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert load_flash(state).seal_policy is None


def test_the_table_names_verbs_for_steps_only() -> None:
    """Rates belong to the line; what happens at a verb is named by it."""
    assert {name for name, kind in FAULTS.items() if kind.takes is Takes.RATE} == {
        *("drop", "duplicate", "flip", "split", "delay", "chatter", "noise")
    }
