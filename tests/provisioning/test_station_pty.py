"""Real burns over a pseudo-terminal: the command line on one side, the virtual device on the other."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from device_sim.faults import parse_faults
from device_sim.simulated_board import SimulatedBoard, new_flash
from device_sim.simulation import Simulation
from device_sim.virtual_device import Terminal
from device_sim.virtual_device import run as run_virtual_device
from provisioning.burning import BURNING, OPENING, Step, Verdict, burn
from provisioning.ledger import CertificateState, UnitState
from provisioning.port import SerialPort
from provisioning.trace import Trace
from tests.device_sim.processes import BIN, device_sim, run_tool
from tests.device_sim.processes import running as a_program
from tests.provisioning.station_bench import Bench, open_bench

WAIT_S = 20.0
NOISY_LIMIT_S = 60.0


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A station with a CA of its own."""
    with open_bench(tmp_path) as bench:
        yield bench


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not path.is_symlink():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


@contextmanager
def virtual_device(link: Path, board: SimulatedBoard, *faults: str) -> Iterator[None]:
    """The virtual device on a pseudo-terminal, in a thread."""
    simulation = Simulation(board, faults=parse_faults(faults), seed=1, now=time.monotonic())
    wake, stop = os.pipe()
    thread = threading.Thread(target=run_virtual_device, args=(simulation, Terminal(link), wake, time.monotonic))
    thread.start()
    try:
        wait_for(link)
        yield
    finally:
        os.write(stop, b"x")
        thread.join(WAIT_S)
        os.close(wake)
        os.close(stop)
        assert not thread.is_alive()


def burn_over(link: Path, bench: Bench) -> Verdict:
    with SerialPort(str(link)) as port, Trace.open(bench.folder / "trace") as trace:
        return burn(port, bench.ca, bench.ca.ledger, station="line-a", trace=trace)


FAULTY = [
    ("silent-at=HELLO", Step.HELLO),
    ("bad-csr-signature", Step.CSR),
    ("wrong-key", Step.CSR),
    ("lying-prove", Step.PROVE_KEYED),
    ("wrong-digest", Step.HASH),
    ("wrong-digest-after-reset", Step.HASH_AFTER_RESET),
    ("forgets-key", Step.PROVE_RESET),
    ("change-uid-after-reset", Step.IDENT_AFTER_RESET),
    ("same-boot-id", Step.RESET),
    ("flash-error=COMMIT", Step.WRITE_CHAIN),
    ("flash-error=SEAL", Step.SEAL),
    ("rng-error", Step.KEYGEN),
]


@pytest.mark.parametrize(("fault", "step"), FAULTY, ids=[fault for fault, _ in FAULTY])
def test_a_faulty_device_on_a_real_terminal_fails_at_its_step(
    bench: Bench, tmp_path: Path, fault: str, step: Step
) -> None:
    """The same verdict as on the bench, with real time and a real port; no certificate stays valid."""
    with virtual_device(tmp_path / "dev0", SimulatedBoard(new_flash("SN-0001")), fault):
        verdict = burn_over(tmp_path / "dev0", bench)

    assert (verdict.passed, verdict.step, verdict.exit_code) == (False, step, 1), verdict
    assert bench.ca.ledger.certificates(subject="sn-0001", state=CertificateState.ISSUED) == []
    assert {unit.state for unit in bench.ca.ledger.units()} <= {UnitState.FAILED}


@pytest.mark.parametrize(
    "faults",
    [(), ("replug-on-reset",), ("reset-on-open",), ("slow=KEYGEN", "slow=COMMIT"),
     ("split=0.3",), ("duplicate=0.3", "delay=0.1"), ("drop=0.01", "flip=0.01", "chatter=0.01")],
    ids=lambda faults: "+".join(faults) or "none",
)  # fmt: skip
def test_a_good_device_on_a_real_terminal_passes(bench: Bench, tmp_path: Path, faults: tuple[str, ...]) -> None:
    """The deny's twin: a healthy device, one whose port goes away in the reset, and ones on bad lines."""
    board = SimulatedBoard(new_flash("SN-0001"))
    with virtual_device(tmp_path / "dev0", board, *faults):
        verdict = burn_over(tmp_path / "dev0", bench)

    assert verdict.passed, verdict
    assert board.read_flash().seal_policy is not None
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.RECORDED]


# --- the commands, as processes


