"""A second policy judged beside the one in force: what would it have decided otherwise, and how often.

`ShadowedPolicy` answers exactly as `Policy` does, and asks its shadow whenever it makes a decision: at every admission,
and for each action and topic when the connection's own memory of decisions does not have it. So nothing is compared
per packet, and a difference is counted once per connection's rights and topic, again only when that was forgotten.

The shadow never changes an answer; an exception in it is counted and goes no further. A connection that the shadow
would refuse is one difference, not one for each of its topics. Limits are not compared. Nothing is logged here: every
difference goes to `tell`. Spec: docs/policy.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from cryptography import x509

from gateway.policy.decide import Grants
from gateway.policy.load import Loaded
from gateway.policy.model import Action, Decision, Role
from gateway.policy.policy import NO_ATTRIBUTES, UNEVALUATED, Policy
from gateway.policy.rules import RuleBook
from mtls.errors import Reason, Refusal
from mtls.identity import identity_of, quiet_parser
from mtls.judgement import Peer

Kind = Literal["would_allow", "would_deny"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One answer that the shadow would have given otherwise; reason, detail, role, rule and line are the shadow's."""

    peer: Peer
    client_id: str
    action: Action
    topic: str
    kind: Kind
    reason: Reason
    detail: str
    role: str
    rule: str
    line: int


class _Fault(Exception):
    """The shadow could not evaluate a question; its answer would be no, but that says nothing about its rules."""


class Shadow:
    """The shadow of one active policy, what it was asked, and where it differed."""

    __slots__ = ("_active", "_same_source", "compared", "differences", "faults", "policy", "tell")

    def __init__(self, active: Policy, policy: Policy) -> None:
        self._active = active.version
        self._same_source = active.identity.source == policy.identity.source
        self.policy = policy
        self.compared = 0
        self.faults = 0
        self.differences: Counter[tuple[Action, Kind]] = Counter()
        self.tell: Callable[[Difference], None] = lambda difference: None

    def resume(self, before: Shadow) -> None:
        """Count on from `before` if it compared the same two files: a reload of something else loses no figures."""
        if (before._active, before.policy.version) == (self._active, self.policy.version):
            self.compared, self.faults, self.differences = before.compared, before.faults, before.differences

    def row(self) -> dict[str, Any]:
        """The figures, for status and metrics."""
        counts = sorted(self.differences.items())
        return {
            "policy": self.policy.file,
            "policy_version": self.policy.version,
            "compared": self.compared,
            "faults": self.faults,
            "differences": [{"action": str(action), "kind": kind, "count": n} for (action, kind), n in counts],
        }

    def admitted(
        self, peer: Peer, client_id: str, attributes: Mapping[str, str], ours: Grants | Refusal
    ) -> Grants | None:
        """Compare one admission; the rights that the shadow would give, None when it would refuse or failed."""
        try:
            theirs = self._admit(peer, client_id, attributes)
            self._compare(peer, client_id, not isinstance(ours, Refusal), theirs)
        except Exception:
            self.faults += 1
            return None
        return theirs if isinstance(theirs, Grants) else None

    def issuer_refused(self, peer: Peer) -> None:
        """Compare a refusal that came before CONNECT, with a client identifier that the shadow would accept."""
        try:
            theirs = self._admit(peer, None, NO_ATTRIBUTES)
            self._compare(peer, "", False, theirs)
        except Exception:
            self.faults += 1

    def decided(self, peer: Peer, grants: Grants, action: Action, topic: str, ours: Decision) -> None:
        """Compare one decision on a topic; `grants` are the shadow's for this peer."""
        try:
            self._compare_decision(peer, grants, action, topic, ours)
        except Exception:
            self.faults += 1

    def _compare_decision(self, peer: Peer, grants: Grants, action: Action, topic: str, ours: Decision) -> None:
        theirs = grants.decide(action, topic)  # answers no to its own exceptions, and says so in the rule
        if theirs.rule.startswith("error:"):
            self.faults += 1
            return
        self.compared += 1
        if theirs.allowed is not ours.allowed:
            kind: Kind = "would_allow" if theirs.allowed else "would_deny"
            place = (theirs.role, theirs.rule, theirs.line)
            self._differs(Difference(peer, grants.client_id, action, topic, kind, theirs.reason, "", *place))

    def _admit(self, peer: Peer, client_id: str | None, attributes: Mapping[str, str]) -> Grants | Refusal:
        if not self._same_source:
            with quiet_parser():
                certificate = x509.load_der_x509_certificate(peer.leaf_der)
            identity = identity_of(certificate, self.policy.identity)
            if isinstance(identity, Refusal):
                return identity
            peer = replace(peer, id=identity)
        chosen = self.policy.usual_client_id(peer, attributes) if client_id is None else client_id
        verdict = self.policy.admit(peer, chosen, attributes)
        if isinstance(verdict, Refusal) and verdict.detail.startswith(UNEVALUATED):
            raise _Fault
        return verdict

    def _compare(self, peer: Peer, client_id: str, allowed: bool, theirs: Grants | Refusal) -> None:
        self.compared += 1
        who = (peer, client_id, Action.CONNECT, "")
        if isinstance(theirs, Refusal) and allowed:
            self._differs(Difference(*who, "would_deny", theirs.reason, theirs.detail, "", "match", 0))
        elif isinstance(theirs, Grants) and not allowed:
            self._differs(Difference(*who, "would_allow", Reason.GRANTED, "", theirs.roles[0], "match", 0))

    def _differs(self, difference: Difference) -> None:
        self.differences[difference.action, difference.kind] += 1
        try:
            self.tell(difference)
        except Exception:
            self.faults += 1


