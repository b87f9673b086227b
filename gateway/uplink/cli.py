"""`mqtt-gateway spool`: what waits for the upstream, and what a cut would cost."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.options import ask, json_option, live, show
from gateway.report import pairs
from gateway.uplink import shown
from mtls.cli import ListedGroup


@click.group(cls=ListedGroup)
def spool() -> None:
    """What waits here for the upstream.

    \b
    mqtt-gateway spool status
    mqtt-gateway spool estimate --hours 6
    """


@spool.command()
@live
@json_option
def status(socket_file: Path | None, config: Path | None, json_: bool) -> None:
    """Show the uplink: connection, spool, backlog, losses; exit 1 when there is none.

    \b
    mqtt-gateway spool status
    mqtt-gateway spool status --json | jq .replay_eta_s
    """
    row = ask(socket_file, config, "status")["uplink"]
    show(row, json_, lambda found: pairs(shown.status_rows(found)) if found else "there is no [uplink]")
    if row is None:
        click.get_current_context().exit(1)


@spool.command("estimate")
@click.option(
    "--hours", type=click.FloatRange(0, shown.MAX_HOURS), required=True, metavar="H", help="Without upstream."
)
@live
@json_option
def estimate_(hours: float, socket_file: Path | None, config: Path | None, json_: bool) -> None:
    """Say what a cut of H hours would cost by the traffic of now; exit 1 when it does not fit.

    \b
    mqtt-gateway spool estimate --hours 6
    mqtt-gateway spool estimate --hours 72 --json
    """
    row = ask(socket_file, config, "spool_estimate", hours=hours)
    show(row, json_, lambda found: pairs(shown.estimate_rows(found)))
    if not row["fits"]:
        click.get_current_context().exit(1)
