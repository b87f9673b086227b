"""Labels: a QR code per finished unit, as SVG, and one CSV for the label printer. The only importer of segno.

The code holds id, hardware serial and key fingerprint (`unit_order.label_text`), nothing secret; a scanned one is what
`--expect-label` compares. File names are the unit's row number, because ids are not made for file systems.
"""

from pathlib import Path

import segno

from mtls.errors import Fault
from mtls.keystore import write_public
from provisioning.ledger import FINISHED, Ledger
from provisioning.report import as_csv
from provisioning.unit_order import label_text


def write_labels(ledger: Ledger, out: Path, work_order: str | None) -> list[Path]:
    """Write `labels.csv` and an SVG for every finished unit of a work order, or of all; the paths, CSV first."""
    wanted = {attempt.unit_id for attempt in ledger.attempts_of(work_order)}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(f"cannot make the folder {out}: {error.strerror}", hint="name another with --out") from None
    rows, paths = [], []
    for unit in ledger.units():
        if unit.state not in FINISHED or unit.id not in wanted:
            continue
        text = label_text(unit)
        path = out / f"label-{unit.id}.svg"
        write_public(path, segno.make_qr(text, error="m").svg_inline(scale=4, border=4).encode("ascii"))
        paths.append(path)
        rows.append(
            {
                "device_id": unit.device_id,
                "hardware_serial": unit.hardware_serial,
                "spki_sha256": unit.spki_sha256,
                "text": text,
                "file": path.name,
            }
        )
    write_public(out / "labels.csv", as_csv(rows).encode())
    return [out / "labels.csv", *paths]
