"""The conformance checks: a device that keeps the specification passes, one with a defect fails the check made for it."""

import pytest

from provisioning.conformance.checking import Outcome
from provisioning.conformance.judging import CHECKS
from tests.provisioning.conformance.bench import Good, NetBoard, judged
from tests.provisioning.conformance.defects import DEFECTS

NEEDS_NET = {"connect-nobody"}


def test_every_check_has_a_device_that_fails_it() -> None:
    assert sorted(DEFECTS) == sorted(check.name for check in CHECKS)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_device_with_one_defect_fails_the_check_for_it_and_no_other(name: str) -> None:
    board = NetBoard() if name in NEEDS_NET else None
    results = judged(DEFECTS[name], board, seal_final=name.startswith("final"))
    assert {r.check.name: r.reason for r in results if r.outcome is Outcome.FAIL}.keys() == {name}
