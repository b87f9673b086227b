"""The device registry for gateways: `devices.jsonl`, one JSON object per line with `id` and `attributes`.

It holds the units that are finished now, so a scrapped or retired one is no longer in it. The format is a contract with
the gateway (`[policy] registry`, docs/gateway.md); the two programs share no code for it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mtls.keystore import write_public
from provisioning.ledger import FINISHED, Ledger


def write_registry(ledger: Ledger, out: Path, also: Sequence[str] = ()) -> int:
    """Write the registry atomically; `also` are ids without a unit, such as services. Returns the number of lines."""
    attributes = {attempt.unit_id: json.loads(attempt.attributes) for attempt in ledger.attempts()}
    lines: dict[str, dict[str, str]] = {name: {} for name in also}
    lines |= {unit.device_id: attributes.get(unit.id, {}) for unit in ledger.units() if unit.state in FINISHED}
    text = "".join(json.dumps({"id": name, "attributes": lines[name]}) + "\n" for name in sorted(lines))
    write_public(out, text.encode("ascii"))
    return len(lines)
