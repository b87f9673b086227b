"""`python -m device_sim.targets.shifted_gateway CONFIG OFFSET_FILE`: our gateway with a clock that is set from outside.

It is `mqtt-gateway run` in all but one thing: the clock by which it judges certificates, CRLs and sessions is this
machine's plus the seconds in OFFSET_FILE, which is read at every look. FOR TESTS ONLY: whoever writes that file
decides what has expired. Not shifted: durations, the times in the audit log, and every other program.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway import service
from mtls.errors import Fault
from mtls.keystore import read_limited, write_public

MAX_OFFSET_BYTES = 64


def write_offset(path: Path, offset: timedelta) -> None:
    """Set the gateway's clock: it is whole at every moment, because the file is replaced."""
    write_public(path, f"{offset.total_seconds()}\n".encode())


def read_offset(path: Path) -> timedelta:
    """How far the clock is ahead of this machine's."""
    return timedelta(seconds=float(read_limited(path, MAX_OFFSET_BYTES)))


def main(config: str, offset_file: str) -> None:
    """Serve until SIGTERM."""
    path = Path(offset_file)
    service.log_to_stderr(verbose=False)
    service.serve(Path(config), wall=lambda: datetime.now(UTC) + read_offset(path))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Fault as fault:
        sys.exit(f"error: {fault}\nhint: {fault.hint}")
