"""What plugins see: pictures in amqtt's shape that are made when looked at, and change nothing."""

from __future__ import annotations

import pytest
from amqtt.session import Session as AmqttSession

from gateway.broker.connection import Connection
from gateway.broker.exchange import Exchange, ExchangeLimits
from gateway.broker.views import (
    RetainedView,
    SessionsView,
    SessionView,
    SubscriptionsView,
    attributes_of,
    view_of,
    view_of_connection,
)
from tests.gateway.broker.doubles import FakeHost, linked, message, peer, session


def view(**facts: object) -> SessionView:
    given = {"connected": True, "clean": True, "user_name": "alice", "address": "127.0.0.1", **facts}
    return SessionView(peer(), "c", **given)  # type: ignore[arg-type]


def connection(client_id: str = "c") -> Connection:
    made = Connection(FakeHost(), peer(), "127.0.0.1", connect_max_bytes=1000)
    made.user_name = "alice"
    made.session = session(client_id)
    made.session.link = made
    return made


def built(picture: SessionView) -> bool:
    return "_built" in vars(picture)


def test_a_picture_is_an_amqtt_session_with_the_facts_of_the_certificate() -> None:
    """The user name is the peer's word; the certificate's facts are attributes."""
    picture = view()
    assert isinstance(picture, AmqttSession)
    assert (picture.client_id, picture.username, picture.clean_session) == ("c", "alice", True)
    assert (picture.remote_address, picture.transitions.state) == ("127.0.0.1", "connected")
    assert (
        picture.attributes
        == attributes_of(peer())
        == {
            "mqtt_gateway.identity": "dev-a",
            "mqtt_gateway.issuer": "CA",
            "mqtt_gateway.ou": (),
            "mqtt_gateway.certificate_serial": "01",
            "mqtt_gateway.fingerprint_sha256": "ff",
        }
    )
    assert view(connected=False).transitions.state == "disconnected"


def test_a_picture_is_made_when_something_of_it_is_read_or_written() -> None:
    """Counts, hash and peer cost nothing; what a plugin writes stays."""
    picture = view()
    assert (picture.inflight_in_count, picture.inflight_out_count, picture.retained_messages_count) == (0, 0, 0)
    assert hash(picture) == id(picture)
    assert picture.peer == peer()
    assert not built(picture)
    picture.password = "secret"
    assert built(picture)
    assert (picture.password, picture.username) == ("secret", "alice")
    other = view()
    other.attributes["mine"] = 1
    assert other.attributes["mine"] == 1


def test_what_an_amqtt_session_has_not_a_picture_has_not() -> None:
    """Before it is made and after."""
    picture = view()
    for _ in range(2):
        with pytest.raises(AttributeError):
            picture.no_such_thing  # noqa: B018 - reading it is the test
        assert not hasattr(picture, "__no_such_thing__")


@pytest.mark.parametrize("looked", [False, True])
def test_a_picture_follows_the_name_and_the_end_of_its_connection(looked: bool) -> None:
    """Whether it was looked at before or not."""
    picture = view()
    if looked:
        assert picture.client_id == "c"
    picture.named("assigned")
    picture.ended()
    assert built(picture) is looked
    assert (picture.client_id, picture.transitions.state, picture.username) == ("assigned", "disconnected", "alice")


def test_a_connection_has_one_picture() -> None:
    """With the session's clean flag, or CONNECT's before there is a session; an assigned name is taken up."""
    made = connection()
    first = view_of_connection(made, "ignored")
    assert view_of_connection(made, "ignored") is first
    assert (first.client_id, first.username) == ("c", "alice")
    early = Connection(FakeHost(), peer(), "", connect_max_bytes=1000)
    picture = view_of_connection(early, "", clean=False)
    assert (picture.client_id, picture.clean_session) == ("", False)
    early.session = session("auto-1")
    assert view_of_connection(early, "") is picture
    assert picture.client_id == "auto-1"


def test_a_session_is_pictured_with_its_counts_live_or_stored() -> None:
    """Received, in flight and queued."""
    made = connection()
    live = made.session
    assert live is not None
    live.received.update({1, 2})
    live.inflight = {1: (message(), 1, False)}
    live.released = {2: None}
    picture = view_of(live)
    assert picture is view_of_connection(made, "c")
    assert (picture.inflight_in_count, picture.inflight_out_count, picture.retained_messages_count) == (2, 2, 0)
    stored = session("stored", clean=True)
    stored.deliver(message(), 1)
    picture = view_of(stored)
    assert (picture.retained_messages_count, picture.client_id, picture.clean_session) == (1, "stored", True)
    assert (picture.transitions.state, picture.username, picture.remote_address) == ("disconnected", None, "")


@pytest.fixture
def exchange() -> Exchange:
    """Three sessions of two identities, two of the same client identifier."""
    made = Exchange(ExchangeLimits(8, 8, 10_000))
    for client in (session("one"), session("two"), session("one", name="dev-b")):
        made.open(client)
        made.subscribe(client, "a/#", 1)
    made.subscribe(made.sessions.of("dev-b")[0], "b", 0)
    made.retain(message("a/x", b"1", 1))
    made.retain(message("$SYS/x", b"2", 0))
    return made


def test_sessions_are_shown_by_client_identifier(exchange: Exchange) -> None:
    """Values show each once; a look-up finds the first of a name."""
    sessions = SessionsView(exchange)
    assert (list(sessions), len(sessions)) == (["one", "two", "one"], 3)
    assert [(picture.client_id, picture.peer.id.value, handler) for picture, handler in sessions.values()] == [
        ("one", "dev-a", None),
        ("two", "dev-a", None),
        ("one", "dev-b", None),
    ]
    assert sessions["one"][0].peer.id.value == "dev-a"
    assert sessions.get("nobody", (None, None)) == (None, None)
    assert "two" in sessions


def test_subscriptions_are_shown_by_filter(exchange: Exchange) -> None:
    """Counted without a picture of anybody; indexed and sliced as a list."""
    subscriptions = SubscriptionsView(exchange)
    assert (list(subscriptions), len(subscriptions)) == (["a/#", "b"], 2)
    subscribers = subscriptions["a/#"]
    assert len(subscribers) == 3
    assert [(picture.client_id, qos) for picture, qos in subscribers] == [("one", 1), ("two", 1), ("one", 1)]
    assert [picture.client_id for picture, _ in subscribers[1:]] == ["two", "one"]
    assert subscriptions["b"][0][0].peer.id.value == "dev-b"
    with pytest.raises(KeyError):
        subscriptions["nowhere"]


def test_retained_messages_are_shown_by_topic(exchange: Exchange) -> None:
    """Those of `$` topics too."""
    retained = RetainedView(exchange)
    assert (sorted(retained), len(retained)) == (["$SYS/x", "a/x"], 2)
    shown = retained["a/x"]
    assert (shown.topic, shown.data, shown.qos, shown.retain, shown.source_session) == ("a/x", b"1", 1, True, None)
    assert retained.get("nowhere") is None


def test_looking_changes_nothing(exchange: Exchange) -> None:
    """A picture is a picture."""
    client = exchange.sessions.of("dev-b")[0]
    linked(client)
    client.link = None
    picture = view_of(client)
    picture.client_id = "changed"
    picture.inflight_out.clear()
    assert client.client_id == "one"
    assert view_of(client).client_id == "one"
