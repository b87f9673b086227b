"""The serial source on a real pseudo-terminal: unplug and replug, half lines, over-long lines, a second reader."""

import os
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial

from device_sim.lines import MAX_LINE_BYTES, Accept
from device_sim.serial_port import AgentPort, PortLost
from device_sim.sources import SerialSource, parse_source
from tests.device_sim.processes import wait_for


class Cable:
    """A serial cable that can be pulled: a pseudo-terminal behind a link."""

    def __init__(self, link: Path) -> None:
        self.link = link
        self.master = -1

    def plug_in(self) -> None:
        self.master, slave = os.openpty()
        tty.setraw(slave)
        self.link.symlink_to(os.ttyname(slave))
        os.close(slave)

    def pull(self) -> None:
        self.link.unlink()
        os.close(self.master)

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.master, data) :]


class Reader:
    """A source in its thread, and what it emitted."""

    def __init__(self, source: SerialSource) -> None:
        self.seen: list[bytes] = []
        self.said: list[str] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=source.run, args=(self._emit, self.stop, self.said.append))
        self.thread.start()

    def _emit(self, payload: bytes) -> bool:
        self.seen.append(payload)
        return True

    def waits_for(self, *payloads: bytes) -> None:
        wait_for(f"{payloads!r}", lambda: self.seen == list(payloads))

    def reads(self, times: int = 1) -> None:
        wait_for("an open port", lambda: sum(text.startswith("reading") for text in self.said) == times)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def cable(tmp_path: Path) -> Cable:
    return Cable(tmp_path / "ttyUSB0")


@pytest.fixture
def reader(cable: Cable) -> Iterator[Reader]:
    reader = Reader(SerialSource(str(cable.link)))
    yield reader
    reader.end()


def test_a_device_may_come_later_go_and_come_back(cable: Cable, reader: Reader) -> None:
    """Waiting before the first plug, reading, waiting after an unplug in mid-line, reading again."""
    wait_for("a word about the port", lambda: reader.said)
    cable.plug_in()
    reader.reads()
    cable.write(b"half of a line\n21.5\n21")
    reader.waits_for(b"21.5")
    cable.pull()
    wait_for("the loss", lambda: any("went away" in text for text in reader.said))
    cable.plug_in()
    reader.reads(2)
    cable.write(b".7\n21.9\n")
    reader.waits_for(b"21.5", b"21.9")
    cable.pull()


def test_waiting_is_said_once(cable: Cable, reader: Reader) -> None:
    """A device that stays away for days does not fill the log."""
    wait_for("a word", lambda: reader.said)
    cable.plug_in()
    reader.reads()
    assert sum("waiting for it" in text for text in reader.said) == 1
    cable.pull()


def test_an_over_long_line_does_not_take_the_next_one_with_it(cable: Cable, reader: Reader) -> None:
    """Resynchronised at its newline, wherever the reads cut it."""
    cable.plug_in()
    reader.reads()
    cable.write(b"\nbefore\n")
    reader.waits_for(b"before")
    cable.write(b"x" * (3 * MAX_LINE_BYTES) + b"\nafter\n")
    reader.waits_for(b"before", b"after")
    cable.pull()


def test_a_pause_is_not_the_end_of_a_line(cable: Cable, reader: Reader) -> None:
    """A line that comes in pieces over more than a read's time is one line."""
    cable.plug_in()
    reader.reads()
    cable.write(b"\n21")
    assert not reader.stop.wait(0.5)
    cable.write(b".5\n")
    reader.waits_for(b"21.5")
    cable.pull()


def test_a_port_in_use_is_waited_for(cable: Cable) -> None:
    """Exclusive: while another program has it open the agent waits, and reads when it is free."""
    cable.plug_in()
    other = serial.Serial(str(cable.link), exclusive=True)
    reader = Reader(SerialSource(str(cable.link)))
    wait_for("a word", lambda: any("another program has it open" in text for text in reader.said))
    other.close()
    reader.reads()
    cable.write(b"\nfree\n")
    reader.waits_for(b"free")
    reader.end()
    cable.pull()


def test_the_agent_keeps_others_out(cable: Cable) -> None:
    """The twin: a second opener is refused while the agent reads."""
    cable.plug_in()
    port = AgentPort(str(cable.link), baud=115200, dtr=True, rts=True)
    with pytest.raises(PortLost, match="another program has it open"):
        AgentPort(str(cable.link), baud=115200, dtr=True, rts=True)
    port.close()
    port.close()
    cable.pull()


@pytest.mark.parametrize("what", ["nothing", "file", "folder", "fifo", "null"])
def test_what_is_no_port_is_a_lost_port(what: str, tmp_path: Path) -> None:
    """Every one of them is a reason in a few words, and none of them blocks."""
    path = tmp_path / "port"
    if what == "file":
        path.write_text("x")
    elif what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "null":
        path.symlink_to("/dev/null")
    with pytest.raises(PortLost, match=r"\w"):
        AgentPort(str(path), baud=115200, dtr=True, rts=True)


def test_a_source_url_holds_every_setting() -> None:
    """baud, accept, dtr and rts as written; the defaults otherwise."""
    source = parse_source("serial:///dev/ttyUSB0?baud=9600&accept=json&dtr=0&rts=1")
    assert source == SerialSource("/dev/ttyUSB0", 9600, Accept.JSON, dtr=False, rts=True)
    assert parse_source("serial:///dev/ttyACM0") == SerialSource("/dev/ttyACM0", 115200, Accept.TEXT)
