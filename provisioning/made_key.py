"""What the ledger keeps of a key whose public half its device shows only once: in the history, before the state.

Such a device answers the making of its key with a CSR and never shows the key again; all it lists later is a name for
what it holds. So that a unit that was cut short can be continued, CSR and name are noted before the unit is keyed. And
so that no foreign key is ever overwritten, it is noted before a key is made that one is: what stands in that place
afterwards, with or without an answer, is this ledger's.
"""

import base64
import json
from dataclasses import dataclass

from provisioning.ledger import Ledger, Unit

ASKED, MADE = "unit_key_asked", "unit_key_made"


@dataclass(frozen=True, slots=True)
class MadeKey:
    """The place of a key, the name under which the device lists it, and its CSR (public, DER or PEM)."""

    slot: str
    held: str
    csr: bytes


def note_key_asked(ledger: Ledger, unit: Unit, slot: str) -> None:
    """Commit that the device is about to make a key in an empty place, or in that of a key of ours."""
    ledger.note(ASKED, unit=unit, facts={"slot": slot})


def note_key_made(ledger: Ledger, unit: Unit, made: MadeKey) -> None:
    """Commit what the device showed of its new key."""
    csr = base64.b64encode(made.csr).decode("ascii")
    ledger.note(MADE, unit=unit, facts={"slot": made.slot, "held": made.held, "csr": csr})


def may_be_replaced(ledger: Ledger, unit: Unit, slot: str) -> bool:
    """Whether a key in this place can only be one that this ledger had made in this very box."""
    own = [known for known in ledger.units_named(unit.hardware_serial) if known.uid == unit.uid]
    events = (event for known in own for event in ledger.events(unit=known) if event.kind == ASKED)
    return any(json.loads(event.detail)["slot"] == slot for event in events)


def made_key_of(ledger: Ledger, unit: Unit) -> MadeKey | None:
    """What was noted of this unit's key, the newest."""
    noted = [json.loads(event.detail) for event in ledger.events(unit=unit) if event.kind == MADE]
    if not noted:
        return None
    return MadeKey(noted[-1]["slot"], noted[-1]["held"], base64.b64decode(noted[-1]["csr"]))
