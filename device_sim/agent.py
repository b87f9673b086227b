"""The agent beside a device: readings from a source to the gateway over mutual TLS, for as long as it takes.

Theory: a thread runs the source and puts readings into the outbox; this thread connects, publishes what the outbox
holds with at most MAX_IN_FLIGHT unacknowledged, and comes back after every loss with decorrelated jitter, so that a
site's agents do not return in step. A reading leaves the outbox by the gateway's acknowledgement only. A cause
that trying again cannot cure ends the agent, unless it was told to retry for ever.

`devices/<id>/state` says online or offline, retained; offline is also the last will. It subscribes to nothing.
"""

import contextlib
import random
import select
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from device_sim.connection_faults import ConnectionFault, Endpoint
from device_sim.credentials import Credentials, Files, leaf_of, other_name
from device_sim.mqtt_client import MAX_IN_FLIGHT, QOS, Connection, State
from device_sim.outbox import Outbox, Queue, Tally
from device_sim.renewal import EstServer, Renewal
from device_sim.sources import Source, counted
from mtls.errors import Fault

DEFAULT_BUFFER_BYTES = 8 * 1024 * 1024  # a day of a 100-byte reading per second
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0  # a site that was down is back on the air within half a minute of its gateway
STEADY_S = 10.0  # a connection that lived this long was good: the next retry is quick again
GOODBYE_S = 5.0  # to deliver what is in flight after being told to stop
LONGEST_STEP_S = 1.0  # paho's keep alive is looked after at least this often


@dataclass(frozen=True, slots=True)
class Settings:
    """What one agent is told."""

    device_id: str
    files: Files
    endpoint: Endpoint
    topic: str
    qos: int = QOS
    count: int | None = None
    retry_forever: bool = False
    buffer_bytes: int = DEFAULT_BUFFER_BYTES
    renew_at: EstServer | None = None

    @property
    def state(self) -> State:
        """The topic of the last will."""
        return State(f"devices/{self.device_id}/state")


def default_topic(device_id: str, source: Source) -> str:
    """`devices/<id>/telemetry/<source>`."""
    return f"devices/{device_id}/telemetry/{source.name}"


def jitter(rng: random.Random) -> Iterator[float]:
    """Decorrelated jitter: each pause is drawn between the first one and three times the one before, up to a limit."""
    pause_s = FIRST_RETRY_S
    while True:
        yield pause_s
        pause_s = min(LONGEST_RETRY_S, rng.uniform(FIRST_RETRY_S, 3 * pause_s))


