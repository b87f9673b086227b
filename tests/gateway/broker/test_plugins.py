"""amqtt's plugins on the gateway: its own and a user's run unchanged, and can only narrow what the policy decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from amqtt.broker import BrokerContext
from amqtt.contexts import Action, BaseContext
from amqtt.errors import BrokerError
from amqtt.plugins.base import BaseAuthPlugin, BasePlugin, BaseTopicPlugin
from amqtt.session import Session
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from gateway.audit import AuditLog
from gateway.broker import lane
from gateway.broker.framework import build_broker
from gateway.broker.packets import PacketType, Will, encode_ack, encode_publish, encode_subscribe, encode_unsubscribe
from gateway.broker.runtime import ANONYMOUS_PLUGIN, GatewayBroker
from gateway.config import GatewayConfig
from gateway.security import load_security
from mtls.errors import ConfigFault
from tests.support.gateway import DEVICE_POLICY, OPEN_POLICY, Gateway, RawClient, wait_until
from tests.support.pki import Pki

HERE = "tests.gateway.broker.test_plugins"
SYS = "amqtt.plugins.sys.broker.BrokerSysPlugin"
FILE_AUTH = "amqtt.plugins.authentication.FileAuthPlugin"
TABOO = "amqtt.plugins.topic_checking.TopicTabooPlugin"
EVENTS = "amqtt.plugins.logging_amqtt.EventLoggerPlugin"
PACKETS = "amqtt.plugins.logging_amqtt.PacketLoggerPlugin"
SHORT_TIMEOUT_S = 0.3

Maker = Callable[..., Gateway]


async def answer(config: Any, gate: asyncio.Event) -> bool | None:
    """What the judges below say, by their configuration."""
    match config.answer:
        case "raise":
            raise RuntimeError("out of order")
        case "hang":
            await asyncio.Event().wait()
        case "resist":
            while not gate.is_set():
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    continue
        case "wait":
            await gate.wait()
    return {"false": False, "none": None}.get(config.answer, True)


@dataclass
class JudgeConfig:
    """How a judge answers, and which action it answers so; True otherwise."""

    answer: str = "true"
    action: str = ""


class AuthJudge(BaseAuthPlugin):  # type: ignore[misc]
    """An authentication plugin that answers as configured."""

    Config = JudgeConfig

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self.gate = asyncio.Event()
        self.asked: list[Session] = []

    async def authenticate(self, *, session: Session) -> bool | None:
        self.asked.append(session)
        return await answer(self.config, self.gate)


class TopicJudge(BaseTopicPlugin):  # type: ignore[misc]
    """A topic plugin that answers as configured."""

    Config = JudgeConfig

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self.gate = asyncio.Event()
        self.asked: list[tuple[str | None, str | None]] = []

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        assert session is not None
        self.asked.append((topic, action))
        if self.config.action not in ("", action):
            return True
        return await answer(self.config, self.gate)


class Recorder(BasePlugin[BrokerContext]):  # type: ignore[misc]
    """A plugin as a user would write it: it keeps what it is told."""

    def __init__(self, context: BrokerContext) -> None:
        super().__init__(context)
        self.seen: list[tuple[Any, ...]] = []
        self.closed = False

    @dataclass
    class Config:
        """A setting of the user's own."""

        colour: str = "blue"

    async def on_broker_pre_start(self) -> None:
        self.seen.append(("pre_start",))

    async def on_broker_post_start(self) -> None:
        self.seen.append(("post_start",))

    async def on_broker_pre_shutdown(self) -> None:
        self.seen.append(("pre_shutdown",))

    async def on_broker_post_shutdown(self) -> None:
        self.seen.append(("post_shutdown",))

    async def on_broker_client_connected(self, *, client_id: str, client_session: Session) -> None:
        self.seen.append(("connected", client_id, client_session))

    async def on_broker_client_disconnected(self, *, client_id: str, client_session: Session) -> None:
        self.seen.append(("disconnected", client_id, client_session))

    async def on_broker_client_subscribed(self, *, client_id: str, topic: str, qos: int) -> None:
        self.seen.append(("subscribed", client_id, topic, qos))

    async def on_broker_client_unsubscribed(self, *, client_id: str, topic: str) -> None:
        self.seen.append(("unsubscribed", client_id, topic))

    async def on_broker_message_received(self, *, client_id: str, message: Any) -> None:
        self.seen.append(("received", client_id, message.topic, bytes(message.data), message.qos, message.retain))

    async def on_broker_message_broadcast(self, *, client_id: str, message: Any) -> None:
        self.seen.append(("broadcast", client_id, message.topic, bytes(message.data)))

    async def on_broker_retained_message(self, *, client_id: str | None, retained_message: Any) -> None:
        self.seen.append(("retained", client_id, retained_message.topic, bytes(retained_message.data)))

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def make_gateway(tmp_path: Path, pki: Pki) -> Iterator[Maker]:
    """Start gateways with plugins; all are stopped at the end, with every waiting judge let go."""
    started: list[Gateway] = []

    def make(policy: str = OPEN_POLICY, **settings: Any) -> Gateway:
        folder = tmp_path / f"gateway{len(started)}"
        folder.mkdir()
        gateway = Gateway(folder, pki, policy, **settings).start()
        started.append(gateway)
        return gateway

    yield make
    for gateway in started:
        for name in ("AuthJudge", "TopicJudge"):
            if (judge := plugin(gateway, name)) is not None:
                gateway.call(judge.gate.set)
        gateway.stop()


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins have a moment only to answer."""
    monkeypatch.setattr(lane, "PLUGIN_TIMEOUT_S", SHORT_TIMEOUT_S)


def plugin(gateway: Gateway, name: str) -> Any:
    return gateway.broker.plugins_manager.get_plugin(name)


def judging(kind: str, answer: str, action: str = "") -> dict[str, dict[str, Any]]:
    return {f"{HERE}.{kind}": {"answer": answer, "action": action}}


def reasons(gateway: Gateway, event: str) -> list[str]:
    return [line["reason"] for line in gateway.audit(event)]


# amqtt's own plugins, unchanged


@pytest.mark.filterwarnings("ignore:`BrokerSysPlugin`:DeprecationWarning")
def test_the_sys_plugin_publishes_figures_to_those_who_may_read_them(make_gateway: Maker) -> None:
    """`$SYS` is retained and live for a granted client, and refused to one without the grant."""
    reader = '[[role]]\nname = "reader"\nmatch = { id = "reader" }\nsubscribe = ["$SYS/#"]\n'
    gateway = make_gateway(DEVICE_POLICY + reader, plugins={SYS: {"sys_interval": 1}})
    client = gateway.connected("reader")
    assert client.subscribe(("$SYS/broker/version", 0)) == [0]
    version = client.expect_publish()
    assert version.retain
    assert version.payload.startswith(b"aMQTT version 0.12")
    assert client.subscribe(("$SYS/broker/clients/#", 0), ("$SYS/broker/messages/received", 0)) == [0, 0]
    figures = {message.topic: message.payload for message in (client.expect_publish() for _ in range(5))}
    assert figures["$SYS/broker/clients/connected"] == b"1"
    assert int(figures["$SYS/broker/messages/received"]) >= 2
    device = gateway.connected("dev-a")
    assert device.subscribe(("$SYS/#", 0)) == [0x80]
    with pytest.raises(TimeoutError):
        device.read(1.2)


def test_the_password_file_is_asked_after_the_certificate(make_gateway: Maker, tmp_path: Path) -> None:
    """The right password of a device that we admit; anything else is refused and leaves one audit line each."""
    passwords = tmp_path / "passwords"
    passwords.write_text(f"bob:{PasswordHash((Argon2Hasher(),)).hash('secret')}\n")
    gateway = make_gateway(DEVICE_POLICY, plugins={FILE_AUTH: {"password_file": str(passwords)}})
    client = gateway.client("dev-a")
    assert client.connect("dev-a", user_name="bob", password=b"secret") == (False, 0)
    for user_name, password in (("bob", b"wrong"), ("bob", b"\xff"), ("eve", b"secret")):
        refused = gateway.client("dev-b")
        assert refused.connect("dev-b", user_name=user_name, password=password) == (False, 5)
        assert refused.expect_closed() == []
    assert reasons(gateway, "refused") == ["plugin_refused"] * 3
    assert set(gateway.sessions()) == {"dev-a"}
    stranger = gateway.client("dev-b")
    assert stranger.connect("dev-a", user_name="bob", password=b"secret") == (False, 2)
    client.ping()


def test_taboo_topics_are_taboo_and_admin_gains_nothing(make_gateway: Maker) -> None:
    """The plugin lets the user name `admin` do everything; the peer chose that name, so our policy still denies."""
    gateway = make_gateway(plugins={TABOO: {}})
    watcher = gateway.connected("dev-b", "watcher", user_name="admin")
    assert watcher.subscribe(("#", 0)) == [0]
    bob = gateway.connected("dev-a", "bob", user_name="bob")
    assert bob.subscribe(("prohibited", 0), ("allowed", 0)) == [0x80, 0]
    bob.publish("top-secret", qos=1)
    assert bob.read() == (0x40, b"\x00\x01")
    bob.publish("allowed")
    assert watcher.expect_publish().topic == "allowed"
    assert bob.expect_publish().topic == "allowed"
    assert reasons(gateway, "denied") == ["subscribe_denied", "publish_denied"]

    strict = make_gateway(DEVICE_POLICY, plugins={TABOO: {}})
    victim = strict.connected("dev-b")
    assert victim.subscribe(("devices/dev-b/#", 1)) == [1]
    admin = strict.connected("dev-a", user_name="admin")
    assert admin.subscribe(("devices/dev-b/#", 0), ("#", 0), ("devices/dev-a/#", 0)) == [0x80, 0x80, 0]
    admin.publish("devices/dev-b/x", qos=1)
    assert admin.read() == (0x40, b"\x00\x01")
    victim.ping()
    impostor = strict.client("dev-a")
    assert impostor.connect("dev-b", user_name="admin") == (False, 2)


def test_the_loggers_of_events_and_packets_log(make_gateway: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """EventLoggerPlugin answers to every event by name, PacketLoggerPlugin sees each packet both ways."""
    caplog.set_level(logging.DEBUG, "amqtt.broker.plugins")
    gateway = make_gateway(plugins={EVENTS: {}, PACKETS: {}})
    client = gateway.connected("dev-a", "logged")
    assert client.subscribe(("a", 1)) == [1]
    client.publish("a", b"1", qos=1)
    assert sorted((client.read()[0], client.read()[0])) == [0x32, 0x40]
    client.disconnect()
    gateway.stop()
    lines = [record.getMessage() for record in caplog.records]
    for event in (
        "client_connected",
        "client_subscribed",
        "message_received",
        "message_broadcast",
        "client_disconnected",
    ):
        assert lines.count(f"### 'on_broker_{event}' EVENT FIRED ###") == 1, event
    for packet in ("<-in-- SubscribePacket", "<-in-- PublishPacket", "<-in-- DisconnectPacket"):
        assert len([line for line in lines if line.startswith(f"logged {packet}")]) == 1, packet
    for packet in ("ConnackPacket", "SubackPacket", "PubackPacket", "PublishPacket"):
        assert len([line for line in lines if f"-out-> {packet}" in line]) == 1, packet


# a user's plugin


def test_a_users_plugin_hears_of_everything_once_with_the_right_facts(make_gateway: Maker) -> None:
    """One conversation from start to shutdown, word for word."""
    gateway = make_gateway(plugins={f"{HERE}.Recorder": {"colour": "red"}})
    recorder = plugin(gateway, "Recorder")
    assert recorder.config.colour == "red"
    client = gateway.connected("dev-a", "told", clean=False, user_name="alice")
    assert client.subscribe(("t/#", 1)) == [1]
    for packets in (2, 1):  # a QoS 2 message that is sent again is still one message
        client.send(encode_publish(b"t/x", b"1", 2, True, False, 5))
        assert (0x50, b"\x00\x05") in [client.read() for _ in range(packets)]
    client.publish("t/x", b"", retain=True)
    assert client.expect_publish().payload == b""
    client.send(encode_unsubscribe(3, ["t/#", "never"]))
    assert client.read() == (0xB0, b"\x00\x03")
    client.disconnect()
    wait_until(lambda: not gateway.sessions()["told"]["connected"], "disconnected")
    gateway.stop()
    sessions = {seen[2] for seen in recorder.seen if seen[0] in ("connected", "disconnected")}
    assert len(sessions) == 1
    session = sessions.pop()
    told = [seen[:2] if seen[0] in ("connected", "disconnected") else seen for seen in recorder.seen]
    assert told == [
        ("pre_start",),
        ("post_start",),
        ("connected", "told"),
        ("subscribed", "told", "t/#", 1),
        ("received", "told", "t/x", b"1", 2, True),
        ("broadcast", "told", "t/x", b"1"),
        ("retained", None, "t/x", b"1"),
        ("received", "told", "t/x", b"", 0, True),
        ("broadcast", "told", "t/x", b""),
        ("retained", None, "t/x", b""),
        ("unsubscribed", "told", "t/#"),
        ("disconnected", "told"),
        ("pre_shutdown",),
        ("post_shutdown",),
    ]
    assert (session.client_id, session.username, session.clean_session) == ("told", "alice", False)
    assert session.attributes["mqtt_gateway.identity"] == "dev-a"
    assert session.transitions.state == "disconnected"
    assert recorder.closed


def test_a_shutdown_tells_of_the_clients_that_it_disconnects(make_gateway: Maker) -> None:
    """Before the plugin is closed."""
    gateway = make_gateway(plugins={f"{HERE}.Recorder": {}})
    recorder = plugin(gateway, "Recorder")
    gateway.connected("dev-a", "last")
    loop_stop(gateway)
    told = [seen[:2] for seen in recorder.seen]
    assert told[-2:] == [("disconnected", "last"), ("post_shutdown",)]


def loop_stop(gateway: Gateway) -> None:
    """Shut down while the clients are still connected."""
    clients, gateway._clients = gateway._clients, []
    gateway.stop()
    for client in clients:
        client.close()


def test_an_authentication_plugin_sees_who_asks(make_gateway: Maker) -> None:
    """The user name is the peer's word, the attributes are the certificate's; one picture for the whole connection."""
    gateway = make_gateway(plugins={**judging("AuthJudge", "true"), f"{HERE}.Recorder": {}})
    client = gateway.client("dev-a")
    assert client.connect("", user_name="dev-b", password=b"pass") == (False, 0)
    name = next(iter(gateway.sessions()))
    assert gateway.client("dev-c").connect("kept", clean=False) == (False, 0)
    first, second = plugin(gateway, "AuthJudge").asked
    wait_until(lambda: len(plugin(gateway, "Recorder").seen) == 4, "both told")
    told = {seen[1]: seen[2] for seen in plugin(gateway, "Recorder").seen[2:]}
    assert (told[name], told["kept"]) == (first, second)
    assert (first.client_id, first.username, first.password, first.clean_session) == (name, "dev-b", "pass", True)
    assert (second.client_id, second.username, second.password, second.clean_session) == ("kept", None, None, False)
    facts = {"identity": "dev-a", "issuer": first.attributes["mqtt_gateway.issuer"]}
    assert {key: first.attributes[f"mqtt_gateway.{key}"] for key in facts} == facts
    assert first.transitions.state == "connected"


# verdicts: theirs and ours


@pytest.mark.parametrize("answer", ["true", "none"])
def test_a_plugin_that_permits_or_says_nothing_widens_nothing(make_gateway: Maker, answer: str) -> None:
    """What the policy allows is allowed, what it denies is denied: by client identifier, topic and filter."""
    gateway = make_gateway(DEVICE_POLICY, plugins={**judging("AuthJudge", answer), **judging("TopicJudge", answer)})
    victim = gateway.connected("dev-b")
    assert victim.subscribe(("devices/dev-b/#", 1)) == [1]
    client = gateway.connected("dev-a")
    assert client.subscribe(("devices/#", 0), ("devices/dev-a/#", 1)) == [0x80, 1]
    client.publish("devices/dev-b/x", qos=1)
    assert client.read() == (0x40, b"\x00\x01")
    client.publish("devices/dev-a/x", b"own", qos=1, packet_id=2)
    assert sorted([client.read()[0], client.read()[0]]) == [0x32, 0x40]
    victim.ping()
    assert gateway.client("dev-a").connect("dev-b") == (False, 2)
    refused = gateway.client("dev-c")
    assert refused.connect("dev-c", will=Will("devices/dev-b/x", b"", 0, False)) == (False, 5)
    assert [topic for topic, _ in plugin(gateway, "TopicJudge").asked].count("devices/dev-b/x") == 0


@pytest.mark.parametrize("answer", ["false", "raise", "hang", "resist"])
@pytest.mark.usefixtures("short_timeout")
def test_an_authentication_plugin_that_does_not_permit_refuses(make_gateway: Maker, answer: str) -> None:
    """No, an exception and no answer in time are a refusal: code 5, no session, one audit line."""
    gateway = make_gateway(plugins=judging("AuthJudge", answer))
    client = gateway.client("dev-a")
    assert client.connect("dev-a", will=Will("w", b"gone", 0, True)) == (False, 5)
    assert client.expect_closed() == []
    assert gateway.sessions() == {}
    assert gateway.status()["retained"] == 0
    assert reasons(gateway, "refused") == ["plugin_refused"]


@pytest.mark.parametrize("answer", ["false", "raise", "hang", "resist"])
@pytest.mark.usefixtures("short_timeout")
def test_a_topic_plugin_that_does_not_permit_refuses(make_gateway: Maker, answer: str) -> None:
    """Filters get 0x80, a PUBLISH is acknowledged, dropped and not retained; each leaves one audit line."""
    gateway = make_gateway(plugins=judging("TopicJudge", answer))
    client = gateway.connected("dev-a")
    assert client.subscribe(("a", 0)) == [0x80]
    client.publish("a", b"1", qos=1, retain=True)
    assert client.read() == (0x40, b"\x00\x01")
    client.ping()
    assert (gateway.status()["retained"], gateway.status()["subscriptions"]) == (0, 0)
    assert reasons(gateway, "denied") == ["subscribe_denied", "publish_denied"]
    assert {line["detail"] for line in gateway.audit("denied")} == {"plugin_refused"}


@pytest.mark.parametrize(("answer", "arrives"), [("true", True), ("none", True), ("false", False), ("raise", False)])
def test_a_plugin_is_asked_for_every_receiver(make_gateway: Maker, answer: str, arrives: bool) -> None:
    """Live, retained, stored, and for a will: with a no nothing is delivered, with a yes or nothing all of it."""
    gateway = make_gateway(plugins=judging("TopicJudge", answer, Action.RECEIVE))
    sender = gateway.connected("dev-a", "sender", will=Will("t/will", b"1", 0, False))
    sender.publish("t/kept", b"1", retain=True)
    sender.ping()
    stored = gateway.connected("dev-b", "stored", clean=False)
    assert stored.subscribe(("t/#", 1)) == [1]
    expected = ["t/kept", "t/live", "t/will"] if arrives else []
    sender.publish("t/live", b"1")
    sender.ping()
    sender.close()
    wait_until(lambda: "sender" not in gateway.sessions(), "gone")
    wait_until(lambda: ("t/will", Action.RECEIVE) in plugin(gateway, "TopicJudge").asked, "asked of the will")
    assert [stored.expect_publish().topic for _ in expected] == expected
    stored.ping()
    stored.disconnect()
    wait_until(lambda: not gateway.sessions()["stored"]["connected"], "disconnected")
    other = gateway.connected("dev-a", "other")
    other.publish("t/later", b"1", qos=1)
    assert other.read() == (0x40, b"\x00\x01")
    assert gateway.sessions()["stored"]["queued"] == (1 if arrives else 0)


# while a plugin is thinking


def waiting(gateway: Gateway, kind: str) -> Any:
    """The judge, once it has been asked."""
    judge = plugin(gateway, kind)
    wait_until(lambda: judge.asked, "asked")
    return judge


def test_a_reload_while_a_plugin_is_asked_is_not_forgotten(make_gateway: Maker) -> None:
    """A client permitted by yesterday's policy and today's plugin is refused by today's policy."""
    gateway = make_gateway(DEVICE_POLICY, plugins=judging("AuthJudge", "wait"))
    client = gateway.client("dev-a")
    client.send(connect_packet("dev-a"))
    judge = waiting(gateway, "AuthJudge")
    gateway.policy_file.write_text(DEVICE_POLICY.replace('match = { id = "*" }', 'match = { id = "other" }'))
    gateway.reload()
    gateway.call(judge.gate.set)
    assert client.expect_closed() == [(0x20, b"\x00\x05")]
    assert gateway.sessions() == {}


