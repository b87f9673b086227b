"""What the uplink holds in memory, whatever devices and the upstream send: without a connection."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

from gateway.uplink.commands import MAX_WAITING_BYTES, Commands
from gateway.uplink.intake import Intake
from gateway.uplink.topic_map import parse_publish, parse_subscribe


def test_long_topic_names_of_devices_are_not_remembered() -> None:
    """A thousand topics of 50 kB each are asked for and found, and nothing of them stays."""
    topics = parse_publish([{"local": "devices/#", "remote": "site/{gateway}/devices/#"}]).named("gw")
    nothing = cast(Any, None)  # asking for a name needs neither spool nor sender
    intake = Intake(
        topics,
        nothing,
        nothing,
        boot_id="b",
        now=lambda: (datetime.now(UTC), "synced"),
        max_bytes=1,
        drop_oldest=False,
        has_room=lambda: True,
    )
    tracemalloc.start()
    try:
        for number in range(1000):
            assert intake.wants(f"devices/{number}/{'x' * 50_000}") == 1
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000
    assert intake.wants("devices/1/short") == intake.wants("devices/1/short") == 1
    assert intake.wants("elsewhere") is None


class NoRoom:
    """A gateway whose store is full."""

    has_room = False

    def may_take(self, topic: str) -> bool:
        return True

    def deliver(self, topic: str, payload: bytes, qos: int, done: Callable[[], None]) -> None:
        raise AssertionError("there is no room")

    def settle(self, done: Callable[[], None]) -> None:
        done()


def test_large_commands_that_wait_for_room_are_bounded_in_bytes() -> None:
    """An upstream that ignores its window is cut off at megabytes, not at a thousand of the largest packets."""
    topics = parse_subscribe([{"remote": "site/{gateway}/commands/#", "local": "devices/#"}]).named("gw")
    commands, large = Commands(topics, NoRoom()), bytes(1024 * 1024)
    most = MAX_WAITING_BYTES // len(large)

    def take() -> bool:
        return commands.take("site/gw/commands/a", large, 1, retained=False, done=lambda: None)

    assert [take() for _ in range(most)] == [True] * (most - 1) + [False]
    commands.forget()
    assert take()
