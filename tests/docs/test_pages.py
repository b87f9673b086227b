"""Every command that README.md and the pages in docs/ show is run, page by page, in order."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.docs.pages import REPOSITORY, Block, Reader, blocks_of, check_run_elsewhere

PAGES = ("README.md", *sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").glob("*.md")))
PROGRAMS = Path(sys.executable).parent


def runs(number: int) -> bool:
    """Whether the process is there and has not ended; a zombie waits for whoever takes in orphans."""
    try:
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_page_do_what_it_says(page: str, tmp_path: Path) -> None:
    """A reader who types the page's commands in order gets the exit status that the page leads them to expect."""
    reader = Reader(tmp_path, PROGRAMS)
    try:
        for block in blocks_of((REPOSITORY / page).read_text(encoding="utf-8")):
            reader.follow(block)
    finally:
        reader.close()


def test_the_first_page_shows_the_three_programs() -> None:
    """README.md runs each program at least once, so its examples cannot go stale."""
    shown = "".join(block.text for block in blocks_of((REPOSITORY / "README.md").read_text(encoding="utf-8")))
    assert [name for name in ("mqtt-provision", "mqtt-gateway", "device-sim") if f"{name} " not in shown] == []


def test_a_command_that_fails_fails_the_page(tmp_path: Path) -> None:
    """The twin: a page with a wrong command, or a refusal that does not come, is not taken for right."""
    reader = Reader(tmp_path, PROGRAMS)
    for fence in ("```sh\nfalse\n```", "```sh exit=1\ntrue\n```", "```sh\ntrue | false | true\n```"):
        with pytest.raises(AssertionError, match="ended"):
            reader.follow(next(blocks_of(fence)))
    reader.follow(next(blocks_of("```sh exit=1\nfalse\n```")))


def test_words_that_nobody_says_fail_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`expects=TEXT` is fulfilled by the block itself or by a program in the background, and by nothing else."""
    monkeypatch.setattr("tests.docs.pages.READY_TIMEOUT_S", 0.5)
    reader = Reader(tmp_path, PROGRAMS)
    reader.follow(next(blocks_of("```sh background ready=up\necho up; echo behind; exec sleep 60\n```")))
    reader.follow(next(blocks_of("```sh expects=here\necho here\n```")))
    reader.follow(next(blocks_of("```sh expects=behind\necho here\n```")))
    with pytest.raises(AssertionError, match="nobody said"):
        reader.follow(next(blocks_of("```sh expects=elsewhere\necho here\n```")))
    reader.close()


def test_a_command_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page fails, and nothing of it runs on."""
    monkeypatch.setattr("tests.docs.pages.BLOCK_TIMEOUT_S", 1.0)
    with pytest.raises(subprocess.TimeoutExpired):
        Reader(tmp_path, PROGRAMS).follow(next(blocks_of("```sh\nsleep 60 & echo $! >pid; wait\n```")))
    number, deadline = int((tmp_path / "pid").read_text(encoding="ascii")), time.monotonic() + 20
    while runs(number):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_background_program_that_ends_at_once_fails_the_page(tmp_path: Path) -> None:
    """A program that says nothing of being ready and ends is not taken for running."""
    reader = Reader(tmp_path, PROGRAMS)
    with pytest.raises(AssertionError, match="ended 3"):
        reader.follow(next(blocks_of("```sh background ready=up\nexit 3\n```")))
    reader.follow(next(blocks_of("```sh background ready=up\necho up; exec sleep 60\n```")))
    reader.close()
    assert [process.poll() is None for process in reader.running] == [False, False]


def test_a_command_said_to_run_elsewhere_must_stand_there() -> None:
    """`by=PATH` is checked: the file must exist and hold the command."""
    check_run_elsewhere(Block("sh", {"by": ".ci/run"}, "make test\n", 1))
    with pytest.raises(AssertionError, match="does not run"):
        check_run_elsewhere(Block("sh", {"by": ".ci/run"}, "make coffee\n", 1))
    with pytest.raises(AssertionError, match="does not exist"):
        check_run_elsewhere(Block("sh", {"by": "absent"}, "make test\n", 1))