class Courier:
    """One run between a queue and the gateway; `wake` is a descriptor that becomes readable when it should stop.

    A subclass says what runs beside the connection (`_threads`) and how the queue's content is published (`_fill`).
    """

    def __init__(self, settings: Settings, queue: Queue, *, wake: int, narrate: Callable[[str], None]) -> None:
        self._settings = settings
        self._wake = wake
        self._narrate = narrate
        self._hinted = ""  # the fault whose hint was said last: a gateway that is away for hours needs it once
        self._queue = queue
        self._renewal = None if settings.renew_at is None else Renewal(settings.files, settings.renew_at, narrate)
        self._credentials = Credentials(settings.files, narrate)
        self._stop_source = threading.Event()
        self._source_fault: Exception | None = None

    def run(self) -> Tally:
        """Until the source has ended and everything is acknowledged, or until `wake`; Fault for what no retry cures."""
        self._check_name()
        if not self._settings.retry_forever:
            self._credentials.context(datetime.now(UTC))  # before the source is touched: opening a port has effects
        threads = self._threads()
        if self._renewal is not None:
            renew = (self._stop_source, self._queue.ring)
            threads.append(threading.Thread(target=self._renewal.run, args=renew, name="renewal", daemon=True))
        for thread in threads:
            thread.start()
        try:
            self._serve()
        finally:
            self._stop_source.set()
            self._queue.end()
            for thread in threads:
                thread.join(timeout=GOODBYE_S)
            self._queue.close()
        if self._source_fault is not None:
            raise Fault(f"the source failed: {self._source_fault}") from self._source_fault
        return self._queue.tally

    def _threads(self) -> list[threading.Thread]:
        """What runs beside the connection until `_stop_source` is set."""
        return []

    # --- the connection's thread ---

    def _serve(self) -> None:
        # The pauses decide when a packet is sent, and no secret.
        pauses = jitter(random.Random())  # noqa: S311
        while not self._is_stopped() and not self._queue.is_done:
            started = time.monotonic()
            try:
                self._serve_once()
            except Fault as fault:
                self._queue.connection_lost()
                if time.monotonic() - started > STEADY_S:
                    pauses = jitter(random.Random())  # noqa: S311
                self._pause_or_give_up(fault, next(pauses))

    def _pause_or_give_up(self, fault: Fault, pause_s: float) -> None:
        is_passing = isinstance(fault, ConnectionFault) and not fault.is_permanent
        if not is_passing and not self._settings.retry_forever:
            raise fault
        self._narrate(f"{fault}; trying again in {pause_s:.1f} s")
        if fault.hint and str(fault) != self._hinted:
            self._hinted = str(fault)
            self._narrate(f"hint: {fault.hint}")
        select.select([self._wake], [], [], pause_s)

    def _serve_once(self) -> None:
        """One connection: made, used, and ended in order or by a fault."""
        settings = self._settings
        connection = self._connect_somehow()
        try:
            self._narrate(f"connected to {settings.endpoint} as {settings.device_id}, publishing {settings.topic}")
            connection.publish(settings.state.topic, settings.state.online, qos=QOS, retain=True)
            while not self._queue.is_done and not self._is_stopped() and not self._is_renewed():
                self._turn(connection, LONGEST_STEP_S)
            self._say_goodbye(connection)
        finally:
            connection.abandon()

    def _connect_somehow(self) -> Connection:
        """A connection with the certificate that waits for its proof, else with the one that has proved itself.

        A gateway may refuse a certificate without a word, as a dead network does. So the new one is given up when the
        old one is accepted right after it, and not before.
        """
        renewal = self._renewal
        candidate = renewal.candidate if renewal is not None else None
        if renewal is None or candidate is None:
            return self._connect(self._credentials.context(datetime.now(UTC)))
        try:
            connection = self._connect(Credentials(candidate, self._narrate).context(datetime.now(UTC)))
        except Fault as fault:
            connection = self._connect(self._credentials.context(datetime.now(UTC)))
            renewal.refused(fault)
        else:
            renewal.proven()
        return connection

    def _is_renewed(self) -> bool:
        return self._renewal is not None and self._renewal.candidate is not None

    def _connect(self, context: ssl.SSLContext) -> Connection:
        settings = self._settings
        return Connection(settings.endpoint, context, settings.device_id, settings.state)

    def _turn(self, connection: Connection, timeout_s: float) -> None:
        self._queue.quiet()
        self._fill(connection)
        self._collect(connection)
        if not self._queue.is_done:
            connection.step(timeout_s, self._queue.bell, self._wake)
            self._collect(connection)

    def _fill(self, connection: Connection) -> None:
        """Publish what the queue holds, with at most MAX_IN_FLIGHT unacknowledged."""

    def _collect(self, connection: Connection) -> None:
        self._queue.acknowledge(connection.acknowledged)
        connection.acknowledged.clear()

    def _say_goodbye(self, connection: Connection) -> None:
        """Deliver what is left, say offline, and disconnect: the will does not fire after an orderly end."""
        state = self._settings.state
        deadline = time.monotonic() + GOODBYE_S
        while not self._queue.is_empty and time.monotonic() < deadline:
            self._fill(connection)
            connection.step(max(0.0, deadline - time.monotonic()))
            self._collect(connection)
        goodbye = connection.publish(state.topic, state.offline, qos=QOS, retain=True)
        while goodbye not in connection.acknowledged and time.monotonic() < deadline:
            connection.step(max(0.0, deadline - time.monotonic()))
        self._collect(connection)
        connection.close()

    # --- small questions ---

    def _is_stopped(self) -> bool:
        return bool(select.select([self._wake], [], [], 0.0)[0])

    def _check_name(self) -> None:
        with contextlib.suppress(Fault):  # an unreadable file is told by who needs it
            named = other_name(leaf_of(self._settings.files.cert_file), self._settings.device_id)
            if named:
                self._narrate(
                    f"warning: {self._settings.files.cert_file} is the certificate of {named}, "
                    f"not of {self._settings.device_id}; the gateway will refuse that"
                )


class Agent(Courier):
    """One source, one topic, and a queue in memory."""

    def __init__(self, settings: Settings, source: Source, *, wake: int, narrate: Callable[[str], None]) -> None:
        self._source = source
        self._outbox = Outbox(settings.buffer_bytes)
        super().__init__(settings, self._outbox, wake=wake, narrate=narrate)

    def _threads(self) -> list[threading.Thread]:
        return [threading.Thread(target=self._run_source, name="source", daemon=True)]

    def _run_source(self) -> None:
        def emit(payload: bytes) -> bool:
            return self._outbox.put(payload, can_wait=self._source.can_wait)

        try:
            self._source.run(counted(emit, self._settings.count), self._stop_source, self._narrate)
        except Exception as error:  # whatever it is, the agent must end with it and not as if all were done
            self._source_fault = error
        finally:
            self._outbox.end()

    def _fill(self, connection: Connection) -> None:
        while self._outbox.in_flight < MAX_IN_FLIGHT:
            payload = self._outbox.take()
            if payload is None:
                return
            self._outbox.sent(connection.publish(self._settings.topic, payload, qos=self._settings.qos), payload)
            self._collect(connection)
