"""Globs over the facts of a connection, and an index that finds the few globs a fact can satisfy.

A glob is `*` (any text), `?` (any character), `[a-f]` and `[!a-f]` (one character in or not in a set), `{id}` (a
token, whose value is compared literally) and characters that stand for themselves; case matters. A glob is a row of
elements and never becomes a regular expression: no value is ever escaped, and a match costs at most length times
length, whatever the text (no backtracking to exploit).

The index files every entry under one literal part of one of its globs, the part that it shares with the fewest other
entries; a look-up tries only what is filed under parts of the facts at hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")

_SPECIAL = frozenset("*?[{}")

MAX_ALTERNATIVES = 64
"""Into how many literals the character sets of one glob are spelled out for the index."""

MAX_SPELLED_SET = 16
"""A set of more characters than this ends the literal part of a glob."""


class Wild(Enum):
    """The elements that are no characters."""

    ONE = "?"
    MANY = "*"


@dataclass(frozen=True, slots=True)
class CharSet:
    """One character in (or, negated, not in) some ranges, both ends included."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool = False

    def accepts(self, character: str) -> bool:
        return any(low <= character <= high for low, high in self.ranges) is not self.negated

    def members(self) -> tuple[str, ...] | None:
        """All characters, when they are few; None when they are many."""
        if self.negated or sum(ord(high) - ord(low) + 1 for low, high in self.ranges) > MAX_SPELLED_SET:
            return None
        spelled = (chr(code) for low, high in self.ranges for code in range(ord(low), ord(high) + 1))
        return tuple(dict.fromkeys(spelled))


@dataclass(frozen=True, slots=True)
class Token:
    """A place for the value of a fact."""

    name: str


Element = str | Wild | CharSet | Token
"""A text element is one character."""

Key = tuple[str, str]
"""A literal part: ("=", whole text), ("^", start) or ("$", end)."""


