"""Commands down to a device, one at a time, with the device's own acknowledgement and room for small buffers. Sans-io.

Frames, in the port's framing; N and BYTES are decimal:

    agent -> device   !C N PAYLOAD   command number N; the same N again means that no answer came
                      !Q             how much room is there?
    device -> agent   !A N           command N is done
                      !E N           command N is refused
                      !W BYTES       there is room for so many bytes

With a window, a command is sent only into room that is known: the window after opening, less what was sent since, or
what the last `!W` said. A device sends `!W` after it has answered a command, and in answer to `!Q`, which the agent
asks as long as the room does not suffice (a `!W` may be lost). A `!W` that comes while a command is unanswered may
have been said before the command arrived, and does not count. `!Q` itself is sent without room: keep 8 bytes for it.
"""

import re
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from device_sim.ports.framing import Kind, encode_frame

ANSWER_TIMEOUT_S = 2.0  # from a command's last byte to the device's answer
TRIES = 3
_WORD = re.compile(rb"!([AEW]) ([0-9]{1,9})")


class Outcome(StrEnum):
    """How a command ended; published, so never renamed."""

    DONE = "done"
    REFUSED = "refused"
    NO_ANSWER = "no_answer"
    TOO_LONG = "too_long"
    UNSUITABLE = "unsuitable"  # holds a line break, and the framing is lines


@dataclass(frozen=True, slots=True)
class Command:
    """What a device is to do; `reference` is the sender's name for it."""

    reference: str
    payload: bytes


@dataclass(slots=True)
class _Flight:
    command: Command
    number: int
    data: bytes
    tries_left: int
    deadline: float


class CommandLine:
    """The commands of one port, for one opening of it."""

    def __init__(self, kind: Kind, *, window: int, max_frame: int, waiting: tuple[Command, ...] = ()) -> None:
        self.ended: list[tuple[Command, Outcome]] = []
        self._kind = kind
        self._window = window
        self._max_frame = max_frame
        self._room = window
        self._waiting = deque(waiting)
        self._flight: _Flight | None = None
        self._is_unanswered = False
        self._ask_at = 0.0
        self._last_number = 0

    @property
    def unfinished(self) -> tuple[Command, ...]:
        """What was not answered, in order: for the next opening of the port."""
        return (*([self._flight.command] if self._flight else []), *self._waiting)

    def offer(self, command: Command) -> None:
        """Queue a command."""
        self._waiting.append(command)

    def hear(self, frame: bytes) -> bool:
        """Take a frame from the device; False when it is none of ours but a reading."""
        word = _WORD.fullmatch(frame)
        if word is None:
            return False
        number, flight = int(word[2]), self._flight
        if word[1] == b"W":
            if not self._is_unanswered:
                self._room = min(number, self._window)
        elif flight is not None and number == flight.number:
            self._end(flight, Outcome.DONE if word[1] == b"A" else Outcome.REFUSED)
        return True

    def send(self, now: float) -> bytes:
        """The bytes to write now."""
        self._give_up_waiting(now)
        while self._flight is None and self._waiting:
            self._begin(self._waiting.popleft())
        flight = self._flight
        if flight is None or self._is_unanswered:
            return b""
        if self._window and len(flight.data) > self._room:
            if now < self._ask_at:
                return b""
            self._ask_at = now + ANSWER_TIMEOUT_S
            return encode_frame(self._kind, b"!Q")
        self._room -= len(flight.data)
        self._ask_at = now  # the next command that finds no room asks at once
        flight.tries_left -= 1
        flight.deadline = now + ANSWER_TIMEOUT_S
        self._is_unanswered = True
        return flight.data

    def _begin(self, command: Command) -> None:
        self._last_number += 1
        try:
            data = encode_frame(self._kind, b"!C %d %b" % (self._last_number, command.payload))
        except ValueError:
            self.ended.append((command, Outcome.UNSUITABLE))
            return
        if len(data) > min(self._window or self._max_frame, self._max_frame):
            self.ended.append((command, Outcome.TOO_LONG))
            return
        self._flight = _Flight(command, self._last_number, data, TRIES, 0.0)

    def _give_up_waiting(self, now: float) -> None:
        flight = self._flight
        if flight is None or not self._is_unanswered or now < flight.deadline:
            return
        self._is_unanswered = False
        if flight.tries_left == 0:
            self._end(flight, Outcome.NO_ANSWER)

    def _end(self, flight: _Flight, outcome: Outcome) -> None:
        self.ended.append((flight.command, outcome))
        self._flight, self._is_unanswered = None, False
