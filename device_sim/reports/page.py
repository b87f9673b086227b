"""One page that stands alone: no script, no picture, nothing fetched, and a policy in it that forbids all of that.

The browser is told by a Content-Security-Policy to run nothing and to load nothing; the one style sheet is named by
its hash, so nothing that slipped into the page could bring another. A page can be opened from disk, attached to a
ticket or kept by a CI server.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from device_sim.reports.markup import Child, Html, element, join, text
from device_sim.reports.style import STYLE

STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
SECURITY_POLICY: Final = f"default-src 'none'; style-src 'sha256-{STYLE_HASH}'; base-uri 'none'; form-action 'none'"
MAX_ROWS: Final = 300  # of a table; what is left out is counted

_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta http-equiv="Content-Security-Policy" content="{policy}" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<meta name="referrer" content="no-referrer" />
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of one line of a table; `is_bad` sets the line apart."""

    cells: tuple[Child, ...]
    is_bad: bool = False


def page(title: str, *body: Child) -> str:
    """The whole document."""
    return _PAGE.format(policy=SECURITY_POLICY, title=text(title), style=STYLE, body="\n".join(map(text, body)))


def table(titles: Sequence[str], rows: Iterable[Row], *, numbers: Sequence[str] = (), stacks: bool = True) -> Html:
    """A table; the columns named in `numbers` are set right. On a phone its lines become cards, unless not `stacks`."""
    every = list(rows)
    kinds = ["number" if title in numbers else None for title in titles]
    head = element("tr", *(element("th", title, class_=kind) for title, kind in zip(titles, kinds, strict=True)))
    lines = [
        element(
            "tr",
            *(
                element("td", element("div", cell), class_=kind, data_label=title)
                for title, kind, cell in zip(titles, kinds, row.cells, strict=True)
            ),
            class_="bad-row" if row.is_bad else None,
        )
        for row in every[:MAX_ROWS]
    ]
    whole = element("table", element("thead", head), element("tbody", *lines), class_="stacks" if stacks else None)
    rest = len(every) - MAX_ROWS
    return join(
        element("div", whole, class_="wide"),
        element("p", f"and {rest} more that are not shown", class_="soft") if rest > 0 else "",
    )


def details(facts: Mapping[str, Child]) -> Html:
    """Names and values, one pair to a line."""
    return element("dl", *(join(element("dt", name), element("dd", value)) for name, value in facts.items()))


def section(title: str, *body: Child) -> Html:
    """A part of the page with its heading."""
    return element("section", element("h2", title), *body)


def verdict(is_good: bool, good: str, bad: str) -> Html:
    """A verdict in words; the colour only repeats it."""
    return element("span", good if is_good else bad, class_="good" if is_good else "bad")
