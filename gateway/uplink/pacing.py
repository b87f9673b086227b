"""How fast the backlog goes, when to try again, and how fast things went: arithmetic over a monotonic clock.

The backlog lane is paced by two token buckets, messages and bytes, so that a replay after a long cut leaves room for
live traffic on the line and at the upstream. Reconnecting waits with decorrelated jitter, so that a site's gateways
do not come back in step, and starts afresh only after a connection that lasted: an upstream that accepts and then
throws us out is not hammered.

Source of the jitter: "Exponential Backoff And Jitter", AWS Architecture Blog: min(cap, random(base, sleep * 3)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

RECONNECT_BASE_S: Final = 1.0
RECONNECT_CAP_S: Final = 60.0  # an operator who has mended the line does not want to wait longer
STABLE_AFTER_S: Final = 60.0  # longer than an upstream that never acknowledges is borne with


class TokenBucket:
    """`rate` tokens per second, at most `burst` of them; starts full.

    A taker of more than `burst` gets through when the bucket is full and leaves a debt, so that one large message is
    delayed and not stuck.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = -math.inf

    def wait_s(self, amount: float, monotonic: float) -> float:
        """Seconds until `amount` may be taken; 0 for now."""
        self._fill(monotonic)
        missing = min(amount, self.burst) - self._tokens
        return max(0.0, missing / self.rate)

    def take(self, amount: float) -> None:
        """Take tokens that `wait_s` has allowed."""
        self._tokens -= amount

    def _fill(self, monotonic: float) -> None:
        if self._at == -math.inf:
            self._at = monotonic
        passed = max(0.0, monotonic - self._at)
        self._tokens = min(self.burst, self._tokens + passed * self.rate)
        self._at = max(self._at, monotonic)


class Pacer:
    """Messages and bytes per second at once; the slower of the two decides."""

    __slots__ = ("_bytes", "_messages")

    def __init__(self, *, messages_per_s: float, burst: float, bytes_per_s: float) -> None:
        self._messages = TokenBucket(messages_per_s, burst)
        self._bytes = TokenBucket(bytes_per_s, bytes_per_s)

    def wait_s(self, size: int, monotonic: float) -> float:
        """Seconds until a message of `size` bytes may go; 0 for now."""
        return max(self._messages.wait_s(1, monotonic), self._bytes.wait_s(size, monotonic))

    def take(self, size: int) -> None:
        """One message of `size` bytes goes."""
        self._messages.take(1)
        self._bytes.take(size)


class Backoff:
    """Waits between attempts to connect. `uniform` is a source of randomness: uniform(low, high)."""

    def __init__(
        self,
        uniform: Callable[[float, float], float],
        *,
        base_s: float = RECONNECT_BASE_S,
        cap_s: float = RECONNECT_CAP_S,
    ) -> None:
        self._uniform = uniform
        self._base_s = base_s
        self._cap_s = cap_s
        self._last_s = base_s

    def next_s(self, lasted_s: float = 0.0) -> float:
        """How long to wait now, after a connection that lasted so long (0: there was none)."""
        if lasted_s >= STABLE_AFTER_S:
            self._last_s = self._base_s
        self._last_s = min(self._cap_s, self._uniform(self._base_s, self._last_s * 3))
        return self._last_s


class Meter:
    """Events per second, weighted so that what happened `half_life_s` ago counts half."""

    __slots__ = ("_at", "_decay", "_since", "_weighted")

    def __init__(self, half_life_s: float, monotonic: float) -> None:
        self._decay = math.log(2) / half_life_s
        self._since = self._at = monotonic
        self._weighted = 0.0

    def add(self, amount: float, monotonic: float) -> None:
        """Something happened."""
        self._pass(monotonic)
        self._weighted += amount

    def rate(self, monotonic: float) -> float:
        """Per second; fair from the beginning: it averages over the time that has passed while that is short."""
        self._pass(monotonic)
        seen = 1.0 - math.exp(-self._decay * max(self._at - self._since, 1.0))
        return self._weighted * self._decay / seen

    def _pass(self, monotonic: float) -> None:
        if monotonic > self._at:
            self._weighted *= math.exp(-self._decay * (monotonic - self._at))
            self._at = monotonic
