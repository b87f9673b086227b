"""One coarse wheel for every deadline of every connection: CONNECT, keep alive. No timer per client, none per packet.

A connection is filed under the tick at which it could be overdue at the earliest. When that tick comes its owner
looks at what has happened since and files it again; traffic itself never touches the wheel.
"""

from __future__ import annotations

from math import ceil
from typing import Generic, TypeVar

TICK_S = 0.25

T = TypeVar("T")


def ticks(seconds: float) -> int:
    """Whole ticks that cover `seconds`, and one more because the current tick has begun already."""
    return ceil(seconds / TICK_S) + 1


class Wheel(Generic[T]):
    """Items by the tick at which they fall due."""

    def __init__(self) -> None:
        self._slots: dict[int, list[T]] = {}

    def add(self, item: T, due: int) -> None:
        """File an item under a tick."""
        self._slots.setdefault(due, []).append(item)

    def pop(self, tick: int) -> list[T]:
        """Items due at exactly `tick`; call it for every tick in turn."""
        return self._slots.pop(tick, [])

    def __len__(self) -> int:
        return sum(len(slot) for slot in self._slots.values())
