"""Markup out of elements: whatever is not markup yet is escaped, so that no caller can forget to.

Names, reasons and evidence in a report come from scenario files and from brokers. `element` takes text and elements
alike; text is sanitised (mtls.terminal) and escaped, only what `element` made itself goes in as it is. What it writes
is HTML and well-formed XML at once, so a test can read a page, and every chart in it, with an XML parser.
"""

import re
from collections.abc import Iterable
from html import escape

from mtls.terminal import sanitise

LONGEST_TEXT = 400  # of what came from outside, in characters; a sentence of evidence has 200
_SPACES = re.compile(r"\s+")


class Html(str):
    """Text that is markup already; made in this module only."""

    __slots__ = ()


Child = str | float


def text(value: Child) -> Html:
    """Markup as it is, everything else as text: one line, printable, of bounded length, escaped."""
    if isinstance(value, Html):
        return value
    if not isinstance(value, str):
        return Html(f"{value:g}")
    return Html(escape(sanitise(_SPACES.sub(" ", value), LONGEST_TEXT)))


def join(*children: Child) -> Html:
    """One after the other."""
    return Html("".join(text(child) for child in children))


def places(points: Iterable[tuple[float, float]]) -> Html:
    """Coordinates as SVG writes them; numbers need no escaping and have no limit of length."""
    return Html(" ".join(f"{x:.1f},{y:.1f}" for x, y in points))


def element(name: str, *children: Child, **attributes: str | float | None) -> Html:
    """`<name attribute="...">children</name>`; `class_` is class, `_` in an attribute is `-`, None leaves it out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def _value(value: str | float) -> str:
    return text(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
