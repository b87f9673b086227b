"""A burn is PASS only when all of it is true: every fault of a device is a FAIL with its step, and revokes."""

import base64
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key

from device_sim.simulated_board import SimulatedBoard, new_flash
from device_sim.spp1_board import Flash
from mtls.profiles import fingerprint_sha256
from provisioning.burning import BURNING, FINISHING, OPENING, Step, UnitOrder
from provisioning.ledger import UNFINISHED, CertificateState, Outcome, UnitState
from provisioning.possession import spki_der
from provisioning.spp1.protocol import Obj, SealPolicy, State
from tests.provisioning.station_bench import Bench, open_bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A station with a CA of its own."""
    with open_bench(tmp_path) as bench:
        yield bench


def leaf_in(flash: Flash) -> x509.Certificate:
    return x509.load_pem_x509_certificates(flash.objects[Obj.CHAIN])[0]


# --- the allow, and who else says so


def test_a_good_device_passes_and_holds_what_the_record_says(bench: Bench) -> None:
    """PASS: the unit is recorded, the device is sealed, and its flash holds the recorded certificate of its key."""
    board = SimulatedBoard(new_flash("SN-0001"))

    verdict = bench.burn(bench.port(board))

    assert verdict.passed, verdict
    assert verdict.exit_code == 0
    assert verdict.device_id == "sn-0001"
    flash = board.read_flash()
    assert flash.seal_policy is SealPolicy.FINAL
    leaf = leaf_in(flash)
    key = load_der_private_key(flash.private_key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert leaf.public_key() == key.public_key()
    assert fingerprint_sha256(leaf) == verdict.fingerprint_sha256
    (unit,) = bench.ca.ledger.units()
    assert unit.state is UnitState.RECORDED
    (row,) = bench.ca.ledger.certificates(subject="sn-0001")
    assert row.state is CertificateState.ISSUED


def test_openssl_accepts_the_chain_in_the_device(bench: Bench, tmp_path: Path) -> None:
    """What was burned verifies strictly against the root alone, by a program that is not ours."""
    board = SimulatedBoard(new_flash("SN-0001"))
    assert bench.burn(bench.port(board)).passed
    (tmp_path / "chain.pem").write_bytes(board.read_flash().objects[Obj.CHAIN])

    verify = "openssl verify -x509_strict -purpose sslclient -CAfile ca/root.crt -untrusted chain.pem chain.pem"
    result = subprocess.run(
        verify.split(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr


def test_the_name_comes_from_the_work_order(bench: Bench) -> None:
    """The work order's id is certified, whatever the device calls itself; its configuration arrives too."""
    board = SimulatedBoard(new_flash("SN-0001"))

    verdict = bench.burn(bench.port(board), order=UnitOrder(device_id="press-07", conf={"gateway": "gw:8883"}))

    assert verdict.device_id == "press-07"
    assert leaf_in(board.read_flash()).subject.rfc4514_string() == "CN=press-07"
    assert board.read_flash().objects[Obj.CONF] == b'{"gateway":"gw:8883","id":"press-07"}'


@pytest.mark.parametrize(("serial", "step"), [("SN 1", Step.RESERVE), ("a/b", Step.RESERVE)])
def test_a_hardware_serial_that_is_no_device_id_needs_one_from_the_order(bench: Bench, serial: str, step: Step) -> None:
    """The serial is not bent into an id: without --id it is a FAIL, with one a PASS."""
    board = SimulatedBoard(new_flash(serial))

    refused = bench.burn(bench.port(board))
    named = bench.burn(bench.port(board), order=UnitOrder(device_id="press-07"))

    assert (refused.passed, refused.step) == (False, step)
    assert named.passed


# --- every fault of a device

