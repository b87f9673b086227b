"""`device-sim virtual-device`, `virtual-modem` and `virtual-folder`: parse, call the library, print."""

import json
import time
from pathlib import Path

import click

from device_sim.exchange_folder import boot
from device_sim.faults import FAULTS, parse_delays, parse_faults
from device_sim.nordic_modem import NordicModem
from device_sim.simulated_board import SimulatedBoard, export_credentials, load_flash, open_state
from device_sim.simulation import Simulation
from device_sim.stopping import stop_signals
from device_sim.virtual_device import Terminal, run_modem
from device_sim.virtual_device import run as run_virtual_device
from mtls.cli import defined, narrate, path_option
from mtls.terminal import sanitise

FAULT_LINES = defined((name + ("=" + kind.takes if kind.takes else ""), kind.effect) for name, kind in FAULTS.items())


@click.command("virtual-modem")
@path_option("--link", required=True, help="Where its serial port appears: a link to a pseudo-terminal.")
@click.option("--imei", default="352656100000001", show_default=True, metavar="DIGITS", help="Its 15 digits.")
@click.option("--shell", is_flag=True, help="It takes commands in a shell's form: at 'AT...'.")
@click.option("--no-jwt", is_flag=True, help="It does not know %JWT: it cannot prove its key.")
@click.option("--no-reset", is_flag=True, help="It does not know #XRESET.")
def virtual_modem(link: Path, imei: str, shell: bool, no_jwt: bool, no_reset: bool) -> None:
    """A Nordic modem on a pseudo-terminal: AT commands for credentials, which it keeps in memory.

    \b
      device-sim virtual-modem --link /tmp/modem0
      mqtt-provision burn --dialect nordic-at --port /tmp/modem0 \\
          --dir CA --id press-08
    """
    if not (len(imei) == 15 and imei.isascii() and imei.isdigit()):
        raise click.UsageError("--imei is not 15 digits")
    modem = NordicModem(imei, shell=shell, signs=not no_jwt, resets=not no_reset)
    with stop_signals() as wake:
        narrate(f"modem {imei} on {link}; Ctrl-C ends it")
        run_modem(modem, Terminal(link), wake)


@click.command("virtual-folder")
@click.argument("folder", type=click.Path(path_type=Path))
@path_option("--key", "key_file", required=True, help="The device's key; made when it is not there.")
def virtual_folder(folder: Path, key_file: Path) -> None:
    """A device that exchanges files in a folder: it lays its CSR there, and judges the certificate that comes.

    Each call is one boot of it.

    \b
      device-sim virtual-folder exchange --key press-10.key
      mqtt-provision burn --dialect file --port exchange \\
          --dir CA --id press-10 --accept-written
      device-sim virtual-folder exchange --key press-10.key
    """
    click.echo(boot(folder, key_file))


@click.command("virtual-device", epilog=f"\b\nFaults:\n{FAULT_LINES}")
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
      device-sim virtual-device --link /tmp/bad --seed 3 \\
          --fault drop=0.1 --fault flip=0.05
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
    with stop_signals() as wake:
        narrate(f"device {flash.hardware_serial} ({simulation.state}) on {link}; Ctrl-C ends it")
        run_virtual_device(simulation, Terminal(link), wake, time.monotonic)


def print_credentials(state: Path | None, folder: Path, as_json: bool) -> None:
    """Write a virtual device's credentials and name the files."""
    if state is None:
        raise click.UsageError("--export-credentials needs --state: the simulated flash to read")
    files = export_credentials(load_flash(state), folder)
    named = {"id": files.id, "cert": str(files.cert_file), "key": str(files.key_file), "ca": str(files.ca_file)}
    narrate("warning: a private key was taken out of a SIMULATED device; a real one keeps it")
    click.echo(json.dumps(named) if as_json else "\n".join(f"{key}: {sanitise(text)}" for key, text in named.items()))
