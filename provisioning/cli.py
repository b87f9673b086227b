"""`mqtt-provision`: the commands of the provisioning station.

Each command parses, calls the library and prints: results on standard output, narration on standard error, faults
as `error:` and `hint:` in one place. Exit codes: 0 done, 1 the answer is no, 2 usage, 78 configuration. A
passphrase comes from a file or from a prompt on a terminal, never from an argument or the environment. Here is only
the table of commands; each is imported when it is asked for.
"""

from typing import Final

import click

from mtls.cli import CommandTable, FaultGroup, LazyGroup, version_option

COMMANDS: Final[CommandTable] = {
    "server": ("provisioning.ca_cli:server", "Make a gateway's key and certificate: server.crt, server.key, ca.crt."),
    "issue": ("provisioning.ca_cli:issue", "Certify a device or service: ID.crt, ID.key, ca.crt."),
    "revoke": ("provisioning.ca_cli:revoke", "Revoke all certificates of an ID, or one by its serial."),
    "crl": ("provisioning.ca_cli:crl", "Sign the CRLs of root and issuing CAs and write them into one PEM file."),
    "inspect": (
        "provisioning.ca_cli:inspect",
        "Explain a certificate, chain, CRL, CSR or key file; exit 1 when it is wrong.",
    ),
    "burn": (
        "provisioning.station.unit_cli:burn",
        "Burn a certificate into the device on a port: PASS, or FAIL with step and reason.",
    ),
    "resume": (
        "provisioning.station.unit_cli:resume",
        "Settle what a crash or a power cut left: finish the units at the ports, quarantine the rest.",
    ),
    "doctor": (
        "provisioning.station.unit_cli:doctor",
        "Say whether this station may begin its shift; exit 1 when something would stop it.",
    ),
    "dialects": (
        "provisioning.station.unit_cli:dialects",
        "Say what each kind of device can do; what it cannot do, no verdict claims.",
    ),
    "station": ("provisioning.station.cli:station", "Many ports at once, after a work order."),
    "spp1": ("provisioning.conformance.cli:spp1", "The serial protocol's device side."),
    "ledger": ("provisioning.records.cli:ledger", "What the station remembers of units and certificates."),
    "retire": (
        "provisioning.records.cli:retire",
        "Let a recorded or quarantined unit be burned again; its certificate is revoked.",
    ),
    "scrap": (
        "provisioning.records.cli:scrap",
        "Never burn a unit again; its certificate is revoked, its id may go to another unit.",
    ),
    "backup": ("provisioning.records.cli:backup", "Copy CA and ledger into one file, while stations go on working."),
    "restore": ("provisioning.records.cli:restore", "Make a new CA folder from a backup, and verify its ledger."),
    "registry": (
        "provisioning.records.cli:registry",
        "Write the device registry for gateways: every recorded unit, with its attributes.",
    ),
    "manifest": (
        "provisioning.records.handover_cli:manifest",
        "Write what was made, failures included, as JSON lines with a detached signature.",
    ),
    "labels": (
        "provisioning.records.handover_cli:labels",
        "Make a QR label for every unit that passed: id, hardware serial, key fingerprint.",
    ),
}
CA_COMMANDS: Final[CommandTable] = {
    "init": ("provisioning.ca_cli:ca_init", "Make a root CA, an issuing CA and an empty ledger in a new folder."),
    "issuing": (
        "provisioning.ca_cli:ca_issuing",
        "Make an issuing CA for a gateway that renews certificates; needs the root's key.",
    ),
    "init-root": ("provisioning.custody.cli:init_root", "Make a root CA alone, on the machine where it stays."),
    "issue-station": (
        "provisioning.custody.cli:issue_station",
        "Make an issuing CA for a station, key and all: a CA folder to carry there.",
    ),
    "request": (
        "provisioning.custody.cli:request",
        "Begin a station: make its key here, or in its HSM, and a CSR for the root.",
    ),
    "sign-csr": ("provisioning.custody.cli:sign_csr", "Certify a station's key with the root."),
    "install": ("provisioning.custody.cli:install", "Put into force what the root signed for this station's next key."),
    "rotate": (
        "provisioning.custody.cli:rotate",
        "Follow the issuing CA by one with a new key: at once with the root's key here, else by a CSR.",
    ),
    "revoke-station": (
        "provisioning.custody.cli:revoke_station",
        "Revoke a station's issuing CA, and with it every device it certified.",
    ),
    "root-crl": (
        "provisioning.custody.cli:root_crl",
        "Sign the root's next CRL, about once a year, and carry it to the stations.",
    ),
}


@click.group(
    cls=FaultGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@version_option
def cli() -> None:
    """Make a CA, certify devices, burn certificates into them, revoke.

    \b
    mqtt-provision ca init --dir CA --name "Plant 7"
    mqtt-provision server --dir CA --dns gateway.local --ip 192.0.2.7 --out gw
    mqtt-provision burn --port /dev/serial/by-path/... --dir CA --id press-07
    mqtt-provision station run --work-order wo.toml --dir CA \\
        --port left=/dev/serial/by-path/...
    mqtt-provision issue press-08 --dir CA --out press-08
    mqtt-provision revoke press-07 --dir CA
    mqtt-provision crl --dir CA --out crl.pem
    mqtt-provision inspect press-08/press-08.crt
    """


@cli.group(cls=LazyGroup, table=CA_COMMANDS)
def ca() -> None:
    """The certificate authority.

    \b
    mqtt-provision ca init --dir CA --name "Plant 7"
    mqtt-provision ca init-root --dir ROOT --name "Plant 7"
    mqtt-provision ca request "Line A" --dir CA --out line-a.csr
    mqtt-provision ca sign-csr line-a.csr --dir ROOT --name "Line A" --out line-a
    mqtt-provision ca issuing --dir CA --name "Site 7" --out site-ca
    """


def main() -> None:
    """The entry point of the console script."""
    cli(prog_name="mqtt-provision")