FAULTY = [
    *[(f"silent-at={verb}", step) for verb, step in {
        "HELLO": Step.HELLO, "IDENT": Step.IDENT, "KEYGEN": Step.KEYGEN, "PROVE": Step.PROVE_KEYED,
        "CSR": Step.CSR, "READ": Step.CSR, "BEGIN": Step.WRITE_CHAIN, "DATA": Step.WRITE_CHAIN,
        "COMMIT": Step.WRITE_CHAIN, "HASH": Step.HASH, "RESET": Step.RESET, "SEAL": Step.SEAL,
    }.items()],
    *[(f"power-loss={verb}", step) for verb, step in {
        "IDENT": Step.IDENT, "KEYGEN": Step.KEYGEN, "PROVE": Step.PROVE_KEYED, "CSR": Step.CSR, "READ": Step.CSR,
        "BEGIN": Step.WRITE_CHAIN, "DATA": Step.WRITE_CHAIN, "COMMIT": Step.WRITE_CHAIN, "HASH": Step.HASH,
        "SEAL": Step.SEAL,
    }.items()],
    *[(f"power-loss-after={verb}", step) for verb, step in {
        "IDENT": Step.IDENT, "KEYGEN": Step.KEYGEN, "PROVE": Step.PROVE_KEYED, "CSR": Step.CSR, "READ": Step.CSR,
        "BEGIN": Step.WRITE_CHAIN, "DATA": Step.WRITE_CHAIN, "COMMIT": Step.WRITE_CHAIN, "HASH": Step.HASH,
        "SEAL": Step.SEAL,
    }.items()],
    ("bad-csr-signature", Step.CSR),
    ("wrong-key", Step.CSR),
    ("lying-prove", Step.PROVE_KEYED),
    ("wrong-digest", Step.HASH),
    ("wrong-digest-after-reset", Step.HASH_AFTER_RESET),
    ("forgets-key", Step.PROVE_RESET),
    ("change-uid-after-reset", Step.IDENT_AFTER_RESET),
    ("no-reset", Step.RESET),
    ("same-boot-id", Step.RESET),
    ("flash-error=KEYGEN", Step.KEYGEN),
    ("flash-error=COMMIT", Step.WRITE_CHAIN),
    ("flash-error=SEAL", Step.SEAL),
    ("rng-error", Step.KEYGEN),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "step"), FAULTY, ids=[fault for fault, _ in FAULTY])
def test_a_faulty_device_fails_at_its_step(bench: Bench, fault: str, step: Step) -> None:
    """FAIL with the step and a sentence and exit code 1: what said no failed the row, what broke off left it open."""
    board = SimulatedBoard(new_flash("SN-0001"))

    verdict = bench.burn(bench.port(board, fault))

    assert (verdict.passed, verdict.step, verdict.exit_code) == (False, step, 1), verdict
    assert verdict.reason
    assert "\n" not in str(verdict)
    units = bench.ca.ledger.units()
    if step in (Step.HELLO, Step.IDENT):
        assert units == []
    elif fault.startswith(("silent-at", "power-loss")):
        assert [unit.state in UNFINISHED for unit in units] == [True]
        assert verdict.outcome is Outcome.OPEN
    else:
        assert [(unit.state, unit.step) for unit in units] == [(UnitState.FAILED, step)]
        assert bench.ca.ledger.certificates(subject="sn-0001", state=CertificateState.ISSUED) == []
    started = 0 if step is Step.HELLO else 1
    assert bench.ca.ledger.counts().started == started


@pytest.mark.parametrize("fault", [fault for fault, _ in FAULTY])
def test_the_same_unit_passes_once_the_fault_is_gone(bench: Bench, fault: str) -> None:
    """The deny's twin: what a failed burn left in the device's flash does not keep it from being burned well."""
    board = SimulatedBoard(new_flash("SN-0001"))
    assert not bench.burn(bench.port(board, fault)).passed

    verdict = bench.burn(bench.port(board))

    assert verdict.passed, verdict
    valid = bench.ca.ledger.certificates(subject="sn-0001", state=CertificateState.ISSUED)
    assert [row.fingerprint_sha256 for row in valid] == [fingerprint_sha256(leaf_in(board.read_flash()))]


@pytest.mark.parametrize("fault", ["slow=KEYGEN", "slow=COMMIT", "slow=SEAL", "replug-on-reset", "power-loss=RESET"])
def test_what_the_protocol_survives_is_no_failure(bench: Bench, fault: str) -> None:
    """`busy`, a USB port that comes back, and a reset by power instead of by firmware end in PASS."""
    assert bench.burn(bench.port(None, fault)).passed


