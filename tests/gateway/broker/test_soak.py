"""Clients that connect, publish, die and come back at random, against `mqtt-gateway run` as a process.

The short form takes some 20 seconds. The long one is the same test with SOAK_SECONDS=600 SOAK_CLIENTS=200 in the
environment.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from gateway.broker import packets
from gateway.broker.packets import Connect, PacketType
from tests.gateway.site import Running, Site
from tests.support.gateway import wait_until
from tests.support.pki import Credential, Pki

SECONDS = float(os.environ.get("SOAK_SECONDS", "12"))
CLIENTS = int(os.environ.get("SOAK_CLIENTS", "24"))
LONG = SECONDS >= 120
SETTLED_AFTER_S = 60.0 if LONG else SECONDS / 2
MAX_GROWTH = 1.10
SHORT_SLACK_BYTES = 0 if LONG else 8 * 2**20  # a process of some seconds has not seen all of its code yet
QUIET_S = 2.0
PACE = max(1.0, CLIENTS / 24)  # more clients publish more seldom
MAX_BEHIND = 2000  # nobody reports while the services have more than this to hear: a queue is not what is measured
DEVICE_DILIGENCE, SERVICE_DILIGENCE = 0.9, 0.99  # messages acknowledged at once; the others come again
STEP_TIMEOUT_S = 30.0
SEED = 20260101

POLICY = """
version = 1
[[role]]
name = "device"
match = { id = "dev-*" }
publish = ["devices/{id}/telemetry"]
subscribe = ["devices/{id}/commands"]

