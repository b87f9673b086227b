"""Which port a device is on: a stable path, a USB identity, or the answer to HELLO. A port's number says nothing.

    /dev/serial/by-id/NAME, /dev/serial/by-path/NAME     udev's links; two CH340s share one by-id name, by-path never
    usb:VID:PID or usb:VID:PID:SERIAL                    found among the ports that are plugged in; must be exactly one
    hello = "SN-0042" beside either                      the device must answer SPP/1 with this hardware serial

With `hello` a path may be a pattern (`/dev/ttyUSB*`), and every port that fits it is asked. Asking means opening,
and opening resets many boards: give a pattern that fits only ports that may be opened.
"""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from device_sim.serial_port import AgentPort, PortLost, UsbPort, usb_ports
from mtls.terminal import sanitise
from provisioning.spp1 import fields
from provisioning.spp1.host import DeviceRefused, DeviceSilent, Hello, Identity, Reply, Requester
from provisioning.spp1.protocol import HELLO_NONCE_BYTES, PROTOCOL_VERSION, Verb

_USB = re.compile(r"usb:([0-9A-Fa-f]{4}):([0-9A-Fa-f]{4})(?::([\x21-\x7e]{1,64}))?")
READ_SLICE_S = 0.1


@dataclass(frozen=True, slots=True)
class DeviceName:
    """How a device is named in the configuration; `text` is a path, a pattern of paths, or a USB identity."""

    text: str
    hello: str = ""

    def __post_init__(self) -> None:
        is_pattern = bool(set("*?[") & set(self.text))
        if not (self.text.startswith("/") or _USB.fullmatch(self.text)) or (is_pattern and not self.hello):
            raise ValueError("a path such as /dev/serial/by-path/..., or usb:VID:PID[:SERIAL]; a pattern needs hello")

    def candidates(self, plugged: Callable[[], Sequence[UsbPort]] = usb_ports) -> list[str]:
        """The paths on which the device may be now; PortLost when there is none, or no telling which."""
        usb = _USB.fullmatch(self.text)
        if usb is not None:
            return self._on_usb(usb, plugged())
        if not self.hello:
            return [self.text]
        found = sorted(str(path) for path in Path("/").glob(self.text.lstrip("/")))
        if not found:
            raise PortLost("no port fits the pattern")
        return found

    def _on_usb(self, usb: re.Match[str], plugged: Sequence[UsbPort]) -> list[str]:
        wanted = (int(usb[1], 16), int(usb[2], 16))
        fitting = [port for port in plugged if (port.vendor, port.product) == wanted]
        found = [port.path for port in fitting if usb[3] is None or port.hardware_serial == usb[3]]
        if not found:
            raise PortLost("no such device is plugged in")
        if len(found) > 1 and not self.hello:
            raise PortLost(f"{len(found)} ports fit: name the device by its /dev/serial/by-path link")
        return sorted(found)


def check_hello(port: AgentPort, hardware_serial: str) -> None:
    """PortLost unless the device on an open port answers SPP/1 with this hardware serial.

    It is the device's own word: it tells two cables apart, and proves nothing.
    """
    requester = Requester()
    try:
        nonce = fields.encode_blob(secrets.token_bytes(HELLO_NONCE_BYTES))
        told = {"proto": [PROTOCOL_VERSION], "station": "agent", "nonce": nonce}
        requester.open_session(Hello.parse(_call(port, requester, Verb.HELLO, told).message))
        identity = Identity.parse(_call(port, requester, Verb.IDENT, {}).message)
    except (fields.FieldFault, DeviceRefused, DeviceSilent) as error:
        raise PortLost("no device answers HELLO there") from error
    if identity.sn != hardware_serial:
        raise PortLost(f"another device answers HELLO there: {sanitise(identity.sn)}")


def _call(port: AgentPort, requester: Requester, verb: Verb, values: Mapping[str, object]) -> Reply:
    port.write(requester.request(verb, values, now=monotonic()))
    while True:
        for event in requester.feed(port.read(READ_SLICE_S)):
            if isinstance(event, DeviceRefused):
                raise event
            if isinstance(event, Reply):
                return event
        if monotonic() >= requester.deadline:
            port.write(requester.on_timeout(monotonic()))
