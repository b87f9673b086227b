"""`device-sim run`: parse, call the library, print."""

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from device_sim.agent import DEFAULT_BUFFER_BYTES, Agent
from device_sim.ports.agent import PortAgent
from device_sim.ports.config import load as load_config
from device_sim.settings import agent_settings
from device_sim.sources import parse_source
from device_sim.stopping import stop_signals
from mtls.cli import narrate, path_option


@click.command("run")
@path_option(
    "--config", help="agent.toml: serial ports, commands, a spool on disk. With it no other option but --json."
)
@click.option("--id", "device_id", help="The device id in the certificate; also the client identifier.")
@path_option("--cert", help="The device's certificate and its issuing CA, PEM.")
@path_option("--key", help="The device's private key, PEM, mode 0600.")
@path_option("--ca", help="The CAs that the gateway's certificate must come from, PEM.")
@click.option("--broker", metavar="HOST[:PORT]", help="The gateway.  [default port: 8883]")
@click.option("--source", metavar="URL", help="sim://MODEL, serial:///dev/NAME, or - for standard input.")
@click.option("--topic", default="", help="Topic of the readings.  [default: devices/ID/telemetry/SOURCE]")
@click.option("--qos", type=click.IntRange(0, 1), default=1, show_default=True, help="QoS of the readings.")
@click.option("--count", type=click.IntRange(min=1), help="End after this many readings are acknowledged.")
@click.option(
    "--retry-forever", is_flag=True, help="Also go on after what only a person can cure, such as a revoked certificate."
)
@click.option(
    "--buffer",
    "buffer_bytes",
    type=click.IntRange(min=1024),
    default=DEFAULT_BUFFER_BYTES,
    show_default=True,
    help="Bytes kept in memory while offline; the oldest are dropped.",
)
@click.option("--renew-url", default="", metavar="URL", help="Renew the certificate at this gateway (EST, https).")
@click.option("--json", "as_json", is_flag=True, help="The numbers at the end as JSON.")
def run(config: Path | None, as_json: bool, **told: Any) -> None:
    """The agent between a device and the gateway: readings in, MQTT over mutual TLS out.

    \b
      device-sim run --id press-07 --broker gateway.local:8883 \\
          --cert press-07.crt --key press-07.key --ca ca.crt \\
          --source "sim://temperature?interval=1&seed=7"
      device-sim run --id press-07 --broker gateway.local:8883 \\
          --cert press-07.crt --key press-07.key --ca ca.crt \\
          --source "serial:///dev/ttyUSB0?baud=115200&accept=json"
      tail -f press.log | device-sim run --id press-07 --source - \\
          --cert press-07.crt --key press-07.key --ca ca.crt \\
          --broker gateway.local:8883 --topic devices/press-07/telemetry/log
      device-sim run --config agent.toml

    It reconnects by itself and keeps readings in memory meanwhile. What only a person can cure (an expired
    certificate, a refusal by the gateway) ends it with exit code 1, files that cannot be used with 78. Serial
    settings: baud, accept=text|json, dtr, rts. Models: temperature, humidity, pressure, counter, door. With --config
    readings are kept on disk, and only files that cannot be used end it: docs/agent.md.
    """
    check_told(click.get_current_context(), config)
    more: dict[str, object] = {}
    with stop_signals() as wake:
        if config is not None:
            agent = PortAgent(load_config(config), wake=wake, narrate=narrate)
            tally, more = agent.run(), {"ports": agent.counts}
        else:
            readings = parse_source(told.pop("source"))
            tally = Agent(agent_settings(readings, **told), readings, wake=wake, narrate=narrate).run()
    numbers = {"taken": tally.taken, "acknowledged": tally.acknowledged, "dropped": tally.dropped}
    words = ", ".join(f"{count} {name}" for name, count in numbers.items())
    click.echo(json.dumps(numbers | more) if as_json else words)


def check_told(context: click.Context, config: Path | None) -> None:
    """Either --config alone, or the five options that an agent with one source needs; a usage error otherwise."""
    named = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    options = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    beside = named - {"config", "as_json"}
    if config is not None and beside:
        raise click.UsageError(f"{options[min(beside)]} stands in agent.toml, not beside --config")
    missing = [name for name in ("device_id", "cert", "key", "ca", "broker", "source") if name not in named]
    if config is None and missing:
        raise click.UsageError(f"{options[missing[0]]} is missing; or give --config agent.toml")
