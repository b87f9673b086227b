"""Judging again what lives by a judgement: at reload, on a clock, and on revocation.

A connection, a stored session, a subscription, a will and a queue were all permitted once. When the policy, the CRL,
the deny list or a CA changes, or a certificate expires, each is judged by the new set, and what no longer holds ends
here: the connection is closed, its will dropped unless the role says `fire`, its queue purged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.admission import admit_certificate, refusal_of
from gateway.broker import wills
from gateway.broker.entry import judge_subscriptions, set_limits
from gateway.broker.packets import Will
from gateway.policy import Grants
from mtls.clock import Moment
from mtls.errors import Reason, Refusal
from mtls.judgement import Peer

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
    now = plane.judged = plane.clock()
    closed: list[tuple[str, Refusal]] = []
    refused: list[tuple[Connection, Refusal]] = []
    discarded = removed = wills = 0
    plane.exchange.changed()
    for connection in list(plane.live):
        verdict = _verdict(plane.state, old, connection.peer, now)
        grants = _grants(plane.state, connection, verdict)
        if isinstance(grants, Refusal):
            closed.append((str(connection.peer.id), grants))
            refused.append((connection, grants))
            continue
        if isinstance(verdict, Peer):
            connection.peer = verdict
        if connection.session is not None and grants is not None and isinstance(verdict, Peer):
            connection.session.attach(connection, verdict, grants)
            wills += _judge_will(plane, connection)
            removed += judge_subscriptions(plane, connection.session)
            set_limits(plane, connection, connection.session)
        connection.forget_routes()
    for session in [s for s in plane.exchange.sessions if s.link is None]:
        verdict = _verdict(plane.state, old, session.peer, now)
        stored = verdict if isinstance(verdict, Refusal) else plane.state.grants(verdict, session.grants.client_id)
        if isinstance(stored, Grants) and isinstance(verdict, Peer):
            session.peer, session.grants = verdict, stored
            removed += judge_subscriptions(plane, session)
        elif isinstance(stored, Refusal) and stored.reason not in KEEPS_SESSION:
            _give_up(plane, session, stored.reason)
            discarded += 1
    _revoke_all(plane, refused)
    if plane.durability is not None:
        plane.durability.wake_all()
    return ReloadReport(tuple(closed), discarded, removed, wills)


def _verdict(state: SecurityState, old: SecurityState, peer: Peer, now: Moment) -> Peer | Refusal:
    """Judge a certificate again: in full when trust or identity rules changed, else what time and lists can change."""
    if state.trust.pem != old.trust.pem or state.policy.identity != old.policy.identity:
        verdict = admit_certificate(state, peer.leaf_der, now)
        if isinstance(verdict, Peer) and verdict.id != peer.id:
            # Session, will and queue are the old name's: nothing of them may go over to the new one.
            return Refusal(Reason.IDENTITY_CONFLICT, f"{peer.id} is {verdict.id} by the identity rule in force")
        return verdict
    return refusal_of(state, peer, now) or peer


def _grants(state: SecurityState, connection: Connection, verdict: Peer | Refusal) -> Grants | Refusal | None:
    """The rights of a live connection under the new set; None before its CONNECT."""
    if isinstance(verdict, Refusal) or connection.session is None:
        return verdict if isinstance(verdict, Refusal) else None
    return state.grants(verdict, connection.session.grants.client_id)


def _judge_will(plane: DataPlane, connection: Connection) -> int:
    will, session = connection.will, connection.session
    if will is None or session is None:
        return 0
    if session.grants.decide_will(will.topic, retain=will.retain).allowed:
        return 0
    connection.will = None
    plane.audit.write("denied", peer=connection.peer, reason=Reason.WILL_REFUSED, topic=will.topic)
    return 1


def _revoke_all(plane: DataPlane, refused: Sequence[tuple[Connection, Refusal]]) -> None:
    """End connections that are no longer admitted; wills that are to fire do so when all of them are gone."""
    left = [(connection.session, _end(plane, connection, refusal)) for connection, refusal in refused]
    for session, will in left:
        if session is not None and will is not None:
            wills.fire(plane, session, will)


def _end(plane: DataPlane, connection: Connection, refusal: Refusal) -> Will | None:
    """End one, with its session unless only time is at fault; its will, if its role has it fired all the same."""
    session = connection.session
    will, connection.will = connection.will, None
    connection.close(refusal.reason, refusal.detail)
    if session is None:
        return None
    if refusal.reason not in KEEPS_SESSION:
        _give_up(plane, session, refusal.reason)
    grants = plane.state.grants(session.peer, session.grants.client_id)
    if isinstance(grants, Refusal) or grants.will_on_revoke != "fire":
        return None
    session.grants = grants
    return will


def _give_up(plane: DataPlane, session: Session, reason: Reason) -> None:
    """Forget a session that is no longer admitted; a stored one sleeps on disk unless its device was revoked."""
    if plane.durability is None or not plane.durability.give_up(session, reason):
        plane.exchange.discard(session)


def judge_by_clock(plane: DataPlane) -> None:
    """End what time has ended: certificates that have expired (R5), and what a CRL or a CA that has takes with it.

    When the clock becomes synchronised, or is so no more, everything was judged by another kind of time (R6).
    """
    now = plane.clock()
    for connection in [c for c in plane.live if c.peer.not_after < now.at]:
        detail = f"{now}, notAfter={connection.peer.not_after.isoformat()}"
        _revoke_all(plane, [(connection, Refusal(Reason.CERTIFICATE_EXPIRED, detail))])
    if now.state is not plane.judged.state or plane.state.ends_between(plane.judged.at, now.at):
        judge_again(plane, plane.state)
