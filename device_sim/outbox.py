"""Readings on their way: a queue bounded in bytes, and what is in flight until the gateway acknowledges it.

One thread puts, one takes. When the queue is full a source that cannot wait (a sensor) loses its oldest readings,
which are counted; one that can (a file) waits. A reading leaves the outbox by its acknowledgement only: when the
connection is lost, what was in flight goes back to the front, in order. It is memory: a crash loses it.
"""

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

PER_READING_BYTES = 64  # what a queued reading costs beside its payload; keeps empty readings from being free


@dataclass(frozen=True, slots=True)
class Tally:
    """How many readings came, went and were lost."""

    taken: int
    acknowledged: int
    dropped: int


class Bell:
    """A descriptor that becomes readable when it is rung, from any thread."""

    def __init__(self) -> None:
        self.descriptor, self._ringer = os.pipe()
        self._lock = threading.Lock()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._ringer, False)

    def ring(self) -> None:
        """Make it readable."""
        with self._lock:  # `close` must not come between: the number could be another file's by then
            if self._ringer >= 0:
                with contextlib.suppress(BlockingIOError):  # full: it is ringing already
                    os.write(self._ringer, b"!")

    def quiet(self) -> None:
        """Take note of it."""
        try:
            while len(os.read(self.descriptor, 4096)) == 4096:
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close both ends; ringing afterwards is harmless."""
        with self._lock:
            os.close(self.descriptor)
            os.close(self._ringer)
            self._ringer = self.descriptor = -1


class Queue(ABC):
    """What an agent's connection needs of a queue, in memory (Outbox) or on disk (ports/spool.py); one thread takes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_ended = False
        self._taken = self._acknowledged = self._dropped = 0
        self._bell = Bell()

    @property
    def bell(self) -> int:
        """A descriptor that is readable when there is something to do."""
        return self._bell.descriptor

    def ring(self) -> None:
        """Wake whoever waits on `bell`; from any thread."""
        self._bell.ring()

    def quiet(self) -> None:
        """Take note of the bell."""
        self._bell.quiet()

    def end(self) -> None:
        """No more readings: the source has ended, or is told to; who waits for room is let go."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()
        self.ring()

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Nothing is queued and nothing waits for its acknowledgement."""

    @property
    def is_done(self) -> bool:
        """Nothing is left and nothing more comes."""
        return self._is_ended and self.is_empty

    @property
    def tally(self) -> Tally:
        """The numbers up to now."""
        return Tally(self._taken, self._acknowledged, self._dropped)

    @abstractmethod
    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """The gateway has these; an id that is not a reading's is nobody's business here."""

    @abstractmethod
    def connection_lost(self) -> None:
        """What was in flight is to be sent again."""

    def close(self) -> None:
        """Let go of what it holds open; nothing may be put afterwards."""
        self.end()
        self._bell.close()


class Outbox(Queue):
    """At most `max_bytes` of queued readings; `bell` becomes readable when there is something to take."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._max_bytes = max_bytes
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._in_flight: dict[int, bytes] = {}

    # --- the source's side ---

    def put(self, payload: bytes, *, can_wait: bool) -> bool:
        """Queue one reading; False when the outbox was ended and the source should stop."""
        size = len(payload) + PER_READING_BYTES
        with self._changed:
            while can_wait and self._queue and self._queued_bytes + size > self._max_bytes and not self._is_ended:
                self._changed.wait()
            if self._is_ended:
                return False
            self._taken += 1
            self._push(payload)
        self.ring()
        return True

    # --- the connection's side ---

    def take(self) -> bytes | None:
        """The oldest queued reading, or None."""
        with self._changed:
            if not self._queue:
                return None
            payload = self._queue.popleft()
            self._queued_bytes -= len(payload) + PER_READING_BYTES
            self._changed.notify_all()
            return payload

    def sent(self, packet_id: int, payload: bytes) -> None:
        """A reading taken was published and waits for its acknowledgement."""
        self._in_flight[packet_id] = payload

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """The gateway has these; an id that is not a reading's is nobody's business here."""
        for packet_id in packet_ids:
            if self._in_flight.pop(packet_id, None) is not None:
                self._acknowledged += 1

    def connection_lost(self) -> None:
        """What was in flight goes back to the front, in order; it may arrive twice, never not at all."""
        with self._changed:
            back = list(self._in_flight.values())
            self._in_flight.clear()
            self._queue.extendleft(reversed(back))
            self._queued_bytes += sum(len(payload) + PER_READING_BYTES for payload in back)
            self._trim()

    @property
    def in_flight(self) -> int:
        """How many readings wait for their acknowledgement."""
        return len(self._in_flight)

    @property
    def is_empty(self) -> bool:
        """Nothing is queued and nothing waits for its acknowledgement."""
        with self._changed:
            return not self._queue and not self._in_flight

    def _push(self, payload: bytes) -> None:
        self._queue.append(payload)
        self._queued_bytes += len(payload) + PER_READING_BYTES
        self._trim()

    def _trim(self) -> None:
        while self._queued_bytes > self._max_bytes and len(self._queue) > 1:
            self._queued_bytes -= len(self._queue.popleft()) + PER_READING_BYTES
            self._dropped += 1
