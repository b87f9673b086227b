"""Wills: kept while the connection lives, fired when it ends other than by DISCONNECT, and after a crash.

A will is judged at CONNECT and again when it fires, because rights may have changed in between (policy rule 5). With a
store it is on disk for as long as its connection is open: one that is found there at a start belongs to a connection
that the crash ended, and fires then. Spec: MQTT 3.1.1 section 3.1.2.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.admission import admit_certificate
from gateway.broker.packets import Will
from gateway.broker.sessions import Message, Session
from gateway.policy import Grants
from mtls.errors import Reason, Refusal
from mtls.judgement import Peer, peer_of

if TYPE_CHECKING:
    from gateway.broker.connection import Connection
    from gateway.broker.plane import DataPlane
    from gateway.store.journal import WillRow


def keep(plane: DataPlane, connection: Connection, will: Will | None, client_id: str) -> None:
    """Store the will of a connection that begins."""
    if will is not None and plane.durability is not None:
        connection.will_number = plane.durability.journal.will(
            client_id, connection.peer.leaf_der, will.topic, will.payload, will.qos, retain=will.retain
        )


def over(plane: DataPlane, connection: Connection) -> None:
    """The connection has ended and its will, if it was due, was fired: in the same commit it leaves the store."""
    if connection.will_number and plane.durability is not None:
        plane.durability.journal.will_over(connection.will_number)
        connection.will_number = 0


def fire(plane: DataPlane, session: Session, will: Will) -> None:
    """Publish a will if it is still permitted; rights may have changed since CONNECT."""
    if not session.grants.decide_will(will.topic, retain=will.retain).allowed:
        plane.audit.write("denied", peer=session.peer, reason=Reason.WILL_REFUSED, topic=will.topic)
        return
    message = Message(will.topic, will.topic.encode(), will.payload, will.qos)
    if plane.lane.asks_topics:
        if will.retain:
            plane.retain(message, session.peer)
        plane.lane.spawn(plane.lane.distribute(message, session.identity))
    else:
        plane.emit(message, retain=will.retain, peer=session.peer)


def fire_stored(plane: DataPlane, row: WillRow) -> None:
    """A will of a connection that a crash ended: fired under the rules of now, as if the connection ended now."""
    state = plane.state
    peer = peer_of(row.leaf_der, state.trust, state.policy.identity)
    if isinstance(peer, Refusal):
        return
    grants = state.grants(peer, row.client_id)
    verdict = admit_certificate(state, row.leaf_der, plane.clock())
    if not isinstance(grants, Grants):
        return
    if isinstance(verdict, Peer) or grants.will_on_revoke == "fire":
        session = Session(peer, row.client_id, grants, clean=True, window=1)
        fire(plane, session, Will(row.topic, row.payload, row.qos, row.retain))
