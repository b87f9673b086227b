"""The pytest plugin: an MQTT gateway with mutual TLS, devices, fleets and bad networks as fixtures (docs/pytest.md).

pytest loads this module wherever our wheel is installed, so it imports nothing but pytest: everything else is
imported by the fixtures that need it, and a test run that uses none of them does nothing here. Every fixture lives as
long as its test, keeps its files in pytest's own temporary folder, listens on a port that the kernel chose, and ends
what it has started however the test ends. Fixtures to override in a conftest.py or a test module:
`mtls_rules` and `mtls_observer`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from device_sim.network.fault_proxy import ThreadedProxy
    from device_sim.pytest_plugin.clock import FakeClock
    from device_sim.pytest_plugin.factories import Capture, DeviceFactory, FleetRunner
    from device_sim.pytest_plugin.gateway import MtlsGateway, ObserverName, Rules
    from device_sim.pytest_plugin.loop import LoopThread

TARGETS = ("gateway", "mosquitto")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--mqtt-target, and mqtt_target in the configuration file."""
    words = "the broker of the fixture mtls_gateway: gateway (ours) or mosquitto"
    parser.getgroup("mqtt-mtls-gateway").addoption("--mqtt-target", choices=TARGETS, help=words)
    parser.addini("mqtt_target", words, default="gateway")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the gateway has said, beside captured output."""
    report = yield
    gateway: MtlsGateway | None = getattr(item, "funcargs", {}).get("mtls_gateway")
    if gateway is not None and report.failed:
        report.sections += gateway.report_sections()
    return report


@pytest.fixture
def mtls_rules() -> Rules:
    """What the broker is told. Override it: `return Rules(policy=..., acl=..., settings=...)`.

    The default: a device has `devices/{id}/...` and hears `broadcast/#`; services (OU `services`) hear `devices/#`,
    and publish to `devices/+/commands/#` and `broadcast/#`.
    """
    from device_sim.pytest_plugin.gateway import Rules  # noqa: PLC0415 - a run without fixtures pays nothing

    return Rules()


@pytest.fixture
def mtls_observer() -> ObserverName:
    """Who listens for `capture` and `fleet`, and to what. Override it when your policy knows another service."""
    from device_sim.pytest_plugin.gateway import ObserverName  # noqa: PLC0415 - as above

    return ObserverName()


@pytest.fixture
def fake_clock(tmp_path_factory: pytest.TempPathFactory) -> FakeClock:
    """The clock by which the gateway judges certificates, CRLs and sessions; a test that names it can set it."""
    from device_sim.pytest_plugin.clock import FakeClock  # noqa: PLC0415 - as above

    return FakeClock(tmp_path_factory.mktemp("fake-clock") / "offset")


@pytest.fixture
def mtls_gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mtls_rules: Rules
) -> Iterator[MtlsGateway]:
    """A running broker that demands client certificates, on a site of its own."""
    from device_sim.pytest_plugin.gateway import MtlsGateway, fails_plainly  # noqa: PLC0415 - as above

    kind = request.config.getoption("--mqtt-target") or request.config.getini("mqtt_target")
    clock: FakeClock | None = None
    if "fake_clock" in request.fixturenames:
        clock = request.getfixturevalue("fake_clock")
    with fails_plainly():
        gateway = MtlsGateway(kind, tmp_path_factory.mktemp("mtls-gateway"), mtls_rules, clock)
    try:
        with fails_plainly():
            gateway.start()
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture
def _mqtt_loop() -> Iterator[LoopThread]:
    from device_sim.pytest_plugin.loop import LoopThread  # noqa: PLC0415 - as above

    with LoopThread() as loop:
        yield loop


@pytest.fixture
def device_factory(mtls_gateway: MtlsGateway, _mqtt_loop: LoopThread) -> Iterator[DeviceFactory]:
    """Connected devices, each with a certificate of its own: `device_factory("press-07")`."""
    from device_sim.pytest_plugin.factories import DeviceFactory  # noqa: PLC0415 - as above

    factory = DeviceFactory(mtls_gateway, _mqtt_loop)
    yield factory
    factory.close()


@pytest.fixture
def capture(mtls_gateway: MtlsGateway, mtls_observer: ObserverName, _mqtt_loop: LoopThread) -> Iterator[Capture]:
    """What the observer hears, from the test's beginning on: `capture.expect(topic, payload)`, `capture.nothing()`."""
    from device_sim.pytest_plugin.factories import Capture  # noqa: PLC0415 - as above
    from device_sim.pytest_plugin.gateway import fails_plainly  # noqa: PLC0415 - as above

    captured = Capture(mtls_gateway, mtls_observer, _mqtt_loop)
    with fails_plainly():
        captured.start()
    yield captured
    captured.close()


@pytest.fixture
def fleet(mtls_gateway: MtlsGateway, mtls_observer: ObserverName, _mqtt_loop: LoopThread) -> FleetRunner:
    """Run many devices for a while: `fleet(count=50, seconds=5)` returns a FleetReport."""
    from device_sim.pytest_plugin.factories import FleetRunner  # noqa: PLC0415 - as above

    return FleetRunner(mtls_gateway, mtls_observer, _mqtt_loop)


@pytest.fixture
def fault_proxy(mtls_gateway: MtlsGateway) -> Iterator[ThreadedProxy]:
    """A network between devices and broker that can be made bad; devices take it with `through=fault_proxy`."""
    from device_sim.network.fault_proxy import ThreadedProxy  # noqa: PLC0415 - as above

    with ThreadedProxy(mtls_gateway.host, mtls_gateway.port) as proxy:
        yield proxy
