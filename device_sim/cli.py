"""`device-sim`: virtual devices, and the agent that brings a device's readings to the gateway.

Each command parses, calls the library and prints: results on standard output, narration on standard error, faults
as `error:` and `hint:` in one place. Exit codes: 0 done, 1 the answer is no, 2 usage, 78 configuration.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from device_sim.agent import DEFAULT_BUFFER_BYTES, Agent
from device_sim.attacks.cli import attack_command
from device_sim.faults import FAULTS, parse_delays, parse_faults
from device_sim.fleet.cli import fleet, test_ca
from device_sim.handshake import examine, question_of
from device_sim.handshake_bench import Comparison, compare
from device_sim.nordic_modem import NordicModem
from device_sim.ports.agent import PortAgent
from device_sim.ports.cli import doctor
from device_sim.ports.config import load as load_config
from device_sim.scenarios.cli import scenario
from device_sim.settings import agent_settings
from device_sim.simulated_board import SimulatedBoard, export_credentials, load_flash, open_state
from device_sim.simulation import Simulation
from device_sim.sources import parse_source
from device_sim.virtual_device import Terminal, run_modem
from device_sim.virtual_device import run as run_virtual_device
from mtls.cli import FaultGroup, narrate
from mtls.terminal import sanitise

Command = TypeVar("Command", bound=Callable[..., Any])

FAULT_LINES = "\n".join(
    f"  {name + ('=' + kind.takes if kind.takes else ''):26} {kind.effect}" for name, kind in FAULTS.items()
)


@contextlib.contextmanager
def stop_signals() -> Iterator[int]:
    """A descriptor that becomes readable on SIGINT, SIGTERM or SIGHUP, so that a loop ends in order."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {kind: signal.signal(kind, lambda *_: None) for kind in kinds}
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for kind, handler in before.items():
            signal.signal(kind, handler)
        os.close(reader)
        os.close(writer)


def path_option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """An option that is a path; what it names is judged by the library."""
    return click.option(*names, type=click.Path(path_type=Path), **settings)


