"""A radix tree over topic levels: the shared body of the subscription index and the retained index.

A key is a text of levels separated by `/`; the tree cuts it between levels only and keeps runs of levels
that no other key shares in one label. So n keys make at most 2 n nodes, and a key of 65,535 bytes and as
many levels costs its bytes, not thousands of objects: a peer cannot buy memory beyond what is accounted
to it. Nothing recurses.

The tree knows no wildcards: to it `+` and `#` are levels like others. Who walks it gives them their meaning.
"""

from __future__ import annotations

from typing import Generic, TypeVar

V = TypeVar("V")


class Node(Generic[V]):
    """Some whole levels of a key, each ended by `/` in the label; below the root never empty.

    Every node but the root has a value or at least two children.
    """

    __slots__ = ("children", "label", "value")

    def __init__(self, label: str) -> None:
        self.label = label
        self.children: dict[str, Node[V]] | None = None  # by the first level of their label
        self.value: V | None = None


class LevelTrie(Generic[V]):
    """Values by key. A node without a value of its own only joins what lies below it."""

    __slots__ = ("root",)

    def __init__(self) -> None:
        self.root: Node[V] = Node("")

    def find(self, text: str) -> Node[V] | None:
        """The node of exactly this key, or None; it has a value unless it only joins others."""
        path = self._path(text + "/")
        return path[-1] if path else None

    def _path(self, key: str) -> list[Node[V]]:
        """The nodes from the root to the key, or nothing when it has no node."""
        node, at, path = self.root, 0, [self.root]
        while at < len(key):
            child = node.children.get(key[at : key.index("/", at)]) if node.children else None
            if child is None or not key.startswith(child.label, at):
                return []
            at += len(child.label)
            node = child
            path.append(node)
        return path

    def make(self, text: str) -> Node[V]:
        """The node of this key, made when there is none. The caller must give it a value."""
        key = text + "/"
        node, at = self.root, 0
        while at < len(key):
            level = key[at : key.index("/", at)]
            if node.children is None:
                node.children = {}
            child = node.children.get(level)
            if child is None:
                child = Node(key[at:])
                node.children[level] = child
            elif not key.startswith(child.label, at):
                child = _cut(child, _shared_length(child.label, key[at:]))
                node.children[level] = child
            at += len(child.label)
            node = child
        return node

    def discard(self, text: str) -> None:
        """Take the value of this key away, and every node that was there only for it."""
        path = self._path(text + "/")
        if not path:
            return
        node = path.pop()
        node.value = None
        if not node.children:
            parent = path.pop()
            _remove_child(parent, node)
            node = parent
        # At most one more node has lost its reason: it joins only one other now.
        if path and node.value is None and node.children and len(node.children) == 1:
            _join_with_only_child(path[-1], node)


def _first_level(label: str) -> str:
    return label[: label.index("/")]


def _shared_length(label: str, other: str) -> int:
    """How many characters of whole levels two texts share at their start."""
    low, high = 0, min(len(label), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if label.startswith(other[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return label.rfind("/", 0, low) + 1


def _cut(node: Node[V], length: int) -> Node[V]:
    """Cut a node's label in two and return the new upper half."""
    upper: Node[V] = Node(node.label[:length])
    node.label = node.label[length:]
    upper.children = {_first_level(node.label): node}
    return upper


def _remove_child(parent: Node[V], child: Node[V]) -> None:
    if parent.children is not None:
        del parent.children[_first_level(child.label)]
        if not parent.children:
            parent.children = None


def _join_with_only_child(parent: Node[V], node: Node[V]) -> None:
    if parent.children is not None and node.children is not None:
        (child,) = node.children.values()
        child.label = node.label + child.label
        parent.children[_first_level(child.label)] = child
