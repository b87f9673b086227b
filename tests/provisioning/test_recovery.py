"""F8: whatever cuts a burn short at whatever step, the unit ends finished or quarantined, and is certified once."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from device_sim.simulated_board import SimulatedBoard, new_flash
from mtls.errors import Fault
from mtls.profiles import fingerprint_sha256
from provisioning.burning import BURNING, OPENING, Step, UnitOrder
from provisioning.ledger import CertificateState, Outcome, Presented, UnitState, UnitTaken
from provisioning.port import PortFault
from provisioning.recovery import Settlement, settle
from provisioning.spp1.protocol import Obj, SealPolicy
from tests.provisioning.station_bench import Bench, SimulatedPort, open_bench

STEPS = [step for step, _ in (*OPENING, *BURNING) if step is not Step.CONNECT]
LABELLED = UnitOrder(label=max)
CAS = ("root", "issuing CA")  # which have certificates in the ledger too


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A station with a CA of its own."""
    with open_bench(tmp_path) as bench:
        yield bench


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


@dataclass
class Cut(SimulatedPort):
    """A port whose cable can be pulled, or whose device can lose its power, between two bytes."""

    pulled: bool = False

    def read(self, timeout_s: float) -> bytes:
        if self.pulled:
            raise PortFault(f"{self.name} went away")
        return super().read(timeout_s)

    def write(self, data: bytes) -> float:
        if self.pulled:
            raise PortFault(f"{self.name} went away")
        return super().write(data)

    def reopen(self, timeout_s: float) -> None:
        if self.pulled:
            raise PortFault(f"{self.name} did not come back")
        super().reopen(timeout_s)


def cut_short(bench: Bench, board: SimulatedBoard, how: str, at: Step) -> None:
    """Begin a burn that is cut at a step by a killed station, a pulled cable or a device without power."""
    port = bench.port(board)
    port = Cut(port.simulation)

    def cut(step: Step) -> None:
        if step is not at:
            return
        if how == "kill":
            raise Killed
        if how == "cable":
            port.pulled = True
        else:
            port.simulation._boot(port.now)

    try:
        verdict = bench.burn(port, progress=cut, order=LABELLED)
    except Killed:
        return
    # Power that goes just before RESET, and anything where the device is not asked any more, changes nothing.
    assert not verdict.passed or how == "power" or at is Step.RECORD


def resume(bench: Bench, *boards: SimulatedBoard) -> Settlement:
    """`mqtt-provision resume` with these devices at the ports."""
    ports = {str(number): bench.port(board) for number, board in enumerate(boards)}
    return settle(
        bench.ca.folder, bench.ca, bench.ca.ledger, ports, lambda name: nullcontext(ports[name]),
        station="line-a", order=LABELLED,
    )  # fmt: skip


def assert_reconciled(bench: Bench) -> None:
    counts = bench.ca.ledger.counts()
    assert counts.started == counts.passed + counts.failed + counts.quarantined
    assert bench.ca.ledger.unfinished() == []


@pytest.mark.parametrize("at", STEPS)
@pytest.mark.parametrize("how", ["kill", "cable", "power"])
def test_a_unit_cut_short_at_any_step_is_finished_by_resume(bench: Bench, how: str, at: Step) -> None:
    """The device is there: one row, one certificate, PASS only with a sealed device that proved its key."""
    board = SimulatedBoard(new_flash("SN-0001"))
    cut_short(bench, board, how, at)
    began = bench.ca.ledger.units()

    settlement = resume(bench, board)

    assert settlement.set_aside == ()
    assert_reconciled(bench)
    units = bench.ca.ledger.units()
    assert [unit.id for unit in units] == [unit.id for unit in began]
    assert len(bench.ca.ledger.certificates(subject="sn-0001")) <= 1
    if began:
        assert [unit.state for unit in units] == [UnitState.RECORDED]
        (row,) = bench.ca.ledger.certificates(subject="sn-0001", state=CertificateState.ISSUED)
        flash = board.read_flash()
        assert flash.seal_policy is SealPolicy.FINAL
        assert fingerprint_sha256(x509.load_pem_x509_certificate(flash.objects[Obj.CHAIN])) == row.fingerprint_sha256
    else:
        assert board.read_flash().private_key == b""


@pytest.mark.parametrize(
    ("how", "at"),
    [("kill", step) for step in STEPS[3:]] + [("cable", step) for step in STEPS[3:-1]],
)
def test_a_unit_whose_device_does_not_come_back_is_quarantined(bench: Bench, how: str, at: Step) -> None:
    """The deny twin: nobody at the ports; the row is closed, and no certificate stays valid."""
    cut_short(bench, SimulatedBoard(new_flash("SN-0001")), how, at)

    settlement = resume(bench)

    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.QUARANTINED]
    assert settlement.exit_code == 1
    assert bench.ca.ledger.certificates(subject="sn-0001", state=CertificateState.ISSUED) == []
    assert_reconciled(bench)


