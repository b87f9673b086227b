"""Where the gateway's time comes from: the floor on disk, and whoever vouches for the clock (traps R6, U7)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway import time_service, timekeeping
from gateway.time_service import TimeService, chrony_mark
from gateway.timekeeping import Timekeeper, build_date, counter, read_floor
from mtls.clock import Moment, TimeState
from tests.support.machine import LONG_AGO, Machine

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
LOOK = timedelta(seconds=timekeeping.LOOK_S)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
CHRONY = "A9FEA97B,169.254.169.123,4,1764000000.5,0.000001,0.0,0.0,1.0,0.0,0.01,0.0003,0.0002,16.2,Normal\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, NOON)


def watched(keeper: Timekeeper, monkeypatch: pytest.MonkeyPatch, until: Callable[[], bool]) -> list[TimeState]:
    """Run the keeper's task until something holds; the states that it told."""
    told: list[TimeState] = []
    monkeypatch.setattr(timekeeping, "LOOK_S", 0.001)

    async def run() -> None:
        task = asyncio.create_task(keeper.watch(lambda: told.append(keeper().state)))
        async with asyncio.timeout(10):
            while not until():  # noqa: ASYNC110 - what is waited for is no event
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    return told


def test_the_floor_is_the_newest_of_what_is_known(machine: Machine) -> None:
    """Installation, a kept time, and what CAs have signed: the row names the one that counts."""
    keeper = machine.keeper()
    assert (keeper.row()["floor"], keeper.row()["floor_from"]) == (
        LONG_AGO.isoformat(),
        "the installation of this program",
    )
    machine.floor_file.write_text("2026-05-01T00:00:00+00:00\n")
    keeper = machine.keeper()
    assert keeper.row()["floor_from"] == "the last good time that was kept"
    keeper.learn({"a CRL": NOON - DAY, "the root": LONG_AGO})
    assert (keeper().at, keeper.row()["floor_from"]) == (NOON - DAY, "a CRL")


