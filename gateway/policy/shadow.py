"""A second policy judged beside the active one: what would it have decided otherwise, and how often.

The shadow never changes an answer, and a fault in it is counted, not raised. Nothing is logged here: the comparison
comes back as a value. Counters are kept for a bounded number of (action, kind) pairs. Spec: docs/policy.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.policy.decide import Grants
from gateway.policy.model import Action, Decision
from gateway.policy.policy import NO_ATTRIBUTES, Policy
from mtls.errors import Reason, Refusal
from mtls.judgement import Peer

Kind = Literal["would_allow", "would_deny"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One answer that the shadow would have given otherwise; reason, rule and line are the shadow's."""

    action: Action
    topic: str
    kind: Kind
    reason: Reason
    role: str
    rule: str
    line: int


@dataclass(frozen=True, slots=True)
class ShadowGrants:
    """The shadow's verdict on one connection that the active policy admitted."""

    verdict: Grants | Refusal

    def decide(self, action: Action, topic: str) -> Decision:
        """What the shadow decides; a connection that it refuses may do nothing."""
        if isinstance(self.verdict, Refusal):
            return Decision(False, self.verdict.reason, "", "", 0, "")
        return self.verdict.decide(action, topic)


class Shadow:
    """Two policies and the count of their differences."""

    __slots__ = ("_asked", "_counts", "active", "shadow")

    def __init__(self, active: Policy, shadow: Policy) -> None:
        self.active, self.shadow = active, shadow
        self._counts: Counter[tuple[Action, Kind]] = Counter()
        self._asked = 0

    @property
    def asked(self) -> int:
        """How many answers were compared."""
        return self._asked

    @property
    def counts(self) -> Mapping[tuple[Action, Kind], int]:
        """How many answers differed."""
        return dict(self._counts)

    def admit(
        self,
        peer: Peer,
        client_id: str,
        attributes: Mapping[str, str] = NO_ATTRIBUTES,
        *,
        active: Grants | Refusal | None = None,
    ) -> tuple[ShadowGrants, Difference | None]:
        """The shadow's verdict on a connection. `active` spares asking the active policy again."""
        ours = self.active.admit(peer, client_id, attributes) if active is None else active
        theirs = self.shadow.admit(peer, client_id, attributes)
        reason = theirs.reason if isinstance(theirs, Refusal) else Reason.GRANTED
        seen = Decision(not isinstance(theirs, Refusal), reason, "", "", 0, "")
        return ShadowGrants(theirs), self._compare(Action.CONNECT, "", not isinstance(ours, Refusal), seen)

    def compare(self, ours: Decision, grants: ShadowGrants, action: Action, topic: str) -> Difference | None:
        """What the shadow would have decided otherwise than `ours`, counted; None when it agrees."""
        return self._compare(action, topic, ours.allowed, grants.decide(action, topic))

    def _compare(self, action: Action, topic: str, allowed: bool, theirs: Decision) -> Difference | None:
        self._asked += 1
        if theirs.allowed is allowed:
            return None
        kind: Kind = "would_allow" if theirs.allowed else "would_deny"
        self._counts[action, kind] += 1
        return Difference(action, topic, kind, theirs.reason, theirs.role, theirs.rule, theirs.line)
