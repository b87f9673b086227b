"""`device-sim attack`: parse, call the library, print."""

import sys
import tempfile
from pathlib import Path

import click

from device_sim.attacks.report import ATTACKS, attack
from device_sim.targets.brokers import BROKERS, broker_named
from mtls.cli import narrate
from mtls.errors import Fault

PATIENCE_S = {"gateway": 4.0}  # its limits of time are set to 2 s on the site that is made here
FOREIGN_PATIENCE_S = 12.0  # beyond the limits that ours has by default


@click.command("attack")
@click.option("--target", type=click.Choice(list(BROKERS)), default="gateway", show_default=True, help="What to start.")
@click.option("--only", "traps", multiple=True, metavar="TRAP", help="Only these traps, e.g. S2; may be repeated.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write a JUnit XML report there.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def attack_command(target: str, traps: tuple[str, ...], junit: Path | None, as_json: bool) -> None:
    """Start a broker on a site of its own, attack it, and say what it let through.

    \b
      device-sim attack
      device-sim attack --target mosquitto --only S2 --only P1
      device-sim attack --target amqtt --json

    The same certificates, the same rules and the same conversations for every broker. Exit code 0: all were held.
    """
    chosen = [one for one in ATTACKS if not traps or one.trap in traps]
    if not chosen:
        raise Fault("no attack is of that trap", hint=f"one of: {', '.join(dict.fromkeys(a.trap for a in ATTACKS))}")
    with tempfile.TemporaryDirectory() as folder, broker_named(target, Path(folder)) as broker:
        report = attack(
            broker,
            broker.name,
            attacks=chosen,
            patience_s=PATIENCE_S.get(target, FOREIGN_PATIENCE_S),
            progress=lambda one: narrate(f"{one.trap} {one.name}") if sys.stderr.isatty() else None,
        )
    if junit is not None:
        junit.write_text(report.as_junit(), encoding="utf-8")
    click.echo(report.as_json() if as_json else report.as_text())
    click.get_current_context().exit(report.exit_code)
