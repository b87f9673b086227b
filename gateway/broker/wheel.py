"""One coarse wheel for every deadline of every connection: CONNECT, keep alive. No timer per client, none per packet.

A connection is filed under the tick at which it could be overdue at the earliest. When that tick comes its owner
looks at what has happened since and files it again; traffic itself never touches the wheel. What has ended is taken
out at once: a keep alive may be 18 hours, and nobody may leave that many hours of closed connections behind.
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
    """Items, hashable, by the tick at which they fall due; an item is filed once."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[T, None]] = {}
        self._due: dict[T, int] = {}

    def add(self, item: T, due: int) -> None:
        """File an item under a tick."""
        self.discard(item)
        self._slots.setdefault(due, {})[item] = None
        self._due[item] = due

    def discard(self, item: T) -> None:
        """Take an item out, if it is filed."""
        due = self._due.pop(item, None)
        if due is None:
            return
        slot = self._slots[due]
        del slot[item]
        if not slot:
            del self._slots[due]

    def pop(self, tick: int) -> list[T]:
        """Items due at exactly `tick`; call it for every tick in turn."""
        items = list(self._slots.pop(tick, ()))
        for item in items:
            del self._due[item]
        return items

    def __len__(self) -> int:
        return len(self._due)
