"""A service that hears what devices say, so that what was acknowledged can be compared with what arrived.

It keeps its session and comes back when it was cut off: a message that the gateway holds for it is not lost.
"""

import asyncio
from collections.abc import Callable, Sequence

from device_sim.connection_faults import ConnectionFault, Endpoint
from device_sim.fleet.connection import Ears, FleetConnection, Wish
from device_sim.fleet.figures import Deliveries
from device_sim.fleet.identities import Identity
from mtls.errors import Fault
from mtls.tls import client_context

RETRY_S = 0.2
FIRST_SUBACK_S = 20.0
HEARD_S = 15.0  # for what was acknowledged last to be heard
QUIET_S = 3.0  # nothing more was heard for so long: nothing more will be, even on a busy machine
LOOKS_EVERY_S = 0.1

Hear = Callable[[str, bytes], None]


async def until_heard(deliveries: Sequence[Deliveries]) -> None:
    """Wait until everything that was acknowledged has been heard, or nothing more is; at most HEARD_S."""
    loop = asyncio.get_running_loop()
    deadline_s, heard, since_s = loop.time() + HEARD_S, -1, loop.time()
    while any(each.lost for each in deliveries) and loop.time() < deadline_s and loop.time() - since_s < QUIET_S:
        now_heard = sum(each.heard.total() for each in deliveries)
        if now_heard != heard:
            heard, since_s = now_heard, loop.time()
        await asyncio.sleep(LOOKS_EVERY_S)


class Observer:
    """Use `start`, which returns once it is subscribed, then `stop`; both on the running loop."""

    def __init__(self, identity: Identity, endpoint: Endpoint, topic_filter: str, hear: Hear) -> None:
        self._identity = identity
        self._endpoint = endpoint
        self._filter = topic_filter
        self._hear = hear
        self._connection: FleetConnection | None = None
        self._subscribed = asyncio.Event()
        self._refused = ""

    async def start(self) -> None:
        """Connect and subscribe; Fault when the gateway does not let it hear."""
        self._task = asyncio.get_running_loop().create_task(self._live())
        try:
            async with asyncio.timeout(FIRST_SUBACK_S):
                await self._subscribed.wait()
        except TimeoutError:
            self._refused = self._refused or "no SUBACK"
        if self._refused:
            await self.stop()
            raise Fault(
                f"the observer {self._identity.device_id} cannot hear {self._filter}: {self._refused}",
                hint="the policy must grant the filter to it: mqtt-gateway explain --action subscribe",
            )

    async def stop(self) -> None:
        """Disconnect."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()

    async def _live(self) -> None:
        context = client_context(
            ca_file=self._identity.ca_file, cert_file=self._identity.cert_file, key_file=self._identity.key_file
        )
        wish = Wish(self._identity.device_id, clean_session=False, keep_alive_s=30)
        while True:
            over = asyncio.Event()
            ears = Ears(
                on_acknowledged=lambda mid: None,
                on_message=lambda topic, payload, dup: self._hear(topic, payload),
                on_suback=self._on_suback,
                on_lost=lambda fault, over=over: over.set(),  # type: ignore[misc]
            )
            connection = FleetConnection(self._endpoint, context, wish, ears, number=-1)
            try:
                await connection.open(FIRST_SUBACK_S)
            except ConnectionFault as fault:
                self._refused = str(fault)
                await asyncio.sleep(RETRY_S)
                continue
            self._refused, self._connection = "", connection
            connection.subscribe(self._filter)
            while not over.is_set():
                await asyncio.sleep(1.0)
                connection.misc()

    def _on_suback(self, codes: list[int]) -> None:
        self._refused = "the gateway refused the filter" if any(code >= 0x80 for code in codes) else ""
        self._subscribed.set()
