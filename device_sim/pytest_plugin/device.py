"""A device of a test: one MQTT connection with a certificate of its own, spoken to without callbacks.

paho-mqtt is its client, over `fleet/connection.py`: CONNECT, publish and subscribe wait for the gateway's answer and
raise what it said. It connects once and never by itself again: a test that cuts a device off sees it cut off.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from device_sim.connection_faults import ConnectionFault, Endpoint
from device_sim.fleet.connection import Ears, FleetConnection, Wish
from device_sim.fleet.identities import Identity
from device_sim.pytest_plugin.heard import Heard
from device_sim.pytest_plugin.loop import LoopThread
from mtls.errors import Fault, Reason
from mtls.tls import client_context

ANSWER_S = 5.0  # how long PUBACK, PUBCOMP or SUBACK may take, unless the test says otherwise
GRACE_S = 5.0  # of the test's thread over the loop's own deadline, on a machine that has much to do
REFUSED = 0x80  # [MQTT-3.9.3-2]

T = TypeVar("T")


class SubscriptionRefused(Fault):
    """The gateway answered SUBSCRIBE with 0x80."""

    reason = Reason.SUBSCRIBE_DENIED


class ConnectedDevice:
    """A device that the gateway has let in. `heard` has what came on its subscriptions.

    Raised by its methods: ConnectionFault, with a public `reason`, when the connection is over or the gateway ends it;
    TimeoutError when no answer comes in time.
    """

    def __init__(self, identity: Identity | None, wish: Wish, loop: LoopThread, heard: Heard) -> None:
        self.device_id = wish.client_id
        self.identity = identity
        self.heard = heard
        self._wish = wish
        self._loop = loop
        self._done: set[int] = set()  # packet ids that were acknowledged before anybody asked
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._subacks: deque[asyncio.Future[int]] = deque()
        self._is_over = threading.Event()
        self._fault: ConnectionFault | None = None

    def connect(self, endpoint: Endpoint, ca_file: Path, number: int, within_s: float) -> None:
        """TLS, CONNECT, CONNACK; ConnectionFault when any of it is refused. To be called once."""
        self._loop.run(self._connect(endpoint, ca_file, number, within_s), within_s + GRACE_S)

    @property
    def is_connected(self) -> bool:
        """Whether the connection lives, as far as the device has noticed."""
        return not self._is_over.is_set()

    def publish(
        self, topic: str, payload: bytes | str, *, qos: int = 1, retain: bool = False, within_s: float = ANSWER_S
    ) -> None:
        """Publish, and wait until the gateway has acknowledged it (QoS 0: until it is sent).

        MQTT 3.1.1 has no word for a refused PUBLISH, so one without the right to it returns as any other; what came
        of it stands in the gateway's audit log and in what others hear.
        """
        data = payload.encode() if isinstance(payload, str) else payload
        what = f"{self.device_id} got no acknowledgement of {topic}"
        self._answered(self._publish(topic, data, qos, retain, within_s), what, within_s)

    def subscribe(self, topic_filter: str, *, qos: int = 1, within_s: float = ANSWER_S) -> int:
        """The QoS that the gateway grants; SubscriptionRefused when it refuses the filter."""
        what = f"{self.device_id} got no SUBACK for {topic_filter}"
        granted = self._answered(self._subscribe(topic_filter, qos, within_s), what, within_s)
        if granted >= REFUSED:
            raise SubscriptionRefused(
                f"the gateway refuses {self.device_id} the filter {topic_filter}",
                hint="mqtt-gateway explain --action subscribe says which rule is missing",
            )
        return granted

    def wait_lost(self, within_s: float = ANSWER_S) -> ConnectionFault:
        """Why the gateway or the network ended the connection; AssertionError when it lives on."""
        __tracebackhide__ = True
        self._is_over.wait(within_s)
        if self._fault is None:
            ended = "the test has ended it" if self._is_over.is_set() else f"it lived on for {within_s:g} s"
            raise AssertionError(f"the connection of {self.device_id} was not lost: {ended}")
        return self._fault

    def disconnect(self) -> None:
        """DISCONNECT: the will does not fire. Harmless when the connection is over."""
        self._loop.run(self._end(is_cut=False), GRACE_S)

    def cut(self) -> None:
        """End the connection by a RST, as a power cut or a bad network does: the will fires."""
        self._loop.run(self._end(is_cut=True), GRACE_S)

    def _answered(self, work: Coroutine[Any, Any, T], what: str, within_s: float) -> T:
        try:
            return self._loop.run(work, within_s + GRACE_S)
        except TimeoutError:
            raise TimeoutError(f"{what} within {within_s:g} s") from None

    # --- on the loop ---

    async def _connect(self, endpoint: Endpoint, ca_file: Path, number: int, within_s: float) -> None:
        files = self.identity
        context = client_context(
            ca_file=files.ca_file if files is not None else ca_file,
            cert_file=files.cert_file if files is not None else None,
            key_file=files.key_file if files is not None else None,
        )
        ears = Ears(self._on_acknowledged, self._on_message, self._on_suback, self._on_lost)
        self._connection = FleetConnection(endpoint, context, self._wish, ears, number=number)
        await self._connection.open(within_s)
        self._ticking = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while not self._is_over.is_set():
            await asyncio.sleep(1.0)
            self._connection.misc()

    async def _publish(self, topic: str, payload: bytes, qos: int, retain: bool, within_s: float) -> None:
        self._check()
        mid = self._connection.publish(topic, payload, qos=qos, retain=retain)
        self._check()
        if mid in self._done:
            self._done.discard(mid)
            return
        waiting = self._waiting[mid] = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait_for(waiting, within_s)
        finally:
            self._waiting.pop(mid, None)

    async def _subscribe(self, topic_filter: str, qos: int, within_s: float) -> int:
        self._check()
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._subacks.append(waiting)
        self._connection.subscribe(topic_filter, qos)
        return await asyncio.wait_for(waiting, within_s)

    async def _end(self, *, is_cut: bool) -> None:
        if self._is_over.is_set():
            return
        self._is_over.set()
        self._ticking.cancel()
        if is_cut:
            self._connection.abort()
        else:
            self._connection.close()

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault
        if self._is_over.is_set():
            raise ConnectionFault(Reason.PEER_CLOSED, f"the test has ended the connection of {self.device_id}")

    def _on_acknowledged(self, mid: int) -> None:
        waiting = self._waiting.get(mid)
        if waiting is None:
            self._done.add(mid)
        elif not waiting.done():
            waiting.set_result(None)

    def _on_message(self, topic: str, payload: bytes, is_duplicate: bool) -> None:
        self.heard.hear(topic, payload)

    def _on_suback(self, codes: list[int]) -> None:
        waiting = self._subacks.popleft()
        if not waiting.done():
            waiting.set_result(codes[0])

    def _on_lost(self, fault: ConnectionFault) -> None:
        if self._is_over.is_set():
            return
        self._fault = fault
        self._is_over.set()
        self._connection.abort(is_reset=False)
        unanswered: list[asyncio.Future[Any]] = [*self._waiting.values(), *self._subacks]
        for waiting in unanswered:
            if not waiting.done():
                waiting.set_exception(fault)