[[role]]
name = "service"
match = { id = "service-*" }
publish = ["devices/+/commands"]
subscribe = ["devices/+/telemetry"]
limits = { queue_messages = 1000000 }
"""

Gone = (OSError, EOFError, ssl.SSLError, TimeoutError)


class Actor:
    """One client with a persistent session. It publishes numbered messages and keeps what was acknowledged."""

    def __init__(self, name: str, port: int, context: ssl.SSLContext, subscription: str, topics: list[str]) -> None:
        self.name = name
        self.acknowledged: set[tuple[str, bytes]] = set()
        self.received: set[tuple[str, bytes]] = set()
        self.deaths = 0
        self.must_wait: Callable[[], bool] = lambda: False
        self._port, self._context, self._subscription, self._topics = port, context, subscription, topics
        self._pending: dict[int, tuple[str, bytes]] = {}  # by packet identifier
        self._number = 0
        self._random = random.Random(f"{SEED} {name}")  # noqa: S311 - to be repeated, not to be secret
        self._left_open: asyncio.StreamWriter | None = None
        self._heard_at = 0.0

    async def subscribe(self) -> None:
        """Make the session and its subscription, once."""
        reader, writer = await self._connect()
        writer.write(packets.encode_subscribe(1, [(self._subscription, 1)]))
        first, body = await _packet(reader)
        assert (first >> 4, body) == (PacketType.SUBACK, b"\x00\x01\x01")
        writer.write(packets.DISCONNECT)
        await _closed(writer)

    async def live(self, until: float) -> None:
        """One life after the other, each ended in another way."""
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(STEP_TIMEOUT_S):
                    await self._one_life()
            except Gone:
                self.deaths += 1
            await asyncio.sleep(self._random.uniform(0, 0.2))

    async def settle(self) -> None:
        """Have everything acknowledged, and take what waits, until nothing comes any more."""
        reader, writer = await self._connect()
        self._resend(writer)
        hearing = asyncio.create_task(self._hear(reader, writer, 1.0))
        async with asyncio.timeout(4 * STEP_TIMEOUT_S):
            while self._pending or time.monotonic() - self._heard_at < QUIET_S:
                assert not hearing.done(), f"{self.name} was cut off while it settled"
                await asyncio.sleep(0.05)
        writer.write(packets.DISCONNECT)
        await asyncio.gather(hearing, return_exceptions=True)
        await _closed(writer)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._context, server_hostname="localhost"
        )
        writer.write(packets.encode_connect(Connect(self.name, False, 30, None, None, None)))
        first, body = await _packet(reader)
        assert (first, body[1]) == (0x20, 0), f"{self.name} was refused with {body[1]}"
        if self._left_open is not None:  # taken over by now
            self._left_open.transport.abort()
            self._left_open = None
        self._heard_at = time.monotonic()
        return reader, writer

    async def _one_life(self) -> None:
        reader, writer = await self._connect()
        diligence = SERVICE_DILIGENCE if self.name.startswith("service-") else DEVICE_DILIGENCE
        hearing = asyncio.create_task(self._hear(reader, writer, diligence))
        try:
            self._resend(writer)
            end = time.monotonic() + self._random.uniform(0.05, 1.5)
            while time.monotonic() < end and not hearing.done():
                for _ in range(self._random.randrange(1, 5)):
                    self._publish(writer)
                await writer.drain()
                await asyncio.sleep(self._random.uniform(0.01, 0.1) * PACE)
        finally:
            await self._die(writer, hearing)

    def _publish(self, writer: asyncio.StreamWriter) -> None:
        if len(self._pending) >= 50 or self.must_wait():
            return
        self._number += 1
        packet_id = self._number % 65535 + 1
        message = (self._random.choice(self._topics), b"%s %d" % (self.name.encode(), self._number))
        self._pending[packet_id] = message
        writer.write(packets.encode_publish(message[0].encode(), message[1], 1, False, False, packet_id))

    def _resend(self, writer: asyncio.StreamWriter) -> None:
        for packet_id, (topic, payload) in self._pending.items():
            writer.write(packets.encode_publish(topic.encode(), payload, 1, False, True, packet_id))

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, diligence: float) -> None:
        """Take acknowledgements and messages; a message is acknowledged with this probability."""
        while True:
            first, body = await _packet(reader)
            self._heard_at = time.monotonic()
            if first >> 4 == PacketType.PUBACK:
                self.acknowledged.add(self._pending.pop(int.from_bytes(body)))
            else:
                message = packets.decode_publish(first, body)
                self.received.add((message.topic, message.payload))
                if self._random.random() < diligence:
                    writer.write(packets.encode_ack(PacketType.PUBACK, message.packet_id))

    async def _die(self, writer: asyncio.StreamWriter, hearing: asyncio.Task[None]) -> None:
        way = self._random.choice(["disconnect", "abort", "half a packet", "left open"])
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        if way == "left open" and not writer.is_closing():
            self._left_open = writer
            return
        if way == "disconnect":
            writer.write(packets.DISCONNECT)
            await _closed(writer)
            return
        if way == "half a packet":
            writer.write(b"\x32\x20\x00\x05devic")
            await asyncio.sleep(0.01)
        writer.transport.abort()


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(STEP_TIMEOUT_S):
        first, length, shift = (await reader.readexactly(1))[0], 0, 0
        while True:
            byte = (await reader.readexactly(1))[0]
            length |= (byte & 127) << shift
            if byte < 128:
                return first, await reader.readexactly(length)
            shift += 7


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            await writer.wait_closed()
    except Gone:
        writer.transport.abort()


async def _soak(actors: list[Actor], process: psutil.Process) -> tuple[int, int]:
    """The whole life of all; resident bytes when settled and at the end."""
    for actor in actors:
        await actor.subscribe()
    began = time.monotonic()
    lives = [asyncio.create_task(actor.live(began + SECONDS)) for actor in actors]
    await asyncio.sleep(SETTLED_AFTER_S)
    settled = process.memory_info().rss
    await asyncio.gather(*lives)
    final = process.memory_info().rss
    await asyncio.gather(*(actor.settle() for actor in actors))
    return settled, final


def client_context(pki: Pki, who: Credential) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pki.ca_file))
    context.load_cert_chain(who.cert_file, who.key_file)
    return context


def made(pki: Pki, port: int) -> list[Actor]:
    """Devices that report, and two services that hear all of them and command any of them."""
    names = [f"dev-{number}" for number in range(CLIENTS)]
    commands = [f"devices/{name}/commands" for name in names]
    wanted: Mapping[str, tuple[str, list[str]]] = {
        **{name: (f"devices/{name}/commands", [f"devices/{name}/telemetry"]) for name in names},
        **{f"service-{number}": ("devices/+/telemetry", commands) for number in range(2)},
    }
    actors = [Actor(name, port, client_context(pki, pki.device(name)), *what) for name, what in wanted.items()]
    devices, services = actors[:CLIENTS], actors[CLIENTS:]

    def services_are_behind() -> bool:
        told = sum(len(device.acknowledged) for device in devices)
        return told - min(len(service.received) for service in services) > MAX_BEHIND

    for device in devices:
        device.must_wait = services_are_behind
    return actors


def lost(actors: list[Actor]) -> dict[str, int]:
    """How many acknowledged messages each receiver has not got."""
    due: dict[str, set[tuple[str, bytes]]] = defaultdict(set)
    for actor in actors:
        for topic, payload in actor.acknowledged:
            _, device, kind = topic.split("/")
            receivers = [device] if kind == "commands" else ["service-0", "service-1"]
            for receiver in receivers:
                due[receiver].add((topic, payload))
    missing = {actor.name: len(due[actor.name] - actor.received) for actor in actors}
    return {name: count for name, count in missing.items() if count}


def test_clients_that_die_and_come_back_lose_nothing_and_leave_nothing(tmp_path: Path, pki: Pki) -> None:
    """No acknowledged message lost, memory within its bounds, no descriptor left, no unhandled exception."""
    limits = {"max_handshakes_per_address": 10_000, "max_handshakes": 1000}
    with Running(Site(tmp_path, pki, POLICY, limits=limits)) as gateway:
        process = psutil.Process(gateway.process.pid)
        idle_descriptors = process.num_fds()
        actors = made(pki, gateway.port)
        settled, final = asyncio.run(_soak(actors, process))
        told = sum(len(actor.acknowledged) for actor in actors)
        print(f"acknowledged {told}, resident MiB {settled / 2**20:.1f} settled, {final / 2**20:.1f} at the end")
        assert lost(actors) == {}
        assert told > CLIENTS * SECONDS
        assert final <= settled * MAX_GROWTH + SHORT_SLACK_BYTES
        wait_until(lambda: process.num_fds() <= idle_descriptors, "descriptors closed", STEP_TIMEOUT_S)
        assert gateway.end() == 0
        said = gateway.said()
        assert [word for word in ("Traceback", "never retrieved", "Exception", "Fatal") if word in said] == []
        assert {line["reason"] for line in gateway.site.audit("refused")} <= {"handshake_failed"}
