"""What a gateway takes up again after its end: sessions, subscriptions, queues, what was in flight, retained, wills."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.broker.packets import PacketType, Will, encode_ack
from gateway.store import schema
from gateway.store.database import open_database
from tests.durability.conftest import Start
from tests.support.gateway import DEVICE_POLICY, OPEN_POLICY, Gateway, RawClient, wait_until


def on_disk(folder: Path, table: str) -> int:
    with closing(sqlite3.connect(folder / "gateway.db")) as db:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608


def subscriber(gateway: Gateway, name: str, *filters: tuple[str, int]) -> RawClient:
    client = gateway.connected(name, clean=False)
    assert client.subscribe(*filters) == [qos for _, qos in filters]
    return client


def acknowledge(client: RawClient, count: int) -> list[bytes]:
    """Take and acknowledge QoS 1 messages; their payloads."""
    taken = []
    for _ in range(count):
        message = client.expect_publish()
        taken.append(message.payload)
        client.send(encode_ack(PacketType.PUBACK, message.packet_id))
    return taken


def test_acknowledged_messages_are_on_disk_before_the_puback(start: Start, tmp_path: Path) -> None:
    """D0: another program finds each message in the file when its PUBACK has arrived."""
    gateway = start()
    subscriber(gateway, "sub", ("a/#", 1)).close()
    publisher = gateway.connected("pub")
    for number in range(1, 20):
        publisher.publish("a/b", b"%d" % number, 1, packet_id=number)
        assert publisher.read()[0] >> 4 == PacketType.PUBACK
        assert on_disk(tmp_path, "deliveries") == number


def test_a_queue_outlives_the_gateway_and_keeps_its_order(start: Start, tmp_path: Path) -> None:
    """Messages for a client that is away are there after a restart, once each, in order, and gone when acknowledged."""
    gateway = start()
    subscriber(gateway, "sub", ("a/#", 1)).close()
    publisher = gateway.connected("pub")
    for number in range(1, 701):  # more than two pages
        publisher.publish("a/b", b"%d" % number, 1, packet_id=number)
    publisher.ping_after_acks(700)
    gateway.stop()
    again = start()
    assert again.sessions()["sub"]["queued"] == 700
    client = again.client("sub")
    assert client.connect("sub", clean=False) == (True, 0)
    assert acknowledge(client, 700) == [b"%d" % number for number in range(1, 701)]
    client.ping()
    wait_until(lambda: on_disk(tmp_path, "deliveries") == on_disk(tmp_path, "messages") == 0, "an empty store")
    assert again.sessions()["sub"]["queued"] == 0


def test_what_comes_while_a_page_is_read_follows_it(start: Start) -> None:
    """A backlog and live traffic reach a returning client in the order of their publication."""
    gateway = start()
    subscriber(gateway, "sub", ("a/#", 1)).close()
    publisher = gateway.connected("pub")
    for number in range(1, 601):
        publisher.publish("a/b", b"%d" % number, 1, packet_id=number)
    publisher.ping_after_acks(600)
    client = gateway.client("sub")
    client.connect("sub", clean=False)
    taken: list[bytes] = []
    for number in range(601, 901):
        publisher.publish("a/b", b"%d" % number, 1, packet_id=number)
        taken += acknowledge(client, 1)
    taken += acknowledge(client, 600)
    assert taken == [b"%d" % number for number in range(1, 901)]
    publisher.ping_after_acks(300)


def test_a_body_is_stored_once_for_all_who_want_it(start: Start, tmp_path: Path) -> None:
    """Ten sessions, one message: one row of its body, until the last of them has it."""
    gateway = start()
    for number in range(10):
        subscriber(gateway, f"sub-{number}", ("a/#", 1)).close()
    publisher = gateway.connected("pub")
    publisher.publish("a/b", bytes(1000), 1)
    publisher.ping_after_acks(1)
    assert (on_disk(tmp_path, "messages"), on_disk(tmp_path, "deliveries")) == (1, 10)
    for number in range(10):
        client = gateway.client(f"sub-{number}")
        client.connect(f"sub-{number}", clean=False)
        assert on_disk(tmp_path, "messages") == 1
        acknowledge(client, 1)
        client.ping()
    wait_until(lambda: on_disk(tmp_path, "messages") == 0, "no body")


@pytest.mark.parametrize("restarted", [False, True], ids=["reconnected", "restarted"])
def test_in_flight_messages_come_again_with_dup_and_the_same_identifiers(start: Start, restarted: bool) -> None:
    """[MQTT-4.4.0-1] with and without a restart: QoS 1 and 2 with DUP, PUBREL without, then the queue."""
    gateway = start(limits={"max_inflight": 4})
    client = subscriber(gateway, "sub", ("a/#", 2))
    publisher = gateway.connected("pub")
    for number in range(1, 7):
        publisher.publish("a/b", b"%d" % number, 1 + number % 2, packet_id=number)
    sent = [client.expect_publish() for _ in range(4)]
    assert [m.payload for m in sent] == [b"1", b"2", b"3", b"4"]
    assert [m.qos for m in sent] == [2, 1, 2, 1]
    client.send(encode_ack(PacketType.PUBREC, sent[0].packet_id))
    assert client.read()[0] == 0x62
    publisher.ping_after_acks(6)
    client.close()
    if restarted:
        gateway.stop()
        gateway = start(limits={"max_inflight": 4})
    else:
        wait_until(lambda: not gateway.sessions()["sub"]["connected"], "offline")
    assert (gateway.sessions()["sub"]["inflight"], gateway.sessions()["sub"]["queued"]) == (4, 2)
    client = gateway.client("sub")
    assert client.connect("sub", clean=False) == (True, 0)
    assert client.read() == (0x62, sent[0].packet_id.to_bytes(2, "big"))
    repeated = [client.expect_publish() for _ in range(3)]
    assert [(m.payload, m.packet_id, m.dup) for m in repeated] == [(m.payload, m.packet_id, True) for m in sent[1:]]
    client.send(encode_ack(PacketType.PUBCOMP, sent[0].packet_id))
    new = client.expect_publish()
    assert (new.payload, new.dup) == (b"5", False)
    assert new.packet_id not in {m.packet_id for m in sent[1:]}


def test_a_qos_2_message_is_taken_once_across_a_restart(start: Start) -> None:
    """[MQTT-4.3.3-2]: the identifier outlives the gateway, so the repeated PUBLISH is answered and not routed again."""
    gateway = start()
    subscriber(gateway, "sub", ("a/#", 1)).close()
    publisher = gateway.connected("pub", clean=False)
    publisher.publish("a/b", b"once", 2, packet_id=7)
    assert publisher.read() == (0x50, b"\0\7")
    gateway.stop()
    again = start()
    publisher = again.client("pub")
    assert publisher.connect("pub", clean=False) == (True, 0)
    publisher.publish("a/b", b"once", 2, packet_id=7)
    assert publisher.read() == (0x50, b"\0\7")
    publisher.send(encode_ack(PacketType.PUBREL, 7))
    assert publisher.read() == (0x70, b"\0\7")
    assert again.sessions()["sub"]["queued"] == 1
    publisher.publish("a/b", b"another", 2, packet_id=7)
    assert publisher.read() == (0x50, b"\0\7")
    assert again.sessions()["sub"]["queued"] == 2


def test_subscriptions_and_retained_messages_are_there_again(start: Start) -> None:
    """Retained of any QoS; one that was deleted, and a subscription that was removed, stay away."""
    gateway = start()
    client = subscriber(gateway, "sub", ("a/#", 1), ("b/#", 1))
    client.send(b"\xa2\x07\0\x09\0\x03b/#")
    assert client.read()[0] == 0xB0
    publisher = gateway.connected("pub")
    for topic, payload in (("r/0", b"zero"), ("r/1", b"one"), ("r/gone", b"x"), ("r/gone", b"")):
        publisher.publish(topic, payload, 1, retain=True)
    publisher.publish("r/0", b"new zero", 0, retain=True)
    publisher.ping_after_acks(4)
    gateway.stop()
    again = start()
    assert again.sessions()["sub"]["subscriptions"] == 1
    reader = again.connected("reader")
    reader.subscribe(("r/#", 1))
    seen = [reader.expect_publish() for _ in range(2)]
    assert {(m.topic, m.payload, m.qos, m.retain) for m in seen} == {
        ("r/0", b"new zero", 0, True),
        ("r/1", b"one", 1, True),
    }
    reader.ping_after_acks(0)


def test_a_restart_gives_no_identity_a_second_share_of_what_is_retained(start: Start) -> None:
    """What it wrote before counts on; its neighbour retains, and what it deletes itself makes room for it again."""
    limits = {"retained_max_bytes": 40_000}
    for life in range(2):
        gateway = start(limits=limits)
        greedy = gateway.connected("greedy")
        for number in range(60):
            greedy.publish(f"g/{life}/{number}", b"x" * 900, retain=True)
        greedy.ping()
        assert gateway.status()["retained"] == 7
        gateway.stop()
    again = start(limits=limits)
    neighbour, greedy = again.connected("neighbour"), again.connected("greedy")
    neighbour.publish("n", b"x" * 900, retain=True)
    neighbour.ping()
    greedy.publish("g/0/0", b"", retain=True)
    greedy.publish("g/new", b"x" * 900, retain=True)
    greedy.publish("g/newer", b"x" * 900, retain=True)
    greedy.ping()
    assert again.status()["retained"] == 8
    reader = again.connected("reader")
    reader.subscribe(("n", 0), ("g/new", 0), ("g/newer", 0))
    assert {reader.expect_publish().topic for _ in range(2)} == {"n", "g/new"}
    reader.ping()


def test_a_store_of_before_keeps_its_retained_messages(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wrote them is not known: they count for nobody's share until they are written again."""
    with monkeypatch.context() as before:
        before.setattr(schema, "STEPS", schema.STEPS[:2])
        opened = open_database(tmp_path / "gateway.db", datetime.now(UTC))
        with opened.lock, closing(opened.db) as db:
            db.execute("INSERT INTO retained VALUES ('r/old', ?, 1)", (b"x" * 900,))
    gateway = start(limits={"retained_max_bytes": 2 * 4 * 1500})
    writer, reader = gateway.connected("writer"), gateway.connected("reader")
    for topic in ("r/1", "r/2", "r/old"):
        writer.publish(topic, b"y" * 900, retain=True)
    writer.ping()
    assert reader.subscribe(("r/#", 0)) == [0]
    assert {reader.expect_publish().topic for _ in range(2)} == {"r/1", "r/2"}
    reader.ping()


