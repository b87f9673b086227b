"""The host's side of SPP/1: one request in flight, its time limit and its repetitions, without I/O.

Theory: `request` gives the bytes to send and sets `deadline`. Bytes that arrive go into `feed`, which returns
what they meant; the request is over with a Reply or a DeviceRefused. When `deadline` has passed, `on_timeout`
gives the same bytes to send again, or raises DeviceSilent after the last try. `busy` moves the deadline, up to
a sum. A reply with another `s` or `i` is ignored, whatever it says.

Everything a device says is bounded here: lengths, numbers, the number of READs, the sum of all waiting. The
module does not know a port or a clock, and does not judge keys. Specification: docs/spp1.md, sections 3 to 5.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from mtls.errors import Fault
from mtls.terminal import sanitise
from provisioning.spp1 import fields
from provisioning.spp1.frames import INITIAL_MAX_LINE, LARGEST_MAX_LINE, Frame, FrameReader, LogLine, encode_frame
from provisioning.spp1.protocol import (
    BOOT_ID_BYTES,
    LARGEST_CHUNK_BYTES,
    MAX_BUSY_MS,
    MAX_CSR_BYTES,
    MAX_MESSAGE_CHARS,
    MIN_CHUNK_BYTES,
    PROTOCOL_VERSION,
    SID_BYTES,
    TIMING,
    ErrorCode,
    Kind,
    Obj,
    State,
    Verb,
    chunk_limit,
)

EMPTY: Mapping[str, object] = MappingProxyType({})


class DeviceRefused(Fault):
    """The device answered with an error; `code` is one of the protocol's, or None for one it does not know."""

    def __init__(self, verb: Verb, code: ErrorCode | None, text: str, message: Mapping[str, Any]) -> None:
        self.verb, self.code, self.message = verb, code, message
        words = f" ({sanitise(text)})" if text else ""
        super().__init__(f"the device answered {verb} with {code or 'an error code of no known meaning'}{words}")


class DeviceSilent(Fault):
    """The device did not answer a request, repetitions included."""

    def __init__(self, verb: Verb, tries: int) -> None:
        self.verb = verb
        times = "once" if tries == 1 else f"{tries} times"
        super().__init__(
            f"the device did not answer {verb}, sent {times}",
            hint="check power, cable and that nothing else uses the port, then burn the unit again",
        )


