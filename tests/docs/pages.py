"""Reads the commands out of a documentation page, and runs them the way a reader would.

A fenced block says in its info string, which no reader sees, how the test is to take it:

    sh                        run it, in order, in the page's scratch folder; it must end 0
    sh exit=1                 the same, and it must end 1: the page shows a refusal
    sh expects=TEXT           and TEXT is said, by it or by something in the background
    sh background ready=TEXT  start it and go on once it has printed TEXT; it is ended after the page
    sh by=PATH                not run here: every line of it stands in the file PATH, which runs it
    toml file=NAME            write the block to NAME (any language)

Everything else in a fence is for reading only. The port 8883 is replaced by a free one.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.environment import unmeasured

REPOSITORY = Path(__file__).resolve().parents[2]
PORT_IN_PAGES = "8883"
BLOCK_TIMEOUT_S = 180.0  # against hanging; it judges no speed, and test machines are slow and shared
READY_TIMEOUT_S = 20.0

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language, what its info string asks for, its text and the line it starts on."""

    language: str
    marks: dict[str, str]
    text: str
    line: int


def blocks_of(page: str) -> Iterator[Block]:
    """Every fenced block of a page, in order."""
    for found in _FENCE.finditer(page):
        language, *words = shlex.split(found["info"]) or [""]
        pairs = (word.partition("=") for word in words)
        marks = {key: value for key, _, value in pairs}
        yield Block(language, marks, found["text"], page.count("\n", 0, found.start()) + 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Reader:
    """Follows one page in a scratch folder of its own. `close` ends what the page left running."""

    folder: Path
    programs: Path
    port: int = field(default_factory=free_port)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def follow(self, block: Block) -> None:
        """Do what the block's info string asks for; AssertionError with the output when it is not as said."""
        text = block.text.replace(PORT_IN_PAGES, str(self.port))
        if "file" in block.marks:
            (self.folder / block.marks["file"]).write_text(text, encoding="utf-8")
        elif block.language != "sh":
            return
        elif "by" in block.marks:
            check_run_elsewhere(block)
        elif "background" in block.marks:
            self._start(text, block)
        else:
            self._run(text, block)

    def close(self) -> None:
        for process in reversed(self.running):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.programs), os.environ["PATH"], "/usr/sbin", "/sbin"])
        return {**unmeasured(), "PATH": path, "PYTHONUNBUFFERED": "1", "HOME": str(self.folder)}

    def _run(self, text: str, block: Block) -> None:
        expected = int(block.marks.get("exit", "0"))
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            said, complained = process.communicate(timeout=BLOCK_TIMEOUT_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # what bash started would go on without it
            process.communicate()
            raise
        logs = "".join(log.read_text(errors="replace") for log in sorted(self.folder.glob("background-*.log")))
        assert process.returncode == expected, (
            f"line {block.line} ended {process.returncode}, not {expected}\n{text}\n{said}{complained}{logs}"
        )
        wanted = block.marks.get("expects", "")
        if wanted not in said:
            self._wait_for(wanted, block, sorted(self.folder.glob("background-*.log")))

    def _start(self, text: str, block: Block) -> None:
        log = self.folder / f"background-{block.line}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["stdbuf", "-oL", "bash", "-euo", "pipefail", "-c", text],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(process)
        self._wait_for(block.marks["ready"], block, [log], process)

    def _wait_for(
        self, wanted: str, block: Block, logs: list[Path], process: subprocess.Popen[bytes] | None = None
    ) -> None:
        """Wait until one of the logs holds the text, as long as `process` runs."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while wanted not in (said := "".join(log.read_text(errors="replace") for log in logs)):
            status = process.poll() if process else None
            assert status is None, f"line {block.line} ended {status}\n{block.text}\n{said}"
            assert time.monotonic() < deadline, f"line {block.line}: nobody said {wanted!r}\n{said}"
            time.sleep(0.05)


def check_run_elsewhere(block: Block) -> None:
    """Every command of the block stands word for word in the file that is said to run it."""
    runner = REPOSITORY / block.marks["by"]
    assert runner.is_file(), f"line {block.line}: {block.marks['by']} does not exist"
    text = runner.read_text(encoding="utf-8")
    commands = [line.split(" # ")[0].strip() for line in block.text.splitlines()]
    missing = [command for command in commands if command and not command.startswith("#") and command not in text]
    assert not missing, f"line {block.line}: {block.marks['by']} does not run {missing}"