def test_clean_session_leaves_nothing_on_disk(start: Start, tmp_path: Path) -> None:
    """The twin: what begins with clean session 1 is not stored, and it forgets what was stored before."""
    gateway = start()
    subscriber(gateway, "sub", ("a/#", 1)).close()
    publisher = gateway.connected("pub")
    publisher.publish("a/b", b"x", 1)
    publisher.ping_after_acks(1)
    assert on_disk(tmp_path, "sessions") == 1
    client = gateway.client("sub")
    assert client.connect("sub", clean=True) == (False, 0)
    client.subscribe(("a/#", 1))
    publisher.publish("a/b", b"y", 1)
    publisher.ping_after_acks(1)
    tables = ("sessions", "subscriptions", "messages", "deliveries", "forgotten")
    wait_until(lambda: not any(on_disk(tmp_path, table) for table in tables), "an empty store")


def test_what_is_restored_is_judged_by_the_policy_of_the_start(start: Start) -> None:
    """A right that was taken away while the gateway was down delivers nothing, and its subscription is removed."""
    gateway = start()
    subscriber(gateway, "dev-a", ("devices/dev-a/#", 1), ("other/#", 1)).close()
    publisher = gateway.connected("backend")
    for topic in ("devices/dev-a/x", "other/x"):
        publisher.publish(topic, topic.encode(), 1)
    publisher.ping_after_acks(2)
    gateway.stop()
    again = start(DEVICE_POLICY)
    assert again.sessions()["dev-a"]["subscriptions"] == 1
    client = again.client("dev-a")
    assert client.connect("dev-a", clean=False) == (True, 0)
    assert acknowledge(client, 1) == [b"devices/dev-a/x"]
    client.ping()
    assert [line["topic"] for line in again.audit("denied")] == ["other/#"]


