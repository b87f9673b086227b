"""Sessions, subscriptions and retained messages in amqtt's shape, for plugins that look.

An amqtt Session weighs about 23 KiB, so nothing of it exists until a plugin reads something that only a whole one
has. What a plugin sees is a picture: changing it changes nothing. The user name is what the peer sent and proves
nothing; who the peer is stands in `session.attributes` under `mqtt_gateway.*`, from its certificate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from amqtt.broker import RetainedApplicationMessage
from amqtt.session import Session as AmqttSession

if TYPE_CHECKING:
    from gateway.broker.connection import Connection
    from gateway.broker.exchange import Exchange
    from gateway.broker.sessions import Session
    from mtls.judgement import Peer


def attributes_of(peer: Peer) -> dict[str, Any]:
    """What a plugin may know of a certificate."""
    return {
        "mqtt_gateway.identity": str(peer.id),
        "mqtt_gateway.issuer": peer.issuer_cn,
        "mqtt_gateway.ou": peer.ou,
        "mqtt_gateway.certificate_serial": peer.certificate_serial,
        "mqtt_gateway.fingerprint_sha256": peer.fingerprint_sha256,
    }


class SessionView(AmqttSession):
    """An amqtt Session that is built when first needed. The plain attributes cost nothing."""

    def __init__(
        self, peer: Peer, client_id: str, *, connected: bool, clean: bool, user_name: str | None, address: str
    ) -> None:
        self._facts = (peer, client_id, connected, clean, user_name, address)
        self._counts = (0, 0, 0)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_facts" not in self.__dict__ or "_built" in self.__dict__:
            raise AttributeError(name)
        self._build()
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and "_built" not in self.__dict__:
            self._build()
        super().__setattr__(name, value)

    def _build(self) -> None:
        peer, client_id, connected, clean, user_name, address = self._facts
        self.__dict__["_built"] = True
        super().__init__()
        self.client_id = client_id
        self.clean_session = clean
        self.username = user_name
        self.remote_address = address
        self.attributes = attributes_of(peer)
        if connected:
            self.transitions.connect()
        else:
            self.transitions.disconnect()

    @property
    def peer(self) -> Peer:
        """Whose session it is, by certificate."""
        return self._facts[0]

    @property
    def inflight_in_count(self) -> int:
        """QoS 2 messages received and not released."""
        return self._counts[0]

    @property
    def inflight_out_count(self) -> int:
        """Messages sent and not acknowledged."""
        return self._counts[1]

    @property
    def retained_messages_count(self) -> int:
        """Messages queued (amqtt's name for them)."""
        return self._counts[2]

    def named(self, client_id: str) -> None:
        """The client was given this identifier, because it had sent none."""
        self._facts = (self._facts[0], client_id, *self._facts[2:])
        if "_built" in self.__dict__:
            self.client_id = client_id

    def ended(self) -> None:
        """The connection is over."""
        self._facts = (*self._facts[:2], False, *self._facts[3:])
        if "_built" in self.__dict__:
            self.transitions.disconnect()

    def __hash__(self) -> int:
        return id(self)


def view_of_connection(connection: Connection, client_id: str, *, clean: bool = True) -> SessionView:
    """The picture of a connection; the same object for as long as the connection lives.

    `clean` is what CONNECT asked for, as long as there is no session to look at.
    """
    view, session = connection.view, connection.session
    if not isinstance(view, SessionView):
        view = connection.view = SessionView(
            connection.peer,
            client_id,
            connected=True,
            clean=session.clean if session is not None else clean,
            user_name=connection.user_name,
            address=connection.address,
        )
    elif session is not None and view._facts[1] != session.client_id:
        view.named(session.client_id)
    return view


def view_of(session: Session) -> SessionView:
    """The picture of a session, live or stored."""
    link: Any = session.link
    if link is not None:
        view = view_of_connection(link, session.client_id)
    else:
        view = SessionView(
            session.peer,
            session.client_id,
            connected=False,
            clean=session.clean,
            user_name=None,
            address="",
        )
    view._counts = (len(session.received), session.in_flight, session.queued)
    return view


class SessionsView(Mapping[str, "tuple[SessionView, None]"]):
    """amqtt's `sessions`: client identifier to (session, handler). We have no handlers.

    Two identities may use one client identifier here; a look-up by it then finds the first.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._sessions = exchange.sessions

    def __getitem__(self, client_id: str) -> tuple[SessionView, None]:
        for session in self._sessions:
            if session.client_id == client_id:
                return view_of(session), None
        raise KeyError(client_id)

    def __iter__(self) -> Iterator[str]:
        return (session.client_id for session in self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)

    def values(self) -> Any:
        """Every session once, also where client identifiers coincide."""
        return [(view_of(session), None) for session in self._sessions]


class _Subscribers(Sequence["tuple[SessionView, int]"]):
    """Subscribers of one filter; counted without making a picture of any."""

    def __init__(self, pairs: list[tuple[Session, int]]) -> None:
        self._pairs = pairs

    @overload
    def __getitem__(self, index: int) -> tuple[SessionView, int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[SessionView, int]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [(view_of(session), qos) for session, qos in self._pairs[index]]
        session, qos = self._pairs[index]
        return view_of(session), qos

    def __len__(self) -> int:
        return len(self._pairs)


class SubscriptionsView(Mapping[str, _Subscribers]):
    """amqtt's `subscriptions`: topic filter to [(session, QoS)]."""

    def __init__(self, exchange: Exchange) -> None:
        self._by_filter: dict[str, list[tuple[Session, int]]] = {}
        for session in exchange.sessions:
            for topic_filter, qos in session.subscriptions.items():
                self._by_filter.setdefault(topic_filter, []).append((session, qos))

    def __getitem__(self, topic_filter: str) -> _Subscribers:
        return _Subscribers(self._by_filter[topic_filter])

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_filter)

    def __len__(self) -> int:
        return len(self._by_filter)


class RetainedView(Mapping[str, RetainedApplicationMessage]):
    """amqtt's `retained_messages`: topic name to message."""

    def __init__(self, exchange: Exchange) -> None:
        self._retained = exchange.retained

    def __getitem__(self, topic: str) -> RetainedApplicationMessage:
        message = self._retained.get(topic)
        if message is None:
            raise KeyError(topic)
        return RetainedApplicationMessage(None, topic, message.payload, message.qos)

    def __iter__(self) -> Iterator[str]:
        return iter(self._retained)

    def __len__(self) -> int:
        return len(self._retained)
