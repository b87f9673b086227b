"""Trusted time on a machine without a clock battery: what may be said of the time, and on whose word.

Theory: after a boot the machine's clock may say anything. What is known is a floor: the true time is not before the
newest of the program's build time, the last good time that was kept, and the newest date that a CA of ours has put
into a certificate or a CRL. From there a steady counter adds what has passed. The machine's clock is believed when a
time service vouches for it, it is not behind the floor, and as long as it runs as the counter does.

    state     what happens                                                        next
    unknown   a floor is learned                                                  floor
    floor     somebody vouches for a clock that is not behind the floor           synced
    synced    the clock leaves the counter by more than JUMP and nobody vouches   floor
              for it anew, or it is behind the floor
    floor     the clock is back where the counter says, or is vouched for anew    synced

While unsynced, `Moment.at` is a lower bound: it proves what has expired and never what is not yet valid. No moment lies
before an earlier one, so a clock that runs backwards never un-expires anything. The time is an argument: nothing here
reads a clock. Not judged here: how good a time service's word is (NTP is not authenticated).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

JUMP: Final = timedelta(minutes=5)  # between two looks; a time service corrects by less once it has set a clock
EPOCH: Final = datetime.fromtimestamp(0, UTC)


class TimeState(StrEnum):
    """How much is known of the time. Public: status, metrics and messages of the uplink carry it."""

    UNKNOWN = "unknown"
    FLOOR = "floor"
    SYNCED = "synced"


@dataclass(frozen=True, slots=True)
class Moment:
    """The time as far as it is known: exactly when synced, else the earliest that it can be."""

    at: datetime
    state: TimeState = TimeState.SYNCED

    @property
    def synced(self) -> bool:
        """Whether `at` is the time, and not only a lower bound of it."""
        return self.state is TimeState.SYNCED

    def __str__(self) -> str:
        return f"clock={self.at.isoformat()}" + ("" if self.synced else " (a floor: the clock is not synchronised)")


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a machine.

    `counter_s` counts seconds and knows no jumps. `mark` is None while no time service vouches for the clock, and
    another one each time that a service has set it anew.
    """

    wall: datetime
    counter_s: float
    mark: str | None


class TrustedClock:
    """The state machine; `learn` raises the floor, `look` gives the moment of a reading, `reckon` one soon after."""

    def __init__(self) -> None:
        self.state = TimeState.UNKNOWN
        self.floor = EPOCH
        self.floor_from = ""
        self.since = EPOCH  # the moment at which the state began
        self.doubt = "nothing is known of the time"  # why the clock is not believed, for people; empty when it is
        self._latest = EPOCH  # the newest moment that was given
        self._base, self._base_s = EPOCH, 0.0  # a time, and the counter at that time
        self._mark: str | None = None  # the last word that was believed

    def learn(self, floor: datetime, source: str, counter_s: float) -> None:
        """Raise the floor to a time that has certainly passed; an older one changes nothing."""
        if floor <= self.floor:
            return
        self.floor, self.floor_from = floor, source
        if self.state is TimeState.SYNCED:
            return  # the next look finds out whether the clock is behind it
        if floor > self._reckoned(counter_s):
            self._base, self._base_s = floor, counter_s
        self._latest = max(self._latest, self._base)
        if self.state is TimeState.UNKNOWN:
            self._enter(TimeState.FLOOR, "no time service has vouched for the clock")

    def look(self, reading: Reading) -> Moment:
        """What the time is by this reading."""
        if self.state is TimeState.UNKNOWN:
            return Moment(self._latest, self.state)
        reckoned = self._reckoned(reading.counter_s)
        doubt = self._doubt_of(reading, reckoned)
        if doubt:
            self._latest = max(self._latest, reckoned)
            if self.state is TimeState.SYNCED:
                self.floor, self.floor_from = max((self.floor, self.floor_from), (self._latest, "the last good time"))
            self._enter(TimeState.FLOOR, doubt)
        else:
            self._mark = reading.mark or self._mark
            self._base, self._base_s = reading.wall, reading.counter_s
            self._latest = max(self._latest, reading.wall)
            self._enter(TimeState.SYNCED, "")
        return Moment(self._latest, self.state)

    def reckon(self, counter_s: float) -> Moment:
        """What the time is by the counter alone: for the while after a look, in which nothing new is known."""
        if self.state is not TimeState.UNKNOWN:
            self._latest = max(self._latest, self._reckoned(counter_s))
        return Moment(self._latest, self.state)

    def _reckoned(self, counter_s: float) -> datetime:
        return self._base + timedelta(seconds=max(0.0, counter_s - self._base_s))

    def _doubt_of(self, reading: Reading, reckoned: datetime) -> str:
        """Why the clock is not believed now, or nothing."""
        if reading.wall < self.floor - JUMP:
            return f"{_clock(reading)} is behind the floor"
        if self.state is TimeState.SYNCED and reading.wall < self._latest - JUMP:
            return f"{_clock(reading)} has run backwards"
        if reading.mark is not None and reading.mark != self._mark:
            return ""  # somebody vouches for it, and not for the time before a jump
        if self._mark is None:
            return "no time service has vouched for the clock"
        if abs(reading.wall - reckoned) > JUMP:
            return f"{_clock(reading)} has jumped, and no time service has vouched for it since"
        return ""  # in the hands of the last word: a crystal drifts by seconds a day

    def _enter(self, state: TimeState, doubt: str) -> None:
        self.doubt = doubt
        if state is not self.state:
            self.state, self.since = state, self._latest


def _clock(reading: Reading) -> str:
    return f"clock={reading.wall.isoformat(timespec='seconds')}"
