"""Which local topics go up, which remote topics come down, and what each is called on the other side.

An entry maps one topic filter to another, level by level: a level captured by `+` goes to the `+` of the other filter,
the levels captured by `#` go to its `#`. So both filters have the same wildcards in the same order, and nothing of a
topic can move the border between its levels. `{gateway}` is a whole level and stands for this gateway's own name.

What comes out is judged once more: it must be a topic name, and the entry's own target filter must match it. So a
message from upstream never reaches a local topic outside of what its entry names, whatever the upstream sends; what
local devices may receive of it is the policy's business as always.

Refused when the configuration is read: filters that are none, wildcards that do not pair, braces that are not
`{gateway}`, two entries of one direction that match the same topic (it would go twice), commands into `$...`.

Spec: MQTT 3.1.1 section 4.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.policy.topics import Levels, matches, overlap, parse_filter, parse_topic

GATEWAY: Final = "{gateway}"
WILDCARDS: Final = ("+", "#")
MAX_ENTRIES: Final = 100  # of one direction; each message is tried against all of them
_KEYS: Final = ("local", "remote", "qos")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the map: topics that match `source` are called as `target` says on the other side."""

    source: Levels
    target: Levels
    qos: int

    def named(self, gateway: str) -> Entry:
        """The entry with `{gateway}` replaced, level-wise."""
        return Entry(_named(self.source, gateway), _named(self.target, gateway), self.qos)

    def map(self, topic: str) -> str | None:
        """The topic's name on the other side; None when the entry is not for it or names no topic there."""
        levels = tuple(topic.split("/"))
        if not matches(self.source, levels):
            return None
        mapped = tuple(self._fill(levels))
        try:
            parse_topic("/".join(mapped))
        except ValueError:
            return None
        return "/".join(mapped) if matches(self.target, mapped) else None

    def _fill(self, levels: Levels) -> Levels:
        captured = [levels[at] for at, level in enumerate(self.source) if level == "+"]
        filled: list[str] = []
        for level in self.target:
            if level == "#":
                filled += levels[len(self.source) - 1 :]
            else:
                filled.append(captured.pop(0) if level == "+" else level)
        return tuple(filled)

    @property
    def source_filter(self) -> str:
        """The filter to subscribe with."""
        return "/".join(self.source)


def _named(levels: Levels, gateway: str) -> Levels:
    return tuple(gateway if level == GATEWAY else level for level in levels)


@dataclass(frozen=True, slots=True)
class TopicMap:
    """The entries of one direction."""

    entries: tuple[Entry, ...]

    def named(self, gateway: str) -> TopicMap:
        """The map of the gateway of this name."""
        return TopicMap(tuple(entry.named(gateway) for entry in self.entries))

    def find(self, topic: str) -> tuple[Entry, str] | None:
        """The entry for a topic and the topic's name on the other side; None when there is none."""
        for entry in self.entries:
            mapped = entry.map(topic)
            if mapped is not None:
                return entry, mapped
        return None


def parse_publish(value: Any) -> TopicMap:
    """[uplink] publish: from local to remote; ValueError with the reason."""
    return _parse(value, "local", "remote")


def parse_subscribe(value: Any) -> TopicMap:
    """[uplink] subscribe: from remote to local; ValueError with the reason."""
    parsed = _parse(value, "remote", "local")
    for entry in parsed.entries:
        if entry.target[0].startswith("$"):
            raise ValueError(f"an entry whose local filter {'/'.join(entry.target)!a} starts with '$'")
    return parsed


def _parse(value: Any, source: str, target: str) -> TopicMap:
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise ValueError(f"no list of at most {MAX_ENTRIES} tables")
    entries = [_entry(item, source, target) for item in value]
    for at, entry in enumerate(entries):
        for other in entries[:at]:
            both = overlap(other.source, entry.source)
            if both is not None:
                raise ValueError(
                    f"two entries for one topic: {other.source_filter!a} and {entry.source_filter!a}"
                    f" both match {'/'.join(both)!a}"
                )
    return TopicMap(tuple(entries))


def _entry(item: Any, source: str, target: str) -> Entry:
    if not isinstance(item, Mapping) or not set(item) <= set(_KEYS) or not {"local", "remote"} <= set(item):
        raise ValueError('an entry that is not { local = "...", remote = "...", qos = 1 }')
    qos = item.get("qos", 1)
    if type(qos) is not int or qos not in (0, 1):
        raise ValueError(f"qos = {qos!a}, which is neither 0 nor 1")
    entry = Entry(_filter(item[source]), _filter(item[target]), qos)
    if _wildcards(entry.source) != _wildcards(entry.target):
        raise ValueError(f"{item['local']!a} and {item['remote']!a}, whose wildcards differ")
    return entry


def _filter(text: Any) -> Levels:
    if not isinstance(text, str):
        raise ValueError(f"{text!a}, which is no topic filter")  # noqa: TRY004 - a value of a file, not a call
    try:
        levels = parse_filter(text)
    except ValueError as error:
        raise ValueError(f"{text!a}: {error}") from error
    if any(level != GATEWAY and ("{" in level or "}" in level) for level in levels):
        raise ValueError(f"{text!a} with a brace that is not the level {GATEWAY}")
    if levels[0] == "$share":
        raise ValueError(f"{text!a}, a shared subscription")
    return levels


def _wildcards(levels: Levels) -> list[str]:
    return [level for level in levels if level in WILDCARDS]