def connect_packet(client_id: str) -> bytes:
    body = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(client_id).to_bytes(2) + client_id.encode()
    return bytes((0x10, len(body))) + body


def test_a_right_lost_while_a_plugin_is_asked_is_lost(make_gateway: Maker) -> None:
    """PUBLISH: judged again by the policy of now, dropped and acknowledged."""
    gateway = make_gateway(DEVICE_POLICY, plugins=judging("TopicJudge", "wait", Action.PUBLISH))
    client = gateway.connected("dev-a")
    client.publish("devices/dev-a/x", qos=1)
    judge = waiting(gateway, "TopicJudge")
    gateway.policy_file.write_text(DEVICE_POLICY.replace("devices/{id}/#", "devices/{id}/other"))
    gateway.reload()
    gateway.call(judge.gate.set)
    assert client.read() == (0x40, b"\x00\x01")
    assert reasons(gateway, "denied") == ["publish_denied"]


def test_a_receiver_that_lost_its_right_while_a_plugin_is_asked_gets_nothing(make_gateway: Maker) -> None:
    """The right to receive is judged when the message is handed over."""
    gateway = make_gateway(DEVICE_POLICY, plugins=judging("TopicJudge", "wait", Action.RECEIVE))
    client = gateway.connected("dev-a")
    assert client.subscribe(("devices/dev-a/#", 0)) == [0]
    client.publish("devices/dev-a/x", qos=1)
    judge = plugin(gateway, "TopicJudge")
    wait_until(lambda: ("devices/dev-a/x", Action.RECEIVE) in judge.asked, "asked")
    gateway.policy_file.write_text(DEVICE_POLICY.replace('subscribe = ["devices/{id}/#"', 'subscribe = ["none"'))
    gateway.reload()
    gateway.call(judge.gate.set)
    assert client.read() == (0x40, b"\x00\x01")
    client.ping()


