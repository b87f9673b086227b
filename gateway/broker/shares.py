"""What the sessions of one identity hold together, so that a bound of one session is not passed by having many.

Three sums, kept up as they change, so that nothing is added up per message: bytes queued in memory, bytes queued on
disk, and bytes of subscriptions. A sum that has reached its bound takes nothing more, but for a session that is within
its equal part: what one session left behind must not keep its siblings from queueing. That ends at twice the bound,
because each new session makes the equal parts smaller, and those before keep what they have.

It decides nothing about others' messages and knows no policy; the bounds are the callers'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gateway.broker.sessions import Session

MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024  # of one identity in memory: four full queues
MAX_SUBSCRIPTION_BYTES: Final = 4 * 1024 * 1024  # of one identity: some six thousand usual subscriptions
SUBSCRIPTION_BYTES: Final = 4096  # for each that one session may have, where more than a thousand are configured
SUBSCRIPTION_OVERHEAD: Final = 512  # objects of a subscription beside its text; 400 bytes on CPython 3.11
ASCII_COST: Final = 3  # bytes of memory for a character: in the session, in the tree, and once more as a first level
OTHER_COST: Final = 16  # each of them four bytes as soon as one needs four, and the UTF-8 that the store has made


class Share:
    """The sessions of one identity by client identifier, and what they hold together."""

    __slots__ = ("members", "queued_bytes", "stored_bytes", "subscription_bytes")

    def __init__(self) -> None:
        self.members: dict[str, Session] = {}
        self.queued_bytes = 0
        self.stored_bytes = 0
        self.subscription_bytes = 0

    def count(self, session: Session, sign: int = 1) -> None:
        """Add what a session holds, or with -1 take it out."""
        self.queued_bytes += sign * session.queued_bytes
        self.stored_bytes += sign * session.depth_bytes
        self.subscription_bytes += sign * sum(map(subscription_bytes, session.subscriptions))

    def may_queue(self, now: int, then: int) -> bool:
        """Whether a session's queue in memory may come from `now` bytes to `then`."""
        together = self.queued_bytes - now + then
        return together <= MAX_QUEUED_BYTES or self._is_equal_part(then, together, MAX_QUEUED_BYTES)

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more may be queued in memory."""
        return self.queued_bytes >= 2 * MAX_QUEUED_BYTES

    def may_store(self, now: int, then: int, most: int) -> bool:
        """Whether a session's queue on disk may; `most` is what all of them may come to."""
        together = self.stored_bytes - now + then
        return together <= most or self._is_equal_part(then, together, most)

    def _is_equal_part(self, own: int, together: int, most: int) -> bool:
        return own * len(self.members) <= most and together <= 2 * most

    def may_subscribe(self, topic_filter: str, max_subscriptions: int) -> bool:
        """Whether one more subscription has room; `max_subscriptions` is what one session may have."""
        most = max(MAX_SUBSCRIPTION_BYTES, max_subscriptions * SUBSCRIPTION_BYTES)
        return self.subscription_bytes + subscription_bytes(topic_filter) <= most


def in_flight_bytes(session: Session) -> int:
    """What waits for acknowledgements in memory; it counts as queued while the client is away."""
    return sum(message.cost_bytes for message, _, _ in session.inflight.values())


def subscription_bytes(topic_filter: str) -> int:
    """What a subscription is accounted with: at least what it costs in memory."""
    return len(topic_filter) * (ASCII_COST if topic_filter.isascii() else OTHER_COST) + SUBSCRIPTION_OVERHEAD
