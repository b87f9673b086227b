"""`mqtt-provision ca init`, `ca issuing`, `server`, `issue`, `revoke`, `crl`, `inspect`: certificates and their ends.

Each command parses, calls the library and prints: results on standard output, narration on standard error, faults
as `error:` and `hint:` in one place. Exit codes: 0 done, 1 the answer is no, 2 usage, 78 configuration. A
passphrase comes from a file or from a prompt on a terminal, never from an argument or the environment.
"""

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import click

from mtls.cli import CommandTable, LazyGroup, narrate, path_option
from mtls.csr import MAX_CSR_BYTES, csr_public_key
from mtls.keystore import read_limited
from mtls.profiles import DEVICE_OPERATIONAL, SERVICE
from provisioning import report
from provisioning.ca import CertificateAuthority, issuable_id
from provisioning.ca_folder import CaFolder
from provisioning.delivery import Delivery, deliver, deliver_image
from provisioning.inspect import inspect_file
from provisioning.ledger import utc_now
from provisioning.options import (
    CaAccess,
    clock_option,
    dir_option,
    insecure_option,
    json_option,
    new_key_passphrase,
    out_option,
    passphrase_option,
    reason_option,
    signing_options,
    warn_insecure,
)
from provisioning.signing import serial_of
from provisioning.site_ca import make_site_ca

ISSUABLE_PROFILES = {"device": DEVICE_OPERATIONAL, "service": SERVICE}
CRL_COMMANDS: Final[CommandTable] = {
    "serve": (
        "provisioning.custody.cli:serve",
        "Sign CRLs when they are due and write them as files for a web server.",
    ),
    "check": ("provisioning.custody.cli:check", "Tell which CRLs end soon; exit 1 when one does."),
    "merge": ("provisioning.custody.cli:merge", "Put the CRLs of several stations into one file for a gateway."),
}


@click.command("init")
@dir_option
@click.option("--name", default="MQTT", show_default=True, help="What the two CA certificates are called after.")
@path_option("--passphrase-file", metavar="F", help="File with the new passphrase (mode 0600); else it is asked for.")
@insecure_option
@clock_option
def ca_init(folder: Path, name: str, passphrase_file: Path | None, insecure_dev: bool, accept_clock: bool) -> None:
    """Make a root CA, an issuing CA and an empty ledger in a new folder.

    \b
    mqtt-provision ca init --dir CA --name "Plant 7"
    mqtt-provision ca init --dir CA --passphrase-file ~/.ca-passphrase
    mqtt-provision ca init --dir /tmp/ca --insecure-dev
    """
    passphrase = new_key_passphrase(passphrase_file, insecure_dev)
    CertificateAuthority.init(folder, name, passphrase=passphrase, accept_clock=accept_clock)
    files = CaFolder(folder)
    warn_insecure(files)
    narrate(f"made a root CA and an issuing CA in {folder}")
    root_key = files.key("root", insecure=insecure_dev)
    narrate(f"move {root_key} to a safe place: only the root's CRL needs it, about once a year")
    click.echo(files.bundle)


@click.command("issuing")
@signing_options
@click.option("--name", required=True, help="What the CA is called, for example after its site.")
@out_option
def ca_issuing(access: CaAccess, name: str, out: Path) -> None:
    """Make an issuing CA for a gateway that renews certificates; needs the root's key.

    \b
    mqtt-provision ca issuing --dir CA --name "Site 7" --out site-ca
    """
    with access.open_root() as root:
        files = make_site_ca(root, name, out, now=utc_now(), accept_clock=access.accept_clock)
    click.echo("\n".join(str(path) for path in files))


@click.command()
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


@click.command()
@click.argument("id_", metavar="ID")
@signing_options
@out_option
@click.option("--profile", type=click.Choice(sorted(ISSUABLE_PROFILES)), default="device", show_default=True)
@click.option("--ou", metavar="OU", help="Organizational unit in the subject, which policies can match.")
@path_option("--csr", metavar="FILE", help="Certify the key of this CSR; its names and extensions are ignored.")
@click.option("--format", "format_", type=click.Choice(["pem", "esp-secure-cert"]), default="pem", show_default=True)
@json_option
def issue(
    access: CaAccess,
    id_: str,
    out: Path,
    profile: str,
    ou: str | None,
    csr: Path | None,
    format_: str,
    json_: bool,
) -> None:
    """Certify a device or service: ID.crt, ID.key, ca.crt. Ids are lower-case.

    \b
    mqtt-provision issue press-08 --dir CA --out press-08
    mqtt-provision issue press-08 --dir CA --out press-08 --csr press-08.csr
    mqtt-provision issue press-09 --dir CA --out images --format esp-secure-cert
    mqtt-provision issue historian --dir CA --out historian \\
        --profile service --ou services
    """
    if format_ != "pem" and csr is not None:
        raise click.UsageError("an image holds its key: --csr and --format esp-secure-cert exclude each other")
    device_id = issuable_id(id_)
    key = None if csr is None else csr_public_key(read_limited(csr, MAX_CSR_BYTES), str(csr))
    with access.open() as authority:
        sign = partial(authority.issue, device_id, ISSUABLE_PROFILES[profile], ou=ou, accept_clock=access.accept_clock)
        if format_ == "pem":
            delivery = deliver(authority, out, id_, sign, public_key=key)
        else:
            delivery = deliver_image(authority, out, id_, sign)
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


@click.command()
@click.argument("id_", metavar="[ID]", required=False)
@click.option("--certificate-serial", metavar="HEX", help="Revoke this certificate only.")
@dir_option
@reason_option("unspecified")
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


@click.group(cls=LazyGroup, table=CRL_COMMANDS, invoke_without_command=True)
@path_option("--dir", "folder", metavar="CA", help="The CA's folder.")
@passphrase_option
@clock_option
@path_option("--out", metavar="FILE", help="File for all CRLs; replaced atomically.")
@click.option("--days", type=click.IntRange(1, 3650), default=7, show_default=True, help="Until nextUpdate.")
@path_option("--root-crl", metavar="FILE", help="First take this newer CRL of the root, signed where its key is.")
@json_option
@click.pass_context
def crl(
    context: click.Context,
    folder: Path | None,
    passphrase_file: Path | None,
    accept_clock: bool,
    out: Path | None,
    days: int,
    root_crl: Path | None,
    json_: bool,
) -> None:
    """Sign the CRLs of root and issuing CAs and write them into one PEM file.

    \b
    mqtt-provision crl --dir CA --out /srv/www/crl.pem
    mqtt-provision crl --dir CA --out crl.pem --days 30 --passphrase-file F
    mqtt-provision crl --dir CA --out crl.pem --root-crl /media/usb/root.crl
    """
    if context.invoked_subcommand is not None:
        return
    if folder is None or out is None:
        raise click.UsageError("--dir and --out are needed")
    access = CaAccess(folder, passphrase_file, accept_clock)
    with access.open() as authority:
        if root_crl is not None:
            authority.take_root_crl(root_crl)
        written = authority.write_crl(out, lifetime=timedelta(days=days), accept_clock=access.accept_clock)
    if written.root_is_old:
        narrate("the root's key is away: its last CRL is carried over")
    if json_:
        click.echo(report.as_json({"file": str(out), "crls": [line.as_row() for line in written.crls]}))
        return
    for line in written.crls:
        narrate(f"{line.issuer}: CRL {line.number}, {line.revoked} revoked, next update {line.next_update:%Y-%m-%d}")
    click.echo(out)


@click.command()
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