def test_a_kicked_client_s_publish_is_not_carried_out(make_gateway: Maker) -> None:
    """What was not acknowledged is not owed; the twin, a client that merely hung up, is served."""
    gateway = make_gateway(plugins=judging("TopicJudge", "wait", Action.PUBLISH))
    watcher = gateway.connected("dev-b", "watcher")
    assert watcher.subscribe(("#", 0)) == [0]
    kicked, gone = gateway.connected("dev-a", "kicked"), gateway.connected("dev-c", "gone")
    kicked.publish("kicked")
    gone.publish("gone")
    judge = plugin(gateway, "TopicJudge")
    wait_until(lambda: len([topic for topic, action in judge.asked if action == Action.PUBLISH]) == 2, "asked")
    assert gateway.call(lambda: gateway.broker.kick("dev-a")) == 1
    gone.close()
    wait_until(lambda: set(gateway.sessions()) == {"watcher"}, "both gone")
    gateway.call(judge.gate.set)
    assert watcher.expect_publish().topic == "gone"
    watcher.ping()


def test_a_client_gone_while_a_plugin_is_asked_leaves_no_subscription(make_gateway: Maker) -> None:
    """Nor a picture of it in the routing index."""
    gateway = make_gateway(plugins=judging("TopicJudge", "wait", Action.SUBSCRIBE))
    client = gateway.connected("dev-a")
    client.send(encode_subscribe(1, [("a", 0), ("b", 0)]))
    judge = waiting(gateway, "TopicJudge")
    client.close()
    wait_until(lambda: gateway.sessions() == {}, "gone")
    gateway.call(judge.gate.set)
    wait_until(lambda: gateway.call(lambda: not gateway.broker.plane._work), "work done")
    assert gateway.status()["subscriptions"] == 0


