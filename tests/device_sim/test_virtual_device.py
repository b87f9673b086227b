"""The device on its pseudo-terminal: hosts come and go, links are cleaned up, power and plugs are pulled."""

import contextlib
import fcntl
import os
import select
import signal
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serial

from device_sim.simulated_board import load_flash
from device_sim.simulation import Simulation
from device_sim.virtual_device import Terminal
from mtls.errors import Fault
from tests.device_sim.processes import device_sim, run_tool, wait_for
from tests.device_sim.spp1_host import b64, frame, in_state, messages
from tests.support.pki import Pki


class Port:
    """A host on a real serial port object."""

    def __init__(self, path: Path) -> None:
        self.port = serial.Serial(str(path), 115200, timeout=0.05, exclusive=True)
        self.seen = b""
        self.sid = ""

    def ask(self, sequence: int, verb: str, **values: Any) -> dict[str, Any]:
        self.port.write(frame({"s": self.sid, "i": sequence, "c": verb, **values}))

        def reply() -> dict[str, Any] | None:
            self.seen += self.port.read(4096)
            return next((found for found in messages(self.seen) if found.get("i") == sequence), None)

        found: dict[str, Any] = wait_for(f"reply to {verb}", reply)
        return found

    def hello(self, nonce: bytes = b"n" * 16) -> dict[str, Any]:
        reply = self.ask(1, "HELLO", proto=[1], station="t", nonce=b64(nonce))
        self.sid = reply["sid"]
        return reply


@pytest.fixture
def link(tmp_path: Path) -> Path:
    return tmp_path / "dev0"


@pytest.fixture
def device(link: Path, tmp_path: Path) -> Iterator[Any]:
    with device_sim("virtual-device", "--link", link, "--state", tmp_path / "dev.json", "--serial", "SN-7") as program:
        wait_for("link", link.is_symlink)
        yield program


def test_a_host_finds_a_device_on_the_link(device: Any, link: Path) -> None:
    """Boot log, HELLO, IDENT over a real serial port."""
    port = Port(link)
    assert port.hello()["state"] == "BLANK"
    assert port.ask(2, "IDENT")["sn"] == "SN-7"
    assert b"boot" in port.seen
    port.port.close()


def test_hosts_come_and_go(device: Any, link: Path) -> None:
    """Twenty openings in a row, each exclusive, each answered; the device does not notice the hang-ups."""
    for number in range(20):
        port = Port(link)
        assert port.hello(number.to_bytes(16, "big"))["state"] == "BLANK"
        port.port.close()
    assert device.process.poll() is None


def test_a_second_host_is_kept_out_while_the_first_is_there(device: Any, link: Path) -> None:
    """pyserial's lock holds on our terminal, and is gone with its owner."""
    first = Port(link)
    with pytest.raises(serial.SerialException):
        Port(link)
    first.port.close()
    Port(link).port.close()


