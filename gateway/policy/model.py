"""The words of a policy: actions, rules, roles, limits, and the decision that comes out.

Everything here is data, made once by `load.py` and never changed. A rule's topic is a row of levels; a level is a
literal, a wildcard or a token. A token's value is compared with whole levels, so no value can change the shape of a
topic. Spec: docs/policy.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from gateway.policy.globs import Glob, Token
from mtls.errors import Reason


class Action(StrEnum):
    """What a connection may want to do. Retain is a right beside publish or will, never instead of it."""

    CONNECT = "connect"
    PUBLISH = "publish"
    RETAIN = "retain"
    WILL = "will"
    SUBSCRIBE = "subscribe"
    RECEIVE = "receive"


TOPIC_ACTIONS = (Action.PUBLISH, Action.RETAIN, Action.WILL, Action.SUBSCRIBE, Action.RECEIVE)

TOKENS = ("id", "client_id", "issuer", "ou", "attr.")
"""Names that stand between braces in a topic; `attr.` is followed by the name of an attribute."""

FACTS = ("id", "issuer", "ou", "o", "attr.")
"""Names that a role can match on."""

NOT_IN_A_VALUE = frozenset("/+#$\0")

QueueFull = Literal["drop-oldest", "drop-newest"]
OnDeniedPublish = Literal["drop", "disconnect"]
WillOnRevoke = Literal["drop", "fire"]

# The strictest comes last; the first is the default.
QUEUE_FULL: tuple[QueueFull, ...] = ("drop-oldest", "drop-newest")
ON_DENIED_PUBLISH: tuple[OnDeniedPublish, ...] = ("drop", "disconnect")
WILL_ON_REVOKE: tuple[WillOnRevoke, ...] = ("fire", "drop")

Level = str | Token


def is_usable(value: str) -> bool:
    """Whether a value can fill a topic level; one that cannot is never escaped."""
    return value != "" and NOT_IN_A_VALUE.isdisjoint(value)


@dataclass(frozen=True, slots=True)
class Rule:
    """One topic of one list of one role."""

    number: int  # its place among all rules of the file
    role: int  # its role's place in the file
    name: str  # "publish[0]", "deny[2]"
    actions: tuple[Action, ...]  # subscribe is receive as well where the role has no receive list
    line: int
    text: str
    levels: tuple[Level, ...]
    denies: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(level.name for level in self.levels if isinstance(level, Token))

    def bound(self, values: Mapping[str, str]) -> tuple[str, ...] | None:
        """The topic filter for these values; None for a grant when a token has no usable value.

        A deny without a value denies every value: what cannot be evaluated must not open anything.
        """
        levels: list[str] = []
        for level in self.levels:
            value = values.get(level.name, "+" if self.denies else None) if isinstance(level, Token) else level
            if value is None:
                return None
            levels.append(value)
        return tuple(levels)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection; None means that the policy sets none."""

    publish_rate: float | None = None
    max_packet_bytes: int | None = None
    max_sessions: int | None = None
    queue_messages: int | None = None
    queue_full: QueueFull | None = None


@dataclass(frozen=True, slots=True)
class Role:
    """One [[role]] of the file. None means that the role does not say."""

    number: int
    name: str
    line: int
    match: Mapping[str, Glob]
    rules: tuple[Rule, ...]
    denies_connect: Rule | None
    client_ids: tuple[Glob, ...] | None
    limits: Limits
    on_denied_publish: OnDeniedPublish | None
    will_on_revoke: WillOnRevoke | None


@dataclass(frozen=True, slots=True)
class IssuerRule:
    """One [[issuer]]: which ids a CA may name. An empty `spki_sha256` means every key of that name."""

    subject_cn: str
    spki_sha256: str
    ids: tuple[Glob, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one question, and the rule of the policy file that gave it ("" and 0 when none did)."""

    allowed: bool
    reason: Reason
    role: str
    rule: str
    line: int
    grant: str