@pytest.mark.parametrize("at", [Step.CSR, Step.WRITE_CONF, Step.PROVE_RESET, Step.SEAL])
def test_a_device_that_lost_its_key_meanwhile_is_quarantined(bench: Bench, at: Step) -> None:
    """Device and ledger contradict each other: no second key, no second certificate, the first one revoked."""
    board = SimulatedBoard(new_flash("SN-0001"))
    cut_short(bench, board, "kill", at)
    flash = board.read_flash()
    board.write_flash(replace(flash, private_key=board.new_key(b"")))

    settlement = resume(bench, board)

    (verdict,) = settlement.verdicts
    assert (verdict.passed, verdict.step, verdict.outcome) == (False, Step.RECOVER, Outcome.QUARANTINED)
    assert str(verdict).endswith("quarantined")
    assert bench.ca.ledger.certificates(subject="sn-0001", state=CertificateState.ISSUED) == []
    assert board.read_flash().seal_policy is None
    assert_reconciled(bench)


def test_a_sealed_device_that_the_ledger_does_not_expect_is_quarantined(bench: Bench) -> None:
    """The ledger says issued, the device says sealed: somebody else was at work."""
    board = SimulatedBoard(new_flash("SN-0001"))
    cut_short(bench, board, "kill", Step.WRITE_CONF)
    board.write_flash(replace(board.read_flash(), seal_policy=SealPolicy.FINAL))

    resume(bench, board)

    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.QUARANTINED]


def test_resume_begins_no_unit(bench: Bench) -> None:
    """A blank device at a port is left blank, and nothing is counted."""
    board = SimulatedBoard(new_flash("SN-0001"))

    settlement = resume(bench, board)

    assert settlement.exit_code == 0
    assert bench.ca.ledger.attempts() == []
    assert board.read_flash().private_key == b""


def test_what_always_breaks_off_is_quarantined_in_the_end(bench: Bench) -> None:
    """A device that is silent at the same place three times is no accident of the cable."""
    board = SimulatedBoard(new_flash("SN-0001"))
    outcomes = [bench.burn(bench.port(board, "silent-at=COMMIT")).outcome for _ in range(3)]

    assert outcomes == [Outcome.OPEN, Outcome.OPEN, Outcome.QUARANTINED]
    assert_reconciled(bench)


def test_nothing_is_settled_while_somebody_burns(bench: Bench) -> None:
    """An open row may be a burn that runs right now: resume refuses, and leaves it open."""
    cut_short(bench, SimulatedBoard(new_flash("SN-0001")), "kill", Step.HASH)

    with bench.ca.folder.burning(), pytest.raises(Fault, match="units are being burned"):
        resume(bench)

    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.ISSUED]


@pytest.mark.parametrize("at", [Step.HELLO, Step.LABEL])
def test_ctrl_c_during_resume_takes_no_unit_s_certificate_away(bench: Bench, at: Step) -> None:
    """Nobody said no: nothing more is asked, nothing is set aside, and the next resume finishes the unit."""
    board, elsewhere = SimulatedBoard(new_flash("SN-0001")), SimulatedBoard(new_flash("SN-0002"))
    for one in (board, elsewhere):
        cut_short(bench, one, "kill", Step.HASH)

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    port = bench.port(board)
    if at is Step.HELLO:
        port.read = interrupted  # type: ignore[method-assign]
    ports = {"0": port, "1": bench.port(SimulatedBoard(new_flash("SN-0003")))}
    asked: list[str] = []

    def opened(name: str) -> nullcontext[SimulatedPort]:
        asked.append(name)
        return nullcontext(ports[name])

    settlement = settle(
        bench.ca.folder, bench.ca, bench.ca.ledger, ports, opened, station="line-a", order=UnitOrder(label=interrupted)
    )

    assert asked == ["0"]
    assert (settlement.set_aside, settlement.exit_code) == ((), 1)
    assert [unit.hardware_serial for unit in settlement.left_open] == ["SN-0001", "SN-0002"]
    assert len(bench.ca.ledger.certificates(state=CertificateState.ISSUED)) == len(CAS) + 2
    resume(bench, board, elsewhere)
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.RECORDED] * 2


def test_a_unit_that_breaks_off_during_resume_stays_open_and_an_absent_one_does_not(bench: Bench) -> None:
    """Its device was there, so its certificate stays valid for the next try; three times are enough as ever."""
    board = SimulatedBoard(new_flash("SN-0001"))
    for one in (board, SimulatedBoard(new_flash("SN-0002"))):
        cut_short(bench, one, "kill", Step.HASH)

    def resumed() -> Settlement:
        port = Cut(bench.port(board).simulation)

        def pull(_: frozenset[str]) -> str:
            port.pulled = True
            return "SN-0001"

        return settle(
            bench.ca.folder, bench.ca, bench.ca.ledger, ["0"], lambda _: nullcontext(port),
            station="line-a", order=UnitOrder(label=pull),
        )  # fmt: skip

    settlements = [resumed() for _ in range(3)]

    assert [[unit.hardware_serial for unit in one.left_open] for one in settlements] == [["SN-0001"], ["SN-0001"], []]
    assert [unit.hardware_serial for unit in settlements[0].set_aside] == ["SN-0002"]
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.QUARANTINED] * 2
    assert_reconciled(bench)


