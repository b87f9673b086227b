"""Brokers as processes: started with a log, waited for until they serve, ended in order or cut off.

Whoever starts a process here ends it: `Program` is a context manager, and only its own process is ever signalled.
When the starter itself is killed, the kernel ends what it has started: a broker of a test never outlives the test.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from mtls.errors import Fault

START_TIMEOUT_S = 30.0  # a Pi under load
END_TIMEOUT_S = 10.0
SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin")  # where Debian puts mosquitto, off a user's PATH
LOG_TAIL_BYTES = 2000
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Becomes the program, after it has asked for SIGKILL at the end of the thread that started it (prctl(2),
# PR_SET_PDEATHSIG, which exec keeps). Asking too late, when that one has ended already, is the second line.
LEASH = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def command_named(name: str) -> str:
    """The path of a program: beside this Python, on the PATH, or where brokers are installed; Fault when absent."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", ""), *SYSTEM_FOLDERS]))
    if found is None:
        raise Fault(f"there is no program {name}", hint=f"install {name}, or choose another target")
    return found


def leashed(command: Sequence[str]) -> list[str]:
    """The command as a program that does not outlive the thread that starts it; on Linux only."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", LEASH, str(os.getpid()), *command]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def resident_bytes(process_id: int | None) -> int | None:
    """A process's memory; None when there is no such process."""
    try:
        return int(Path(f"/proc/{process_id}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES
    except (OSError, ValueError):
        return None


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Poll until `condition` holds; Fault naming `what` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise Fault(f"{what} did not come true within {timeout_s:g} s")
        time.sleep(0.02)


class Program:
    """One process of ours, with what it says in `log`."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        self.name = Path(command[0]).name
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                leashed(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait as long as the process lives; Fault with the end of its log when it does not."""
        try:
            wait_until(lambda: self.process.poll() is not None or condition(), what, timeout_s)
        except Fault:
            self.end()
            raise
        if self.process.poll() is not None:
            raise Fault(f"{self.name} ended {self.process.returncode}: {self.tail()}")

    def said(self, words: str) -> int:
        """How often these words stand in its log."""
        return self.log.read_text(errors="replace").count(words)

    def tail(self) -> str:
        """The last lines of its log."""
        return self.log.read_text(errors="replace")[-LOG_TAIL_BYTES:].strip() if self.log.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        """Tell it something."""
        self.process.send_signal(number)

    def end(self, *, is_killed: bool = False) -> None:
        """SIGTERM, and SIGKILL when that is not enough, or at once."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL if is_killed else signal.SIGTERM)
        try:
            self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
