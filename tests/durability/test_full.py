"""D3: without room the acknowledgement is withheld, nobody else is harmed, and nothing acknowledged goes missing."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any

import pytest

from gateway.broker import durability
from gateway.broker.packets import PacketType, encode_ack, encode_subscribe
from tests.durability.conftest import Start
from tests.support.gateway import OPEN_POLICY, Gateway, RawClient, wait_until

SMALL = {"max_bytes": 1_048_576, "commit_interval_ms": 0}
BIG = bytes(60_000)


@pytest.fixture
def one_session_may_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift the share of one session, so that one is enough to fill a small store."""
    monkeypatch.setattr(durability, "IDENTITY_SHARE", 1)


def away(gateway: Gateway, name: str, topic_filter: str = "a/#", client_id: str = "") -> None:
    """A persistent subscriber that is not there."""
    client = gateway.connected(name, client_id or name, clean=False)
    client.subscribe((topic_filter, 1))
    client.disconnect()


def is_acknowledged(gateway: Gateway, publisher: RawClient) -> bool:
    """Whether a PUBACK comes; a disk that is only slow is waited for."""
    try:
        first, _ = publisher.read(0.5)
    except TimeoutError:
        if not gateway.status()["store"]["accepting"]:
            return False
        first, _ = publisher.read()
    assert first >> 4 == PacketType.PUBACK
    return True


def fill(gateway: Gateway, publisher: RawClient, topic: str = "a/b") -> int:
    """Publish, one by one, until the store is full; how many were acknowledged."""
    for number in range(1, 100):
        publisher.publish(topic, b"%d " % number + BIG, 1, packet_id=number)
        if not is_acknowledged(gateway, publisher):
            return number - 1
    raise AssertionError("the store was never full")


def take(client: RawClient, count: int) -> list[int]:
    """Receive and acknowledge; the numbers in the payloads."""
    numbers = []
    for _ in range(count):
        message = client.expect_publish()
        numbers.append(int(message.payload.split(b" ")[0]))
        client.send(encode_ack(PacketType.PUBACK, message.packet_id))
    return numbers


@pytest.mark.usefixtures("one_session_may_fill_it")
def test_a_full_store_withholds_the_puback_and_goes_on_reading(start: Start) -> None:
    """PINGREQ is answered, nobody gets the message, and PUBACK comes when there is room."""
    gateway = start(store=SMALL)
    away(gateway, "sub")
    publisher = gateway.connected("pub")
    acknowledged = fill(gateway, publisher)
    live = gateway.connected("live")
    live.subscribe(("a/#", 1))
    publisher.ping()
    live.ping()
    assert gateway.status()["store"]["withheld"] == 1
    client = gateway.client("sub")
    client.connect("sub", clean=False)
    assert take(client, acknowledged + 1) == list(range(1, acknowledged + 2))
    assert publisher.read() == (0x40, (acknowledged + 1).to_bytes(2, "big"))
    assert live.expect_publish().payload.startswith(b"%d " % (acknowledged + 1))


@pytest.mark.usefixtures("one_session_may_fill_it")
def test_a_full_store_stops_nobody_who_needs_it_not(start: Start) -> None:
    """QoS 0, and QoS 1 that nobody durable wants, flow as ever."""
    gateway = start(store=SMALL)
    away(gateway, "sub")
    live = gateway.connected("live")
    live.subscribe(("free/#", 1))
    fill(gateway, gateway.connected("pub"))
    other = gateway.connected("other")
    other.publish("free/x", b"one", 1, packet_id=9)
    assert other.read() == (0x40, b"\0\x09")
    other.publish("free/x", b"zero", 0)
    assert [live.expect_publish().payload for _ in range(2)] == [b"one", b"zero"]


@pytest.mark.usefixtures("one_session_may_fill_it")
def test_acknowledgements_keep_their_order_behind_a_withheld_one(start: Start) -> None:
    """[MQTT-4.6.0-2]: a later message that needs no room is not acknowledged before an earlier one that does."""
    gateway = start(store=SMALL)
    away(gateway, "sub")
    publisher = gateway.connected("pub")
    stuck = fill(gateway, publisher) + 1
    publisher.publish("free/x", b"x", 1, packet_id=1000)
    publisher.ping()
    client = gateway.client("sub")
    client.connect("sub", clean=False)
    take(client, stuck)
    assert [publisher.read()[1] for _ in range(2)] == [stuck.to_bytes(2, "big"), (1000).to_bytes(2, "big")]


def closed_for_room(gateway: Gateway) -> list[dict[str, Any]]:
    return [line for line in gateway.audit("disconnected") if line["reason"] == "store_full"]


