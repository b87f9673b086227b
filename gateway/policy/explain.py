"""Why a connection may or may not do something: the decision, the rule behind it, and what nearly decided otherwise.

Everything is asked of the same `Policy` and `Grants` that the broker asks; nothing is decided here. The nearest misses
are grants of the connection's own roles for the same action, ordered by how many levels fit, and, when no role
matched, the roles that came nearest. Texts of peers are escaped before they are shown.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from gateway.policy.decide import SHARED, Grants
from gateway.policy.model import Action, Decision, Role, Rule
from gateway.policy.policy import NO_ATTRIBUTES, Policy, facts_of
from gateway.policy.topics import covers, normal
from mtls.errors import Reason, Refusal
from mtls.judgement import Peer
from mtls.terminal import sanitise

MAX_MISSES = 5
WIDTH = 80
LABEL = 11


@dataclass(frozen=True, slots=True)
class Miss:
    """A rule or role that did not apply, and the first thing that kept it from applying."""

    role: str
    rule: str
    line: int
    grant: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """One question, its answer, and the place in the policy file that gave it."""

    id: str
    issuer: str
    client_id: str
    action: str
    topic: str
    allowed: bool
    reason: str
    detail: str
    roles: tuple[str, ...]
    role: str
    rule: str
    file: str
    line: int
    grant: str
    written: str
    misses: tuple[Miss, ...]

    @property
    def exit_code(self) -> int:
        return 0 if self.allowed else 1

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def to_text(self) -> str:
        """For a terminal of 80 columns; every line is cut or wrapped to that."""
        rows = [
            ("decision", f"{'allow' if self.allowed else 'deny'} ({self.reason})"),
            ("why", self.detail),
            ("who", f"{self.id} of {self.issuer}" if self.issuer else self.id),
            ("client id", self.client_id),
            ("action", f"{self.action} {self.topic}".rstrip()),
            ("roles", ", ".join(self.roles)),
            ("rule", f"{self.role} {self.rule}".strip()),
            ("place", f"{self.file}:{self.line}" if self.line else ""),
            ("grant", self.grant),
            ("written", self.written if self.written != self.grant else ""),
        ]
        lines = [line for label, value in rows if value for line in _row(label, value)]
        for miss in self.misses:
            what = f"{miss.role} {miss.rule} (line {miss.line}) {miss.grant}".rstrip()
            lines += _row("missed" if miss is self.misses[0] else "", what)
            lines += _row("", f"  {miss.why}")
        return "\n".join(lines)


def _row(label: str, value: str) -> list[str]:
    safe = "".join(c if c.isprintable() else sanitise(c) for c in value)
    indent = safe[: len(safe) - len(safe.lstrip())]
    start, rest = f"{label:<{LABEL}}{indent}", " " * LABEL + indent
    return textwrap.wrap(safe.lstrip(), WIDTH, initial_indent=start, subsequent_indent=rest)


def explain(
    policy: Policy,
    peer: Peer,
    action: Action,
    topic: str = "",
    client_id: str | None = None,
    attributes: Mapping[str, str] = NO_ATTRIBUTES,
) -> Explanation:
    """What the policy says, and why. Without a client identifier one that the policy allows is taken.

    Retain is the retain right alone: a retained publish needs publish as well, a retained will needs will.
    """
    chosen = policy.usual_client_id(peer, attributes) if client_id is None else client_id
    verdict = policy.admit(peer, chosen, attributes)
    roles = policy.matching_roles(peer, attributes)
    misses: tuple[Miss, ...] = ()
    if isinstance(verdict, Refusal):
        decision = Decision(False, verdict.reason, "", "", 0, "")
        detail = verdict.detail
        if verdict.reason is Reason.NO_ROLE:
            misses = _missed_roles(policy, peer, attributes)
    else:
        decision = verdict.decide(action, topic)
        detail = _detail(action, topic, decision, verdict)
        if not decision.allowed:
            misses = _missed_rules(roles, verdict, action, topic)
    place = (decision.line, decision.rule)
    return Explanation(
        id=peer.id.value,
        issuer=peer.issuer_cn,
        client_id=chosen,
        action=action.value,
        topic=topic,
        allowed=decision.allowed,
        reason=decision.reason.value,
        detail=detail,
        roles=tuple(role.name for role in roles),
        role=decision.role,
        rule=decision.rule,
        file=policy.file,
        line=decision.line,
        grant=decision.grant,
        written=next((rule.text for rule in _rules(roles) if (rule.line, rule.name) == place), ""),
        misses=misses,
    )


def _rules(roles: Sequence[Role]) -> Iterator[Rule]:
    return (rule for role in roles for rule in role.rules)


def _detail(action: Action, topic: str, decision: Decision, grants: Grants) -> str:
    if decision.rule == SHARED:
        return "shared subscriptions are no part of MQTT 3.1.1"
    if decision.rule.startswith("error:"):
        return "this is no topic that MQTT 3.1.1 allows here"
    if action is Action.RETAIN and decision.allowed:
        also = [right.value for right in (Action.PUBLISH, Action.WILL) if grants.decide(right, topic).allowed]
        return (
            f"used together with {' or '.join(also)}"
            if also
            else "of no use: neither publish nor will is granted there"
        )
    return ""


def _missed_rules(roles: Sequence[Role], grants: Grants, action: Action, topic: str) -> tuple[Miss, ...]:
    names = {role.number: role.name for role in roles}
    request = tuple(topic.split("/"))
    found: list[tuple[int, Miss]] = []
    for rule in _rules(roles):
        if rule.denies or action not in rule.actions:
            continue
        levels = rule.bound(grants.holder.values)
        fitting, why = _difference(levels, request) if levels is not None else (0, _unfilled(rule, grants))
        if why:
            grant = "/".join(levels) if levels is not None else rule.text
            found.append((fitting, Miss(names[rule.role], rule.name, rule.line, grant, why)))
    found.sort(key=lambda scored: -scored[0])
    return tuple(miss for _, miss in found[:MAX_MISSES])


def _unfilled(rule: Rule, grants: Grants) -> str:
    missing = [f"{{{name}}}" for name in rule.tokens if name not in grants.holder.values]
    return f"{', '.join(missing)} has no value that can fill a topic level"


def _difference(grant: tuple[str, ...], request: tuple[str, ...]) -> tuple[int, str]:
    """How many levels fit, and why the grant does not cover the request ("" when it does)."""
    if covers(grant, request):
        return len(request), ""
    if request[0].startswith("$") and grant[0] in ("+", "#"):
        return 0, "a leading wildcard does not reach topics that start with $"
    asked = normal(request)
    for at, level in enumerate(grant):
        if at == len(asked):
            return at, f"the topic ends before level {at + 1} of the grant, {level!a}"
        if asked[at] == "#" or (asked[at] == "+" and level != "+"):
            shown = request[at] if at < len(request) else "#"
            return at, f"{shown} at level {at + 1} asks for more than the grant's {level!a}"
        if level not in ("+", asked[at]):
            return at, f"level {at + 1} is {sanitise(asked[at], 80)!r}, the grant has {level!r}"
    return len(grant), f"the topic goes on below the {len(grant)} levels of the grant"


def _missed_roles(policy: Policy, peer: Peer, attributes: Mapping[str, str]) -> tuple[Miss, ...]:
    """The roles of which the most conditions hold."""
    facts = facts_of(peer, attributes)
    found: list[tuple[int, Miss]] = []
    for role in policy.roles:
        failed = {f: g.text for f, g in role.match.items() if not any(g.matches(v) for v in facts.get(f, ()))}
        whys = [f"{fact} is {_values(facts.get(fact, ()))}, not {text!r}" for fact, text in failed.items()]
        found.append((len(role.match) - len(failed), Miss(role.name, "match", role.line, "", "; ".join(whys))))
    found.sort(key=lambda scored: -scored[0])
    return tuple(miss for _, miss in found[:MAX_MISSES])


def _values(values: Sequence[str]) -> str:
    return ", ".join(repr(sanitise(value, 80)) for value in values) or "not there"
