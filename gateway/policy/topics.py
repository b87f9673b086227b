"""The algebra of topic names and topic filters: does a filter match, cover or overlap another.

A topic is handled as the tuple of its levels, cut at `/`; nothing here compares or builds text, so no value
can reach out of its level. The rules are section 4.7 of MQTT 3.1.1. `covers` and `overlap` speak about sets:
a filter stands for all topic names that it matches. They are exact: no topic is missed, none is too many.
Two facts make the corners of these sets: the empty text is no topic name [MQTT-4.7.3-1], so `#` is `+/#` and
`/#` is `/+/#`; and a leading wildcard hides the topics that start with `$` [MQTT-4.7.2-1].

Refused, as by MQTT 3.1.1: U+0000, more than 65,535 bytes, wildcards that do not fill a level, `#` before the end.
"""

from __future__ import annotations

MAX_TOPIC_BYTES = 65_535
"""The longest text that the two length bytes of MQTT can announce [MQTT-4.7.3-3]."""

FILLER = "any"
"""Stands in a witness topic for a level that may be anything."""

Levels = tuple[str, ...]


def parse_filter(text: str) -> Levels:
    """The levels of a topic filter; ValueError with the reason when it is not one."""
    levels = _split(text)
    for level in levels[:-1]:
        if level == "#":
            raise ValueError("'#' stands before the end [MQTT-4.7.1-2]")
    for level in levels:
        if len(level) > 1 and ("+" in level or "#" in level):
            raise ValueError("a wildcard does not fill its level [MQTT-4.7.1-2, 4.7.1-3]")
    return levels


def parse_topic(text: str) -> Levels:
    """The levels of a topic name; ValueError with the reason when it is not one."""
    if "+" in text or "#" in text:
        raise ValueError("a topic name holds a wildcard [MQTT-3.3.2-2]")
    return _split(text)


def _split(text: str) -> Levels:
    if not text:
        raise ValueError("a topic has no character [MQTT-4.7.3-1]")
    if "\0" in text:
        raise ValueError("a topic holds U+0000 [MQTT-4.7.3-2]")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("a topic holds a surrogate [MQTT-1.5.3-1]") from None
    if size > MAX_TOPIC_BYTES:
        raise ValueError(f"a topic has {size} bytes, more than {MAX_TOPIC_BYTES} [MQTT-4.7.3-3]")
    return tuple(text.split("/"))


def matches(filter_levels: Levels, topic_levels: Levels) -> bool:
    """Whether the filter matches the topic name: a topic name is the filter that stands for itself alone."""
    return covers(filter_levels, topic_levels)


def covers(grant_levels: Levels, request_levels: Levels) -> bool:
    """Whether every topic that the request matches is also matched by the grant."""
    request = normal(request_levels)
    if request[0].startswith("$") and grant_levels[0] in {"+", "#"}:
        return False
    for at, granted in enumerate(grant_levels):
        if granted == "#":
            return True
        if at == len(request):
            return False
        asked = request[at]
        if asked == "#" or (granted not in {"+", asked}):
            return False
    return len(grant_levels) == len(request)


def normal(levels: Levels) -> Levels:
    """The same set of topics, written so that `#` stands for no level only where that leaves a topic name."""
    if levels in (("#",), ("", "#")):
        return (*levels[:-1], "+", "#")
    return levels


def overlap(a: Levels, b: Levels) -> Levels | None:
    """A topic name that both filters match, or None when there is none."""
    first = {a[0], b[0]}
    if first & {"+", "#"} and any(level.startswith("$") for level in first):
        return None
    a, b = normal(a), normal(b)
    witness: list[str] = []
    for at in range(max(len(a), len(b))):
        left, right = _level(a, at), _level(b, at)
        if left is None or right is None:
            # One filter is at its end: the other must allow that no level follows.
            return tuple(witness) if {left, right} == {None, "#"} else None
        if left == right == "#":
            break
        level = _common(left, right)
        if level is None:
            return None
        witness.append(level)
    return tuple(witness)


def _level(levels: Levels, at: int) -> str | None:
    """The level there, `#` for all that a final `#` stands for, None behind the end."""
    if at < len(levels):
        return levels[at]
    return "#" if levels[-1] == "#" else None


def _common(left: str, right: str) -> str | None:
    """One level that both of these levels match, or None."""
    wild = {"+", "#"}
    if left in wild:
        return FILLER if right in wild else right
    return left if right in wild or left == right else None
