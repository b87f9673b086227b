"""Who gets a message: the index of subscriptions and the index of retained messages.

A look-up costs what its own topic or filter costs, however many other devices are subscribed. Topics and
filters have been checked by the codec before they come here; rights and limits are judged elsewhere.
Matching follows section 4.7 of MQTT 3.1.1: `#` also matches its parent, levels are compared character for
character [MQTT-4.7.3-4], and a filter that starts with a wildcard does not match a topic that starts with
`$` [MQTT-4.7.2-1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from gateway.broker.trie import LevelTrie

T = TypeVar("T")
M = TypeVar("M")


def _is_wild(topic_filter: str) -> bool:
    return "+" in topic_filter or topic_filter.endswith("#")


class SubscriptionIndex(Generic[T]):
    """Topic filters and their subscribers, which must be hashable, with the QoS granted to each."""

    __slots__ = ("_exact", "_size", "_wild")

    def __init__(self) -> None:
        # Filters without a wildcard need no walk: they are the topic.
        self._exact: dict[str, dict[T, int]] = {}
        self._wild: LevelTrie[dict[T, int]] = LevelTrie()
        self._size = 0

    def __len__(self) -> int:
        """The number of subscriptions: pairs of filter and subscriber."""
        return self._size

    def add(self, topic_filter: str, subscriber: T, qos: int) -> None:
        """Subscribe; the same filter and subscriber again only replaces the QoS [MQTT-3.8.4-3]."""
        if _is_wild(topic_filter):
            node = self._wild.make(topic_filter)
            if node.value is None:
                node.value = {}
            subscribers = node.value
        else:
            subscribers = self._exact.setdefault(topic_filter, {})
        self._size += subscriber not in subscribers
        subscribers[subscriber] = qos

    def remove(self, topic_filter: str, subscriber: T) -> bool:
        """Unsubscribe; False when there was no such subscription."""
        wild = _is_wild(topic_filter)
        if wild:
            node = self._wild.find(topic_filter)
            subscribers = node.value if node is not None else None
        else:
            subscribers = self._exact.get(topic_filter)
        if subscribers is None or subscriber not in subscribers:
            return False
        del subscribers[subscriber]
        self._size -= 1
        if not subscribers:
            if wild:
                self._wild.discard(topic_filter)
            else:
                del self._exact[topic_filter]
        return True

    def match(self, topic: str) -> dict[T, int]:
        """Everyone with a filter that matches, with the highest QoS of all filters of theirs that do.

        The dict is a new one, the caller's to keep [MQTT-3.3.5-1].
        """
        found = dict(self._exact.get(topic, ()))
        key = topic + "/"
        size = len(key)
        hidden = topic.startswith("$")  # from wildcards in the first level
        pending = [(self._wild.root, 0)]
        while pending:
            node, at = pending.pop()
            if at == size and node.value:
                _keep_highest(found, node.value)
            children = node.children
            if not children:
                continue
            wildcards = at > 0 or not hidden
            if wildcards:
                rest = children.get("#")
                if rest is not None and rest.value:
                    _keep_highest(found, rest.value)
            if at == size:
                continue
            level = key[at : key.index("/", at)]
            for name in (level, "+") if wildcards else (level,):
                child = children.get(name)
                if child is None:
                    continue
                after = _after_label(child.label, key, at)
                if after is not None:
                    pending.append((child, after))
        return found


def _after_label(label: str, key: str, at: int) -> int | None:
    """Where in the topic's key a filter's label ends that matches from `at`; None when it does not match."""
    if key.startswith(label, at):
        return at + len(label)
    if not ("+" in label or label.endswith("#/")):
        return None
    # Level by level and no further than needed: a peer's long label must not make everyone's topics dear.
    here = 0
    while here < len(label):
        stop = label.index("/", here)
        level = label[here:stop]
        if level == "#":
            return len(key)
        if at == len(key):
            return None
        end = key.index("/", at)
        if level not in ("+", key[at:end]):
            return None
        here, at = stop + 1, end + 1
    return at


def _keep_highest(found: dict[T, int], more: dict[T, int]) -> None:
    if not found:
        found.update(more)
        return
    for subscriber, qos in more.items():
        if found.get(subscriber, -1) < qos:
            found[subscriber] = qos


class RetainedIndex(Generic[M]):
    """The retained message of each topic, found by topic filter.

    `size` says how many bytes a message counts for in `total_bytes`, its topic included.
    """

    __slots__ = ("_messages", "_size", "_topics", "total_bytes")

    def __init__(self, size: Callable[[M], int]) -> None:
        self._messages: dict[str, M] = {}
        self._topics: LevelTrie[str] = LevelTrie()
        self._size = size
        self.total_bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._messages))

    def get(self, topic: str) -> M | None:
        """The retained message of exactly this topic."""
        return self._messages.get(topic)

    def set(self, topic: str, message: M) -> None:
        """Retain a message in place of the one that the topic had."""
        if topic in self._messages:
            self.total_bytes -= self._size(self._messages[topic])
        else:
            self._topics.make(topic).value = topic
        self._messages[topic] = message
        self.total_bytes += self._size(message)

    def remove(self, topic: str) -> bool:
        """Forget the retained message of a topic; False when it had none."""
        if topic not in self._messages:
            return False
        self.total_bytes -= self._size(self._messages.pop(topic))
        self._topics.discard(topic)
        return True

    def match(self, topic_filter: str) -> Iterator[tuple[str, M]]:
        """Every topic that the filter matches, with its message, as of now; in no particular order."""
        if not _is_wild(topic_filter):
            topics = [topic_filter] if topic_filter in self._messages else []
        else:
            topics = self._matching(topic_filter.split("/"))
        return iter([(topic, self._messages[topic]) for topic in topics])

    def _matching(self, levels: list[str]) -> list[str]:
        found: list[str] = []
        root = self._topics.root
        pending = [(root, 0)]
        while pending:
            node, depth = pending.pop()
            level = levels[depth] if depth < len(levels) else None
            if level in (None, "#") and node.value is not None:
                found.append(node.value)
            children = node.children
            if level is None or not children:
                continue
            if level in ("#", "+"):
                below = list(children.values())
                if node is root:
                    below = [child for child in below if not child.label.startswith("$")]
            else:
                below = [children[level]] if level in children else []
            for child in below:
                after = _depth_after_label(child.label, levels, depth)
                if after is not None:
                    pending.append((child, after))
        return found


def _depth_after_label(label: str, levels: list[str], depth: int) -> int | None:
    """How deep in the filter a topic's label leads from `depth`, stopping at `#`; None for no match."""
    here = 0
    while here < len(label):
        if depth == len(levels):
            return None
        if levels[depth] == "#":
            return depth
        stop = label.index("/", here)
        if levels[depth] not in ("+", label[here:stop]):
            return None
        here, depth = stop + 1, depth + 1
    return depth
