"""Whether a time service vouches for this machine's clock, found out without asking the kernel.

The unit's sandbox takes adjtimex(2) away from the gateway, so the answer comes from what time services leave behind:
systemd-timesyncd touches a file each time it sets the clock; timedatectl and chronyc are asked where that file is
missing. The answer is a mark: None when nobody vouches, another text each time that the clock was set anew. `mark`
costs one stat(2); `ask` runs programs and may take seconds.

Not judged here: whether the service is right.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

TIMESYNCD_FILE: Final = Path("/run/systemd/timesync/synchronized")
TIMEDATECTL: Final = ("timedatectl", "show", "--property=NTPSynchronized", "--value")
CHRONYC: Final = ("chronyc", "-c", "tracking")
COMMAND_TIMEOUT_S: Final = 3.0
MAX_OFFSET_S: Final = 1.0  # of a clock that chrony calls synchronised while it still corrects it
CHRONY_FIELDS: Final = 14  # chronyc(1), tracking: the fourth is the time of the last measurement, the fifth the offset


class TimeService:
    """The mark of one source: `auto`, `clock` (this machine's clock is right by itself), or the path of a file."""

    def __init__(self, source: str, folder: Path = Path()) -> None:
        self._trusts_clock = source == "clock"
        self._file = TIMESYNCD_FILE if source in ("auto", "clock") else folder / source
        self._asks = source == "auto"
        self._answer: str | None = None
        self._looks = 0
        self._times_set = 0

    def mark(self) -> str | None:
        """Who vouches for the clock now; cheap enough for every second."""
        if self._trusts_clock:
            self._looks += 1
            return f"clock {self._looks}"  # whoever sets such a clock vouches for it anew
        try:
            return f"file {self._file.stat().st_mtime_ns}"
        except OSError:
            return self._answer

    def ask(self) -> None:
        """Ask the time services that leave no file; blocks for some seconds at most."""
        if not self._asks or self._file.exists():
            return
        before, self._answer = self._answer, None
        if output_of(TIMEDATECTL).strip() == "yes":
            if before is None or not before.startswith("timedatectl"):
                self._times_set += 1
            self._answer = f"timedatectl {self._times_set}"
        else:
            self._answer = chrony_mark(output_of(CHRONYC))


def chrony_mark(report: str) -> str | None:
    """The mark in a line of `chronyc -c tracking`; None when chrony has not set the clock, or says something else."""
    fields = report.strip().split(",")
    if len(fields) != CHRONY_FIELDS or fields[-1] not in ("Normal", "Insert second", "Delete second"):
        return None
    try:
        return f"chrony {fields[3]}" if abs(float(fields[4])) < MAX_OFFSET_S else None
    except ValueError:
        return None


def output_of(command: Sequence[str]) -> str:
    """What a program prints when it succeeds; nothing when it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
    return done.stdout
