"""On which line of a TOML text a value stands. `tomllib` reads values and forgets where they stood.

The text must have been accepted by `tomllib` before: nothing is checked here, and a text that is no TOML gives
meaningless lines or an early end, never an exception. A value on one line is passed over in one step, so that a
policy of a hundred thousand roles is scanned in about a second; arrays and inline tables that span lines are walked
element by element. Spec: TOML 1.0.0.
"""

from __future__ import annotations

import re
from itertools import count

Path = tuple[str | int, ...]
"""Keys and indices from the root, as ("role", 3, "publish", 0)."""

_KEY = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]+')"""
_KEYS = rf"{_KEY}(?:[ \t]*\.[ \t]*{_KEY})*"
_STRING = r"""(?!\"{3}|'{3})(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_ATOM = rf"""[^"'\[\]{{}}#\n]+|{_STRING}"""

_numbers = count()


def _once(pattern: str) -> str:
    """`pattern` as it matches first and never again: what a possessive group does where it works (not in 3.11.2).

    A look-ahead is not entered a second time, so the failure behind it costs nothing like 2^n.
    """
    name = f"once{next(_numbers)}"
    return f"(?=(?P<{name}>{pattern}))(?P={name})"


def _nested(depth: int) -> str:
    """Text without line ends whose brackets close, to some depth."""
    return _once(rf"(?:{_ATOM})*" if depth == 0 else rf"(?:{_ATOM}|[\[{{]{_nested(depth - 1)}[\]}}])*")


_SKIP = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)+")
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_KEYS})[ \t]*\]\]?[^\n]*")
_ASSIGNMENT = re.compile(rf"[ \t]*({_KEYS})[ \t]*=[ \t]*")
_ONE_LINE = re.compile(rf"{_nested(3)}(?:#[^\n]*)?$", re.MULTILINE)
_PLAIN = re.compile(rf"[ \t]*([A-Za-z0-9_-]+)[ \t]*=[ \t]*{_nested(3)}(?:#[^\n]*)?\n")
_PART = re.compile(_KEY)
# Inside a value: what separates, opens, closes or must be jumped over as a whole.
_LONG_STRING = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}', re.DOTALL)
_SHORT_STRING = re.compile(_STRING)
_SPACE = re.compile(r"(?:[ \t\r\n,]|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}\s#]+")


class Lines:
    """Line numbers by path, the first line being 1."""

    __slots__ = ("_lines",)

    def __init__(self, text: str) -> None:
        self._lines: dict[Path, int] = _scan(text.replace("\r\n", "\n"))

    def of(self, path: Path) -> int:
        """The line of a value, or of the nearest table or array around it that has a line of its own."""
        for end in range(len(path), 0, -1):
            line = self._lines.get(path[:end])
            if line is not None:
                return line
        return 1


def _scan(text: str) -> dict[Path, int]:
    lines: dict[Path, int] = {}
    arrays: dict[Path, int] = {}
    table: Path = ()
    at, line, counted = 0, 1, 0
    while at < len(text):
        line += text.count("\n", counted, at)
        counted = at
        if plain := _PLAIN.match(text, at):
            # The common line, `key = value` on one line, in one step.
            lines[(*table, plain[1])] = line
            at = plain.end()
            continue
        if skipped := _SKIP.match(text, at):
            at = skipped.end()
            continue
        if header := _HEADER.match(text, at):
            table = _table(header, arrays)
            lines.setdefault(table, line)
            at = header.end()
        elif assigned := _ASSIGNMENT.match(text, at):
            path = (*table, *_parts(assigned[1]))
            for end in range(len(table) + 1, len(path) + 1):
                lines.setdefault(path[:end], line)
            at = assigned.end()
            whole = _ONE_LINE.match(text, at)
            at = whole.end() if whole else _line_end(text, _Value(text, lines, line).walk(at, path))
        else:
            at = _line_end(text, at)
        at += 1  # the line end
    return lines


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _parts(keys: str) -> list[str]:
    """The keys of a dotted key. Escapes in a quoted key are left as written: it only names a line."""
    return [part if part[0] not in "\"'" else part[1:-1] for part in _PART.findall(keys)]


def _table(header: re.Match[str], arrays: dict[Path, int]) -> Path:
    """The path of a table header; a header below an array of tables means its last element."""
    parts, path = _parts(header[2]), Path()
    for number, part in enumerate(parts):
        path = (*path, part)
        if header[1] == "[[" and number == len(parts) - 1:
            arrays[path] = arrays.get(path, -1) + 1
        if path in arrays:
            path = (*path, arrays[path])
    return path


class _Value:
    """One value that spans lines."""

    __slots__ = ("_counted", "_line", "_lines", "_text")

    def __init__(self, text: str, lines: dict[Path, int], line: int) -> None:
        self._text, self._lines, self._line = text, lines, line
        self._counted = -1

    def walk(self, at: int, path: Path) -> int:
        """Note the lines of the value's elements; where the text goes on behind the value."""
        if self._counted < 0:
            self._counted = at
        opening = self._text[at : at + 1]
        if opening == "[":
            return self._array(at + 1, path)
        if opening == "{":
            return self._inline_table(at + 1, path)
        for kind in (_LONG_STRING, _SHORT_STRING, _SCALAR):
            if found := kind.match(self._text, at):
                return found.end()
        return len(self._text)

    def _array(self, at: int, path: Path) -> int:
        index = 0
        while (at := self._skip(at)) < len(self._text) and self._text[at] != "]":
            element = (*path, index)
            self._lines.setdefault(element, self._line)
            at = self.walk(at, element)
            index += 1
        return at + 1

    def _inline_table(self, at: int, path: Path) -> int:
        while (at := self._skip(at)) < len(self._text) and self._text[at] != "}":
            assigned = _ASSIGNMENT.match(self._text, at)
            if assigned is None:
                return len(self._text)
            element = (*path, *_parts(assigned[1]))
            self._lines.setdefault(element, self._line)
            at = self.walk(assigned.end(), element)
        return at + 1

    def _skip(self, at: int) -> int:
        """Jump over space, comments and commas; the line of what comes next is then known."""
        found = _SPACE.match(self._text, at)
        at = found.end() if found else at
        self._line += self._text.count("\n", self._counted, at)
        self._counted = at
        return at