NOISE = ["drop=0.05", "duplicate=0.2", "flip=0.05", "split=0.3", "delay=0.1", "chatter=0.5"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", NOISE)
def test_noise_is_survived_or_failed_but_never_passed_wrongly(bench: Bench, noise: str, seed: int) -> None:
    """On a noisy line PASS still means recorded, sealed and holding the recorded certificate."""
    board = SimulatedBoard(new_flash("SN-0001"))

    verdict = bench.burn(bench.port(board, noise, seed=seed))

    (unit,) = bench.ca.ledger.units()
    if verdict.passed:
        assert unit.state is UnitState.RECORDED
        assert board.read_flash().seal_policy is not None
        assert fingerprint_sha256(leaf_in(board.read_flash())) == verdict.fingerprint_sha256
    else:
        assert unit.state in UNFINISHED | {UnitState.FAILED}


BYTE_NOISE = [*((0.01, seed) for seed in range(6)), *((0.001, seed) for seed in range(6))]


@pytest.mark.parametrize(("rate", "seed"), BYTE_NOISE)
def test_a_line_that_damages_bytes_ends_in_pass_or_in_a_fail_that_a_good_line_mends(
    bench: Bench, rate: float, seed: int
) -> None:
    """All six kinds at once. PASS has its proofs; FAIL leaves nothing that counts, and one certificate in the end."""
    board = SimulatedBoard(new_flash("SN-0001"))

    noisy = bench.burn(bench.port(board, f"noise={rate}", seed=seed))
    if not noisy.passed:
        assert noisy.reason
        assert [unit for unit in bench.ca.ledger.units() if unit.state is UnitState.RECORDED] == []
        mended = bench.burn(bench.port(board))
        sealed_in_noise = noisy.step in {Step.SEAL, Step.PROVE_SEALED, Step.RECORD}
        assert mended.passed or sealed_in_noise, mended

    issued = [row for row in bench.ca.ledger.certificates(subject="sn-0001") if row.state is CertificateState.ISSUED]
    assert [fingerprint_sha256(leaf_in(board.read_flash()))] == [row.fingerprint_sha256 for row in issued]


def test_half_a_byte_in_a_thousand_is_survived_by_shorter_frames(bench: Bench) -> None:
    """A chain of three frames of a thousand bytes gets through in more and shorter ones."""
    for seed in range(4):
        verdict = bench.burn(bench.port(SimulatedBoard(new_flash(f"SN-{seed}")), "noise=0.0005", seed=seed))
        assert verdict.passed, verdict


def test_light_noise_of_every_kind_is_survived(bench: Bench) -> None:
    """Repetition does its work: a line that loses and damages two frames in a hundred still burns a unit."""
    verdict = bench.burn(bench.port(None, "drop=0.02", "flip=0.02", "duplicate=0.1", "chatter=0.2", seed=1))

    assert verdict.passed, verdict


@pytest.mark.parametrize("count", range(200, 9000, 400))
def test_power_lost_at_any_byte_leaves_no_wrong_pass(bench: Bench, count: int) -> None:
    """Wherever the power goes, the verdict, the ledger and the device agree."""
    board = SimulatedBoard(new_flash("SN-0001"))
    port = bench.port(board, f"power-loss-byte={count}")

    verdict = bench.burn(port)

    is_sealed = port.simulation.state is State.SEALED
    recorded = [unit for unit in bench.ca.ledger.units() if unit.state is UnitState.RECORDED]
    assert verdict.passed == bool(recorded)
    assert is_sealed or not verdict.passed


# --- identity and keys


class SwappedBoard(SimulatedBoard):
    """While `swapped`, another unit stands in the socket."""

    swapped = False

    def read_flash(self) -> Flash:
        flash = super().read_flash()
        return replace(flash, uid="another-chip") if self.swapped else flash


@pytest.mark.parametrize(
    ("at", "verb"),
    [
        (Step.KEYGEN, "KEYGEN"),
        (Step.WRITE_CHAIN, "BEGIN"),
        (Step.WRITE_CONF, "BEGIN"),
        (Step.RESET, "RESET"),
        (Step.SEAL, "SEAL"),
    ],
)
def test_a_device_that_was_swapped_is_not_touched(bench: Bench, at: Step, verb: str) -> None:
    """F7: identity is read again before every destructive verb, and another unit is left as it was."""
    board = SwappedBoard(new_flash("SN-0001"))
    port = bench.port(board)
    seen = {"flash": board.read_flash(), "sent": len(port.sent)}

    def swap(step: Step) -> None:
        if step is at:
            seen.update(flash=board.read_flash(), sent=len(port.sent))
            board.swapped = True

    verdict = bench.burn(port, progress=swap)
    board.swapped = False

    assert (verdict.passed, verdict.step) == (False, at)
    assert "uid differs" in verdict.reason
    assert board.read_flash() == seen["flash"]
    after_the_swap = b"".join(port.sent[int(str(seen["sent"])) :])
    assert b"IDENT" in after_the_swap
    assert f'"c":"{verb}"'.encode() not in after_the_swap


class ClonedBoard(SimulatedBoard):
    """A board with a broken generator: every unit makes the same key."""

    key = b""

    def new_key(self, seed: bytes) -> bytes:
        ClonedBoard.key = ClonedBoard.key or super().new_key(seed)
        return ClonedBoard.key


def test_the_same_public_key_twice_stops_the_line(bench: Bench) -> None:
    """F3: the second unit with a key that the ledger knows is a FAIL that stops the line; the first stays good."""
    first = bench.burn(bench.port(ClonedBoard(new_flash("SN-0001"))))

    second = bench.burn(bench.port(ClonedBoard(new_flash("SN-0002"))))

    assert first.passed
    assert (second.passed, second.step, second.stop_line) == (False, Step.KEYGEN, True)
    assert "stop the line" in str(second)
    assert bench.ca.ledger.certificates(subject="sn-0002") == []


@pytest.mark.parametrize("which", ["uid", "device id"])
def test_a_name_of_another_unit_is_refused(bench: Bench, which: str) -> None:
    """The ledger's uniqueness reaches the station: a known chip id or device id is a FAIL before any key is made."""
    first = SimulatedBoard(new_flash("SN-0001"))
    assert bench.burn(bench.port(first), order=UnitOrder(device_id="press-07")).passed
    flash = new_flash("SN-0002")
    flash = replace(flash, uid=first.read_flash().uid) if which == "uid" else flash
    second = SimulatedBoard(flash)

    verdict = bench.burn(bench.port(second), order=UnitOrder(device_id="press-08" if which == "uid" else "press-07"))

    assert (verdict.passed, verdict.step) == (False, Step.RESERVE)
    assert second.read_flash().private_key == b""
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.RECORDED]


