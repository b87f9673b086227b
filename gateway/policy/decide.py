"""What one admitted connection may do: the answer for every action and topic, from the first matching rule.

A deny of any role of the connection wins over every grant; without a grant the answer is no; an exception is a no.
Subscribing asks whether a single grant covers the filter, everything else whether a grant matches the topic name.
The codec has refused what is no topic before; if one comes all the same, it is denied.
Spec: docs/policy.md, MQTT 3.1.1 section 4.7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from gateway.policy.cache import BoundedCache
from gateway.policy.model import (
    ON_DENIED_PUBLISH,
    QUEUE_FULL,
    WILL_ON_REVOKE,
    Action,
    Decision,
    Limits,
    OnDeniedPublish,
    Role,
    Rule,
    WillOnRevoke,
)
from gateway.policy.rules import Holder, RuleBook
from gateway.policy.topics import parse_filter, parse_topic
from mtls.errors import Reason

CACHED_DECISIONS = 256
"""Per generation and connection: a device uses some ten topics, a backend receives on thousands."""

CACHED_TOPIC_CHARACTERS = 256
"""A longer topic is decided anew each time, so that a peer cannot fill memory with 64 KiB topics."""

SHARED = "$share"
"""Shared subscriptions are no part of MQTT 3.1.1: a filter that asks for one would take other sessions' messages."""

C = TypeVar("C", bound=str)
N = TypeVar("N", int, float)


class Grants:
    """The rights of one admitted connection; equal connections share one."""

    __slots__ = (
        "_book",
        "_decided",
        "_roles",
        "client_id",
        "holder",
        "limits",
        "on_denied_publish",
        "roles",
        "will_on_revoke",
    )

    def __init__(self, book: RuleBook, roles: Sequence[Role], values: Mapping[str, str], client_id: str) -> None:
        self._book = book
        self._roles = {role.number: role.name for role in roles}
        self._decided: BoundedCache[tuple[Action, str], Decision] = BoundedCache(CACHED_DECISIONS)
        self.holder = Holder(tuple(role.number for role in roles), values)
        self.client_id = client_id
        self.roles: tuple[str, ...] = tuple(role.name for role in roles)
        self.limits = strictest_limits([role.limits for role in roles])
        self.on_denied_publish: OnDeniedPublish = _strictest(
            ON_DENIED_PUBLISH, [role.on_denied_publish for role in roles], "drop"
        )
        self.will_on_revoke: WillOnRevoke = _strictest(WILL_ON_REVOKE, [role.will_on_revoke for role in roles], "drop")

    def decide(self, action: Action, topic: str) -> Decision:
        """Whether the connection may do this; `topic` is a filter for subscribe and a topic name otherwise."""
        try:
            decision = self._decided.get((action, topic))
            if decision is None:
                decision = self._judge(Action(action), topic)
                if len(topic) <= CACHED_TOPIC_CHARACTERS:
                    self._decided.put((action, topic), decision)
        except Exception as fault:  # whatever it was, it must not open anything
            return Decision(False, Reason.NO_GRANT, "", f"error:{type(fault).__name__}", 0, "")
        return decision

    def decide_publish(self, topic: str, *, retain: bool) -> Decision:
        """A PUBLISH; a retained one, also one that deletes the retained message, needs both rights."""
        decision = self.decide(Action.PUBLISH, topic)
        return self.decide(Action.RETAIN, topic) if decision.allowed and retain else decision

    def decide_will(self, topic: str, *, retain: bool) -> Decision:
        """A will message; it needs no publish right, a retained one needs the retain right as well."""
        decision = self.decide(Action.WILL, topic)
        return self.decide(Action.RETAIN, topic) if decision.allowed and retain else decision

    def _judge(self, action: Action, topic: str) -> Decision:
        if action is Action.CONNECT:
            # Grants exist only for a connection that was admitted.
            return Decision(True, Reason.GRANTED, self.roles[0], "match", 0, "")
        levels = (parse_filter if action is Action.SUBSCRIBE else parse_topic)(topic)
        if action is Action.SUBSCRIBE and levels[0] == SHARED:
            return Decision(False, Reason.SUBSCRIBE_DENIED, "", SHARED, 0, "")
        denied = self._book.denies[action].find(levels, self.holder).rule
        if denied is not None:
            return self._decision(False, Reason.DENIED_BY_RULE, denied)
        granted = self._book.grants[action].find(levels, self.holder).rule
        if granted is not None:
            return self._decision(True, Reason.GRANTED, granted)
        return Decision(False, Reason.NO_GRANT, "", "", 0, "")

    def _decision(self, allowed: bool, reason: Reason, rule: Rule) -> Decision:
        grant = "/".join(rule.bound(self.holder.values) or ())
        return Decision(allowed, reason, self._roles[rule.role], rule.name, rule.line, grant)


def strictest_limits(limits: Sequence[Limits]) -> Limits:
    """Of every limit the smallest that any role sets."""
    return Limits(
        publish_rate=_smallest([each.publish_rate for each in limits]),
        max_packet_bytes=_smallest([each.max_packet_bytes for each in limits]),
        max_sessions=_smallest([each.max_sessions for each in limits]),
        queue_messages=_smallest([each.queue_messages for each in limits]),
        queue_full=_strictest(QUEUE_FULL, [each.queue_full for each in limits], "drop-oldest"),
    )


def _smallest(said: Sequence[N | None]) -> N | None:
    """The smallest number of the roles that set one."""
    return min((number for number in said if number is not None), default=None)


def _strictest(order: Sequence[C], said: Sequence[C | None], default: C) -> C:
    """The strictest choice of the roles that make one; `order` ends with the strictest of all."""
    return max((choice for choice in said if choice is not None), key=order.index, default=default)
