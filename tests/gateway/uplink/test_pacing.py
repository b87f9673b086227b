"""The arithmetic of pace, of waiting and of estimates, on a clock of the test's own."""

from __future__ import annotations

import random

import pytest

from gateway.uplink.estimate import Room, Traffic, estimate
from gateway.uplink.pacing import RECONNECT_BASE_S, RECONNECT_CAP_S, STABLE_AFTER_S, Backoff, Meter, Pacer, TokenBucket
from gateway.uplink.sender import ACK_TIMEOUT_S


def drained(pacer: Pacer, size: int, until: float) -> int:
    """How many messages go until a time, when each goes as soon as it may."""
    now, count = 0.0, 0
    while True:
        now += pacer.wait_s(size, now)
        if now >= until:
            return count
        pacer.take(size)
        count += 1


def test_the_backlog_goes_at_its_rate_after_its_burst() -> None:
    """200 a second with a burst of 400: 400 at once, then 200 in each second."""
    assert drained(Pacer(messages_per_s=200, burst=400, bytes_per_s=1e9), 100, 10.0) == pytest.approx(2400, abs=2)


def test_large_messages_are_paced_by_their_bytes() -> None:
    """At 10,000 bytes a second, messages of 1,000 bytes go ten a second whatever the rate of messages."""
    assert drained(Pacer(messages_per_s=200, burst=400, bytes_per_s=10_000), 1000, 10.0) == pytest.approx(110, abs=2)


def test_a_message_larger_than_the_bucket_is_delayed_and_not_stuck() -> None:
    """It goes when the bucket is full, and what follows waits for the debt."""
    bucket = TokenBucket(100, 100)
    assert bucket.wait_s(1000, 0.0) == 0
    bucket.take(1000)
    assert bucket.wait_s(1, 0.0) == pytest.approx(9.01)


def test_a_clock_that_stands_still_or_goes_back_gives_no_tokens() -> None:
    """Only time that has passed fills the bucket."""
    bucket = TokenBucket(1, 1)
    assert bucket.wait_s(1, 100.0) == 0
    bucket.take(1)
    assert bucket.wait_s(1, 50.0) == 1
    assert bucket.wait_s(1, 101.0) == 0


def test_waits_grow_with_jitter_up_to_the_cap() -> None:
    """Every wait lies between the base and the cap, and below three times the one before."""
    uniform, last = random.Random(7).uniform, RECONNECT_BASE_S  # noqa: S311 - a test's dice
    backoff = Backoff(uniform)
    waits = [backoff.next_s() for _ in range(200)]
    for wait in waits:
        assert RECONNECT_BASE_S <= wait <= min(RECONNECT_CAP_S, last * 3)
        last = wait
    assert max(waits) == RECONNECT_CAP_S
    assert len(set(waits)) > 50


def test_only_a_connection_that_lasted_makes_the_waits_short_again() -> None:
    """An upstream that accepts and throws out at once is not hammered."""
    backoff = Backoff(lambda low, high: high)
    for _ in range(10):
        backoff.next_s()
    assert backoff.next_s(STABLE_AFTER_S - 1) == RECONNECT_CAP_S
    assert backoff.next_s(STABLE_AFTER_S) == RECONNECT_BASE_S * 3


def test_an_upstream_that_never_acknowledges_is_not_taken_for_a_stable_one() -> None:
    """It is left before the connection counts as one that lasted."""
    assert ACK_TIMEOUT_S * 1.5 < STABLE_AFTER_S


def test_a_meter_is_fair_from_the_beginning_and_forgets() -> None:
    """100 a second read as 100 after five seconds and after an hour, and as few a while after they stop."""
    meter = Meter(300.0, 0.0)
    for second in range(5):
        meter.add(100, float(second))
    assert meter.rate(5.0) == pytest.approx(100, rel=0.02)
    for second in range(5, 3600):
        meter.add(100, float(second))
    assert meter.rate(3600.0) == pytest.approx(100, rel=0.02)
    assert meter.rate(3600.0 + 1500) == pytest.approx(100 / 32, rel=0.02)


ROOM = Room(
    messages=0, bytes=0, max_bytes=10**9, disk_bytes=10**12, backlog_messages_per_s=200, backlog_bytes_per_s=10**6
)


def test_a_cut_that_fits_says_how_long_the_replay_takes() -> None:
    """50 messages a second for 6 hours are 1,080,000, which go up in an hour and a half."""
    found = estimate(6, Traffic(50, 50 * 300), ROOM)
    assert (found.messages, found.bytes, found.fits) == (1_080_000, 324_000_000, True)
    assert found.replay_h == pytest.approx(1.5)
    assert found.full_after_h == pytest.approx(10**9 / 15_000 / 3600)


@pytest.mark.parametrize(("bytes_", "disk"), [(10**9 - 1, 10**12), (0, 1000)], ids=["the spool is full", "the disk is"])
def test_a_cut_that_does_not_fit_is_said_so(bytes_: int, disk: int) -> None:
    """The smaller of the spool's bound and the disk's room decides."""
    room = Room(0, bytes_, 10**9, disk, 200, 10**6)
    assert not estimate(1, Traffic(1, 300), room).fits


def test_nothing_coming_in_fills_nothing() -> None:
    """No traffic: it fits, and there is no time at which it would be full."""
    found = estimate(6, Traffic(0, 0), ROOM)
    assert found.fits
    assert found.full_after_h is None
