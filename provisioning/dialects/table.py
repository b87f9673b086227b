"""The dialects there are: what each declares, how its port is opened, and who speaks it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from provisioning.dialects import file, nordic, spp1
from provisioning.dialects.declared import MEANING, Ability, Declared
from provisioning.dialects.device import Conversation, Device
from provisioning.dialects.esp_secure_cert import ESP_SECURE_CERT
from provisioning.folder import Folder
from provisioning.port import SerialPort


@dataclass(frozen=True, slots=True)
class Dialect:
    """A dialect that units are burned in. `open_port` takes a path and a baud rate; `speak` a conversation on
    what it opens."""

    declared: Declared
    open_port: Callable[[str, int], AbstractContextManager[Any]]
    speak: Callable[[Conversation[Any]], Device]


SPP1 = Dialect(spp1.SPP1, SerialPort, spp1.Spp1Device)
NORDIC_AT = Dialect(nordic.NORDIC_AT, SerialPort, nordic.ModemDevice)
FILE = Dialect(file.FILE, lambda path, _: Folder(path), file.FileDevice)
BURNABLE: Mapping[str, Dialect] = MappingProxyType(
    {dialect.declared.name: dialect for dialect in (SPP1, NORDIC_AT, FILE)}
)
DECLARED: tuple[Declared, ...] = (*(dialect.declared for dialect in BURNABLE.values()), ESP_SECURE_CERT)

_CELL = 5


def rows() -> list[dict[str, object]]:
    """Every dialect for JSON."""
    return [declared.as_row() for declared in DECLARED]


def as_text() -> str:
    """One column per dialect, within 80 columns."""
    first = max(len(text) for text in MEANING.values()) + 2
    lines = [" " * first + "  ".join(declared.name.ljust(_CELL) for declared in DECLARED)]
    for ability, meaning in MEANING.items():
        cells = [_cell(declared, ability).ljust(max(len(declared.name), _CELL)) for declared in DECLARED]
        lines.append((meaning.ljust(first) + "  ".join(cells)).rstrip())
    for declared in DECLARED:
        lines += ["", f"{declared.name}: {declared.device}"]
        if declared.max_bytes:
            lines.append("  at most: " + ", ".join(f"{obj} {most} bytes" for obj, most in declared.max_bytes.items()))
        lines += [f"  {ability} only: {condition}" for ability, condition in declared.conditions.items()]
    return "\n".join(lines)


def _cell(declared: Declared, ability: Ability) -> str:
    if ability not in declared.abilities:
        return "-"
    return "(yes)" if ability in declared.conditions else "yes"
