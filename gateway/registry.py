"""The device registry: which devices there are, and the attributes that policies may match.

`devices.jsonl` has one JSON object per line: `{"id": "press-07", "attributes": {"site": "north"}}`. With
`[policy] registry_required` a certificate whose device is not in it is refused, whoever signed it. A broken line,
an id that stands twice or an unknown key is a fault, and the registry in force stays: half a registry would lock half a
fleet out.
The factory's station writes this format; nothing but the format is shared with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from mtls.errors import ConfigFault, Reason, Refusal
from mtls.identity import DeviceId
from mtls.keystore import read_limited

MAX_REGISTRY_BYTES: Final = 256 * 1024 * 1024  # about two million devices
MAX_ATTRIBUTES: Final = 32
MAX_VALUE_CHARS: Final = 256
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_HINT: Final = 'a line is {"id": "press-07", "attributes": {"site": "north"}}; mqtt-provision registry writes it'


@dataclass(frozen=True, slots=True)
class Registry:
    """Devices by id; `required` refuses whoever is not in it."""

    devices: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: _NONE_AT_ALL)
    required: bool = False

    @classmethod
    def load(cls, path: Path | None, *, required: bool) -> Registry:
        """Read a registry; ConfigFault with file and line for anything wrong."""
        if path is None:
            if required:
                raise ConfigFault("[policy] registry_required needs [policy] registry", hint="name the devices.jsonl")
            return cls()
        devices: dict[str, Mapping[str, str]] = {}
        for number, line in enumerate(read_limited(path, MAX_REGISTRY_BYTES).splitlines(), 1):
            if not line.strip():
                continue
            name, attributes = _device(line, f"{path}: line {number}")
            if name in devices:
                raise ConfigFault(f"{path}: line {number} repeats the id {name!a}", hint="an id stands once")
            devices[name] = attributes
        return cls(MappingProxyType(devices), required)

    def refusal(self, device_id: DeviceId) -> Refusal | None:
        """Why this device is not let in, or None."""
        if self.required and device_id.value not in self.devices:
            return Refusal(Reason.NOT_REGISTERED, "not in the device registry")
        return None

    def attributes(self, device_id: DeviceId) -> Mapping[str, str]:
        """What rules may read as `attr.NAME`; nothing for a device that is not in it."""
        return self.devices.get(device_id.value, _NONE)


_NONE_AT_ALL: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType({})


def _device(line: bytes, where: str) -> tuple[str, Mapping[str, str]]:
    try:
        row: Any = json.loads(line)
        name = DeviceId(row["id"] if isinstance(row["id"], str) else "").value
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ConfigFault(f"{where} names no device", hint=_HINT) from None
    attributes = row.get("attributes", {})
    if row.keys() - {"id", "attributes"} or not isinstance(attributes, dict) or len(attributes) > MAX_ATTRIBUTES:
        raise ConfigFault(f"{where} has other keys than id and attributes", hint=_HINT)
    for key, value in attributes.items():
        if not _NAME.fullmatch(key) or not isinstance(value, str) or not 1 <= len(value) <= MAX_VALUE_CHARS:
            raise ConfigFault(f"{where}: the attribute {key!a} is not a text under a name like site_2", hint=_HINT)
    return name, MappingProxyType(attributes)
