"""One virtual device: connects, says what is due, waits for acknowledgements, comes back when it was cut off.

A message belongs to the device until its PUBACK: unacknowledged ones go out again on the next connection, oldest
first. Both queues are bounded. Its faults (faults.py) are looked at here, each in the one place where it acts.
"""

import asyncio
import contextlib
import random
import ssl
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from device_sim.connection_faults import ConnectionFault, Endpoint
from device_sim.fleet.connection import Ears, FleetConnection, Wish
from device_sim.fleet.faults import NO_FAULTS, FaultSet
from device_sim.fleet.figures import Deliveries, Figures
from device_sim.fleet.identities import Identities, Identity, SimulationCa
from device_sim.fleet.payloads import PayloadModel
from gateway.broker.packets import encode_publish
from mtls.errors import Fault
from mtls.tls import client_context

MAX_WAITING = 1000  # messages of one device; beyond it the oldest are dropped and counted
MAX_IN_FLIGHT = 20  # the gateway's max_inflight
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
AT_ONCE_PAUSE_S = 0.1  # of a device that does not wait, while nobody answers
OVERSIZE_BYTES = 1 << 20
PUBACK_ARRIVES_S = 0.05  # between a PUBLISH and the cut that leaves its PUBACK unread
REFUSED = 0x80  # [MQTT-3.9.3-2]


@dataclass(frozen=True, slots=True)
class Group:
    """The settings that the devices of one group share."""

    name: str
    ids: tuple[str, ...]
    payload: PayloadModel
    topic: str = "devices/{id}/telemetry/sim"
    qos: int = 1
    interval_s: float = 1.0
    jitter: float = 0.2
    ramp_per_s: float = 200.0
    ramp_jitter: float = 0.5
    will: str = "devices/{id}/state"
    commands: str = ""
    answers: str = "devices/{id}/telemetry/answer"
    keep_alive_s: int = 60
    clean_session: bool = True
    at_once: bool = False  # reconnect at once, and ten times a second: what badly written devices do after a power cut
    victim: str = "victim"  # whose name and topics the faults of a stranger go for
    faults: FaultSet = NO_FAULTS
    seed: int = 0
    connect_timeout_s: float = 20.0


class Waiting(NamedTuple):
    """A message on its way: when it was due (the loop's time), topic and payload."""

    due_s: float
    topic: str
    payload: bytes


