"""SVG drawn from figures: bars of ratios with the goal line, and small curves beside one another.

Written by hand, because a chart of a handful of bars needs no library. Light background, black text, no script.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.results import Line

FONT = "font-family='DejaVu Sans, Verdana, sans-serif'"
OURS, THEIRS, INK, FAINT, GOAL = "#1f6fb2", "#b8bec6", "#1d2430", "#dfe3e8", "#c2410c"
WIDTH = 860


def _text(
    x: float, y: float, words: str, *, size: int = 13, anchor: str = "start", fill: str = INK, more: str = ""
) -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}'"
    return f"<text {place} fill='{fill}' {more}>{escape(words)}</text>"


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' width='{WIDTH}'"
        f" height='{height:.0f}' {FONT} role='img'>\n<title>{escape(title)}</title>\n"
        f"<rect width='100%' height='100%' fill='#ffffff'/>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def ratios(lines: Sequence[Line]) -> str:
    """The gateway and stock amqtt as multiples of mosquitto; longer is better, 1.0 is mosquitto."""
    drawn = [line for line in lines if line.work.higher_is_better and line.ratio is not None]
    left, right, top, step = 270.0, 60.0, 92.0, 46.0
    most = max([1.5, *(line.ratio or 0.0 for line in drawn)]) * 1.05
    bottom = top + step * len(drawn)

    def at(ratio: float) -> float:
        return left + (WIDTH - left - right) * ratio / most

    parts = [
        _text(24, 32, "Work per second of broker CPU, as a multiple of mosquitto", size=18, more="font-weight='bold'"),
        _text(24, 54, "mutual TLS 1.3, P-256, 100-byte payload; medians of ratios formed inside one round", size=12),
    ]
    for tick in range(math.floor(most * 2) + 1):
        x = at(tick / 2)
        parts.append(f"<line x1='{x:.1f}' y1='{top - 8}' x2='{x:.1f}' y2='{bottom}' stroke='{FAINT}'/>")
        parts.append(_text(x, bottom + 18, f"{tick / 2:g}", size=12, anchor="middle"))
    for number, line in enumerate(drawn):
        parts += _bars(line, top + step * number, at)
    x = at(1.0)
    parts.append(f"<line x1='{x:.1f}' y1='{top - 12}' x2='{x:.1f}' y2='{bottom}' stroke='{GOAL}' stroke-width='2'/>")
    parts.append(_text(x, top - 18, "1.0 = mosquitto", size=12, anchor="middle", fill=GOAL))
    parts += [
        f"<rect x='24' y='{bottom + 34}' width='14' height='14' fill='{OURS}'/>",
        _text(44, bottom + 46, "this gateway, with its whole policy, audit and metrics"),
        f"<rect x='430' y='{bottom + 34}' width='14' height='14' fill='{THEIRS}'/>",
        _text(450, bottom + 46, "stock amqtt, without any rules"),
        f"<line x1='690' y1='{bottom + 33}' x2='690' y2='{bottom + 49}' stroke='{INK}' stroke-width='2'/>",
        _text(700, bottom + 46, "goal of the work"),
    ]
    return _svg(bottom + 66, parts, "The gateway and stock amqtt as multiples of mosquitto")


def _bars(line: Line, y: float, at: Callable[[float], float]) -> list[str]:
    ours = line.ratio or 0.0
    parts = [
        _text(at(0) - 12, y + 18, line.work.name, anchor="end"),
        f"<rect x='{at(0):.1f}' y='{y}' width='{at(ours) - at(0):.1f}' height='20' fill='{OURS}'/>",
        _text(
            max(at(ours), at(0) + 40) - 6,
            y + 15,
            f"{ours:.2f}",
            anchor="end",
            fill="#ffffff",
            more="font-weight='bold'",
        ),
    ]
    if line.to_amqtt:
        theirs = ours / line.to_amqtt
        wide = max(1.5, at(theirs) - at(0))
        parts.append(f"<rect x='{at(0):.1f}' y='{y + 22}' width='{wide:.1f}' height='9' fill='{THEIRS}'/>")
        parts.append(_text(at(theirs) + 6, y + 31, f"{theirs:.2f}", size=11))
    goal = at(line.work.goal)  # drawn past the bar on both sides, so that it shows on it too
    parts.append(f"<line x1='{goal:.1f}' y1='{y - 5}' x2='{goal:.1f}' y2='{y + 25}' stroke='{INK}' stroke-width='2'/>")
    return parts


@dataclass(frozen=True, slots=True)
class Panel:
    """One small chart: points of (number, value), both from 0 or 1 on, the numbers on a logarithmic axis."""

    title: str
    unit: str
    points: Sequence[tuple[float, float]]
    law: str


def curves(panels: Sequence[Panel], title: str) -> str:
    """Small charts beside one another, two in a row, each with its law below."""
    parts = [_text(24, 32, title, size=18, more="font-weight='bold'")]
    wide, high = WIDTH / 2, 250.0
    for number, panel in enumerate(panels):
        parts += _panel(panel, wide * (number % 2), 50 + high * (number // 2), wide, high)
    return _svg(70 + high * math.ceil(len(panels) / 2), parts, title)


def _panel(panel: Panel, x: float, y: float, wide: float, high: float) -> list[str]:
    left, right, top, bottom = x + 70, x + wide - 34, y + 46, y + high - 62
    low, far = (math.log10(f(n for n, _ in panel.points)) for f in (min, max))
    most = max(value for _, value in panel.points) * 1.25 or 1.0

    def place(number: float, value: float) -> tuple[float, float]:
        share = (math.log10(number) - low) / ((far - low) or 1.0)
        return left + (right - left) * share, bottom - (bottom - top) * value / most

    parts = [
        _text(x + 24, y + 22, panel.title, size=14, more="font-weight='bold'"),
        _text(x + 24, y + 38, panel.unit, size=11),
    ]
    for part in (0, 0.5, 1):
        level = bottom - (bottom - top) * part
        parts.append(f"<line x1='{left:.1f}' y1='{level:.1f}' x2='{right:.1f}' y2='{level:.1f}' stroke='{FAINT}'/>")
        parts.append(_text(left - 8, level + 4, f"{most * part:.3g}", size=11, anchor="end"))
    spots = [place(number, value) for number, value in panel.points]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in spots)
    parts.append(f"<polyline points='{path}' fill='none' stroke='{OURS}' stroke-width='2.5'/>")
    for (px, py), (number, value) in zip(spots, panel.points, strict=True):
        parts.append(f"<circle cx='{px:.1f}' cy='{py:.1f}' r='4' fill='{OURS}'/>")
        parts.append(_text(px, py - 9, f"{value:.3g}", size=11, anchor="middle"))
        parts.append(_text(px, bottom + 16, f"{number:,.0f}", size=11, anchor="middle"))
    parts.append(_text(x + 24, bottom + 40, panel.law, size=12))
    return parts
