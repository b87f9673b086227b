"""Who gets a message: an index of subscriptions and an index of retained messages, both tries over topic levels.

A look-up costs what its own topic or filter costs, however many other devices are subscribed. Nothing here recurses,
so a topic with tens of thousands of levels is only long. Topics and filters have been checked by the codec before;
rights are judged elsewhere. Matching follows section 4.7 of MQTT 3.1.1: `#` also matches its parent, and a filter
that starts with a wildcard does not match a topic that starts with `$` [MQTT-4.7.2-1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
M = TypeVar("M")


class _FilterNode(Generic[T]):
    """A level of the subscription trie: who subscribed to here, to `here/#`, and what lies below."""

    __slots__ = ("children", "here", "plus", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _FilterNode[T]] | None = None
        self.plus: _FilterNode[T] | None = None
        self.here: dict[T, int] | None = None
        self.rest: dict[T, int] | None = None


class SubscriptionIndex(Generic[T]):
    """Topic filters and their subscribers, with the QoS granted to each."""

    __slots__ = ("_exact", "_root", "_size")

    def __init__(self) -> None:
        self._exact: dict[str, dict[T, int]] = {}
        self._root: _FilterNode[T] = _FilterNode()
        self._size = 0

    def __len__(self) -> int:
        """The number of subscriptions: pairs of filter and subscriber."""
        return self._size

    def add(self, topic_filter: str, subscriber: T, qos: int) -> None:
        """Subscribe; the same filter and subscriber again only replaces the QoS [MQTT-3.8.4-3]."""
        if "+" in topic_filter or topic_filter.endswith("#"):
            subscribers = self._make(topic_filter)
        else:
            subscribers = self._exact.setdefault(topic_filter, {})
        self._size += subscriber not in subscribers
        subscribers[subscriber] = qos

    def _make(self, topic_filter: str) -> dict[T, int]:
        node = self._root
        levels = topic_filter.split("/")
        rest = levels[-1] == "#"
        if rest:
            levels.pop()
        for level in levels:
            if level == "+":
                if node.plus is None:
                    node.plus = _FilterNode()
                node = node.plus
            else:
                if node.children is None:
                    node.children = {}
                node = node.children.setdefault(level, _FilterNode())
        if rest:
            if node.rest is None:
                node.rest = {}
            return node.rest
        if node.here is None:
            node.here = {}
        return node.here

    def remove(self, topic_filter: str, subscriber: T) -> bool:
        """Unsubscribe; False when there was no such subscription."""
        if "+" in topic_filter or topic_filter.endswith("#"):
            removed = self._remove_wild(topic_filter, subscriber)
        else:
            subscribers = self._exact.get(topic_filter)
            removed = subscribers is not None and subscribers.pop(subscriber, None) is not None
            if removed and not subscribers:
                del self._exact[topic_filter]
        self._size -= removed
        return removed

    def _remove_wild(self, topic_filter: str, subscriber: T) -> bool:
        levels = topic_filter.split("/")
        rest = levels[-1] == "#"
        if rest:
            levels.pop()
        node = self._root
        path: list[tuple[_FilterNode[T], str]] = []
        for level in levels:
            child = node.plus if level == "+" else node.children.get(level) if node.children else None
            if child is None:
                return False
            path.append((node, level))
            node = child
        subscribers = node.rest if rest else node.here
        if subscribers is None or subscribers.pop(subscriber, None) is None:
            return False
        if not subscribers:
            if rest:
                node.rest = None
            else:
                node.here = None
            self._prune(node, path)
        return True

    @staticmethod
    def _prune(node: _FilterNode[T], path: list[tuple[_FilterNode[T], str]]) -> None:
        while path and not (node.children or node.plus or node.here or node.rest):
            node, level = path.pop()
            if level == "+":
                node.plus = None
            elif node.children is not None:
                del node.children[level]
                if not node.children:
                    node.children = None

    def match(self, topic: str) -> dict[T, int]:
        """Everyone with a filter that matches, with the highest QoS of all their matching filters.

        The dict is the caller's own [MQTT-3.3.5-1].
        """
        found = dict(self._exact.get(topic, ()))
        levels = topic.split("/")
        frontier = [self._root]
        if topic.startswith("$"):
            children = self._root.children
            first = children.get(levels[0]) if children else None
            if first is None:
                return found
            frontier = [first]
            del levels[0]
        for level in levels:
            following = []
            for node in frontier:
                if node.rest:
                    _keep_highest(found, node.rest)
                if node.children:
                    child = node.children.get(level)
                    if child is not None:
                        following.append(child)
                if node.plus:
                    following.append(node.plus)
            if not following:
                return found
            frontier = following
        for node in frontier:
            if node.rest:
                _keep_highest(found, node.rest)
            if node.here:
                _keep_highest(found, node.here)
        return found


def _keep_highest(found: dict[T, int], more: dict[T, int]) -> None:
    if not found:
        found.update(more)
        return
    for subscriber, qos in more.items():
        if found.get(subscriber, -1) < qos:
            found[subscriber] = qos


class _TopicNode(Generic[M]):
    __slots__ = ("children", "message", "topic")

    def __init__(self) -> None:
        self.children: dict[str, _TopicNode[M]] | None = None
        self.topic: str | None = None
        self.message: M | None = None


class RetainedIndex(Generic[M]):
    """The retained message of each topic, found by topic filter.

    `size` says how many bytes a message counts for in `total_bytes`, its topic included.
    """

    __slots__ = ("_messages", "_root", "_size", "total_bytes")

    def __init__(self, size: Callable[[M], int]) -> None:
        self._messages: dict[str, M] = {}
        self._root: _TopicNode[M] = _TopicNode()
        self._size = size
        self.total_bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def get(self, topic: str) -> M | None:
        """The retained message of exactly this topic."""
        return self._messages.get(topic)

    def set(self, topic: str, message: M) -> None:
        """Retain a message in place of the one that the topic had."""
        self.remove(topic)
        node = self._root
        for level in topic.split("/"):
            if node.children is None:
                node.children = {}
            node = node.children.setdefault(level, _TopicNode())
        node.topic, node.message = topic, message
        self._messages[topic] = message
        self.total_bytes += self._size(message)

    def remove(self, topic: str) -> bool:
        """Forget the retained message of a topic; False when it had none."""
        if topic not in self._messages:
            return False
        self.total_bytes -= self._size(self._messages.pop(topic))
        path: list[tuple[_TopicNode[M], str]] = []
        node = self._root
        for level in topic.split("/"):
            assert node.children is not None  # noqa: S101
            path.append((node, level))
            node = node.children[level]
        node.topic = node.message = None
        while path and node.topic is None and not node.children:
            node, level = path.pop()
            assert node.children is not None  # noqa: S101
            del node.children[level]
        return True

    def match(self, topic_filter: str) -> Iterator[tuple[str, M]]:
        """Every topic that the filter matches, with its message; in no particular order."""
        levels = topic_filter.split("/")
        if "+" not in topic_filter and levels[-1] != "#":
            message = self._messages.get(topic_filter)
            return iter(() if message is None else ((topic_filter, message),))
        return iter(self._matching(levels))

    def _matching(self, levels: list[str]) -> list[tuple[str, M]]:
        found: list[tuple[str, M]] = []
        stack = [(self._root, 0)]
        while stack:
            node, depth = stack.pop()
            level = levels[depth] if depth < len(levels) else None
            if (level is None or level == "#") and node.topic is not None and node.message is not None:
                found.append((node.topic, node.message))
            if level is None or not node.children:
                continue
            if level in ("+", "#"):
                below = depth if level == "#" else depth + 1
                for name, child in node.children.items():
                    if node is not self._root or not name.startswith("$"):
                        stack.append((child, below))
            elif level in node.children:
                stack.append((node.children[level], depth + 1))
        return found
