"""The conformance checks: what keeps the specification passes, and each defect fails the check that was made for it."""

import json
from pathlib import Path

import pytest

from device_sim.simulated_board import SimulatedBoard, new_flash
from provisioning.conformance.checking import Outcome, Result, conforms
from provisioning.conformance.cli import COLUMNS, as_text
from provisioning.conformance.judging import CHECKS, NotBlank, judge
from provisioning.spp1.protocol import SealPolicy, State
from tests.device_sim.processes import device_sim, run_tool, wait_for
from tests.provisioning.conformance.bench import BenchPort, NetBoard, judged
from tests.provisioning.conformance.defect_table import DEFECTS
from tests.provisioning.conformance.defects import SameBoot, SlowKeygen, WentSilent

SERIAL = "SN-0001"


def failed(results: list[Result]) -> dict[str, str]:
    return {result.check.name: result.reason for result in results if result.outcome is Outcome.FAIL}


def skipped(results: list[Result]) -> dict[str, str]:
    return {result.check.name: result.reason for result in results if result.outcome is Outcome.SKIPPED}


def test_every_check_has_a_device_that_fails_it() -> None:
    """A check that cannot fail is a defect."""
    assert sorted(DEFECTS) == sorted(check.name for check in CHECKS)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_device_with_one_defect_fails_the_check_for_it_and_no_other(name: str) -> None:
    """All checks are judged, and exactly one says FAIL."""
    results = judged(
        DEFECTS[name], NetBoard() if name == "connect-nobody" else None, seal_final=name.startswith("final")
    )
    assert failed(results).keys() == {name}
    assert not conforms(results)


def test_the_virtual_device_conforms_and_is_blank_afterwards() -> None:
    """Skipped is only what was not asked for, or what it does not have."""
    port = BenchPort()
    results = list(judge(port, clock=port.clock))
    assert conforms(results)
    assert skipped(results).keys() == {"connect-nobody", "final-first", "final-erase", "time-busy"}
    assert port.device.state is State.BLANK


def test_a_device_with_a_network_that_says_busy_conforms_sealed_for_good() -> None:
    """The twin: nothing but the check for devices without a network is skipped."""
    board = NetBoard()
    results = judged(SlowKeygen, board, seal_final=True)
    assert (failed(results), skipped(results).keys()) == ({}, {"connect"})
    assert board.read_flash().seal_policy is SealPolicy.FINAL


def test_a_device_that_falls_silent_ends_the_judging() -> None:
    """No time-outs for the rest of the table, and no proof either."""
    results = judged(WentSilent)
    assert not failed(results)
    assert not conforms(results)
    assert sum(reason == "the device no longer answers HELLO" for reason in skipped(results).values()) > 100


def test_what_needs_a_broken_thing_is_skipped_with_its_name() -> None:
    """One defect is one FAIL: a device that does not reset is not accused of all that a reset must keep."""
    results = judged(SameBoot)
    assert failed(results).keys() == {"reset"}
    assert skipped(results)["reset-keyed"] == "says nothing without reset"
    assert skipped(results)["seal"].startswith("not in VERIFIED: RESET was answered")


@pytest.mark.parametrize("policy", SealPolicy)
def test_a_device_that_holds_something_is_touched_only_when_told(policy: SealPolicy) -> None:
    """Without the word nothing in flash changes; with it a device is judged unless it is sealed for good."""
    board = SimulatedBoard(new_flash(SERIAL))
    judged(board=board, seal_final=True)
    flash = board.read_flash()
    board.write_flash(type(flash)(**{name: getattr(flash, name) for name in flash.__slots__} | {"seal_policy": policy}))
    before = board.read_flash()
    with pytest.raises(NotBlank, match="is SEALED"):
        judged(board=board)
    assert board.read_flash() == before
    if policy is SealPolicy.ERASABLE:
        assert conforms(judged(board=board, yes_erase=True))
    else:
        with pytest.raises(Exception, match="does not let itself be erased"):
            judged(board=board, yes_erase=True)
        assert board.read_flash() == before


def test_every_line_of_the_report_fits_a_terminal() -> None:
    """80 columns, and the reason of a FAIL below it."""
    texts = [as_text(Result(check, Outcome.SKIPPED, "x" * 30 + " y" * 60)) for check in CHECKS]
    assert max(len(line) for text in texts for line in text.splitlines()) <= COLUMNS


def test_the_command_judges_a_device_on_a_line(tmp_path: Path) -> None:
    """Exit 0 and the verdict; what holds a certificate needs --yes-erase (2); nobody there is an error (1)."""
    link, ca = tmp_path / "dev0", tmp_path / "CA"
    with device_sim("virtual-device", "--link", link, "--serial", SERIAL, "--state", tmp_path / "flash"):
        wait_for("link", link.is_symlink)
        assert run_tool("mqtt-provision", "ca", "init", "--insecure-dev", "--dir", ca).returncode == 0
        good = run_tool("mqtt-provision", "spp1", "conformance", "--port", link)
        assert (good.returncode, good.stdout.splitlines()[-1]) == (
            0, "178 PASS, 0 FAIL, 4 SKIPPED: the device conforms to SPP/1",
        ), good.stdout + good.stderr  # fmt: skip
        assert "warning: this makes keys in the device" in good.stderr
        burned = run_tool("mqtt-provision", "burn", "--port", link, "--dir", ca, "--id", "press-01")
        assert burned.returncode == 0, burned.stdout
        again = run_tool("mqtt-provision", "spp1", "conformance", "--port", link)
        assert (again.returncode, "--yes-erase" in again.stderr) == (2, True)


def test_the_command_reports_a_defect_for_programs(tmp_path: Path) -> None:
    """Exit 1, and the check that says why; `--json` is one object."""
    link = tmp_path / "dev0"
    with device_sim("virtual-device", "--link", link, "--serial", SERIAL, "--fault", "bad-csr-signature"):
        wait_for("link", link.is_symlink)
        bad = run_tool("mqtt-provision", "spp1", "conformance", "--port", link, "--json")
    report = json.loads(bad.stdout)
    assert (bad.returncode, report["conforms"]) == (1, False)
    assert [row["check"] for row in report["checks"] if row["outcome"] == "FAIL"] == ["csr-signature"]
