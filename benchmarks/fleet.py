"""One process of the generator: its clients, connected and prepared before the clock runs, then driven by one loop.

In a closed loop so many messages are on their way and no more, so the broker is never idle and never flooded. In the
open loop each message has its time; how late it leaves is kept, so that the generator's own delay is not hidden, and
its latency counts from the time that it was due. What arrives is counted by size and checked by its first byte.
"""

import select
import time
from collections import deque
from collections.abc import Sequence
from ctypes import c_double, c_longlong
from dataclasses import dataclass, field
from itertools import cycle
from multiprocessing.sharedctypes import RawArray
from typing import Any

from benchmarks.link import Link, connect_all, make_links
from benchmarks.pki import BACKEND, Pki
from benchmarks.works import OPEN_LOOP_RATE, PAYLOAD_BYTES, TOPICS, Work
from gateway.broker.packets import encode_publish

AT_ONCE = 100  # handshakes at a time, over all processes
BURST = 64  # writes between two looks at what arrived
STALLED_S = 1.5  # nothing arrives although messages are on their way: they are lost
DRAINED_S = 3.0  # a broker on a busy machine may be quiet for a second and have lost nothing
PUBACK = 0x40


@dataclass(frozen=True, slots=True)
class Share:
    """What one process has to do: part `index` of `count` of a kind of work."""

    work: Work
    index: int
    count: int
    port: int
    stock: int  # messages that are sealed before the clock runs, over all processes

    @property
    def backend(self) -> bool:
        return self.index == 0 and self.work.kind not in ("connect", "idle")

    def names(self, names: Sequence[str]) -> list[str]:
        """The devices of this process; beside the backend there are none when others can have them."""
        if self.work.kind in ("connect", "idle") or self.count == 1:
            return list(names[self.index :: self.count])
        return list(names[self.index - 1 :: self.count - 1]) if self.index else []

    @property
    def lane(self) -> tuple[int, int]:
        """Which of the sending processes this one is, and how many they are."""
        if self.work.kind in ("fan-in", "open loop") and self.count > 1:
            return self.index - 1, self.count - 1
        return 0, 1


class Counters:
    """What all processes see: messages sent and received by each, and the window in which they count."""

    def __init__(self, processes: int) -> None:
        self.sent: Any = RawArray(c_longlong, processes)
        self.received: Any = RawArray(c_longlong, processes)
        self.window: Any = RawArray(c_double, 3)  # sending begins, counting begins, both end

    def on_their_way(self, fan: int) -> int:
        return int(sum(self.sent) * fan - sum(self.received))


@dataclass(slots=True)
class Report:
    """What a process has to say after its part."""

    busy: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    fault: str = ""


class Lane:
    """One publisher and what it is going to send, as sealed records."""

    __slots__ = ("_count", "_first", "_sealed", "_step", "_topics", "_work", "link")

    def __init__(self, link: Link, topics: Sequence[bytes], work: Work, first: int, step: int) -> None:
        self.link, self._topics, self._work, self._first, self._step = link, topics, work, first, step
        self._count = 0
        self._sealed: deque[bytes] = deque()

    def prepare(self, records: int) -> None:
        self._sealed.extend(self._seal() for _ in range(records))

    def send(self) -> None:
        self.link.send(self._sealed.popleft() if self._sealed else self._seal())

    def _seal(self) -> bytes:
        return self.link.seal(b"".join(self._packet() for _ in range(self._work.batch)))

    def _packet(self) -> bytes:
        sequence, topic = self._first + self._count * self._step, self._topics[self._count % len(self._topics)]
        payload = sequence.to_bytes(8, "little").ljust(PAYLOAD_BYTES, b"x")
        packet = encode_publish(topic, payload, self._work.qos, False, False, self._count % 65_535 + 1)
        self._count += 1
        return packet


class Inbox:
    """Packets of one size that a link receives; what is of another kind is an error."""

    __slots__ = ("_first", "_rest", "_size", "link")

    def __init__(self, link: Link, size: int, first: int) -> None:
        self.link, self._size, self._first = link, size, first
        self._rest = b""

    def take(self) -> bytes:
        """The whole packets that have arrived."""
        data = self._rest + self.link.read() if self._rest else self.link.read()
        whole = len(data) - len(data) % self._size
        self._rest = data[whole:]
        packets = data[:whole]
        if packets[:: self._size].count(self._first) != whole // self._size:
            raise ConnectionError(f"{self.link.name} received something else than what was sent to it")
        return packets


