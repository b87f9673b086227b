"""`mqtt-provision station run`: many ports at once.

The command parses, calls the library and prints: results on standard output, narration on standard error.
"""

import sys
from contextlib import AbstractContextManager
from pathlib import Path

import click

from mtls.cli import ListedGroup, narrate, path_option
from provisioning.options import CaAccess, baud_option, json_option, signing_options, station_option
from provisioning.station.one_signer import OneSigner
from provisioning.station.order import read_work_order
from provisioning.station.run import Settings, Station, parse_ports
from provisioning.station.scanner import label_lines
from provisioning.station.unit_cli import gateway_of, gateway_option
from provisioning.station.view import Show, json_view, live_view, plain_view


@click.group(cls=ListedGroup)
def station() -> None:
    """Many ports at once, after a work order.

    \b
    mqtt-provision station run --work-order wo.toml --dir CA \\
        --port left=/dev/serial/by-path/...
    """


@station.command("run")
@signing_options
@path_option(
    "--work-order", "order_file", required=True, metavar="FILE", help="What is to be made; see docs/station.md."
)
@click.option(
    "--port", "ports", multiple=True, required=True, metavar="[NAME=]PATH", help="A port to serve; repeatable."
)
@gateway_option
@click.option("--expect-label", metavar="SOURCE", help="Compare scanned labels before PASS: - or a scanner's port.")
@path_option("--trace", "trace_folder", metavar="DIR", help="Append every line of each port's wire to DIR/NAME.log.")
@baud_option
@station_option
@json_option
def station_run(
    access: CaAccess,
    order_file: Path,
    ports: tuple[str, ...],
    gateway: str | None,
    expect_label: str | None,
    trace_folder: Path | None,
    baud: int,
    station: str,
    json_: bool,
) -> None:
    """Burn every unit that is plugged into one of the ports, until the work order is complete.

    The first Ctrl-C lets the units in work finish, the second interrupts them; they are continued later. With --json
    every event is one line on standard output.

    \b
    mqtt-provision station run --work-order wo.toml --dir CA \\
        --port left=/dev/serial/by-path/... --port right=/dev/serial/by-path/...
    mqtt-provision station run --work-order wo.toml --dir CA \\
        --port /dev/serial/by-path/... --expect-label -
    """
    order = read_work_order(order_file)
    known = parse_ports(ports)
    settings = Settings(station, known, baud, access.accept_clock, trace_folder, gateway_of(gateway))
    labels = None if expect_label is None else label_lines(expect_label)
    with OneSigner(access.open) as signer, view(json_=json_) as show:
        ending = Station(settings, order, signer.folder, signer, show, labels).run()
    click.get_current_context().exit(ending.exit_code)


def view(*, json_: bool) -> AbstractContextManager[Show]:
    """A table on a terminal, lines elsewhere, JSON where it is asked for."""
    if json_:
        return json_view(click.echo)
    return live_view() if sys.stdout.isatty() else plain_view(click.echo, narrate)
