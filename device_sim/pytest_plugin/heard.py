"""What was heard, with assertions that wait: `expect` and `nothing`.

Messages come from the event loop's thread and are asked for in the test's. A message that an `expect` has returned is
taken: the next `expect` waits for another, and `nothing` speaks of those that nobody expected. A failed assertion shows
what was heard instead.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from gateway.policy.topics import Levels, matches, parse_filter, parse_topic
from mtls.terminal import sanitise

MAX_KEPT = 10_000  # messages; a test that expects more than the newest of so many should run a fleet instead
MAX_SHOWN = 20
MAX_PAYLOAD_SHOWN = 80

Payload = bytes | str | Callable[[bytes], bool] | None


@dataclass(slots=True)
class Message:
    """One message: when it was heard (seconds since the listening began), its topic and its payload."""

    at_s: float
    topic: str
    payload: bytes
    is_taken: bool = False

    @property
    def text(self) -> str:
        """The payload as text; UnicodeDecodeError when it is none."""
        return self.payload.decode("utf-8")

    def __str__(self) -> str:
        shown = sanitise(repr(self.payload)[1:], MAX_PAYLOAD_SHOWN)
        return f"{self.at_s:8.3f} s  {sanitise(self.topic)}  {shown}" + ("  (expected)" if self.is_taken else "")


class Heard:
    """The messages that one listener has heard, oldest first. `why` adds lines to what a failed assertion says."""

    def __init__(self, why: Callable[[], list[str]] = list) -> None:
        self._why = why
        self._began_s = time.monotonic()
        self._messages: deque[Message] = deque(maxlen=MAX_KEPT)
        self._changed = threading.Condition()

    def hear(self, topic: str, payload: bytes) -> None:
        """A message has come; from any thread."""
        with self._changed:
            self._messages.append(Message(time.monotonic() - self._began_s, topic, payload))
            self._changed.notify_all()

    def messages(self, topic_filter: str = "#") -> list[Message]:
        """Everything heard so far that the filter matches, expected or not; ValueError when it is no filter."""
        levels = parse_filter(topic_filter)
        with self._changed:
            return [message for message in self._messages if matches(levels, parse_topic(message.topic))]

    def expect(self, topic_filter: str, payload: Payload = None, *, within_s: float = 5.0) -> Message:
        """The oldest message that nobody has expected yet and that fits; AssertionError when none comes in time.

        `payload` is the payload whole, as bytes or text; or a function that says whether a payload fits; None: any.
        """
        __tracebackhide__ = True
        levels = parse_filter(topic_filter)
        with self._changed:
            if self._changed.wait_for(lambda: self._first(levels, payload) is not None, within_s):
                found = self._first(levels, payload)
                if found is not None:
                    found.is_taken = True
                    return found
        wanted = "" if payload is None else f" with the payload {_named(payload)}"
        raise AssertionError(self._said(f"no message on {topic_filter}{wanted} within {within_s:g} s"))

    def nothing(self, topic_filter: str = "#", *, for_s: float = 0.5) -> None:
        """AssertionError when a message that nobody has expected fits, or comes within `for_s` from now.

        Waiting proves little about a message that is late. Better: publish something afterwards that must arrive,
        `expect` it, and then call this with `for_s=0`: messages of one device keep their order.
        """
        __tracebackhide__ = True
        levels = parse_filter(topic_filter)
        with self._changed:
            self._changed.wait_for(lambda: self._first(levels, None) is not None, for_s)
            found = self._first(levels, None)
        if found is not None:
            raise AssertionError(self._said(f"a message on {topic_filter} that nobody expected"))

    # --- inside ---

    def _first(self, levels: Levels, payload: Payload) -> Message | None:
        for message in self._messages:
            if not message.is_taken and matches(levels, parse_topic(message.topic)) and _fits(payload, message.payload):
                return message
        return None

    def _said(self, failure: str) -> str:
        with self._changed:
            messages, count = list(self._messages)[-MAX_SHOWN:], len(self._messages)
        counted = f"heard {count} message{'' if count == 1 else 's'}"
        lines = [failure, counted + (", the newest:" if count > MAX_SHOWN else ":" if count else "")]
        return "\n".join([*lines, *(str(message) for message in messages), *self._why()])


def _fits(wanted: Payload, payload: bytes) -> bool:
    if wanted is None:
        return True
    if callable(wanted):
        return wanted(payload)
    return payload == (wanted.encode() if isinstance(wanted, str) else wanted)


def _named(payload: Payload) -> str:
    if callable(payload):
        return f"that {getattr(payload, '__name__', 'the function')} takes"
    return sanitise(repr(payload), MAX_PAYLOAD_SHOWN)
