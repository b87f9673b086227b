"""The spool on a real SQLite file: what was put is there after kill -9, goes by PUBACK only, and keeps to its bound."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from device_sim.outbox import PER_READING_BYTES
from device_sim.ports.spool import Message, Spool, WhenFull
from mtls.errors import ConfigFault, Fault
from tests.device_sim.processes import wait_for

PUTS_AND_IS_KILLED = """
import sys
from pathlib import Path
from device_sim.ports.spool import Message, Spool, WhenFull
spool = Spool(Path(sys.argv[1]), 10**6, WhenFull.WAIT, print)
for number in range(10**6):
    spool.put([Message("t", b"%d" % number)])
    print(number, flush=True)
"""


def open_spool(path: Path, room: int = 1000, when_full: WhenFull = WhenFull.DROP_OLDEST) -> Spool:
    return Spool(path / "spool.db", room * (PER_READING_BYTES + 3), when_full, lambda text: None)


def put(spool: Spool, *numbers: int) -> bool:
    return spool.put([Message("t", b"%02d" % number) for number in numbers])


def drain(spool: Spool) -> list[tuple[int, bytes]]:
    return [(row, message.payload) for row, message in iter(spool.take, None)]


def payloads(spool: Spool) -> list[bytes]:
    return [payload for _, payload in drain(spool)]


def test_what_was_put_is_there_after_a_kill(tmp_path: Path) -> None:
    """kill -9 of a process that says a number after each put: every number said is there, in order, once."""
    path = tmp_path / "spool.db"
    command = [sys.executable, "-c", PUTS_AND_IS_KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        said = [int(child.stdout.readline()) for _ in range(100)]
        os.kill(child.pid, signal.SIGKILL)
        said += [int(line) for line in child.stdout.read().splitlines()]
    spool = open_spool(tmp_path)
    found = [int(payload) for payload in payloads(spool)]
    spool.close()
    assert found[: len(said)] == said == list(range(len(said)))
    assert len(found) <= len(said) + 1


def test_only_an_acknowledgement_deletes(tmp_path: Path) -> None:
    """Sent is not gone: after a loss and after a new start everything but the acknowledged comes again, in order."""
    spool = open_spool(tmp_path)
    put(spool, 1, 2, 3, 4)
    for packet_id, (row, _) in enumerate(drain(spool), 11):
        spool.sent(packet_id, row)
    spool.acknowledge([12, 99])
    spool.connection_lost()
    assert payloads(spool) == [b"01", b"03", b"04"]
    spool.close()
    again = open_spool(tmp_path)
    assert payloads(again) == [b"01", b"03", b"04"]
    assert not again.is_empty
    again.close()


def test_the_oldest_are_dropped_and_counted(tmp_path: Path) -> None:
    """Room for ten: of fifteen the last ten stay, five are counted; what is in flight is not dropped."""
    spool = open_spool(tmp_path, 10)
    put(spool, 0)
    taken = spool.take()
    assert taken is not None
    spool.sent(1, taken[0])
    for number in range(1, 15):
        put(spool, number)
    spool.acknowledge([1])
    assert payloads(spool) == [b"%02d" % number for number in range(6, 15)]
    assert spool.tally.dropped == 5
    assert spool.tally.acknowledged == 1
    spool.close()


def test_with_wait_nothing_is_dropped(tmp_path: Path) -> None:
    """The twin: the putter is held back until an acknowledgement makes room; the end lets it go empty-handed."""
    spool = open_spool(tmp_path, 2, WhenFull.WAIT)
    put(spool, 1)
    put(spool, 2)
    answers: list[bool] = []
    putter = threading.Thread(target=lambda: [answers.append(put(spool, number)) for number in (3, 4)])
    putter.start()
    row, _ = drain(spool)[0]
    assert answers == []
    spool.sent(1, row)
    spool.acknowledge([1])
    wait_for("room", lambda: answers == [True])
    spool.end()
    putter.join(20)
    assert answers == [True, False]
    assert spool.tally.dropped == 0
    spool.close()


def test_the_bound_counts_what_an_earlier_run_left(tmp_path: Path) -> None:
    """A restart does not forget how full it is."""
    spool = open_spool(tmp_path, 10)
    put(spool, *range(10))
    spool.close()
    again = open_spool(tmp_path, 10)
    put(again, 10)
    assert payloads(again) == [b"%02d" % number for number in range(1, 11)]
    again.close()


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    """Junk instead of a database: kept under another name, said, and the agent goes on with an empty one."""
    (tmp_path / "spool.db").write_bytes(b"junk " * 5000)
    said: list[str] = []
    spool = Spool(tmp_path / "spool.db", 10**6, WhenFull.WAIT, said.append)
    assert put(spool, 1)
    spool.close()
    assert any("set aside" in text for text in said)
    assert [path.read_bytes()[:4] for path in tmp_path.glob("spool.db.corrupt-*") if path.suffix[-4:] != "-wal"] == [
        b"junk"
    ]


def test_a_spool_of_a_newer_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Its schema is named; for the program that knows it, every reading is still there."""
    spool = open_spool(tmp_path)
    put(spool, 1, 2)
    spool.close()
    path = tmp_path / "spool.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        (known,) = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version = {known + 1}")
    with pytest.raises(
        ConfigFault, match=f"has schema {known + 1}, and this version of device-sim knows schema {known}"
    ):
        open_spool(tmp_path)
    assert not list(tmp_path.glob("*.corrupt-*"))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version = {known}")
    spool = open_spool(tmp_path)
    assert payloads(spool) == [b"01", b"02"]
    spool.close()


def test_one_process_has_a_spool(tmp_path: Path) -> None:
    """A second agent on the same file is refused; after the first one's end it is not."""
    spool = open_spool(tmp_path)
    with pytest.raises(Fault, match="has the store"):
        open_spool(tmp_path)
    spool.close()
    open_spool(tmp_path).close()


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    """Readings are nobody else's business."""
    spool = open_spool(tmp_path)
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    spool.close()
