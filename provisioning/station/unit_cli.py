"""`mqtt-provision burn`, `resume`, `doctor`, `dialects`: a unit at a time, and what is asked before the first.

Each command parses, calls the library and prints: results on standard output, narration on standard error.
"""

from contextlib import ExitStack
from pathlib import Path

import click

from mtls.checkup import exit_code
from mtls.cli import narrate, path_option
from provisioning import report
from provisioning.burning import UnitOrder
from provisioning.burning import burn as burn_unit
from provisioning.ca import issuable_id
from provisioning.ca_folder import CaFolder
from provisioning.dialects.nordic_at import MAX_TAG
from provisioning.dialects.table import BURNABLE, as_text, rows
from provisioning.doctor import examine
from provisioning.ledger import utc_now
from provisioning.options import (
    CaAccess,
    baud_option,
    dir_option,
    json_option,
    signing_options,
    station_option,
)
from provisioning.recovery import Settlement, settle
from provisioning.station.scanner import one_label
from provisioning.trace import Trace
from provisioning.unit_order import DEFAULT_SECURITY_TAG, Gateway
from provisioning.verdict import Verdict

gateway_option = click.option(
    "--gateway", metavar="HOST:PORT", help="Have the unit connect there and publish before it is sealed."
)
dialect_option = click.option("--dialect", type=click.Choice(sorted(BURNABLE)), default="spp1", show_default=True)
tag_option = click.option(
    "--security-tag",
    type=click.IntRange(0, MAX_TAG),
    default=DEFAULT_SECURITY_TAG,
    show_default=True,
    help="Where a modem keeps its credentials.",
)
accept_written_option = click.option(
    "--accept-written", is_flag=True, help="Accept units without reset or proof: WRITTEN, exit 0."
)


@click.command()
@signing_options
@click.option("--port", required=True, metavar="PORT", help="Serial port, best by /dev/serial/by-path; or a folder.")
@click.option("--id", "id_", metavar="ID", help="The device's id; by default its hardware serial, lower-cased.")
@dialect_option
@tag_option
@accept_written_option
@baud_option
@station_option
@path_option("--trace", "trace_file", metavar="FILE", help="Append every line of the wire to this private file.")
@gateway_option
@click.option("--expect-label", metavar="SOURCE", help="Compare the scanned label before PASS: - or a scanner's port.")
@json_option
def burn(
    access: CaAccess,
    port: str,
    id_: str | None,
    dialect: str,
    security_tag: int,
    accept_written: bool,
    baud: int,
    station: str,
    trace_file: Path | None,
    gateway: str | None,
    expect_label: str | None,
    json_: bool,
) -> None:
    """Burn a certificate into the device on a port: PASS, or FAIL with step and reason.

    A unit whose device cannot be reset or cannot prove its key afterwards is WRITTEN at best, and that only with
    --accept-written; `mqtt-provision dialects` says which.

    \b
    mqtt-provision burn --port /dev/serial/by-path/... --dir CA --id press-07
    mqtt-provision burn --port /dev/ttyUSB0 --dir CA --trace burn.log --json
    mqtt-provision burn --port /dev/ttyACM0 --dir CA --id press-08 \\
        --dialect nordic-at
    mqtt-provision burn --port /media/usb --dir CA --id press-10 \\
        --dialect file --accept-written
    """
    device_id = None if id_ is None else str(issuable_id(id_))
    label = None if expect_label is None else one_label(expect_label, narrate)
    order = UnitOrder(
        device_id=device_id,
        accept_clock=access.accept_clock,
        label=label,
        gateway=gateway_of(gateway),
        accept_written=accept_written,
        security_tag=security_tag,
    )
    with access.open() as authority, ExitStack() as opened:
        authority.unlock()  # a wrong passphrase shows before a device is touched
        opened.enter_context(authority.folder.burning())
        trace = opened.enter_context(Trace() if trace_file is None else Trace.open(trace_file))
        line = opened.enter_context(BURNABLE[dialect].open_port(port, baud))
        verdict = burn_unit(
            line,
            authority,
            authority.ledger,
            station=station,
            dialect=BURNABLE[dialect],
            order=order,
            trace=trace,
            progress=lambda step: narrate(f"{port}: {step}"),
        )
    show_verdict(verdict, json_=json_)
    click.get_current_context().exit(verdict.exit_code)


def gateway_of(text: str | None) -> Gateway | None:
    """The gateway that was named, if one was."""
    return None if text is None else Gateway.parse(text)


def show_verdict(verdict: Verdict, *, json_: bool) -> None:
    """One line, or all of it."""
    click.echo(report.as_json(verdict.as_row()) if json_ else str(verdict))
    if verdict.hint:
        narrate(f"hint: {verdict.hint}")


@click.command()
@signing_options
@click.option(
    "--port", "ports", multiple=True, metavar="PORT", help="Where to look for unfinished devices; repeatable."
)
@dialect_option
@tag_option
@accept_written_option
@click.option("--set-aside-all", is_flag=True, help="Look at no port: quarantine every unfinished unit.")
@click.option("--keep-absent", is_flag=True, help="Leave units open whose device is at none of the ports.")
@baud_option
@station_option
@json_option
def resume(
    access: CaAccess,
    ports: tuple[str, ...],
    dialect: str,
    security_tag: int,
    accept_written: bool,
    set_aside_all: bool,
    keep_absent: bool,
    baud: int,
    station: str,
    json_: bool,
) -> None:
    """Settle what a crash or a power cut left: finish the units at the ports, quarantine the rest.

    \b
    mqtt-provision resume --dir CA --port /dev/serial/by-path/... \\
        --port /dev/serial/by-path/...
    mqtt-provision resume --dir CA --set-aside-all
    """
    if bool(ports) == set_aside_all or (set_aside_all and keep_absent):
        raise click.UsageError("name the ports with --port, or say --set-aside-all")
    with access.open() as authority:
        authority.unlock()
        settlement = settle(
            authority.folder,
            authority,
            authority.ledger,
            ports,
            lambda path: BURNABLE[dialect].open_port(path, baud),
            station=station,
            dialect=BURNABLE[dialect],
            order=UnitOrder(accept_clock=access.accept_clock, accept_written=accept_written, security_tag=security_tag),
            keep_absent=keep_absent,
        )
    show_settlement(settlement, json_=json_)
    click.get_current_context().exit(settlement.exit_code)


def show_settlement(settlement: Settlement, *, json_: bool) -> None:
    """What became of each unit that was open."""
    if json_:
        click.echo(report.as_json(settlement.as_row()))
        return
    for line in settlement.lines():
        click.echo(line)
    for sentence in settlement.unasked:
        narrate(f"warning: {sentence}")


@click.command()
@dir_option
@click.option("--port", "ports", multiple=True, metavar="PORT", help="A port that must be there; repeatable.")
@json_option
def doctor(folder: Path, ports: tuple[str, ...], json_: bool) -> None:
    """Say whether this station may begin its shift; exit 1 when something would stop it.

    \b
    mqtt-provision doctor --dir CA --port /dev/serial/by-path/...
    """
    checks = examine(CaFolder(folder), ports, utc_now())
    click.echo(report.as_json([check.as_row() for check in checks]) if json_ else "\n".join(map(str, checks)))
    click.get_current_context().exit(exit_code(checks))


@click.command()
@json_option
def dialects(json_: bool) -> None:
    """Say what each kind of device can do; what it cannot do, no verdict claims.

    \b
    mqtt-provision dialects
    mqtt-provision dialects --json
    """
    click.echo(report.as_json(rows()) if json_ else as_text())
