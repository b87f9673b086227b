"""A scenario as it stands in its file: groups of devices, phases, what is done in them and what is expected.

Frozen values without behaviour but for `scaled`, which makes the same scenario smaller or shorter, and `group_of`,
which makes the settings of a fleet. loading.py is the only way from a file to these; the names of actions and
expectations are the tables of actions.py and expectations.py.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from device_sim.fleet.device import Group
from device_sim.fleet.identities import names_of


@dataclass(frozen=True, slots=True)
class Devices:
    """One [[devices]] table: a group and the phases in which it is there."""

    count: int
    at_least: int  # the count is not scaled below it
    phases: tuple[str, ...]
    settings: Group  # without ids and seed

    @property
    def name(self) -> str:
        """The group's, which its devices' ids begin with."""
        return self.settings.name


@dataclass(frozen=True, slots=True)
class Step:
    """One action, so many seconds after the beginning of its phase."""

    action: str
    at_s: float
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One expectation: its key and value, for a group ("": all) in a phase ("": the whole run)."""

    key: str
    value: Any
    devices: str
    phase: str


@dataclass(frozen=True, slots=True)
class Phase:
    """One [[phases]] table."""

    name: str
    seconds: float
    at_least_s: float  # the time is not scaled below it
    steps: tuple[Step, ...]
    wanted: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole file."""

    name: str
    description: str
    seed: int
    listen: str  # what the observer subscribes to; "": nobody listens
    gateway: Mapping[str, Mapping[str, Any]]  # tables of gateway.toml, for our gateway alone
    devices: tuple[Devices, ...]
    phases: tuple[Phase, ...]
    wanted: tuple[Wanted, ...]  # of the whole run

    def scaled(self, scale: float) -> "Scenario":
        """Fewer devices and shorter phases (or more and longer), none below what the file calls its least."""
        return replace(
            self,
            devices=tuple(
                replace(group, count=max(group.at_least, math.ceil(group.count * scale))) for group in self.devices
            ),
            phases=tuple(_scaled(phase, scale) for phase in self.phases),
        )

    def uses(self, *actions: str) -> bool:
        """Whether one of these actions is taken in any phase."""
        return any(step.action in actions for phase in self.phases for step in phase.steps)

    def group_of(self, devices: Devices, seed: int) -> Group:
        """The settings of a fleet: the same seed says the same in the same order, each group something else."""
        ids = tuple(names_of(f"{devices.name}-", devices.count))
        return replace(devices.settings, ids=ids, seed=zlib.crc32(f"{seed}:{devices.name}".encode()))

    def seconds_of(self, devices: Devices) -> float:
        """How long a group is there."""
        return sum(phase.seconds for phase in self.phases if phase.name in devices.phases)


def _scaled(phase: Phase, scale: float) -> Phase:
    seconds = max(phase.at_least_s, phase.seconds * scale)
    share = seconds / phase.seconds
    return replace(phase, seconds=seconds, steps=tuple(replace(s, at_s=s.at_s * share) for s in phase.steps))
