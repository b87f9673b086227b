"""What can be wrong with a device of a fleet, by name: one table, composable.

A fault is of one of four places: its certificate, its CONNECT, what it does once it is connected, and how it ends
its connections. `FaultSet` is a set of names, checked; each place is looked at where it matters (device.py), so that
`expired` and `foreign-will` together are one device with both. What a gateway must do about each stands beside it;
scenarios say it as an expectation. Network faults are the proxy's (network/fault_proxy.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from device_sim.fleet.wrong_certificates import WRONG
from mtls.errors import Fault

LARGEST_SKEW_S = 10 * 366 * 86400


class Place(StrEnum):
    """Where a fault sits."""

    CERTIFICATE = "certificate"
    CONNECT = "CONNECT"
    CONNECTED = "connected"
    PUBLISHING = "publishing"


@dataclass(frozen=True, slots=True)
class Kind:
    """One line of the table; `takes` names what stands after a `=`."""

    place: Place
    effect: str
    takes: str = ""


FAULTS: Mapping[str, Kind] = MappingProxyType(
    {
        **{name: Kind(Place.CERTIFICATE, wrong.effect) for name, wrong in WRONG.items()},
        "revoked": Kind(Place.CERTIFICATE, "it is on the CRL"),
        "no-certificate": Kind(Place.CERTIFICATE, "none is shown"),
        "clock-skew": Kind(Place.CERTIFICATE, "its dates were set by a clock that is N seconds ahead", "N"),
        "short-lived": Kind(Place.CERTIFICATE, "it expires N seconds from now", "N"),
        "client-id-differs": Kind(Place.CONNECT, "the client identifier is another device's"),
        "foreign-will": Kind(Place.CONNECT, "the will goes to another device's topic"),
        "slowloris": Kind(Place.CONNECT, "CONNECT comes a byte at a time"),
        "duplicate-client-id": Kind(Place.CONNECT, "a second connection with the same identity takes turns with it"),
        "foreign-topic": Kind(Place.CONNECTED, "messages go to another device's topic"),
        "wildcard-subscribe": Kind(Place.CONNECTED, "it subscribes to #"),
        "oversize-packet": Kind(Place.CONNECTED, "a PUBLISH of 1 MiB"),
        "malformed-packet": Kind(Place.CONNECTED, "a PUBLISH whose topic holds a wildcard"),
        "slow-reader": Kind(Place.CONNECTED, "nothing that the gateway sends is read"),
        "half-open": Kind(Place.CONNECTED, "the device is silent and its socket stays open"),
        "reconnect-storm": Kind(Place.CONNECTED, "after N seconds all are cut off and return at once", "N"),
        "flood": Kind(Place.PUBLISHING, "a message every N milliseconds", "N"),
        "cut-before-puback": Kind(Place.PUBLISHING, "every Nth PUBLISH is followed by a RST, its PUBACK unread", "N"),
        "cut-after-puback": Kind(Place.PUBLISHING, "every Nth PUBACK is followed by a RST", "N"),
        "renewal": Kind(
            Place.PUBLISHING, "after N messages it reconnects with a new certificate, others in flight", "N"
        ),
    }
)


@dataclass(frozen=True, slots=True)
class FaultSet:
    """Checked faults: name -> its number, 0 where none is taken."""

    values: Mapping[str, int]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def number(self, name: str) -> int:
        """What stands after the `=`; 0 when the fault is not set."""
        return self.values.get(name, 0)

    @property
    def wrong_certificate(self) -> str:
        """The name of the wrong certificate, or ""."""
        return next((name for name in self.values if name in WRONG), "")

    def __str__(self) -> str:
        return ", ".join(f"{name}={number}" if FAULTS[name].takes else name for name, number in self.values.items())


def parse_fault_set(texts: Iterable[str]) -> FaultSet:
    """`expired`, `clock-skew=7200`, ...; Fault naming the first that is none."""
    values: dict[str, int] = {}
    for text in texts:
        name, _, value = text.partition("=")
        kind = FAULTS.get(name)
        if kind is None:
            raise Fault(f"there is no fault {name!a}", hint=f"one of: {', '.join(FAULTS)}")
        values[name] = _number(name, value) if kind.takes else _nothing(name, value)
    wrong = [name for name in values if FAULTS[name].place is Place.CERTIFICATE]
    if len(wrong) > 1:
        raise Fault(
            f"{' and '.join(wrong)} are two certificates", hint="a device shows one: make a group of devices for each"
        )
    return FaultSet(MappingProxyType(values))


NO_FAULTS = FaultSet(MappingProxyType({}))


def _number(name: str, value: str) -> int:
    digits = value.removeprefix("-") if name == "clock-skew" else value
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= 9
    if (
        not is_number
        or not -LARGEST_SKEW_S <= int(value) <= LARGEST_SKEW_S
        or (name != "clock-skew" and int(value) < 1)
    ):
        raise Fault(f"the fault {name} takes a whole number", hint=f"for example: {name}=10")
    return int(value)


def _nothing(name: str, value: str) -> int:
    if value:
        raise Fault(f"the fault {name} takes no value", hint=f"write {name}")
    return 0