def test_an_identity_that_the_policy_does_not_know_now_keeps_what_it_had(start: Start) -> None:
    """D7: a changed configuration deletes nothing: the session sleeps, and is there when the rule is back."""
    gateway = start()
    subscriber(gateway, "dev-a", ("a/#", 1)).close()
    publisher = gateway.connected("pub")
    publisher.publish("a/b", b"kept", 1)
    publisher.ping_after_acks(1)
    gateway.stop()
    nobody = OTHERS_ONLY
    again = start(nobody)
    assert again.sessions() == {}
    assert again.status()["store"]["dormant_sessions"] == 1
    again.stop()
    back = start()
    client = back.client("dev-a")
    assert client.connect("dev-a", clean=False) == (True, 0)
    assert acknowledge(client, 1) == [b"kept"]


def test_an_identity_that_its_issuer_may_no_longer_name_sleeps(start: Start) -> None:
    """The issuer table of the start counts for what is on disk as for who is at the door; nothing is deleted."""
    gateway = start()
    subscriber(gateway, "dev-a", ("a/#", 1)).close()
    gateway.stop()
    again = start(OPEN_POLICY + '[[issuer]]\nsubject_cn = "test CA"\nids = ["other-*"]\n')
    assert again.sessions() == {}
    assert again.status()["store"]["dormant_sessions"] == 1
    again.stop()
    assert start().client("dev-a").connect("dev-a", clean=False) == (True, 0)


