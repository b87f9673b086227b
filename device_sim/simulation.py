"""A virtual device as its surroundings see it: boots, log chatter, SPP/1 with faults, then telemetry.

Theory: a queue of what is due when. Bytes from the host pass the incoming noise, complete frames go to the
`Device` of the present boot, and its effects pass the outgoing noise into the queue. A reset or a power cut
makes a new `Device` over the same board; whatever was queued by the boot before is gone. Once a certificate
is in flash and no host has spoken for a while, a telemetry line is due every interval.

No port and no clock: `now` is monotonic seconds and comes from the caller, who also writes what `due` returns.
"""

import heapq
from collections.abc import Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType

from device_sim.faults import NO_FAULTS, Faults, FaultyBoard
from device_sim.line_noise import BOOT_CHATTER, CHATTER, LineNoise
from device_sim.models import telemetry
from device_sim.spp1_board import Board, FlashFailure
from device_sim.spp1_device import Device, Effect, Restart, Send
from provisioning.spp1.frames import LARGEST_MAX_LINE, Frame
from provisioning.spp1.protocol import State, Verb

HOST_QUIET_S = 3.0  # longer than the host's 2 s timer: telemetry does not start between two tries
SLOW_MS = 1000
RESTART_AFTER_S = 0.05  # the reply to RESET leaves the line first
CHATTER_EVERY = 7  # frames between two log lines that a healthy device prints anyway
SPEAKING = frozenset({State.CERTED, State.VERIFIED, State.SEALED})


class _Due(StrEnum):
    """What an entry of the queue is."""

    OUT = "out"
    IN = "in"
    WAKE = "wake"
    RESTART = "restart"


