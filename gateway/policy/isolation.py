"""Proof that two devices do not meet on a topic, or the topic on which they do.

For every pair of roles (and a role with itself) and two devices with different ids, three questions are asked: can one
read what the other writes, can both write one topic, can both read one topic. Writing is publish or will; reading is a
topic that can be subscribed and received.

How: two rules can only meet on a topic where their levels are equal. Where a token stands, that is an equation between
facts of the two devices. The equations are solved with facts that the policy allows (ids by role, issuer table and
pattern; client identifiers by their list; all else free), which gives two concrete devices; for these the exact search
of `meeting.py` finds a topic outside every deny, and the engine itself confirms it. So a crossing is never a guess.
Where only examples were tried (a text that several globs must share) and none fitted, the pair is undecided, and so is
every pair with a role of which fewer than two ids were found though there may be more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

from gateway.policy.decide import Grants
from gateway.policy.globs import Token
from gateway.policy.meeting import common_topic
from gateway.policy.model import Action, Role, Rule
from gateway.policy.people import Fact, Group, Person, Population, Side
from gateway.policy.topics import normal

Kind = Literal["write-read", "write-write", "read-read"]
SIDES: tuple[Side, Side] = (0, 1)
KINDS: tuple[Kind, ...] = ("write-read", "write-write", "read-read")
MAX_COMPARISONS: Final = 500_000  # pairs of rules compared before the rest is called undecided: about ten seconds

ID, CLIENT_ID = Token("id"), Token("client_id")


@dataclass(frozen=True, slots=True)
class Crossing:
    """A topic on which two devices meet. For write-read the left one writes and the right one reads.

    `own` says that both have the same role and that the topic belongs to one of them by a token of its identity.
    """

    kind: Kind
    left: str
    right: str
    left_rule: str
    right_rule: str
    left_line: int
    right_line: int
    left_id: str
    right_id: str
    topic: str
    own: bool


@dataclass(frozen=True, slots=True)
class Proof:
    """All crossings, one per pair and kind, the pairs of which nothing is proved, and the roles nobody can have."""

    crossings: tuple[Crossing, ...]
    undecided: tuple[tuple[Kind, str, str], ...]
    without_ids: tuple[Role, ...]
    pairs: int


def prove(population: Population, roles: Sequence[Role]) -> Proof:
    """Compare every pair of roles."""
    crossings: list[Crossing] = []
    undecided: list[tuple[Kind, str, str]] = []
    search, pairs = _Search(population), 0
    reachable = [role for role in roles if population.ids(role)]
    known = {role.number: population.stands_for_all(role) for role in roles}
    for left, right in product(reachable, reachable):
        for kind in KINDS:
            if kind != "write-read" and right.number < left.number:
                continue
            pairs += 1
            crossing, sure = search.crossing(kind, left, right)
            if crossing is not None:
                crossings.append(crossing)
            elif not (sure and known[left.number] and known[right.number]):
                undecided.append((kind, left.name, right.name))
    without_ids = tuple(role for role in roles if not population.ids(role))
    undecided += [(KINDS[0], role.name, role.name) for role in without_ids if not known[role.number]]
    return Proof(tuple(crossings), tuple(undecided), without_ids, pairs)


@dataclass(frozen=True, slots=True)
class _Use:
    """One way to write or to read: the rules that must all match the topic."""

    rules: tuple[Rule, ...]
    actions: tuple[Action, ...]

    def works(self, grants: Grants, topic: str) -> bool:
        return all(grants.decide(action, topic).allowed for action in self.actions)


def _writes(role: Role) -> Iterator[_Use]:
    for action in (Action.PUBLISH, Action.WILL):
        yield from (_Use((rule,), (action,)) for rule in role.rules if action in rule.actions and not rule.denies)


def _reads(role: Role) -> Iterator[_Use]:
    grants = [rule for rule in role.rules if not rule.denies]
    for receive in (rule for rule in grants if Action.RECEIVE in rule.actions):
        for subscribe in (rule for rule in grants if Action.SUBSCRIBE in rule.actions):
            # Without a receive list the one rule is both, and its twins add nothing.
            if subscribe is receive or Action.SUBSCRIBE not in receive.actions:
                yield _Use(tuple(dict.fromkeys((receive, subscribe))), (Action.RECEIVE, Action.SUBSCRIBE))


class _Search:
    """The search for crossings, with a bound on all its work together."""

    __slots__ = ("_left", "_population")

    def __init__(self, population: Population) -> None:
        self._population = population
        self._left = MAX_COMPARISONS

    def crossing(self, kind: Kind, left: Role, right: Role) -> tuple[Crossing | None, bool]:
        """A crossing, one that reaches a device's own topic if there is such; and whether None is proved."""
        found, sure = None, True
        for one in _reads(left) if kind == "read-read" else _writes(left):
            for other in _writes(right) if kind == "write-write" else _reads(right):
                own = left is right and any(_is_own(rule) for rule in (*one.rules, *other.rules))
                if found is not None and not own:
                    continue
                self._left -= 1
                if self._left < 0:
                    return found, False
                meeting, proved = self._meeting((left, right), (one, other))
                sure = sure and proved
                if meeting is not None:
                    found = _crossing(kind, (left, right), (one, other), meeting, own)
                    if own:
                        return found, True
        return found, sure

    def _meeting(
        self, roles: tuple[Role, Role], uses: tuple[_Use, _Use]
    ) -> tuple[tuple[Person, Person, str] | None, bool]:
        alias = self._population.client_id_is_id
        groups = equations([(side, symbols(rule, alias=alias)) for side in SIDES for rule in uses[side].rules])
        if groups is None or (self._population.client_id_names_id and any(_names_both(facts) for _, facts in groups)):
            return None, True
        tried = False
        for people in self._population.pairs(roles, groups):
            tried = True
            topic = _topic(people, uses)
            if topic is not None:
                return (*people, topic), True
        return None, tried or self._population.is_exact(roles, groups)


