"""All sessions, by (identity, client identifier), and by identity so that one device's are found without a scan."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.broker.sessions import Session, SessionKey
from gateway.broker.shares import Share


class SessionTable:
    """All sessions by key, and by identity so that one device's sessions are found without a scan."""

    def __init__(self) -> None:
        self._by_key: dict[SessionKey, Session] = {}
        self._by_identity: dict[str, Share] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_key.values())

    def get(self, identity: str, client_id: str) -> Session | None:
        """The session of this identity under this client identifier, never another identity's."""
        return self._by_key.get((identity, client_id))

    def of(self, identity: str) -> tuple[Session, ...]:
        """Every session of one identity."""
        share = self._by_identity.get(identity)
        return tuple(share.members.values()) if share is not None else ()

    def add(self, session: Session) -> None:
        """File a session, which counts for its identity's share from now on; one already under the key is replaced."""
        before = self._by_key.get(session.key)
        if before is not None:
            self.remove(before)
        self._by_key[session.key] = session
        share = self._by_identity.setdefault(session.identity, Share())
        share.members[session.client_id] = session
        share.count(session)
        session.share = share

    def remove(self, session: Session) -> None:
        """Forget a session; one that another has replaced under its key is left alone."""
        if self._by_key.get(session.key) is not session:
            return
        del self._by_key[session.key]
        share, session.share = session.share, Share()
        share.count(session, -1)
        del share.members[session.client_id]
        if not share.members:
            del self._by_identity[session.identity]

    def expired(self, monotonic: float, expiry_s: float) -> list[Session]:
        """Sessions without a connection for longer than `expiry_s`."""
        return [
            session
            for session in self._by_key.values()
            if session.link is None and monotonic - session.disconnected_at > expiry_s
        ]
