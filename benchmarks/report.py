"""Puts results into the documentation: tables between their markers in docs/performance.md, and the charts beside it.

    python -m benchmarks.report bench.json growth.json

Any number of files of `python -m benchmarks --json` and of `python -m benchmarks.growth --json`; those of one kind are
put together. What no file has is left as it is on the page.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.charts import Panel, curves, ratios
from benchmarks.growth import Curve
from benchmarks.laws import law_of
from benchmarks.results import Run, lines_of
from benchmarks.tables import rates, scores

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = "performance.md"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json")
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder of performance.md")
    options = parser.parse_args()
    found = [json.loads(path.read_text(encoding="utf-8")) for path in options.results]
    runs = [Run.from_json(values) for values in found if "rows" in values]
    grown = [values for values in found if "curves" in values]
    page = (options.docs / PAGE).read_text(encoding="utf-8")
    if runs:
        lines = lines_of(runs)
        (options.docs / "performance.svg").write_text(ratios(lines), encoding="utf-8")
        page = put(page, "machine", machine_words(runs))
        page = put(page, "scores", scores(lines))
        page = put(page, "rates", rates(lines))
    if grown:
        found_curves = [curve_from_json(values) for one in grown for values in one["curves"]]
        (options.docs / "growth.svg").write_text(drawn(found_curves), encoding="utf-8")
        page = put(page, "growth", "\n".join(f"- {one.law}" for one in found_curves))
    (options.docs / PAGE).write_text(page, encoding="utf-8")
    return 0


def put(page: str, name: str, text: str) -> str:
    """The page with this text between `<!-- NAME -->` and `<!-- /NAME -->`; ValueError when it has no such markers."""
    marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
    if not marked.search(page):
        raise ValueError(f"{PAGE} has no <!-- {name} --> and <!-- /{name} -->")
    return marked.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page)


def machine_words(runs: Sequence[Run]) -> str:
    """On what it was measured, and how often."""
    said = runs[-1].machine
    rounds = sum(len({row.round for row in run.rows}) for run in runs)
    parts = [said["cpu"], said["system"], said["python"], said["mosquitto"], said["amqtt"]]
    return f"Measured {said['date']}, {rounds} rounds, on {'; '.join(parts)}."


def curve_from_json(values: dict[str, Any]) -> Curve:
    points = tuple((number, value) for number, value in values["points"])
    return Curve(values["what"], values["unit"], values["items"], points, values["ratio"])


def drawn(found: Sequence[Curve]) -> str:
    """Every curve that has a course, as small charts."""
    panels = [
        Panel(f"{one.what}, by {one.items}", one.unit, one.points, law_of(one.points))
        for one in found
        if len(one.points) > 1
    ]
    return curves(panels, "How costs grow")


if __name__ == "__main__":
    sys.exit(main())