def test_a_sealed_device_of_somebody_else_is_refused(bench: Bench, tmp_path: Path) -> None:
    """A sealed device that this ledger never burned is a FAIL and stays as it is."""
    board = SimulatedBoard(new_flash("SN-0001"))
    (tmp_path / "other").mkdir()
    with open_bench(tmp_path / "other") as other:
        assert other.burn(other.port(board)).passed

    verdict = bench.burn(bench.port(board))

    assert (verdict.passed, verdict.step) == (False, Step.RESERVE)
    assert bench.ca.ledger.units() == []


def test_a_finished_unit_is_not_burned_again(bench: Bench) -> None:
    """A second burn of a recorded unit is a FAIL that changes nothing: its record and its certificate stay good."""
    board = SimulatedBoard(new_flash("SN-0001"))
    assert bench.burn(bench.port(board)).passed
    before = board.read_flash()

    verdict = bench.burn(bench.port(board))

    assert (verdict.passed, verdict.step) == (False, Step.RESERVE)
    assert board.read_flash() == before
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.RECORDED]
    assert len(bench.ca.ledger.certificates(subject="sn-0001", state=CertificateState.ISSUED)) == 1


# --- interruption

STEPS = [step for step, _ in (*OPENING, *BURNING) if step not in (Step.LABEL, Step.CONNECT)]


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


