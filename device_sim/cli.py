"""`device-sim`: virtual devices, and the agent that brings a device's readings to the gateway.

Each command parses, calls the library and prints: results on standard output, narration on standard error, faults
as `error:` and `hint:` in one place. Exit codes: 0 done, 1 the answer is no, 2 usage, 78 configuration. Here is only
the table of commands; each is imported when it is asked for.
"""

from typing import Final

import click

from mtls.cli import CommandTable, FaultGroup, version_option

COMMANDS: Final[CommandTable] = {
    "virtual-modem": (
        "device_sim.virtual_cli:virtual_modem",
        "A Nordic modem on a pseudo-terminal: AT commands for credentials, which it keeps in memory.",
    ),
    "virtual-folder": (
        "device_sim.virtual_cli:virtual_folder",
        "A device that exchanges files in a folder: it lays its CSR there, and judges the certificate that comes.",
    ),
    "virtual-device": (
        "device_sim.virtual_cli:virtual_device",
        "A device on a pseudo-terminal: SPP/1, and telemetry lines once it is burned.",
    ),
    "run": (
        "device_sim.agent_cli:run",
        "The agent between a device and the gateway: readings in, MQTT over mutual TLS out.",
    ),
    "doctor": (
        "device_sim.ports.cli:doctor",
        "Say what is wrong beside a device: clock, files, spool, ports, gateway; a line each.",
    ),
    "handshake": (
        "device_sim.handshake_cli:handshake",
        "Make one TLS handshake and explain it: each step, and when it fails, what is at fault.",
    ),
    "fleet": (
        "device_sim.fleet.cli:fleet",
        "Thousands of devices, each with its own certificate, on one core or several.",
    ),
    "test-ca": (
        "device_sim.fleet.cli:test_ca",
        "A CA for tests only: its keys lie unencrypted in FOLDER, and no ledger knows what it signs.",
    ),
    "scenario": (
        "device_sim.scenarios.cli:scenario",
        "A file of phases, devices, faults and expectations, and a verdict in the exit code.",
    ),
    "attack": (
        "device_sim.attacks.cli:attack_command",
        "Start a broker on a site of its own, attack it, and say what it let through.",
    ),
}


@click.group(cls=FaultGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@version_option
def main() -> None:
    """Virtual devices, and the agent between a device and the gateway.

    \b
      device-sim virtual-device --link /tmp/dev0 --state dev0.json
      device-sim run --id press-07 --broker gateway.local:8883 \\
          --cert press-07.crt --key press-07.key --ca ca.crt \\
          --source "serial:///dev/ttyUSB0?baud=115200"
      device-sim handshake gateway.local:8883 --ca ca.crt \\
          --cert press-07.crt --key press-07.key
    """
