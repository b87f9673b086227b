"""How a program hears of its end: as a descriptor for its loop, or as the exception that Ctrl-C is."""

import contextlib
import os
import signal
import threading
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


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that what it has started and written is not left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM come when the block is over: in the middle of it they would lose what it makes.

    Python runs handlers in its main thread; in another thread there is nothing to hold back.
    """
    is_main = threading.current_thread() is threading.main_thread()
    came: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {kind: signal.signal(kind, lambda number, _: came.append(number)) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        for number in came:
            signal.raise_signal(number)
