"""Readings on their way: bounded, ordered, counted, and gone by acknowledgement only."""

import random
import select
import threading
from collections.abc import Iterator
from itertools import islice

import pytest

from device_sim.agent import FIRST_RETRY_S, LONGEST_RETRY_S, jitter
from device_sim.models import MODELS, readings, telemetry
from device_sim.outbox import PER_READING_BYTES, Outbox
from tests.device_sim.processes import wait_for


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    box = Outbox(10 * (PER_READING_BYTES + 1))
    yield box
    box.close()


def drain(outbox: Outbox) -> list[bytes]:
    return list(iter(outbox.take, None))


def test_the_oldest_are_dropped_and_counted(outbox: Outbox) -> None:
    """Fifteen readings into room for ten: the last ten stay, five are counted."""
    for number in range(15):
        assert outbox.put(b"%x" % number, can_wait=False)
    assert drain(outbox) == [b"%x" % number for number in range(5, 15)]
    assert (outbox.tally.taken, outbox.tally.dropped) == (15, 5)


def test_what_was_in_flight_goes_back_to_the_front(outbox: Outbox) -> None:
    """After a loss the order is as it was; what was acknowledged does not come again."""
    for payload in (b"a", b"b", b"c", b"d"):
        outbox.put(payload, can_wait=False)
    for packet_id in (1, 2, 3):
        outbox.sent(packet_id, outbox.take() or b"")
    outbox.acknowledge([1])
    outbox.acknowledge([77])
    outbox.connection_lost()
    outbox.acknowledge([2])
    assert drain(outbox) == [b"b", b"c", b"d"]
    assert outbox.tally.acknowledged == 1


def test_going_back_does_not_break_the_bound(outbox: Outbox) -> None:
    """In flight plus queue may be more than the limit: the oldest go."""
    for number in range(5):
        outbox.put(b"%x" % number, can_wait=False)
        outbox.sent(number, outbox.take() or b"")
    for number in range(5, 15):
        outbox.put(b"%x" % number, can_wait=False)
    outbox.connection_lost()
    assert drain(outbox) == [b"%x" % number for number in range(5, 15)]
    assert outbox.tally.dropped == 5


def test_a_source_that_can_wait_waits(outbox: Outbox) -> None:
    """The eleventh put returns when there is room, and nothing is dropped."""
    for _ in range(10):
        outbox.put(b"x", can_wait=True)
    done = threading.Event()

    def put() -> None:
        outbox.put(b"y", can_wait=True)
        done.set()

    thread = threading.Thread(target=put)
    thread.start()
    assert not done.wait(0.05)
    outbox.take()
    assert done.wait(20)
    thread.join()
    assert outbox.tally.dropped == 0


def test_an_end_lets_a_waiting_source_go(outbox: Outbox) -> None:
    """Told to stop, it does not wait for room any more."""
    for _ in range(10):
        outbox.put(b"x", can_wait=True)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(outbox.put(b"y", can_wait=True)))
    thread.start()
    outbox.end()
    thread.join(20)
    assert answers == [False]


def test_a_reading_larger_than_the_room_is_still_taken(outbox: Outbox) -> None:
    """One reading always fits, else a source that waits would wait for ever."""
    assert outbox.put(b"x" * 100_000, can_wait=True)
    assert outbox.take() == b"x" * 100_000


def test_the_bell_rings_once_for_many(outbox: Outbox) -> None:
    """Readable after a put, quiet after it was noted; a million puts do not fill the pipe."""
    for _ in range(100_000):
        outbox.ring()
    assert select.select([outbox.bell], [], [], 0)[0]
    outbox.quiet()
    assert not select.select([outbox.bell], [], [], 0)[0]


def test_done_means_ended_and_acknowledged(outbox: Outbox) -> None:
    """Each of the three conditions by itself is not enough."""
    outbox.put(b"x", can_wait=False)
    assert not outbox.is_done
    outbox.end()
    assert not outbox.is_done
    outbox.sent(1, outbox.take() or b"")
    assert not outbox.is_done
    outbox.acknowledge([1])
    assert outbox.is_done
    wait_for("done", lambda: outbox.is_empty)


# --- the models, and the pauses between connections ---


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_reproducible(name: str) -> None:
    """The same seed gives the same bytes, another seed others."""
    one, same, other = (list(islice(readings(name, seed), 200)) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_telemetry_is_reproducible() -> None:
    """Two devices with one seed differ in their serial only."""
    one, other = (list(islice(telemetry(sn, 3), 20)) for sn in ("SN-1", "SN-2"))
    assert [line.replace(b"SN-1", b"SN-2") for line in one] == other


def test_pauses_grow_within_bounds_and_are_not_in_step() -> None:
    """Quick at first, never longer than the limit, and two agents do not agree."""
    pauses = [list(islice(jitter(random.Random(seed)), 50)) for seed in (1, 2)]  # noqa: S311
    assert all(FIRST_RETRY_S <= pause <= LONGEST_RETRY_S for run in pauses for pause in run)
    assert pauses[0][0] == FIRST_RETRY_S
    assert max(pauses[0]) > 10
    assert pauses[0] != pauses[1]
