"""A shift with every kind of fault reconciles: nothing twice, nothing lost, no PASS without proof."""

from pathlib import Path

import pytest

from tests.provisioning.shift import KINDS, Shift


@pytest.mark.parametrize(
    ("units", "ports", "rate"),
    [(40, 8, 0.0), pytest.param(1000, 8, 0.02, marks=pytest.mark.torture)],
    ids=["short", "long"],
)
def test_a_shift_with_every_kind_of_fault_reconciles(tmp_path: Path, units: int, ports: int, rate: float) -> None:
    """started = passed + failed + quarantined, one attempt per unit; the faults that must fail a unit did."""
    report = Shift(tmp_path, units, ports, rate, seed=7).run()

    assert report["problems"] == []
    assert set(report["faults"]) == set(KINDS)
    counts = report["counts"]
    assert counts["started"] == units
    assert counts["open"] == 0
    must_fail = report["faults"]["duplicate-key"] + report["faults"]["wrong-label"]
    assert counts["failed"] + counts["quarantined"] >= must_fail
    assert counts["passed"] >= units - sum(report["faults"].values())
