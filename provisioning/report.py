"""The ledger as people and programs read it: a table, one unit's story, JSON, CSV.

Text that a device said about itself (hardware serial, chip id, reasons) is made safe before it is shown. The
certificates are public; nothing secret is in the ledger, and nothing of it is left out of the export.
"""

import base64
import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mtls.errors import Fault
from mtls.terminal import sanitise
from provisioning.ledger import CertificateRow, Ledger, Unit

Row = dict[str, Any]

UNIT_COLUMNS = ("id", "device_id", "hardware_serial", "uid", "station", "state", "step", "reason")
CERTIFICATE_COLUMNS = ("subject", "profile", "state", "not_after", "certificate_serial", "reason")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
FORMULA_STARTS = ("=", "+", "-", "@")
MAX_CELL_CHARS = 40  # a table is for the eye; --json has every character


def ledger_rows(ledger: Ledger) -> Mapping[str, list[Row]]:
    """Units and certificates as plain rows; `der` as base64."""
    return {
        "units": [_plain(unit) for unit in ledger.units()],
        "certificates": [_plain(row) for row in ledger.certificates()],
    }


def ledger_export(ledger: Ledger) -> Mapping[str, list[Row]]:
    """Everything, with the history."""
    return {**ledger_rows(ledger), "events": [asdict(event) for event in ledger.events()]}


def ledger_story(ledger: Ledger, name: str) -> Mapping[str, list[Row]]:
    """What the ledger knows of a device id, hardware serial, chip id or certificate serial; a fault for nothing."""
    units = ledger.units_named(name)
    serial = name.replace(":", "").lower()
    certificates = ledger.certificates(subject=name) or ledger.certificates(certificate_serial=serial)
    known = {row.id for row in certificates}
    certificates += [
        row for row in ledger.certificates() if row.unit_id in {u.id for u in units} and row.id not in known
    ]
    if not units and not certificates:
        raise Fault(f"the ledger does not know {sanitise(name)}", hint="mqtt-provision ledger list --dir CA")
    unit_ids, certificate_ids = {unit.id for unit in units}, {row.id for row in certificates}
    events = [e for e in ledger.events() if e.unit_id in unit_ids or e.certificate_id in certificate_ids]
    return {
        "units": [_plain(unit) for unit in units],
        "certificates": [_plain(row) for row in certificates],
        "events": [asdict(event) for event in events],
    }


def revocations(rows: Sequence[CertificateRow]) -> list[Row]:
    """What was revoked, in the words of the deny list."""
    return [
        {
            "subject": row.subject,
            "certificate_serial": row.certificate_serial,
            "revoked_at": row.revoked_at,
            "reason": row.reason,
        }
        for row in rows
    ]


def as_json(value: object) -> str:
    """Indented JSON; ASCII only, so that no terminal is steered by it."""
    return json.dumps(value, indent=2, default=str)


def as_csv(rows: Sequence[Row]) -> str:
    """RFC 4180 with a header; empty for no rows. What a spreadsheet would take for a formula gets a `'` in front."""
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows({key: _in_csv(value) if key != "der" else value for key, value in row.items()} for row in rows)
    return out.getvalue()


def _in_csv(value: object) -> str:
    """Safe to print, and no formula: a device may say that its serial is one, and an operator opens the file."""
    shown = sanitise(str(value))
    return f"'{shown}" if shown.startswith(FORMULA_STARTS) else shown


def as_text(rows: Mapping[str, Sequence[Row]]) -> str:
    """Units, certificates and events as tables, each under its name."""
    columns = {"units": UNIT_COLUMNS, "certificates": CERTIFICATE_COLUMNS, "events": ("at", "kind", "detail")}
    parts = []
    for name, names in columns.items():
        if name in rows:
            parts += [f"{name}: {len(rows[name])}", *_table(names, rows[name]), ""]
    return "\n".join(parts).rstrip()


def _table(columns: Sequence[str], rows: Sequence[Row]) -> Iterable[str]:
    if not rows:
        return []
    cells = [list(columns), *([sanitise(_cell(row[name]), MAX_CELL_CHARS) for name in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    ]


def _cell(value: object) -> str:
    text = "-" if value in (None, "") else str(value)
    return f"{text[:19]}Z" if _MOMENT.fullmatch(text) else text


def _plain(row: Unit | CertificateRow) -> Row:
    plain = asdict(row)
    if plain.get("der") is not None:
        plain["der"] = base64.b64encode(plain["der"]).decode()
    return plain