class Traffic:
    """Publishing and receiving of one process, for the works that move messages."""

    def __init__(self, share: Share, pki: Pki, names: Sequence[str], counters: Counters) -> None:
        self._share, self._work, self._counters = share, share.work, counters
        self._into_backend = share.work.kind in ("fan-in", "open loop")
        topic, own = TOPICS[share.work.kind], share.names(names)
        wild = topic.replace("{id}", "+")
        filters = ((), (topic,)) if not self._into_backend else ((wild,), ())
        backend = make_links(pki, [BACKEND] if share.backend else [], filters[0], share.work.qos)
        devices = make_links(pki, own, filters[1], share.work.qos)
        self.links = [*backend, *devices]
        connect_all(self.links, share.port, max(1, AT_ONCE // share.count))
        senders, receivers = (devices, backend) if self._into_backend else (backend, devices)
        number, of = share.lane
        self._lanes = [
            Lane(
                link,
                [topic.replace("{id}", n).encode() for n in ([link.name] if self._into_backend else names)],
                self._work,
                place * of + number,
                len(senders) * of,
            )
            for place, link in enumerate(senders)
        ]
        self._turn = cycle(self._lanes)
        for lane in self._lanes:
            lane.prepare(share.stock // (len(self._lanes) * of * self._work.batch * self._work.fan))
        name = topic.replace("{id}", names[0]).encode()
        sample = encode_publish(name, bytes(PAYLOAD_BYTES), share.work.qos, False, False, 1)
        self._size, self._id_at = len(sample), len(sample) - PAYLOAD_BYTES - 2
        self._inboxes = {link.socket.fileno(): Inbox(link, self._size, sample[0]) for link in receivers}
        self._acks = {link.socket.fileno(): Inbox(link, 4, PUBACK) for link in senders if share.work.qos}
        for link in (*receivers, *(senders if share.work.qos else ())):
            link.acknowledge_at_once()
        self._poll = select.epoll()
        for descriptor in (*self._inboxes, *self._acks):
            self._poll.register(descriptor, select.EPOLLIN)
        self._written_off, self._moved, self._seen, self._scheduled = 0, 0.0, -1, 0
        self._report = Report()

    def run(self) -> Report:
        """Until the window ends, and then until what is on its way has arrived."""
        begin, _, end = self._counters.window
        self._moved, cpu = begin, time.process_time()
        step = self._by_time if self._work.kind == "open loop" else self._by_window
        while (now := time.monotonic()) < end:
            busy = step(now, begin) if self._lanes else False
            self._look(0.0 if busy else 0.02)
        self._report.busy = (time.process_time() - cpu) / (time.monotonic() - begin)
        quiet = time.monotonic()
        while self._counters.on_their_way(self._work.fan) > 0 and time.monotonic() - quiet < DRAINED_S:
            seen = sum(self._counters.received)
            self._look(0.02)
            if sum(self._counters.received) != seen:
                quiet = time.monotonic()
        for acks in self._acks.values():
            acks.take()  # every one a PUBACK
        return self._report

    def _by_window(self, now: float, _begin: float) -> bool:
        """Send as much as the window has room for; whether to look for arrivals without waiting."""
        on_their_way = self._counters.on_their_way(self._work.fan)
        room = self._work.window - on_their_way + self._written_off
        if room <= 0:
            self._notice_a_stall(now, on_their_way)
            if not self._inboxes:
                time.sleep(50e-6)  # another process receives, so that no event tells when there is room
            return not self._inboxes
        writes = min(BURST, -(-room // (self._work.batch * self._work.fan)))
        for _ in range(writes):
            next(self._turn).send()
        self._counters.sent[self._share.index] += writes * self._work.batch
        return True

    def _by_time(self, now: float, begin: float) -> bool:
        """Send all that is due; never wait, because a wait would end a millisecond late."""
        number, of = self._share.lane
        while (due := begin + (self._scheduled * of + number) / OPEN_LOOP_RATE) <= now:
            next(self._turn).send()
            self._scheduled += 1
            self._report.late_s.append(now - due)
            self._counters.sent[self._share.index] += 1
        return True

    def _notice_a_stall(self, now: float, on_their_way: int) -> None:
        received = sum(self._counters.received)
        if received != self._seen:
            self._seen, self._moved = received, now
        elif now - self._moved > STALLED_S:
            self._written_off, self._moved = on_their_way, now

    def _look(self, wait_s: float) -> None:
        received = 0
        for descriptor, _ in self._poll.poll(wait_s):
            if (inbox := self._inboxes.get(descriptor)) is None:
                self._acks[descriptor].link.hold()
                continue
            packets = inbox.take()
            received += len(packets) // self._size
            if self._work.qos:
                inbox.link.send(inbox.link.seal(self._pubacks(packets)))
            if self._work.kind == "open loop":
                self._note_latencies(packets)
        if received:
            self._counters.received[self._share.index] += received

    def _pubacks(self, packets: bytes) -> bytes:
        """A PUBACK for each of these PUBLISH packets, whose identifiers stand in the same place."""
        acks = bytearray(b"\x40\x02\0\0" * (len(packets) // self._size))
        acks[2::4] = packets[self._id_at :: self._size]
        acks[3::4] = packets[self._id_at + 1 :: self._size]
        return bytes(acks)

    def _note_latencies(self, packets: bytes) -> None:
        now = time.monotonic()
        begin, start, end = self._counters.window
        for at in range(self._size - PAYLOAD_BYTES, len(packets), self._size):
            due = begin + int.from_bytes(packets[at : at + 8], "little") / OPEN_LOOP_RATE
            if start <= due < end:
                self._report.latencies_s.append(now - due)
