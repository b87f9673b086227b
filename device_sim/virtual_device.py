"""A virtual device on a pseudo-terminal: a `Simulation` behind a path that looks like a serial port.

The terminal's master is ours; its slave is what hosts open, through a symbolic link that is made at start and
removed at the end. We keep no descriptor of the slave: hosts may open it exclusively, leave and come back, and
while nobody has it open the master reports a hang-up, which is an unplugged cable and no error. What a host does
not read is bounded and then lost, as in a UART.

It holds no protocol. The key of a virtual device is a file: for tests and demonstrations only.
"""

import contextlib
import errno
import fcntl
import os
import select
import termios
import tty
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from device_sim.nordic_modem import NordicModem
from device_sim.simulation import Simulation
from mtls.errors import Fault

READ_BYTES = 4096
MAX_UNSENT_BYTES = 64 * 1024  # a host that stops reading; a UART would have lost it long before
FIFO_BYTES = 512  # what an adapter keeps while nobody has the port open: the boot log of the first opening
CLOSED_POLL_S = 0.05  # a master without a slave cannot be waited on: it reports the hang-up at once
REPLUG_S = 0.5
LONGEST_WAIT_S = 1.0


@dataclass(slots=True)
class Terminal:
    """A pseudo-terminal behind a link; `is_open` says whether a host has it open."""

    link: Path
    master: int = -1
    node: str = ""
    is_open: bool = False
    _unsent: bytearray = field(default_factory=bytearray)

    def plug_in(self) -> None:
        """Make the terminal and the link. Fault when something else is at the link's path."""
        _check_link(self.link)
        self.master, slave = os.openpty()
        self.node = os.ttyname(slave)
        tty.setraw(slave)
        os.close(slave)
        os.set_blocking(self.master, False)
        temporary = self.link.with_name(f".{self.link.name}.{os.getpid()}")
        try:
            temporary.symlink_to(self.node)
            temporary.replace(self.link)
        except OSError as error:
            self.unplug()
            raise Fault(
                f"cannot make the link {self.link}: {error.strerror}", hint="name a path in a folder that you own"
            ) from error

    def unplug(self) -> None:
        """Take link and terminal away; a host that has it open gets a hang-up."""
        with contextlib.suppress(OSError):
            if str(self.link.readlink()) == self.node:
                self.link.unlink()
        if self.master >= 0:
            os.close(self.master)
        self.master, self.is_open = -1, False
        self._unsent.clear()

    def wait(self, wake: int, timeout_s: float) -> tuple[bool, bytes]:
        """Wait for a host, its bytes, or `wake`; (a host has just opened the port, what it wrote)."""
        was_open = self.is_open
        if not was_open:
            _poll({wake: select.POLLIN}, min(timeout_s, CLOSED_POLL_S))
        wanted = select.POLLIN | (select.POLLOUT if self._unsent else 0)
        events = _poll({self.master: wanted, wake: select.POLLIN}, timeout_s if was_open else 0.0)
        happened = events.get(self.master, 0)
        data = self._read() if happened & select.POLLIN else b""
        # A host may write and leave between two looks: its bytes are still there beside the hang-up.
        self.is_open = not happened & select.POLLHUP
        if was_open and not self.is_open:
            self._unsent.clear()
            self._unlock()
        elif self.is_open and self._unsent:
            self._flush()
        return self.is_open and not was_open, data

    def write(self, data: bytes) -> None:
        """Queue bytes for the host; what exceeds the limit is lost."""
        most = MAX_UNSENT_BYTES if self.is_open else FIFO_BYTES
        self._unsent += data[: max(0, most - len(self._unsent))]
        if self.is_open:
            self._flush()

    def _unlock(self) -> None:
        """A real port forgets TIOCEXCL at its last close; a pseudo-terminal keeps it while the master lives."""
        try:
            slave = os.open(self.node, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            if _poll({self.master: select.POLLIN}, 0.0).get(self.master, 0) & select.POLLHUP:
                self.unplug()  # locked for ever, and nobody has it open: a new terminal behind the same link
                self.plug_in()
            return
        fcntl.ioctl(slave, termios.TIOCNXCL)
        os.close(slave)

    def _read(self) -> bytes:
        try:
            return os.read(self.master, READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno == errno.EIO:  # the slave was closed
                return b""
            raise

    def _flush(self) -> None:
        try:
            del self._unsent[: os.write(self.master, self._unsent)]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._unsent.clear()


def _check_link(link: Path) -> None:
    """Only a link to a terminal is replaced: one left by a device that was killed."""
    if link.is_symlink():
        if str(link.readlink()).startswith("/dev/pts/"):
            return
        raise Fault(f"{link} is a link to something else", hint="name another path for --link")
    if link.exists():
        raise Fault(f"{link} exists and is not a link", hint="name another path for --link")
    if not link.parent.is_dir():
        raise Fault(f"the folder {link.parent} does not exist", hint=f"mkdir -p {link.parent}")


def _poll(wanted: dict[int, int], timeout_s: float) -> dict[int, int]:
    poller = select.poll()
    for descriptor, events in wanted.items():
        poller.register(descriptor, events)
    return dict(poller.poll(max(0, round(timeout_s * 1000 + 0.5))))


def run_modem(modem: NordicModem, terminal: Terminal, wake: int) -> None:
    """Run a simulated modem on its terminal until `wake` becomes readable; the link is gone afterwards."""
    terminal.plug_in()
    try:
        while not _poll({wake: select.POLLIN}, 0.0):
            _, data = terminal.wait(wake, LONGEST_WAIT_S)
            if data:
                terminal.write(modem.receive(data))
    finally:
        terminal.unplug()


def run(simulation: Simulation, terminal: Terminal, wake: int, clock: Callable[[], float]) -> None:
    """Run the device on its terminal until `wake` becomes readable; the link is gone afterwards."""
    terminal.plug_in()
    try:
        while not _poll({wake: select.POLLIN}, 0.0):
            now = clock()
            timeout_s = min(max(0.0, simulation.next_due() - now), LONGEST_WAIT_S)
            has_opened, data = terminal.wait(wake, timeout_s)
            now = clock()
            if has_opened:
                simulation.opened(now)
            if data:
                simulation.receive(data, now)
            terminal.write(simulation.due(now))
            if simulation.wants_replug:
                simulation.wants_replug = False
                terminal.unplug()
                _poll({wake: select.POLLIN}, REPLUG_S)
                terminal.plug_in()
    finally:
        terminal.unplug()
