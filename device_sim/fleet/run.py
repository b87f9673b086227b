"""One fleet, run to its end, and the report of it: what `device-sim fleet` does."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from device_sim.connection_faults import Endpoint
from device_sim.fleet.device import Group
from device_sim.fleet.figures import Deliveries, Figures, Load, LoadMeter
from device_sim.fleet.fleet import Fleet, Journal, Sample
from device_sim.fleet.identities import Identities, Identity
from device_sim.fleet.observer import Observer, until_heard
from device_sim.fleet.schedule import Message

Progress = Callable[[Fleet], None]
PROGRESS_S = 1.0


@dataclass(frozen=True, slots=True)
class FleetReport:
    """What came of one run."""

    figures: Figures
    load: Load
    lost: int | None  # None: nobody listened
    duplicates: int | None
    course: list[Sample] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 when every device was let in and everything it said was acknowledged, and heard where somebody listened."""
        figures = self.figures
        is_whole = len(figures.admitted) == figures.devices and figures.acknowledged == figures.scheduled
        return 0 if is_whole and not self.lost else 1

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        heard = {} if self.lost is None else {"acknowledged_lost": self.lost, "duplicates": self.duplicates}
        return {**self.figures.as_row(), **heard, "simulator": self.load.as_row()}

    def as_text(self) -> str:
        """For people."""
        figures, latency, connect = self.figures, self.figures.latency.as_row(), self.figures.connect.as_row()
        lines = [
            f"devices       {len(figures.admitted)} of {figures.devices} admitted, {figures.admissions} connections",
            f"connect       p50 {connect['p50_ms']} ms, p99 {connect['p99_ms']} ms, max {connect['max_ms']} ms",
            f"messages      {figures.scheduled} scheduled, {figures.acknowledged} acknowledged, "
            f"{figures.dropped} dropped by devices",
            f"latency       p50 {latency['p50_ms']} ms, p99 {latency['p99_ms']} ms, p99.9 {latency['p99.9_ms']} ms, "
            f"max {latency['max_ms']} ms",
        ]
        if figures.storm_s is not None:
            lines.append(f"storm         all were back {figures.storm_s:.2f} s after they were cut off")
        for title, counted in (("refused", figures.refused), ("lost", figures.lost)):
            if counted:
                lines.append(f"{title:13} " + ", ".join(f"{number} {name}" for name, number in counted.most_common()))
        if self.lost is not None:
            lines.append(f"heard         {self.lost} acknowledged and lost, {self.duplicates} duplicates")
        return "\n".join([*lines, self.load.sentence()])


def journal_line(group: Group, message: Message) -> str:
    """One message of the plan as a line that a second run can be compared with, byte for byte."""
    row = {
        "at_s": round(message.at_s, 6),
        "device": group.ids[message.device],
        "topic": message.topic,
        "payload": message.payload.decode("latin-1"),
    }
    return json.dumps(row, separators=(",", ":"))


async def run_fleet(
    group: Group,
    endpoint: Endpoint,
    identities: Identities,
    seconds: float,
    *,
    observer: Identity | None = None,
    listen: str = "devices/#",
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> FleetReport:
    """Run one group for `seconds`; Fault when certificates are missing or the observer is not let in.

    When it is cancelled, every device disconnects.
    """
    deliveries = Deliveries()
    fleet = Fleet(group, endpoint, identities, deliveries=deliveries, journal=journal)
    async with heard_by(observer, endpoint, listen, deliveries):
        load = await driven(fleet, seconds, progress)
    return report_of(fleet.figures, load, fleet.course, deliveries, is_heard=observer is not None)


async def driven(fleet: Fleet, seconds: float, progress: Progress | None = None) -> Load:
    """A fleet from its start to its end; what that cost this process."""
    meter = LoadMeter()
    fleet.start(seconds)
    showing = asyncio.ensure_future(_show(fleet, progress))
    try:
        await fleet.finish()
        return meter.read(fleet.figures.lag)
    finally:
        showing.cancel()
        await fleet.stop()


@contextlib.asynccontextmanager
async def heard_by(
    observer: Identity | None, endpoint: Endpoint, listen: str, deliveries: Deliveries
) -> AsyncIterator[None]:
    """Have an observer, if there is one, listen meanwhile, and at the end until it has heard what is still to come."""
    if observer is None:
        yield
        return
    hearing = Observer(observer, endpoint, listen, deliveries.hear)
    await hearing.start()
    try:
        yield
        await until_heard([deliveries])
    finally:
        await hearing.stop()


def report_of(
    figures: Figures, load: Load, course: list[Sample], deliveries: Deliveries, *, is_heard: bool
) -> FleetReport:
    """The report, with losses where somebody listened."""
    lost, duplicates = (deliveries.lost, deliveries.duplicates) if is_heard else (None, None)
    return FleetReport(figures, load, lost, duplicates, course)


async def _show(fleet: Fleet, progress: Progress | None) -> None:
    while progress is not None:
        progress(fleet)
        await asyncio.sleep(PROGRESS_S)
