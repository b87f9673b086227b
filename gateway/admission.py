"""Admission: the judgement of a connection before any session is touched.

Two steps, each a list of small checks in an order that never changes. After the handshake the certificate: exactly
one identity, a client's usage, an issuer that may name it, dates, deny list and CRL. With CONNECT the client: its
identifier bound to the identity, its will permitted. Pure: nothing here reads a file, a clock or a socket.

Return codes: identity or will refused 5, client identifier refused 2 [MQTT-3.1.3-9]; policy rule 5.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.broker.packets import Connect, ConnectCode, Will
from gateway.policy import Grants
from mtls.clock import Moment
from mtls.errors import Reason, Refusal
from mtls.judgement import Peer, standing

if TYPE_CHECKING:
    from gateway.security import SecurityState


@dataclass(frozen=True, slots=True)
class Admitted:
    """A client that may have its session, under these rights."""

    grants: Grants


@dataclass(frozen=True, slots=True)
class ConnectRefused:
    """A CONNECT to be answered with `code`; `refusal` goes to the audit log."""

    code: ConnectCode
    refusal: Refusal


def admit_certificate(
    state: SecurityState, leaf_der: bytes | None, now: Moment, proven_issuer: bytes | None = None
) -> Peer | Refusal:
    """Judge the leaf certificate of one connection, resumed or not. `proven_issuer`: see `TrustStore.authority_of`."""
    if leaf_der is None:
        return Refusal(Reason.NO_CERTIFICATE)
    peer = state.peers.peer_of(leaf_der, proven_issuer)
    return peer if isinstance(peer, Refusal) else refusal_of(state, peer, now) or peer


def refusal_of(state: SecurityState, peer: Peer, now: Moment) -> Refusal | None:
    """Why a peer is not admitted now, whether it is at the door, connected, or has left a session behind."""
    refusal = state.registry.refusal(peer.id) or state.policy.issuer_refusal(peer)
    return refusal or standing(peer, trust=state.trust, crls=state.crls, stale=state.stale, deny=state.deny, now=now)


def admit_connect(state: SecurityState, peer: Peer, connect: Connect) -> Admitted | ConnectRefused:
    """Judge a CONNECT of a peer whose certificate was admitted.

    An empty client identifier needs clean session [MQTT-3.1.3-8] and a policy that writes it out; the session is then
    given a name that cannot be guessed (`assigned_client_id`).
    """
    if not connect.client_id and not connect.clean_session:
        return _refused(Refusal(Reason.CLIENT_ID_REFUSED, "empty client identifier without clean session"))
    grants = state.grants(peer, connect.client_id)
    if isinstance(grants, Refusal):
        return _refused(grants)
    for check in _WILL_CHECKS:
        refusal = check(state, connect.will, grants) if connect.will is not None else None
        if refusal is not None:
            return _refused(refusal)
    return Admitted(grants)


def _refused(refusal: Refusal) -> ConnectRefused:
    by_id = refusal.reason is Reason.CLIENT_ID_REFUSED
    return ConnectRefused(ConnectCode.IDENTIFIER_REJECTED if by_id else ConnectCode.NOT_AUTHORIZED, refusal)


def _will_fits(state: SecurityState, will: Will, grants: Grants) -> Refusal | None:
    """A will is a packet of its client's: it has the size and the depth that a PUBLISH of it may have."""
    limits = state.config.limits
    most = min(limits.max_packet_bytes, grants.limits.max_packet_bytes or limits.max_packet_bytes)
    size = len(will.topic.encode()) + len(will.payload)
    if size > most:
        return Refusal(Reason.WILL_REFUSED, f"{size} bytes, limit {most}")
    levels = will.topic.count("/") + 1
    if levels > limits.max_topic_levels:
        return Refusal(Reason.WILL_REFUSED, f"{levels} topic levels, limit {limits.max_topic_levels}")
    return None


def _will_is_granted(state: SecurityState, will: Will, grants: Grants) -> Refusal | None:
    """A will needs `will`, a retained one `retain` as well (policy rule 1)."""
    decision = grants.decide_will(will.topic, retain=will.retain)
    if decision.allowed:
        return None
    return Refusal(Reason.WILL_REFUSED, f"{decision.reason} {decision.rule}".strip())


_WILL_CHECKS: Final = (_will_fits, _will_is_granted)


def assigned_client_id() -> str:
    """A name for a session whose client sent none; no client can guess it."""
    return f"auto-{secrets.token_hex(12)}"
