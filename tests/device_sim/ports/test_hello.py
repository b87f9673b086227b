"""A device is found by its answer to HELLO, whatever port it is on; the devices are real virtual ones."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from device_sim.ports.config import load
from device_sim.ports.finding import DeviceName, check_hello
from device_sim.ports.reader import PortReader
from device_sim.ports.spool import Spool, WhenFull
from device_sim.serial_port import AgentPort, PortLost
from tests.device_sim.ports.test_config import AGENT, PORT, written
from tests.device_sim.processes import device_sim, wait_for
from tests.device_sim.test_serial_source import Cable


@pytest.fixture
def two_devices(tmp_path: Path) -> Iterator[Path]:
    """A folder with tty-a, which is SN-1, and tty-b, which is SN-2."""
    with (
        device_sim("virtual-device", "--link", tmp_path / "tty-a", "--serial", "SN-1") as one,
        device_sim("virtual-device", "--link", tmp_path / "tty-b", "--serial", "SN-2") as two,
    ):
        one.says("on ")
        two.says("on ")
        wait_for("both links", lambda: len(list(tmp_path.glob("tty-*"))) == 2)
        yield tmp_path


def test_the_device_that_answers_with_the_serial_is_taken(two_devices: Path) -> None:
    """The one that was asked for passes; the other one on the same question does not."""
    for link, hardware_serial in (("tty-a", "SN-1"), ("tty-b", "SN-2")):
        port = AgentPort(str(two_devices / link), baud=115200, dtr=True, rts=True)
        check_hello(port, hardware_serial)
        with pytest.raises(PortLost, match=f"another device answers HELLO there: {hardware_serial}"):
            check_hello(port, "SN-9")
        port.close()


def test_a_port_without_an_answer_is_refused(tmp_path: Path) -> None:
    """The twin: a cable on which nobody speaks SPP/1 is not taken for the device."""
    cable = Cable(tmp_path / "tty")
    cable.plug_in()
    port = AgentPort(str(cable.link), baud=115200, dtr=True, rts=True)
    with pytest.raises(PortLost, match="no device answers"):
        check_hello(port, "SN-1")
    port.close()
    cable.pull()


@pytest.mark.parametrize(("hardware_serial", "said"), [("SN-2", "tty-b"), ("SN-9", "another device answers")])
def test_a_pattern_finds_the_device_among_others(two_devices: Path, hardware_serial: str, said: str) -> None:
    """Every port that fits is asked; when none is the one, none is read."""
    settings = load(written(two_devices, AGENT + PORT)).ports[0]
    settings = replace(settings, device=DeviceName(f"{two_devices}/tty-*", hardware_serial))
    spool = Spool(two_devices / "spool.db", 10**6, WhenFull.WAIT, lambda text: None)
    words: list[str] = []
    reader = PortReader(settings, spool, words.append, lambda *ended: None)
    stop = threading.Event()
    thread = threading.Thread(target=reader.run, args=(stop,))
    thread.start()
    wait_for(said, lambda: any(said in text for text in words))
    stop.set()
    thread.join(20)
    assert any(text.startswith("reading") for text in words) == (hardware_serial == "SN-2")
    spool.close()
