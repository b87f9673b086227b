"""The broker under test and its operator: our gateway, or mosquitto with the same certificates.

A process of its own on a site of its own (test CA, server certificate, CRL, rules) in a folder of pytest's, on a port
of 127.0.0.1. The kernel ends it when the test run is killed. What only our gateway can do skips the test on mosquitto,
and says so.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from device_sim.connection_faults import Endpoint
from device_sim.fleet.identities import Identity, SimulationCa
from device_sim.pytest_plugin.clock import FakeClock
from device_sim.pytest_plugin.device import ConnectedDevice
from device_sim.targets.brokers import Mosquitto, OurGateway
from device_sim.targets.site import MOSQUITTO_ACL, POLICY, Site
from mtls.errors import Fault

LOOK_S = 0.05
AUDIT_LINES_SHOWN = 10
LOG_SHOWN_CHARS = 2000


@dataclass(frozen=True, slots=True)
class Rules:
    """What the broker is told: policy.toml and further tables of gateway.toml; mosquitto: its ACL file."""

    policy: str = POLICY
    acl: str = MOSQUITTO_ACL
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ObserverName:
    """The service that listens for a test: its id and organizational unit in the certificate, and what it hears."""

    name: str = "observer"
    ou: str = "services"
    topic_filter: str = "devices/#"


class ShiftedGateway(OurGateway):
    """Our gateway by a clock that the test sets."""

    def __init__(self, site: Site, tables: Mapping[str, Mapping[str, Any]], clock: FakeClock) -> None:
        super().__init__(site, tables)
        self._clock = clock

    def command(self) -> list[str]:
        """The same gateway, started by another program."""
        *_, config = super().command()
        return [sys.executable, "-m", "device_sim.targets.shifted_gateway", config, str(self._clock.file)]


class MtlsGateway:
    """A running broker, what a device needs to reach it, and what its operator can do."""

    def __init__(self, kind: str, folder: Path, rules: Rules, clock: FakeClock | None = None) -> None:
        """Prepare a site in `folder`; `kind` is "gateway" or "mosquitto". Skips what mosquitto cannot do."""
        self.kind = kind
        self.folder = folder
        self._site = Site.make(folder)
        self._site.write_policy(rules.policy)
        if kind == "mosquitto":
            self._needs_gateway("a clock that is set", clock is not None)
            self._needs_gateway("[tables] of gateway.toml", bool(rules.settings))
            self._needs_gateway("the policy", rules.policy != POLICY and rules.acl == MOSQUITTO_ACL)
            self._broker: OurGateway | Mosquitto = Mosquitto(self._site, rules.acl)
        elif clock is not None:
            self._broker = ShiftedGateway(self._site, rules.settings, clock)
        else:
            self._broker = OurGateway(self._site, rules.settings)

    @property
    def endpoint(self) -> Endpoint:
        """Host, port and the CA file that the broker is judged by; the port stays the same over restarts."""
        return self._broker.endpoint

    @property
    def host(self) -> str:
        """127.0.0.1."""
        return self.endpoint.host

    @property
    def port(self) -> int:
        """Of MQTT over mutual TLS."""
        return self.endpoint.port

    @property
    def ca(self) -> SimulationCa:
        """The test CA that devices, services and the broker have their certificates from."""
        return self._site.ca

    @property
    def ca_file(self) -> Path:
        """The CA certificates, PEM."""
        return self._site.ca.ca_file

    @property
    def config_file(self) -> Path:
        """gateway.toml, for `mqtt-gateway status|kick|explain --config`; not used by mosquitto."""
        return self._site.config_file

    @property
    def process_id(self) -> int | None:
        """Of the broker; None while it does not run."""
        return self._broker.process_id()

    @property
    def log(self) -> str:
        """What the broker has said on its standard outputs."""
        path = self.folder / "broker.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    # --- its operator ---

    def start(self) -> None:
        """Start it and wait until it serves; Fault with the end of its log when it does not."""
        self._broker.start()

    def stop(self) -> None:
        """SIGTERM, and wait for its end. Harmless when it does not run."""
        self._broker.stop()

    def kill(self) -> None:
        """SIGKILL: what a power cut does to it."""
        self._broker.stop(is_killed=True)

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def reload(self) -> bool:
        """Have it read its files again; whether it said yes. When our gateway has answered, they are in force."""
        return self._broker.reload()

    def issue(self, device_id: str, *, ou: str | None = None, lifetime: timedelta | None = None) -> Identity:
        """A new certificate and key of the test CA; with `ou`, a service's."""
        return self.ca.new(device_id, ou=ou, lifetime=lifetime)

    def revoke(self, *whose: ConnectedDevice | Identity) -> None:
        """Put certificates on the CRL and have the broker take it."""
        identities = [one.identity if isinstance(one, ConnectedDevice) else one for one in whose]
        self._broker.revoke(*(identity for identity in identities if identity is not None))

    def publish_crl(self, *, lifetime: timedelta) -> None:
        """A new CRL with another next update, taken by the broker; what is revoked stays revoked."""
        self._broker.publish_crl(lifetime=lifetime)

    def set_rules(self, policy: str, acl: str = "") -> bool:
        """Replace the policy (mosquitto: the ACL file) and reload; False when a broken one is refused."""
        if self.kind == "mosquitto":
            self._needs_gateway("the policy", not acl)
            (self.folder / "acl").write_text(acl, encoding="utf-8")
        else:
            self._site.write_policy(policy)
        return self.reload()

    # --- its audit log ---

    def audit(self, event: str | None = None, **fields: str) -> list[dict[str, Any]]:
        """The lines of the audit log so far: of one event or of all, with these values in their fields."""
        self._needs_gateway("an audit log", self.kind == "mosquitto")
        return self._site.audit(event, **fields)

    def expect_audit(self, event: str, *, within_s: float = 5.0, **fields: str) -> dict[str, Any]:
        """The newest such line, waited for; AssertionError with the end of the log when none comes."""
        __tracebackhide__ = True
        deadline_s = time.monotonic() + within_s
        while not (found := self.audit(event, **fields)):
            if time.monotonic() > deadline_s:
                wanted = ", ".join([event, *(f"{name}={value}" for name, value in fields.items())])
                said = [f"no audit line {wanted} within {within_s:g} s", *self.audit_tail()]
                raise AssertionError("\n".join(said))
            time.sleep(LOOK_S)
        return found[-1]

    def audit_tail(self) -> list[str]:
        """The last lines of the audit log as text for people; empty for mosquitto, which has none."""
        lines = self._site.audit()[-AUDIT_LINES_SHOWN:]
        shown = [" ".join(f"{key}={value}" for key, value in line.items() if key != "time") for line in lines]
        return ["the gateway's audit log ends with:", *shown] if shown else []

    def report_sections(self) -> list[tuple[str, str]]:
        """What the report of a failed test shows beside captured output."""
        shown = {"mqtt audit log": "\n".join(self.audit_tail()[1:]), "mqtt broker log": self.log[-LOG_SHOWN_CHARS:]}
        return [(title, text) for title, text in shown.items() if text]

    def _needs_gateway(self, what: str, is_needed: bool) -> None:
        if is_needed:
            pytest.skip(f"the target is mosquitto, and {what} is our gateway's")


@contextlib.contextmanager
def fails_plainly() -> Iterator[None]:
    """A fault in here fails the test with its sentence and the next thing to do, and without a traceback of ours."""
    try:
        yield
    except Fault as fault:
        pytest.fail(f"{fault}\nhint: {fault.hint}" if fault.hint else str(fault), pytrace=False)
