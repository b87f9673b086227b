"""Scales and ticks of a chart: where a value stands and which values are written beside the axis. Pure arithmetic."""

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

Scale = Callable[[float], float]  # a value -> its place in the chart's own units

SECOND_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400)
MAX_TIME_TICKS: Final = 6
DAY_S: Final = 86400
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999)


class Tick(NamedTuple):
    """A value on an axis and how it is written."""

    value: float
    label: str


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """`low` stands at `start`, `high` at `end`."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """The same for the logarithm; what is below `low` stands at `start`."""
    scale = linear(math.log10(low), math.log10(high), start, end)
    return lambda value: scale(math.log10(max(value, low)))


def nines(share: float) -> float:
    """The place of a share of 1 on the axis of percentiles: each further nine is one step."""
    return -math.log10(max(1e-12, 1.0 - share))


def percentile_ticks(last: float) -> list[Tick]:
    """From 50 to `last` per cent."""
    return [Tick(nines(percent / 100), f"{percent:g}%") for percent in PERCENTILES if percent <= last]


def count_ticks(high: float) -> list[Tick]:
    """Whole numbers from 0 to at least `high`, three to five of them."""
    step = next(
        step for power in range(12) for one in (1, 2, 5) if (step := one * 10**power) * 4 >= high or power == 11
    )
    return [Tick(number * step, short(number * step)) for number in range(math.ceil(max(high, 1) / step) + 1)]


def time_ticks(seconds: float) -> list[Tick]:
    """Seconds, minutes, hours or days since the beginning."""
    step = next((step for step in SECOND_STEPS if seconds / step <= MAX_TIME_TICKS), None)
    step = step or DAY_S * math.ceil(seconds / DAY_S / MAX_TIME_TICKS)
    return [Tick(number * step, duration(number * step)) for number in range(int(seconds / step) + 1)]


def latency_ticks(low_s: float, high_s: float) -> list[Tick]:
    """Powers of ten of seconds; with 2 and 5 between them when there are few."""
    first, last = math.floor(math.log10(low_s)), math.ceil(math.log10(high_s))
    parts: Sequence[int] = (1, 2, 5) if last - first <= 2 else (1,)
    values = [part * 10.0**power for power in range(first, last + 1) for part in parts]
    return [Tick(value, milliseconds(value)) for value in values if low_s * 0.999 <= value <= high_s * 1.001]


def decades(low_s: float, high_s: float) -> tuple[float, float]:
    """The powers of ten around two durations, at least one apart."""
    low = 10.0 ** math.floor(math.log10(max(low_s, 1e-6)))
    high = 10.0 ** math.ceil(math.log10(max(high_s, low * 1.001)))
    return low, max(high, low * 10)


def milliseconds(seconds: float) -> str:
    """A latency with three digits that mean something: 0.25 ms, 12.3 ms, 1.5 s."""
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"
    return f"{seconds * 1000:.3g} ms"


def duration(seconds: float) -> str:
    """A time of a run: 0 s, 90 s, 5 min, 2 h, 3 d."""
    for unit, name in ((DAY_S, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"


def short(number: float) -> str:
    """A count: 950, 12k, 3.5M."""
    for unit, name in ((1e6, "M"), (1e4, "k")):
        if number >= unit:
            return f"{number / (1e6 if name == 'M' else 1e3):g}{name}"
    return f"{number:g}"