@pytest.mark.usefixtures("one_session_may_fill_it")
def test_beyond_the_bound_the_publisher_is_closed_without_puback(start: Start) -> None:
    """[MQTT-4.8.0-2]: at most max_inflight messages of one connection wait."""
    gateway = start(store=SMALL, limits={"max_inflight": 3})
    away(gateway, "sub")
    publisher = gateway.connected("pub")
    stuck = fill(gateway, publisher) + 1
    for number in range(stuck + 1, stuck + 4):
        publisher.publish("a/b", b"x", 1, packet_id=number)
    assert publisher.expect_closed() == []
    wait_until(lambda: closed_for_room(gateway), "the audit line")


@pytest.mark.usefixtures("one_session_may_fill_it")
def test_after_the_grace_the_publisher_is_closed_without_puback(start: Start) -> None:
    """A device that waits for PUBACK learns that it must try again."""
    gateway = start(store={**SMALL, "full_grace_s": 1.0})
    away(gateway, "sub")
    publisher = gateway.connected("pub")
    fill(gateway, publisher)
    assert publisher.expect_closed() == []
    assert len(closed_for_room(gateway)) == 1
    assert gateway.status()["store"]["withheld"] == 0


@pytest.mark.usefixtures("one_session_may_fill_it")
@pytest.mark.parametrize(
    "rule", [{"full": "drop-oldest"}, {"drop_oldest_topics": ["a/#"]}], ids=["everything", "by class"]
)
def test_a_drop_oldest_class_makes_room_for_itself(start: Start, rule: dict[str, Any]) -> None:
    """The newest are there, the oldest are gone, every one was acknowledged and the drops are counted."""
    gateway = start(store={**SMALL, **rule})
    away(gateway, "sub")
    publisher = gateway.connected("pub")
    for number in range(1, 61):
        publisher.publish("a/b", b"%d " % number + BIG, 1, packet_id=number)
        assert publisher.read()[0] >> 4 == PacketType.PUBACK
    report = gateway.status()["store"]
    assert report["evicted"] > 0
    assert report["used_bytes"] < 2 * SMALL["max_bytes"]
    client = gateway.client("sub")
    client.connect("sub", clean=False)
    kept = take(client, 60 - report["evicted"])
    assert kept == list(range(report["evicted"] + 1, 61))
    client.ping()


@pytest.mark.usefixtures("one_session_may_fill_it")
def test_a_class_that_must_not_be_dropped_is_withheld_beside_one_that_may(start: Start) -> None:
    """The deny twin: other topics lose nothing to a drop-oldest class, and wait when nothing may be dropped."""
    gateway = start(store={**SMALL, "drop_oldest_topics": ["telemetry/#"]})
    away(gateway, "sub", "#")
    publisher = gateway.connected("pub")
    stuck = fill(gateway, publisher, "alarm/x") + 1
    publisher.ping()
    other = gateway.connected("other")
    other.publish("telemetry/x", b"t", 1, packet_id=1)
    try:
        other.read(1.0)
    except TimeoutError:
        assert gateway.status()["store"]["evicted"] == 0
    client = gateway.client("sub")
    client.connect("sub", clean=False)
    numbers = [message.payload.split(b" ")[0] for message in alarms(client, stuck)]
    assert numbers == [b"%d" % number for number in range(1, stuck + 1)]


@pytest.mark.usefixtures("one_session_may_fill_it")
def test_what_must_not_be_dropped_arrives_after_a_drop_from_the_queue_of_a_slow_client(start: Start) -> None:
    """D0: what was evicted is in its session's memory still, and is counted off twice; the rest is not forgotten."""
    gateway = start(store={**SMALL, "drop_oldest_topics": ["telemetry/#"]}, limits={"max_inflight": 1})
    slow = gateway.connected("sub", clean=False)
    slow.subscribe(("#", 1))
    publisher = gateway.connected("pub")
    number = 0
    while not gateway.status()["store"]["evicted"]:
        number += 1
        publisher.publish("telemetry/x", b"%d " % number + BIG, 1, packet_id=number)
        assert publisher.read()[0] >> 4 == PacketType.PUBACK
    for alarm in (1, 2, 3):
        publisher.publish("alarm/x", b"%d " % alarm, 1, packet_id=alarm)
        assert publisher.read()[0] >> 4 == PacketType.PUBACK
    while (message := slow.expect_publish()).topic != "alarm/x":
        slow.send(encode_ack(PacketType.PUBACK, message.packet_id))
    slow.close()
    wait_until(lambda: not gateway.sessions()["sub"]["connected"])
    again = gateway.client("sub")
    assert again.connect("sub", clean=False) == (True, 0)
    assert take(again, 3) == [1, 2, 3]


def alarms(client: RawClient, count: int) -> list[Any]:
    """Take messages until `count` alarms have come."""
    found: list[Any] = []
    while len(found) < count:
        message = client.expect_publish()
        client.send(encode_ack(PacketType.PUBACK, message.packet_id))
        found += [message] if message.topic == "alarm/x" else []
    return found


