"""Every attack has caught somebody: mosquitto, stock amqtt, or our gateway with one check switched off.

`CAUGHT` names for each attack who lets it through. An attack that is new and has no line here fails the suite: an
expectation that was never seen to fail may look in the wrong place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from device_sim.attacks.ground import Attack, carry_out
from device_sim.attacks.report import ATTACKS
from device_sim.targets.brokers import ProcessBroker, broker_named
from device_sim.targets.site import POLICY, Site
from tests.device_sim.attacks import weak_gateway
from tests.device_sim.attacks.weak_gateway import WEAKNESSES, WeakGateway

Tables = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Weak:
    """Our gateway with one thing changed: a rule of its policy, a setting, or a function."""

    rule: tuple[str, str] = ("", "")  # what stands in the policy, and what stands there instead
    tables: Tables = field(default_factory=dict)
    weakness: Callable[[], None] | None = None

    def gateway(self, site: Site) -> WeakGateway:
        """To be entered."""
        assert self.rule[0] in POLICY
        site.write_policy(POLICY.replace(*self.rule))
        return WeakGateway(site, self.tables, self.weakness.__name__ if self.weakness else "")


SUBSCRIBES = 'subscribe = ["devices/{id}/commands/#", "broadcast/#"]'
SUBSCRIBES_ALL = (SUBSCRIBES, 'subscribe = ["#", "$SYS/#"]')
RETAINS_AND_WILLS = 'retain = ["devices/{id}/state"]\nwill = ["devices/{id}/state"]'
PUBLISHES = 'publish = ["devices/{id}/telemetry/#", "devices/{id}/state"]\nretain = ["devices/{id}/state"]'
ANY_CLIENT_ID = Weak(("version = 1", 'version = 1\n[identity]\nclient_id = ["*"]'))
NO_CRL = Weak(tables={"listener": {"crl_file": ""}})
NO_TIME_LIMITS = Weak(tables={"limits": {"handshake_timeout_s": 60, "connect_timeout_s": 60}})
FEW_PLACES: Tables = {"limits": {"max_connections": 200, "connect_timeout_s": 60}}
ASKS_NOBODY = Weak(weakness=weak_gateway.asks_nobody_for_a_certificate)
LOOKS_AT_NO_DATE = Weak(weakness=weak_gateway.looks_at_no_date)
KEEPS_ITS_RULES = Weak(weakness=weak_gateway.keeps_its_first_rules)

CAUGHT: Mapping[str, Weak | str] = {
    "no certificate": ASKS_NOBODY,
    "TLS 1.1": Weak(weakness=weak_gateway.serves_old_tls),
    "a stranger names my client id": ANY_CLIENT_ID,
    "nobody names my client id": ASKS_NOBODY,
    "a stranger, clean session": ANY_CLIENT_ID,
    "refused CONNECTs with 60 kB wills": Weak(weakness=weak_gateway.keeps_what_it_refused),
    "250 idle connections": Weak(tables=FEW_PLACES, weakness=weak_gateway.gives_idle_connections_every_place),
    "two common names": "mosquitto",
    "no name": Weak(weakness=weak_gateway.names_the_nameless),
    "a name with a slash": "mosquitto",
    "another CA of our CA's name": ASKS_NOBODY,
    "self-signed": ASKS_NOBODY,
    "a server's certificate": ASKS_NOBODY,
    "a CA's certificate": "mosquitto",
    "the old certificate after a renewal": NO_CRL,
    "a device and its own half-open self": "amqtt",
    "silence and dripping": NO_TIME_LIMITS,
    "a CONNECT of 100 MB": "mosquitto",
    "a PUBLISH of 100 MB": "mosquitto",
    "silence beyond keep alive": "amqtt",
    "a packet that never ends": "amqtt",
    "a resumed session of a revoked device": NO_CRL,
    "beyond max_connections": Weak(tables={"limits": {"max_connections": 5000}}),
    "a will on another's topic": Weak((RETAINS_AND_WILLS, 'retain = ["#"]\nwill = ["#"]')),
    "retained messages for a stranger": "amqtt",
    "subscribe to #": Weak(SUBSCRIBES_ALL),
    "subscribe to +/+/#": Weak(SUBSCRIBES_ALL),
    "subscribe to devices/+/state": Weak(SUBSCRIBES_ALL),
    "subscribe to devices/p3-owner/#": Weak(SUBSCRIBES_ALL),
    "subscribe to $SYS/#": Weak(SUBSCRIBES_ALL),
    "a $share thief": Weak(SUBSCRIBES_ALL, weakness=weak_gateway.takes_shared_filters_for_others),
    "delivered QoS": Weak(weakness=weak_gateway.delivers_at_the_granted_qos),
    "retained, CVE-2018-12546": KEEPS_ITS_RULES,
    "subscribed, CVE-2021-34434": Weak(weakness=weak_gateway.judges_no_subscription_again),
    "empty rules, CVE-2018-12550": Weak(weakness=weak_gateway.takes_empty_rules_for_open_ones),
    "a topic that is a wildcard": "amqtt",
    "a topic that is nothing": "amqtt",
    "a topic that is bad UTF-8": "amqtt",
    "a topic that is U+0000": "amqtt",
    "publish as another": Weak(('publish = ["devices/{id}/telemetry/#"', 'publish = ["devices/#"')),
    "publish to all": Weak((PUBLISHES, 'publish = ["broadcast/#"]\nretain = ["broadcast/#"]')),
    "revoked while connected": NO_CRL,
    "two CRLs within a second": NO_CRL,
    "a stale CRL": Weak(tables={"listener": {"crl_stale": "grace 8760h"}}),
    "a revoked issuing CA": "mosquitto",
    "a certificate that ends": "mosquitto",
    "an expired certificate": LOOKS_AT_NO_DATE,
    "a certificate of the future": LOOKS_AT_NO_DATE,
    "a new server certificate": "amqtt",
    "a reload with a broken file": "mosquitto",
    "a device named +, CVE-2017-7650": "mosquitto",
}
FOREIGN = [(name, who) for name, who in CAUGHT.items() if isinstance(who, str)]
OURS = [(name, who) for name, who in CAUGHT.items() if isinstance(who, Weak)]


def by_name(name: str) -> Attack:
    return next(attack for attack in ATTACKS if attack.name == name)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.trap} {attack.name}")
def test_every_attack_has_somebody_whom_it_caught(attack: Attack) -> None:
    """A new attack needs a line in CAUGHT."""
    assert attack.name in CAUGHT


def test_every_line_and_every_weakness_is_used() -> None:
    """The twin: nobody is named for an attack that there is none of, and no weakness is left over."""
    assert set(CAUGHT) == {attack.name for attack in ATTACKS}
    assert {who.weakness for _, who in OURS if who.weakness} == set(WEAKNESSES.values())


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ProcessBroker]]:
    """Others than ours, each started when it is asked for first."""
    running: dict[str, ProcessBroker] = {}
    yield running
    for broker in running.values():
        broker.stop()


@pytest.mark.parametrize(("name", "who"), FOREIGN, ids=[f"{name}, {who}" for name, who in FOREIGN])
def test_another_broker_lets_it_through(
    brokers: dict[str, ProcessBroker], tmp_path_factory: pytest.TempPathFactory, name: str, who: str
) -> None:
    """The attack is reported as let through."""
    if who not in brokers:
        broker = broker_named(who, tmp_path_factory.mktemp(who))
        broker.start()
        brokers[who] = broker
    finding = carry_out(by_name(name), brokers[who])
    assert not finding.held, finding.evidence


@pytest.mark.parametrize(("name", "weak"), OURS, ids=[name for name, _ in OURS])
def test_our_gateway_lets_it_through_without_its_check(tmp_path: Path, name: str, weak: Weak) -> None:
    """The same attack that the gateway holds is reported as let through."""
    with weak.gateway(Site.make(tmp_path)) as broker:
        finding = carry_out(by_name(name), broker)
    assert not finding.held, finding.evidence
    assert "honest client" not in finding.evidence or name == "250 idle connections"


def test_few_places_are_enough_while_idle_connections_have_a_share(tmp_path: Path) -> None:
    """The twin of the one above that needs another setting as well: the setting alone lets nothing through."""
    with Weak(tables=FEW_PLACES).gateway(Site.make(tmp_path)) as broker:
        finding = carry_out(by_name("250 idle connections"), broker)
    assert finding.held, finding.evidence
