"""The whole gateway with an uplink, as an operator starts it: devices in front, a mosquitto or a cluster behind.

The long form queues 100,000 messages during the cut (UPLINK_MESSAGES=100000 in the environment); the short one 3,000.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import ssl
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.gateway.uplink.test_upstream import DEVICES, in_order
from tests.gateway.uplink.upstreams import Consumer, Line, mosquitto
from tests.integration.programs import Program, attempt
from tests.support.gateway import RawClient, wait_until
from tests.support.pki import Credential, Pki

MESSAGES = int(os.environ.get("UPLINK_MESSAGES", "3000"))
POLICY = """
version = 1
[[role]]
name = "device"
match = { id = "press-*" }
publish = ["devices/{id}/#"]
subscribe = ["devices/{id}/commands/#"]
"""


class Running(Program):
    """`mqtt-gateway run` with [store] and [uplink], in a folder that a second one can take up."""

    def __init__(self, folder: Path, pki: Pki, who: Credential, upstream_port: int, **uplink: Any) -> None:
        server = pki.server()
        self.pki = pki
        self.audit_file = folder / "audit.jsonl"
        self.audit_file.unlink(missing_ok=True)
        self.config = folder / "gateway.toml"
        (folder / "policy.toml").write_text(POLICY, encoding="utf-8")
        settings = {
            "host": "127.0.0.1",
            "port": upstream_port,
            "ca_file": str(pki.ca_file),
            "cert_file": str(who.cert_file),
            "key_file": str(who.key_file),
            **uplink,
        }
        keys = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        self.config.write_text(
            f"""
