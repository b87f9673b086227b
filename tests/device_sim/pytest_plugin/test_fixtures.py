"""The plugin's fixtures, used as a foreign project would; every allow has its deny twin."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from device_sim.connection_faults import ConnectionFault
from device_sim.network.fault_proxy import ThreadedProxy
from device_sim.pytest_plugin.clock import FakeClock
from device_sim.pytest_plugin.device import SubscriptionRefused
from device_sim.pytest_plugin.factories import Capture, DeviceFactory, FleetRunner
from device_sim.pytest_plugin.gateway import MtlsGateway
from device_sim.targets.site import NARROW_POLICY


def test_every_quality_of_service_is_acknowledged(device_factory: DeviceFactory, capture: Capture) -> None:
    """QoS 0, 1 and 2."""
    press = device_factory("press-07")
    for qos in (0, 1, 2):
        press.publish("devices/press-07/telemetry/t", f"qos {qos}", qos=qos)
    for qos in (0, 1, 2):
        capture.expect("devices/press-07/telemetry/t", f"qos {qos}")


def test_a_device_that_shows_no_certificate_is_refused(
    device_factory: DeviceFactory, mtls_gateway: MtlsGateway
) -> None:
    """The device reads the reason from the alert; the audit log has it too, and fails when it has not."""
    assert device_factory.refused("press-07", certificate="no-certificate").reason == "no_certificate"
    mtls_gateway.expect_audit("refused", reason="no_certificate")
    with pytest.raises(AssertionError, match=r"no audit line refused, reason=kicked within 0 s\n(.|\n)*no_certificate"):
        mtls_gateway.expect_audit("refused", within_s=0, reason="kicked")


def test_another_s_client_identifier_is_refused(device_factory: DeviceFactory) -> None:
    """The certificate says who it is, whatever the device says."""
    with pytest.raises(ConnectionFault) as refused:
        device_factory("press-07", client_id="press-08")
    assert refused.value.reason == "client_id_refused"


def test_refused_fails_when_the_device_is_let_in(device_factory: DeviceFactory) -> None:
    """The twin of every refusal, with what the gateway said about it."""
    with pytest.raises(AssertionError, match=r"let press-07 in(.|\n)*admitted"):
        device_factory.refused("press-07")


def test_a_will_fires_when_the_device_is_cut_and_not_when_it_leaves(
    device_factory: DeviceFactory, capture: Capture
) -> None:
    """`cut` and `disconnect` are two ways to go."""
    leaver = device_factory("leaver", will=("devices/leaver/state", "offline"))
    victim = device_factory("victim", will=("devices/victim/state", "offline"))
    leaver.disconnect()
    victim.cut()
    capture.expect("devices/victim/state", "offline")
    capture.nothing(for_s=0)
    with pytest.raises(AssertionError, match="the test has ended it"):
        victim.wait_lost(within_s=0)


def test_the_gateway_comes_back_on_its_port_and_the_observer_with_it(
    mtls_gateway: MtlsGateway, device_factory: DeviceFactory, capture: Capture
) -> None:
    """kill -9 ends every connection; devices of before are lost, new ones are let in."""
    port, before = mtls_gateway.port, device_factory("press-07")
    mtls_gateway.kill()
    assert before.wait_lost().reason
    assert device_factory.refused("press-07", within_s=2).reason
    mtls_gateway.start()
    assert mtls_gateway.port == port
    deadline_s = time.monotonic() + 10
    while len(mtls_gateway.audit("admitted", id="observer")) < 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    device_factory("press-07").publish("devices/press-07/telemetry/t", "again")
    capture.expect("devices/press-07/telemetry/t", "again", within_s=10)


def test_rules_are_replaced_while_devices_live(mtls_gateway: MtlsGateway, device_factory: DeviceFactory) -> None:
    """A right that was taken away is gone; a policy that is none is refused and changes nothing."""
    press = device_factory("press-07")
    press.subscribe("broadcast/#")
    assert not mtls_gateway.set_rules("no policy")
    press.subscribe("broadcast/again")
    assert mtls_gateway.set_rules(NARROW_POLICY)
    with pytest.raises(SubscriptionRefused):
        press.subscribe("broadcast/once-more")


def test_certificates_expire_when_the_clock_is_put_forward(
    fake_clock: FakeClock, mtls_gateway: MtlsGateway, device_factory: DeviceFactory
) -> None:
    """The live one is cut off, the next is refused; one that lasts longer stays."""
    mtls_gateway.publish_crl(lifetime=timedelta(days=300))
    short = device_factory("short", identity=mtls_gateway.issue("short", lifetime=timedelta(days=2)))
    long = device_factory("long", identity=mtls_gateway.issue("long", lifetime=timedelta(days=90)))
    fake_clock.advance(days=1)
    short.publish("devices/short/telemetry/t", "1")
    fake_clock.advance(days=2)
    assert short.wait_lost(within_s=5).reason
    assert device_factory.refused("short", identity=short.identity).reason == "peer_closed"
    mtls_gateway.expect_audit("refused", reason="certificate_expired")
    long.publish("devices/long/telemetry/t", "1")


def test_a_bad_network_stands_between(
    fault_proxy: ThreadedProxy, device_factory: DeviceFactory, capture: Capture
) -> None:
    """Half-open, nothing arrives; restored, it does; cut, the device is lost and the one beside it is not."""
    press, beside = device_factory("press-07", through=fault_proxy), device_factory("press-08")
    fault_proxy.set(is_half_open=True)
    with pytest.raises(TimeoutError, match="press-07 got no acknowledgement of devices/press-07/telemetry/t"):
        press.publish("devices/press-07/telemetry/t", "late", within_s=0.3)
    fault_proxy.restore()
    capture.expect("devices/press-07/telemetry/t", "late")
    assert fault_proxy.cut() == 1
    assert press.wait_lost().reason
    beside.publish("devices/press-08/telemetry/t", "here")


def test_a_fleet_is_well_and_a_fleet_of_expired_devices_is_not(fleet: FleetRunner, capture: Capture) -> None:
    """The observer of the fleet and that of the test do not disturb each other."""
    report = fleet(count=5, seconds=0.5, interval_s=0.1, ramp_per_s=0)
    assert report.exit_code == 0
    assert report.lost == 0
    assert len(capture.messages("devices/+/telemetry/#")) == report.figures.acknowledged
    expired = fleet(count=2, seconds=0.5, faults=["expired"], prefix="old-", is_observed=False)
    assert (expired.exit_code, expired.lost) == (1, None)
    assert set(expired.figures.refused) == {"certificate_expired"}


def test_nothing_of_the_plugin_is_left_when_the_fixtures_end() -> None:
    """No thread of an earlier test of this process lives on."""
    assert [thread.name for thread in threading.enumerate() if thread.name in ("mqtt-mtls-pytest", "fault-proxy")] == []