class Simulation:
    """One virtual device over its whole life; `wants_replug` tells the port's owner to come back as another node."""

    def __init__(
        self,
        board: Board,
        *,
        faults: Faults = NO_FAULTS,
        seed: int = 0,
        interval_s: float = 1.0,
        delays: Mapping[Verb, float] = MappingProxyType({}),
        now: float = 0.0,
    ) -> None:
        """`delays`: seconds that verbs take on this device; RESET's is a boot, in which nothing is heard."""
        self.board = FaultyBoard(board, faults)
        self.faults = faults
        self.interval_s = interval_s
        self.wants_replug = False
        # A host does not chatter: log text is the device's own.
        incoming = {name: rate for name, rate in faults.rates.items() if name != "chatter"}
        self._incoming = LineNoise(incoming, f"in:{seed}")
        self._outgoing = LineNoise(faults.rates, f"out:{seed}")
        self._telemetry: Iterator[bytes] = telemetry(board.read_flash().hardware_serial, seed)
        self._queue: list[tuple[float, int, _Due, bytes]] = []
        self._queued = 0
        self._used: set[str] = set()
        self._received_bytes = 0
        self._sent_frames = 0
        self._is_silent = False
        self._boot_id = b""
        self._delays = delays
        self._deaf_until = now
        self._verb: str | None = None
        self._line = b""
        self._boot(now)

    @property
    def state(self) -> State:
        """Where the device is in SPP/1's states."""
        return self.device.state

    # --- what the port's owner calls ---

    def opened(self, now: float) -> None:
        """A host opened the port."""
        if "reset-on-open" in self.faults.flags:
            self._boot(now)

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes from the host."""
        cut = self._power_loss_at(len(data))
        if cut is not None:
            self._carry_in(data[:cut], now)
            self._boot(now)
            return
        self._carry_in(data, now)

    def due(self, now: float) -> bytes:
        """Do everything that is due by `now`; the bytes to write."""
        out = b""
        while self._queue and self._queue[0][0] <= now:
            _, _, what, data = heapq.heappop(self._queue)
            if what is _Due.OUT:
                out += data
            elif what is _Due.IN:
                self._feed(data, now)
            elif what is _Due.WAKE:
                self.board.verb = self._verb
                self._follow(self.device.wake(), now)
            else:
                self._deaf_until = now + self._delays.get(Verb.RESET, 0.0)
                self.wants_replug = "replug-on-reset" in self.faults.flags
                self._boot(now)
        return out + self._telemetry_line(now)

    def next_due(self) -> float:
        """When `due` has something to do again."""
        return min([self._next_line, *(entry[0] for entry in self._queue[:1])])

    # --- the host's bytes ---

    def _power_loss_at(self, length: int) -> int | None:
        before, self._received_bytes = self._received_bytes, self._received_bytes + length
        at = self.faults.bytes
        return at - before if at is not None and before < at <= self._received_bytes else None

    def _carry_in(self, data: bytes, now: float) -> None:
        if not self.faults.rates:
            self._feed(data, now)
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            for piece in self._incoming.carry(line + b"\n"):
                self._put(now + piece.after_s, _Due.IN, piece.data)
        # A line that is longer than any frame is nobody's: noise works on frames, not on floods.
        self._line = self._line[-2 * LARGEST_MAX_LINE :]

    def _feed(self, data: bytes, now: float) -> None:
        if now < self._deaf_until:
            return
        for frame in self.device.frames(data):
            self._last_heard = now
            if self._is_cut_short(frame, now):
                return

    def _is_cut_short(self, frame: Frame, now: float) -> bool:
        """Carry out one frame; True when power was lost, and with it what follows in the same bytes."""
        name = frame.message.get("c")
        verb = name if isinstance(name, str) else None
        self._is_silent = self._is_silent or self.faults.hits("silent-at", verb)
        if self._is_silent:
            return False
        if self._once("power-loss", verb):
            self._boot(now)
            return True
        self._verb = self.board.verb = verb
        effects = self.device.answer(frame)
        if self._once("power-loss-after", verb):
            self._boot(now)
            return True
        self._follow(effects, now)
        return False

    def _once(self, name: str, verb: str | None) -> bool:
        """Whether a fault that happens once is set for this verb and has not happened."""
        key = f"{name}={verb}"
        if not self.faults.hits(name, verb) or key in self._used:
            return False
        self._used.add(key)
        return True

    # --- the device's effects ---

    def _follow(self, effects: list[Effect], now: float) -> None:
        self.board.verb = None
        for effect in effects:
            if isinstance(effect, Send):
                self._send(effect.data, now)
            elif isinstance(effect, Restart):
                if "no-reset" not in self.faults.flags:
                    self._put(now + RESTART_AFTER_S, _Due.RESTART, b"")
            else:
                self._put(now + effect.after_ms / 1000, _Due.WAKE, b"")

    def _send(self, frame: bytes, now: float) -> None:
        self._sent_frames += 1
        if self._sent_frames % CHATTER_EVERY == 0:
            # No newline after it: the one in front of every frame is what keeps the frame whole.
            frame = CHATTER[self._sent_frames // CHATTER_EVERY % len(CHATTER)] + frame
        for piece in self._outgoing.carry(frame):
            self._put(now + piece.after_s, _Due.OUT, piece.data)

    def _put(self, when: float, what: _Due, data: bytes) -> None:
        self._queued += 1  # keeps the order of what is due at the same time
        heapq.heappush(self._queue, (when, self._queued, what, data))

    # --- life ---

    def _boot(self, now: float) -> None:
        self._queue.clear()
        self._line = b""
        self.board.boots += 1
        self.board.verb = None
        durations = dict.fromkeys(self.faults.verbs.get("slow", frozenset[Verb]()), SLOW_MS)
        durations |= {verb: round(s * 1000) for verb, s in self._delays.items() if verb is not Verb.RESET}
        self.device = Device(self.board, duration_ms=durations)
        if "same-boot-id" in self.faults.flags:
            self._boot_id = self.device.unit.ram.boot_id = self._boot_id or self.device.unit.ram.boot_id
        self._last_heard = now
        self._next_line = now + self.interval_s
        self._put(max(now, self._deaf_until), _Due.OUT, b"".join(BOOT_CHATTER))

    def _telemetry_line(self, now: float) -> bytes:
        if now < self._next_line:
            return b""
        self._next_line = now + self.interval_s
        if now - self._last_heard < HOST_QUIET_S or not self._has_certificate():
            return b""
        return b"\n" + next(self._telemetry) + b"\n"

    def _has_certificate(self) -> bool:
        try:
            return self.state in SPEAKING
        except FlashFailure:
            return False
