"""Judging again what lives by a judgement: at reload, on a clock, and on revocation.

A connection, a stored session, a subscription, a will and a queue were all permitted once. When the policy, the CRL,
the deny list or a CA changes, or a certificate expires, each is judged by the new set, and what no longer holds ends
here: the connection is closed, its will dropped unless the role says `fire`, its queue purged.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from gateway.admission import admit_certificate
from gateway.broker.entry import set_limits
from gateway.policy import Action, Grants
from mtls.errors import Reason, Refusal
from mtls.judgement import Peer, standing

if TYPE_CHECKING:
    from gateway.broker.connection import Connection
    from gateway.broker.plane import DataPlane
    from gateway.broker.sessions import Session
    from gateway.security import SecurityState

# Faults of time, not of trust: the device may come back with the same or a renewed certificate and find its messages.
KEEPS_SESSION = frozenset(
    {
        Reason.CERTIFICATE_EXPIRED,
        Reason.CERTIFICATE_NOT_YET_VALID,
        Reason.CRL_MISSING,
        Reason.CRL_STALE,
        Reason.CRL_INVALID,
        Reason.CRL_NOT_YET_VALID,
    }
)


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload ended: identities with the reason, and numbers of things."""

    closed: tuple[tuple[str, Refusal], ...]
    sessions_discarded: int
    subscriptions_removed: int
    wills_removed: int


def judge_again(plane: DataPlane, old: SecurityState) -> ReloadReport:
    """Judge every connection and stored session by `plane.state`, which has just replaced `old`."""
    now = plane.clock()
    closed: list[tuple[str, Refusal]] = []
    discarded = removed = wills = 0
    plane.exchange.changed()
    for connection in list(plane.live):
        verdict = _verdict(plane.state, old, connection.peer, now)
        grants = _grants(plane.state, connection, verdict)
        if isinstance(grants, Refusal):
            closed.append((str(connection.peer.id), grants))
            revoke(plane, connection, grants)
            continue
        if connection.session is not None and grants is not None and isinstance(verdict, Peer):
            connection.peer = verdict
            connection.session.attach(connection, verdict, grants)
            wills += _judge_will(plane, connection)
            removed += _judge_subscriptions(plane, connection.session)
            set_limits(plane, connection, connection.session)
        connection.forget_routes()
    for session in [s for s in plane.exchange.sessions if s.link is None]:
        verdict = _verdict(plane.state, old, session.peer, now)
        stored = (
            verdict if isinstance(verdict, Refusal) else plane.state.policy.admit(verdict, session.grants.client_id)
        )
        if isinstance(stored, Grants):
            session.grants = stored
            removed += _judge_subscriptions(plane, session)
        elif stored.reason not in KEEPS_SESSION:
            plane.exchange.discard(session)
            discarded += 1
    return ReloadReport(tuple(closed), discarded, removed, wills)


def _verdict(state: SecurityState, old: SecurityState, peer: Peer, now: datetime) -> Peer | Refusal:
    """Judge a certificate again: in full when trust or identity rules changed, else what time and lists can change."""
    if state.trust.pem != old.trust.pem or state.policy.identity != old.policy.identity:
        return admit_certificate(state, peer.leaf_der, now)
    refusal = state.policy.issuer_refusal(peer) or standing(
        peer, trust=state.trust, crls=state.crls, stale=state.stale, deny=state.deny, now=now
    )
    return refusal or peer


def _grants(state: SecurityState, connection: Connection, verdict: Peer | Refusal) -> Grants | Refusal | None:
    """The rights of a live connection under the new set; None before its CONNECT."""
    if isinstance(verdict, Refusal) or connection.session is None:
        return verdict if isinstance(verdict, Refusal) else None
    return state.policy.admit(verdict, connection.session.grants.client_id)


def _judge_will(plane: DataPlane, connection: Connection) -> int:
    will, session = connection.will, connection.session
    if will is None or session is None:
        return 0
    if session.grants.decide_will(will.topic, retain=will.retain).allowed:
        return 0
    connection.will = None
    plane.audit.write("denied", peer=connection.peer, reason=Reason.WILL_REFUSED, topic=will.topic)
    return 1


def _judge_subscriptions(plane: DataPlane, session: Session) -> int:
    lost = [f for f in session.subscriptions if not session.grants.decide(Action.SUBSCRIBE, f).allowed]
    for topic_filter in lost:
        plane.audit.write(
            "denied",
            peer=session.peer,
            client_id=session.client_id,
            reason=Reason.SUBSCRIBE_DENIED,
            topic=topic_filter,
        )
    return len(plane.exchange.unsubscribe(session, lost))


def revoke(plane: DataPlane, connection: Connection, refusal: Refusal) -> None:
    """End a connection that is no longer admitted, with its will and, unless only time is at fault, its session."""
    session = connection.session
    if session is not None and session.grants.will_on_revoke != "fire":
        connection.will = None
    connection.close(refusal.reason, refusal.detail)
    if session is not None and refusal.reason not in KEEPS_SESSION:
        plane.exchange.discard(session)


def expire(plane: DataPlane, now: datetime) -> None:
    """End the sessions whose certificates have expired since they connected (R5)."""
    for connection in [c for c in plane.live if c.peer.not_after < now]:
        detail = f"notAfter={connection.peer.not_after.isoformat()}, clock={now.isoformat()}"
        revoke(plane, connection, Refusal(Reason.CERTIFICATE_EXPIRED, detail))