def test_a_client_gone_while_a_plugin_is_asked_is_not_admitted(make_gateway: Maker) -> None:
    """A CONNECT whose client has hung up makes no session."""
    gateway = make_gateway(plugins=judging("AuthJudge", "wait"))
    client = gateway.client("dev-a")
    client.send(connect_packet("dev-a"))
    judge = waiting(gateway, "AuthJudge")
    client.close()
    wait_until(lambda: gateway.call(lambda: not gateway.broker.plane.live), "gone")
    gateway.call(judge.gate.set)
    wait_until(lambda: gateway.call(lambda: not gateway.broker.plane._work), "work done")
    assert gateway.sessions() == {}


def test_packets_keep_their_order_on_the_slow_lane(make_gateway: Maker) -> None:
    """A burst in one write: acknowledged, delivered and answered in the order of sending."""
    gateway = make_gateway(plugins=judging("TopicJudge", "true"))
    client = gateway.connected("dev-a")
    assert client.subscribe(("o", 0)) == [0]
    client.send(b"".join(encode_publish(b"o", bytes((n,)), 1, False, False, n + 1) for n in range(50)) + b"\xc0\x00")
    got = [client.read() for _ in range(101)]
    acknowledged = [body for first, body in got if first == 0x40]
    assert acknowledged == [encode_ack(PacketType.PUBACK, n + 1)[2:] for n in range(50)]
    assert [body[-1] for first, body in got if first == 0x30] == list(range(50))
    assert got[-1] == (0xD0, b"")