@click.group(cls=FaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Virtual devices, and the agent between a device and the gateway.

    \b
      device-sim virtual-device --link /tmp/dev0 --state dev0.json
      device-sim run --id press-07 --cert press-07.crt --key press-07.key --ca ca.crt \\
                 --broker gateway.local:8883 --source "serial:///dev/ttyUSB0?baud=115200"
      device-sim handshake gateway.local:8883 --cert press-07.crt --key press-07.key --ca ca.crt
    """


@main.command("virtual-modem")
@path_option("--link", required=True, help="Where its serial port appears: a link to a pseudo-terminal.")
@click.option("--imei", default="352656100000001", show_default=True, metavar="DIGITS", help="Its 15 digits.")
@click.option("--shell", is_flag=True, help="It takes commands in a shell's form: at 'AT...'.")
@click.option("--no-jwt", is_flag=True, help="It does not know %JWT: it cannot prove its key.")
@click.option("--no-reset", is_flag=True, help="It does not know #XRESET.")
def virtual_modem(link: Path, imei: str, shell: bool, no_jwt: bool, no_reset: bool) -> None:
    """A Nordic modem on a pseudo-terminal: AT commands for credentials, which it keeps in memory.

    \b
      device-sim virtual-modem --link /tmp/modem0
      mqtt-provision burn --dialect nordic-at --port /tmp/modem0 --dir CA --id press-08
    """
    if not (len(imei) == 15 and imei.isascii() and imei.isdigit()):
        raise click.UsageError("--imei is not 15 digits")
    modem = NordicModem(imei, shell=shell, signs=not no_jwt, resets=not no_reset)
    with stop_signals() as wake:
        narrate(f"modem {imei} on {link}; Ctrl-C ends it")
        run_modem(modem, Terminal(link), wake)


@main.command("virtual-device", epilog=f"\b\nFaults:\n{FAULT_LINES}")
@path_option("--link", help="Where the device's serial port appears: a link to a pseudo-terminal, removed at the end.")
@path_option("--state", help="The simulated flash; made blank when it is not there. Without it: memory.")
@click.option("--serial", "hardware_serial", default="", help="Hardware serial of a new device.  [default: made up]")
@click.option("--fault", "faults", multiple=True, metavar="NAME[=VALUE]", help="Inject a fault; may be repeated.")
@click.option(
    "--delay", "delays", multiple=True, metavar="VERB=SECONDS", help="Time that a verb takes; RESET's is a boot."
)
@click.option("--net", is_flag=True, help="The device has a network of its own, and can be told to connect.")
@click.option("--seed", default=0, show_default=True, help="Seed of the line faults and the telemetry.")
@click.option(
    "--interval",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.01, 86400),
    help="Seconds between telemetry lines.",
)
@path_option(
    "--export-credentials", "export", help="SIMULATION ONLY: write key, certificate and CA out of --state, and end."
)
@click.option("--json", "as_json", is_flag=True, help="With --export-credentials: the result as JSON.")
def virtual_device(
    link: Path | None,
    state: Path | None,
    hardware_serial: str,
    faults: tuple[str, ...],
    delays: tuple[str, ...],
    net: bool,
    seed: int,
    interval: float,
    export: Path | None,
    as_json: bool,
) -> None:
    """A device on a pseudo-terminal: SPP/1, and telemetry lines once it is burned.

    \b
      device-sim virtual-device --link /tmp/dev0 --state dev0.json
      mqtt-provision burn --port /tmp/dev0 --dir CA --id press-07
      device-sim virtual-device --state dev0.json --export-credentials agent/
      device-sim virtual-device --link /tmp/bad --fault drop=0.1 --fault flip=0.05 --seed 3
      device-sim virtual-device --link /tmp/bad --fault power-loss-after=COMMIT

    The key of a simulated device lies in the --state file (0600) and can be taken out with --export-credentials for
    the agent that stands beside it. A real device never gives its key away, and SPP/1 has no way to ask for it.
    """
    if export is not None:
        print_credentials(state, export, as_json)
        return
    if link is None:
        raise click.UsageError("--link is missing: where should the device's serial port appear?")
    parsed = parse_faults(faults)
    flash = open_state(state, hardware_serial)
    simulation = Simulation(
        SimulatedBoard(flash, state, network=net),
        faults=parsed,
        seed=seed,
        interval_s=interval,
        delays=parse_delays(delays),
        now=time.monotonic(),
    )
    narrate(f"device {flash.hardware_serial} ({simulation.state}) on {link}; Ctrl-C ends it")
    with stop_signals() as wake:
        run_virtual_device(simulation, Terminal(link), wake, time.monotonic)


def print_credentials(state: Path | None, folder: Path, as_json: bool) -> None:
    """Write a virtual device's credentials and name the files."""
    if state is None:
        raise click.UsageError("--export-credentials needs --state: the simulated flash to read")
    files = export_credentials(load_flash(state), folder)
    named = {"id": files.id, "cert": str(files.cert_file), "key": str(files.key_file), "ca": str(files.ca_file)}
    narrate("warning: a private key was taken out of a SIMULATED device; a real one keeps it")
    click.echo(json.dumps(named) if as_json else "\n".join(f"{key}: {sanitise(text)}" for key, text in named.items()))


@main.command("run")
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
      device-sim run --id press-07 --cert press-07.crt --key press-07.key --ca ca.crt \\
                 --broker gateway.local:8883 --source "sim://temperature?interval=1&seed=7"
      device-sim run --id press-07 --cert press-07.crt --key press-07.key --ca ca.crt \\
                 --broker gateway.local:8883 --source "serial:///dev/ttyUSB0?baud=115200&accept=json"
      tail -f press.log | device-sim run --id press-07 --cert press-07.crt --key press-07.key \\
                 --ca ca.crt --broker gateway.local:8883 --source - --topic devices/press-07/telemetry/log
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


@main.command("handshake")
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


main.add_command(doctor)
main.add_command(fleet)
main.add_command(scenario)
main.add_command(test_ca)
main.add_command(attack_command)
