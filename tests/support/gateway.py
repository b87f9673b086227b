"""A real gateway in a thread of the test process, and a raw MQTT client over TLS that can say anything.

The client speaks bytes: it is no MQTT library, so that a test can send what no library would.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from gateway.audit import AuditLog
from gateway.broker import packets
from gateway.broker.packets import Connect, PacketType, Will
from gateway.broker.runtime import GatewayBroker
from gateway.config import GatewayConfig
from gateway.keeping import open_kept
from gateway.security import load_security
from tests.support.pki import Credential, Pki

try:
    import uvloop

    LOOP_FACTORY: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
except ImportError:
    LOOP_FACTORY = None

DEADLINE_S = 10.0

T = TypeVar("T")

DEVICE_POLICY = """
version = 1
[[role]]
name = "device"
match = { id = "*" }
publish = ["devices/{id}/#"]
retain = ["devices/{id}/state"]
will = ["devices/{id}/state"]
subscribe = ["devices/{id}/#", "broadcast/#"]
limits = { max_sessions = 1 }

[[role]]
name = "backend"
match = { id = "backend*" }
publish = ["devices/#", "broadcast/#"]
retain = ["devices/#", "broadcast/#"]
subscribe = ["devices/#", "broadcast/#"]
"""

OPEN_POLICY = """
version = 1
[identity]
client_id = ["*", ""]
[[role]]
name = "anything"
match = { id = "*" }
publish = ["#", "$test/#"]
retain = ["#", "$test/#"]
will = ["#", "$test/#"]
subscribe = ["#", "$SYS/#", "$test/#"]
"""


def wait_until(condition: Callable[[], T], what: str = "condition", timeout_s: float = DEADLINE_S) -> T:
    """Poll until `condition` gives something true; AssertionError after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_s} s")
        time.sleep(0.01)


class Closed(Exception):
    """The gateway closed the connection."""


class RawClient:
    """One TLS connection; `read` gives whole packets as (first byte, body)."""

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext,
        server_name: str = "localhost",
        session: ssl.SSLSession | None = None,
    ) -> None:
        raw = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        try:
            self.socket = context.wrap_socket(raw, server_hostname=server_name, session=session)
        except BaseException:
            raw.close()
            raise
        self._buffer = b""

    def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        self.socket.sendall(data)

    def read(self, timeout_s: float = DEADLINE_S) -> tuple[int, bytes]:
        """The next packet; Closed at the end of the stream, TimeoutError when nothing comes."""
        deadline = time.monotonic() + timeout_s
        while True:
            header = packets.fixed_header(self._buffer, 0) if self._buffer else None
            if header is not None and header[2] <= len(self._buffer):
                first, start, stop = header
                body, self._buffer = self._buffer[start:stop], self._buffer[stop:]
                return first, body
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                raise
            except (ssl.SSLError, OSError) as error:
                raise Closed(str(error)) from error
            if not data:
                raise Closed
            self._buffer += data

    def connect(
        self,
        client_id: str,
        *,
        clean: bool = True,
        keep_alive_s: int = 60,
        will: Will | None = None,
        user_name: str | None = None,
        password: bytes | None = None,
    ) -> tuple[bool, int]:
        """CONNECT; (session present, return code)."""
        self.send(packets.encode_connect(Connect(client_id, clean, keep_alive_s, will, user_name, password)))
        first, body = self.read()
        assert first >> 4 == PacketType.CONNACK
        return bool(body[0]), body[1]

    def subscribe(self, *filters: tuple[str, int], packet_id: int = 1) -> list[int]:
        """SUBSCRIBE; the return codes."""
        self.send(packets.encode_subscribe(packet_id, filters))
        first, body = self.read()
        assert first >> 4 == PacketType.SUBACK
        return list(body[2:])

    def publish(
        self, topic: str, payload: bytes = b"x", qos: int = 0, retain: bool = False, packet_id: int = 1
    ) -> None:
        """PUBLISH, without waiting for an answer."""
        self.send(packets.encode_publish(topic.encode(), payload, qos, retain, False, packet_id if qos else 0))

    def expect_publish(self, timeout_s: float = DEADLINE_S) -> packets.Publish:
        """The next packet, which must be a PUBLISH."""
        first, body = self.read(timeout_s)
        assert first >> 4 == PacketType.PUBLISH, f"packet type {first >> 4}"
        return packets.decode_publish(first, body)

    def ping(self) -> None:
        """A round trip: everything sent before has been handled, and nothing else has arrived."""
        self.send(packets.PINGREQ)
        assert self.read() == (0xD0, b"")

    def ping_after_acks(self, count: int) -> None:
        """Read `count` acknowledgements, then make a round trip."""
        for _ in range(count):
            assert self.read()[0] in (0x40, 0x50)
        self.ping()

    def expect_closed(self, timeout_s: float = DEADLINE_S) -> list[tuple[int, bytes]]:
        """Read to the end of the stream; the packets that came before it."""
        seen = []
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                seen.append(self.read(max(0.001, deadline - time.monotonic())))
            except Closed:
                return seen

    def disconnect(self) -> None:
        """DISCONNECT and close in order."""
        self.send(packets.DISCONNECT)
        self.close()

    def close(self) -> None:
        """Close the socket without a DISCONNECT."""
        self.socket.close()


