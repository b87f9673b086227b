"""With a store, a message's route is still looked up once per topic and connection, and not once per message."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from gateway.broker import durability
from gateway.broker.exchange import Exchange
from gateway.broker.host import Route
from gateway.broker.packets import PacketType, encode_ack
from tests.durability.conftest import Start
from tests.durability.test_full import away, take
from tests.support.gateway import RawClient

MESSAGES = 60
FULL = {"max_bytes": 1_048_576, "commit_interval_ms": 0, "full": "drop-oldest"}
BIG = bytes(60_000)


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the route of each topic was looked up."""
    counted: Counter[str] = Counter()
    found = Exchange.route

    def route(exchange: Exchange, topic: str) -> Route:
        counted[topic] += 1
        return found(exchange, topic)

    monkeypatch.setattr(Exchange, "route", route)
    monkeypatch.setattr(durability, "IDENTITY_SHARE", 1)
    return counted


def publish(client: RawClient, payload: bytes, qos: int) -> None:
    """Numbered messages, each acknowledged in full before the next."""
    for number in range(1, MESSAGES + 1):
        client.publish("a/b", b"%d " % number + payload, qos, packet_id=number)
        assert client.read()[0] >> 4 == (PacketType.PUBACK if qos == 1 else PacketType.PUBREC)
        if qos == 2:
            client.send(encode_ack(PacketType.PUBREL, number))
            assert client.read()[0] >> 4 == PacketType.PUBCOMP


@pytest.mark.parametrize(
    ("store", "payload", "qos"),
    [({}, b"x", 1), ({}, b"x", 2), ({}, BIG, 1), (FULL, BIG, 1), (FULL, BIG, 2)],
    ids=["QoS 1", "QoS 2", "large", "a full store that drops the oldest", "the same with QoS 2"],
)
def test_a_stored_message_is_routed_by_what_is_known(
    start: Start, lookups: Counter[str], store: dict[str, Any], payload: bytes, qos: int
) -> None:
    """One look-up for all messages of a topic, whichever way they take."""
    gateway = start(store=store)
    away(gateway, "sub")
    publish(gateway.connected("pub"), payload, qos)
    assert (gateway.status()["store"]["evicted"] > 0) == (store is FULL)
    assert lookups == {"a/b": 1}


def test_a_route_that_is_known_is_looked_up_again_when_a_subscription_changes(
    start: Start, lookups: Counter[str]
) -> None:
    """The deny twin: yesterday's route is not used, so the newcomer gets what comes after."""
    gateway = start(store=FULL)
    away(gateway, "sub")
    publisher = gateway.connected("pub")
    publish(publisher, BIG, 1)
    live = gateway.connected("live")
    live.subscribe(("a/#", 1))
    publisher.publish("a/b", b"61 ", 1, packet_id=61)
    assert take(live, 1) == [61]
    assert lookups == {"a/b": 2}
