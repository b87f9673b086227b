"""Charts as inline SVG: axes, bands, lines, bars. No script; a bar says its value when it is pointed at.

A chart is 400 units wide and its type 11, so it can be read at the width of a phone and three fit side by side on a
desk. What is drawn is bounded: a series has at most MAX_POINTS points, and `thin` keeps the highest and the lowest of
what it merges, so that a peak of one second is seen in a run of a week.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from device_sim.reports.axes import Scale, Tick
from device_sim.reports.markup import Child, Html, element, join, places

WIDTH: Final = 400
HEIGHT: Final = 240
LEFT, RIGHT, TOP, BOTTOM = 52, 388, 20, 214  # of the plot
MAX_POINTS: Final = 300
LETTER: Final = 6.2  # the width of a letter of type 11, generously
COLOURS: Final = 6
DASHES: Final = (None, "6 3", "2 3", "9 3 2 3", "1 2", "12 4")  # a series is known without its colour


class Point(NamedTuple):
    """A place in the units of the axes."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Band:
    """A phase of the run behind the curves."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Frame:
    """Scales and ticks of one chart."""

    x: Scale
    y: Scale
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    bands: Sequence[Band] = ()

    def draw(self, *content: Child) -> Html:
        """The chart with this content inside of its axes."""
        lines = [
            element("line", x1=LEFT, x2=RIGHT, y1=self.y(tick.value), y2=self.y(tick.value), class_="grid")
            for tick in self.y_ticks
        ]
        beside = [label(LEFT - 6, self.y(tick.value) + 4, tick.label, "end") for tick in self.y_ticks]
        return svg(HEIGHT, *self._bands(), *lines, *below(self.x, self.x_ticks), *beside, *content)

    def _bands(self) -> Iterable[Html]:
        for number, band in enumerate(self.bands):
            start, end = self.x(band.start), self.x(band.end)
            fits = int((end - start - 4) / LETTER)
            yield element(
                "rect",
                element("title", band.name),
                class_="band odd" if number % 2 else "band",
                x=start,
                width=max(0.0, end - start),
                y=TOP,
                height=BOTTOM - TOP,
            )
            if fits >= min(3, len(band.name)):
                yield label((start + end) / 2, TOP - 6, cut(band.name, fits), "middle")


def svg(height: float, *content: Child) -> Html:
    """A picture that takes the width it is given."""
    return element("svg", *content, viewBox=f"0 0 {WIDTH} {height:g}")


def label(x: float, y: float, words: str, anchor: str = "start") -> Html:
    """A piece of text."""
    return element("text", words, x=x, y=y, text_anchor=anchor)


def below(x: Scale, ticks: Sequence[Tick], bottom: float = BOTTOM) -> Iterable[Html]:
    """Ticks and their labels under the plot; a label that would touch the one before is left out."""
    free_from = 0.0
    for tick in ticks:
        place, half = x(tick.value), len(tick.label) * LETTER / 2
        yield element("line", x1=place, x2=place, y1=bottom, y2=bottom + 4, class_="grid")
        middle = min(max(place, half), WIDTH - half - LETTER)
        if middle - half >= free_from:
            yield label(middle, bottom + 17, tick.label, "middle")
            free_from = middle + half + LETTER


def line(frame: Frame, points: Sequence[Point], number: int) -> Html:
    """A curve in the manner of series `number`."""
    return element(
        "polyline",
        points=places((frame.x(point.x), frame.y(point.y)) for point in points),
        class_=f"line s{number % COLOURS}",
        fill="none",
        stroke_dasharray=DASHES[number % COLOURS],
    )


def bar(x: float, width: float, top: float, bottom: float, title: str, number: int) -> Html:
    """A bar in the chart's own units."""
    return element(
        "rect",
        element("title", title),
        x=x,
        y=top,
        width=max(0.5, width),
        height=max(0.0, bottom - top),
        class_=f"area s{number % COLOURS}",
    )


def legend(names: Sequence[str]) -> Html:
    """Which manner of line is which series."""
    swatches = [
        element(
            "svg",
            element(
                "line",
                class_=f"line s{number % COLOURS}",
                stroke_dasharray=DASHES[number % COLOURS],
                x1=0,
                x2=26,
                y1=5,
                y2=5,
            ),
            viewBox="0 0 26 10",
        )
        for number in range(len(names))
    ]
    return element(
        "ul", *(element("li", swatch, name) for swatch, name in zip(swatches, names, strict=True)), class_="legend"
    )


def figure(title: str, caption: str, *content: Child) -> Html:
    """A chart under its title and what it shows."""
    return element("figure", element("figcaption", element("b", title), caption), *content)


def cut(name: str, letters: int) -> str:
    """A name that fits."""
    return name if len(name) <= letters else name[: max(1, letters - 1)] + "…"


def thin(points: Sequence[Point], most: int = MAX_POINTS) -> Sequence[Point]:
    """At most `most` points: of every stretch its lowest and its highest, in their order."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / (most // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        kept += sorted({min(part, key=lambda point: point.y), max(part, key=lambda point: point.y)})
    return kept


def stack(*content: Child) -> Html:
    """Charts side by side, as many as fit."""
    return element("div", join(*content), class_="charts")
