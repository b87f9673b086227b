"""The commands of `mqtt-provision ca` and `mqtt-provision crl` for roots that are kept offline, stations and CRLs."""

from datetime import timedelta
from pathlib import Path

import click

from mtls.cli import narrate, path_option
from mtls.keystore import write_public
from mtls.profiles import spki_sha256
from provisioning import report
from provisioning.ca_folder import CaFolder
from provisioning.ca_settings import CaSettings
from provisioning.crls import crls_pem, merged
from provisioning.custody import publishing, station
from provisioning.custody.root import RootAuthority, Station
from provisioning.ledger import utc_now
from provisioning.options import (
    CaAccess,
    clock_option,
    dir_option,
    insecure_option,
    json_option,
    new_key_passphrase,
    passphrase_option,
    reason_option,
    signing_options,
    warn_insecure,
)
from provisioning.passphrase import passphrase_source, pin_source
from provisioning.pkcs11_key import KeyUri

key_option = click.option("--key", "uri", metavar="URI", help="Make the key in an HSM: a pkcs11: URI.")
days_option = click.option("--days", type=click.IntRange(1, 36500), help="Validity; by default ten years.")
quota_option = click.option("--quota", type=click.IntRange(1), help="How many certificates it may sign.")
url_option = click.option("--crl-url", metavar="URL", help="Where its CRL is published; {issuer} is its key id.")


def key_uri(text: str | None) -> KeyUri | None:
    """The HSM's key that an option names."""
    return None if text is None else KeyUri.parse(text)


def asked_station(name: str, days: int | None, quota: int | None, crl_url: str | None) -> Station:
    """What the options say of a station."""
    settings = CaSettings.checked(quota, crl_url)
    return Station(name, None if days is None else timedelta(days=days), settings)


@click.command("init-root")
@dir_option
@click.option("--name", default="MQTT", show_default=True, help="What the root is called after.")
@passphrase_option
@insecure_option
@key_option
@clock_option
def init_root(
    folder: Path, name: str, passphrase_file: Path | None, insecure_dev: bool, uri: str | None, accept_clock: bool
) -> None:
    """Make a root CA alone, on the machine where it stays.

    \b
    mqtt-provision ca init-root --dir ROOT --name "Plant 7"
    mqtt-provision ca init-root --dir ROOT \\
        --key "pkcs11:token=root;object=root?module-path=..."
    """
    passphrase = None if uri else new_key_passphrase(passphrase_file, insecure_dev)
    RootAuthority.init(
        folder, name, passphrase=passphrase, key=key_uri(uri), pin=pin_source(), accept_clock=accept_clock
    )
    warn_insecure(CaFolder(folder))
    click.echo(CaFolder(folder).certificate("root"))


@click.command("issue-station")
@click.argument("name")
@signing_options
@path_option("--out", required=True, metavar="FOLDER", help="The station's new CA folder, to be carried there.")
@path_option("--station-passphrase-file", "key_file", metavar="F", help="File with the station's new passphrase.")
@insecure_option
@days_option
@quota_option
@url_option
def issue_station(
    access: CaAccess,
    name: str,
    out: Path,
    key_file: Path | None,
    insecure_dev: bool,
    days: int | None,
    quota: int | None,
    crl_url: str | None,
) -> None:
    """Make an issuing CA for a station, key and all: a CA folder to carry there.

    \b
    mqtt-provision ca issue-station "Line A" --dir ROOT --out /media/usb/line-a \\
        --quota 50000
    """
    passphrase = new_key_passphrase(key_file, insecure_dev)
    with access.open_root() as root:
        asked = asked_station(name, days, quota, crl_url)
        root.issue_station(asked, out, passphrase, accept_clock=access.accept_clock)
    warn_insecure(CaFolder(out))
    narrate(f"carry {out} to the station; its key is protected by its own passphrase only")
    click.echo(out)


@click.command("request")
@click.argument("name")
@dir_option
@path_option("--out", required=True, metavar="FILE", help="The CSR, to be carried to the root.")
@passphrase_option
@insecure_option
@key_option
def request(
    name: str, folder: Path, out: Path, passphrase_file: Path | None, insecure_dev: bool, uri: str | None
) -> None:
    """Begin a station: make its key here, or in its HSM, and a CSR for the root.

    \b
    mqtt-provision ca request "Line A" --dir CA --out /media/usb/line-a.csr
    mqtt-provision ca request "Line A" --dir CA --out line-a.csr \\
        --key "pkcs11:token=line-a;object=issuing?..."
    """
    passphrase = None if uri else new_key_passphrase(passphrase_file, insecure_dev)
    digest = station.begin(folder, name, out, passphrase=passphrase, key=key_uri(uri), pin=pin_source())
    narrate(f"the root's keeper compares this digest of the key: {digest}")
    click.echo(out)


@click.command("sign-csr")
@click.argument("file", type=click.Path(path_type=Path))
@signing_options
@click.option("--name", required=True, help="The station's name, from the order and not from the CSR.")
@path_option("--out", required=True, metavar="FOLDER", help="New folder for what the station installs.")
@days_option
@quota_option
@url_option
def sign_csr(
    access: CaAccess, file: Path, name: str, out: Path, days: int | None, quota: int | None, crl_url: str | None
) -> None:
    """Certify a station's key with the root. What the CSR says about names is ignored.

    \b
    mqtt-provision ca sign-csr /media/usb/line-a.csr --dir ROOT --name "Line A" \\
        --out /media/usb/line-a
    """
    with access.open_root() as root:
        asked = asked_station(name, days, quota, crl_url)
        certificate = root.sign_request(file, asked, out, accept_clock=access.accept_clock)
    narrate(f"certified the key {spki_sha256(certificate)} until {certificate.not_valid_after_utc:%Y-%m-%d}")
    click.echo(out)


