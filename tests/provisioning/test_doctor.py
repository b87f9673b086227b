"""`doctor`: a station that may begin is told so, and each thing that would stop a shift is a line of its own."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from device_sim.simulated_board import SimulatedBoard, new_flash
from mtls import checkup
from mtls.checkup import Check, Level
from provisioning import doctor
from provisioning.cli import cli
from provisioning.doctor import examine
from tests.provisioning.station_bench import Bench, open_bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A station with a CA, on a machine whose clock is set and on which no ModemManager runs."""
    (tmp_path / "synchronised").touch()
    (tmp_path / "proc").mkdir()
    monkeypatch.setattr(checkup, "SYNCHRONISED", tmp_path / "synchronised")
    monkeypatch.setattr(checkup, "PROCESSES", tmp_path / "proc")
    with open_bench(tmp_path) as bench:
        yield bench


def levels(checks: list[Check], name: str) -> set[Level]:
    return {check.level for check in checks if check.name == name}


def test_a_healthy_station_has_no_failure(bench: Bench) -> None:
    """The allow: only the keys of the test's CA are warned of."""
    checks = examine(bench.ca.folder, ["/dev/null"], datetime.now(UTC))

    assert [check for check in checks if check.level is Level.FAIL] == []
    assert {check.name for check in checks if check.level is Level.WARN} == {"keys"}
    assert levels(checks, "port /dev/null") == {Level.OK}


def loosen(folder: Path) -> None:
    next(folder.glob("issuing*.key")).chmod(0o644)


def tamper(folder: Path) -> None:
    connection = sqlite3.connect(folder / "ledger.db")
    connection.execute("DROP TRIGGER events_no_update")
    connection.execute("UPDATE events SET detail = 'x' WHERE id = 1")
    connection.commit()
    connection.close()


def junk_crl(folder: Path) -> None:
    (folder / "issuing.crl").write_text("junk")


@pytest.mark.parametrize(
    ("name", "spoil"), [("keys", loosen), ("ledger", tamper), ("crl", junk_crl)], ids=["loose key", "history", "crl"]
)
def test_what_is_spoilt_fails(bench: Bench, name: str, spoil: Callable[[Path], None]) -> None:
    """The deny twins in the CA's folder."""
    spoil(bench.ca.folder.path)
    assert Level.FAIL in levels(examine(bench.ca.folder, [], datetime.now(UTC)), name)


@pytest.mark.parametrize(
    ("days", "name"), [(-400, "clock"), (30, "crl"), (365 * 60, "ca")], ids=["behind", "stale CRL", "expired CA"]
)
def test_what_time_has_ended_fails(bench: Bench, days: int, name: str) -> None:
    """F6, F10: a clock behind the last signature, a CRL that ran out, a CA that has expired."""
    checks = examine(bench.ca.folder, [], datetime.now(UTC) + timedelta(days=days))
    assert Level.FAIL in levels(checks, name)


def test_the_machine_around_it_is_looked_at(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """U2: ModemManager, an unset clock, a full disk, an absent port, a file that is none."""
    (tmp_path / "synchronised").unlink()
    (tmp_path / "proc" / "17").mkdir()
    (tmp_path / "proc" / "17" / "comm").write_text("ModemManager\n")
    (tmp_path / "file").touch()
    monkeypatch.setattr(doctor, "NO_DISK_BYTES", 2**62)
    gone, file = str(tmp_path / "gone"), str(tmp_path / "file")

    checks = examine(bench.ca.folder, [gone, file], datetime.now(UTC))

    assert levels(checks, "modem manager") == {Level.WARN}
    assert levels(checks, "clock") == {Level.WARN}
    assert levels(checks, "disk") == {Level.FAIL}
    assert levels(checks, f"port {gone}") == levels(checks, f"port {file}") == {Level.FAIL}


def test_unfinished_units_are_named(bench: Bench) -> None:
    """What a crash left is for `resume`, before the shift begins."""
    bench.burn(bench.port(SimulatedBoard(new_flash("SN-0001")), "silent-at=CSR"))
    (check,) = [c for c in examine(bench.ca.folder, [], datetime.now(UTC)) if "unfinished" in c.detail]
    assert "sn-0001" in check.detail
    assert "resume" in check.hint


def test_the_command_ends_with_one_when_something_failed(bench: Bench) -> None:
    """Exit 0 and 1, as lines and as JSON."""
    arguments = ["doctor", "--dir", str(bench.ca.folder.path)]
    good = CliRunner().invoke(cli, arguments)
    bad = CliRunner().invoke(cli, [*arguments, "--port", "/dev/does-not-exist", "--json"])

    assert good.exit_code == 0, good.output
    assert bad.exit_code == 1
    assert {"fail", "ok"} <= {row["level"] for row in json.loads(bad.stdout)}
