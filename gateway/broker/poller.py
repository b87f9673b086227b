"""Which connections can be read or written: one epoll for all of them, which the event loop watches as one descriptor.

The loop wakes this once, however many connections are ready; each then costs one look-up and one call, not a callback
object of the loop. What one turn has to write is written at its end (`after`), not in another turn of the loop. While
there is more to do at once the turn is repeated a few times before the loop has its own again: its timers, new
connections and handshakes wait for milliseconds at most.

Handlers are called with epoll's event mask. A handler may stop watching any descriptor, its own among them.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
EVENTS: Final = 256  # connections handled before what they caused is written
ROUNDS: Final = 4  # turns made before the event loop has its own

Handler = Callable[[int], None]


class Poller:
    """Calls handlers of ready descriptors, then `after`, on the running loop from `open` until `close`."""

    def __init__(self, after: Callable[[], None]) -> None:
        self.turning = False  # handlers are being called; `after` is to come
        self._after = after
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def open(self) -> None:
        """Be woken by the running loop."""
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._turn)

    def close(self) -> None:
        """Call no handler any more."""
        if not self._epoll.closed:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()

    def watch(self, descriptor: int, events: int, handler: Handler) -> None:
        """Call `handler` while one of `events` (READ, WRITE) or an error is there; 0 stops it."""
        if not events:
            if self._handlers.pop(descriptor, None) is not None:
                self._epoll.unregister(descriptor)
        elif descriptor in self._handlers:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
            self._handlers[descriptor] = handler

    def _turn(self) -> None:
        handlers = self._handlers
        for _ in range(ROUNDS):
            ready = self._epoll.poll(0, EVENTS)
            if not ready:
                return
            self.turning = True
            try:
                for descriptor, events in ready:
                    handler = handlers.get(descriptor)
                    if handler is not None:
                        handler(events)
            finally:
                self.turning = False
                self._after()
