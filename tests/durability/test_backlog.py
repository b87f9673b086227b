"""A long queue costs disk, and neither memory nor time at the start; one that nobody takes harms nobody else."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from gateway.broker.packets import PacketType
from gateway.broker.stored_session import MEMORY_MESSAGES, StoredSession
from gateway.store.statements import insert_rows
from tests.durability.conftest import Start
from tests.durability.test_full import away, take
from tests.support.gateway import Gateway, wait_until

BACKLOG = 100_000


def in_memory(gateway: Gateway) -> int:
    """Messages of all queues that the process holds."""
    return gateway.call(lambda: sum(len(session.queue or ()) for session in gateway.broker.plane.exchange.sessions))


def queue_on_disk(folder: Path, count: int) -> None:
    """Put messages into the only session's queue, as if they had been published."""
    with closing(sqlite3.connect(folder / "gateway.db", isolation_level=None)) as db:
        (session,) = db.execute("SELECT id FROM sessions").fetchone()
        db.execute("BEGIN")
        for first in range(1, count, 1000):
            numbers = range(first, first + 1000)
            insert_rows(db, "messages", 5, [v for n in numbers for v in (n, b"a/b", b"%d " % n + bytes(90), 1, 0)])
            insert_rows(db, "deliveries", 7, [v for n in numbers for v in (session, n, 1, 0, 0, 0, 220)])
        db.execute("COMMIT")


def test_d5_a_backlog_is_read_in_pages(start: Start, tmp_path: Path) -> None:
    """100,000 messages: none in memory after the start, a page after the reconnect, and in order."""
    gateway = start()
    away(gateway, "sub")
    gateway.stop()
    queue_on_disk(tmp_path, BACKLOG)
    again = start()
    assert again.sessions()["sub"]["queued"] == BACKLOG
    assert in_memory(again) == 0
    client = again.client("sub")
    assert client.connect("sub", clean=False) == (True, 0)
    assert take(client, 2000) == list(range(1, 2001))
    assert in_memory(again) <= MEMORY_MESSAGES
    publisher = again.connected("pub")
    publisher.publish("a/b", b"0 ", 1)
    publisher.ping_after_acks(1)
    assert in_memory(again) <= MEMORY_MESSAGES


def test_a_persistent_subscriber_that_stalls_harms_nobody(start: Start) -> None:
    """It acknowledges nothing; the publisher is acknowledged, the other subscriber has all, memory holds a page."""
    gateway = start()
    stalled = gateway.connected("stalled", clean=False)
    stalled.subscribe(("a/#", 1))
    other = gateway.connected("other", clean=False)
    other.subscribe(("a/#", 1))
    publisher = gateway.connected("pub")
    for first in range(1, 2001, 100):
        for number in range(first, first + 100):
            publisher.publish("a/b", b"%d " % number, 1, packet_id=number)
        assert take(other, 100) == list(range(first, first + 100))
        for _ in range(100):
            assert publisher.read()[0] >> 4 == PacketType.PUBACK
    assert in_memory(gateway) <= MEMORY_MESSAGES
    assert gateway.sessions()["stalled"]["queued"] == 1980
    assert take(stalled, 2000) == list(range(1, 2001))


def test_qos_1_that_nobody_durable_wants_costs_no_commit(start: Start) -> None:
    """No row, no commit, no fsync; the twin is every test beside this one."""
    gateway = start()
    live = gateway.connected("live")
    live.subscribe(("a/#", 1))
    publisher = gateway.connected("pub")
    before = gateway.status()["store"]["commits"]
    for number in range(1, 101):
        publisher.publish("a/b", b"%d " % number, 1, packet_id=number)
    publisher.ping_after_acks(100)
    assert take(live, 100) == list(range(1, 101))
    assert gateway.status()["store"]["commits"] == before
    assert gateway.status()["store"]["waiting_bytes"] == 0


def test_an_expired_session_leaves_the_disk(start: Start, tmp_path: Path) -> None:
    """Away for longer than session_expiry_s, by the steady clock: its row, its queue and its subscriptions go."""
    gateway = start(limits={"session_expiry_s": 1})
    away(gateway, "sub")
    wait_until(lambda: "sub" not in gateway.sessions(), "the expiry")
    with closing(sqlite3.connect(tmp_path / "gateway.db")) as db:
        wait_until(lambda: db.execute("SELECT count(*) FROM sessions").fetchone() == (0,), "no session on disk")


def test_a_stored_session_is_told_from_one_in_memory(start: Start) -> None:
    """Clean session 0 makes a stored one, clean session 1 does not."""
    gateway = start()
    gateway.connected("kept", clean=False)
    gateway.connected("gone")
    kinds = gateway.call(
        lambda: {s.client_id: isinstance(s, StoredSession) for s in gateway.broker.plane.exchange.sessions}
    )
    assert kinds == {"kept": True, "gone": False}
