"""`policy check`: which devices can meet on a topic, and what in the policy does not do what it seems to.

The verdict is no when a device can reach a topic that belongs to another device of the same role. Everything else is
told and does not fail: crossings between roles are often what a policy is for (a backend reads its devices), and
warnings need a person. How the proof works stands in `isolation.py`. Spec: docs/policy.md.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

from gateway.policy.globs import Glob
from gateway.policy.isolation import Crossing, Proof, equations, prove, symbols
from gateway.policy.meeting import common_texts
from gateway.policy.model import TOPIC_ACTIONS, Action, Role, Rule
from gateway.policy.people import Population
from gateway.policy.policy import Policy
from gateway.policy.topics import covers
from mtls.terminal import sanitise

WIDTH = 80
SENTENCES = {
    "write-read": "{left_id} writes and {right_id} reads",
    "write-write": "{left_id} and {right_id} both write",
    "read-read": "{left_id} and {right_id} both read",
}


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was proved, what crosses, and what deserves a look."""

    file: str
    version: str
    roles: int
    pairs: int
    crossings: tuple[Crossing, ...]
    undecided: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...]

    @property
    def isolated(self) -> bool:
        """No device reaches another's own topic within a role, and nothing was left undecided."""
        return not self.undecided and not any(crossing.own for crossing in self.crossings)

    @property
    def exit_code(self) -> int:
        return 0 if self.isolated else 1

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "isolated": self.isolated}, indent=2)

    def to_text(self) -> str:
        """For a terminal of 80 columns."""
        leaks = any(crossing.own for crossing in self.crossings)
        verdict = "not isolated" if leaks else "isolated" if self.isolated else "not proved to be isolated"
        rows = [f"{self.file}: {verdict}: {self.roles} roles, {self.pairs} questions about pairs of them"]
        for crossing in sorted(self.crossings, key=lambda crossing: not crossing.own):
            rows += _crossing_rows(crossing)
        rows += [f"  undecided: {kind} between {left} and {right}" for kind, left, right in self.undecided]
        rows += (
            ["  hint: two ids that such devices may have, given with --id, often decide it"] if self.undecided else []
        )
        rows += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(line for row in rows for line in _wrapped(row))


def _crossing_rows(crossing: Crossing) -> Iterator[str]:
    who = SENTENCES[crossing.kind].format(left_id=crossing.left_id, right_id=crossing.right_id)
    yield f"  {'LEAK' if crossing.own else 'crossing'}: {who} {crossing.topic}"
    yield f"    {crossing.left} {crossing.left_rule} line {crossing.left_line}"
    if (crossing.left, crossing.left_rule) != (crossing.right, crossing.right_rule):
        yield f"    {crossing.right} {crossing.right_rule} line {crossing.right_line}"


def _wrapped(row: str) -> list[str]:
    safe = "".join(c if c.isprintable() else sanitise(c) for c in row)
    indent = safe[: len(safe) - len(safe.lstrip())]
    return textwrap.wrap(safe.lstrip(), WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


def check(policy: Policy, example_ids: Iterable[str] = ()) -> CheckReport:
    """Prove isolation and look for what cannot work. `example_ids` help where no id can be made up."""
    population = Population(policy, example_ids)
    proof = prove(population, policy.roles)
    return CheckReport(
        file=policy.file,
        version=policy.version,
        roles=len(policy.roles),
        pairs=proof.pairs,
        crossings=proof.crossings,
        undecided=proof.undecided,
        warnings=(
            *policy.warnings,
            *_client_ids(policy),
            *_issuer_overlaps(policy, population.is_id),
            *_without_ids(proof),
            *(warning for role in policy.roles for warning in _role_warnings(role)),
        ),
    )


def _client_ids(policy: Policy) -> Iterator[str]:
    for role in policy.roles:
        texts = {glob.text for glob in policy.client_ids_of((role,))}
        if "*" in texts:
            yield f'role "{role.name}" allows any client identifier ("*")'
        if "" in texts:
            yield f'role "{role.name}" allows connections without a client identifier ("")'


def _issuer_overlaps(policy: Policy, is_id: Callable[[str], bool]) -> Iterator[str]:
    for one, other in combinations(policy.issuers, 2):
        shared = next((text for a in one.ids for b in other.ids for text in _common_id(a, b, is_id)), None)
        if shared is not None:
            names = f'"{one.subject_cn}" (line {one.line}) and "{other.subject_cn}" (line {other.line})'
            yield f"issuers {names} may both name {shared}"


def _common_id(one: Glob, other: Glob, is_id: Callable[[str], bool]) -> Sequence[str]:
    return common_texts((one, other), is_id, 1)


def _without_ids(proof: Proof) -> Iterator[str]:
    for role in proof.without_ids:
        yield (
            f'role "{role.name}" (line {role.line}): no id was found that its match, the issuer table and'
            " identity.pattern allow; it is unreachable, or an example id is needed"
        )


def _role_warnings(role: Role) -> Iterator[str]:
    for action in TOPIC_ACTIONS:
        yield from _never_reached(role, action)
    writes = [*_grants(role, Action.PUBLISH), *_grants(role, Action.WILL)]
    yield from _unusable(role, Action.RETAIN, writes, "publish or will")
    yield from _unusable(role, Action.RECEIVE, _grants(role, Action.SUBSCRIBE), "subscribe")
    yield from _unusable(role, Action.SUBSCRIBE, _grants(role, Action.RECEIVE), "receive")


def _grants(role: Role, action: Action) -> list[Rule]:
    return [rule for rule in role.rules if action in rule.actions and not rule.denies]


def _never_reached(role: Role, action: Action) -> Iterator[str]:
    """Rules that another rule of the role always decides first. A token is compared as a level of its own."""
    denies = [rule for rule in role.rules if action in rule.actions and rule.denies]
    for rules, what in ((_grants(role, action), "grant"), (denies, "deny")):
        for at, rule in enumerate(rules):
            if action is not rule.actions[0]:
                continue  # receive that is subscribe's twin: told once
            wider = next((other for other in rules if other is not rule and _covers(other, rule)), None)
            if wider is not None and (rules.index(wider) < at or not _covers(rule, wider)):
                yield f"{_place(role, rule)} is unreachable: {wider.name} covers it"
            blocker = next((deny for deny in denies if _covers(deny, rule)), None) if what == "grant" else None
            if blocker is not None:
                yield f"{_place(role, rule)} is unreachable: {blocker.name} denies all of it"


def _covers(wider: Rule, rule: Rule) -> bool:
    return covers(tuple(wider.text.split("/")), tuple(rule.text.split("/")))


def _unusable(role: Role, action: Action, partners: Sequence[Rule], named: str) -> Iterator[str]:
    """Grants that need another grant on the same topic and can never have one in this role."""
    for rule in _grants(role, action):
        if action is not rule.actions[0] or rule in partners:
            continue
        meets = any(
            equations([(0, symbols(rule, alias=False)), (0, symbols(partner, alias=False))]) is not None
            for partner in partners
        )
        if not meets:
            yield f"{_place(role, rule)} cannot be used: no {named} grant of the role meets it"


def _place(role: Role, rule: Rule) -> str:
    return f'role "{role.name}" {rule.name} (line {rule.line}) {rule.text}'
