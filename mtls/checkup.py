"""What the doctors of our programs share: a check is one line with a level, a finding and the next thing to do.

A table of checks is data, looked through in order; a check that cannot be made has failed, with the reason. The looks
at the machine that every doctor needs are here too: the clock's time service, the disk, ModemManager. Nothing is
changed, and nothing is opened but files to read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from mtls.errors import Fault

SYNCHRONISED = Path("/run/systemd/timesync/synchronized")  # systemd-timesyncd's mark, as the gateway reads it
PROCESSES = Path("/proc")


class Level(StrEnum):
    """How bad it is: `fail` stops the work, `warn` wants somebody's time soon."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line."""

    name: str
    level: Level
    detail: str
    hint: str = ""

    def as_row(self) -> dict[str, str]:
        """For JSON."""
        return {key: str(value) for key, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.level:4} {self.name}: {self.detail}" + (f" ({self.hint})" if self.hint else "")


def looked(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """The lines of one look; when it cannot be made, one line that says why."""
    try:
        return list(look())
    except (Fault, OSError, ValueError) as error:
        return [Check(name, Level.FAIL, str(error), getattr(error, "hint", ""))]


def exit_code(checks: Iterable[Check]) -> int:
    """1 when one of them failed, else 0."""
    return 1 if any(check.level is Level.FAIL for check in checks) else 0


def synchronised(why: str) -> Check:
    """Whether a time service vouches for the clock; `why` says what depends on it."""
    if SYNCHRONISED.exists():
        return Check("clock", Level.OK, "synchronised by a time service")
    return Check("clock", Level.WARN, "no time service says that it has set it", f"timedatectl; {why}")


def disk(folder: Path, what: str, *, little_bytes: int, none_bytes: int) -> Check:
    """The free space for `what`: little of it is a warning, less than `none_bytes` a failure."""
    free = shutil.disk_usage(folder).free
    level = Level.FAIL if free < none_bytes else Level.WARN if free < little_bytes else Level.OK
    return Check("disk", level, f"{free // 1024**2} MiB free for {what}", "" if level is Level.OK else "free space")


def modem_manager() -> Check:
    """Whether ModemManager runs: it talks to every new ttyACM for 20 s, which is noise to a device at work."""
    for name in PROCESSES.glob("[0-9]*/comm"):
        try:
            is_running = name.read_text().strip() == "ModemManager"
        except OSError:
            continue  # ended meanwhile
        if is_running:
            hint = "systemctl disable --now ModemManager, or a udev rule with ID_MM_DEVICE_IGNORE"
            return Check("modem manager", Level.WARN, "runs, and talks to serial ports that it does not know", hint)
    return Check("modem manager", Level.OK, "does not run")
