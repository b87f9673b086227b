"""One event loop in a thread of its own, on which a test's devices, its observer and its fleets live.

A test is synchronous and may be interrupted anywhere: what it waits for has a deadline, an interrupt cancels it, and
`close` cancels whatever is left. The thread is a daemon, so a test run ends even when something on it does not.
"""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, Self, TypeVar

START_TIMEOUT_S = 10.0
END_TIMEOUT_S = 10.0

T = TypeVar("T")


class LoopThread:
    """Use as a context manager."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="mqtt-mtls-pytest", daemon=True)

    def run(self, work: Coroutine[Any, Any, T], within_s: float) -> T:
        """What `work` returns or raises; TimeoutError after `within_s`, with the work cancelled."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(within_s)
        except CancelledError as error:
            raise TimeoutError("the test's event loop was closed meanwhile") from error
        finally:
            future.cancel()  # of work that is done this does nothing

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S):
            raise TimeoutError("the test's event loop did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(END_TIMEOUT_S)

    async def _live(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._stop.wait()
