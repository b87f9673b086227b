"""Upstreams that we did not write, and the uplink's parts put together without a broker in front.

The judges read upstream through paho and mosquitto_sub; the line between can be cut, stalled and half-opened.
"""

from __future__ import annotations

import json
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tests.integration.programs import Program, free_port, listens
from tests.support.gateway import wait_until
from tests.support.pki import Credential, Pki


@dataclass(frozen=True)
class Mosquitto:
    """A mosquitto with mutual TLS; it keeps nothing on disk unless `persistent`."""

    program: Program
    port: int


@contextmanager
def mosquitto(folder: Path, pki: Pki, *, port: int | None = None, options: str = "") -> Iterator[Mosquitto]:
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    server = pki.server()
    user = "user root\n" if os.geteuid() == 0 else ""
    (folder / "mosquitto.conf").write_text(
        f"{user}listener {port} 127.0.0.1\ncafile {pki.ca_file}\ncertfile {server.cert_file}\n"
        f"keyfile {server.key_file}\nrequire_certificate true\nuse_identity_as_username true\n"
        f"allow_anonymous true\nmax_queued_messages 1000000\nmax_inflight_messages 0\n{options}",
        encoding="utf-8",
    )
    program = Program(folder / "mosquitto.log", ["mosquitto", "-c", folder / "mosquitto.conf"])
    with program:
        program.wait_until(lambda: listens(port), "mosquitto listening")
        yield Mosquitto(program, port)


class Consumer:
    """A subscriber upstream, on paho: what came, in order, with its user properties."""

    def __init__(
        self, port: int, pki: Pki, who: Credential | None, *, topic: str = "site/#", mqtt5: bool = False
    ) -> None:
        self.messages: list[paho.MQTTMessage] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"consumer-{time.monotonic_ns()}",
            protocol=paho.MQTTv5 if mqtt5 else paho.MQTTv311,
        )
        if who is not None:
            context = ssl.create_default_context(cafile=str(pki.ca_file))
            context.load_cert_chain(who.cert_file, who.key_file)
            self._client.tls_set_context(context)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, 1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda client, userdata, message: self.messages.append(message)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(30), "no SUBACK"

    def publish(self, topic: str, payload: bytes | str, **options: Any) -> None:
        """Publish from upstream, and wait until it is acknowledged there."""
        self._client.publish(topic, payload, qos=options.pop("qos", 1), **options).wait_for_publish(10)

    @property
    def envelopes(self) -> list[dict[str, Any]]:
        return [json.loads(message.payload) for message in list(self.messages)]

    def unique(self) -> set[tuple[str, str, int]]:
        return {(e["device_id"], e["boot_id"], e["sequence"]) for e in self.envelopes}

    def has(self, count: int) -> bool:
        """Whether so many different messages have arrived; looked at closely only when there are enough at all."""
        return len(self.messages) >= count and len(self.unique()) >= count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Line:
    """A wire to a port that a test can cut, and mend, and make swallow everything without closing."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.mode = "open"  # or "cut" (no connection is taken or kept), or "dead" (nothing passes, nothing closes)
        self.accepted = 0
        self._turns = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Every connection ends, and none is taken."""
        self._become("cut")

    def mend(self) -> None:
        self.mode = "open"

    def deaden(self) -> None:
        """From here on nothing passes."""
        self._become("dead")

    def _become(self, mode: str) -> None:
        self.mode, turns = mode, self._turns
        wait_until(lambda: self._turns > turns + 1)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._turns += 1
            if self.mode == "cut":
                self._drop_all()
            sockets = [self._listener, *(end for pair in self._pairs for end in pair)]
            watched = [self._listener] if self.mode == "dead" else sockets
            for ready in select.select(watched, [], [], 0.01)[0]:
                if ready is self._listener:
                    self._accept()
                else:
                    self._pass_on(ready)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        self.accepted += 1
        if self.mode == "cut":
            near.close()
            return
        try:
            self._pairs.append((near, socket.create_connection(("127.0.0.1", self.target), timeout=5)))
        except OSError:
            near.close()

    def _pass_on(self, ready: socket.socket) -> None:
        for pair in list(self._pairs):
            if ready not in pair:
                continue
            other = pair[1] if ready is pair[0] else pair[0]
            try:
                data = ready.recv(65536)
                if data:
                    other.sendall(data)
                    return
            except OSError:
                pass
            self._drop(pair)

    def _drop(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.remove(pair)
        for end in pair:
            end.close()

    def _drop_all(self) -> None:
        for pair in list(self._pairs):
            self._drop(pair)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        self._drop_all()
        self._listener.close()


class NatsCluster:
    """Three nats-servers with JetStream and MQTT over mutual TLS; every message is on all three."""

    def __init__(self, folder: Path, pki: Pki) -> None:
        server = pki.server()
        self.ports = [free_port() for _ in range(3)]
        routes = [free_port() for _ in range(3)]
        self.nodes: list[Program] = []
        for number, (port, route) in enumerate(zip(self.ports, routes, strict=True)):
            home = folder / f"node{number}"
            home.mkdir(parents=True)
            others = ", ".join(f"nats://127.0.0.1:{each}" for each in routes if each != route)
            (home / "nats.conf").write_text(
                f"""
                server_name: node{number}
                listen: "127.0.0.1:{free_port()}"
                jetstream {{ store_dir: "{home / "js"}", max_mem: 64M, max_file: 1G }}
                cluster {{ name: site, listen: "127.0.0.1:{route}", routes: [{others}] }}
                mqtt {{
                    listen: "127.0.0.1:{port}"
                    ack_wait: "5s"
                    stream_replicas: 3
                    tls {{ cert_file: "{server.cert_file}", key_file: "{server.key_file}",
                           ca_file: "{pki.ca_file}", verify: true }}
                }}
                """,
                encoding="utf-8",
            )
            self.nodes.append(Program(home / "nats.log", ["nats-server", "-c", home / "nats.conf"]))
        for port in self.ports:
            wait_until(lambda port=port: listens(port), "the cluster", 30)  # type: ignore[misc]
        for node in self.nodes:
            wait_until(lambda node=node: node.said().count("Route connection created") >= 2, "the routes", 30)  # type: ignore[misc]
        wait_until(
            lambda: any("JetStream cluster new metadata leader" in node.said() for node in self.nodes),
            "a leader of the cluster",
            30,
        )

    def kill(self, number: int) -> None:
        """The power cut of one node."""
        self.nodes[number].process.kill()
        self.nodes[number].process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.end()