def test_more_filters_than_a_session_may_have_are_not_judged_one_by_one_on_the_slow_lane(make_gateway: Maker) -> None:
    """A plugin is asked about the first ones only; the rest is refused with one audit line."""
    gateway = make_gateway(plugins=judging("TopicJudge", "false"), limits={"max_subscriptions_per_session": 2})
    device = gateway.connected("dev-a")
    assert device.subscribe(*((f"devices/{n}", 0) for n in range(2000))) == [0x80] * 2000
    topics = [line["topic"] for line in gateway.audit("denied")]
    assert topics == ["devices/0", "devices/1", "1998 more filters"]


def test_the_publish_rate_holds_on_the_slow_lane(make_gateway: Maker) -> None:
    """A burst is read at the rate of the role, also where a plugin is asked for each message."""
    limited = OPEN_POLICY + "limits = { publish_rate = 20 }\n"
    gateway = make_gateway(limited, plugins=judging("TopicJudge", "true"))
    client = gateway.connected("dev-a")
    burst = encode_publish(b"o", b"", 1, False, False, 1) * 60
    client.send(burst + b"\xc0\x00")
    while client.read() != (0xD0, b""):
        pass
    client.send(b"\xc0\x00")
    with pytest.raises(TimeoutError):
        client.read(0.5)  # 60 messages at 20 in the second with a credit of 20: two seconds of silence
    assert client.read() == (0xD0, b"")


