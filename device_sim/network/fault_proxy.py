"""A TCP proxy that does to a connection what bad networks do: latency, resets, a narrow line, a cut, silence.

It stands between devices and a gateway, forwards bytes and understands none of them (they are TLS). What it does is
a `Network`, a value that can be replaced while connections live: an outage begins and ends by one assignment.
`FaultProxy` lives on an event loop; `ThreadedProxy` runs one in a thread, for tests that have no loop. Everything
random comes from a seed and the connection's number, so that a run repeats.

What it refuses to do: lose single bytes. TCP never does; a lost segment shows as latency, or as a reset.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

CHUNK_BYTES = 16384  # one TLS record; small enough that a narrow line is smooth
QUEUE_BYTES = 1 << 20  # what latency may hold back in one direction; beyond it the sender waits
CONNECT_TIMEOUT_S = 5.0
START_TIMEOUT_S = 10.0
RESET = struct.pack("ii", 1, 0)  # SO_LINGER, zero seconds: close() sends RST

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Network:
    """How the line is. The defaults are a perfect one."""

    latency_s: float = 0.0  # added to every chunk, in each direction
    jitter_s: float = 0.0  # up to so much more; order is kept
    reset_rate: float = 0.0  # chance per chunk that the connection is reset instead
    bytes_per_s: float = 0.0  # per connection and direction; 0: no limit
    cut_at_byte: int = 0  # the connection is reset after so many bytes from the client; 0: never
    is_half_open: bool = False  # nothing is forwarded and nothing is closed, as after a pulled cable
    is_down: bool = False  # new connections are reset at once

    def __post_init__(self) -> None:
        if not 0.0 <= self.reset_rate <= 1.0:
            raise ValueError("reset_rate is a chance from 0 to 1")
        if min(self.latency_s, self.jitter_s, self.bytes_per_s, self.cut_at_byte) < 0:
            raise ValueError("a network has no negative figures")


PERFECT = Network()


class _Line:
    """One connection through the proxy: two sockets, two directions."""

    def __init__(self, proxy: "FaultProxy", number: int, client: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.sent_bytes = 0
        self.rng = random.Random(f"{proxy.seed}:{number}")  # noqa: S311 - reproducible on purpose

    def reset(self) -> None:
        """End both sides with a RST."""
        for writer in (self.client, self.server):
            if writer is None:
                continue
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                if sock is not None:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


class FaultProxy:
    """Forwards to `host:port`; `port` is its own. Use as an async context manager."""

    def __init__(self, host: str, port: int, *, network: Network = PERFECT, seed: int = 0) -> None:
        self.target = (host, port)
        self.seed = seed
        self.accepted = 0
        self.port = 0
        self._network = network
        self._lines: set[_Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def network(self) -> Network:
        """How the line is now."""
        return self._network

    @network.setter
    def network(self, network: Network) -> None:
        self._network = network
        self._changed.set()  # whoever is held by a half-open line looks again
        self._changed = asyncio.Event()

    @property
    def connections(self) -> int:
        """Connections that are open through it."""
        return len(self._lines)

    def cut(self) -> int:
        """Reset every connection that is open; how many they were."""
        lines = list(self._lines)
        for line in lines:
            line.reset()
        return len(lines)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=CHUNK_BYTES, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    # --- inside ---

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        line = _Line(self, self.accepted, writer)
        self._lines.add(line)
        try:
            await self._serve(line, reader)
        except asyncio.CancelledError:
            return  # the proxy's end; asyncio 3.11 logs a handler that was cancelled as an error
        finally:
            self._lines.discard(line)
            line.reset()

    async def _serve(self, line: _Line, reader: asyncio.StreamReader) -> None:
        if self._network.is_down:
            return
        await self._while_half_open()
        try:
            opened = asyncio.open_connection(*self.target, limit=CHUNK_BYTES)
            back, server = await asyncio.wait_for(opened, CONNECT_TIMEOUT_S)
        except OSError:
            return
        line.server = server
        pumps = [
            asyncio.ensure_future(_Pump(line, reader, server, is_upward=True).run()),
            asyncio.ensure_future(_Pump(line, back, line.client, is_upward=False).run()),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _while_half_open(self) -> None:
        while self._network.is_half_open:
            await self._changed.wait()


class _Pump:
    """One direction: reads, holds back what is late, writes in order."""

    def __init__(
        self, line: _Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_upward: bool
    ) -> None:
        self._line = line
        self._reader = reader
        self._writer = writer
        self._is_upward = is_upward
        self._late: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._is_over = False
        self._wake = asyncio.Event()
        self._has_room = asyncio.Event()

    async def run(self) -> None:
        """Forward up to the end of the stream; ConnectionResetError when the line was cut on purpose."""
        both = [asyncio.ensure_future(self._read()), asyncio.ensure_future(self._write())]
        try:
            await asyncio.gather(*both)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _read(self) -> None:
        loop, due = asyncio.get_running_loop(), 0.0
        while data := await self._reader.read(CHUNK_BYTES):
            network = self._line.proxy.network
            if network.reset_rate and self._line.rng.random() < network.reset_rate:
                raise ConnectionResetError
            late = network.latency_s + network.jitter_s * (self._line.rng.random() if network.jitter_s else 0.0)
            due = max(due, loop.time() + late)
            self._late.append((due, data))
            self._held_bytes += len(data)
            self._wake.set()
            while self._held_bytes > QUEUE_BYTES:
                self._has_room.clear()
                await self._has_room.wait()
        self._is_over = True
        self._wake.set()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._late or not self._is_over:
            if not self._late:
                self._wake.clear()
                await self._wake.wait()
                continue
            due, data = self._late.popleft()
            await asyncio.sleep(due - loop.time())
            await self._line.proxy._while_half_open()
            await self._forward(data)
            self._held_bytes -= len(data)
            self._has_room.set()
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    async def _forward(self, data: bytes) -> None:
        network = self._line.proxy.network
        left = network.cut_at_byte - self._line.sent_bytes if self._is_upward and network.cut_at_byte else len(data)
        self._line.sent_bytes += len(data) if self._is_upward else 0
        self._writer.write(data[: max(0, left)])
        await self._writer.drain()
        if left < len(data) or (network.cut_at_byte and self._is_upward and left == len(data)):
            # The server gets its N bytes and an end: a RST would take back what it has not read yet.
            self._writer.close()
            self._line.server = None
            raise ConnectionResetError
        if network.bytes_per_s:
            await asyncio.sleep(len(data) / network.bytes_per_s)


class ThreadedProxy:
    """A `FaultProxy` in a thread of its own; use as a context manager."""

    def __init__(self, host: str, port: int, *, network: Network = PERFECT, seed: int = 0) -> None:
        self._settings = (host, port, network, seed)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fault-proxy", daemon=True)
        self.port = 0

    def set(self, **figures: Any) -> Network:
        """Change some figures of the network, e.g. `set(latency_s=0.2)`; the rest stays. Returns what it is now."""
        return self._call(lambda: self._change(lambda network: replace(network, **figures)))

    def restore(self) -> None:
        """A perfect network again."""
        self._call(lambda: self._change(lambda _: PERFECT))

    def cut(self) -> int:
        """Reset every open connection; how many they were."""
        return self._call(self._proxy.cut)

    @property
    def connections(self) -> int:
        """Connections that are open through it."""
        return self._call(lambda: self._proxy.connections)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S):
            raise TimeoutError("the fault proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_TIMEOUT_S)

    async def _serve(self) -> None:
        host, port, network, seed = self._settings
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with FaultProxy(host, port, network=network, seed=seed) as self._proxy:
            self.port = self._proxy.port
            self._ready.set()
            await self._stop.wait()

    def _change(self, change: Callable[[Network], Network]) -> Network:
        self._proxy.network = change(self._proxy.network)
        return self._proxy.network

    def _call(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(START_TIMEOUT_S)