class ComparedGrants(Grants):
    """Rights whose decisions are compared when they are made."""

    __slots__ = ("compare",)

    def __init__(self, book: RuleBook, roles: Sequence[Role], values: Mapping[str, str], client_id: str) -> None:
        super().__init__(book, roles, values, client_id)
        self.compare: Callable[[Action, str, Decision], None] | None = None

    def _judge(self, action: Action, topic: str) -> Decision:
        decision = super()._judge(action, topic)
        if self.compare is not None:
            self.compare(action, topic, decision)
        return decision


class ShadowedPolicy(Policy):
    """The active policy with a shadow that is asked as well."""

    __slots__ = ("shadow",)

    def __init__(self, loaded: Loaded, *, file: str, version: str) -> None:
        super().__init__(loaded, file=file, version=version)
        self.shadow: Shadow | None = None

    def cast(self, shadow: Policy) -> Shadow:
        """Ask `shadow` from now on."""
        self.shadow = Shadow(self, shadow)
        return self.shadow

    def admit(self, peer: Peer, client_id: str, attributes: Mapping[str, str] = NO_ATTRIBUTES) -> Grants | Refusal:
        """As the active policy says."""
        verdict = super().admit(peer, client_id, attributes)
        shadow = self.shadow
        if shadow is None or (isinstance(verdict, Refusal) and verdict.reason is Reason.ISSUER_NOT_ALLOWED):
            return verdict  # the latter was compared by `issuer_refusal`
        theirs = shadow.admitted(peer, client_id, attributes, verdict)
        if isinstance(verdict, ComparedGrants):
            # Equal connections share their rights; the newest one's certificate is what a difference is told with.
            verdict.compare = partial(shadow.decided, peer, theirs) if theirs is not None else None
        return verdict

    def issuer_refusal(self, peer: Peer) -> Refusal | None:
        """As the active policy says."""
        refusal = super().issuer_refusal(peer)
        if refusal is not None and self.shadow is not None:
            self.shadow.issuer_refused(peer)
        return refusal

    def _grants(self, roles: Sequence[Role], values: Mapping[str, str], client_id: str) -> Grants:
        return ComparedGrants(self._book, roles, values, client_id)
