"""The device side of SPP/1 as a state machine without I/O: bytes in, effects out.

Theory: three gates stand in front of every verb. (1) The line: `FrameReader` drops what is no valid frame, and
silence is the answer. (2) The session: a request is carried out at most once within a boot, because the last
one is remembered with the CRC of its frame and its reply; the table in docs/spp1.md section 3 is `_judge`.
(3) The state: protocol.TRANSITIONS says which verb a state serves, and a missing entry is the refusal.
What is left is done by one function per verb (spp1_verbs.VERBS) on flash, RAM and board.

A boot is one `Device`: a reset or a power cut is a new object over the same board, and that is all that
survives. It holds no port, no clock and no file; a verb that takes its time asks to be woken (`Wake`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from device_sim.spp1_board import Board, FlashFailure, RngFailure
from device_sim.spp1_verbs import VERBS, Answer, No, Ok, Unit, power_on
from provisioning.spp1 import fields
from provisioning.spp1.fields import FieldFault, Message
from provisioning.spp1.frames import INITIAL_MAX_LINE, Frame, FrameReader, encode_frame
from provisioning.spp1.protocol import (
    HELLO_NONCE_BYTES,
    LARGEST_CHUNK_BYTES,
    MAX_BUSY_MS,
    MAX_MESSAGE_CHARS,
    PROTOCOL_VERSION,
    SID_BYTES,
    TRANSITIONS,
    Capability,
    ErrorCode,
    Kind,
    State,
    Verb,
    chunk_limit,
    refusal_code,
)
from provisioning.spp1.protocol import VERBS as ALL_VERBS

OWN_SID_CHARS = 26  # of a sid that we gave, in its quotes
MAX_LINE = 1024  # four times what every device holds; a chain then takes three DATA instead of twenty


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes to the line."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Restart:
    """Reset the board now: make a new Device, once everything sent before has left."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Call `wake` after this time: a verb is at work, and its reply comes then."""

    after_ms: int


Effect = Send | Restart | Wake

_FAILURES: Mapping[type[Exception], No] = MappingProxyType(
    {
        FlashFailure: No(ErrorCode.FLASH, "flash failed"),
        RngFailure: No(ErrorCode.RNG, "generator is not healthy"),
    }
)


@dataclass(frozen=True, slots=True)
class Remembered:
    """The last request: enough to answer its repetition without doing anything twice."""

    sequence: int
    crc: int
    reply: bytes
    is_at_work: bool = False


