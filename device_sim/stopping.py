"""How a program that runs until somebody ends it hears of its end: a descriptor for its loop, and no exception."""

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def stop_signals() -> Iterator[int]:
    """A descriptor that becomes readable on SIGINT, SIGTERM or SIGHUP, so that a loop ends in order."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {kind: signal.signal(kind, lambda *_: None) for kind in kinds}
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for kind, handler in before.items():
            signal.signal(kind, handler)
        os.close(reader)
        os.close(writer)
