"""The wheel of deadlines: coarse, never early, and it lets go of what has ended."""

from __future__ import annotations

import pytest

from gateway.broker.wheel import TICK_S, Wheel, ticks


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, 1), (0.1, 2), (0.25, 2), (0.26, 3), (1, 5), (1.5, 7), (97_500, 390_001)]
)
def test_a_deadline_is_never_early(seconds: float, expected: int) -> None:
    """Whole ticks that cover it, and the one that has begun already."""
    assert ticks(seconds) == expected
    assert (ticks(seconds) - 1) * TICK_S >= seconds


def test_items_fall_due_at_their_tick_once() -> None:
    """In the order in which they were filed."""
    wheel: Wheel[str] = Wheel()
    for item, due in (("a", 3), ("b", 2), ("c", 3)):
        wheel.add(item, due)
    assert len(wheel) == 3
    assert [wheel.pop(tick) for tick in (1, 2, 3, 3)] == [[], ["b"], ["a", "c"], []]
    assert len(wheel) == 0


def test_an_item_is_filed_once() -> None:
    """Filing it again moves it."""
    wheel: Wheel[str] = Wheel()
    wheel.add("a", 3)
    wheel.add("a", 5)
    assert len(wheel) == 1
    assert [wheel.pop(3), wheel.pop(5)] == [[], ["a"]]


def test_what_has_ended_is_taken_out_and_leaves_nothing() -> None:
    """Its neighbours in the slot stay; taking out what is not filed, or was due already, harms nothing."""
    wheel: Wheel[str] = Wheel()
    for item in "abc":
        wheel.add(item, 3)
    wheel.discard("b")
    wheel.discard("b")
    wheel.discard("never")
    assert wheel.pop(3) == ["a", "c"]
    wheel.discard("a")
    wheel.add("d", 9)
    wheel.discard("d")
    assert (len(wheel), wheel._slots, wheel._due) == (0, {}, {})
