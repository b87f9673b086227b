"""What is handed over: manifest with a signature that openssl checks, labels, registry; and nothing secret in it."""

import base64
import csv
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from device_sim.simulated_board import SimulatedBoard, new_flash
from provisioning.burning import UnitOrder
from provisioning.cli import cli
from provisioning.ledger import Outcome, Presented
from tests.provisioning.station_bench import Bench, open_bench

ORDER = "WO-1"


@pytest.fixture
def boards() -> list[SimulatedBoard]:
    return [SimulatedBoard(new_flash(f"00{number}")) for number in range(1, 4)]


@pytest.fixture
def bench(tmp_path: Path, boards: list[SimulatedBoard]) -> Iterator[Bench]:
    """Two units passed, one failed, under a work order with attributes."""
    order = UnitOrder(presented=Presented(work_order=ORDER, attributes={"site": "north"}))
    with open_bench(tmp_path) as bench:
        faults: list[tuple[str, ...]] = [(), (), ("wrong-digest",)]
        verdicts = [
            bench.burn(bench.port(board, *fault), order=order) for board, fault in zip(boards, faults, strict=True)
        ]
        assert [verdict.outcome for verdict in verdicts] == [Outcome.PASSED, Outcome.PASSED, Outcome.FAILED]
        yield bench


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="mqtt-provision")
    assert "Traceback" not in result.output
    return result


def manifest_of(bench: Bench, out: Path) -> list[dict[str, object]]:
    result = run("manifest", "--dir", bench.ca.folder.path, "--work-order", ORDER, "--out", out)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in out.read_text().splitlines()]


def openssl_accepts(bench: Bench, manifest: Path) -> bool:
    command = ["openssl", "cms", "-verify", "-binary", "-inform", "PEM", "-in", f"{manifest}.p7s", "-content", manifest]
    command += ["-CAfile", bench.ca.folder.bundle, "-purpose", "any", "-out", "/dev/null"]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


def test_the_manifest_counts_failures_and_openssl_checks_its_signature(bench: Bench, tmp_path: Path) -> None:
    """Head and lines add up; the signature holds for these bytes, and for no others."""
    head, *lines = manifest_of(bench, tmp_path / "wo.jsonl")

    assert head["counts"] == {"started": 3, "open": 0, "passed": 2, "delivered": 0, "failed": 1, "quarantined": 0}
    assert [line["outcome"] for line in lines] == ["passed", "passed", "failed"]
    assert [line["hardware_serial"] for line in lines] == ["001", "002", "003"]
    assert lines[0]["certificate_state"] == "issued"
    assert lines[2]["certificate_state"] == "revoked"
    assert openssl_accepts(bench, tmp_path / "wo.jsonl")
    (tmp_path / "wo.jsonl").write_text((tmp_path / "wo.jsonl").read_text().replace('"failed"', '"passed"'))
    assert not openssl_accepts(bench, tmp_path / "wo.jsonl")


@pytest.mark.parametrize("command", ["manifest", "labels"])
def test_a_misspelt_work_order_hands_over_nothing(bench: Bench, tmp_path: Path, command: str) -> None:
    """No signed manifest of nothing and no empty labels: it ends 1, names the orders there are and writes no file."""
    out = tmp_path / "out"
    result = run(command, "--dir", bench.ca.folder.path, "--work-order", "WO-l", "--out", out)

    assert result.exit_code == 1
    assert f"nothing was made under the work order 'WO-l'\nhint: the last were {ORDER}\n" in result.output
    assert not out.exists()


def test_a_manifest_is_compared_with_the_ledger(bench: Bench, tmp_path: Path) -> None:
    """It agrees, also after the ledger went on; a changed line, a lost line and a foreign history do not."""
    out = tmp_path / "wo.jsonl"
    manifest_of(bench, out)
    bench.ca.ledger.scrap(bench.ca.ledger.units()[0], "broken")
    check = ("ledger", "verify", "--dir", bench.ca.folder.path, "--manifest", out)
    good, text = run(*check), out.read_text()
    assert good.exit_code == 0, good.output
    for old, new in (('"hardware_serial": "002"', '"hardware_serial": "009"'), ('"chain": "', '"chain": "0')):
        out.write_text(text.replace(old, new))
        assert run(*check).exit_code == 1
    out.write_text("".join(text.splitlines(keepends=True)[:-1]))
    assert run(*check).exit_code == 1


def test_labels_are_svg_and_csv_of_the_units_that_passed(bench: Bench, tmp_path: Path) -> None:
    """Leading zeros stay; every SVG is one; the scanned text is taken by --expect-label."""
    result = run("labels", "--dir", bench.ca.folder.path, "--work-order", ORDER, "--out", tmp_path / "labels")

    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "labels" / "labels.csv").read_text().splitlines()))
    assert [row["hardware_serial"] for row in rows] == ["001", "002"]
    for row in rows:
        assert row["text"] == f"ID={row['device_id']};SN={row['hardware_serial']};KEY={row['spki_sha256']}"
        svg = (tmp_path / "labels" / row["file"]).read_text()
        assert svg.startswith("<svg")
        assert svg.rstrip().endswith("</svg>")


def test_the_registry_has_the_recorded_units_and_what_was_added(bench: Bench, tmp_path: Path) -> None:
    """Attributes of the work order; a scrapped unit is not in it; the format is docs/gateway.md's."""
    bench.ca.ledger.scrap(bench.ca.ledger.units()[1], "broken")
    result = run("registry", "--dir", bench.ca.folder.path, "--out", tmp_path / "devices.jsonl", "--also", "line-view")

    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "devices.jsonl").read_text().splitlines()]
    assert lines == [{"id": "001", "attributes": {"site": "north"}}, {"id": "line-view", "attributes": {}}]


def test_no_key_in_anything_that_is_handed_over_or_kept(
    bench: Bench, boards: list[SimulatedBoard], tmp_path: Path
) -> None:
    """F9: every byte of ledger, trace, manifest, signature, labels, registry and backup is searched."""
    folder = bench.ca.folder.path
    manifest_of(bench, tmp_path / "wo.jsonl")
    run("labels", "--dir", folder, "--out", tmp_path / "labels")
    run("registry", "--dir", folder, "--out", tmp_path / "devices.jsonl")
    run("backup", "--dir", folder, "--out", tmp_path / "ca.tar")
    secrets = []
    for board in boards:
        der = board.read_flash().private_key
        key = load_der_private_key(der, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        scalar = key.private_numbers().private_value.to_bytes(32, "big")
        secrets += [scalar, scalar.hex().encode(), base64.b64encode(der)[:60], base64.b64encode(scalar)[:40]]

    written = [path for path in tmp_path.rglob("*") if path.is_file()]

    assert len(written) > 10
    assert [(path, secret) for path in written for secret in secrets if secret in path.read_bytes()] == []
