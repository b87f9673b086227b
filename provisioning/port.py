"""The serial port of a station: the only module of this program that imports pyserial.

Opened exclusively (flock), with DTR and RTS decided before the open, because a change of either resets many
boards. A time-out of `read` is no end of anything. Any OSError is a PortFault: `is_open` stays true when a USB
adapter is unplugged, so nothing asks it. After a RESET the same path is opened again until a deadline; a
by-path name may then lead to another node, and who answers there is judged by its identity, not by the path.
"""

import os
import stat
import termios
import time
from pathlib import Path
from typing import Self

import serial

from mtls.errors import Fault

DEFAULT_BAUD = 115200
WRITE_TIMEOUT_S = 5.0  # 256 bytes at 1200 baud take 2.2 s; longer means nobody takes them
READ_BYTES = 4096  # one read's worth; longer bursts come in several
BITS_PER_BYTE = 10  # 8N1: start, eight, stop
REOPEN_PAUSE_S = 0.1


class PortFault(Fault):
    """The port cannot be opened, or what was open has gone."""


class SerialPort:
    """An open serial port; use as a context manager or close it."""

    def __init__(self, path: str, baud: int = DEFAULT_BAUD) -> None:
        """Open `path`; PortFault with one sentence and a hint when that fails."""
        self.name = path
        self._baud = baud
        self._serial = _open(path, baud)

    def read(self, timeout_s: float) -> bytes:
        """The bytes that are there, or the first that come within `timeout_s`; empty when none do."""
        try:
            self._serial.timeout = max(0.0, timeout_s)
            first = self._serial.read(1)
            waiting = min(self._serial.in_waiting, READ_BYTES) if first else 0
            return bytes(first + self._serial.read(waiting))
        except (OSError, termios.error) as error:
            raise self._gone(error) from None

    def write(self, data: bytes) -> float:
        """Hand over `data` and return how long it takes on the wire, in seconds.

        PortFault when the port takes nothing for WRITE_TIMEOUT_S. It does not wait for the last bit: draining has no
        time limit, and a peer that holds its flow control down would stop the station.
        """
        try:
            self._serial.write(data)
        except serial.SerialTimeoutException:
            raise PortFault(
                f"{self.name} takes no bytes any more", hint="check flow control and the cable, then burn again"
            ) from None
        except (OSError, termios.error) as error:
            raise self._gone(error) from None
        return len(data) * BITS_PER_BYTE / self._baud

    def reopen(self, timeout_s: float) -> None:
        """Close and open the same path again, waiting up to `timeout_s` for it to come back."""
        self.close()
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._serial = _open(self.name, self._baud)
            except PortFault as fault:
                if time.monotonic() >= deadline:
                    raise PortFault(
                        f"{self.name} did not come back within {timeout_s:g} s ({fault})",
                        hint="name the port by /dev/serial/by-path, so that the same socket keeps its name",
                    ) from None
                time.sleep(REOPEN_PAUSE_S)
            else:
                return

    def close(self) -> None:
        """Close the port; closing one that is gone is harmless."""
        try:
            self._serial.close()
        except (OSError, termios.error):
            return

    def _gone(self, error: Exception) -> PortFault:
        number = _number(error)
        why = os.strerror(number).lower() if number is not None else "the device is disconnected"
        return PortFault(f"{self.name} went away ({why})", hint="plug the adapter in again, then burn the unit again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: str, baud: int) -> serial.Serial:
    _refuse_no_tty(path)
    port = serial.Serial()
    port.port, port.baudrate, port.exclusive = path, baud, True
    port.timeout, port.write_timeout = 0, WRITE_TIMEOUT_S
    # Linux asserts both lines on open. Leaving them so makes no further edge, boards with a two-transistor reset
    # circuit treat both-asserted as idle, and USB CDC devices send only while DTR is set.
    port.dtr = port.rts = True
    try:
        port.open()
    except (OSError, ValueError, termios.error) as error:
        port.close()
        raise _cannot_open(path, error) from None
    return port


def _refuse_no_tty(path: str) -> None:
    """Judge the path before it is opened: opening a FIFO would wait, and a disk is no place to write to."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise _cannot_open(path, error) from None
    if not stat.S_ISCHR(status.st_mode):
        raise PortFault(
            f"{path} is not a serial port",
            hint="list the ports with: ls -l /dev/serial/by-path /dev/ttyS* /dev/ttyAMA*",
        )


_CAUSES = {
    FileNotFoundError: ("it does not exist", "plug the device in, then list the ports: ls -l /dev/serial/by-path"),
    PermissionError: ("permission denied", "join the group that owns serial ports (dialout), then log in again"),
    BlockingIOError: ("another program has it open", "end that program; fuser -v PORT names it"),
}
_NO_PORT = ("it is no serial port or does not take these settings", "list the ports: ls -l /dev/serial/by-path")


def _cannot_open(path: str, error: Exception) -> PortFault:
    number = _number(error)
    cause = OSError(number, "") if number is not None else error  # OSError picks its subclass by the number
    words, hint = next((pair for kind, pair in _CAUSES.items() if isinstance(cause, kind)), _NO_PORT)
    if number is not None and (words, hint) == _NO_PORT:
        words = os.strerror(number).lower()
    return PortFault(f"cannot open {path}: {words}", hint=hint)


def _number(error: Exception) -> int | None:
    """The errno of an OSError or a termios.error, which is none; pyserial's own text repeats itself."""
    candidates = (getattr(error, "errno", None), *error.args[:1])
    return next((number for number in candidates if isinstance(number, int)), None)
