"""A histogram of durations that keeps its precision from microseconds to hours: log-linear, as HdrHistogram is.

Theory: a value of `n` bits falls into the bucket of its leading bits. Below 2**SUB_BITS every microsecond has its own
counter; above, every power of two is cut into 2**(SUB_BITS - 1) equal parts, so that a counter is never wider than
1/128 of its value (under 0.8 %). Counters are added, never averaged: histograms of several devices or processes
merge exactly, and a percentile of the sum is the percentile.

Our own, because it is forty lines and merges as a `Counter` does.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

SUB_BITS = 8
LARGEST_US = 1 << 36  # 19 hours; what is longer counts as that
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)


def index_of(value_us: int) -> int:
    """The counter of a value in microseconds."""
    value_us = min(max(0, value_us), LARGEST_US)
    shift = max(0, value_us.bit_length() - SUB_BITS)
    return (shift << SUB_BITS) + (value_us >> shift)


def highest_of(index: int) -> int:
    """The largest value, in microseconds, that a counter stands for."""
    shift, top = index >> SUB_BITS, index & ((1 << SUB_BITS) - 1)
    return ((top + 1) << shift) - 1


@dataclass(slots=True)
class Histogram:
    """Durations in seconds, counted."""

    counts: Counter[int] = field(default_factory=Counter)
    total: int = 0
    longest_s: float = 0.0

    def record(self, seconds: float) -> None:
        """Count one duration; a negative one (a clock's grain) counts as nothing."""
        self.counts[index_of(round(seconds * 1e6))] += 1
        self.total += 1
        self.longest_s = max(self.longest_s, seconds)

    def add(self, other: "Histogram") -> None:
        """Take over everything that another has counted."""
        self.counts.update(other.counts)
        self.total += other.total
        self.longest_s = max(self.longest_s, other.longest_s)

    def percentile(self, share: float) -> float:
        """The duration in seconds that `share` per cent do not exceed; 0.0 when nothing was counted."""
        wanted = share * self.total / 100
        seen = 0
        for index, count in sorted(self.counts.items()):
            seen += count
            if seen >= wanted:
                return min(highest_of(index) / 1e6, self.longest_s)
        return 0.0

    def steps(self) -> Iterator[tuple[float, int]]:
        """(largest duration in seconds, count) of every counter that is not zero, in order."""
        yield from ((highest_of(index) / 1e6, count) for index, count in sorted(self.counts.items()))

    def as_row(self) -> dict[str, float]:
        """Count and percentiles in milliseconds."""
        named = {f"p{share:g}_ms": round(self.percentile(share) * 1000, 3) for share in PERCENTILES[:-1]}
        return {"count": self.total, **named, "max_ms": round(self.longest_s * 1000, 3)}
