"""`device-sim attack`: parse, call the library, print."""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from device_sim.attacks.ground import Attack
from device_sim.attacks.html import as_html
from device_sim.attacks.report import ATTACKS, AttackReport, attack, patience_with
from device_sim.reports.junit import document
from device_sim.stopping import interruptible
from device_sim.targets.brokers import BROKERS, broker_named
from mtls.cli import narrate
from mtls.errors import Fault

PATH = click.Path(path_type=Path)


@click.command("attack")
@click.option(
    "--target",
    "targets",
    type=click.Choice(list(BROKERS)),
    multiple=True,
    default=("gateway",),
    show_default=True,
    help="What to start; may be repeated.",
)
@click.option("--only", "traps", multiple=True, metavar="TRAP", help="Only these traps, e.g. S2; may be repeated.")
@click.option("--html", type=PATH, help="Write a page there, with a column for each broker.")
@click.option("--junit", type=PATH, help="Write a JUnit XML report there.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON; a list when there are several targets.")
def attack_command(
    targets: tuple[str, ...], traps: tuple[str, ...], html: Path | None, junit: Path | None, as_json: bool
) -> None:
    """Start a broker on a site of its own, attack it, and say what it let through.

    \b
      device-sim attack
      device-sim attack --target mosquitto --only S2 --only P1
      device-sim attack --target amqtt --json
      device-sim attack --target gateway --target mosquitto \\
          --target amqtt --html compared.html

    The same certificates, the same rules and the same conversations for every broker. Exit code 0: all were held.
    """
    known = dict.fromkeys(one.trap for one in ATTACKS)
    if unknown := [trap for trap in traps if trap not in known]:
        raise Fault(f"no attack is of the trap {unknown[0]!a}", hint=f"one of: {', '.join(known)}")
    chosen = [one for one in ATTACKS if not traps or one.trap in traps]
    reports = [attack_one(target, chosen) for target in dict.fromkeys(targets)]
    if html is not None:
        html.write_text(as_html(reports), encoding="utf-8")
    if junit is not None:
        junit.write_text(document([report.as_suite() for report in reports]), encoding="utf-8")
    click.echo(json_of(reports) if as_json else "\n\n".join(report.as_text() for report in reports))
    click.get_current_context().exit(max(report.exit_code for report in reports))


def attack_one(target: str, attacks: Sequence[Attack]) -> AttackReport:
    """Start this broker, attack it and end it."""
    with interruptible(), tempfile.TemporaryDirectory() as folder, broker_named(target, Path(folder)) as broker:
        return attack(
            broker,
            broker.name,
            attacks=attacks,
            patience_s=patience_with(target),
            progress=lambda one: narrate(f"{target}: {one.trap} {one.name}") if sys.stderr.isatty() else None,
        )


def json_of(reports: Sequence[AttackReport]) -> str:
    """One report as itself, several as a list."""
    rows = [report.as_row() for report in reports]
    return json.dumps(rows[0] if len(rows) == 1 else rows, indent=1)
