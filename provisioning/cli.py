"""`mqtt-provision`: the commands of the provisioning station.

Each command parses, calls the library and prints: results on standard output, narration on standard error, faults
as `error:` and `hint:` in one place. Exit codes: 0 done, 1 the answer is no, 2 usage, 78 configuration. A
passphrase comes from a file or from a prompt on a terminal, never from an argument or the environment.
"""

import functools
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click

from mtls.cli import FaultGroup, narrate
from mtls.csr import MAX_CSR_BYTES, csr_public_key
from mtls.keystore import read_limited
from mtls.profiles import DEVICE_OPERATIONAL, SERVICE
from provisioning import report
from provisioning.ca import CertificateAuthority, issuable_id
from provisioning.ca_folder import CaFolder
from provisioning.delivery import Delivery, deliver
from provisioning.inspect import inspect_file
from provisioning.ledger import Ledger, utc_now
from provisioning.ledger_schema import REVOCATION_REASONS
from provisioning.passphrase import new_passphrase, passphrase_source
from provisioning.port import DEFAULT_BAUD, SerialPort
from provisioning.signing import serial_of
from provisioning.station import WorkOrder
from provisioning.station import burn as burn_unit
from provisioning.trace import Trace

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

ISSUABLE_PROFILES = {"device": DEVICE_OPERATIONAL, "service": SERVICE}


def warn_insecure(folder: CaFolder) -> None:
    """A development CA is never used in silence."""
    if folder.insecure:
        narrate(f"warning: {folder.path} is an INSECURE-DEV CA: its keys have no passphrase, for tests only")


def path_option(*names: str, **settings: Any) -> Decorator:
    """An option that is a path; what it names is judged by the library."""
    return click.option(*names, type=click.Path(path_type=Path), **settings)


dir_option = path_option("--dir", "folder", required=True, metavar="CA", help="The CA's folder.")
out_option = path_option("--out", required=True, metavar="DIR", help="Folder for the files; made when missing.")
passphrase_option = path_option(
    "--passphrase-file", metavar="F", help="File (0600) with the passphrase; else it is asked for."
)
clock_option = click.option("--accept-clock", is_flag=True, help="Sign although the clock went back.")
json_option = click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")


@dataclass(frozen=True, slots=True)
class CaAccess:
    """Which CA, how to unlock it, and whether its clock is taken as it is."""

    folder: Path
    passphrase_file: Path | None = None
    accept_clock: bool = False

    def open(self) -> CertificateAuthority:
        """Open it, and say so on every use when its keys are unprotected."""
        warn_insecure(CaFolder(self.folder))
        return CertificateAuthority.open(self.folder, passphrase_source(self.passphrase_file))


