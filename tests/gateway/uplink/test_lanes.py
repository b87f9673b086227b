"""Which message goes next, without a disk and without a line."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from gateway.uplink.envelope import Stamp
from gateway.uplink.lanes import MAX_LIVE_MESSAGES, Lanes, Spooled
from gateway.uplink.pacing import Pacer


def message(number: int, size: int = 10) -> Spooled:
    return Spooled(number, Stamp("press-07", "b", number, 0, "synced"), "t", "r", b"x" * size)


def lanes(window: int = 10, rate: float = 1e9) -> Lanes:
    return Lanes(Pacer(messages_per_s=rate, burst=rate, bytes_per_s=1e12), window)


def test_a_live_message_goes_before_the_backlog() -> None:
    """Old ones wait while there is a new one."""
    found = lanes()
    found.connected(10)
    found.page([message(1), message(2)], 0, 2, is_last=True)
    found.committed(message(3))
    order = []
    for packet_id in range(1, 4):
        item, replayed = found.next(0.0) or pytest.fail("nothing to send")
        found.sent(packet_id, item, 0.0, replayed=replayed)
        order.append((item.id, replayed))
    assert order == [(3, False), (1, True), (2, True)]
    assert found.next(0.0) is None


def test_the_backlog_leaves_half_of_the_window_to_live_messages() -> None:
    """A live message finds the window open, however many old ones are in flight."""
    found = lanes(window=4)
    found.connected(4)
    found.page([message(n) for n in range(1, 9)], 0, 8, is_last=True)
    for packet_id in (1, 2):
        item, replayed = found.next(0.0) or pytest.fail("nothing to send")
        found.sent(packet_id, item, 0.0, replayed=replayed)
    assert found.next(0.0) is None
    found.committed(message(9))
    item, replayed = found.next(0.0) or pytest.fail("nothing to send")
    assert (item.id, replayed) == (9, False)


def test_the_backlog_waits_for_its_pace_and_live_messages_do_not() -> None:
    """With a burst of one, the second old message waits, and says how long."""
    found = Lanes(Pacer(messages_per_s=10, burst=1, bytes_per_s=1e9), 10)
    found.connected(10)
    found.page([message(1), message(2)], 0, 2, is_last=True)
    item, replayed = found.next(0.0) or pytest.fail("nothing to send")
    found.sent(1, item, 0.0, replayed=replayed)
    assert found.next(0.0) is None
    assert found.wait_s(0.0) == pytest.approx(0.1)
    found.committed(message(3))
    assert found.next(0.0) == (message(3), False)
    assert found.next(0.1) == (message(2), True)


def test_the_window_closes_and_an_acknowledgement_opens_it() -> None:
    """No more than the window is unacknowledged; an unknown identifier opens nothing."""
    found = lanes(window=2)
    found.connected(2)
    for number in (1, 2, 3):
        found.committed(message(number))
    for packet_id in (7, 8):
        item, replayed = found.next(0.0) or pytest.fail("nothing to send")
        found.sent(packet_id, item, 0.0, replayed=replayed)
    assert found.next(0.0) is None
    assert found.acknowledged(99) is None
    assert found.next(0.0) is None
    assert found.acknowledged(7) is not None
    assert found.acknowledged(7) is None
    assert found.next(0.0) == (message(3), False)


def test_what_finds_no_room_in_the_live_lane_is_found_by_the_scan() -> None:
    """A slow upstream costs bounded memory and loses nothing."""
    found = lanes(window=10**6)
    found.connected(10**6)
    found.page([], 0, 0, is_last=True)
    total = MAX_LIVE_MESSAGES + 50
    for number in range(1, total + 1):
        found.committed(message(number))
    assert found.live == MAX_LIVE_MESSAGES
    assert found.wants_page
    found.page([message(n) for n in range(1, total + 1)], 0, total, is_last=True)
    assert not found.wants_page
    seen = []
    while (item := found.next(0.0)) is not None:
        found.sent(len(seen) + 1, item[0], 0.0, replayed=item[1])
        seen.append(item[0].id)
    assert sorted(seen) == list(range(1, total + 1))


class Disk:
    """A spool in a dict, for a machine that the test drives at random."""

    def __init__(self) -> None:
        self.rows: dict[int, Spooled] = {}

    def read(self, after: int, limit: int = 3) -> tuple[Sequence[Spooled], int, bool]:
        found = [self.rows[n] for n in sorted(self.rows) if n > after][:limit]
        return found, found[-1].id if found else after, len(found) < limit


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost_or_sent_twice_on_one_connection(seed: int) -> None:
    """Any order of arrivals, pages, sends, acknowledgements, cuts and deletions: all arrive, in order in each lane."""
    dice, disk, found = random.Random(seed), Disk(), lanes(window=4)  # noqa: S311 - a test's dice
    number = packet = 0
    up, flights, deleting, arrived = False, [], [], []
    sent_here: set[int] = set()
    newest = {True: 0, False: 0}  # by lane, of this connection
    for step in range(3000):
        end = step > 2500
        match dice.choice(["put", "connect", "cut", "page", "send", "send", "send", "ack", "ack", "delete"]):
            case "put" if not end:
                number += 1
                disk.rows[number] = message(number)
                found.committed(message(number))
            case "connect" if not up:
                found.connected(4)
                up, sent_here, flights = True, set(), []
                newest = {True: 0, False: 0}
            case "cut" if up and not end and dice.random() < 0.1:
                found.disconnected()
                up, flights = False, []
            case "page" if found.wants_page:
                after = found.cursor
                rows, cursor, is_last = disk.read(after)
                found.page(rows, after, cursor, is_last=is_last)
            case "send" if up and (item := found.next(0.0)) is not None:
                packet += 1
                assert item[0].id not in sent_here
                sent_here.add(item[0].id)
                assert item[0].id > newest[item[1]]
                newest[item[1]] = item[0].id
                found.sent(packet, item[0], 0.0, replayed=item[1])
                flights.append(packet)
                arrived.append(item[0].id)
            case "ack" if up and flights:
                flight = found.acknowledged(flights.pop(0))
                assert flight is not None
                deleting.append(flight.message.id)
            case "delete" if deleting:
                gone = deleting.pop(0)
                disk.rows.pop(gone, None)
                found.deleted([gone])
    assert set(arrived) == set(range(1, number + 1))
    assert set(disk.rows) == set(deleting)
