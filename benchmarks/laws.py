"""How a cost grows with a number: the law that fits the measured points best, in a sentence."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal

Law = Literal["flat", "logarithmic", "linear"]
Points = Sequence[tuple[float, float]]

FLAT_WITHIN = 0.10  # of the first point: what rounds of one point differ by on a quiet machine


def law_of(points: Points) -> Law:
    """Flat when no point is above the first, else what leaves less unexplained: a + b log n or a + b n."""
    if all(value <= points[0][1] * (1 + FLAT_WITHIN) for _, value in points):
        return "flat"
    errors: dict[Law, float] = {
        "logarithmic": _unexplained([(math.log(number), value) for number, value in points]),
        "linear": _unexplained(points),
    }
    return min(errors, key=lambda law: errors[law])


def _unexplained(points: Points) -> float:
    """The squared error that a straight line through the points leaves, relative to each value."""
    numbers, values = zip(*points, strict=True)
    slope, start = statistics.linear_regression(numbers, values)
    return math.fsum(((start + slope * number - value) / value) ** 2 for number, value in points if value)


def sentence(what: str, unit: str, items: str, points: Points) -> str:
    """The law in words, with both ends."""
    (few, low), (many, high) = points[0], points[-1]
    return f"{what} is {law_of(points)} in {items}: {low:.3g} {unit} at {few:,.0f}, {high:.3g} {unit} at {many:,.0f}"