class ReplyFault(Fault):
    """The device answered something that the protocol does not allow."""

    def __init__(self, verb: Verb, what: str) -> None:
        self.verb = verb
        super().__init__(
            f"the device's answer to {verb} breaks the protocol: {what}", hint="its firmware needs the fix"
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """An `ok`: the verb it answers and all its fields."""

    verb: Verb
    message: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Working:
    """A `busy`: the device needs more time; `deadline` has moved."""

    verb: Verb
    message: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stray:
    """A valid frame that answers nothing in flight: a late reply, an echo, another session."""

    message: Mapping[str, Any]


Event = LogLine | Working | Stray | Reply | DeviceRefused


@dataclass(slots=True)
class _Flight:
    """The request in flight."""

    verb: Verb
    sequence: int
    data: bytes
    tries_left: int
    tries: int
    busy_left_s: float
    timeout_s: float


@dataclass(slots=True)
class Requester:
    """Stop and wait over one line; one instance for as long as the port is open."""

    sid: str = ""
    max_line: int = INITIAL_MAX_LINE
    deadline: float = math.inf
    reader: FrameReader = field(default_factory=FrameReader)
    _sequence: int = 0
    _flight: _Flight | None = None

    def request(
        self,
        verb: Verb,
        values: Mapping[str, object] = EMPTY,
        *,
        now: float,
        tries: int | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """The bytes of a new request; FrameTooLong when they do not fit into the device's line.

        A request still in flight is given up, and its late reply will be ignored. HELLO starts with the line length
        of a device that has just booted and without a session.
        """
        if verb is Verb.HELLO:
            self.sid, self.max_line, self.reader.max_line = "", INITIAL_MAX_LINE, INITIAL_MAX_LINE
        self._sequence += 1
        message = {"s": self.sid, "i": self._sequence, "c": verb, **values}
        timing = TIMING[verb]
        tries = timing.tries if tries is None else tries
        data = encode_frame(message, max_line=self.max_line)
        timeout_s = timing.timeout_s if timeout_s is None else timeout_s
        self._flight = _Flight(verb, self._sequence, data, tries - 1, tries, timing.busy_total_s, timeout_s)
        self.deadline = now + timeout_s
        return data

    def open_session(self, hello: "Hello") -> None:
        """Use the session that a HELLO reply opened."""
        self.sid, self.max_line, self.reader.max_line = hello.sid_text, hello.max_line, hello.max_line

    def feed(self, data: bytes) -> list[Event]:
        """What the bytes meant, in order; never raises. Of one request, one Reply or DeviceRefused comes out."""
        return [line if isinstance(line, LogLine) else self._judge(line) for line in self.reader.feed(data)]

    def on_timeout(self, now: float) -> bytes:
        """The bytes to send again after `deadline`; DeviceSilent when they were sent often enough."""
        flight = self._flight
        if flight is None:
            return b""
        if flight.tries_left == 0:
            self._finish()
            raise DeviceSilent(flight.verb, flight.tries)
        flight.tries_left -= 1
        self.deadline = now + flight.timeout_s
        return flight.data

    def _judge(self, frame: Frame) -> Event:
        message, flight = frame.message, self._flight
        sequence = message.get("i")
        is_ours = flight is not None and type(sequence) is int and sequence == flight.sequence
        if flight is None or not is_ours or message.get("s") != self.sid or "r" not in message:
            return Stray(message)
        if message["r"] == Kind.BUSY:
            return self._extend(flight, message)
        self._finish()
        if message["r"] == Kind.OK:
            return Reply(flight.verb, message)
        return _refused(flight.verb, message)

    def _extend(self, flight: _Flight, message: Mapping[str, Any]) -> Event:
        try:
            asked_s = fields.integer(message, "t", least=1, most=MAX_BUSY_MS) / 1000
        except fields.FieldFault:
            return Stray(message)  # without a usable time it extends nothing
        granted_s = min(asked_s, flight.busy_left_s)
        flight.busy_left_s -= granted_s
        self.deadline += granted_s
        return Working(flight.verb, message)

    def _finish(self) -> None:
        self._flight, self.deadline = None, math.inf


def _refused(verb: Verb, message: Mapping[str, Any]) -> DeviceRefused:
    try:
        words = fields.text(message, "m", least=0, most=MAX_MESSAGE_CHARS)
    except fields.FieldFault:
        words = ""  # it is for people only
    known = {code.value: code for code in ErrorCode}
    code = message.get("e")
    return DeviceRefused(verb, known.get(code) if isinstance(code, str) else None, words, message)


# --- replies with content ---


@dataclass(frozen=True, slots=True)
class Hello:
    """What HELLO agreed on; `max_line` and `chunk` are what both sides can do."""

    sid: bytes
    sid_text: str
    boot_id: bytes
    max_line: int
    chunk: int
    capabilities: tuple[str, ...]
    state: State

    @classmethod
    def parse(cls, message: Mapping[str, Any]) -> Self:
        """From a HELLO reply; FieldFault when it is not one we can work with."""
        fields.integer(message, "proto", least=PROTOCOL_VERSION, most=PROTOCOL_VERSION)
        max_line = fields.integer(message, "max_line", least=INITIAL_MAX_LINE, most=LARGEST_MAX_LINE)
        chunk = fields.integer(message, "chunk", least=MIN_CHUNK_BYTES, most=LARGEST_CHUNK_BYTES)
        return cls(
            sid=fields.exact(message, "sid", SID_BYTES),
            sid_text=str(message["sid"]),
            boot_id=fields.exact(message, "boot_id", BOOT_ID_BYTES),
            max_line=max_line,
            chunk=min(chunk, chunk_limit(max_line)),
            capabilities=fields.texts(message, "caps"),
            state=fields.member(message, "state", State),
        )


@dataclass(frozen=True, slots=True)
class Identity:
    """What IDENT says: the device's own word, compared before every destructive verb."""

    model: str
    hw: str
    fw: str
    sn: str
    uid: str
    rng: str
    algs: tuple[str, ...]

    @classmethod
    def parse(cls, message: Mapping[str, Any]) -> Self:
        """From an IDENT reply; FieldFault when a field is missing or too long."""
        model, hw, fw, sn, uid, rng = (fields.text(message, name) for name in ("model", "hw", "fw", "sn", "uid", "rng"))
        return cls(model, hw, fw, sn, uid, rng, fields.texts(message, "algs"))

    def differences(self, other: "Identity") -> tuple[str, ...]:
        """The names of the fields in which another reading differs."""
        return tuple(name for name in self.__slots__ if getattr(self, name) != getattr(other, name))


# --- procedures of several requests; `call` sends one request and returns its reply ---

Call = Callable[..., Reply]
SMALLEST_PIECE_BYTES = 48  # of one DATA or READ after silence: the rest of its frame is longer already


def read_csr(call: Call, chunk: int, *, slot: str, cn: str) -> bytes:
    """CSR and as many READs as its length needs, each of which must bring bytes; the digest is compared."""
    reply = call(Verb.CSR, slot=slot, cn=cn)
    length = fields.integer(reply.message, "len", least=1, most=MAX_CSR_BYTES)
    wanted = fields.digest(reply.message, "sha256")
    csr = b""
    while len(csr) < length:
        count = min(chunk, length - len(csr))
        try:
            part = call(Verb.READ, obj=Obj.CSR, off=len(csr), n=count).message
        except DeviceSilent as silent:
            chunk = _smaller(count, silent)
            continue
        fields.integer(part, "off", least=len(csr), most=len(csr))
        csr += fields.blob(part, "b64", least=1, most=count)
    if hashlib.sha256(csr).digest() != wanted:
        raise ReplyFault(Verb.READ, "the bytes read do not have the digest that CSR announced")
    return csr


def write_object(call: Call, chunk: int, obj: Obj, content: bytes, *, txn: str, before: Callable[[], None]) -> None:
    """BEGIN, DATA in order, COMMIT; `before` runs in front of BEGIN and of COMMIT (identity is compared there)."""
    if obj is Obj.KEY:
        raise Fault("a key made on the host is not offered", hint="the device makes its key: KEYGEN")
    before()
    call(Verb.BEGIN, obj=obj, len=len(content), sha256=hashlib.sha256(content).hexdigest(), txn=txn)
    start, ends = 0, [len(content)]
    while start < len(content):
        # The device may hold a piece whose reply was lost: it is repeated in parts, and none crosses its end.
        end = min(start + chunk, *(known for known in ends if known > start))
        try:
            reply = call(Verb.DATA, off=start, b64=fields.encode_blob(content[start:end]))
        except DeviceSilent as silent:
            chunk = _smaller(end - start, silent)
            ends.append(end)
            continue
        fields.integer(reply.message, "off", least=end, most=end)
        start = end
    before()
    call(Verb.COMMIT, txn=txn)


def _smaller(count: int, silent: DeviceSilent) -> int:
    """The size of the next DATA or READ after one of `count` bytes met silence; the silence itself at the smallest.

    On a noisy line a short frame gets through where a long one does not.
    """
    if count <= SMALLEST_PIECE_BYTES:
        raise silent
    return max(count // 2, SMALLEST_PIECE_BYTES)


def read_hash(call: Call, obj: Obj) -> bytes:
    """HASH: the SHA-256 of the object as it stands in the device's flash."""
    return fields.digest(call(Verb.HASH, obj=obj).message, "sha256")
