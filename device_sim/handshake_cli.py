"""`device-sim handshake`: parse, call the library, print."""

import json
import sys
from datetime import UTC, datetime
from typing import Any

import click

from device_sim.handshake import examine, question_of
from device_sim.handshake_bench import Comparison, compare
from mtls.cli import path_option


@click.command("handshake")
@click.argument("where", metavar="[HOST:PORT]", required=False)
@path_option("--cert", help="The device's certificate and its issuing CA, PEM. Without it: none is shown.")
@path_option("--key", help="The device's private key, PEM, mode 0600.")
@path_option("--ca", help="The CAs that the server's certificate must come from, PEM.  [default: the system's]")
@click.option("--server-name", default="", metavar="NAME", help="The name to ask for and to verify.  [default: HOST]")
@click.option("--tls", type=click.Choice(["1.2", "1.3"]), help="Offer this version only.  [default: both]")
@click.option("--bench", is_flag=True, help="Measure mutual against plain TLS on this machine instead; no HOST:PORT.")
@click.option(
    "--seconds", default=10.0, show_default=True, type=click.FloatRange(0.1, 3600), help="With --bench: how long."
)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def handshake(where: str | None, bench: bool, seconds: float, tls: str | None, as_json: bool, **told: Any) -> None:
    """Make one TLS handshake and explain it: each step, and when it fails, what is at fault.

    \b
      device-sim handshake gateway.local:8883 --ca ca.crt --cert press-07.crt \\
                 --key press-07.key
      device-sim handshake 192.0.2.7:8883 --ca ca.crt --server-name gateway.local
      device-sim handshake gateway.local --ca ca.crt --tls 1.2 --json
      device-sim handshake --bench --seconds 20

    With TLS 1.3 the server judges our certificate after we are done, so the command listens for an alert, says
    goodbye, and waits for the answer. Nothing of MQTT is sent. Exit code 0: handshake and acceptance are fine.
    """
    if bench == bool(where):
        raise click.UsageError("give HOST:PORT, or --bench")
    try:
        question = question_of(where, tls=tls or "", **told) if where else None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    report = examine(question, datetime.now(UTC)) if question is not None else run_bench(seconds)
    click.echo(json.dumps(report.as_row()) if as_json else report.as_text())
    click.get_current_context().exit(report.exit_code)


def run_bench(seconds: float) -> Comparison:
    """Measure, with a progress bar when somebody is watching."""
    if not sys.stderr.isatty():
        return compare(seconds)
    with click.progressbar(length=1000, label="shaking hands", file=sys.stderr) as bar:
        return compare(seconds, lambda part: bar.update(int(part * 1000) - bar.pos))
