"""`mqtt-gateway torture`: parse, torture, print."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import sys
import tempfile
from pathlib import Path

import click

from gateway.torture.harness import Plan, Torture
from gateway.torture.verdict import as_text, passed, verdict


@click.command()
@click.option("--rounds", type=click.IntRange(1, 100_000), default=20, show_default=True, metavar="N", help="Kills.")
@click.option("--seed", type=int, metavar="S", help="Repeats the moments of an earlier run; default: a new one.")
@click.option("--publishers", type=click.IntRange(1, 1000), default=6, show_default=True, metavar="N")
@click.option("--subscribers", type=click.IntRange(1, 1000), default=3, show_default=True, metavar="N")
@click.option("--command", metavar="C", help="Another broker's start command; it sees PORT, DIR, CA, CERT and KEY.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), metavar="D", help="Keep everything in this folder.")
@click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")
def torture(
    rounds: int,
    seed: int | None,
    publishers: int,
    subscribers: int,
    command: str | None,
    folder: Path | None,
    json_: bool,
) -> None:
    """Kill a broker again and again: what it acknowledged must still be there.

    \b
    mqtt-gateway torture --rounds 20
    mqtt-gateway torture --rounds 200 --seed 7 --json
    mqtt-gateway torture --command 'sh ./start-mosquitto.sh'

    Exit code 1 when anything acknowledged was lost, arrived out of order per
    device, or arrived twice although QoS 2 was asked for from end to end.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a lost connection is no news here
    plan = Plan(rounds, secrets.randbelow(10**6) if seed is None else seed, publishers, subscribers)
    row = _run(plan, folder, command)
    click.echo(json.dumps(row, indent=2) if json_ else as_text(row))
    if not passed(row):
        sys.exit(1)


def _run(plan: Plan, folder: Path | None, command: str | None) -> dict[str, object]:
    """The torture in its folder, a temporary one unless one is named."""

    def told(done: int, acknowledged: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\rround {done} of {plan.rounds}, {acknowledged} acknowledged", nl=False, err=True)

    with tempfile.TemporaryDirectory(prefix="mqtt-torture-", dir=None) as temporary:
        where = folder or Path(temporary)
        where.mkdir(parents=True, exist_ok=True)
        tally = asyncio.run(Torture(plan, where, command, told).run())
    if sys.stderr.isatty():
        click.echo(err=True)
    return verdict(plan, tally, command or "mqtt-gateway")