[listener]
bind = ["127.0.0.1:0"]
cert_file = "{server.cert_file}"
key_file = "{server.key_file}"
ca_file = "{pki.ca_file}"
[policy]
file = "policy.toml"
[store]
path = "{folder / "gateway.db"}"
min_free_bytes = 0
allow_volatile = true
[audit]
file = "audit.jsonl"
[control]
socket = "{folder / "c"}"
[uplink]
publish = [{{ local = "devices/#", remote = "site/{{gateway}}/devices/#" }}]
subscribe = [{{ remote = "orders/{{gateway}}/#", local = "devices/#" }}]
{keys}""",
            encoding="utf-8",
        )
        super().__init__(folder / "gateway.log", ["mqtt-gateway", "run", "--config", self.config])
        try:
            self.wait_until(self._started, "the gateway")
        except BaseException:
            self.end()
            raise

    def _started(self) -> bool:
        lines = self.audit_file.read_text(encoding="utf-8").splitlines() if self.audit_file.exists() else []
        started = [line for line in map(json.loads, lines) if line["event"] == "started"]
        if started:
            self.port = int(started[-1]["addresses"][0].rpartition(":")[2])
        return bool(started)

    def spool(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            attempt("mqtt-gateway", "spool", "status", "--json", "--config", self.config).stdout
        )
        return found


class Devices:
    """Publishers on paho, QoS 1; `acknowledged` are the payloads whose PUBACK has come."""

    def __init__(self, pki: Pki, port: int, credentials: dict[str, Credential]) -> None:
        self._payloads: dict[tuple[str, int], str] = {}
        self._answers: set[tuple[str, int]] = set()  # an answer may come before `publish` has returned
        self._clients: dict[str, paho.Client] = {}
        for name, who in credentials.items():
            client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, reconnect_on_failure=False)
            context = ssl.create_default_context(cafile=str(pki.ca_file))
            context.load_cert_chain(who.cert_file, who.key_file)
            client.tls_set_context(context)
            client.max_inflight_messages_set(200)
            client.on_publish = lambda client, userdata, mid, *_, name=name: self._answers.add((name, mid))
            client.connect("127.0.0.1", port)
            client.loop_start()
            self._clients[name] = client

    @property
    def acknowledged(self) -> set[str]:
        return {self._payloads[answer] for answer in self._answers.copy() if answer in self._payloads}

    def publish(self, name: str, payload: str) -> None:
        info = self._clients[name].publish(f"devices/{name}/count", payload, qos=1)
        self._payloads[name, info.mid] = payload

    def publish_batch(self, start: int, count: int) -> None:
        for number in range(start, start + count):
            self.publish(DEVICES[number % len(DEVICES)], str(number))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.disconnect()
            client.loop_stop()


@pytest.fixture(scope="module")
def credentials(pki: Pki) -> dict[str, Credential]:
    return {name: pki.device(name) for name in DEVICES}


@pytest.fixture
def who(pki: Pki, request: pytest.FixtureRequest) -> Credential:
    return pki.device(f"gw-{abs(hash(request.node.name)) % 10**8}")


def test_a_message_of_a_device_arrives_upstream_and_a_command_comes_down(
    tmp_path: Path, pki: Pki, who: Credential, consumer_identity: Credential, credentials: dict[str, Credential]
) -> None:
    """Origin by certificate on the way up; on the way down a device receives what its policy lets it, no more."""
    with (
        mosquitto(tmp_path / "up", pki) as upstream,
        Consumer(upstream.port, pki, consumer_identity) as consumer,
        Running(tmp_path, pki, who, upstream.port) as gateway,
    ):
        context = ssl.create_default_context(cafile=str(pki.ca_file))
        context.load_cert_chain(credentials["press-07"].cert_file, credentials["press-07"].key_file)
        device = RawClient(gateway.port, context)
        assert device.connect("press-07") == (False, 0)
        assert device.subscribe(("devices/press-07/commands/#", 1)) == [1]
        wait_until(lambda: gateway.spool()["state"] == "connected")
        for qos in (0, 1, 2):
            device.publish("devices/press-07/state", f"q{qos}".encode(), qos=qos, packet_id=qos + 1)
            if qos:
                assert device.read()[0] in (0x40, 0x50)
        wait_until(lambda: len(consumer.messages) == 3)
        assert [(e["device_id"], e["sequence"], e["payload"]) for e in consumer.envelopes] == [
            ("press-07", 1, "q0"),
            ("press-07", 2, "q1"),
            ("press-07", 3, "q2"),
        ]
        gateway_name = consumer.messages[0].topic.split("/")[1]
        consumer.publish(f"orders/{gateway_name}/press-08/commands/go", "for another")
        consumer.publish(f"orders/{gateway_name}/press-07/state", "no command")
        consumer.publish(f"orders/{gateway_name}/press-07/commands/go", "1")
        received = device.expect_publish()
        assert (received.topic, received.payload, received.qos) == ("devices/press-07/commands/go", b"1", 1)
        wait_until(lambda: gateway.spool()["commands"] == {"delivered": 3})
        assert len(consumer.messages) == 3
        shown = attempt("mqtt-gateway", "status", "--config", gateway.config).stdout
        assert f"127.0.0.1:{upstream.port}" in shown
        device.close()


def test_a_full_spool_withholds_the_acknowledgement_and_answers_pings(
    tmp_path: Path, pki: Pki, who: Credential, consumer_identity: Credential, credentials: dict[str, Credential]
) -> None:
    """No PUBACK while there is no room, reading goes on, and the upstream's return brings the acknowledgement (D3)."""
    with (
        mosquitto(tmp_path / "up", pki) as upstream,
        Line(upstream.port) as line,
        Consumer(upstream.port, pki, consumer_identity) as consumer,
    ):
        line.cut()
        with Running(tmp_path, pki, who, line.port, spool_max_bytes=1 << 20) as gateway:
            context = ssl.create_default_context(cafile=str(pki.ca_file))
            context.load_cert_chain(credentials["press-07"].cert_file, credentials["press-07"].key_file)
            device = RawClient(gateway.port, context)
            assert device.connect("press-07") == (False, 0)
            sent = 0
            while not is_full(gateway, device, sent):
                sent += 1
                assert sent < 30
            assert gateway.spool()["spool_full"]
            device.send(b"\xc0\x00")
            assert device.read() == (0xD0, b"")
            line.mend()
            assert device.read()[0] == 0x40
            wait_until(lambda: len(consumer.unique()) == sent + 1)
            assert gateway.spool()["dropped"] == {}
            device.close()


def is_full(gateway: Running, device: RawClient, number: int) -> bool:
    """Publish 100 kB; whether no acknowledgement comes. A disk that is only slow is waited for."""
    device.publish("devices/press-07/large", b"x" * 100_000, qos=1, packet_id=number + 1)
    try:
        return device.read(1.5)[0] != 0x40
    except TimeoutError:
        return bool(gateway.spool()["spool_full"]) or device.read()[0] != 0x40


