"""The count of a torture: what was acknowledged, what arrived, how often and in which order.

Pure bookkeeping. A message is (device, sequence). The judgement is by subscriber, and each wants every message:
lost       acknowledged to its publisher, and never arrived
duplicated arrived again; of these, how many carried DUP, and how many the publisher had sent again itself
repeated   the same for QoS 2 from end to end, where it must not happen at all [MQTT-4.3.3]
reordered  arrived for the first time after a later message of its device had [MQTT-4.6.0-1]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Key = tuple[str, int]  # device, sequence


@dataclass(slots=True)
class Receiver:
    """What one subscriber has seen."""

    seen: dict[str, set[int]] = field(default_factory=dict)
    highest: dict[str, int] = field(default_factory=dict)
    duplicated: int = 0
    flagged: int = 0
    repeated: int = 0
    reordered: int = 0

    def take(self, device: str, sequence: int, *, dup: bool, once: bool) -> None:
        """A message arrived; `once`: with QoS 2 from end to end."""
        seen = self.seen.setdefault(device, set())
        if sequence in seen:
            self.duplicated += 1
            self.flagged += dup
            self.repeated += once
            return
        seen.add(sequence)
        if sequence < self.highest.get(device, 0):
            self.reordered += 1
        self.highest[device] = max(sequence, self.highest.get(device, 0))

    def missing(self, acknowledged: Iterable[Key]) -> list[Key]:
        """What was acknowledged and is not here."""
        empty: set[int] = set()
        return [(device, sequence) for device, sequence in acknowledged if sequence not in self.seen.get(device, empty)]

    @property
    def count(self) -> int:
        """Different messages."""
        return sum(len(seen) for seen in self.seen.values())


@dataclass(slots=True)
class Round:
    """One life of the broker: how long its start took, with how much to be found, and what it then did."""

    start_s: float
    backlog: int
    acknowledged: int


@dataclass(slots=True)
class Tally:
    """Everything counted so far."""

    receivers: dict[str, Receiver] = field(default_factory=dict)
    acknowledged: list[Key] = field(default_factory=list)
    published: int = 0
    resent: int = 0
    sessions_lost: int = 0
    rounds: list[Round] = field(default_factory=list)

    def backlog(self) -> int:
        """Messages acknowledged and not yet seen, of all receivers together."""
        return sum(max(0, len(self.acknowledged) - receiver.count) for receiver in self.receivers.values())

    def lost(self) -> dict[str, list[Key]]:
        """By subscriber, what it should have and has not."""
        return {name: receiver.missing(self.acknowledged) for name, receiver in self.receivers.items()}