class Device:
    """A device from the start of a run to its end."""

    def __init__(
        self,
        group: Group,
        number: int,
        endpoint: Endpoint,
        identities: Identities,
        figures: Figures,
        deliveries: Deliveries,
    ) -> None:
        self.device_id = group.ids[number]
        self.started_s = 0.0
        self._group = group
        self._number = number
        self._endpoint = endpoint
        self._identities = identities
        self._figures = figures
        self._deliveries = deliveries
        self._rng = random.Random(f"pause:{group.seed}:{number}")  # noqa: S311 - reproducible on purpose
        self._context: ssl.SSLContext | None = None
        self._connection: FleetConnection | None = None
        self._over: asyncio.Event = asyncio.Event()  # the present connection is over
        self._woken = asyncio.Event()
        self._is_serviced = False
        self._is_silent = False
        self._waiting: deque[Waiting] = deque()
        self._in_flight: dict[int, Waiting] = {}
        self._published = 0
        self._acknowledged = 0

    @property
    def is_connected(self) -> bool:
        """Whether the gateway has let it in and it has not noticed an end."""
        return self._connection is not None

    @property
    def backlog(self) -> int:
        """Messages without an acknowledgement."""
        return len(self._waiting) + len(self._in_flight)

    async def live(self, after_s: float) -> None:
        """Connect after a while, and again whenever the connection is over, until cancelled."""
        await asyncio.sleep(after_s)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._connect()
            except ConnectionFault as fault:
                self._note_refusal(fault)
                # What only a person can cure is asked once more after a while, as a device in the field would.
                pause_s = LONGEST_PAUSE_S if fault.is_permanent else self._next_pause(pause_s)
            else:
                pause_s = FIRST_PAUSE_S
                await self._over.wait()
                self._take_back()
                if "half-open" in self._group.faults:
                    await asyncio.Event().wait()
            await self._rest(AT_ONCE_PAUSE_S if self._returns_at_once else pause_s * self._rng.random())

    def offer(self, message: Waiting) -> None:
        """A message is due: send it, or keep it for later."""
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._figures.dropped += 1
        self._waiting.append(message)
        self._send_waiting()

    def tick(self) -> None:
        """About once a second: keep alive."""
        if self._connection is not None and not self._is_silent:
            self._connection.misc()

    def renew(self) -> None:
        """Take the newest certificate at the next connection."""
        self._context = None

    def service(self) -> None:
        """A right certificate in place of a short-lived one, and if the device is not connected, it tries at once."""
        self._is_serviced = True
        self.renew()
        self._woken.set()

    def cut(self) -> None:
        """Lose the connection by a RST, as by a power cut."""
        if self._connection is not None:
            self._cut(self._connection)

    def end(self) -> None:
        """DISCONNECT."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- connecting ---

    async def _rest(self, pause_s: float) -> None:
        """A pause, which service ends."""
        self._woken.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._woken.wait()

    @property
    def _returns_at_once(self) -> bool:
        return self._group.at_once or "reconnect-storm" in self._group.faults

    def _next_pause(self, pause_s: float) -> float:
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S + self._rng.random() * (3 * pause_s - FIRST_PAUSE_S))

    def _note_refusal(self, fault: ConnectionFault) -> None:
        self._figures.refused[fault.reason] += 1
        self._figures.refusals_by_second[int(asyncio.get_running_loop().time() - self.started_s)] += 1

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        if self._context is None:
            self._context = self._new_context()
        over = asyncio.Event()
        ears = Ears(self._on_acknowledged, self._on_message, self._on_suback, lambda fault: self._on_lost(over, fault))
        connection = FleetConnection(self._endpoint, self._context, self._wish(), ears, number=self._number)
        began = loop.time()
        await connection.open(self._group.connect_timeout_s, is_slowloris="slowloris" in self._group.faults)
        before, self._connection, self._over = self._connection, connection, over
        if before is not None:
            before.abort()  # after a renewal: the gateway has closed it already
        self._take_back()  # what went out after a renewal on the connection before, and will never be acknowledged
        self._figures.connect.record(loop.time() - began)
        self._figures.admissions += 1
        self._figures.admitted.add(self.device_id)
        self._figures.admissions_by_second[int(loop.time() - self.started_s)] += 1
        self._begin(connection)

    def _wish(self) -> Wish:
        group, faults = self._group, self._group.faults
        whose = group.victim if "foreign-will" in faults else self.device_id
        return Wish(
            client_id=group.victim if "client-id-differs" in faults else self.device_id,
            clean_session=group.clean_session,
            keep_alive_s=group.keep_alive_s,
            will_topic=group.will.replace("{id}", whose),
        )

    def _new_context(self) -> ssl.SSLContext:
        faults = self._group.faults
        if "no-certificate" in faults:
            return client_context(ca_file=self._identities.ca_file)
        identity = self._identity()
        return client_context(ca_file=identity.ca_file, cert_file=identity.cert_file, key_file=identity.key_file)

    def _identity(self) -> Identity:
        """The device's certificate, right or wrong."""
        faults, identities = self._group.faults, self._identities
        special = faults.wrong_certificate or "clock-skew" in faults or self._is_short_lived
        if not special:
            return identities.of(self.device_id)
        if not isinstance(identities, SimulationCa):
            raise Fault(f"the fault {special} needs a CA that issues it", hint="give --ca DIR instead of --cert-dir")
        if faults.wrong_certificate:
            return identities.wrong(self.device_id, faults.wrong_certificate)
        if "clock-skew" in faults:
            return identities.new(self.device_id, ahead=timedelta(seconds=faults.number("clock-skew")))
        return identities.new(self.device_id, lifetime=timedelta(seconds=faults.number("short-lived")))

    @property
    def _is_short_lived(self) -> bool:
        return "short-lived" in self._group.faults and not self._is_serviced

    # --- connected ---

    def _begin(self, connection: FleetConnection) -> None:
        group, faults = self._group, self._group.faults
        if group.commands:
            connection.subscribe(group.commands.replace("{id}", self.device_id))
        if "wildcard-subscribe" in faults:
            connection.subscribe("#")
        if "oversize-packet" in faults:
            connection.publish(group.topic.replace("{id}", self.device_id), bytes(OVERSIZE_BYTES), qos=0)
        if "malformed-packet" in faults:
            connection.send_raw(encode_publish(b"devices/+/x", b"x", 0, False, False, 0))
        self._is_silent = "half-open" in faults
        if self._is_silent or "slow-reader" in faults:
            connection.stop_reading()
        self._send_waiting()

    def _send_waiting(self) -> None:
        connection, group = self._connection, self._group
        while connection is not None and connection.fault is None and self._waiting and not self._is_silent:
            # One at a time where the next cut takes every PUBACK that is still unread with it.
            if len(self._in_flight) >= (1 if group.faults.number("cut-before-puback") else MAX_IN_FLIGHT):
                return
            message = self._waiting.popleft()
            self._figures.sent += 1
            self._published += 1
            mid = connection.publish(message.topic, message.payload, qos=group.qos)
            if group.qos == 0:
                self._done(message)
                continue
            self._in_flight[mid] = message
            every = group.faults.number("cut-before-puback")
            if every and self._published % every == 0:
                connection.stop_reading()
                asyncio.get_running_loop().call_later(PUBACK_ARRIVES_S, self._cut, connection)
                return
            if self._published == group.faults.number("renewal") and isinstance(self._identities, SimulationCa):
                self._identities.new(self.device_id)
                self.renew()
                self._over.set()  # a new connection beside the old one, which the gateway takes over
                return

    def _done(self, message: Waiting) -> None:
        now = asyncio.get_running_loop().time()
        self._figures.acknowledged += 1
        self._figures.latency.record(now - message.due_s)
        if self._group.qos:
            self._deliveries.acknowledge(message.topic, message.payload)

    def _on_acknowledged(self, mid: int) -> None:
        message = self._in_flight.pop(mid, None)
        if message is None:
            return
        self._done(message)
        self._acknowledged += 1
        every = self._group.faults.number("cut-after-puback")
        if every and self._acknowledged % every == 0 and self._connection is not None:
            self._cut(self._connection)
            return
        self._send_waiting()

    def _on_message(self, topic: str, payload: bytes, dup: bool) -> None:
        if self._connection is None or not self._group.commands:
            return
        self._figures.answered += 1
        self._connection.publish(self._group.answers.replace("{id}", self.device_id), payload, qos=self._group.qos)

    def _on_suback(self, codes: list[int]) -> None:
        self._figures.subacks.update(codes)

    # --- the end of a connection ---

    def _cut(self, connection: FleetConnection) -> None:
        connection.abort()
        if connection is self._connection:
            self._connection = None
            self._over.set()

    def _on_lost(self, over: asyncio.Event, fault: ConnectionFault) -> None:
        if over is self._over:
            self._figures.lost[fault.reason] += 1
            self._connection = None
            over.set()

    def _take_back(self) -> None:
        """What was not acknowledged waits again, before what is newer."""
        self._waiting.extendleft(reversed(self._in_flight.values()))
        self._in_flight.clear()
