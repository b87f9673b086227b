"""Devices that a policy allows, made up for questions about all devices: examples of ids, facts and client identifiers.

A `Person` is a connection that the policy admits; nothing is assumed about it that the policy does not check. Examples
are found in globs and in the identity pattern, given by the operator, or are the literals that rules name, because an
id can be any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice, product
from typing import Final, Literal

from gateway.policy.decide import Grants
from gateway.policy.globs import Element, Glob, Token, literally, parse_glob, sample
from gateway.policy.meeting import common_texts, have_no_common_text, may_contain, pattern_examples
from gateway.policy.model import Role, is_usable
from gateway.policy.policy import Policy
from mtls.errors import Refusal
from mtls.identity import DeviceId
from mtls.judgement import Peer

Side = Literal[0, 1]
Fact = tuple[Side, str]
"""A fact of the first or second device, by the name of its token."""

Group = tuple[str | None, frozenset[Fact]]
"""Facts that must have one value, and the literal that it must be, if any."""

Groups = Sequence[Group]

EXAMPLES: Final = 4
MAX_ROWS: Final = 64  # pairs of a role's glob and an issuer's glob that are searched for an id
ANY_CA: Final = "any CA"
ANY: Final = parse_glob("*")
ID: Final = Token("id")
_ANY_DAY: Final = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Person:
    """An admitted connection."""

    peer: Peer
    grants: Grants
    roles: tuple[Role, ...]
    values: Mapping[str, str]


class Population:
    """The devices of a policy, as far as examples of them can be found."""

    __slots__ = ("_denied", "_examples", "_ids", "_levels", "_policy", "client_id_is_id", "client_id_names_id")

    def __init__(self, policy: Policy, example_ids: Iterable[str] = ()) -> None:
        self._policy = policy
        self._examples = [*example_ids, *pattern_examples(policy.identity.pattern, EXAMPLES)]
        self._ids: dict[int, tuple[str, ...]] = {}
        rules = [rule for role in policy.roles for rule in role.rules]
        self._levels = {level for rule in rules for level in rule.levels if isinstance(level, str)}
        rows = [glob.elements for role in policy.roles for glob in policy.client_ids_of((role,))]
        # Every connection's client identifier is its id.
        self.client_id_is_id: bool = all(row == (ID,) for row in rows)
        # No two devices can have one client identifier, nor one the other's id: all lists say `{id}`, or `{id}` and
        # then a character that no id can contain.
        self.client_id_names_id: bool = all(
            row[0] == ID and (len(row) == 1 or self._ends_an_id(row[1])) for row in rows if row
        )
        self._denied = {name for rule in rules if rule.denies for name in rule.tokens}

    def _ends_an_id(self, element: Element) -> bool:
        return isinstance(element, str) and not may_contain(self._policy.identity.pattern, element)

    def ids(self, role: Role) -> tuple[str, ...]:
        """Examples of ids that can have this role; none when none was found."""
        known = self._ids.get(role.number)
        if known is None:
            known = self._ids[role.number] = tuple(self._find_ids(role))
        return known

    def _find_ids(self, role: Role) -> list[str]:
        found: dict[str, None] = {}
        for row in self._id_rows(role)[:MAX_ROWS]:
            found.update(dict.fromkeys(common_texts(row, self.is_id, EXAMPLES)))
            if len(found) >= EXAMPLES:
                break
        found.update(dict.fromkeys(text for text in self._examples if self.is_id(text)))
        return [text for text in found if self.person(role, {"id": text}) is not None]

    def _id_rows(self, role: Role) -> list[tuple[Glob, Glob]]:
        """What an id of this role has to match: the role's glob and one of its issuer's."""
        own = role.match.get("id", ANY)
        return [(own, glob) for issuer in self._issuer_names(role) for glob in self._issuer_globs(issuer)]

    def stands_for_all(self, role: Role) -> bool:
        """Whether the ids found can stand for all of this role: two of them, or certainly all that there are."""
        if len(self.ids(role)) > 1 or role.denies_connect is not None:
            return True
        rows = self._id_rows(role)
        return len(rows) <= MAX_ROWS and all(
            any(_is_literal(glob) for glob in row) or have_no_common_text(row) for row in rows
        )

    def is_id(self, text: str) -> bool:
        """Whether a text is a device id that the pattern of the site allows."""
        try:
            DeviceId(text)
        except ValueError:
            return False
        return self._policy.identity.pattern.fullmatch(text) is not None

    def _issuer_names(self, role: Role) -> list[str]:
        wanted = role.match.get("issuer", ANY)
        if not self._policy.issuers:
            return [ANY_CA if wanted.matches(ANY_CA) else sample(wanted)]
        return list(dict.fromkeys(i.subject_cn for i in self._policy.issuers if wanted.matches(i.subject_cn)))

    def _issuer_globs(self, name: str) -> list[Glob]:
        if not self._policy.issuers:
            return [ANY]
        return [glob for issuer in self._policy.issuers if issuer.subject_cn == name for glob in issuer.ids]

    def person(self, role: Role, facts: Mapping[str, str], side: Side = 0) -> Person | None:
        """A connection with this role and these facts, by the names of tokens; None when the policy refuses it.

        Other facts are free; the two sides get different ones where that is possible.
        """
        if not self.is_id(facts["id"]):
            return None
        attributes = self._attributes(role, facts, side)
        for issuer in [facts["issuer"]] if "issuer" in facts else self._issuer_names(role):
            for spki in [i.spki_sha256 for i in self._policy.issuers if i.subject_cn == issuer] or [""]:
                ou = self._names(role, "ou", facts, side)
                peer = Peer(
                    *(DeviceId(facts["id"]), issuer, spki, ou, self._names(role, "o", facts, side)),
                    *("", "", _ANY_DAY, _ANY_DAY, b""),
                )
                person = self._admitted(peer, role, facts, attributes)
                if person is not None:
                    return person
        return None

    def _admitted(
        self, peer: Peer, role: Role, facts: Mapping[str, str], attributes: Mapping[str, str]
    ) -> Person | None:
        client_id = facts.get("client_id", self._policy.usual_client_id(peer, attributes))
        grants = self._policy.admit(peer, client_id, attributes)
        if isinstance(grants, Refusal):
            return None
        roles = self._policy.matching_roles(peer, attributes)
        values = grants.holder.values
        if role not in roles or any(values.get(name) != value for name, value in facts.items()):
            return None
        return Person(peer, grants, roles, values)

    def _names(self, role: Role, fact: str, facts: Mapping[str, str], side: Side) -> tuple[str, ...]:
        if fact in facts:
            return (facts[fact],)
        if fact in role.match:
            return (self._matched(role.match[fact], side),)
        return (self._fresh(fact, side),) if any(fact in rule.tokens for rule in role.rules) else ()

    def _attributes(self, role: Role, facts: Mapping[str, str], side: Side) -> dict[str, str]:
        named = {name for name in role.match if name.startswith("attr.")}
        named |= {name for rule in role.rules for name in rule.tokens if name.startswith("attr.")}
        values = {
            name: self._matched(role.match[name], side) if name in role.match else self._fresh(name, side)
            for name in named
        }
        values |= {name: value for name, value in facts.items() if name.startswith("attr.")}
        return {name.removeprefix("attr."): value for name, value in values.items()}

    def _fresh(self, fact: str, side: Side) -> str:
        """A value of its own for a fact that nothing restricts: equal to no level and to no fact of the other device.

        No other value escapes more denies, so no other has to be tried.
        """
        base = f"{fact.removeprefix('attr.')}-{side + 1}"
        return next(text for n in range(len(self._levels) + 1) if (text := base + "x" * n) not in self._levels)

    def _matched(self, glob: Glob, side: Side) -> str:
        """A value for a fact that the role restricts, where possible not the other device's and no level."""
        texts = common_texts([glob], lambda text: is_usable(text) and text not in self._levels, EXAMPLES)
        return texts[side % len(texts)] if texts else sample(glob)

    def pairs(self, roles: tuple[Role, Role], groups: Groups) -> Iterator[tuple[Person, Person]]:
        """Two connections with different ids whose facts are equal where the groups say so."""
        ids = [self._id_choices(side, roles, groups) for side in (0, 1)]
        for first, second in product(*ids):
            if first == second:
                continue
            known: dict[Fact, str] = {(0, "id"): first, (1, "id"): second}
            for values in product(*(self._values(roles, group, known) for group in groups)):
                facts: tuple[dict[str, str], dict[str, str]] = ({"id": first}, {"id": second})
                for value, (_, members) in zip(values, groups, strict=True):
                    for side, name in members:
                        facts[side][name] = value
                if (facts[0]["id"], facts[1]["id"]) != (first, second):
                    continue
                others = list(self._people(roles[1], facts[1], 1))
                yield from product(self._people(roles[0], facts[0], 0), others)

    def _people(self, role: Role, facts: Mapping[str, str], side: Side) -> Iterator[Person]:
        """The connections with these facts that a deny can tell apart by a fact that cannot be made up freely."""
        options: dict[str, list[str]] = {}
        if "client_id" in self._denied and "client_id" not in facts:
            globs = self._client_ids(role, facts["id"])
            options["client_id"] = [text for glob in globs for text in common_texts([glob], is_usable, EXAMPLES)]
        if "issuer" in self._denied and "issuer" not in facts:
            options["issuer"] = self._issuer_names(role)
        for chosen in product(*options.values()):
            person = self.person(role, {**facts, **dict(zip(options, chosen, strict=True))}, side)
            if person is not None:
                yield person

    def _id_choices(self, side: int, roles: tuple[Role, Role], groups: Groups) -> tuple[str, ...]:
        """Ids for one side: the literal it must be, or examples, some of which may be client identifiers too."""
        facts = {fact for _, members in groups for fact in members}
        literal = next((text for text, members in groups if (side, "id") in members and text is not None), None)
        if literal is not None:
            return (literal,)
        examples = self.ids(roles[side])
        if all(name != "client_id" for _, name in facts):
            return examples
        borrowed = (sample(glob) for role in roles for text in self.ids(role) for glob in self._client_ids(role, text))
        return tuple(dict.fromkeys((*examples, *(text for text in borrowed if self.is_id(text)))))

    def _client_ids(self, role: Role, text: str) -> list[Glob]:
        """What a device with this id may call itself."""
        person = self.person(role, {"id": text})
        if person is None:
            return []
        bound = (glob.bind(person.values) for glob in self._policy.client_ids_of(person.roles))
        return [glob for glob in bound if glob is not None]

    def _values(self, roles: tuple[Role, Role], group: Group, known: Mapping[Fact, str]) -> list[str]:
        """Values to try for one group, given the ids."""
        literal, members = group
        fixed = [literal] if literal is not None else [known[member] for member in members if member in known]
        if fixed:
            return fixed[:1]
        choices: list[list[Glob]] = []
        for side, name in sorted(members):
            if name == "client_id":
                choices.append(self._client_ids(roles[side], known[side, "id"]))
            elif name == "issuer":
                choices.append([literally(issuer) for issuer in self._issuer_names(roles[side])])
            elif name in roles[side].match:
                choices.append([roles[side].match[name]])
        if not choices:
            side, name = min(members)
            return [self._fresh(name, side)]
        rows = islice(product(*choices), MAX_ROWS)
        return list(dict.fromkeys(text for row in rows for text in common_texts(row, is_usable, EXAMPLES)))

    def is_exact(self, roles: tuple[Role, Role], groups: Groups) -> bool:
        """Whether no pair means that there is none, and not only that no example was found."""
        for literal, members in groups:
            globs = [roles[side].match[name] for side, name in sorted(members) if name in roles[side].match]
            globs += [literally(literal)] if literal is not None else []
            if globs and have_no_common_text(globs):
                return True
        return all(literal is not None or len(members) == 1 for literal, members in groups)


def _is_literal(glob: Glob) -> bool:
    return all(isinstance(element, str) for element in glob.elements)