@contextmanager
def device_process(folder: Path, *options: str) -> Iterator[Path]:
    """`device-sim virtual-device` as its user starts it."""
    link = folder / "dev0"
    command = [sys.executable, "-c", "from device_sim.cli import main; main()", "virtual-device"]
    with subprocess.Popen(
        [*command, "--link", str(link), "--state", str(folder / "dev0.json"), "--serial", "SN-0001", *options],
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_for(link)
            yield link
        finally:
            process.terminate()
            process.wait(WAIT_S)


def burn_command(folder: Path, port: Path, *options: str) -> list[str]:
    command = [sys.executable, "-c", "from provisioning.cli import main; main()", "burn"]
    return [*command, "--port", str(port), "--dir", str(folder / "ca"), "--station", "line-a", *options]


def run_burn(folder: Path, port: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(burn_command(folder, port, *options), capture_output=True, text=True, timeout=60, check=False)


def test_the_command_prints_pass_once_and_exits_zero(bench: Bench, tmp_path: Path) -> None:
    """PASS on standard output, the steps on standard error; a second burn of the sealed unit is FAIL with exit 1."""
    with device_process(tmp_path) as link:
        first = run_burn(tmp_path, link, "--id", "press-07")
        second = run_burn(tmp_path, link, "--id", "press-07", "--json")

    assert (first.returncode, first.stdout.split(":")[0]) == (0, "PASS press-07"), first.stderr
    steps = [step for step, _ in (*OPENING, *BURNING) if step not in (Step.LABEL, Step.CONNECT)]
    assert [step for step in steps if f"{link}: {step}" not in first.stderr] == []
    assert second.returncode == 1
    assert json.loads(second.stdout)["verdict"] == "FAIL"
    assert "Traceback" not in first.stderr + second.stderr


def test_the_command_says_fail_with_step_and_exits_one(bench: Bench, tmp_path: Path) -> None:
    """F1: a failed write fails the unit, with the device's error in one line on standard output."""
    with device_process(tmp_path, "--fault", "flash-error=COMMIT") as link:
        result = run_burn(tmp_path, link)

    assert result.returncode == 1
    assert result.stdout.startswith("FAIL sn-0001 at write-chain: the device answered COMMIT with E_FLASH")
    assert result.stdout.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_ctrl_c_at_the_command_is_fail_and_leaves_the_unit_open(bench: Bench, tmp_path: Path) -> None:
    """SIGINT while the device is silent: FAIL, exit 1, the row open for the next burn, no traceback."""
    with (
        device_process(tmp_path, "--fault", "silent-at=BEGIN") as link,
        subprocess.Popen(
            burn_command(tmp_path, link), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stderr is not None
        for line in process.stderr:
            if "write-chain" in line:
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=WAIT_S)

    assert process.returncode == 1
    assert output == "FAIL sn-0001 at write-chain: interrupted at the station; unfinished: resume it\n"
    assert "Traceback" not in errors
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.ISSUED]


def test_kill_9_in_the_middle_is_settled_by_the_next_burn(bench: Bench, tmp_path: Path) -> None:
    """F8: the row stays open, and the next burn passes with the same key and certificate."""
    with device_process(tmp_path, "--fault", "slow=COMMIT") as link:
        with subprocess.Popen(burn_command(tmp_path, link), stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "write-ca" in line:
                    break
            process.kill()
            process.wait(WAIT_S)
        assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.ISSUED]
        again = run_burn(tmp_path, link)

    assert again.returncode == 0, again.stdout + again.stderr
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.RECORDED]
    states = [row.state for row in bench.ca.ledger.certificates(subject="sn-0001")]
    assert states == [CertificateState.ISSUED]


def test_a_busy_port_is_refused_at_the_command(bench: Bench, tmp_path: Path) -> None:
    """F7: two stations on one port: the second ends with a sentence, and the first unit is not disturbed."""
    with device_process(tmp_path) as link, SerialPort(str(link)):
        result = run_burn(tmp_path, link)

    assert result.returncode == 1
    assert f"error: cannot open {link}: another program has it open" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("rate", [0.01, 0.0002])
def test_a_noisy_cable_ends_every_burn_with_a_verdict(tmp_path: Path, rate: float) -> None:
    """A terminal whose line damages one byte in a hundred, or in 5,000: four burns at once, and none hangs."""
    burns = []
    for seed in range(4):
        ca, link = tmp_path / f"ca{seed}", tmp_path / f"dev{seed}"
        run_tool("mqtt-provision", "ca", "init", "--insecure-dev", "--dir", ca)
        burns.append((ca, link, seed))
    with ExitStack() as devices:
        for _, link, seed in burns:
            noise = ("--fault", f"noise={rate}", "--seed", seed)
            devices.enter_context(device_sim("virtual-device", "--link", link, "--serial", f"SN-{seed}", *noise))
            wait_for(link)
        running = [
            devices.enter_context(
                a_program(BIN / "mqtt-provision", "burn", "--port", link, "--dir", ca, "--id", "press-1", "--json")
            )
            for ca, link, _ in burns
        ]
        verdicts = []
        for (ca, _, _), burn_program in zip(burns, running, strict=True):
            code = burn_program.ends(NOISY_LIMIT_S)
            verdict = json.loads(burn_program.out)
            verdicts.append(verdict["verdict"])
            listed = run_tool("mqtt-provision", "ledger", "list", "--dir", ca, "--json").stdout
            recorded = [unit for unit in json.loads(listed)["units"] if unit["state"] == "recorded"]
            assert (code == 0) == (verdict["verdict"] == "PASS") == bool(recorded), verdict
            assert verdict["verdict"] == "PASS" or verdict["reason"]
    assert rate > 0.001 or verdicts == ["PASS"] * 4
