"""The uplink of one gateway: put together, kept connected, and asked how it is doing.

    waiting --backoff over--> connecting --CONNACK--> connected --lost--> waiting

Certificate, key and CA are read anew for every attempt, so a renewed certificate is used at the next one and a broken
file is one more reason why there is no connection. The gateway's name upstream, `{gateway}` and client identifier, is
the common name of its uplink certificate. Nothing here waits for the network: the gateway starts, takes messages and
acknowledges them without an upstream.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from gateway.uplink.commands import Commands, Ground
from gateway.uplink.connection import Endpoint
from gateway.uplink.credentials import gateway_name, upstream_context
from gateway.uplink.dial import open_connection
from gateway.uplink.envelope import Envelope
from gateway.uplink.estimate import Room, Traffic, estimate, replay_s
from gateway.uplink.intake import Intake, Now
from gateway.uplink.lanes import Lanes
from gateway.uplink.pacing import Backoff, Pacer
from gateway.uplink.sender import ACK_TIMEOUT_S, TICK_S, Sender
from gateway.uplink.spool import Spool
from mtls.errors import Fault

if TYPE_CHECKING:
    from gateway.uplink.settings import UplinkConfig

BOOT_ID_BYTES: Final = 8

log = logging.getLogger("mqtt_gateway.uplink")


class Uplink:
    """One running uplink."""

    def __init__(
        self,
        config: UplinkConfig,
        spool: Spool,
        *,
        ground: Ground,
        now: Now,
        disk_bytes: Callable[[], int],
        ack_timeout_s: float = ACK_TIMEOUT_S,
        backoff: Backoff | None = None,
    ) -> None:
        name = gateway_name(config)
        pacer = Pacer(
            messages_per_s=config.backlog_rate, burst=config.backlog_burst, bytes_per_s=config.backlog_bytes_per_s
        )
        self._config = config
        self._now = now
        self._disk_bytes = disk_bytes
        self._started_at = time.monotonic()
        self._endpoint = Endpoint(
            host=config.host,
            port=config.port,
            client_id=name,
            mqtt5=config.envelope is Envelope.MQTT5,
            subscriptions=tuple((entry.source_filter, entry.qos) for entry in config.subscribe.named(name).entries),
        )
        self.commands = Commands(config.subscribe.named(name), ground)
        self.sender = Sender(
            spool,
            Lanes(pacer, config.max_inflight),
            self.commands,
            config.envelope,
            window=config.max_inflight,
            ack_timeout_s=ack_timeout_s,
        )
        self.intake = Intake(
            config.publish.named(name),
            spool,
            self.sender,
            boot_id=secrets.token_hex(BOOT_ID_BYTES),
            now=now,
            max_bytes=config.spool_max_bytes,
            drop_oldest=config.spool_full == "drop-oldest",
            has_room=lambda: ground.has_room,
        )
        self.state = "connecting"
        self.connections = 0
        self.last_fault = ""
        self._since = self._started_at
        self._backoff = backoff or Backoff(random.uniform)

    async def run(self) -> None:
        """Connect, serve, wait, and again, for ever."""
        while True:
            self._enter("connecting")
            began: float | None = None
            try:
                ended = self.sender.expect()
                context = upstream_context(self._config)
                connection = await open_connection(self._endpoint, context, self.sender)
                began = time.monotonic()
                self.connections += 1
                self._enter("connected")
                log.info("connected to the upstream %s as %s", self._endpoint, self._endpoint.client_id)
                try:
                    self._note(await self._serve(ended))
                finally:
                    connection.close()
            except Fault as fault:
                self._note(str(fault))
            finally:
                self.sender.lost("the uplink has ended")
            lasted = time.monotonic() - began if began is not None else 0.0
            self._enter("waiting")
            await self._wait(self._backoff.next_s(lasted))

    async def _serve(self, ended: asyncio.Future[str]) -> str:
        while not ended.done():
            await asyncio.wait({ended}, timeout=TICK_S)
            if not ended.done():
                self.sender.tick()
        return ended.result()

    async def _wait(self, wait_s: float) -> None:
        until = time.monotonic() + wait_s
        while (left := until - time.monotonic()) > 0:
            self.sender.look()
            await asyncio.sleep(min(left, TICK_S))

    def _enter(self, state: str) -> None:
        self.state = state
        self._since = time.monotonic()

    def _note(self, why: str) -> None:
        if why != self.last_fault:
            log.warning("no connection to the upstream %s: %s", self._endpoint, why)
        self.last_fault = why

    # how it is doing

    def report(self) -> dict[str, Any]:
        """Figures for status and metrics."""
        monotonic, sender, spool = time.monotonic(), self.sender, self.sender.spool
        backlog = max(0, spool.messages - sender.lanes.live - sender.lanes.in_flight)
        return {
            "upstream": str(self._endpoint),
            "gateway": self._endpoint.client_id,
            "state": self.state,
            "state_s": round(monotonic - self._since, 1),
            "last_fault": self.last_fault,
            "connections": self.connections,
            "spool_messages": spool.messages,
            "spool_bytes": spool.bytes,
            "spool_max_bytes": self._config.spool_max_bytes,
            "spool_full": self.intake.is_full,
            "oldest_s": self._oldest_s(),
            "oldest_time_state": sender.oldest.time_state if sender.oldest is not None else "",
            "in_flight": sender.lanes.in_flight,
            "live": sender.lanes.live,
            "backlog": backlog,
            "acknowledged": {lane: sender.acknowledged_by_lane[lane] for lane in ("live", "backlog")},
            "dropped": dict(self.intake.dropped),
            "refused": sender.refused,
            "set_aside": sender.lanes.aside,
            "last_refusal": sender.last_refusal,
            "subscriptions": dict(sender.subscriptions),
            "commands": dict(self.commands.counts),
            "messages_in_per_s": round(self.intake.messages_in.rate(monotonic), 3),
            "bytes_in_per_s": round(self.intake.bytes_in.rate(monotonic), 1),
            "replay_per_s": round(sender.replays.rate(monotonic), 1),
            "replay_eta_s": self._eta_s(backlog, monotonic),
        }

    def _oldest_s(self) -> float | None:
        """Age of the oldest message, 0 when the clock has run backwards since; None when the spool is empty."""
        oldest = self.sender.oldest
        if oldest is None or not self.sender.spool.messages:
            return None
        return round(max(0.0, self._now()[0].timestamp() - oldest.time_us / 1_000_000), 1)

    def _eta_s(self, backlog: int, monotonic: float) -> float | None:
        """How long the replay will go on: by the rate measured, else by the pace. None without a connection."""
        if not backlog:
            return 0.0
        if self.state != "connected":
            return None
        rate = self.sender.replays.rate(monotonic)
        if rate >= 1.0:
            return round(backlog / rate, 1)
        spool, config = self.sender.spool, self._config
        size = spool.bytes * backlog // spool.messages
        pace = {"messages_per_s": config.backlog_rate, "bytes_per_s": config.backlog_bytes_per_s}
        return round(replay_s(backlog, size, **pace), 1)

    def estimate(self, hours: float) -> dict[str, Any]:
        """What a cut of some hours would cost, by the traffic of the last minutes."""
        monotonic, spool, config = time.monotonic(), self.sender.spool, self._config
        traffic = Traffic(self.intake.messages_in.rate(monotonic), self.intake.bytes_in.rate(monotonic))
        room = Room(
            messages=spool.messages,
            bytes=spool.bytes,
            max_bytes=config.spool_max_bytes,
            disk_bytes=self._disk_bytes(),
            backlog_messages_per_s=config.backlog_rate,
            backlog_bytes_per_s=config.backlog_bytes_per_s,
        )
        measured_s = round(monotonic - self._started_at, 1)
        return {**asdict(traffic), "measured_s": measured_s, **asdict(room), **asdict(estimate(hours, traffic, room))}