# --- quarantine, rework, scrap


def quarantined(bench: Bench) -> SimulatedBoard:
    board = SimulatedBoard(new_flash("SN-0001"))
    cut_short(bench, board, "kill", Step.HASH)
    resume(bench)
    return board


def test_a_quarantined_unit_is_not_burned_before_a_person_has_looked(bench: Bench) -> None:
    """Refused, and the device is not touched; retired, it is burned again with a new key."""
    board = quarantined(bench)
    before = board.read_flash()

    refused = bench.burn(bench.port(board))
    unchanged = board.read_flash() == before
    bench.ca.ledger.retire(bench.ca.ledger.units()[0], "looked at: cable")
    again = bench.burn(bench.port(board))

    assert (refused.passed, refused.step, refused.outcome) == (False, Step.RESERVE, Outcome.FAILED)
    assert "retire" in refused.hint
    assert unchanged
    assert again.passed, again


def test_a_scrapped_unit_is_never_burned_again(bench: Bench) -> None:
    """Its certificate is revoked, its box is refused for ever, and its id is free for the unit in its place."""
    board = SimulatedBoard(new_flash("SN-0001"))
    assert bench.burn(bench.port(board), order=UnitOrder(device_id="press-07", seal_policy=SealPolicy.ERASABLE)).passed

    bench.ca.ledger.scrap(bench.ca.ledger.units()[0], "housing broken")

    assert bench.ca.ledger.certificates(subject="press-07", state=CertificateState.ISSUED) == []
    again = bench.burn(bench.port(board), order=UnitOrder(device_id="press-08"))
    assert not again.passed
    with pytest.raises(UnitTaken, match="scrapped"):
        bench.ca.ledger.reserve("SN-0001", "another", "press-09", "line-a")
    replacement = bench.burn(bench.port(SimulatedBoard(new_flash("SN-0002"))), order=UnitOrder(device_id="press-07"))
    assert replacement.passed, replacement


@pytest.mark.parametrize("policy", list(SealPolicy))
def test_a_unit_that_came_back_gets_a_new_certificate_if_it_may_be_erased(bench: Bench, policy: SealPolicy) -> None:
    """Re-provisioning: retired first, then burned with a new key; a device sealed for good stays as it is."""
    board = SimulatedBoard(new_flash("SN-0001"))
    order = UnitOrder(seal_policy=policy)
    first = bench.burn(bench.port(board), order=order)
    refused = bench.burn(bench.port(board), order=order)
    bench.ca.ledger.retire(bench.ca.ledger.units()[0], "new owner")

    again = bench.burn(bench.port(board), order=order)

    assert not refused.passed
    assert again.passed == (policy is SealPolicy.ERASABLE), again
    valid = bench.ca.ledger.certificates(subject="sn-0001", state=CertificateState.ISSUED)
    assert len(valid) == int(again.passed)
    assert not again.passed or again.spki_sha256 != first.spki_sha256


# --- labels and what a work order asks


def test_the_right_label_passes_and_a_wrong_one_fails_before_the_seal(bench: Bench) -> None:
    """F7: serial or id on the label is the unit's; another unit's label fails this one, unsealed."""

    def wrong(_: frozenset[str]) -> str:
        return "SN-0002"

    board = SimulatedBoard(new_flash("SN-0001"))
    failed = bench.burn(bench.port(board), order=UnitOrder(label=wrong))
    sealed = board.read_flash().seal_policy
    silent = bench.burn(bench.port(board), order=UnitOrder(label=lambda _: None))
    passed = bench.burn(bench.port(board), order=UnitOrder(device_id="press-07", label=lambda _: "press-07"))

    assert (failed.step, failed.outcome, sealed) == (Step.LABEL, Outcome.FAILED, None)
    assert "the label says SN-0002" in failed.reason
    assert (silent.step, silent.outcome) == (Step.LABEL, Outcome.FAILED)
    assert passed.passed, passed


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (UnitOrder(model="other"), "the work order is for other"),
        (UnitOrder(firmware=("9.9",)), "the work order wants 9.9"),
        (UnitOrder(presented=Presented(work_order="WO-1", quantity=1)), "wants 1 units"),
        (UnitOrder(presented=Presented(work_order="WO-1", quota=1)), "quota of 1"),
    ],
    ids=["model", "firmware", "quantity", "quota"],
)
def test_what_the_work_order_does_not_want_is_not_touched(bench: Bench, order: UnitOrder, words: str) -> None:
    """Model, firmware, quantity and quota are judged before a key is made."""
    before = UnitOrder(presented=Presented(work_order="WO-1"))
    assert bench.burn(bench.port(SimulatedBoard(new_flash("SN-0009"))), order=before).passed
    board = SimulatedBoard(new_flash("SN-0001"))

    verdict = bench.burn(bench.port(board), order=order)

    assert not verdict.passed
    assert words in verdict.reason
    assert board.read_flash().private_key == b""
