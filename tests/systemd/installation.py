"""Calls `make install`, `upgrade` and `uninstall` below a folder, and knows where things land."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


class Installation:
    """One DESTDIR. The checkout that is installed is this one unless `source` names a copy."""

    def __init__(self, destdir: Path, *, pip_flags: str = "", source: Path = REPOSITORY) -> None:
        self.destdir = destdir
        self.pip_flags = pip_flags
        self.source = source
        self.prefix = destdir / "opt/mqtt-gateway"
        self.etc = destdir / "etc/mqtt-gateway"
        self.units = destdir / "usr/local/lib/systemd/system"
        self.data = destdir / "var/lib/mqtt-gateway"

    def run(self, target: str, **settings: str) -> str:
        """Run a make target; its output, or a failed test with everything it printed."""
        done = self.attempt(target, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def attempt(self, target: str, **settings: str) -> subprocess.CompletedProcess[str]:
        # An installation starts from the operator's Python, not from the environment the tests run in.
        base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "COV_"))},
            "DESTDIR": str(self.destdir),
            "PIP_FLAGS": self.pip_flags,
            "PYTHON": str(base),
            **settings,
        }
        command = ["make", "-C", str(self.source), target]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
