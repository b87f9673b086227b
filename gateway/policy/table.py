"""A TOML table read strictly: every key known, every value of its type, every fault with file, line, table and key.

The reader hands out plain values and knows no policy. A fault names the nearest known key when one is misspelled; a
value is quoted with everything unprintable escaped.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from gateway.policy.globs import is_named
from gateway.policy.toml_lines import Lines, Path
from mtls.errors import ConfigFault
from mtls.terminal import sanitise

T = TypeVar("T")
C = TypeVar("C", bound=str)

CHECK_HINT = "mend the line, then run `mqtt-gateway check-config`"


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file and what is needed to point into it."""

    file: str
    lines: Lines

    def fault(self, path: Path, message: str, hint: str = CHECK_HINT) -> ConfigFault:
        return ConfigFault(f"{self.file}:{self.lines.of(path)}: {message}", hint=hint)


class Table:
    """One table of a document. `title` is how a fault calls it, as `[[role]] "device"`.

    A known key that ends with a dot stands for every key that goes on from it.
    """

    __slots__ = ("_values", "document", "path", "title")

    def __init__(self, document: Document, path: Path, title: str, values: object, known: Sequence[str]) -> None:
        self.document, self.path, self.title = document, path, title
        if not isinstance(values, dict):
            raise document.fault(path, f"{title} is {_kind(values)}, not a table")
        self._values: dict[str, Any] = values
        for key in values:
            if not is_named(key, known):
                self._unknown(key, known)

    def _unknown(self, key: str, known: Sequence[str]) -> NoReturn:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        near = f", the nearest known key is {quoted(nearest[0])}" if nearest else ""
        raise self.fault((key,), f"unknown key {quoted(key)} in {self.title}{near}", f"known keys: {', '.join(known)}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def line(self, *below: str | int) -> int:
        return self.document.lines.of((*self.path, *below))

    def fault(self, below: Path, message: str, hint: str = CHECK_HINT) -> ConfigFault:
        return self.document.fault((*self.path, *below), message, hint)

    def wrong(self, below: Path, found: object, wanted: str) -> ConfigFault:
        return self.fault(below, f"{_dotted(below)} in {self.title} is {_kind(found)}, not {wanted}")

    def invalid(self, below: Path, why: object) -> ConfigFault:
        return self.fault(below, f"{_dotted(below)} in {self.title}: {why}")

    def text(self, key: str) -> str:
        """A text that must be there and is not empty."""
        if key not in self._values:
            raise self.fault((), f"{self.title} has no {quoted(key)}")
        return self._text((key,), self._values[key])

    def _text(self, below: Path, value: object) -> str:
        if not isinstance(value, str):
            raise self.wrong(below, value, "a text")
        if not value:
            raise self.invalid(below, "the text is empty")
        return value

    def optional_text(self, key: str) -> str | None:
        """A text, which may be empty, or None when the key is missing."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong((key,), value, "a text")
        return value

    def attributes(self, key: str) -> dict[str, str]:
        """Texts by name from `attr = { site = "x" }` or `"attr.site" = "x"`; nothing when there is none."""
        found: dict[str, str] = {}
        for path, value in self.flat().items():
            first, _, name = ".".join(str(part) for part in path).partition(".")
            if first == key:
                if not isinstance(value, str):
                    raise self.wrong(path, value, "a text")
                if not name:
                    raise self.invalid(path, "an attribute has a name")
                found[name] = value
        return found

    def texts(self, key: str) -> list[str]:
        """A list of texts; each may be empty, the list may be missing."""
        values = self._values.get(key, [])
        if not isinstance(values, list):
            raise self.wrong((key,), values, "a list of texts")
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self.wrong((key, index), value, "a text")
        return values

    def choice(self, key: str, choices: Sequence[C]) -> C | None:
        """One of a few texts, or None when the key is missing."""
        if key not in self._values:
            return None
        for choice in choices:
            if choice == self._values[key]:
                return choice
        allowed = ", ".join(quoted(choice) for choice in choices)
        raise self.fault((key,), f"{key} in {self.title} is {quoted(self._values[key])}, not one of {allowed}")

    def integer(self, key: str, most: int) -> int | None:
        """A whole number from 1 to `most`, or None when the key is missing."""
        value = self._values.get(key)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            raise self.fault((key,), f"{key} in {self.title} is {quoted(value)}, not a whole number from 1 to {most}")
        return value

    def rate(self, key: str) -> float | None:
        """A number above 0, or None when the key is missing."""
        value = self._values.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not (value > 0 and math.isfinite(value)):
            raise self.fault((key,), f"{key} in {self.title} is {quoted(value)}, not a number above 0")
        return float(value)

    def table(self, key: str, known: Sequence[str]) -> Table | None:
        """A table inside this one, or None when the key is missing."""
        if key not in self._values:
            return None
        return Table(self.document, (*self.path, key), f"{key} of {self.title}", self._values[key], known)

    def tables(self, key: str, title: str, known: Sequence[str]) -> Iterable[Table]:
        """An array of tables, one by one; nothing when the key is missing. `title` names each, as `[[role]]`."""
        values = self._values.get(key, [])
        if not isinstance(values, list):
            raise self.wrong((key,), values, "an array of tables")
        for index, value in enumerate(values):
            name = value.get("name", value.get("subject_cn")) if isinstance(value, dict) else None
            named = f"{title} {quoted(name)}" if isinstance(name, str) else f"{title} number {index + 1}"
            yield Table(self.document, (*self.path, key, index), named, value, known)

    def flat(self) -> Mapping[Path, object]:
        """Every value that is no table, by its path: `attr.site = 1` and `"attr.site" = 1` are both there."""
        found: dict[Path, object] = {}
        pending: list[tuple[Path, object]] = [((key,), value) for key, value in self._values.items()]
        for path, value in pending:
            if isinstance(value, dict):
                pending += [((*path, key), below) for key, below in value.items()]
            else:
                found[path] = value
        return found

    def parsed(self, below: Path, parse: Callable[[str], T], text: str) -> T:
        """What `parse` makes of the text; its ValueError becomes a fault at this place."""
        try:
            return parse(text)
        except ValueError as error:
            raise self.invalid(below, error) from None


def quoted(value: object) -> str:
    """A value as a fault shows it."""
    return f'"{sanitise(value, 80)}"' if isinstance(value, str) else sanitise(repr(value), 80)


def _kind(value: object) -> str:
    names = {dict: "a table", list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "a date or time")


def _dotted(below: Path) -> str:
    text = ""
    for part in below:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return sanitise(text, 80)