# what it costs when nobody listens


def test_without_plugins_nothing_is_made_for_them(make_gateway: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture of a session, no event, no message in amqtt's shape, and the fast lane."""
    gateway = make_gateway()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("made for nobody")

    for name in ("view_of", "view_of_connection", "IncomingApplicationMessage", "BufferReader"):
        monkeypatch.setattr(lane, name, forbidden)
    monkeypatch.setattr(gateway.broker.plugins_manager, "fire_event", forbidden)
    plane_lane = gateway.broker.plane.lane
    assert (plane_lane.per_packet, gateway.broker.plane.slow_lane) == (False, False)
    assert (plane_lane.asks_authentication, plane_lane.asks_topics, plane_lane.watches_sent) == (False, False, False)
    client = gateway.connected("dev-a", clean=False)
    converse(client)
    client.disconnect()
    wait_until(lambda: not gateway.sessions()["dev-a"]["connected"], "disconnected")
    monkeypatch.undo()


def converse(client: RawClient) -> None:
    """Subscribe, publish and unsubscribe."""
    assert client.subscribe(("c", 1)) == [1]
    client.publish("c", qos=1, retain=True)
    assert sorted((client.read()[0], client.read()[0])) == [0x32, 0x40]
    client.send(encode_unsubscribe(2, ["c"]))
    assert client.read() == (0xB0, b"\x00\x02")


def test_a_plugin_of_lifecycle_events_leaves_messages_on_the_fast_lane(make_gateway: Maker) -> None:
    """Authentication alone is asked at CONNECT, and no packet after it is slower."""
    gateway = make_gateway(plugins=judging("AuthJudge", "true"))
    assert gateway.broker.plane.slow_lane is False
    converse(gateway.connected("dev-a"))
    assert make_gateway(plugins=judging("TopicJudge", "true")).broker.plane.slow_lane is True
    assert make_gateway(plugins={f"{HERE}.Recorder": {}}).broker.plane.slow_lane is True


# BrokerContext


def test_the_context_shows_sessions_subscriptions_and_retained_messages(make_gateway: Maker) -> None:
    """In amqtt's shape, `$` topics included, and the picture of a session is the right one."""
    gateway = make_gateway(plugins={f"{HERE}.Recorder": {}})
    context = plugin(gateway, "Recorder").context
    client = gateway.connected("dev-a", "one", user_name="alice")
    assert client.subscribe(("a/#", 1), ("b", 0)) == [1, 0]
    client.publish("a/x", b"kept", qos=1, retain=True)
    client.publish("$test/x", b"kept", retain=True)
    assert sorted((client.read()[0], client.read()[0])) == [0x32, 0x40]
    client.ping()

    def look() -> None:
        assert [session.client_id for session in context.sessions] == ["one"]
        session = context.get_session("one")
        assert (session.username, session.inflight_out_count, session.retained_messages_count) == ("alice", 1, 0)
        assert context.get_session("nobody") is None
        assert {f: [(s.client_id, qos) for s, qos in subs] for f, subs in context.subscriptions.items()} == {
            "a/#": [("one", 1)],
            "b": [("one", 0)],
        }
        assert sorted(context.retained_messages) == ["$test/x", "a/x"]
        assert len(context.retained_messages) == 2
        assert (context.retained_messages["a/x"].data, context.retained_messages["a/x"].qos) == (b"kept", 1)
        assert "nothing" not in context.retained_messages

    gateway.call(look)


def run(gateway: Gateway, work: Any) -> Any:
    """Run a coroutine on the gateway's loop."""
    assert gateway._loop is not None
    return asyncio.run_coroutine_threadsafe(work, gateway._loop).result(10)


def test_what_a_plugin_publishes_is_judged_for_its_receivers(make_gateway: Maker) -> None:
    """broadcast_message and retain_message reach those who may receive, and nobody else."""
    gateway = make_gateway(DEVICE_POLICY, plugins={f"{HERE}.Recorder": {}})
    context = plugin(gateway, "Recorder").context
    client = gateway.connected("dev-a")
    assert client.subscribe(("devices/dev-a/#", 1)) == [1]
    run(gateway, context.broadcast_message("devices/dev-b/x", b"1", 1))
    run(gateway, context.broadcast_message("devices/dev-a/x", b"2", 1))
    message = client.expect_publish()
    assert (message.payload, message.qos) == (b"2", 1)
    run(gateway, context.retain_message("devices/dev-a/state", b"3"))
    client.ping()
    assert client.subscribe(("devices/dev-a/state", 1)) == [1]
    assert client.expect_publish().payload == b"3"
    run(gateway, context.retain_message("devices/dev-a/state", b""))
    assert gateway.status()["retained"] == 0


def test_a_plugin_subscribes_a_client_within_the_clients_rights(make_gateway: Maker) -> None:
    """add_subscription: own tree yes, foreign tree no, malformed no, and no session out of nothing."""
    gateway = make_gateway(DEVICE_POLICY, plugins={f"{HERE}.Recorder": {}})
    context = plugin(gateway, "Recorder").context
    client = gateway.connected("dev-a")
    for topic, qos in (("devices/dev-a/#", 1), ("devices/#", 1), ("devices/dev-a/#/x", 1), ("devices/dev-a/y", 3)):
        run(gateway, context.add_subscription("dev-a", topic, qos))
    assert gateway.call(lambda: list(context.subscriptions)) == ["devices/dev-a/#"]
    client.publish("devices/dev-a/x", b"1")
    assert client.expect_publish().payload == b"1"
    with pytest.raises(BrokerError, match="no session of client nobody"):
        run(gateway, context.add_subscription("nobody", "devices/dev-a/#", 0))
    assert set(gateway.sessions()) == {"dev-a"}


# configurations that are refused


@pytest.mark.parametrize("kind", ["tcp", "ws"])
def test_a_listener_that_would_serve_past_the_gateway_is_refused(make_gateway: Maker, kind: str) -> None:
    """Plaintext and WebSocket: nothing of amqtt's may open a socket."""
    gateway = make_gateway()
    state = gateway.broker.state

    async def build() -> GatewayBroker:
        config = {"listeners": {"default": {"type": kind, "bind": "127.0.0.1:0"}}, "plugins": {}}
        return GatewayBroker(config, state=state, audit=AuditLog(None))

    with pytest.raises(ConfigFault, match=f"amqtt listener 'default' is of type '{kind}'"):
        asyncio.run(build())


def test_the_plugin_for_anonymous_clients_is_refused(tmp_path: Path, pki: Pki) -> None:
    """A device is who its certificate says."""
    gateway = Gateway(tmp_path, pki, plugins={ANONYMOUS_PLUGIN: {"allow_anonymous": True}})
    with pytest.raises(ConfigFault, match="admits anonymous clients"):
        gateway.start()
    gateway.stop()


@pytest.mark.parametrize(
    ("plugins", "why"),
    [
        ({"nowhere.Plugin": {}}, "Plugin import failed: nowhere.Plugin"),
        ({f"{HERE}.Recorder": {"color": "red"}}, "color"),
        ({f"{HERE}.JudgeConfig": {}}, "not a subclass"),
    ],
    ids=["no such module", "unknown setting", "no plugin"],
)
def test_a_plugin_that_cannot_be_loaded_is_a_configuration_fault(
    tmp_path: Path, pki: Pki, plugins: dict[str, dict[str, Any]], why: str
) -> None:
    """In our words, naming the table and the reason, not as a traceback of amqtt's."""
    gateway = Gateway(tmp_path, pki)
    tables = "".join(
        f'[amqtt.plugins."{name}"]\n' + "".join(f'{k} = "{v}"\n' for k, v in settings.items())
        for name, settings in plugins.items()
    )
    gateway.config_file.write_text(gateway.config_file.read_text() + tables)
    state = load_security(GatewayConfig.load(gateway.config_file))

    async def build() -> GatewayBroker:
        return build_broker(state, AuditLog(None), lambda: state.loaded_at)

    with pytest.raises(ConfigFault, match=r"\[amqtt.plugins\]") as fault:
        asyncio.run(build())
    assert why in str(fault.value)
