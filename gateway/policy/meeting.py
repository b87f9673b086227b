"""Where two rules meet: a topic that several filters match, a text that several globs match, an id a pattern allows.

`check.py` proves with these that devices do not meet, or shows where they do. `common_topic` is exact. `common_texts`
finds short examples and gives up after a bounded search; `pattern_examples` reads the regular expression of the site
and offers some texts, for which the caller asks the expression itself.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.policy.globs import CharSet, Element, Glob, Wild, accepts
from gateway.policy.topics import FILLER, Levels, covers, normal

MAX_TEXT: Final = 64  # the longest device id
MAX_STEPS: Final = 20_000
MAX_VISITS: Final = 24  # of one state: how many texts that the globs cannot tell apart are tried
SPARE: Final = "ab1x-:"  # characters to fill a `*` or `?` with


def common_topic(required: Sequence[Levels], forbidden: Sequence[Levels]) -> Levels | None:
    """A topic name that all required filters match and no forbidden one, or None when there is none.

    Where no required filter names a level, a text that stands nowhere is the best choice: it escapes every forbidden
    filter that any other text escapes. So only the number of levels has to be tried.
    """
    rows = [normal(levels) for levels in required]
    used = {level for levels in (*required, *forbidden) for level in levels}
    spare = next(text for n in range(len(used) + 1) if (text := FILLER + (str(n) if n else "")) not in used)
    for count in range(1, max(len(levels) for levels in (*rows, *forbidden)) + 2):
        topic = tuple(spare if (level := _named(rows, at)) is None else level for at in range(count))
        if all(covers(levels, topic) for levels in rows) and not any(covers(levels, topic) for levels in forbidden):
            return topic
    return None


def common_texts(globs: Sequence[Glob], allowed: Callable[[str], bool], count: int) -> list[str]:
    """Up to `count` short texts that all globs match and `allowed` allows. The globs have no tokens."""
    start = tuple(_reached(glob.elements, {0}) for glob in globs)
    pending, visits, found = deque([("", start)]), Counter([start]), list[str]()
    for _ in range(MAX_STEPS):
        if not pending or len(found) == count:
            break
        text, states = pending.popleft()
        if (
            text
            and all(len(glob.elements) in state for glob, state in zip(globs, states, strict=True))
            and allowed(text)
        ):
            found.append(text)
        if len(text) == MAX_TEXT:
            continue
        for character in _next_characters(globs, states):
            following = tuple(_step(glob.elements, state, character) for glob, state in zip(globs, states, strict=True))
            if all(following) and visits[following] < MAX_VISITS:
                visits[following] += 1
                pending.append((text + character, following))
    return found


def have_no_common_text(globs: Sequence[Glob]) -> bool:
    """Whether it is certain that no text matches all globs; False also when it cannot be told."""
    # Which texts are tried leaves none out unless a set says what a character is not, or the shortest is too long.
    sets = [element for glob in globs for element in glob.elements if isinstance(element, CharSet)]
    told = not any(element.negated for element in sets) and sum(len(glob.elements) for glob in globs) <= MAX_TEXT
    return told and not common_texts(globs, lambda _: True, 1)


def _named(rows: Sequence[Levels], at: int) -> str | None:
    """The literal that one of the filters has there."""
    return next((levels[at] for levels in rows if at < len(levels) and levels[at] not in ("+", "#")), None)


def _reached(elements: Sequence[Element], places: set[int]) -> frozenset[int]:
    """The places in a glob, and those behind a `*` that stands there and may be empty."""
    reached = set(places)
    for place in sorted(places):
        while place < len(elements) and elements[place] is Wild.MANY:
            place += 1
            reached.add(place)
    return frozenset(reached)


def _step(elements: Sequence[Element], places: frozenset[int], character: str) -> frozenset[int]:
    stays = {place for place in places if place < len(elements) and elements[place] is Wild.MANY}
    goes = {place + 1 for place in places if place < len(elements) and accepts(elements[place], character)}
    return _reached(elements, stays | goes)


def _next_characters(globs: Sequence[Glob], states: Sequence[frozenset[int]]) -> list[str]:
    """Characters that the globs name at these places, then some that fill."""
    found = dict.fromkeys(SPARE)
    for glob, state in zip(globs, states, strict=True):
        for place in state:
            element = glob.elements[place] if place < len(glob.elements) else None
            if isinstance(element, str):
                found[element] = None
            elif isinstance(element, CharSet):
                found.update(dict.fromkeys(low for low, _ in element.ranges))
    return list(found)


def pattern_examples(pattern: re.Pattern[str], count: int) -> list[str]:
    """Some texts that a regular expression is likely to match: every choice taken once, repeats kept short."""
    tree = importlib.import_module("re._parser").parse(pattern.pattern, pattern.flags & ~re.DEBUG)
    texts = (_example(tree, turn) for turn in range(count * 4))
    return [text for text in dict.fromkeys(texts) if pattern.fullmatch(text)][:count]


def _example(tree: Any, turn: int) -> str:
    """One text for a parsed expression; what it cannot write it leaves out, and the expression then refuses."""
    text = ""
    for operator, argument in tree:
        match str(operator):
            case "LITERAL":
                text += chr(argument)
            case "ANY" | "NOT_LITERAL":
                text += SPARE[turn % len(SPARE)]
            case "IN":
                text += _member(argument, turn)
            case "BRANCH":
                text += _example(argument[1][turn % len(argument[1])], turn)
            case "SUBPATTERN":
                text += _example(argument[3], turn)
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                text += _example(argument[2], turn) * min(max(argument[0], turn % 2), MAX_TEXT)
    return text


def _member(choices: Sequence[tuple[Any, Any]], turn: int) -> str:
    members = ""
    for operator, argument in choices:
        match str(operator):
            case "LITERAL":
                members += chr(argument)
            case "RANGE":
                members += "".join(chr(code) for code in range(argument[0], min(argument[1] + 1, argument[0] + 4)))
            case "CATEGORY":
                members += {"CATEGORY_DIGIT": "01", "CATEGORY_WORD": "ab1"}.get(str(argument), "")
    return members[turn % len(members)] if members else ""


def may_contain(pattern: re.Pattern[str], character: str) -> bool:
    """Whether a text that the expression matches can hold this character; True when that cannot be told."""
    if pattern.flags & re.IGNORECASE:
        return True
    return _may_hold(importlib.import_module("re._parser").parse(pattern.pattern, pattern.flags & ~re.DEBUG), character)


def _may_hold(tree: Any, character: str) -> bool:
    for operator, argument in tree:
        match str(operator):
            case "LITERAL":
                held = argument == ord(character)
            case "IN":
                held = _in_set(argument, character)
            case "AT" | "GROUPREF":
                held = False
            case "BRANCH":
                held = any(_may_hold(branch, character) for branch in argument[1])
            case "SUBPATTERN":
                held = _may_hold(argument[3], character)
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                held = _may_hold(argument[2], character)
            case _:
                held = True
        if held:
            return True
    return False


def _in_set(choices: Sequence[tuple[Any, Any]], character: str) -> bool:
    kinds = [str(operator) for operator, _ in choices]
    if not {"LITERAL", "RANGE", "CATEGORY"}.issuperset(kinds):
        return True  # NEGATE, which stands in front of what the set does not hold
    shapes = {"CATEGORY_DIGIT": r"\d", "CATEGORY_WORD": r"\w", "CATEGORY_SPACE": r"\s"}
    return any(
        argument == ord(character)
        if kind == "LITERAL"
        else argument[0] <= ord(character) <= argument[1]
        if kind == "RANGE"
        else str(argument) not in shapes or re.fullmatch(shapes[str(argument)], character) is not None
        for kind, (_, argument) in zip(kinds, choices, strict=True)
    )
