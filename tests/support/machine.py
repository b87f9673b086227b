"""A machine whose clock a test sets, with a counter that only time moves, and a time service that is a file."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway.config import TimeConfig
from gateway.timekeeping import LOOK_S, Timekeeper

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class Machine:
    """Boot it with the time that its clock shows; `keeper` is a gateway's on it."""

    def __init__(self, folder: Path, wall: datetime, *, built: datetime = LONG_AGO) -> None:
        self.folder = folder
        self.wall = wall
        self.floor_file = folder / "time-floor"
        self._built = built
        self._counter_s = 0.0
        self._sync_file = folder / "synchronized"
        self._sync_file.unlink(missing_ok=True)  # it lies in /run, which a boot empties
        self._times_set = 0

    def keeper(self) -> Timekeeper:
        """A gateway's time, started now."""
        return Timekeeper(
            TimeConfig(self.floor_file, str(self._sync_file)),
            wall=lambda: self.wall,
            counter_s=lambda: self._counter_s,
            built=lambda: self._built,
        )

    def wait(self, time: timedelta) -> None:
        """Time passes."""
        self.wall += time
        self._counter_s += time.total_seconds()

    def jump(self, time: timedelta) -> None:
        """Somebody sets the clock, and the time for another look has come."""
        self.wall += time
        self._counter_s += LOOK_S

    def synchronise(self, true_time: datetime) -> None:
        """The time service sets the clock and says so, and the time for another look has come."""
        self.wall = true_time
        self._counter_s += LOOK_S
        self._times_set += 1
        self._sync_file.touch()
        os.utime(self._sync_file, (self._times_set, self._times_set))
