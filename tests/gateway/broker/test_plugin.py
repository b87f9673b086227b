"""CertificateAclPlugin on a stock amqtt broker with a TLS listener, judged by mosquitto's clients and paho."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.errors import PluginInitError
from amqtt.session import Session
from paho.mqtt.enums import CallbackAPIVersion

from gateway.broker.plugin import NOT_ENFORCED, CertificateAclPlugin
from tests.gateway.site import Site
from tests.integration.programs import attempt, free_port, wait_until
from tests.support.pki import Credential, Pki

PLUGIN = "gateway.broker.plugin.CertificateAclPlugin"


class Stock:
    """amqtt's own broker, nothing of ours but the plugin, in a thread."""

    def __init__(self, site: Site, **settings: Any) -> None:
        self.site = site
        self.port = free_port()
        self._config = {
            "listeners": {
                "default": {
                    "type": "tcp",
                    "bind": f"127.0.0.1:{self.port}",
                    "ssl": True,
                    "cafile": str(site.pki.ca_file),
                    "certfile": str(site.server.cert_file),
                    "keyfile": str(site.server.key_file),
                }
            },
            "plugins": {
                PLUGIN: {
                    "policy_file": str(site.policy_file),
                    "ca_file": str(site.pki.ca_file),
                    "crl_file": str(site.crl_file),
                    "deny_file": str(site.deny_file),
                    **settings,
                }
            },
        }
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Stock:
        self._thread.start()
        assert self._ready.wait(10)
        if self.failure is not None:
            raise self.failure
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(15)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self.failure = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        broker = Broker(self._config)
        await broker.start()
        self._ready.set()
        await self._stop.wait()
        await broker.shutdown()

    def publish(self, who: Credential | None, client_id: str, topic: str, *options: str) -> int:
        """The exit status of mosquitto_pub, QoS 1."""
        identity = ["--cert", who.cert_file, "--key", who.key_file] if who is not None else []
        return attempt(
            "mosquitto_pub",
            *("-h", "127.0.0.1", "-p", str(self.port), "--cafile", self.site.pki.ca_file, "-i", client_id),
            *(*identity, "-t", topic, "-m", "21.5", "-q", "1", *options),
            timeout_s=20,
        ).returncode

    def client(self, who: Credential, client_id: str) -> paho.Client:
        """A connected paho client that collects its messages in `userdata`."""
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id, userdata=[])
        context = ssl.create_default_context(cafile=str(self.site.pki.ca_file))
        context.load_cert_chain(who.cert_file, who.key_file)
        client.tls_set_context(context)
        client.on_message = lambda _, got, message: got.append((message.topic, message.payload))
        client.connect("localhost", self.port)
        client.loop_start()
        wait_until(client.is_connected, "CONNACK 0")
        return client


@pytest.fixture
def site(tmp_path: Path, pki: Pki) -> Site:
    return Site(tmp_path, pki)


@pytest.fixture
def stock(site: Site) -> Iterator[Stock]:
    with Stock(site) as broker:
        yield broker


def subscribed(client: paho.Client, topic: str) -> int:
    """The return code of one filter."""
    codes: list[int] = []
    client.on_subscribe = lambda _, __, ___, reasons, ____: codes.extend(reason.value for reason in reasons)
    client.subscribe(topic, 1)
    wait_until(lambda: codes, "SUBACK")
    return codes[0]


def test_a_device_has_its_own_tree_and_no_other(stock: Stock, site: Site) -> None:
    """Publish, subscribe and receive by the policy; the deny twin of each in the same broker."""
    backend = stock.client(site.pki.device("backend", ou="services"), "backend")
    device = stock.client(site.pki.device("dev-a"), "dev-a")
    try:
        assert subscribed(backend, "devices/#") == 1
        assert subscribed(backend, "#") == 0x80
        assert subscribed(device, "devices/dev-a/commands/#") == 1
        assert subscribed(device, "devices/dev-b/commands/#") == 0x80
        device.publish("devices/dev-b/state", b"forged", 1).wait_for_publish(5)
        device.publish("devices/dev-a/state", b"true", 1).wait_for_publish(5)
        wait_until(backend.user_data_get, "the permitted message")
        backend.publish("devices/dev-a/commands/go", b"now", 1).wait_for_publish(5)
        wait_until(device.user_data_get, "the command")
        assert backend.user_data_get()[0] == ("devices/dev-a/state", b"true")
        assert device.user_data_get() == [("devices/dev-a/commands/go", b"now")]
    finally:
        for client in (backend, device):
            client.disconnect()
            client.loop_stop()


