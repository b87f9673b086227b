"""`ledger verify`, `backup`, `restore`, `retire`, `scrap`: records that agree, and what shows when they do not."""

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from device_sim.simulated_board import SimulatedBoard, new_flash
from provisioning.cli import cli
from provisioning.ledger import CertificateState, Ledger, UnitState
from provisioning.records.verify import verify_ledger
from tests.provisioning.station_bench import Bench, open_bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A station that has burned one unit well and failed one."""
    with open_bench(tmp_path) as bench:
        assert bench.burn(bench.port(SimulatedBoard(new_flash("SN-0001")))).passed
        assert not bench.burn(bench.port(SimulatedBoard(new_flash("SN-0002")), "wrong-digest")).passed
        yield bench


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="mqtt-provision")


def test_an_honest_ledger_agrees_with_itself_and_reconciles(bench: Bench) -> None:
    """The allow: no problem, started = passed + failed, exit 0, and the chain of the whole history."""
    result = run("ledger", "verify", "--dir", bench.ca.folder.path, "--json")

    found = json.loads(result.stdout)
    assert result.exit_code == 0, result.output
    assert (found["problems"], found["started"]) == ([], 2)
    assert found["counts"] == {"passed": 1, "delivered": 0, "failed": 1, "quarantined": 0, "open": 0}
    assert len(found["chain"]) == 64


# What somebody with SQLite and without scruples could do: drop the triggers, then write.
TAMPERED = {
    "an event was changed": "UPDATE events SET detail = '{}' WHERE id = 3",
    "an event was taken out": "DELETE FROM events WHERE id = 5",
    "a failed unit was made good": "UPDATE units SET state = 'recorded' WHERE state = 'failed'",
    "a revocation was taken back": "UPDATE certificates SET state = 'issued', revoked_at = NULL"
    " WHERE state = 'revoked'",
    "a certificate was exchanged": "UPDATE certificates SET der = (SELECT der FROM certificates WHERE id = 1)"
    " WHERE unit_id = 1",
    "an outcome was changed": "UPDATE attempts SET outcome = 'passed' WHERE outcome = 'failed'",
    "an attempt was taken out": "DELETE FROM attempts WHERE outcome = 'failed'",
}


@pytest.mark.parametrize("statement", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_change_past_the_triggers_shows(bench: Bench, statement: str) -> None:
    """The deny twins: each is exit 1 with a sentence."""
    connection = sqlite3.connect(bench.ca.ledger.path)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    assert connection.execute(statement).rowcount >= 1
    connection.commit()
    connection.close()

    result = run("ledger", "verify", "--dir", bench.ca.folder.path)

    assert result.exit_code == 1
    assert "problems" in result.stdout


def test_a_backup_is_restored_whole_and_goes_on_signing(bench: Bench, tmp_path: Path) -> None:
    """Made while the ledger is open; the copy verifies, signs, and keeps refusing what was used before."""
    made = run("backup", "--dir", bench.ca.folder.path, "--out", tmp_path / "ca.tar")
    assert made.exit_code == 0, made.output
    assert (tmp_path / "ca.tar").stat().st_mode & 0o777 == 0o600

    restored = run("restore", tmp_path / "ca.tar", "--dir", tmp_path / "new")

    assert restored.exit_code == 0, restored.output
    assert "the ledger agrees with itself" in restored.stderr
    with Ledger.open(tmp_path / "new" / "ledger.db") as copy:
        assert copy.units() == bench.ca.ledger.units()
    again = run("issue", "dev-9", "--dir", tmp_path / "new", "--out", tmp_path / "issued")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize("damage", ["no tar", "foreign name", "no ledger", "exists"])
def test_what_is_no_backup_makes_no_folder(bench: Bench, tmp_path: Path, damage: str) -> None:
    """A file of another kind, one that names a file elsewhere, one without its ledger, a folder in use: refused."""
    file, target = tmp_path / "ca.tar", tmp_path / "new"
    assert run("backup", "--dir", bench.ca.folder.path, "--out", file).exit_code == 0
    if damage == "no tar":
        file.write_bytes(b"junk" * 300)
    elif damage == "foreign name":
        (tmp_path / "evil").write_text("x")
        with tarfile.open(file, "a") as tar:
            tar.add(tmp_path / "evil", "../evil-twin")
    elif damage == "no ledger":
        with tarfile.open(file, "w") as tar:
            tar.add(bench.ca.folder.certificate("root"), "root.crt")
    else:
        target = bench.ca.folder.path

    result = run("restore", file, "--dir", target)

    assert result.exit_code in (1, 78)
    assert result.stderr.count("error:") == 1
    assert damage == "exists" or not target.exists()
    assert not (tmp_path.parent / "evil-twin").exists()


def test_a_backup_never_overwrites(bench: Bench, tmp_path: Path) -> None:
    """The last good backup stays."""
    (tmp_path / "ca.tar").write_text("precious")
    assert run("backup", "--dir", bench.ca.folder.path, "--out", tmp_path / "ca.tar").exit_code == 1
    assert (tmp_path / "ca.tar").read_text() == "precious"


@pytest.mark.parametrize(("command", "state"), [("retire", UnitState.RETIRED), ("scrap", UnitState.SCRAPPED)])
def test_a_unit_is_ended_by_a_person_with_a_reason(bench: Bench, command: str, state: UnitState) -> None:
    """Its certificate is revoked in the same breath; an unknown name is exit 1; the ledger still agrees."""
    folder = bench.ca.folder.path
    done = run(command, "sn-0001", "--dir", folder, "--reason", "came back")
    unknown = run(command, "nobody", "--dir", folder, "--reason", "x")

    assert (done.exit_code, unknown.exit_code) == (0, 1), done.output
    assert bench.ca.ledger.units()[0].state is state
    assert bench.ca.ledger.certificates(subject="sn-0001", state=CertificateState.ISSUED) == []
    assert verify_ledger(bench.ca.ledger).problems == ()
