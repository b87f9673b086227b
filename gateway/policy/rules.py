"""All rules of a policy in tries over topic levels: one for the grants and one for the denies of each action.

The levels of a rule are the edges of its trie, tokens included, so one trie serves every device: a walk takes a token's
edge when the level is the token's value for this connection. A rule is kept at its last node under its role, and a
look-up asks only for the roles that the connection has. What a walk costs depends on how many edges fit a level (a
literal, `+`, tokens) and on the depth, not on the numbers of roles, rules and devices.

A topic name is handled as the filter that stands for itself alone, so covering (subscribe) and matching (everything
else) are one walk; `topics.covers` is its definition and the tests hold it against that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.policy.globs import Token
from gateway.policy.model import TOPIC_ACTIONS, Action, Role, Rule
from gateway.policy.topics import normal


class _Node:
    """What follows after some levels. All parts are None until they are needed: most nodes have one."""

    __slots__ = ("any_level", "ends", "literals", "rest", "tokens")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] | None = None
        self.tokens: dict[str, _Node] | None = None
        self.any_level: _Node | None = None  # below `+`
        self.ends: dict[int, Rule] | None = None  # by role: rules that end here
        self.rest: dict[int, Rule] | None = None  # by role: rules that end here with `#`


@dataclass(frozen=True, slots=True)
class Holder:
    """The part of a connection that rules can read: its roles, ascending, and the usable values of its tokens."""

    roles: tuple[int, ...]
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Found:
    """The first rule in the order of the file that answers, and how many nodes it took to know."""

    rule: Rule | None
    visited: int


class RuleTrie:
    """Rules of one action, all granting or all denying. Add them in the order of the file."""

    __slots__ = ("_denies", "_root")

    def __init__(self, *, denies: bool) -> None:
        self._root = _Node()
        self._denies = denies

    def add(self, rule: Rule) -> None:
        node = self._root
        for level in rule.levels[:-1]:
            node = _below(node, level)
        last = rule.levels[-1]
        if last == "#":
            node.rest = node.rest if node.rest is not None else {}
            node.rest.setdefault(rule.role, rule)
        else:
            node = _below(node, last)
            node.ends = node.ends if node.ends is not None else {}
            node.ends.setdefault(rule.role, rule)

    def find(self, levels: Sequence[str], holder: Holder) -> Found:
        """The first rule of the holder's roles that covers these levels, of a topic name or of a filter."""
        request = normal(tuple(levels))
        hidden = request[0].startswith("$")  # from a leading wildcard [MQTT-4.7.2-1]
        best: Rule | None = None
        pending, visited = [(self._root, 0)], 0
        while pending:
            node, at = pending.pop()
            visited += 1
            if node.rest is not None and not (hidden and at == 0):
                best = _earlier(best, node.rest, holder.roles)
            if at == len(request):
                if node.ends is not None:
                    best = _earlier(best, node.ends, holder.roles)
            elif request[at] != "#":
                pending += [(child, at + 1) for child in self._edges(node, request[at], holder, hidden and at == 0)]
        return Found(best, visited)

    def _edges(self, node: _Node, level: str, holder: Holder, hidden: bool) -> list[_Node]:
        """The nodes behind every edge that fits this level."""
        fitting: list[_Node] = []
        if node.literals is not None and level in node.literals:
            fitting.append(node.literals[level])
        if node.any_level is not None and not hidden:
            fitting.append(node.any_level)
        for name, child in node.tokens.items() if node.tokens is not None else ():
            value = holder.values.get(name)
            # A deny whose token has no value denies every value (docs/policy.md).
            if value == level or (value is None and self._denies and not hidden):
                fitting.append(child)
        return fitting


def _below(node: _Node, level: str | Token) -> _Node:
    if isinstance(level, Token):
        node.tokens = node.tokens if node.tokens is not None else {}
        return node.tokens.setdefault(level.name, _Node())
    if level == "+":
        node.any_level = node.any_level or _Node()
        return node.any_level
    node.literals = node.literals if node.literals is not None else {}
    return node.literals.setdefault(level, _Node())


def _earlier(best: Rule | None, rules: Mapping[int, Rule], roles: tuple[int, ...]) -> Rule | None:
    """`best`, or the first of these rules that one of the roles holds, if it stands before `best` in the file."""
    if len(roles) <= len(rules):
        number = next((role for role in roles if role in rules), None)
    else:
        # A connection with very many roles: the shorter row is walked, the longer one is searched.
        number = next((role for role in rules if _holds(roles, role)), None)
    if number is None:
        return best
    rule = rules[number]
    return rule if best is None or rule.number < best.number else best


def _holds(roles: tuple[int, ...], role: int) -> bool:
    place = bisect_left(roles, role)
    return place < len(roles) and roles[place] == role


@dataclass(frozen=True, slots=True)
class RuleBook:
    """Every rule of a policy, by action."""

    grants: Mapping[Action, RuleTrie]
    denies: Mapping[Action, RuleTrie]

    @classmethod
    def of(cls, roles: Iterable[Role]) -> RuleBook:
        grants = {action: RuleTrie(denies=False) for action in TOPIC_ACTIONS}
        denies = {action: RuleTrie(denies=True) for action in TOPIC_ACTIONS}
        for role in roles:
            for rule in role.rules:
                for action in rule.actions:
                    (denies if rule.denies else grants)[action].add(rule)
        return cls(grants, denies)