def test_a_host_that_dies_with_tiocexcl_does_not_lock_the_port(device: Any, link: Path) -> None:
    """TIOCEXCL and a close without a word: the next host gets in."""
    descriptor = os.open(link, os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(descriptor, termios.TIOCEXCL)
    os.close(descriptor)
    port = Port(link)
    assert port.hello()["state"] == "BLANK"
    port.port.close()


def test_a_host_that_does_not_read_does_not_stop_the_device(device: Any, link: Path) -> None:
    """Thousands of requests unread: what does not fit is lost, and the next host is served."""
    deaf = os.open(link, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    hello = frame({"s": "", "i": 1, "c": "HELLO", "proto": [1], "station": "t", "nonce": b64(b"d" * 16)})
    written = 0
    end = time.monotonic() + 10
    while written < 400_000 and time.monotonic() < end:
        select.select([], [deaf], [], 0.1)
        try:
            written += os.write(deaf, hello * 20)
        except BlockingIOError:
            continue
    os.close(deaf)
    assert written >= 400_000
    port = Port(link)
    assert port.hello(b"e" * 16)["state"] == "BLANK"
    port.port.close()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_link_is_removed_at_the_end(kind: signal.Signals, device: Any, link: Path) -> None:
    """An orderly end by any of the usual signals: exit 0, no link, the state file stays."""
    assert device.stop(kind) == 0
    assert not link.is_symlink()
    assert load_flash(link.parent / "dev.json").hardware_serial == "SN-7"


def test_a_link_left_by_a_killed_device_is_taken_over(device: Any, link: Path, tmp_path: Path) -> None:
    """kill -9 leaves the link; the next start replaces it and the device is the same."""
    device.stop(signal.SIGKILL)
    assert link.is_symlink()
    with device_sim("virtual-device", "--link", link, "--state", tmp_path / "dev.json") as again:
        again.says("SN-7")
        wait_for("a new terminal", link.exists)
        port = Port(link)
        assert port.hello()["state"] == "BLANK"
        port.port.close()


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_nothing_else_is_replaced_by_the_link(what: str, link: Path) -> None:
    """A file, a folder or a foreign link at the path stays, and the sentence names it."""
    if what == "file":
        link.write_text("precious")
    elif what == "folder":
        link.mkdir()
    else:
        link.symlink_to("/etc/hostname")
    with device_sim("virtual-device", "--link", link) as program:
        assert program.ends() == 1
    assert str(link).encode() in program.err
    assert b"hint:" in program.err
    assert link.exists()


def test_a_reset_may_bring_the_port_back_as_another_node(link: Path) -> None:
    """replug-on-reset: the host sees a hang-up, and the same link leads to another terminal."""
    with device_sim("virtual-device", "--link", link, "--fault", "replug-on-reset") as program:
        wait_for("link", link.is_symlink)
        node = link.readlink()
        port = Port(link)
        first = port.hello()
        with contextlib.suppress(serial.SerialException):  # the hang-up may overtake the reply
            assert port.ask(2, "RESET")["r"] == "ok"

        def is_gone() -> bool:
            try:
                port.port.read(100)
            except serial.SerialException:
                return True
            return False

        wait_for("hang-up", is_gone)
        # The old terminal is still open here, so the new one cannot have its number.
        wait_for("another terminal", lambda: link.is_symlink() and link.readlink() != node)
        again = Port(link)
        assert again.hello(b"m" * 16)["boot_id"] != first["boot_id"]
        again.port.close()
        port.port.close()
        assert program.process.poll() is None


def test_a_port_that_cannot_come_back_is_told_with_its_link(link: Path) -> None:
    """Something is in the way of the new link: the fault names it, and the terminal is closed once."""
    terminal = Terminal(link)
    terminal.plug_in()
    terminal.unplug()
    link.with_name(f".{link.name}.{os.getpid()}").touch()
    with pytest.raises(Fault, match=f"cannot make the link {link}"):
        terminal.plug_in()
    terminal.unplug()


def test_telemetry_reaches_a_host_that_only_listens(pki: Pki, link: Path, tmp_path: Path) -> None:
    """A burned device speaks on its own, line by line."""
    from device_sim.spp1_board import flash_to_json
    from mtls.keystore import write_private
    from provisioning.spp1.protocol import State

    state = tmp_path / "dev.json"
    write_private(state, flash_to_json(in_state(State.SEALED, pki).board.read_flash()).encode())
    with device_sim("virtual-device", "--link", link, "--state", state, "--interval", "0.1"):
        wait_for("link", link.is_symlink)
        port = serial.Serial(str(link), timeout=0.05)
        seen = b""

        def lines() -> bool:
            nonlocal seen
            seen += port.read(4096)
            return seen.count(b'"temperature_c"') >= 3

        wait_for("three lines", lines)
        port.close()


def test_credentials_are_exported_only_from_a_burned_state(device: Any, tmp_path: Path) -> None:
    """Not burned: exit 1, one sentence, a hint, and no file."""
    done = run_tool(
        "device-sim", "virtual-device", "--state", tmp_path / "dev.json", "--export-credentials", tmp_path / "agent"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: device SN-7 holds no certificate")
    assert "hint: " in done.stderr
    assert not (tmp_path / "agent").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["--export-credentials", "x"], ["--link", "x", "--interval", "0"], ["--link", "x", "--interval", "soon"]],
)
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str]) -> None:
    """Exit 2 and no traceback."""
    done = run_tool("device-sim", "virtual-device", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_terminal_without_a_host_is_no_error(link: Path) -> None:
    """The master's EIO while nobody has the slave open is an unplugged cable; what was queued is bounded."""
    terminal = Terminal(link)
    terminal.plug_in()
    wake, other = os.pipe()
    try:
        for _ in range(3):
            assert terminal.wait(wake, 0.0) == (False, b"")
        terminal.write(b"x" * 100_000)
        slave = os.open(link, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        assert terminal.wait(wake, 0.0) == (True, b"")
        assert terminal.wait(wake, 0.0) == (False, b"")
        assert len(os.read(slave, 65536)) == 512
        os.write(slave, b"last words")
        os.close(slave)
        assert terminal.wait(wake, 0.0) == (False, b"last words")
        assert not terminal.is_open
    finally:
        terminal.unplug()
        os.close(wake)
        os.close(other)
    assert not link.is_symlink()


def test_a_simulation_is_never_due_in_the_past() -> None:
    """Whoever waits for `next_due` and calls `due` makes progress."""
    from device_sim.simulated_board import SimulatedBoard, new_flash

    simulation = Simulation(SimulatedBoard(new_flash("SN-1")), interval_s=0.5, now=0.0)
    now = 0.0
    for _ in range(20):
        now = max(now, simulation.next_due())
        simulation.due(now)
        assert simulation.next_due() > now
