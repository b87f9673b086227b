"""How a person follows the station: a live table on a terminal, plain lines elsewhere, or JSON lines for programs.

Results go to standard output: one line per verdict, or every event as JSON. What a device said is made safe before it
is shown; rich is told not to read markup or links out of it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mtls.terminal import sanitise
from provisioning.station import events
from provisioning.station.events import Event, Tally

Show = Callable[[Event], None]
Print = Callable[[str], None]
MAX_VERDICT_CHARS = 100
_COLOURS = {"burning": "yellow", "waiting": "dim", "absent": "dim", "done": "bold"}


@contextmanager
def json_view(out: Print) -> Iterator[Show]:
    """Every event as one line of JSON; ticks are none."""
    yield lambda event: None if event.kind == "tick" else out(event.as_json())


@contextmanager
def plain_view(out: Print, narrate: Print) -> Iterator[Show]:
    """A line per verdict, and beside it what happens to the ports; the totals at the end."""
    tally = Tally(time.monotonic())

    def show(event: Event) -> None:
        tally.take(event)
        facts = event.facts
        if event.kind == events.VERDICT and facts["outcome"] is not None:
            out(f"{event.port}: {facts['text']}")
            if facts["hint"]:
                narrate(f"{event.port}: hint: {facts['hint']}")
        elif event.kind in (events.PORT, events.LINE):
            narrate(f"{event.port or 'station'}: {facts['state']}")
        elif event.kind == events.LABEL:
            narrate(f"{event.port or 'station'}: {facts['detail']}")
        elif event.kind == events.END:
            narrate(f"{facts['why']}; {totals_line(tally, event.at)}")

    yield show


@contextmanager
def live_view(console: Console | None = None) -> Iterator[Show]:
    """A table that is drawn again with every event; what it last showed stays when it ends."""
    tally = Tally(time.monotonic())
    console = console or Console()
    with Live(table_of(tally, time.monotonic()), console=console, refresh_per_second=8) as live:

        def show(event: Event) -> None:
            tally.take(event)
            if event.kind == events.VERDICT and not event.facts["passed"] and event.facts["outcome"] is not None:
                live.console.print(Text(f"{event.port}: {event.facts['text']}", style="red"))
            elif event.kind == events.LABEL:
                live.console.print(Text(f"{event.port} {event.facts['detail']}".strip(), style="magenta"))
            elif event.kind == events.END:
                live.console.print(Text(event.facts["why"], style="bold"))
            live.update(table_of(tally, event.at))

        yield show


def table_of(tally: Tally, now: float) -> Table:
    """One row per port, the totals below."""
    table = Table(caption=totals_line(tally, now), expand=True)
    for heading in ("port", "state", "unit", "step", "last verdict"):
        table.add_column(heading)
    for name, view in tally.ports.items():
        step = f"{view.step} {now - view.step_since:.1f} s" if view.step else ""
        verdict = Text(
            sanitise(view.verdict, MAX_VERDICT_CHARS), style="green" if view.verdict.startswith("PASS") else "red"
        )
        state = Text(view.state, style=_COLOURS.get(view.state, ""))
        table.add_row(Text(name), state, Text(sanitise(view.unit, 32)), step, verdict)
    return table


def totals_line(tally: Tally, now: float) -> str:
    """Totals, yield and speed in one line."""
    slowest = sorted(tally.step_means().items(), key=lambda item: -item[1])[:3]
    means = ", ".join(f"{step} {mean:.2f} s" for step, mean in slowest)
    counts = tally.outcomes
    written = f"{counts['delivered']} written, " if counts["delivered"] else ""
    return (
        f"{counts['passed']} passed, {written}{counts['failed']} failed, "
        f"{counts['quarantined']} quarantined; first-pass yield "
        f"{tally.first_pass_yield:.0%}; {tally.units_per_hour(now):.0f} units/h"
        + (f"; slowest: {means}" if means else "")
    )
