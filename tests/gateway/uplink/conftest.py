"""The uplink of one gateway on a real store, without a broker in front."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gateway.store.database import open_database
from gateway.store.writer import Writer
from gateway.uplink.envelope import Envelope
from gateway.uplink.pacing import Backoff
from gateway.uplink.settings import UplinkConfig
from gateway.uplink.spool import Spool, count
from gateway.uplink.topic_map import parse_publish, parse_subscribe
from gateway.uplink.uplink import Uplink
from tests.support.pki import Credential, Pki

T = TypeVar("T")


class Site:
    """An uplink that runs in a thread of its own; `take` waits until the message is on disk, as a PUBACK would."""

    def __init__(self, folder: Path, pki: Pki, who: Credential, port: int, **changes: Any) -> None:
        self.path = folder / "gateway.db"
        self.commands: list[tuple[str, bytes, int]] = []
        self.room = True
        self.ack_timeout_s = changes.pop("ack_timeout_s", 30.0)
        self.time = lambda: (datetime.now(UTC), "synced")
        settings: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": port,
            "ca_file": pki.ca_file,
            "cert_file": who.cert_file,
            "key_file": who.key_file,
            "publish": parse_publish([{"local": "devices/#", "remote": "site/{gateway}/devices/#"}]),
            "subscribe": parse_subscribe([]),
            "backlog_rate": 100_000,
            "backlog_burst": 100_000,
            "backlog_bytes_per_s": 1 << 30,
            "max_inflight": 100,
            "spool_max_bytes": 1 << 30,
            "spool_full": "withhold",
            "envelope": Envelope.JSON,
        }
        self.config = UplinkConfig(**{**settings, **changes})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Site:
        self._thread.start()
        self.do(self._open())
        return self

    async def _open(self) -> None:
        self._opened = open_database(self.path, datetime.now(UTC))
        self.writer = Writer(self.path, interval_s=0.001)
        self.spool = Spool(self.writer, count(self._opened.db))
        self._opened.db.close()
        self.writer.start()
        self.uplink = Uplink(
            self.config,
            self.spool,
            ground=self,
            now=lambda: self.time(),  # noqa: PLW0108 - the test sets the clock while it runs
            disk_bytes=lambda: 1 << 40,
            ack_timeout_s=self.ack_timeout_s,
            backoff=Backoff(lambda low, high: 0.05),
        )
        self._task = asyncio.create_task(self.uplink.run())

    # what the uplink asks of the gateway

    def may_take(self, topic: str) -> bool:
        return topic.count("/") < 128

    @property
    def has_room(self) -> bool:
        return self.room and self.writer.trouble is None

    def deliver(self, topic: str, payload: bytes, qos: int, done: Callable[[], None]) -> None:
        self.commands.append((topic, payload, qos))
        self.settle(done)

    def settle(self, done: Callable[[], None]) -> None:
        self.writer.put(lambda db: None, lambda _: done())

    # what a test does

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def take(self, *messages: tuple[str, bytes, str], qos: int = 1) -> None:
        """Take (topic, payload, origin), and wait for the commit."""

        async def all_of_them() -> None:
            done = asyncio.get_running_loop().create_future()
            for topic, payload, origin in messages:
                self.uplink.intake.take(topic, payload, qos, origin)
            self.writer.put(lambda db: None, lambda _: done.set_result(None))
            await done

        self.do(all_of_them())

    def take_while_there_is_room(self, *messages: tuple[str, bytes, str]) -> int:
        """As the broker does it: none while the spool says that it is full. How many were taken."""

        async def one_by_one() -> int:
            for number, (topic, payload, origin) in enumerate(messages):
                if self.uplink.intake.is_full:
                    return number
                self.uplink.intake.take(topic, payload, 1, origin)
            return len(messages)

        taken = self.do(one_by_one())
        self.take()
        return taken

    def report(self) -> dict[str, Any]:
        async def ask() -> dict[str, Any]:
            return self.uplink.report()

        return self.do(ask())

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self.writer.close()
            self._opened.lock.close()

        self.do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(scope="session")
def gateway_identity(pki: Pki) -> Credential:
    return pki.device("gw-1")


@pytest.fixture(scope="session")
def consumer_identity(pki: Pki) -> Credential:
    return pki.device("consumer")