def _topic(people: tuple[Person, Person], uses: tuple[_Use, _Use]) -> str | None:
    """A topic for these two devices that the engine grants to both."""
    required = []
    forbidden = []
    for person, use in zip(people, uses, strict=True):
        required += [rule.bound(person.values) for rule in use.rules]
        denies = (rule for role in person.roles for rule in role.rules if rule.denies)
        forbidden += [deny.bound(person.values) for deny in denies if set(deny.actions) & set(use.actions)]
    if None in required:
        return None
    levels = common_topic([row for row in required if row], [row for row in forbidden if row])
    if levels is None:
        return None
    topic = "/".join(levels)
    works = all(use.works(person.grants, topic) for person, use in zip(people, uses, strict=True))
    return topic if works else None


def _names_both(facts: frozenset[Fact]) -> bool:
    """Whether an id or client identifier of one device would have to be one of the other."""
    return {side for side, name in facts if name in ("id", "client_id")} == {0, 1}


def _is_own(rule: Rule) -> bool:
    return bool({"id", "client_id"} & set(rule.tokens))


def _crossing(
    kind: Kind,
    roles: tuple[Role, Role],
    uses: tuple[_Use, _Use],
    meeting: tuple[Person, Person, str],
    own: bool,
) -> Crossing:
    (left, right), (one, other), (first, second, topic) = roles, uses, meeting
    return Crossing(
        kind=kind,
        left=left.name,
        right=right.name,
        left_rule=one.rules[0].name,
        right_rule=other.rules[0].name,
        left_line=one.rules[0].line,
        right_line=other.rules[0].line,
        left_id=first.peer.id.value,
        right_id=second.peer.id.value,
        topic=topic,
        own=own,
    )


Symbols = tuple[str | Token, ...]


def symbols(rule: Rule, *, alias: bool) -> Symbols:
    """The rule's levels, `#` and `/#` written as the algebra of topics writes them.

    With `alias` the client identifier is the id, and both tokens are one fact.
    """
    if not rule.tokens:
        return normal(tuple(str(level) for level in rule.levels))
    return tuple(ID if alias and level == CLIENT_ID else level for level in rule.levels)


def equations(rows: Sequence[tuple[Side, Symbols]]) -> list[Group] | None:
    """What facts must be equal to what for all rows to match one topic; None when they never do.

    Each group is a literal (or None) and the facts that must have this one value.
    """
    fixed = {len(levels) for _, levels in rows if levels[-1] != "#"}
    least = max((len(levels) - 1 for _, levels in rows if levels[-1] == "#"), default=1)
    if len(fixed) > 1 or any(count < least for count in fixed):
        return None
    groups: list[Group] = []
    for at in range(min(fixed, default=max(least, 1))):
        here = [(side, levels[at]) for side, levels in rows if at < len(levels)]
        literals = {level for _, level in here if isinstance(level, str) and level not in ("+", "#")}
        wild = any(level in ("+", "#") for _, level in here if isinstance(level, str))
        if len(literals) > 1 or (at == 0 and wild and any(level.startswith("$") for level in literals)):
            return None
        facts: frozenset[Fact] = frozenset((side, level.name) for side, level in here if isinstance(level, Token))
        if facts:
            groups.append((next(iter(literals), None), facts))
    return _joined(groups)


def _joined(groups: Sequence[Group]) -> list[Group] | None:
    """Groups that share a fact become one; None when one would have two literals or both ids."""
    joined: list[Group] = []
    for literal, facts in groups:
        for other in [group for group in joined if group[1] & facts]:
            joined.remove(other)
            if literal is not None and other[0] not in (None, literal):
                return None
            literal, facts = literal if literal is not None else other[0], facts | other[1]
        joined.append((literal, facts))
    ids: Mapping[Fact, None] = {(0, "id"): None, (1, "id"): None}
    return None if any(ids.keys() <= facts for _, facts in joined) else joined