def test_a_reload_that_forgets_a_role_deletes_nothing(start: Start, tmp_path: Path) -> None:
    """D7 in the running gateway: put right, the next reload brings session, subscription and queue back."""
    gateway = start()
    subscriber(gateway, "dev-a", ("a/#", 1)).close()
    publisher = gateway.connected("other-1")
    publisher.publish("a/b", b"kept", 1)
    publisher.ping_after_acks(1)
    right = gateway.policy_file.read_text()
    gateway.policy_file.write_text(OTHERS_ONLY)
    gateway.reload()
    assert "dev-a" not in gateway.sessions()
    assert on_disk(tmp_path, "deliveries") == 1
    gateway.policy_file.write_text(right)
    gateway.reload()
    assert gateway.sessions()["dev-a"]["queued"] == 1
    publisher.publish("a/b", b"more", 1, packet_id=2)
    publisher.ping_after_acks(1)
    client = gateway.client("dev-a")
    assert client.connect("dev-a", clean=False) == (True, 0)
    assert acknowledge(client, 2) == [b"kept", b"more"]


OTHERS_ONLY = """
version = 1
[[role]]
name = "others"
match = { id = "other-*" }
publish = ["x/#"]
"""


def test_a_session_whose_device_left_the_registry_sleeps_until_it_is_back(start: Start, tmp_path: Path) -> None:
    """A reload puts it away and does not wake it again at once: what is published meanwhile is not for it."""
    file = tmp_path / "devices.jsonl"
    file.write_text('{"id": "sub"}\n{"id": "pub"}\n')
    gateway = start(registry={"registry": str(file), "registry_required": True})
    subscriber(gateway, "sub", ("a/#", 1)).close()
    publisher = gateway.connected("pub")
    publisher.publish("a/b", b"before", 1)
    assert publisher.read()[0] >> 4 == PacketType.PUBACK

    file.write_text('{"id": "pub"}\n')
    assert gateway.reload().sessions_discarded == 1
    publisher.publish("a/b", b"meanwhile", 1, packet_id=2)
    assert publisher.read()[0] >> 4 == PacketType.PUBACK
    file.write_text('{"id": "sub"}\n{"id": "pub"}\n')
    gateway.reload()

    back = gateway.client(gateway.pki.device("sub"))
    assert back.connect("sub", clean=False) == (True, 0)
    assert back.expect_publish().payload == b"before"
    assert on_disk(tmp_path, "deliveries") == 1


@pytest.mark.parametrize("retain", [False, True], ids=["plain", "retained"])
def test_a_will_is_stored_while_its_connection_lives(start: Start, tmp_path: Path, retain: bool) -> None:
    """It is on disk from CONNECT to the end; a DISCONNECT and a fired will both remove it."""
    gateway = start()
    will = Will("a/will", b"gone", 1, retain)
    first = gateway.connected("dev-a", will=will)
    wait_until(lambda: on_disk(tmp_path, "wills") == 1, "the will on disk")
    first.disconnect()
    wait_until(lambda: on_disk(tmp_path, "wills") == 0, "no will")
    second = gateway.connected("dev-a", will=will)
    wait_until(lambda: on_disk(tmp_path, "wills") == 1, "the will on disk")
    second.close()
    wait_until(lambda: on_disk(tmp_path, "wills") == 0, "no will")