class Device:
    """One boot of one device. `duration_ms` says which verbs answer `busy` first, and for how long."""

    def __init__(
        self, board: Board, *, max_line: int = MAX_LINE, duration_ms: Mapping[Verb, int] = MappingProxyType({})
    ) -> None:
        self.max_line = max_line
        self.unit: Unit = power_on(board, min(chunk_limit(max_line), LARGEST_CHUNK_BYTES))
        self._reader = FrameReader(INITIAL_MAX_LINE)
        self._duration_ms = duration_ms
        self._hello: tuple[bytes, bytes] = (b"", b"")  # nonce and reply of the current session's HELLO
        self._last: Remembered | None = None
        self._at_work: Frame | None = None

    @property
    def state(self) -> State:
        """Where the device is now."""
        return self.unit.state

    def receive(self, data: bytes) -> list[Effect]:
        """Take bytes as they came, in any pieces; return what to do, in order."""
        effects: list[Effect] = []
        for frame in self.frames(data):
            effects += self.answer(frame)
        return effects

    def frames(self, data: bytes) -> list[Frame]:
        """The valid frames that `data` completes; everything else is dropped."""
        return [found for found in self._reader.feed(data) if isinstance(found, Frame)]

    def answer(self, frame: Frame) -> list[Effect]:
        """What one frame leads to; nothing when it is not addressed to anybody."""
        try:
            sid = fields.text(frame.message, "s", least=0)
            sequence = fields.integer(frame.message, "i", least=1)
            verb = fields.text(frame.message, "c")
        except FieldFault:
            return []
        if verb == Verb.HELLO:
            return self._open_session(frame, sequence)
        if not self.unit.ram.sid or sid != fields.encode_blob(self.unit.ram.sid):
            return [Send(self._refuse(sid, sequence, No(ErrorCode.SESSION, "not this session")))]
        return self._judge(frame, sid, sequence, verb)

    def wake(self) -> list[Effect]:
        """The time of the verb at work is over: carry it out and answer."""
        if self._at_work is None:
            return []
        frame, self._at_work = self._at_work, None
        return self._carry_out(frame, frame.message["s"], frame.message["i"], frame.message["c"])

    # --- the session ---

    def _open_session(self, frame: Frame, sequence: int) -> list[Effect]:
        try:
            answer = self._hello_answer(frame.message)
        except (FlashFailure, RngFailure) as failure:
            answer = _FAILURES[type(failure)]
        if isinstance(answer, bytes):
            return [Send(answer)]
        if isinstance(answer, No):
            return [Send(self._refuse(frame.message["s"], sequence, answer))]
        reply = self._encode(frame.message["s"], sequence, Kind.OK, answer.fields, INITIAL_MAX_LINE)
        self._hello = (fields.exact(frame.message, "nonce", HELLO_NONCE_BYTES), reply)
        self._last = Remembered(sequence, frame.crc, reply)
        self._at_work = None
        self._reader.max_line = self.max_line
        return [Send(reply)]

    def _hello_answer(self, message: Message) -> Answer | bytes:
        try:
            offered = fields.integers(message, "proto")
            fields.text(message, "station")
            nonce = fields.exact(message, "nonce", HELLO_NONCE_BYTES)
        except FieldFault as fault:
            return No(ErrorCode.ARG, str(fault))
        if PROTOCOL_VERSION not in offered:
            return No(ErrorCode.VERSION, f"version {PROTOCOL_VERSION} only")
        if nonce == self._hello[0]:
            return self._hello[1]
        self.unit.ram.sid = self.unit.board.random(SID_BYTES)
        return Ok(
            {
                "proto": PROTOCOL_VERSION,
                "sid": fields.encode_blob(self.unit.ram.sid),
                "max_line": self.max_line,
                "chunk": self.unit.chunk,
                "caps": [Capability.NET] if self.unit.board.has_network else [],
                "state": self.unit.state,
                "boot_id": fields.encode_blob(self.unit.ram.boot_id),
            }
        )

    def _judge(self, frame: Frame, sid: str, sequence: int, verb: str) -> list[Effect]:
        """At most once: a repetition gets the stored reply, an older request gets silence."""
        last = self._last
        if last is not None and sequence < last.sequence:
            return []
        if last is not None and sequence == last.sequence:
            same = frame.crc == last.crc
            reply = last.reply if same else self._refuse(sid, sequence, No(ErrorCode.ARG, "i was used already"))
            return [Send(reply)]
        if last is not None and last.is_at_work:
            return [Send(self._refuse(sid, sequence, No(ErrorCode.BUSY, "still at work")))]
        duration_ms = min(self._duration_ms.get(Verb(verb), 0), MAX_BUSY_MS // 2) if verb in ALL_VERBS else 0
        if duration_ms:
            # Announced with as much again to spare: a timer that ends early costs a repetition, not a unit.
            busy = self._encode(sid, sequence, Kind.BUSY, {"t": 2 * duration_ms}, self.max_line)
            self._last = Remembered(sequence, frame.crc, busy, is_at_work=True)
            self._at_work = frame
            return [Send(busy), Wake(duration_ms)]
        return self._carry_out(frame, sid, sequence, verb)

    # --- the verb ---

    def _carry_out(self, frame: Frame, sid: str, sequence: int, verb: str) -> list[Effect]:
        answer = self._perform(verb, frame.message)
        if isinstance(answer, No):
            reply = self._refuse(sid, sequence, answer)
        else:
            reply = self._encode(sid, sequence, Kind.OK, answer.fields, self.max_line)
        self._last = Remembered(sequence, frame.crc, reply)
        is_reset = isinstance(answer, Ok) and answer.is_reset
        return [Send(reply), Restart()] if is_reset else [Send(reply)]

    def _perform(self, name: str, message: Message) -> Answer:
        """The gate of the state, then the verb, and every way in which a verb fails as an error code."""
        if name not in VERBS:
            return No(ErrorCode.UNSUPPORTED, "no such verb")
        verb = Verb(name)
        attempt: Callable[[Unit, Message], Answer] = VERBS[verb]
        try:
            state = self.unit.state
            if state not in TRANSITIONS[verb]:
                return No(refusal_code(state), f"no {verb} in {state}")
            return attempt(self.unit, message)
        except FieldFault as fault:
            return No(ErrorCode.ARG, str(fault))
        except (FlashFailure, RngFailure) as failure:
            return _FAILURES[type(failure)]

    # --- replies ---

    def _refuse(self, sid: str, sequence: int, answer: No) -> bytes:
        self.unit.ram.last_error = answer.code
        # What the first line length leaves beside `s`: a peer's long or quoted `s` must not push our reply over it.
        room = MAX_MESSAGE_CHARS - max(0, len(json.dumps(sid)) - OWN_SID_CHARS)
        text = answer.text[: max(0, room)]
        extra = {"e": answer.code, "m": text}
        return self._encode(sid, sequence, Kind.ERROR, extra, INITIAL_MAX_LINE)

    @staticmethod
    def _encode(sid: str, sequence: int, kind: Kind, extra: Mapping[str, Any], max_line: int) -> bytes:
        return encode_frame({"s": sid, "i": sequence, "r": kind, **extra}, max_line=max_line)