@pytest.mark.parametrize("at", STEPS)
def test_ctrl_c_is_never_pass_and_the_unit_can_be_burned_again(bench: Bench, at: Step) -> None:
    """F8: interrupted at any step: FAIL, the row waiting to be continued, and the next burn passes with it."""
    board = SimulatedBoard(new_flash("SN-0001"))

    def interrupt(step: Step) -> None:
        if step is at:
            raise KeyboardInterrupt

    verdict = bench.burn(bench.port(board), progress=interrupt)
    states = [unit.state for unit in bench.ca.ledger.units()]
    again = bench.burn(bench.port(board))

    assert (verdict.passed, verdict.step, verdict.exit_code) == (False, at, 1)
    assert set(states) <= UNFINISHED
    assert again.passed, again
    assert len(bench.ca.ledger.units()) == 1
    assert len(bench.ca.ledger.certificates(subject="sn-0001")) == 1


@pytest.mark.parametrize("at", STEPS)
def test_a_killed_station_leaves_nothing_that_the_next_burn_cannot_settle(bench: Bench, at: Step) -> None:
    """F8: after kill -9 at any step the next burn continues the unit, with the key and certificate that it has."""
    board = SimulatedBoard(new_flash("SN-0001"))

    def kill(step: Step) -> None:
        if step is at:
            raise Killed

    with pytest.raises(Killed):
        bench.burn(bench.port(board), progress=kill)
    verdict = bench.burn(bench.port(board))

    assert verdict.passed, verdict
    valid = bench.ca.ledger.certificates(subject="sn-0001", state=CertificateState.ISSUED)
    assert [row.fingerprint_sha256 for row in valid] == [fingerprint_sha256(leaf_in(board.read_flash()))]
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.RECORDED]
    assert len(bench.ca.ledger.certificates(subject="sn-0001")) == 1


def test_a_device_sealed_by_a_killed_run_is_finished_without_touching_it(bench: Bench) -> None:
    """The second run only asks; and a finished device that cannot prove its key is a FAIL."""
    board = SimulatedBoard(new_flash("SN-0001"))

    def kill(step: Step) -> None:
        if step is Step.PROVE_SEALED:
            raise Killed

    with pytest.raises(Killed):
        bench.burn(bench.port(board), progress=kill)
    steps: list[Step] = []
    lying = bench.port(board, "lying-prove")

    verdict = bench.burn(lying, progress=steps.append)

    assert steps == [step for step, _ in (*OPENING, *FINISHING)][:-1]
    assert (verdict.passed, verdict.step) == (False, Step.PROVE_SEALED)
    assert bench.ca.ledger.certificates(subject="sn-0001", state=CertificateState.ISSUED) == []


# --- secrets


def test_no_key_and_no_seed_in_anything_that_was_written(bench: Bench, tmp_path: Path) -> None:
    """F9: the device's key and the seed stand in no trace, ledger or other file of the station."""
    board = SimulatedBoard(new_flash("SN-0001"))
    port = bench.port(board)
    assert bench.burn(port).passed
    key = load_der_private_key(board.read_flash().private_key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    scalar = key.private_numbers().private_value.to_bytes(32, "big")
    (request,) = [data for data in port.sent if b'"KEYGEN"' in data]
    seed = request.split(b'"seed":"')[1].split(b'"')[0]
    secrets = [scalar, scalar.hex().encode(), base64.b64encode(board.read_flash().private_key)[:60], seed]

    written = [path for path in tmp_path.rglob("*") if path.is_file()]

    assert tmp_path / "trace" in written
    assert not [(path, secret) for path in written for secret in secrets if secret in path.read_bytes()]
    assert spki_der(key.public_key()) in base64.b64decode(
        (tmp_path / "trace").read_text().split('"spki":"')[1].split('"')[0]
    )
    assert (tmp_path / "trace").stat().st_mode & 0o777 == 0o600
