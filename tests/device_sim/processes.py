"""Real processes for tests: `device-sim`, mosquitto, and waiting without guessing how long."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

DEADLINE_S = 20.0
BIN = Path(sys.executable).parent


def wait_for(what: str, happened: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Poll until `happened` gives something true; fail with `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        found = happened()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"in {deadline_s:g} s there was no {what}")


class Program:
    """A child process whose two outputs are collected as they come."""

    def __init__(self, *command: object, stdin: int | None = subprocess.DEVNULL, env: Mapping[str, str] | None = None):
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
        )
        self.out, self.err = bytearray(), bytearray()
        self._readers = [
            threading.Thread(target=self._collect, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _collect(stream: Any, into: bytearray) -> None:
        while chunk := stream.read1(65536):
            into += chunk

    def says(self, text: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait until `text` stands in the error output."""

        def is_there() -> bool:
            return text.encode() in self.err or self.process.poll() is not None

        wait_for(f"{text!r} from the program", is_there, deadline_s)
        self._settle()
        assert text.encode() in self.err, self.err.decode()

    def ends(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(deadline_s)
        self._settle()
        return code

    def stop(self, kind: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end."""
        if self.process.poll() is None:
            self.process.send_signal(kind)
        return self.ends()

    def _settle(self) -> None:
        if self.process.poll() is not None:
            for reader in self._readers:
                reader.join(DEADLINE_S)
            for stream in (self.process.stdout, self.process.stderr, self.process.stdin):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()


@contextlib.contextmanager
def running(*command: object, **options: Any) -> Iterator[Program]:
    """A program that is ended with the block."""
    program = Program(*command, **options)
    try:
        yield program
    finally:
        if program.process.poll() is None:
            program.process.terminate()
        try:
            program.ends()
        except subprocess.TimeoutExpired:
            program.process.kill()
            raise


def device_sim(*arguments: object, **options: Any) -> contextlib.AbstractContextManager[Program]:
    """`device-sim` with these arguments."""
    return running(BIN / "device-sim", *arguments, **options)


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program of ours that ends by itself."""
    text = [str(BIN / name), *(str(part) for part in arguments)]
    return subprocess.run(text, capture_output=True, text=True, timeout=60, check=False)


def free_port() -> int:
    """A port that was free a moment ago; mosquitto cannot be asked which one it took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
