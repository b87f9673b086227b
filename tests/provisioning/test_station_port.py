"""The serial port: every way of not being one is a sentence with a hint, and nothing waits for ever."""

import os
import pty
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import serial

from provisioning.port import PortFault, SerialPort


@dataclass
class Line:
    """A pseudo-terminal: our end and the path of the other."""

    master: int
    path: str


@pytest.fixture
def line() -> Iterator[Line]:
    """A pseudo-terminal with nobody at its end but the test."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    path = os.ttyname(slave)
    os.close(slave)
    yield Line(master, path)
    try:
        os.close(master)
    except OSError:
        return  # the test pulled the plug


def test_bytes_go_both_ways(line: Line) -> None:
    """The allow: what one side writes, the other reads, and a write says how long it takes on the wire."""
    with SerialPort(line.path, baud=9600) as port:
        assert port.write(b"x" * 96) == pytest.approx(0.1)
        assert os.read(line.master, 200) == b"x" * 96
        os.write(line.master, b"hello")
        assert port.read(1.0) == b"hello"


def test_a_read_ends_after_its_time(line: Line) -> None:
    """Nothing to read is an empty answer, not an error and not a wait without end."""
    with SerialPort(line.path) as port:
        assert port.read(0.01) == b""
        assert port.read(-1.0) == b""


def test_a_port_in_use_is_refused_and_free_again_after_close(line: Line) -> None:
    """F7: one worker per port; the second hears who to look for, and may come once the first has left."""
    with SerialPort(line.path), pytest.raises(PortFault, match="another program has it open") as refused:
        SerialPort(line.path)
    assert "fuser" in refused.value.hint
    SerialPort(line.path).close()


@pytest.mark.parametrize(("make", "words"), [
    (lambda path: None, "does not exist"),
    (lambda path: path.write_text("no port"), "not a serial port"),
    (os.mkfifo, "not a serial port"),
    (lambda path: path.mkdir(), "not a serial port"),
    (lambda path: path.symlink_to("/dev/null"), "no serial port"),
], ids=["missing", "file", "fifo", "folder", "null"])  # fmt: skip
def test_what_is_no_port_is_one_sentence(tmp_path: Path, make: object, words: str) -> None:
    """No traceback and no open of something else: a sentence naming the path, and a hint."""
    path = tmp_path / "port"
    assert callable(make)
    make(path)
    with pytest.raises(PortFault, match=words) as refused:
        SerialPort(str(path))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.hint
    assert refused.value.exit_code == 1


def test_both_lines_are_decided_before_the_port_is_opened(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """U2: a board that resets on an edge of DTR or RTS sees none of ours; the port is asked for exclusively."""
    seen: dict[str, object] = {}
    really_open = serial.Serial.open

    def look_and_open(self: serial.Serial) -> None:
        seen.update(dtr=self.dtr, rts=self.rts, exclusive=self.exclusive, is_open=self.is_open)
        really_open(self)

    monkeypatch.setattr(serial.Serial, "open", look_and_open)
    SerialPort(line.path).close()
    assert seen == {"dtr": True, "rts": True, "exclusive": True, "is_open": False}


def test_an_unplugged_port_is_a_fault_at_the_next_read_and_write(line: Line) -> None:
    """U1: `is_open` would still say yes; the error of the system decides."""
    with SerialPort(line.path) as port:
        os.close(line.master)
        with pytest.raises(PortFault, match="went away"):
            port.read(1.0)
        with pytest.raises(PortFault, match="went away"):
            port.write(b"x")


def test_a_port_comes_back_under_the_same_path(line: Line, tmp_path: Path) -> None:
    """After a reset the path may lead to another node: it is resolved again."""
    link = tmp_path / "port"
    link.symlink_to(line.path)
    other_master, other_slave = pty.openpty()
    try:
        with SerialPort(str(link)) as port:
            os.close(line.master)
            link.unlink()
            link.symlink_to(os.ttyname(other_slave))
            port.reopen(5.0)
            port.write(b"again")
            assert os.read(other_master, 10) == b"again"
    finally:
        os.close(other_slave)
        os.close(other_master)


def test_a_port_that_stays_away_is_given_up(line: Line, tmp_path: Path) -> None:
    """The deny twin: the deadline holds, and the sentence says what was waited for."""
    link = tmp_path / "port"
    link.symlink_to(line.path)
    with SerialPort(str(link)) as port:
        link.unlink()
        with pytest.raises(PortFault, match=r"did not come back within 0\.2 s"):
            port.reopen(0.2)