def signing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that signs, handed over as one `access`."""

    @dir_option
    @passphrase_option
    @clock_option
    @functools.wraps(command)
    def with_access(folder: Path, passphrase_file: Path | None, accept_clock: bool, **others: Any) -> Any:
        return command(CaAccess(folder, passphrase_file, accept_clock), **others)

    return with_access


@click.group(cls=FaultGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
def cli() -> None:
    """Make a CA, certify devices, burn certificates into them, revoke.

    \b
    mqtt-provision ca init --dir CA --name "Plant 7"
    mqtt-provision server --dir CA --dns gateway.local --ip 192.0.2.7 --out gw
    mqtt-provision burn --port /dev/serial/by-path/... --dir CA --id press-07
    mqtt-provision issue press-08 --dir CA --out press-08
    mqtt-provision revoke press-07 --dir CA
    mqtt-provision crl --dir CA --out crl.pem
    mqtt-provision inspect press-08/press-08.crt
    """


@cli.group()
def ca() -> None:
    """The certificate authority.

    \b
    mqtt-provision ca init --dir CA --name "Plant 7"
    """


@ca.command("init")
@dir_option
@click.option("--name", default="MQTT", show_default=True, help="What the two CA certificates are called after.")
@path_option("--passphrase-file", metavar="F", help="File with the new passphrase (mode 0600); else it is asked for.")
@click.option("--insecure-dev", is_flag=True, help="Leave the keys without a passphrase, and say so in their names.")
@clock_option
def ca_init(folder: Path, name: str, passphrase_file: Path | None, insecure_dev: bool, accept_clock: bool) -> None:
    """Make a root CA, an issuing CA and an empty ledger in a new folder.

    \b
    mqtt-provision ca init --dir CA --name "Plant 7"
    mqtt-provision ca init --dir CA --passphrase-file ~/.ca-passphrase
    mqtt-provision ca init --dir /tmp/ca --insecure-dev
    """
    if insecure_dev and passphrase_file is not None:
        raise click.UsageError("--insecure-dev and --passphrase-file exclude each other")
    passphrase = None if insecure_dev else new_passphrase(passphrase_file)
    CertificateAuthority.init(folder, name, passphrase=passphrase, accept_clock=accept_clock)
    files = CaFolder(folder)
    warn_insecure(files)
    narrate(f"made a root CA and an issuing CA in {folder}")
    root_key = files.key("root", insecure=insecure_dev)
    narrate(f"move {root_key} to a safe place: only the root's CRL needs it, about once a year")
    click.echo(files.bundle)


@cli.command()
@signing_options
@click.option("--dns", multiple=True, metavar="NAME", help="DNS name of the gateway; repeatable.")
@click.option("--ip", "ips", multiple=True, metavar="ADDR", help="IP address of the gateway; repeatable.")
@out_option
@json_option
def server(access: CaAccess, dns: tuple[str, ...], ips: tuple[str, ...], out: Path, json_: bool) -> None:
    """Make a gateway's key and certificate: server.crt, server.key, ca.crt.

    \b
    mqtt-provision server --dir CA --dns gateway.local --ip 192.0.2.7 --out gw
    """
    if not dns and not ips:
        raise click.UsageError("name the gateway with --dns or --ip")
    with access.open() as authority:
        sign = partial(authority.issue_server, dns=dns, ips=ips, accept_clock=access.accept_clock)
        delivery = deliver(authority, out, "server", sign)
    show_delivery([*dns, *ips][0], delivery, json_=json_)


@cli.command()
@click.argument("id_", metavar="ID")
@signing_options
@out_option
@click.option("--profile", type=click.Choice(sorted(ISSUABLE_PROFILES)), default="device", show_default=True)
@click.option("--ou", metavar="OU", help="Organizational unit in the subject, which policies can match.")
@path_option("--csr", metavar="FILE", help="Certify the key of this CSR; its names and extensions are ignored.")
@json_option
def issue(access: CaAccess, id_: str, out: Path, profile: str, ou: str | None, csr: Path | None, json_: bool) -> None:
    """Certify a device or service: ID.crt, ID.key, ca.crt. Ids are lower-case.

    \b
    mqtt-provision issue press-08 --dir CA --out press-08
    mqtt-provision issue press-08 --dir CA --out press-08 --csr press-08.csr
    mqtt-provision issue historian --dir CA --out historian --profile service --ou services
    """
    device_id = issuable_id(id_)
    key = None if csr is None else csr_public_key(read_limited(csr, MAX_CSR_BYTES), str(csr))
    with access.open() as authority:
        sign = partial(authority.issue, device_id, ISSUABLE_PROFILES[profile], ou=ou, accept_clock=access.accept_clock)
        delivery = deliver(authority, out, id_, sign, public_key=key)
    show_delivery(id_, delivery, json_=json_)


def show_delivery(name: str, delivery: Delivery, *, json_: bool) -> None:
    """The files on standard output, the date and the serial beside them."""
    if json_:
        click.echo(report.as_json({"id": name, **delivery.as_row()}))
    else:
        click.echo("\n".join(str(path) for path in delivery.files))
    narrate(
        f"{name} is certified until {delivery.not_after:%Y-%m-%d}, certificate serial {delivery.certificate_serial}"
    )


@cli.command()
@signing_options
@click.option("--port", required=True, metavar="PORT", help="Serial port, best by /dev/serial/by-path.")
@click.option("--id", "id_", metavar="ID", help="The device's id; by default its hardware serial, lower-cased.")
@click.option("--dialect", type=click.Choice(["spp1"]), default="spp1", show_default=True)
@click.option("--baud", type=click.IntRange(1200, 4_000_000), default=DEFAULT_BAUD, show_default=True)
@click.option("--station", default=socket.gethostname, metavar="NAME", help="Name for the record; default: the host's.")
@path_option("--trace", "trace_file", metavar="FILE", help="Append every line of the wire to this private file.")
@json_option
def burn(
    access: CaAccess,
    port: str,
    id_: str | None,
    dialect: str,
    baud: int,
    station: str,
    trace_file: Path | None,
    json_: bool,
) -> None:
    """Burn a certificate into the device on a serial port: PASS, or FAIL with step and reason.

    \b
    mqtt-provision burn --port /dev/serial/by-path/... --dir CA --id press-07
    mqtt-provision burn --port /dev/ttyUSB0 --dir CA --trace burn.log --json
    """
    device_id = None if id_ is None else str(issuable_id(id_))
    order = WorkOrder(device_id=device_id, accept_clock=access.accept_clock)
    with access.open() as authority, ExitStack() as opened:
        authority.unlock()  # a wrong passphrase shows before a device is touched
        trace = opened.enter_context(Trace() if trace_file is None else Trace.open(trace_file))
        line = opened.enter_context(SerialPort(port, baud))
        verdict = burn_unit(
            line,
            authority,
            authority.ledger,
            station=station,
            order=order,
            trace=trace,
            progress=lambda step: narrate(f"{port}: {step}"),
        )
    click.echo(report.as_json(verdict.as_row()) if json_ else str(verdict))
    if verdict.hint:
        narrate(f"hint: {verdict.hint}")
    click.get_current_context().exit(verdict.exit_code)


@cli.command()
@click.argument("id_", metavar="[ID]", required=False)
@click.option("--certificate-serial", metavar="HEX", help="Revoke this certificate only.")
@dir_option
@click.option("--reason", type=click.Choice(REVOCATION_REASONS), default="unspecified", show_default=True)
@json_option
def revoke(id_: str | None, certificate_serial: str | None, folder: Path, reason: str, json_: bool) -> None:
    """Revoke all certificates of an ID, or one by its serial. Needs no passphrase.

    \b
    mqtt-provision revoke press-07 --dir CA --reason keyCompromise
    mqtt-provision revoke --certificate-serial 9f3a... --dir CA
    mqtt-provision crl --dir CA --out crl.pem
    """
    if (id_ is None) == (certificate_serial is None):
        raise click.UsageError("name either an ID or --certificate-serial")
    serial = None if certificate_serial is None else serial_of(certificate_serial)
    with CaAccess(folder).open() as authority:
        rows = authority.revoke(subject=id_, certificate_serial=serial, reason=reason)
    if json_:
        click.echo(
            report.as_json([{"subject": row.subject, "certificate_serial": row.certificate_serial} for row in rows])
        )
    else:
        for row in rows:
            click.echo(f"revoked {row.subject} {row.certificate_serial}")
    narrate(f"gateways learn of it from the next CRL: mqtt-provision crl --dir {folder} --out crl.pem")


@cli.command()
@signing_options
@path_option("--out", required=True, metavar="FILE", help="File for both CRLs; replaced atomically.")
@click.option("--days", type=click.IntRange(1, 3650), default=7, show_default=True, help="Until nextUpdate.")
@json_option
def crl(access: CaAccess, out: Path, days: int, json_: bool) -> None:
    """Sign the CRLs of root and issuing CA and write them into one PEM file.

    \b
    mqtt-provision crl --dir CA --out /srv/www/crl.pem
    mqtt-provision crl --dir CA --out crl.pem --days 30 --passphrase-file F
    """
    with access.open() as authority:
        written = authority.write_crl(out, lifetime=timedelta(days=days), accept_clock=access.accept_clock)
    if written.root_is_old:
        narrate("the root's key is away: its last CRL is carried over")
    if json_:
        click.echo(report.as_json({"file": str(out), "crls": [line.as_row() for line in written.crls]}))
        return
    for line in written.crls:
        narrate(f"{line.issuer}: CRL {line.number}, {line.revoked} revoked, next update {line.next_update:%Y-%m-%d}")
    click.echo(out)


@cli.command()
@path_option("--ca", "ca_file", metavar="FILE", help="CA certificates to verify signatures with.")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def inspect(file: Path, ca_file: Path | None, json_: bool) -> None:
    """Explain a certificate, chain, CRL, CSR or key file; exit 1 when it is wrong.

    \b
    mqtt-provision inspect press-08/press-08.crt --ca CA/ca.crt
    mqtt-provision inspect crl.pem --ca CA/ca.crt --json
    """
    result = inspect_file(file, utc_now(), ca_file)
    click.echo(report.as_json(result.as_row()) if json_ else result.as_text())
    if result.problems:
        click.get_current_context().exit(1)


@cli.group()
def ledger() -> None:
    """What the station remembers of units and certificates.

    \b
    mqtt-provision ledger list --dir CA
    mqtt-provision ledger show press-07 --dir CA
    mqtt-provision ledger export --dir CA > units.csv
    """


def open_ledger(folder: Path) -> Ledger:
    """The ledger alone: reading it needs neither certificates nor keys."""
    files = CaFolder(folder)
    warn_insecure(files)
    return Ledger.open(files.ledger)


def show_rows(rows: Mapping[str, list[report.Row]], *, json_: bool) -> None:
    """Tables for people, JSON for programs."""
    click.echo(report.as_json(rows) if json_ else report.as_text(rows))


@ledger.command("list")
@dir_option
@json_option
def ledger_list(folder: Path, json_: bool) -> None:
    """List units and certificates.

    \b
    mqtt-provision ledger list --dir CA
    """
    with open_ledger(folder) as opened:
        show_rows(report.ledger_rows(opened), json_=json_)


@ledger.command("show")
@click.argument("name")
@dir_option
@json_option
def ledger_show(name: str, folder: Path, json_: bool) -> None:
    """Tell the story of a device id, hardware serial, chip id or certificate serial.

    \b
    mqtt-provision ledger show press-07 --dir CA
    """
    with open_ledger(folder) as opened:
        show_rows(report.ledger_story(opened, name), json_=json_)


@ledger.command("export")
@dir_option
@json_option
def ledger_export(folder: Path, json_: bool) -> None:
    """Print all units as CSV, or with --json everything, history too.

    \b
    mqtt-provision ledger export --dir CA > units.csv
    mqtt-provision ledger export --dir CA --json > ledger.json
    """
    with open_ledger(folder) as opened:
        rows = report.ledger_export(opened)
    click.echo(report.as_json(rows) if json_ else report.as_csv(rows["units"]), nl=json_)


def main() -> None:
    """The entry point of the console script."""
    cli(prog_name="mqtt-provision")
