"""Results as Markdown tables."""

from collections.abc import Iterable, Sequence

from benchmarks.results import Line

MARKS = {"broker": "", "generator": "\\*", "neither": "†"}
NOTES = {
    "generator": "\\* the generator was the limit: with more cores for it the rate would be higher",
    "neither": "† neither had its core to the end: something else ran on the machine, or both waited for each other",
}


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, aligned in the source too; all columns but the first are figures."""
    cells = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) if not at else cell.rjust(width) for at, (cell, width) in enumerate(pairs))
        + " |"
        for pairs in (list(zip(row, widths, strict=True)) for row in cells)
    ]
    lines.insert(
        1, "|" + "|".join("-" * (w + 2) if not at else "-" * (w + 1) + ":" for at, w in enumerate(widths)) + "|"
    )
    return "\n".join(lines)


def scores(lines: Sequence[Line]) -> str:
    """What each broker does for a second of its CPU time, the ratios, and the goals."""
    names = list(dict.fromkeys(name for line in lines for name in line.figures))
    heads = ["work", *names, "ratio", "goal", "never below", "result", "x amqtt"]
    rows = []
    for line in lines:
        figures = [_figure(line, name) for name in names]
        ratio = f"{line.ratio:.2f}" if line.ratio is not None else "-"
        faster = f"{line.to_amqtt:.1f}" if line.to_amqtt and line.work.higher_is_better else "-"
        goal, floor = (
            f"{bound:g}{' KiB' if line.work.kind == 'idle' else ''}" for bound in (line.work.goal, line.work.floor)
        )
        rows.append([line.work.name, *figures, ratio, goal, floor, line.verdict or "-", faster])
    seen = {limit for line in lines for limit in line.limits.values()}
    return "\n\n".join([table(heads, rows), *(note for limit, note in NOTES.items() if limit in seen)])


def rates(lines: Sequence[Line]) -> str:
    """What came through in a second, by the wall clock."""
    counted = [line for line in lines if line.work.higher_is_better]
    names = list(dict.fromkeys(name for line in counted for name in line.rates))
    rows = [
        [line.work.name, *(f"{line.rates[name]:,.0f}" if name in line.rates else "-" for name in names)]
        for line in counted
    ]
    return table(["per second of wall time", *names], rows)


def _figure(line: Line, name: str) -> str:
    if name not in line.figures:
        return "-"
    value = line.figures[name]
    text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return text + MARKS[line.limits[name]]