class Gateway:
    """A gateway on a port of its own."""

    def __init__(
        self,
        folder: Path,
        pki: Pki,
        policy: str = DEVICE_POLICY,
        *,
        limits: Mapping[str, Any] = {},
        listener: Mapping[str, Any] = {},
        plugins: Mapping[str, Mapping[str, Any]] = {},
        store: Mapping[str, Any] | None = None,
        registry: Mapping[str, Any] = {},
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = LOOP_FACTORY,
        **broker: Any,
    ) -> None:
        self.folder = folder
        self.pki = pki
        self.audit_file = folder / "audit.jsonl"
        self.policy_file = folder / "policy.toml"
        self.config_file = folder / "gateway.toml"
        self.policy_file.write_text(policy)
        server = pki.server()
        listen: dict[str, Any] = {
            "bind": ["127.0.0.1:0"],
            "cert_file": str(server.cert_file),
            "key_file": str(server.key_file),
            "ca_file": str(pki.ca_file),
            **listener,
        }
        tables = {"listener": listen, "limits": dict(limits), "policy": {"file": str(self.policy_file), **registry}}
        if store is not None:
            tables["store"] = {"path": "gateway.db", "min_free_bytes": 0, "allow_volatile": True, **store}
        self.config_file.write_text(
            "".join(f"[{name}]\n{''.join(_toml(k, v) for k, v in table.items())}\n" for name, table in tables.items())
        )
        self._plugins = plugins
        self._loop_factory = loop_factory
        self._options = broker
        self._clients: list[RawClient] = []
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Gateway:
        """Start serving; raises what the start raised."""
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        """Shut the broker down and wait for its thread."""
        for client in list(self._clients):
            client.close()
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._failure = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        config = GatewayConfig.load(self.config_file)
        amqtt = None
        if self._plugins:
            amqtt = {
                "listeners": {"default": {"type": "external"}},
                "plugins": {k: dict(v) for k, v in self._plugins.items()},
            }
        with AuditLog(self.audit_file) as audit:
            kept = open_kept(config, datetime.now(UTC))
            self.broker = GatewayBroker(amqtt, state=load_security(config), audit=audit, kept=kept, **self._options)
            await self.broker.start()
            self.port = self.broker.addresses[0][1]
            self._ready.set()
            await self._stop.wait()
            await self.broker.shutdown()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the broker's loop and give its result."""

        async def run() -> T:
            return function()

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(DEADLINE_S)

    def reload(self) -> Any:
        """Load the files again and apply them."""
        return self.call(lambda: self.broker.apply(load_security(GatewayConfig.load(self.config_file))))

    def audit(self, event: str | None = None) -> list[dict[str, Any]]:
        """Audit lines so far, of one event or all."""
        if not self.audit_file.exists():
            return []
        lines = [json.loads(line) for line in self.audit_file.read_text().splitlines()]
        return [line for line in lines if event in (None, line["event"])]

    def status(self) -> dict[str, Any]:
        """The broker's figures."""
        return self.call(self.broker.status_report)

    def sessions(self) -> dict[str, dict[str, Any]]:
        """Sessions by client identifier."""
        return {session["client_id"]: session for session in self.call(self.broker.sessions_report)}

    def context(self, credential: Credential | None) -> ssl.SSLContext:
        """A client context of the standard library, with or without a certificate."""
        context = ssl.create_default_context(cafile=str(self.pki.ca_file))
        if credential is not None:
            context.load_cert_chain(credential.cert_file, credential.key_file)
        return context

    def client(self, identity: str | Credential) -> RawClient:
        """A TLS connection as a device, with one certificate per name and gateway; nothing is sent yet."""
        if isinstance(identity, str):
            if identity not in self._contexts:
                self._contexts[identity] = self.context(self.pki.device(identity))
            context = self._contexts[identity]
        else:
            context = self.context(identity)
        client = RawClient(self.port, context)
        self._clients = [c for c in self._clients if c.socket.fileno() >= 0]
        self._clients.append(client)
        return client

    def connected(self, identity: str, client_id: str | None = None, **connect: Any) -> RawClient:
        """A connected device."""
        client = self.client(identity)
        _, code = client.connect(client_id if client_id is not None else identity, **connect)
        assert code == 0
        return client


def _toml(key: str, value: Any) -> str:
    return f"{key} = {json.dumps(value)}\n"


@contextmanager
def running(gateway: Gateway) -> Iterator[Gateway]:
    """A gateway that is stopped at the end."""
    try:
        yield gateway.start()
    finally:
        gateway.stop()
