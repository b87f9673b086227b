"""Every attack is held by our gateway, and catches a broker, or our gateway with one rule or limit switched off."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from device_sim.attacks.ground import Attack, carry_out
from device_sim.attacks.report import ATTACKS
from device_sim.targets.brokers import OurGateway, ProcessBroker, broker_named
from device_sim.targets.site import POLICY, Site
from tests.integration.programs import attempt


def by_name(name: str) -> Attack:
    return next(attack for attack in ATTACKS if attack.name == name)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessBroker]:
    with broker_named("gateway", tmp_path_factory.mktemp("gateway")) as broker:
        yield broker


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.trap} {attack.name}")
def test_the_gateway_holds(gateway: ProcessBroker, attack: Attack) -> None:
    """Each attack, with what was seen in the message when it was not held."""
    finding = carry_out(attack, gateway)
    assert finding.held, finding.evidence


# --- every expectation can fail: brokers without the check ---

MOSQUITTO_LACKS = (
    *("two common names", "a name with a slash", "a CA's certificate", "a device named +, CVE-2017-7650"),
    *("a CONNECT of 100 MB", "a PUBLISH of 100 MB", "a will on another's topic", "revoked while connected"),
    *("a revoked issuing CA", "a certificate that ends", "a resumed session of a revoked device"),
    "a reload with a broken file",
)
AMQTT_LACKS = (
    *("retained messages for a stranger", "a topic that is a wildcard", "a topic that is nothing"),
    *("a topic that is bad UTF-8", "a topic that is U+0000", "silence beyond keep alive"),
    *("a packet that never ends", "a new server certificate", "a device and its own half-open self"),
)


@pytest.fixture(scope="module", params=["mosquitto", "amqtt"])
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessBroker]:
    with broker_named(request.param, tmp_path_factory.mktemp(request.param)) as broker:
        yield broker


def test_what_another_broker_lets_through_is_seen(foreign: ProcessBroker) -> None:
    """A list of attacks that the broker is known not to hold: none of them is reported as held."""
    lacks = MOSQUITTO_LACKS if foreign.name.startswith("mosquitto") else AMQTT_LACKS
    held = [name for name in lacks if carry_out(by_name(name), foreign).held]
    assert held == []


# --- and our gateway with one rule or limit switched off ---

Change = Callable[[Site], Mapping[str, Mapping[str, Any]]]


def _rules(old: str, new: str) -> Change:
    def change(site: Site) -> Mapping[str, Mapping[str, Any]]:
        assert old in POLICY
        site.write_policy(POLICY.replace(old, new))
        return {}

    return change


def _settings(table: str, **keys: Any) -> Change:
    return lambda site: {table: keys}


SUBSCRIBES_ALL = _rules('subscribe = ["devices/{id}/commands/#", "broadcast/#"]', 'subscribe = ["#", "$SYS/#"]')
ANY_CLIENT_ID = _rules("version = 1", 'version = 1\n[identity]\nclient_id = ["*"]')
NO_CRL = _settings("listener", crl_file="")

SWITCHED_OFF: tuple[tuple[str, Change], ...] = (
    ("a stranger names my client id", ANY_CLIENT_ID),
    ("a stranger, clean session", ANY_CLIENT_ID),
    ("silence and dripping", _settings("limits", handshake_timeout_s=60, connect_timeout_s=60)),
    ("beyond max_connections", _settings("limits", max_connections=5000)),
    ("subscribe to #", SUBSCRIBES_ALL),
    ("subscribe to +/+/#", SUBSCRIBES_ALL),
    ("subscribe to devices/+/state", SUBSCRIBES_ALL),
    ("subscribe to devices/p3-owner/#", SUBSCRIBES_ALL),
    (
        "a will on another's topic",
        _rules('retain = ["devices/{id}/state"]\nwill = ["devices/{id}/state"]', 'retain = ["#"]\nwill = ["#"]'),
    ),
    ("publish as another", _rules('publish = ["devices/{id}/telemetry/#"', 'publish = ["devices/#"')),
    ("revoked while connected", NO_CRL),
    ("two CRLs within a second", NO_CRL),
    ("the old certificate after a renewal", NO_CRL),
    ("a stale CRL", _settings("listener", crl_stale="grace 8760h")),
)


@pytest.mark.parametrize(("name", "change"), SWITCHED_OFF, ids=[name for name, _ in SWITCHED_OFF])
def test_an_attack_catches_the_gateway_with_its_check_switched_off(tmp_path: Path, name: str, change: Change) -> None:
    """The same attack that is held above is let through."""
    site = Site.make(tmp_path)
    with OurGateway(site, change(site)) as broker:
        finding = carry_out(by_name(name), broker)
    assert not finding.held, finding.evidence


def test_the_command_writes_its_reports(tmp_path: Path) -> None:
    """JSON on standard output, JUnit in a file, exit code 0; 1 for a trap that there is none of."""
    junit = tmp_path / "attacks.xml"
    done = attempt("device-sim", "attack", "--only", "P1", "--junit", junit, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["let_through"] == 0
    suite = ET.parse(junit).getroot()  # noqa: S314 - our own file
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")
    assert attempt("device-sim", "attack", "--only", "Z9").returncode == 1


def test_the_command_says_what_is_let_through(tmp_path: Path) -> None:
    """The twin: mosquitto, a failure in the JUnit file, exit code 1."""
    junit = tmp_path / "attacks.xml"
    done = attempt("device-sim", "attack", "--target", "mosquitto", "--only", "P1", "--junit", junit)
    assert done.returncode == 1
    assert "LET THROUGH" in done.stdout
    assert ET.parse(junit).getroot().get("failures") == "1"  # noqa: S314 - our own file
