"""The gateway's time: reads clock, counter and time service, keeps the floor on disk, tells of every change.

`Timekeeper` is the adapter around `mtls/clock.py`, which decides. Nothing waits for it: the gateway serves from the
first moment by the floor, and everything that lives is judged again when the clock is known. The floor file holds the
last good time; it is written a few times a day, because each write wears an SD card, and a lost one costs hours of
floor and nothing else.

Durations are never measured here: they belong to the monotonic clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gateway
from gateway.time_service import TimeService
from mtls.clock import Moment, Reading, TimeState, TrustedClock
from mtls.errors import ConfigFault, Fault
from mtls.keystore import read_limited, write_public

if TYPE_CHECKING:
    from gateway.config import TimeConfig

LOOK_S: Final = 1.0
ASK_UNSYNCED_S: Final = 30.0  # between questions to timedatectl and chronyc
ASK_SYNCED_S: Final = 300.0
KEEP_AFTER: Final = timedelta(minutes=10)  # a time that is good for less may be about to be corrected
KEEP_EVERY: Final = timedelta(hours=6)
MAX_FLOOR_BYTES: Final = 64

log = logging.getLogger("mqtt_gateway.time")


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def wall_clock() -> Moment:
    """The wall clock, taken at its word: for a person at a command line, who has a clock to compare with."""
    return Moment(utc_now())


def counter() -> float:
    """Seconds since the boot, sleep included; no time service sets it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def build_date() -> datetime:
    """When this program was put on this machine: the time is not before it."""
    return datetime.fromtimestamp(Path(str(gateway.__file__)).stat().st_mtime, UTC)


class Timekeeper:
    """What time it is; call it for a `Moment`, as often as a connection or a message asks. `watch` is its one task.

    Clock and time service are looked at once a second; in between the counter says what has passed.
    """

    def __init__(
        self,
        config: TimeConfig,
        *,
        wall: Callable[[], datetime] = utc_now,
        counter_s: Callable[[], float] = counter,
        service: TimeService | None = None,
        built: Callable[[], datetime] = build_date,
    ) -> None:
        self._file = config.floor_file
        self._wall = wall
        self._counter_s = counter_s
        self._service = service or TimeService(config.source, config.folder)
        self._clock = TrustedClock()
        self._looked_s = -LOOK_S
        self._told: TimeState | None = None
        self.kept = read_floor(self._file)
        self.learn({"the installation of this program": built()})
        if self.kept is not None:
            self.learn({"the last good time that was kept": self.kept})

    def __call__(self) -> Moment:
        """What the time is."""
        counter_s = self._counter_s()
        return self._clock.reckon(counter_s) if 0.0 <= counter_s - self._looked_s < LOOK_S else self._look()

    def _look(self) -> Moment:
        self._looked_s = self._counter_s()
        return self._clock.look(Reading(self._wall(), self._looked_s, self._service.mark()))

    def learn(self, floors: Mapping[str, datetime]) -> None:
        """Raise the floor to the newest of times that have certainly passed, each by what proves it."""
        for source, floor in floors.items():
            self._clock.learn(floor, source, self._counter_s())
        self._looked_s = -LOOK_S  # the clock may be behind the new floor

    def row(self) -> dict[str, Any]:
        """What status and metrics show."""
        moment, clock = self._look(), self._clock
        return {
            "state": str(clock.state),
            "since": clock.since.isoformat(timespec="seconds"),
            "at": moment.at.isoformat(timespec="seconds"),
            "clock": self._wall().isoformat(timespec="seconds"),
            "floor": clock.floor.isoformat(timespec="seconds"),
            "floor_from": clock.floor_from,
            "doubt": clock.doubt,
        }

    async def watch(self, changed: Callable[[], None]) -> None:
        """Look at the clock every second and tell of each change of state; keep the floor. Runs for ever."""
        asked_s = -ASK_SYNCED_S
        while True:
            moment = self._look()
            if time.monotonic() - asked_s > (ASK_SYNCED_S if moment.synced else ASK_UNSYNCED_S):
                asked_s = time.monotonic()
                await asyncio.to_thread(self._service.ask)
                moment = self._look()
            if moment.state is not self._told:
                self._told = moment.state
                self._say()
                changed()
            if self._is_due(moment, KEEP_EVERY):
                await asyncio.to_thread(self._keep, moment.at)
            await asyncio.sleep(LOOK_S)

    def close(self) -> None:
        """Keep the time at an orderly end."""
        moment = self()
        if self._is_due(moment, KEEP_AFTER):
            self._keep(moment.at)

    def _is_due(self, moment: Moment, every: timedelta) -> bool:
        if self._file is None or not moment.synced or moment.at - self._clock.since < KEEP_AFTER:
            return False
        return self.kept is None or moment.at - self.kept >= every

    def _keep(self, good: datetime) -> None:
        """Write the floor file; a full or read-only card is no reason to stop serving."""
        if self._file is None:
            return
        self.kept = good  # also when it fails: not every second again
        try:
            write_public(self._file, f"{good.isoformat(timespec='seconds')}\n".encode())
        except Fault as fault:
            log.warning("the time is not kept: %s", fault)

    def _say(self) -> None:
        clock = self._clock
        if clock.state is TimeState.SYNCED:
            log.info("the clock is synchronised: certificates are judged by it")
            return
        log.warning(
            "%s: until it is synchronised, only what ended before %s is refused (%s)",
            clock.doubt,
            clock.floor.isoformat(timespec="seconds"),
            clock.floor_from,
        )


def read_floor(path: Path | None) -> datetime | None:
    """The time in a floor file; None when there is none. One that cannot be read is told and counts as none."""
    if path is None or not path.exists():
        return None
    try:
        kept = datetime.fromisoformat(read_limited(path, MAX_FLOOR_BYTES).decode("ascii").strip())
    except (ConfigFault, ValueError) as error:
        why = error if isinstance(error, ConfigFault) else "it holds no time"
        log.warning("[time] floor_file %s is not used: %s", path, why)
        return None
    return kept.astimezone(UTC) if kept.tzinfo is not None else kept.replace(tzinfo=UTC)
