"""Other makers' tools as judges, each in a virtual environment of its own: they must not share our dependencies."""

import fcntl
import subprocess
import sys
from pathlib import Path

from tests.support.environment import unmeasured

JUDGES = Path(__file__).parents[3] / ".judges"


def judge(requirement: str) -> Path:
    """The Python of a virtual environment that holds `requirement` (NAME==VERSION); made at its first use."""
    JUDGES.mkdir(exist_ok=True)
    home = JUDGES / requirement.replace("=", "-")
    with (JUDGES / "lock").open("w") as lock:  # tests run in parallel
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            python = [sys.executable, "-m"]
            subprocess.run([*python, "venv", "--clear", "--without-pip", home], env=unmeasured(), check=True)
            pip = [*python, "pip", "--quiet", "--disable-pip-version-check", "--python", str(home / "bin/python")]
            subprocess.run([*pip, "install", requirement], env=unmeasured(), check=True, capture_output=True)
            (home / "ready").touch()
    return home / "bin/python"
