"""`mqtt-provision manifest`, `labels`: what goes along with the units of a work order."""

from pathlib import Path

import click

from mtls.cli import narrate, path_option
from provisioning.options import CaAccess, dir_option, open_ledger, signing_options
from provisioning.records.labels import write_labels
from provisioning.records.manifest import write_manifest

order_option = click.option("--work-order", metavar="NAME", help="Only this work order.  [default: all]")


@click.command()
@signing_options
@path_option("--out", required=True, metavar="FILE", help="JSON lines; the signature goes to FILE.p7s.")
@order_option
def manifest(access: CaAccess, out: Path, work_order: str | None) -> None:
    """Write what was made, failures included, as JSON lines with a detached signature.

    \b
    mqtt-provision manifest --dir CA --work-order WO-2026-117 --out wo-117.jsonl
    openssl cms -verify -binary -inform PEM -in wo-117.jsonl.p7s \\
        -content wo-117.jsonl -CAfile CA/ca.crt -purpose any -out /dev/null
    """
    with access.open() as authority:
        signature = write_manifest(authority, out, work_order)
    click.echo(out)
    click.echo(signature)


@click.command()
@dir_option
@order_option
@path_option("--out", required=True, metavar="DIR", help="Folder for labels.csv and one SVG per unit.")
def labels(folder: Path, work_order: str | None, out: Path) -> None:
    """Make a QR label for every unit that passed: id, hardware serial, key fingerprint.

    \b
    mqtt-provision labels --dir CA --work-order WO-2026-117 --out labels
    """
    with open_ledger(folder) as opened:
        paths = write_labels(opened, out, work_order)
    narrate(f"{len(paths) - 1} labels")
    click.echo(paths[0])
