"""All sessions, by (identity, client identifier), and by identity so that one device's are found without a scan."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.broker.sessions import Session, SessionKey


class SessionTable:
    """All sessions by key, and by identity so that one device's sessions are found without a scan."""

    def __init__(self) -> None:
        self._by_key: dict[SessionKey, Session] = {}
        self._by_identity: dict[str, dict[str, Session]] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_key.values())

    def get(self, identity: str, client_id: str) -> Session | None:
        """The session of this identity under this client identifier, never another identity's."""
        return self._by_key.get((identity, client_id))

    def of(self, identity: str) -> tuple[Session, ...]:
        """Every session of one identity."""
        return tuple(self._by_identity.get(identity, {}).values())

    def add(self, session: Session) -> None:
        """File a session; one already under the key is replaced."""
        self._by_key[session.key] = session
        self._by_identity.setdefault(session.identity, {})[session.client_id] = session

    def remove(self, session: Session) -> None:
        """Forget a session; one that another has replaced under its key is left alone."""
        if self._by_key.get(session.key) is not session:
            return
        del self._by_key[session.key]
        siblings = self._by_identity[session.identity]
        del siblings[session.client_id]
        if not siblings:
            del self._by_identity[session.identity]

    def expired(self, monotonic: float, expiry_s: float) -> list[Session]:
        """Sessions without a connection for longer than `expiry_s`."""
        return [
            session
            for session in self._by_key.values()
            if session.link is None and monotonic - session.disconnected_at > expiry_s
        ]