@pytest.mark.parametrize("content", [b"", b"soon\n", b"\xff\xfe", b"2026-06-01T00:00:00+00:00" + b" " * 100])
def test_a_floor_file_that_cannot_be_read_is_told_and_not_used(
    machine: Machine, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged card costs some floor and never the start."""
    machine.floor_file.write_bytes(content)
    assert machine.keeper()().at == LONG_AGO
    assert "floor_file" in caplog.text


def test_a_good_time_is_kept_seldom(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before it has been good for a while, then a few times a day: each write wears the card."""
    written: list[datetime] = []
    keeper = machine.keeper()
    monkeypatch.setattr(keeper, "_keep", lambda good: (written.append(good), setattr(keeper, "kept", good)))
    machine.synchronise(NOON)
    looks = 0

    def a_day_is_over() -> bool:
        nonlocal looks
        looks += 1
        machine.wait(MINUTE)
        return looks >= 24 * 60

    assert watched(keeper, monkeypatch, a_day_is_over) == [TimeState.SYNCED]
    assert 4 <= len(written) <= 5
    assert written[0] - NOON >= timekeeping.KEEP_AFTER


def test_an_orderly_end_keeps_the_time_whole(machine: Machine) -> None:
    """The next boot begins where this one ended, and only the owner's folder has the file."""
    keeper = machine.keeper()
    machine.synchronise(NOON)
    assert keeper().synced
    machine.wait(HOUR)
    keeper.close()
    assert read_floor(machine.floor_file) == NOON + HOUR
    assert [path.name for path in machine.folder.iterdir() if path.suffix == ".tmp"] == []


def test_within_a_second_the_time_is_told_by_the_counter(machine: Machine) -> None:
    """A storm of connections asks the machine once a second; who sets the clock meanwhile is found out after it."""
    keeper = machine.keeper()
    machine.synchronise(NOON)
    assert keeper().synced
    machine.wait(LOOK / 2)
    machine.wall -= DAY
    assert keeper() == Moment(NOON + LOOK / 2)
    machine.wait(LOOK / 2)
    assert keeper() == Moment(NOON + LOOK, TimeState.FLOOR)


def test_a_new_floor_is_held_against_the_clock_at_once(machine: Machine) -> None:
    """A CRL that is newer than the clock: the next connection is judged by it already."""
    keeper = machine.keeper()
    machine.synchronise(NOON)
    assert keeper().synced
    keeper.learn({"a CRL": NOON + HOUR})
    assert not keeper().synced


def test_a_time_that_nobody_vouches_for_is_never_kept(machine: Machine) -> None:
    """The twin: a wrong floor would stay for ever."""
    keeper = machine.keeper()
    machine.wait(DAY)
    keeper.close()
    machine.synchronise(NOON)
    assert keeper().synced
    machine.wait(HOUR)
    machine.jump(timedelta(days=3650))
    keeper.close()
    assert not machine.floor_file.exists()


def test_a_card_that_cannot_be_written_is_told_once(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """Serving goes on, and so does the time."""
    machine.floor_file = machine.folder / "missing" / "time-floor"
    keeper = machine.keeper()
    machine.synchronise(NOON)
    keeper()
    machine.wait(HOUR)
    keeper.close()
    keeper.close()
    assert caplog.text.count("the time is not kept") == 1
    assert keeper().synced


def test_every_change_of_the_state_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From the floor to a synchronised clock, once each, with the reason."""
    caplog.set_level(logging.INFO)
    keeper = machine.keeper()
    states = watched(keeper, monkeypatch, lambda: "until it is synchronised" in caplog.text)
    machine.synchronise(NOON)
    states += watched(keeper, monkeypatch, lambda: "the clock is synchronised" in caplog.text)
    assert states == [TimeState.FLOOR, TimeState.SYNCED]


def test_the_installation_and_the_counter_are_of_this_machine() -> None:
    """What a real gateway starts from."""
    assert LONG_AGO < build_date() <= datetime.now(UTC)
    assert 0 < counter() <= counter()


def test_a_file_of_a_time_service_is_a_mark_that_changes_with_it(tmp_path: Path) -> None:
    """systemd-timesyncd touches its file each time it sets the clock; before that there is none."""
    file = tmp_path / "synchronized"
    service = TimeService("./synchronized", tmp_path)
    assert service.mark() is None
    file.touch()
    first = service.mark()
    assert first is not None
    assert service.mark() == first
    later = file.stat().st_mtime + 1

    os.utime(file, (later, later))
    assert service.mark() not in (None, first)


def test_a_clock_that_the_operator_vouches_for_is_always_believed() -> None:
    """`source = "clock"`: a battery, or a container whose host keeps the time."""
    service = TimeService("clock")
    assert service.mark() is not None
    assert service.mark() != service.mark()


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put programs of these names on the PATH that print something and end with a code."""
    monkeypatch.setattr(time_service, "TIMESYNCD_FILE", tmp_path / "no-timesyncd")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=None)

    def put(name: str, output: str, code: int = 0) -> None:
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\nprintf '%s' '{output}'\nexit {code}\n")
        program.chmod(0o755)

    return put


def test_timedatectl_is_asked_where_there_is_no_file(commands: Callable[..., None]) -> None:
    """Each time that it says yes after a no is another word."""
    service = TimeService("auto")
    marks = []
    for answer in ("no", "yes", "yes", "no", "yes"):
        commands("timedatectl", answer + "\n")
        service.ask()
        marks.append(service.mark())
    assert marks[0] is None
    assert marks[1] == marks[2] is not None
    assert marks[3] is None
    assert marks[4] not in (None, marks[1])


def test_chrony_is_asked_when_timedatectl_does_not_know(commands: Callable[..., None]) -> None:
    """chrony without rtcsync leaves the kernel's flag alone, and containers have no timedatectl that works."""
    commands("timedatectl", "", 1)
    commands("chronyc", CHRONY.strip())
    service = TimeService("auto")
    service.ask()
    assert service.mark() == "chrony 1764000000.5"


def test_without_anybody_to_ask_nobody_vouches(commands: Callable[..., None]) -> None:
    """The twin: no program, no file, no word."""
    service = TimeService("auto")
    service.ask()
    assert service.mark() is None


def test_a_file_is_not_asked_twice(commands: Callable[..., None], tmp_path: Path) -> None:
    """A source that is a file knows no programs."""
    commands("timedatectl", "yes")
    service = TimeService(str(tmp_path / "none"))
    service.ask()
    assert service.mark() is None


@pytest.mark.parametrize(
    ("report", "mark"),
    [
        (CHRONY, "chrony 1764000000.5"),
        (CHRONY.replace("Normal", "Insert second"), "chrony 1764000000.5"),
        (CHRONY.replace("Normal", "Not synchronised"), None),
        (CHRONY.replace(",0.000001,", ",315360000.0,"), None),
        (CHRONY.replace(",0.000001,", ",soon,"), None),
        ("506 Cannot talk to daemon\n", None),
        ("", None),
    ],
    ids=["normal", "leap second", "not synchronised", "still correcting", "no number", "no daemon", "nothing"],
)
def test_chrony_vouches_only_for_a_clock_that_it_has_set(report: str, mark: str | None) -> None:
    """One line of `chronyc -c tracking`."""
    assert chrony_mark(report) == mark