def test_a_spool_of_a_newer_program_stops_the_start_and_loses_nothing(
    tmp_path: Path, pki: Pki, who: Credential, consumer_identity: Credential, credentials: dict[str, Credential]
) -> None:
    """The gateway names the schema and ends 78; for a program that knows it, what was acknowledged still goes up."""
    store = tmp_path / "gateway.db"

    def stamp(change: int) -> int:
        with closing(sqlite3.connect(store, isolation_level=None)) as db:
            version = int(db.execute("PRAGMA user_version").fetchone()[0]) + change
            db.execute(f"PRAGMA user_version = {version}")
            db.execute("UPDATE schema_version SET version = ?", (version,))
        return version

    with mosquitto(tmp_path / "up", pki) as upstream, Line(upstream.port) as line:
        line.cut()
        with (
            Running(tmp_path, pki, who, line.port) as gateway,
            Devices(pki, gateway.port, credentials) as devices,
        ):
            devices.publish_batch(0, 30)
            wait_until(lambda: len(devices.acknowledged) == 30)
        newer = stamp(1)
        refused = attempt("mqtt-gateway", "run", "--config", gateway.config)
        assert refused.returncode == 78
        assert f"has schema {newer}" in refused.stderr
        assert not list(tmp_path.glob("gateway.db.corrupt-*"))
        stamp(-1)
        line.mend()
        with (
            Consumer(upstream.port, pki, consumer_identity) as consumer,
            Running(tmp_path, pki, who, line.port),
        ):
            wait_until(lambda: consumer.has(30))
        assert {e["payload"] for e in consumer.envelopes} == {str(number) for number in range(30)}


def test_r1_an_uplink_that_cannot_be_used_any_more_holds_up_no_revocation(
    tmp_path: Path, pki: Pki, who: Credential, credentials: dict[str, Credential]
) -> None:
    """A certificate renewed beside an old key: the reload warns and cuts the device; only a start is refused."""
    cert, device_key = tmp_path / "uplink.crt", credentials["press-07"]
    cert.write_bytes(who.cert_file.read_bytes())
    with Running(tmp_path, pki, who, 1, cert_file=str(cert)) as gateway:
        context = ssl.create_default_context(cafile=str(pki.ca_file))
        context.load_cert_chain(device_key.cert_file, device_key.key_file)
        device = RawClient(gateway.port, context)
        assert device.connect("press-07") == (False, 0)
        cert.write_bytes(pki.device("gw-renewed").cert_file.read_bytes())
        crl = pki.crl([device_key.certificate])
        text = gateway.config.read_text(encoding="utf-8")
        gateway.config.write_text(text.replace("ca_file", f'crl_file = "{crl}"\nca_file', 1), encoding="utf-8")
        done = attempt("mqtt-gateway", "reload", "--config", gateway.config)
        assert done.returncode == 0, done.stderr
        assert "the next start will fail" in done.stderr
        assert device.expect_closed() == []
        device.close()
    assert attempt("mqtt-gateway", "check-config", "--config", gateway.config).returncode == 78


@pytest.mark.parametrize("kills", [2])
def test_nothing_acknowledged_is_lost_when_the_gateway_is_killed_during_the_replay(
    tmp_path: Path,
    pki: Pki,
    who: Credential,
    consumer_identity: Credential,
    credentials: dict[str, Credential],
    kills: int,
) -> None:
    """The line is cut, thousands are acknowledged, the line is mended, and kill -9 strikes while they go up."""
    count, patience_s = MESSAGES, 60.0 + MESSAGES / 200
    with (
        mosquitto(tmp_path / "up", pki) as upstream,
        Line(upstream.port) as line,
        Consumer(upstream.port, pki, consumer_identity) as consumer,
    ):
        line.cut()
        with Running(tmp_path, pki, who, line.port) as gateway:
            with Devices(pki, gateway.port, credentials) as devices:
                devices.publish_batch(0, count)
                wait_until(lambda: len(devices.acknowledged) == count, timeout_s=patience_s)
                acknowledged = set(devices.acknowledged)
            gateway.process.kill()
            gateway.process.wait()
        line.mend()
        for kill in range(kills):
            with Running(
                tmp_path, pki, who, line.port, backlog_rate=max(1000, count // 20), backlog_burst=1
            ) as gateway:
                wait_until(lambda kill=kill: consumer.has(count * (kill + 1) // 4 + 1), timeout_s=patience_s)  # type: ignore[misc]
                gateway.process.send_signal(signal.SIGKILL)
                gateway.process.wait()
        with Running(tmp_path, pki, who, line.port, backlog_rate=100_000, backlog_burst=100_000) as gateway:
            wait_until(lambda: consumer.has(count), timeout_s=patience_s)
            wait_until(lambda: gateway.spool()["spool_messages"] == 0, timeout_s=patience_s)
    assert {e["payload"] for e in consumer.envelopes} == acknowledged
    assert len(consumer.unique()) == count
    assert in_order(consumer.envelopes)
