"""`device-sim doctor`: parse, call the library, print."""

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from device_sim.credentials import Files
from device_sim.ports.config import load
from device_sim.ports.doctor import Subject, as_text, diagnose
from device_sim.settings import parse_endpoint
from mtls.checkup import exit_code

PATH = click.Path(path_type=Path)


@click.command("doctor")
@click.option("--config", type=PATH, help="agent.toml. With it no other option but --listen and --json.")
@click.option("--broker", metavar="HOST[:PORT]", help="The gateway.  [default port: 8883]")
@click.option("--cert", type=PATH, help="The device's certificate and its issuing CA, PEM.")
@click.option("--key", type=PATH, help="The device's private key, PEM, mode 0600.")
@click.option("--ca", type=PATH, help="The CAs that the gateway's certificate must come from, PEM.")
@click.option(
    "--listen",
    "listen_s",
    type=click.FloatRange(0, 3600),
    default=0.0,
    metavar="SECONDS",
    help="Open each free port and wait so long for a frame; opening resets many boards.",
)
@click.option("--json", "as_json", is_flag=True, help="The checks as JSON.")
def doctor(
    config: Path | None,
    broker: str | None,
    cert: Path | None,
    key: Path | None,
    ca: Path | None,
    listen_s: float,
    as_json: bool,
) -> None:
    """Say what is wrong beside a device: clock, files, spool, ports, gateway; a line each.

    \b
      device-sim doctor --config agent.toml
      device-sim doctor --config agent.toml --listen 10
      device-sim doctor --broker gateway.local:8883 --cert press-07.crt \\
                 --key press-07.key --ca ca.crt --json

    It connects to the gateway as the device. Beside an agent that runs with this agent.toml it does not; one that was
    started in another way loses its connection, and makes a new one. Exit code 1: a check has failed.
    """
    checks = diagnose(subject_of(config, broker, (cert, key, ca), listen_s), datetime.now(UTC))
    click.echo(json.dumps([check.as_row() for check in checks]) if as_json else as_text(checks))
    click.get_current_context().exit(exit_code(checks))


def subject_of(
    config: Path | None, broker: str | None, files: tuple[Path | None, Path | None, Path | None], listen_s: float
) -> Subject:
    """Either --config, or the four options that name one device and its gateway; a usage error otherwise."""
    cert, key, ca = files
    if config is not None:
        if broker is not None or any(path is not None for path in files):
            raise click.UsageError("gateway and files stand in agent.toml, not beside --config")
        return Subject.of(load(config), listen_s)
    if broker is None or cert is None or key is None or ca is None:
        raise click.UsageError("give --config agent.toml, or --broker, --cert, --key and --ca")
    if listen_s:
        raise click.UsageError("--listen needs --config: the ports stand there")
    return Subject(Files(cert, key, ca), parse_endpoint(broker, str(ca)))
