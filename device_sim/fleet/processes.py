"""One fleet over several processes, for machines with cores to spare: each drives its share, the figures are added.

Every process walks the same plan and takes the part of its own devices, so payloads and times are those of one
process. The observer listens in the process that asked. What was acknowledged and what was heard are compared as
hashes, which agree because the processes are forked; each of them ends with the one that forked it.
"""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Event

from device_sim.connection_faults import Endpoint
from device_sim.fleet.device import Group
from device_sim.fleet.figures import Deliveries, Figures, Load
from device_sim.fleet.fleet import Fleet, Sample, Share
from device_sim.fleet.identities import Identities, Identity
from device_sim.fleet.run import FleetReport, driven, heard_by, report_of
from mtls.errors import Fault

PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True, slots=True)
class Part:
    """What one process has to say at its end."""

    figures: Figures
    load: Load
    course: list[Sample]
    acknowledged: Counter[int]


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in one process."""

    text: str
    hint: str


def run_processes(
    group: Group,
    endpoint: Endpoint,
    identities: Identities,
    seconds: float,
    *,
    processes: int,
    observer: Identity | None = None,
    listen: str = "devices/#",
) -> FleetReport:
    """`run_fleet` with the devices dealt out to processes; Fault as there, or when a process ends before its time."""
    context = multiprocessing.get_context("fork")
    go, parent = context.Event(), os.getpid()
    pipes, children = [], []
    for first in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        work = (theirs, go, parent, group, endpoint, identities, seconds, Share(first, processes))
        child = context.Process(target=_drive, args=work, daemon=True)
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    try:
        return asyncio.run(_together(pipes, children, go, observer, endpoint, listen))
    finally:
        for child in children:
            child.join()


async def _together(
    pipes: Sequence[Connection],
    children: Sequence[ForkProcess],
    go: Event,
    observer: Identity | None,
    endpoint: Endpoint,
    listen: str,
) -> FleetReport:
    deliveries = Deliveries()
    try:
        async with heard_by(observer, endpoint, listen, deliveries):
            go.set()
            parts = await asyncio.gather(*(asyncio.to_thread(_part_of, pipe) for pipe in pipes))
            for part in parts:
                deliveries.acknowledged.update(part.acknowledged)
    finally:
        for child in children:  # before the loop ends: it waits for the threads, and they for the children
            child.terminate()
    figures, load = parts[0].figures, parts[0].load
    for part in parts[1:]:
        figures.devices += part.figures.devices
        figures.add(part.figures)
        load = load.beside(part.load)
    course = _summed([part.course for part in parts])
    return report_of(figures, load, course, deliveries, is_heard=observer is not None)


def _part_of(pipe: Connection) -> Part:
    try:
        said = pipe.recv()
    except EOFError:
        raise Fault("a process of the fleet ended before its time", hint="is there memory enough? see dmesg") from None
    if isinstance(said, Failure):
        raise Fault(said.text, hint=said.hint)
    part: Part = said
    return part


def _summed(courses: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Second by second, as long as any of them ran."""
    connected: Counter[int] = Counter()
    backlog: Counter[int] = Counter()
    for course in courses:
        last = {int(sample.at_s): sample for sample in course}
        connected.update({second: sample.connected for second, sample in last.items()})
        backlog.update({second: sample.backlog for second, sample in last.items()})
    return [Sample(float(second), connected[second], backlog[second]) for second in sorted(connected)]


# --- in a process of its own ---


def _drive(
    answer: Connection,
    go: Event,
    parent: int,
    group: Group,
    endpoint: Endpoint,
    identities: Identities,
    seconds: float,
    share: Share,
) -> None:
    _end_with(parent)
    go.wait()
    try:
        answer.send(asyncio.run(_share(group, endpoint, identities, seconds, share)))
    except Fault as fault:
        answer.send(Failure(str(fault), fault.hint))


def _end_with(parent: int) -> None:
    """Be killed when the process that forked this one ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


async def _share(group: Group, endpoint: Endpoint, identities: Identities, seconds: float, share: Share) -> Part:
    deliveries = Deliveries()
    fleet = Fleet(group, endpoint, identities, deliveries=deliveries, share=share)
    load = await driven(fleet, seconds)
    return Part(fleet.figures, load, fleet.course, deliveries.acknowledged)