@dataclass(frozen=True, slots=True)
class Glob:
    """One pattern. `text` is how the policy file writes it."""

    text: str
    elements: tuple[Element, ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(element.name for element in self.elements if isinstance(element, Token))

    def bind(self, values: Mapping[str, str]) -> Glob | None:
        """The glob with every token replaced by the characters of its value; None when one has no value."""
        bound: list[Element] = []
        for element in self.elements:
            if isinstance(element, Token):
                value = values.get(element.name)
                if value is None:
                    return None
                bound.extend(value)
            else:
                bound.append(element)
        return Glob(self.text, tuple(bound))

    def matches(self, value: str) -> bool:
        """Whether the whole of `value` fits. A glob with tokens in it matches nothing: bind it first."""
        elements = self.elements
        at = seen = resume = 0
        star = -1
        while seen < len(value):
            element = elements[at] if at < len(elements) else None
            if element is Wild.MANY:
                at += 1
                star, resume = at - 1, seen
                if Wild.MANY not in elements[at:]:
                    # The last `*`: what follows must end the text, so a long text is not tried place by place.
                    star, seen = -1, len(value) - len(elements) + at
                    if seen < resume:
                        return False
            elif element is not None and accepts(element, value[seen]):
                at += 1
                seen += 1
            elif star >= 0:
                # Only the last `*` has to give: an earlier one cannot do better.
                resume += 1
                at, seen = star + 1, resume
            else:
                return False
        return all(element is Wild.MANY for element in elements[at:])

    def literal_parts(self) -> Iterator[tuple[Key, ...]]:
        """Ways to file the glob: in each, whatever matches has at least one of the literal parts."""
        starts, used = [""], 0
        for element in self.elements:
            members = _members(element)
            if members is None or len(starts) * len(members) > MAX_ALTERNATIVES:
                break
            starts = [start + member for start in starts for member in members]
            used += 1
        if used == len(self.elements):
            yield tuple(("=", start) for start in starts)
        elif used:
            yield tuple(("^", start) for start in starts)
        end = ""
        for element in reversed(self.elements):
            if not isinstance(element, str):
                break
            end = element + end
        if end and used < len(self.elements):
            yield (("$", end),)


def accepts(element: Element, character: str) -> bool:
    """Whether an element takes this one character; `*` is no character."""
    if isinstance(element, str):
        return element == character
    if isinstance(element, CharSet):
        return element.accepts(character)
    return element is Wild.ONE


def _members(element: Element) -> tuple[str, ...] | None:
    if isinstance(element, str):
        return (element,)
    return element.members() if isinstance(element, CharSet) else None


def parse_glob(text: str, tokens: Collection[str] | None = None) -> Glob:
    """A glob from the text of a policy; ValueError with the reason.

    With `tokens` given, `{name}` is a token and must be one of these names (`attr.` stands for every attribute);
    without, braces stand for themselves.
    """
    if _SPECIAL.isdisjoint(text):
        return literally(text)
    elements: list[Element] = []
    at = 0
    while at < len(text):
        character = text[at]
        if character == "[":
            element, at = _charset(text, at)
            elements.append(element)
            continue
        if tokens is not None and character in "{}":
            end = text.find("}", at)
            name = text[at + 1 : end] if character == "{" and end > 0 else ""
            if not is_named(name, tokens):
                raise ValueError(f"{text!a} holds a brace that is no known token")
            elements.append(Token(name))
            at = end + 1
            continue
        elements.append(Wild(character) if character in "*?" else character)
        at += 1
    return Glob(text, tuple(elements))


def literally(text: str) -> Glob:
    """The glob that matches this text and no other."""
    return Glob(text, tuple(text))


def sample(glob: Glob) -> str:
    """A text that the glob matches, for one without tokens and with sets that are not negated away."""
    return "".join(_sample(element) for element in glob.elements)


def _sample(element: Element) -> str:
    if isinstance(element, str):
        return element
    if isinstance(element, CharSet):
        return next((c for c in "ax019-._:" if element.accepts(c)), element.ranges[0][0])
    return "1"


def is_named(name: str, known: Collection[str]) -> bool:
    """Whether the name is a known one; a known name that ends with a dot, as `attr.`, allows all that go on from it."""
    if name in known:
        return not name.endswith(".")
    return any(open_end.endswith(".") and name.startswith(open_end) and name != open_end for open_end in known)


def _charset(text: str, start: int) -> tuple[CharSet, int]:
    """The set that opens at `start` and where the text goes on; `]` as its first character is a member."""
    at = start + 1
    negated = text[at : at + 1] == "!"
    at += negated
    end = text.find("]", at + 1)
    if end < 0:
        raise ValueError(f"{text!a} opens a character set with '[' and does not close it")
    body, ranges = text[at:end], []
    index = 0
    while index < len(body):
        high = index + 2 if body[index + 1 : index + 2] == "-" and index + 2 < len(body) else index
        if body[high] < body[index]:
            raise ValueError(f"{text!a} holds the empty range {body[index : high + 1]!a}")
        ranges.append((body[index], body[high]))
        index = high + 1
    return CharSet(tuple(ranges), negated), end + 1


Facts = Mapping[str, Sequence[str]]
"""The values of a connection by name of the fact; most facts have one value, some have none or several."""


class FactIndex(Generic[T]):
    """Entries with globs over facts; `candidates` finds all that can match and few that do not."""

    __slots__ = ("_filed", "_lengths", "_rest")

    def __init__(self, entries: Iterable[tuple[Mapping[str, Glob], T]]) -> None:
        filed: dict[tuple[str, Key], list[tuple[int, T]]] = {}
        self._rest: list[tuple[int, T]] = []
        ways = [(_ways(globs), entry) for globs, entry in entries]
        crowd = Counter(place for options, _ in ways for option in options for place in option)
        for number, (options, entry) in enumerate(ways):
            best = min(options, key=lambda option: sum(crowd[place] for place in option), default=None)
            if best is None:
                self._rest.append((number, entry))
            for place in best or ():
                filed.setdefault(place, []).append((number, entry))
        self._filed = filed
        lengths: dict[tuple[str, str], set[int]] = {}
        for fact, (kind, text) in filed:
            lengths.setdefault((fact, kind), set()).add(len(text))
        self._lengths = {place: tuple(sorted(sizes)) for place, sizes in lengths.items()}

    def candidates(self, facts: Facts) -> list[T]:
        """Every entry whose globs can match these facts, in the order in which they were given."""
        found = dict(self._rest)
        for fact, values in facts.items():
            for value in values:
                for place in self._places(fact, value):
                    found.update(self._filed.get(place, ()))
        return [found[number] for number in sorted(found)]

    def _places(self, fact: str, value: str) -> Iterator[tuple[str, Key]]:
        yield fact, ("=", value)
        for size in self._lengths.get((fact, "^"), ()):
            if size > len(value):
                break
            yield fact, ("^", value[:size])
        for size in self._lengths.get((fact, "$"), ()):
            if size > len(value):
                break
            yield fact, ("$", value[-size:])


def _ways(globs: Mapping[str, Glob]) -> list[tuple[tuple[str, Key], ...]]:
    return [tuple((fact, key) for key in option) for fact, glob in globs.items() for option in glob.literal_parts()]
