"""The agent's serial port: the only module of this program that imports pyserial.

Opened exclusively, with DTR and RTS decided before the open, because a change of either resets many boards. The
end of a read's time is no end of a line. A port that went away is only known by an OSError (`is_open` stays true
after an unplug), and every OSError means the same: close, and wait for the name to come back.
"""

import os
import termios
from dataclasses import dataclass
from pathlib import Path

import serial
from serial.tools import list_ports

READ_BYTES = 4096
WRITE_TIMEOUT_S = 5.0  # a device that holds its flow control longer is treated as gone


class PortLost(Exception):
    """The port cannot be opened, or has gone; str() says why in a few words."""


@dataclass(frozen=True, slots=True)
class UsbPort:
    """A serial port on USB, as the system describes it."""

    path: str
    vendor: int
    product: int
    hardware_serial: str


def usb_ports() -> list[UsbPort]:
    """Every serial port on USB that is plugged in now."""
    return [
        UsbPort(found.device, found.vid, found.pid, found.serial_number or "")
        for found in list_ports.comports()
        if found.vid is not None and found.pid is not None
    ]


class AgentPort:
    """An open serial port, eight bits without parity."""

    def __init__(self, path: str, *, baud: int, dtr: bool, rts: bool) -> None:
        """Open `path`; PortLost when that fails."""
        # Opening a FIFO would wait for a writer, and a disk is no port: both are told by the path alone.
        if Path(path).exists() and not Path(path).is_char_device():
            raise PortLost("it is no serial port")
        self._serial = serial.Serial()
        self._serial.port, self._serial.baudrate, self._serial.exclusive = path, baud, True
        self._serial.dtr, self._serial.rts = dtr, rts
        self._serial.write_timeout = WRITE_TIMEOUT_S
        try:
            self._serial.open()
        except (OSError, ValueError, termios.error) as error:
            raise PortLost(_words(error)) from error

    def read(self, timeout_s: float) -> bytes:
        """The bytes that are there, or the first that come within `timeout_s`; empty when none do."""
        try:
            self._serial.timeout = timeout_s
            first = self._serial.read(1)
            return bytes(first + self._serial.read(min(self._serial.in_waiting, READ_BYTES)) if first else first)
        except (OSError, termios.error) as error:
            raise PortLost(_words(error)) from error

    def write(self, data: bytes) -> None:
        """Hand over all of `data`; PortLost when the device does not take it in time."""
        try:
            self._serial.write(data)
        except (OSError, termios.error) as error:
            raise PortLost(_words(error)) from error

    def close(self) -> None:
        """Close; closing a port that is gone is harmless."""
        try:
            self._serial.close()
        except (OSError, termios.error):
            return


def _words(error: Exception) -> str:
    """The errno's text; pyserial repeats itself and the path in its own, and termios.error has none."""
    numbers = (getattr(error, "errno", None), *error.args[:1])
    number = next((candidate for candidate in numbers if isinstance(candidate, int)), None)
    if number is None:
        return "it was unplugged, or does not take these settings"
    return "another program has it open" if number == 11 else os.strerror(number).lower()
