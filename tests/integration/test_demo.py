"""`make demo`, the first thing a newcomer types."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from tests.integration.programs import ENVIRONMENT, REPOSITORY, attempt, wait_until
from tests.support.environment import unmeasured

STEPS = 7
PLAIN = {key: value for key, value in unmeasured(ENVIRONMENT).items() if not key.startswith(("MAKE", "MFLAGS"))}


def make(*settings: str) -> list[str]:
    """The command, `make demo`, with settings."""
    return ["make", "demo", *settings]


def test_the_demo_shows_the_whole_chain_in_under_a_minute(tmp_path: Path) -> None:
    """`make demo` ends 0 with a row per step, and every file it made is in the one folder that it names."""
    folder = tmp_path / "demo"
    start = time.monotonic()
    done = subprocess.run(
        make(f"DIR={folder}"), cwd=REPOSITORY, env=PLAIN, capture_output=True, text=True, timeout=120, check=False
    )
    took = time.monotonic() - start
    assert done.returncode == 0, done.stdout + done.stderr
    assert took < 60
    table = done.stdout[done.stdout.index("step") :].splitlines()
    assert len([row for row in table if re.search(r" \d+\.\d  ", row)]) == STEPS
    assert max(len(row) for row in table if str(folder) not in row) <= 80
    assert "PASS" in done.stdout
    assert "no_grant" in done.stdout
    assert "certificate_revoked" in done.stdout
    assert f"is in {folder}" in done.stdout
    commands = (folder / "commands.txt").read_text(encoding="utf-8")
    assert all(program in commands for program in ("mqtt-provision", "mqtt-gateway", "device-sim"))


def test_the_demo_leaves_no_program_behind(tmp_path: Path) -> None:
    """Nothing that the demo started is running when it has ended, even when it is interrupted half-way."""
    folder = tmp_path / "demo"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            make(f"DIR={folder}", "KEEP=1"), cwd=REPOSITORY, env=PLAIN, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: (folder / "gateway/audit.jsonl").exists() or process.poll() is not None, "the gateway", 60)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=30)
    running = attempt("ps", "-eo", "args").stdout
    assert str(folder) not in running


def test_the_demo_does_not_touch_a_folder_that_is_there(tmp_path: Path) -> None:
    """The deny twin: an existing folder is refused with a hint, and stays as it was."""
    done = subprocess.run(
        make(f"DIR={tmp_path}"), cwd=REPOSITORY, env=PLAIN, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "exists already" in done.stderr
    assert list(tmp_path.iterdir()) == []
