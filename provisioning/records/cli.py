"""`mqtt-provision ledger`, `retire`, `scrap`, `backup`, `restore`: the commands that read and keep the records.

Each command parses, calls the library and prints: results on standard output, narration on standard error.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click

from mtls.cli import ListedGroup, narrate, path_option
from provisioning import report
from provisioning.ca import issuable_id
from provisioning.ledger import Unit
from provisioning.options import dir_option, json_option, open_ledger
from provisioning.records.backup import back_up, restore_backup
from provisioning.records.manifest import manifest_problems
from provisioning.records.registry import write_registry
from provisioning.records.verify import verify_ledger


@click.group(cls=ListedGroup)
def ledger() -> None:
    """What the station remembers of units and certificates.

    \b
    mqtt-provision ledger list --dir CA
    mqtt-provision ledger show press-07 --dir CA
    mqtt-provision ledger export --dir CA > units.csv
    mqtt-provision ledger verify --dir CA
    """


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


@ledger.command("verify")
@dir_option
@path_option(
    "--manifest", "against", metavar="FILE", help="Compare this manifest, too; its signature is for openssl cms."
)
@json_option
def ledger_verify(folder: Path, against: Path | None, json_: bool) -> None:
    """Prove that history, units, attempts and certificates agree; exit 1 with every disagreement.

    \b
    mqtt-provision ledger verify --dir CA
    mqtt-provision ledger verify --dir CA --manifest wo-117.jsonl
    """
    with open_ledger(folder) as opened:
        found = verify_ledger(opened)
        if against is not None:
            found = replace(found, problems=(*found.problems, *manifest_problems(against, opened)))
    click.echo(report.as_json(found.as_row()) if json_ else "\n".join(found.lines()))
    click.get_current_context().exit(1 if found.problems else 0)


reason_option = click.option("--reason", required=True, metavar="TEXT", help="Why, for the record.")


@click.command()
@click.argument("name")
@dir_option
@reason_option
def retire(name: str, folder: Path, reason: str) -> None:
    """Let a recorded or quarantined unit be burned again; its certificate is revoked.

    NAME is its device id, hardware serial or chip id.

    \b
    mqtt-provision retire press-07 --dir CA --reason "came back for a new owner"
    """
    with open_ledger(folder) as opened:
        unit = opened.retire(opened.newest_named(name), reason)
    tell_end(unit, folder)


@click.command()
@click.argument("name")
@dir_option
@reason_option
def scrap(name: str, folder: Path, reason: str) -> None:
    """Never burn a unit again; its certificate is revoked, its id may go to another unit.

    \b
    mqtt-provision scrap press-07 --dir CA --reason "housing broken"
    """
    with open_ledger(folder) as opened:
        unit = opened.scrap(opened.newest_named(name), reason)
    tell_end(unit, folder)


def tell_end(unit: Unit, folder: Path) -> None:
    """What became of it, and when gateways know."""
    click.echo(f"{unit.device_id} ({unit.hardware_serial}) is {unit.state}")
    narrate(f"gateways learn of it from the next CRL: mqtt-provision crl --dir {folder} --out crl.pem")


@click.command()
@dir_option
@path_option("--out", required=True, metavar="FILE", help="The backup, a tar file of mode 0600; never overwritten.")
def backup(folder: Path, out: Path) -> None:
    """Copy CA and ledger into one file, while stations go on working.

    \b
    mqtt-provision backup --dir CA --out /media/usb/ca-2026-11-25.tar
    """
    for name in back_up(folder, out):
        narrate(f"saved {name}")
    click.echo(out)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@dir_option
def restore(file: Path, folder: Path) -> None:
    """Make a new CA folder from a backup, and verify its ledger.

    \b
    mqtt-provision restore /media/usb/ca-2026-11-25.tar --dir CA
    """
    for line in restore_backup(file, folder).lines():
        narrate(line)
    narrate("what was issued and revoked after the backup is not in it: see docs/provisioning.md")
    click.echo(folder)


@click.command()
@dir_option
@path_option("--out", required=True, metavar="FILE", help="devices.jsonl for `[policy] registry` of the gateways.")
@click.option("--also", multiple=True, metavar="ID", help="An id without a unit, such as a service; repeatable.")
def registry(folder: Path, out: Path, also: tuple[str, ...]) -> None:
    """Write the device registry for gateways: every recorded unit, with its attributes.

    \b
    mqtt-provision registry --dir CA --out devices.jsonl --also line-view
    """
    with open_ledger(folder) as opened:
        count = write_registry(opened, out, [str(issuable_id(name)) for name in also])
    narrate(f"{count} devices")
    click.echo(out)
