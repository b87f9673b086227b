"""The clock of the gateway under test, and of nothing else.

The gateway is a process: its clock is this machine's plus an offset that it reads from a file at every look
(targets/shifted_gateway.py). By it the gateway judges certificates, CRLs and live sessions. The test, its devices,
durations and time limits, and the times in the audit log keep to the real clock.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from device_sim.targets.shifted_gateway import read_offset, write_offset


class FakeClock:
    """Set it before or while the gateway runs; the next look of the gateway sees it, within a second."""

    def __init__(self, file: Path) -> None:
        self.file = file
        write_offset(file, timedelta())

    def now(self) -> datetime:
        """The time that the gateway's clock shows, in UTC."""
        return datetime.now(UTC) + read_offset(self.file)

    def advance(self, **amount: float) -> datetime:
        """Put it forward: `advance(days=30)`, or anything that `timedelta` takes. Returns what it shows now.

        A CRL runs out as well: `mtls_gateway.publish_crl(lifetime=...)` makes one that lasts. Put back, the clock is
        one that has run backwards: the gateway believes it no more, and judges by the latest time that it has known.
        """
        write_offset(self.file, read_offset(self.file) + timedelta(**amount))
        return self.now()
