"""The charts of a scenario: latency by percentile, how it is distributed, and the course of the run over its phases.

Figures are those of one group in one phase; a chart that cannot show all shows the slowest and says so, the table has
all. What was merged to fit (Sample by Sample, second by second) keeps its peaks.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from device_sim.fleet.histogram import Histogram
from device_sim.reports import axes, charts
from device_sim.reports.charts import Band, Frame, Point
from device_sim.reports.markup import Html, element, join
from device_sim.scenarios.result import ScenarioResult

MOST_CURVES: Final = charts.COLOURS
MOST_ROWS: Final = 12
MOST_BARS: Final = 110  # of seconds, merged when a run is longer
BINS_PER_DECADE: Final = 10
ROW_HEIGHT, ROWS_HEIGHT = 30, 180  # of one row at least, of all rows when they are few
NAME_LETTERS: Final = 17
PLOT_LEFT: Final = 124  # of the distributions, right of their names


class Named(NamedTuple):
    """The durations of one group in one phase."""

    name: str
    durations: Histogram


def latencies(result: ScenarioResult) -> list[Named]:
    """Of messages, for every group in every phase that had any."""
    return [
        Named(f"{phase.name} · {group}", figures.latency)
        for phase in result.phases
        for group, figures in phase.groups.items()
        if figures.latency.total
    ]


# --- latency ---


def percentile_chart(named: Sequence[Named]) -> Html:
    """Latency by percentile, both axes logarithmic: each further nine is as wide as the one before."""
    drawn = _slowest(named, MOST_CURVES)
    low, high = _range(one.durations for one in drawn)
    most = max(one.durations.total for one in drawn)
    last = 99.999 if most > 20_000 else 99.99
    frame = Frame(
        axes.linear(0, axes.nines(last / 100), charts.LEFT, charts.RIGHT),
        axes.logarithmic(low, high, charts.BOTTOM, charts.TOP),
        axes.percentile_ticks(last),
        axes.latency_ticks(low, high),
    )
    curves = [charts.line(frame, _curve(one.durations, axes.nines(last / 100)), n) for n, one in enumerate(drawn)]
    names = [f"{one.name} ({axes.short(one.durations.total)})" for one in drawn]
    caption = "How long so many per cent of the messages took at most, from the scheduled time. Both axes logarithmic."
    return charts.figure(
        "Latency by percentile",
        caption + _left_out(len(named), len(drawn), "slowest"),
        frame.draw(*curves),
        charts.legend(names),
    )


def distribution_chart(named: Sequence[Named]) -> Html:
    """How durations are distributed: a row for each, all on one logarithmic axis."""
    drawn = _slowest(named, MOST_ROWS)
    low, high = _range(one.durations for one in drawn)
    height = max(ROW_HEIGHT, min(ROWS_HEIGHT / 2, ROWS_HEIGHT / len(drawn)))
    bottom = charts.TOP + height * len(drawn)
    x = axes.logarithmic(low, high, PLOT_LEFT, charts.RIGHT)
    ticks = axes.latency_ticks(low, high)
    grid = [element("line", x1=x(t.value), x2=x(t.value), y1=charts.TOP, y2=bottom, class_="grid") for t in ticks]
    rows = [_row(one, charts.TOP + height * number, height, x) for number, one in enumerate(drawn)]
    caption = "Each row is as high as its commonest value. The line marks half of the messages, the dashed line 99 %."
    return charts.figure(
        "How latency is distributed",
        caption + _left_out(len(named), len(drawn), "slowest"),
        charts.svg(bottom + 26, *grid, *charts.below(x, ticks, bottom), *rows),
    )


def _row(one: Named, top: float, high: float, x: axes.Scale) -> Html:
    bins: Counter[int] = Counter()
    for seconds, count in one.durations.steps():
        bins[math.floor(math.log10(max(seconds, 1e-6)) * BINS_PER_DECADE)] += count
    highest, bottom = max(bins.values()), top + high - 2
    bars = []
    for place, count in sorted(bins.items()):
        start, end = (10 ** (edge / BINS_PER_DECADE) for edge in (place, place + 1))
        title = f"{axes.milliseconds(start)} to {axes.milliseconds(end)}: {count}"
        height = max(1.0, (high - 6) * count / highest)
        bars.append(charts.bar(x(start), x(end) - x(start), bottom - height, bottom, title, 0))
    marks = [
        element("line", x1=place, x2=place, y1=top + 2, y2=bottom, class_=kind)
        for share, kind in ((50.0, "mark"), (99.0, "mark dashed"))
        for place in (x(one.durations.percentile(share)),)
    ]
    name = element("text", element("title", one.name), charts.cut(one.name, NAME_LETTERS), x=4, y=bottom - 8)
    return join(name, *bars, *marks)


def _curve(durations: Histogram, last: float) -> list[Point]:
    """The steps of the percentile curve, ended half a message before 100 %, which is infinitely many nines away."""
    seen, points, end = 0, [], 1 - 0.5 / durations.total
    drawn = -math.inf
    for seconds, count in durations.steps():
        start = axes.nines(min(seen / durations.total, end))
        seen += count
        stop = min(axes.nines(min(seen / durations.total, end)), last)
        if start < last and stop - drawn > last / charts.MAX_POINTS:
            height, drawn = min(seconds, durations.longest_s), stop
            points += [Point(start, height), Point(stop, height)]
    return points


def _slowest(named: Sequence[Named], most: int) -> list[Named]:
    """The slowest in the order of the run, when there are too many."""
    by_p99 = sorted(range(len(named)), key=lambda place: named[place].durations.percentile(99), reverse=True)
    return [named[place] for place in sorted(by_p99[:most])]


def _range(histograms: Iterable[Histogram]) -> tuple[float, float]:
    every = [(next(one.steps())[0], one.longest_s) for one in histograms]
    return axes.decades(min(low for low, _ in every), max(high for _, high in every))


def _left_out(total: int, drawn: int, which: str) -> str:
    return f" The {drawn} {which} of {total}; the table has all." if drawn < total else ""


# --- the course of the run ---


def connected_chart(result: ScenarioResult) -> Html:
    """Devices connected, by the second."""
    points = [Point(sample.at_s, sample.connected) for sample in result.course]
    return charts.figure(
        "Devices connected", "Over the phases of the run.", _over_time(result, points, _highest(points))
    )


def backlog_chart(result: ScenarioResult) -> Html:
    """Messages that wait in devices, by the second."""
    points = [Point(sample.at_s, sample.backlog) for sample in result.course]
    return charts.figure(
        "Backlog", "Messages that are due and not acknowledged yet.", _over_time(result, points, _highest(points))
    )


def knocks_chart(result: ScenarioResult) -> Html:
    """Connections let in and refused, by the second."""
    let_in, refused = Counter[int](), Counter[int]()
    for phase in result.phases:
        for figures in phase.groups.values():
            let_in.update(figures.admissions_by_second)
            refused.update(figures.refusals_by_second)
    width = max(1, math.ceil(_length(result) / MOST_BARS))
    bars = [_merged(counted, width) for counted in (let_in, refused)]
    frame = _frame(result, max((max(one.values(), default=0) for one in bars), default=0))
    drawn = [
        charts.bar(
            frame.x(second) + number * (half := (frame.x(width) - frame.x(0)) / 2),
            half,
            frame.y(count),
            charts.BOTTOM,
            f"{axes.duration(second)}: {count} {word}",
            number,
        )
        for number, (word, counted) in enumerate(zip(("let in", "refused"), bars, strict=True))
        for second, count in sorted(counted.items())
    ]
    merged = f" A bar is the busiest of {width} seconds." if width > 1 else ""
    return charts.figure(
        "Connections let in and refused, per second",
        f"Left of each pair: let in ({let_in.total()}). Right: refused ({refused.total()}).{merged}",
        frame.draw(*drawn),
    )


def _over_time(result: ScenarioResult, points: Sequence[Point], high: float) -> Html:
    frame = _frame(result, high)
    return frame.draw(charts.line(frame, charts.thin(points), 0) if points else "")


def _frame(result: ScenarioResult, high: float) -> Frame:
    ticks, seconds = axes.count_ticks(high), _length(result)
    return Frame(
        axes.linear(0, seconds, charts.LEFT, charts.RIGHT),
        axes.linear(0, ticks[-1].value, charts.BOTTOM, charts.TOP),
        axes.time_ticks(seconds),
        ticks,
        [Band(phase.name, phase.started_s, phase.started_s + phase.seconds) for phase in result.phases],
    )


def _length(result: ScenarioResult) -> float:
    """Of the time axis: the run, or what was still noted after it."""
    ends = [phase.started_s + phase.seconds for phase in result.phases]
    return max([1.0, *ends, *(sample.at_s for sample in result.course[-1:])])


def _highest(points: Sequence[Point]) -> float:
    return max((point.y for point in points), default=0.0)


def _merged(counted: Counter[int], width: int) -> dict[int, int]:
    """The busiest second of each `width`, by the first of them."""
    merged: dict[int, int] = {}
    for second, count in counted.items():
        start = second // width * width
        merged[start] = max(merged.get(start, 0), count)
    return merged