@click.command("install")
@click.argument("brought", type=click.Path(path_type=Path))
@signing_options
def install(access: CaAccess, brought: Path) -> None:
    """Put into force what the root signed for this station's next key.

    \b
    mqtt-provision ca install /media/usb/line-a --dir CA
    """
    folder = CaFolder(access.folder)
    certificate = station.install(folder, CaFolder(brought), utc_now())
    station.publish(folder, passphrase_source(access.passphrase_file))
    narrate(f"in force until {certificate.not_valid_after_utc:%Y-%m-%d}; give gateways the new {folder.bundle.name}")
    click.echo(folder.bundle)


@click.command("rotate")
@signing_options
@path_option("--out", metavar="FILE", help="The CSR for a root that is kept elsewhere.")
@path_option("--new-passphrase-file", "key_file", metavar="F", help="File with the new key's passphrase.")
@insecure_option
@key_option
@days_option
def rotate(
    access: CaAccess, out: Path | None, key_file: Path | None, insecure_dev: bool, uri: str | None, days: int | None
) -> None:
    """Follow the issuing CA by one with a new key: at once with the root's key here, else by a CSR.

    \b
    mqtt-provision ca rotate --dir CA
    mqtt-provision ca rotate --dir CA --out /media/usb/next.csr
    """
    folder, passphrase = CaFolder(access.folder), None if uri else new_key_passphrase(key_file, insecure_dev)
    if out is not None:
        digest = station.follow(folder, out, passphrase=passphrase, key=key_uri(uri), pin=pin_source())
        narrate(f"the root's keeper compares this digest of the key: {digest}")
        click.echo(out)
        return
    lifetime = None if days is None else timedelta(days=days)
    station.rotate_with_root(folder, passphrase_source(access.passphrase_file), passphrase, lifetime=lifetime)
    narrate("give gateways the new ca.crt before the next device is burned")
    click.echo(folder.bundle)


@click.command("revoke-station")
@click.argument("name")
@signing_options
@reason_option("keyCompromise")
@path_option("--out", required=True, metavar="FILE", help="The root's new CRL, for stations and gateways.")
def revoke_station(access: CaAccess, name: str, reason: str, out: Path) -> None:
    """Revoke a station's issuing CA, and with it every device it certified.

    \b
    mqtt-provision ca revoke-station "Line A" --dir ROOT --out /media/usb/root.crl
    """
    with access.open_root() as root:
        rows = root.revoke_station(name, reason)
        root.write_crl(out, accept_clock=access.accept_clock)
    for row in rows:
        narrate(f"revoked {row.subject} {row.certificate_serial}")
    narrate("gateways refuse its devices as soon as they have this CRL: mqtt-provision crl merge")
    click.echo(out)


@click.command("root-crl")
@signing_options
@path_option("--out", required=True, metavar="FILE", help="The root's new CRL.")
def root_crl(access: CaAccess, out: Path) -> None:
    """Sign the root's next CRL, about once a year, and carry it to the stations.

    \b
    mqtt-provision ca root-crl --dir ROOT --out /media/usb/root.crl
    mqtt-provision crl --dir CA --root-crl /media/usb/root.crl --out crl.pem
    """
    with access.open_root() as root:
        line = root.write_crl(out, accept_clock=access.accept_clock)
    narrate(f"{line.issuer}: CRL {line.number}, {line.revoked} revoked, next update {line.next_update:%Y-%m-%d}")
    click.echo(out)


@click.command("serve")
@signing_options
@path_option("--out", required=True, metavar="FOLDER", help="A web server's folder.")
@click.option("--if-due", is_flag=True, help="Sign only when half of a CRL's life is over or more is revoked.")
@json_option
def serve(access: CaAccess, out: Path, if_due: bool, json_: bool) -> None:
    """Sign CRLs when they are due and write them as files for a web server.

    \b
    mqtt-provision crl serve --dir CA --out /srv/www/crl --if-due \\
        --passphrase-file F
    """
    with access.open() as authority:
        now = utc_now()
        reasons = publishing.due(authority, now) if if_due else ["asked for"]
        if reasons:
            authority.write_crl(accept_clock=access.accept_clock)
        files = publishing.serve(authority, out, now)
    for reason in reasons:
        narrate(f"signed anew: {reason}")
    click.echo(report.as_json({"signed": reasons, "files": files}) if json_ else "\n".join(map(str, files)))


@click.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--within-hours", type=click.IntRange(0), default=48, show_default=True, help="What counts as soon.")
@json_option
def check(files: tuple[Path, ...], within_hours: int, json_: bool) -> None:
    """Tell which CRLs end soon; exit 1 when one does. For a monitor or a timer.

    \b
    mqtt-provision crl check /srv/www/crl/crl.pem --within-hours 72
    """
    found = publishing.stale(files, utc_now(), timedelta(hours=within_hours))
    if json_:
        click.echo(report.as_json([{"issuer": one.issuer, "next_update": one.next_update} for one in found]))
    else:
        click.echo("\n".join(map(str, found)) or "no CRL ends soon")
    if found:
        click.get_current_context().exit(1)


@click.command("merge")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@path_option("--out", required=True, metavar="FILE", help="One PEM with the newest CRL of every issuer.")
def merge(files: tuple[Path, ...], out: Path) -> None:
    """Put the CRLs of several stations into one file for a gateway. Needs no key.

    \b
    mqtt-provision crl merge line-a/crl.pem line-b/crl.pem --out crl.pem
    """
    crls = merged(files)
    write_public(out, crls_pem(crls))
    narrate(f"{len(crls)} CRLs")
    click.echo(out)