def test_who_is_not_admitted_gets_no_connack_0(stock: Stock, site: Site, tmp_path: Path) -> None:
    """No certificate, a foreign CA's, another's client identifier, a foreign will, a server's certificate."""
    device = site.pki.device("dev-a")
    own = "devices/dev-a/state"
    assert stock.publish(device, "dev-a", own) == 0
    assert stock.publish(None, "dev-a", own) != 0
    assert stock.publish(Pki(tmp_path / "foreign").device("dev-a"), "dev-a", own) != 0
    assert stock.publish(device, "dev-b", own) != 0
    assert stock.publish(site.pki.server(), "localhost", own) != 0
    will = ("--will-topic", "devices/dev-b/state", "--will-payload", "x")
    assert stock.publish(device, "dev-a", own, *will) != 0
    assert stock.publish(device, "dev-a", own, *will[:1], own, *will[2:]) == 0


@pytest.mark.parametrize("how", ["revoked", "denied"])
def test_a_revoked_or_denied_device_can_do_nothing_more(stock: Stock, site: Site, how: str) -> None:
    """Its next message is dropped, its next connection refused; stock amqtt keeps the old connection open."""
    credential = site.pki.device("dev-a")
    backend = stock.client(site.pki.device("backend", ou="services"), "backend")
    device = stock.client(credential, "dev-a")
    try:
        assert subscribed(backend, "devices/#") == 1
        if how == "revoked":
            site.revoke(credential.certificate)
        else:
            site.deny_file.write_text('ids = ["dev-a"]\n')
        deadline = time.monotonic() + 10
        while stock.publish(credential, "dev-a", "devices/dev-a/state") == 0:
            assert time.monotonic() < deadline
        backend.user_data_get().clear()
        device.publish("devices/dev-a/telemetry/late", b"late", 1)
        assert stock.publish(site.pki.device("dev-b"), "dev-b", "devices/dev-b/state") == 0
        wait_until(backend.user_data_get, "the neighbour's message")
        assert [topic for topic, _ in backend.user_data_get()] == ["devices/dev-b/state"]
    finally:
        for client in (backend, device):
            client.disconnect()
            client.loop_stop()


def test_a_resumed_session_is_refused_whoever_resumes_it(stock: Stock, site: Site) -> None:
    """S2 on stock amqtt: the session would be judged by the certificate of the connection that made it."""
    own = "devices/dev-a/state"
    assert stock.publish(site.pki.device("dev-a"), "dev-a", own, "-c") == 0
    assert stock.publish(site.pki.device("dev-b"), "dev-a", own, "-c") != 0
    assert stock.publish(None, "dev-a", own, "-c") != 0
    assert stock.publish(site.pki.device("dev-a"), "dev-a", own, "-c") != 0
    assert stock.publish(site.pki.device("dev-a"), "dev-a", own) == 0


def test_it_says_at_load_what_stock_amqtt_cannot_enforce(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Every gap is one warning; none is left to a page that nobody reads."""
    with caplog.at_level(logging.WARNING), Stock(site):
        pass
    said = [record.getMessage() for record in caplog.records]
    assert [gap for gap in NOT_ENFORCED if not any(gap in line for line in said)] == []


@pytest.mark.parametrize("broken", ["policy_file", "ca_file", "crl_file", "deny_file"])
def test_a_file_that_cannot_be_used_keeps_the_broker_from_starting(site: Site, tmp_path: Path, broken: str) -> None:
    """Fail closed at the start: a broker without its policy serves nobody."""
    bad = tmp_path / "bad"
    bad.write_text("nonsense = [")
    with pytest.raises(PluginInitError), Stock(site, **{broken: str(bad)}):
        pass


def test_a_broken_file_later_keeps_the_old_policy(stock: Stock, site: Site) -> None:
    """R8 for the plugin: what was in force stays in force."""
    site.policy_file.write_text("version = 1\nbroken")
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        assert stock.publish(site.pki.device("dev-a"), "dev-a", "devices/dev-a/state") == 0
        assert stock.publish(site.pki.device("dev-a"), "dev-b", "devices/dev-a/state") != 0


class Unreadable:
    """A TLS object that breaks when it is looked at."""

    def getpeercert(self, binary_form: bool = False) -> bytes:
        raise ssl.SSLError("broken")


def test_an_exception_in_a_check_is_a_no(site: Site) -> None:
    """P6: whatever goes wrong inside, nothing is allowed by it."""

    async def ask() -> tuple[bool, bool, bool, bool]:
        from amqtt.contexts import BaseContext

        context = BaseContext()
        context.logger = logging.getLogger("test.plugin")
        context.config = CertificateAclPlugin.Config(str(site.policy_file), str(site.pki.ca_file))
        plugin = CertificateAclPlugin(context)
        session, bare = Session(), Session()
        session.ssl_object = Unreadable()  # type: ignore[assignment]
        return (
            await plugin.authenticate(session=session),
            await plugin.authenticate(session=bare),
            await plugin.topic_filtering(session=session, topic="devices/dev-a/state", action=Action.PUBLISH),
            await plugin.topic_filtering(session=None, topic=None, action=None),
        )

    assert asyncio.run(ask()) == (False, False, False, False)
