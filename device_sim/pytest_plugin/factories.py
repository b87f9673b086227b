"""What the fixtures hand to a test: devices by name, the observer's ears, and fleets."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from device_sim.connection_faults import ConnectionFault, Endpoint
from device_sim.fleet.connection import Wish
from device_sim.fleet.device import Group
from device_sim.fleet.faults import parse_fault_set
from device_sim.fleet.identities import Identity, names_of
from device_sim.fleet.observer import FIRST_SUBACK_S, Observer
from device_sim.fleet.payloads import parse_model
from device_sim.fleet.run import FleetReport, run_fleet
from device_sim.network.fault_proxy import ThreadedProxy
from device_sim.pytest_plugin.device import GRACE_S, ConnectedDevice
from device_sim.pytest_plugin.gateway import MtlsGateway, ObserverName
from device_sim.pytest_plugin.heard import Heard
from device_sim.pytest_plugin.loop import LoopThread

CONNECT_S = 10.0
FLEET_CONNECT_S = 10.0  # for the ramp, the last acknowledgements and the end
NO_CERTIFICATE, REVOKED = "no-certificate", "revoked"


def endpoint_through(gateway: MtlsGateway, through: ThreadedProxy | None) -> Endpoint:
    """Where a device connects to: the broker, or the bad network before it."""
    return gateway.endpoint if through is None else replace(gateway.endpoint, port=through.port)


class DeviceFactory:
    """Call it for a device that is connected; it is disconnected at the end of the test."""

    def __init__(self, gateway: MtlsGateway, loop: LoopThread) -> None:
        self._gateway = gateway
        self._loop = loop
        self._devices: list[ConnectedDevice] = []
        self._made = 0

    def __call__(
        self,
        device_id: str,
        *,
        certificate: str = "",
        identity: Identity | None = None,
        ou: str | None = None,
        client_id: str = "",
        clean_session: bool = True,
        keep_alive_s: int = 60,
        will: tuple[str, str] | None = None,
        through: ThreadedProxy | None = None,
        within_s: float = CONNECT_S,
    ) -> ConnectedDevice:
        """A device that the gateway has let in; ConnectionFault with a public `reason` when it does not.

        The certificate is the test CA's for `device_id`, unless `certificate` names what is wrong with it (expired,
        not-yet-valid, wrong-ca, self-signed, wrong-usage, is-a-ca, two-names, no-name, wrong-name, wildcard-name,
        revoked, no-certificate), `ou` makes it a service's, or `identity` is one. `client_id` is the certificate's
        name unless given. `will` is topic and payload, retained.
        """
        __tracebackhide__ = True
        shown = identity or self._identity(device_id, certificate, ou)
        will_topic, will_payload = will or ("", "")
        wish = Wish(client_id or device_id, clean_session, keep_alive_s, will_topic, will_payload.encode())
        device = ConnectedDevice(shown, wish, self._loop, Heard(self._gateway.audit_tail))
        self._made += 1
        endpoint = endpoint_through(self._gateway, through)
        device.connect(endpoint, self._gateway.ca_file, self._made, within_s)
        self._devices.append(device)
        return device

    def refused(self, device_id: str, **settings: Any) -> ConnectionFault:
        """Why a device with these settings is not let in; AssertionError when it is."""
        __tracebackhide__ = True
        try:
            device = self(device_id, **settings)
        except ConnectionFault as fault:
            return fault
        device.disconnect()
        asked = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        said = [f"the gateway let {device_id} in ({asked})", *self._gateway.audit_tail()]
        raise AssertionError("\n".join(said))

    def close(self) -> None:
        """Disconnect every device that is still connected."""
        for device in self._devices:
            device.disconnect()

    def _identity(self, device_id: str, certificate: str, ou: str | None) -> Identity | None:
        ca = self._gateway.ca
        if certificate == NO_CERTIFICATE:
            return None
        if certificate == REVOKED:
            revoked = ca.new(device_id, ou=ou)
            self._gateway.revoke(revoked)
            return revoked
        if certificate:
            return ca.wrong(device_id, certificate)
        return ca.new(device_id, ou=ou) if ou is not None else ca.of(device_id)


class Capture(Heard):
    """What the observer hears. It comes back by itself when the broker was away, and misses nothing meanwhile."""

    def __init__(self, gateway: MtlsGateway, observer: ObserverName, loop: LoopThread) -> None:
        super().__init__(gateway.audit_tail)
        self._loop = loop
        identity = gateway.ca.new(observer.name, ou=observer.ou)
        self._observer = Observer(identity, gateway.endpoint, observer.topic_filter, self.hear)

    def start(self) -> None:
        """Connect and subscribe; Fault when the broker does not let it."""
        self._loop.run(self._observer.start(), FIRST_SUBACK_S + GRACE_S)

    def close(self) -> None:
        """Disconnect."""
        self._loop.run(self._observer.stop(), GRACE_S)


class FleetRunner:
    """Call it to run a fleet to its end."""

    def __init__(self, gateway: MtlsGateway, observer: ObserverName, loop: LoopThread) -> None:
        self._gateway = gateway
        self._observer = observer
        self._loop = loop

    def __call__(
        self,
        *,
        count: int = 10,
        seconds: float = 2.0,
        prefix: str = "sim-",
        payload: str = "temperature",
        faults: Iterable[str] = (),
        through: ThreadedProxy | None = None,
        is_observed: bool = True,
        **settings: Any,
    ) -> FleetReport:
        """Run `count` devices for `seconds`, and say what came of it: `report.exit_code == 0` is a fleet that is well.

        Ids are PREFIX00001 and on; `payload` and `faults` are as for `device-sim fleet`, and `settings` are those of
        `device_sim.fleet.device.Group` (interval_s, qos, ramp_per_s, topic, will, commands, seed, ...). The report's
        `lost` counts what was acknowledged and never reached a second observer, NAME-fleet; None without one.
        """
        group = Group("fleet", tuple(names_of(prefix, count)), parse_model(payload), **settings)
        ca, who = self._gateway.ca, self._observer
        work = run_fleet(
            replace(group, faults=parse_fault_set(faults)),
            endpoint_through(self._gateway, through),
            ca,
            seconds,
            observer=ca.new(f"{who.name}-fleet", ou=who.ou) if is_observed else None,
            listen=who.topic_filter,
        )
        return self._loop.run(work, seconds + FIRST_SUBACK_S + FLEET_CONNECT_S + GRACE_S)