LIMITED = OPEN_POLICY + 'limits = { queue_messages = 10, queue_full = "%s" }\n'


@pytest.mark.parametrize(("full", "kept"), [("drop-oldest", range(41, 51)), ("drop-newest", range(1, 11))])
def test_a_full_session_queue_stops_no_publisher(start: Start, full: str, kept: range) -> None:
    """The role's bound holds on disk as it does in memory: the publisher is acknowledged, the drops are counted."""
    gateway = start(LIMITED % full)
    away(gateway, "sub")
    publisher = gateway.connected("pub")
    for number in range(1, 51):
        publisher.publish("a/b", b"%d " % number, 1, packet_id=number)
    publisher.ping_after_acks(50)
    assert (gateway.sessions()["sub"]["queued"], gateway.sessions()["sub"]["dropped"]) == (10, 40)
    client = gateway.client("sub")
    client.connect("sub", clean=False)
    assert take(client, 10) == list(kept)
    client.ping()


def test_one_device_cannot_fill_the_store_with_many_sessions(start: Start) -> None:
    """Six sessions of one identity, each with messages of its own: together they hold what one alone may."""
    gateway = start(store={"max_bytes": 4_194_304})
    for number in range(6):
        client = gateway.connected("hoarder", f"hoarder:{number}", clean=False)
        client.subscribe((f"a/{number}", 1))
        client.disconnect()
    publisher = gateway.connected("pub")
    for number in range(120):
        publisher.publish(f"a/{number % 6}", b"%d " % number + BIG, 1, packet_id=number + 1)
        assert publisher.read()[0] >> 4 == PacketType.PUBACK
    assert gateway.status()["store"]["accepting"] is True
    assert 10 < gateway.status()["store"]["queued"] < 36


def test_one_device_cannot_fill_the_store_with_sessions_one_after_another(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is filled before the next begins: the equal parts grow smaller, and what was taken before stays taken."""
    monkeypatch.setattr(durability, "IDENTITY_SHARE", 3)  # as more sessions and a quarter, but sooner
    gateway = start(store={"max_bytes": 4_194_304})
    publisher = gateway.connected("pub")
    for number in range(1, 16):
        away(gateway, "hoarder", f"a/{number}", f"hoarder:{number}")
        for packet_id in range(1, 72 // number):
            publisher.publish(f"a/{number}", bytes(20_000), 1, packet_id=packet_id)
        publisher.ping_after_acks(72 // number - 1)
    assert gateway.status()["store"]["accepting"] is True
    away(gateway, "modest", "a/modest")
    publisher.publish("a/modest", b"x", 1)
    assert publisher.read()[0] >> 4 == PacketType.PUBACK
    held = {name: session["queued"] for name, session in gateway.sessions().items() if session["queued"]}
    assert held.pop("modest") == 1
    assert 130 < sum(held.values()) < 140


def test_a_disk_that_does_not_write_costs_bounded_memory(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program holds the database: who goes on subscribing unanswered is closed, and its neighbour is served."""
    gateway = start()
    patient, greedy = gateway.connected("patient", clean=False), gateway.connected("greedy", clean=False)
    with contextlib.closing(sqlite3.connect(gateway.status()["store"]["path"], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        greedy.send(encode_subscribe(1, [("a/b", 1)]))
        wait_until(lambda: gateway.status()["store"]["trouble"], "trouble")
        for number in range(2, 2500):
            greedy.send(encode_subscribe(number, [("a/b", 1)]))
        greedy.expect_closed()
        patient.ping()
        (line,) = gateway.audit("disconnected")
        assert (line["id"], line["reason"]) == ("greedy", "store_full")
        with monkeypatch.context() as many_clients_later:
            many_clients_later.setattr(durability, "MAX_WAITING_BYTES", 1)
            assert gateway.client("greedy").connect("greedy", clean=False) == (False, 3)
            assert gateway.client("modest").connect("modest", clean=True) == (False, 0)
            patient.ping()
    patient.subscribe(("a/b", 1))


def test_one_session_cannot_fill_the_store(start: Start) -> None:
    """A session that nobody fetches holds a quarter of it; then it loses its own oldest, and others keep theirs."""
    gateway = start(store={"max_bytes": 4_194_304})
    away(gateway, "hoarder")
    publisher = gateway.connected("pub")
    for number in range(1, 101):
        publisher.publish("a/b", b"%d " % number + BIG, 1, packet_id=number)
        assert publisher.read()[0] >> 4 == PacketType.PUBACK
    assert gateway.status()["store"]["accepting"] is True
    session = gateway.sessions()["hoarder"]
    assert session["queued"] + session["dropped"] == 100
    assert 10 < session["queued"] < 20
