"""From CONNECT to session: the last steps of admission, and session take-over.

Session look-up comes after every check, because looking up is already acting: what a refused client could touch
here, it could take from another. Spec: MQTT 3.1.1 sections 3.1.4 and 3.1.2.4; policy limits `max_sessions`.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from amqtt.events import BrokerEvents

from gateway.admission import Admitted, ConnectRefused, admit_connect, assigned_client_id
from gateway.broker import wills
from gateway.broker.connection import Connection
from gateway.broker.outlet import State
from gateway.broker.packets import Connect, ConnectCode
from gateway.broker.sessions import Session
from gateway.broker.wheel import ticks
from gateway.policy import Action
from mtls.errors import Reason, Refusal

if TYPE_CHECKING:
    from gateway.broker.plane import DataPlane
    from gateway.policy import Grants

KEEP_ALIVE_FACTOR = 1.5  # [MQTT-3.1.2-24]


def admit(plane: DataPlane, connection: Connection, connect: Connect) -> Coroutine[Any, Any, None] | None:
    """Judge a CONNECT; only an admitted one touches sessions."""
    verdict = admit_connect(plane.state, connection.peer, connect)
    if isinstance(verdict, Admitted) and plane.lane.asks_authentication:
        return plane.lane.authenticate(connection, connect)
    decide(plane, connection, connect, verdict)
    return None


def decide(plane: DataPlane, connection: Connection, connect: Connect, verdict: Admitted | ConnectRefused) -> None:
    """Act on a judgement of the security set in force now."""
    if isinstance(verdict, ConnectRefused):
        refuse(plane, connection, connect, verdict.code, verdict.refusal)
    else:
        enter(plane, connection, connect, verdict)


def refuse(plane: DataPlane, connection: Connection, connect: Connect, code: ConnectCode, refusal: Refusal) -> None:
    """Refuse a CONNECT with a return code; one audit line."""
    plane.counts[f"refused.{refusal.reason}"] += 1
    plane.audit.write(
        "refused",
        peer=connection.peer,
        client_id=connect.client_id,
        reason=refusal.reason,
        detail=refusal.detail,
        address=connection.address,
    )
    connection.audited = True
    connection.refuse(code, refusal)


def enter(plane: DataPlane, connection: Connection, connect: Connect, admitted: Admitted) -> None:
    """Give an admitted client its session: taken over, resumed or new [MQTT-3.1.4-2, 3.1.2-4 to 3.1.2-6]."""
    if connection.state is not State.ADMITTING:
        return
    grants = admitted.grants
    sessions = plane.exchange.sessions
    identity, client_id = str(connection.peer.id), connect.client_id or assigned_client_id()
    existing = sessions.get(identity, client_id)
    others = [session for session in plane.exchange.live_of(identity) if session is not existing]
    most = grants.limits.max_sessions
    if most is not None and len(others) >= most:
        refusal = Refusal(Reason.TOO_MANY_SESSIONS, f"limit {most}")
        refuse(plane, connection, connect, ConnectCode.SERVER_UNAVAILABLE, refusal)
        return
    if plane.durability is not None and plane.durability.is_overfull and (connect.will or not connect.clean_session):
        refusal = Refusal(Reason.STORE_FULL, "the disk does not write")
        refuse(plane, connection, connect, ConnectCode.SERVER_UNAVAILABLE, refusal)
        return
    if existing is not None and isinstance(existing.link, Connection):
        existing.link.close(Reason.TAKEN_OVER)
        existing = sessions.get(identity, client_id)
    if existing is None and plane.durability is not None:
        existing = plane.durability.wake(connection.peer, client_id, grants)
    if existing is not None and connect.clean_session:
        plane.exchange.discard(existing)
        existing = None
    session = existing
    if session is None:
        session = _new_session(plane, connection, client_id, grants, clean=connect.clean_session)
        plane.exchange.open(session)
    elif session.grants is not grants:
        plane.exchange.changed()
    session.attach(connection, connection.peer, grants)
    judge_subscriptions(plane, session)
    _serve(plane, connection, session, connect, present=existing is not None)


def _new_session(plane: DataPlane, connection: Connection, client_id: str, grants: Grants, *, clean: bool) -> Session:
    if plane.durability is not None and not clean:
        return plane.durability.begin_session(connection.peer, client_id, grants)
    window = plane.state.config.limits.max_inflight
    return Session(connection.peer, client_id, grants, clean=clean, window=window)


def _serve(plane: DataPlane, connection: Connection, session: Session, connect: Connect, *, present: bool) -> None:
    grants = session.grants
    plane.counts["admitted"] += 1
    plane.audit.write(
        "admitted",
        peer=connection.peer,
        client_id=session.client_id,
        address=connection.address,
        roles=list(grants.roles),
        session_present=present,
    )
    plane.arrivals.discard(connection)
    if connection.keep_alive_s:
        plane.wheel.add(connection, plane.tick + keep_alive_ticks(connection))
    set_limits(plane, connection, session)
    if present and plane.durability is not None:
        plane.durability.renew(session)
    wills.keep(plane, connection, connect.will, session.client_id)
    connection.accept(session, connect.will, session_present=present)
    plane.lane.event(BrokerEvents.CLIENT_CONNECTED, connection)


def judge_subscriptions(plane: DataPlane, session: Session) -> int:
    """Remove the subscriptions that the session's rights no longer cover; how many."""
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


def keep_alive_ticks(connection: Connection) -> int:
    """How long a connection may send no packet [MQTT-3.1.2-24]."""
    return ticks(connection.keep_alive_s * KEEP_ALIVE_FACTOR)


def set_limits(plane: DataPlane, connection: Connection, session: Session) -> None:
    """Put the limits of the session's roles in force on its connection."""
    limits, configured = session.grants.limits, plane.state.config.limits.max_packet_bytes
    own = limits.max_packet_bytes
    connection.max_packet_bytes = configured if own is None else min(own, configured)
    if connection.publish_rate != limits.publish_rate:
        connection.publish_rate = limits.publish_rate
        connection.credit = limits.publish_rate or 0.0
        connection.credited_at = time.monotonic()
