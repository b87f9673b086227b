"""One serial line to a device that is being judged: frames by hand, well-formed and not, and everything heard.

The station's own host (provisioning/spp1/host.py) never says anything wrong and never looks at what answers nothing. A
judge does both. Silence is judged without guessing how long it takes: the frame that must not be answered is followed
by a STATUS, and a device that answers in order has had its say once STATUS is answered.

Every wait ends by the limits of docs/spp1.md, section 5. It holds no checks and knows no states.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from mtls.terminal import sanitise
from provisioning.port import PortFault
from provisioning.session import BOOT_LIMIT_S, GREETING_S, GREETINGS_PER_RESET, SETTLE_S, Port
from provisioning.spp1 import fields
from provisioning.spp1.frames import INITIAL_MAX_LINE, MAGIC, Frame, FrameReader, crc32
from provisioning.spp1.host import EMPTY, Hello
from provisioning.spp1.protocol import (
    HELLO_NONCE_BYTES,
    MAX_BUSY_MS,
    PROTOCOL_VERSION,
    TIMING,
    VERBS,
    ErrorCode,
    Kind,
    Verb,
)

Message = Mapping[str, Any]

STATION = "conformance"
SHOWN_CHARS = 24  # of an error code that is none of the protocol's


class Failed(Exception):
    """The device did not do what it must; str() says what it did instead, and is safe to print."""


class Silent(Failed):
    """It did not answer a request at all, repetitions included."""


def frame_of(body: bytes, *, crc: bytes | None = None) -> bytes:
    """A frame around `body`, whatever that is; `crc` in the place of the right digits."""
    return b"\n" + MAGIC + body + b" *" + (b"%08x" % crc32(body) if crc is None else crc) + b"\n"


def body_of(message: Message) -> bytes:
    """A message as compact JSON."""
    return json.dumps(message, separators=(",", ":")).encode("ascii")


def outcome_of(reply: Message) -> str:
    """`ok` or the error code of a reply, for people."""
    return "ok" if reply["r"] == Kind.OK else sanitise(str(reply.get("e")), SHOWN_CHARS)


class Line:
    """Stop and wait, with every frame heard since the last `listen_anew` in `heard` and its bytes in `raw`."""

    def __init__(self, port: Port, random_bytes: Callable[[int], bytes], clock: Callable[[], float] = time.monotonic):
        self.sid = ""
        self.sequence = 0
        self.max_line = INITIAL_MAX_LINE
        self.heard: list[Message] = []
        self.raw = b""
        self.late: list[Verb] = []  # what was answered only when it was sent again
        self.busy_times: list[object] = []  # the `t` of every busy reply
        self.random_bytes = random_bytes
        self._port = port
        self._clock = clock
        self._reader = FrameReader()

    # --- requests

    def next_request(self, verb: str, values: Message, *, sid: str | None = None) -> Message:
        """The next request as a message, its number taken."""
        self.sequence += 1
        return {"s": self.sid if sid is None else sid, "i": self.sequence, "c": verb, **values}

    def ask(self, verb: str, values: Message = EMPTY, *, sid: str | None = None) -> Message:
        """Send a request and return its one reply, ok or not; Silent when none comes."""
        request = self.next_request(verb, values, sid=sid)
        return self.exchange(frame_of(body_of(request)), verb, request)

    def exchange(self, data: bytes, verb: str, request: Message) -> Message:
        """Write `data`, as often as the specification lets a host, until the reply to `request` is there."""
        known = Verb(verb) if verb in VERBS else Verb.STATUS
        timing = TIMING[known]
        self.listen_anew()
        for attempt in range(timing.tries):
            reply = self.reply_to(request, self.write(data) + timing.timeout_s, timing.busy_total_s)
            if reply is not None:
                self.late += [known] if attempt else []
                return reply
        raise Silent(f"no answer to {verb}, sent {timing.tries} times" if timing.tries > 1 else f"no answer to {verb}")

    def listen_anew(self) -> None:
        """Forget what was heard."""
        self.heard, self.raw = [], b""

    def write(self, data: bytes) -> float:
        """Bytes as they are; the seconds that they take on the wire."""
        return self._port.write(data)

    def reply_to(self, request: Message, timeout_s: float, busy_total_s: float = 0.0) -> Message | None:
        """The reply to a request that was sent; None when its time is over."""
        deadline = self._clock() + timeout_s
        while (now := self._clock()) < deadline:
            for message in self._read(deadline - now):
                if message.get("s") != request["s"] or message.get("i") != request["i"] or "r" not in message:
                    continue
                if message["r"] != Kind.BUSY:
                    return message
                granted_s = min(self._busy_s(message), busy_total_s)
                busy_total_s -= granted_s
                deadline += granted_s
        return None

    def listen(self, for_s: float) -> None:
        """Read for a while."""
        end = self._clock() + for_s
        while (now := self._clock()) < end:
            self._read(end - now)

    def strays_after(self, data: bytes) -> list[Message]:
        """What the device says to `data` beside its answer to the STATUS that follows."""
        status = self.next_request(Verb.STATUS, {})
        self.exchange(data + frame_of(body_of(status)), Verb.STATUS, status)
        return [message for message in self.heard if message.get("i") != status["i"]]

    # --- sessions and boots

    def hello(self, **values: object) -> Message:
        """HELLO; an ok is not yet a session, `use` takes it."""
        self._reader.max_line = INITIAL_MAX_LINE
        reply = self.ask(Verb.HELLO, self.hello_values() | values, sid="")
        if reply["r"] != Kind.OK:
            self._reader.max_line = self.max_line
        return reply

    def hello_values(self) -> dict[str, object]:
        """The fields of a HELLO with a new nonce."""
        nonce = fields.encode_blob(self.random_bytes(HELLO_NONCE_BYTES))
        return {"proto": [PROTOCOL_VERSION], "station": STATION, "nonce": nonce}

    def use(self, hello: Hello) -> None:
        """Continue in this session."""
        self.sid, self.max_line = hello.sid_text, hello.max_line
        self._reader.max_line = hello.max_line

    def greet(self) -> Hello:
        """A new session, in use."""
        reply = self.hello()
        if reply["r"] != Kind.OK:
            raise Failed(f"HELLO was refused with {outcome_of(reply)}")
        hello = Hello.parse(reply)
        self.use(hello)
        return hello

    def reset(self, old_boot_id: bytes) -> Hello:
        """RESET, judged by the boot id of the next session."""
        self._start_reset()
        for _ in range(GREETINGS_PER_RESET):
            hello = self._greet_booting()
            if hello.boot_id != old_boot_id:
                return hello
            self.listen(SETTLE_S)
        raise Failed("RESET was answered, and the boot id stayed the same")

    def reset_without_hello(self) -> None:
        """RESET, until the next boot says that it knows no session."""
        sid = self.sid
        self._start_reset()
        end = self._clock() + BOOT_LIMIT_S
        self._reader.max_line = INITIAL_MAX_LINE
        while self._clock() < end:
            status = self.next_request(Verb.STATUS, {}, sid=sid)
            self._write_to_boot(frame_of(body_of(status)), end)
            reply = self.reply_to(status, GREETING_S)
            if reply is not None and reply.get("e") == ErrorCode.SESSION:
                self.sid, self.max_line = "", INITIAL_MAX_LINE
                return
            self.listen(GREETING_S)
        raise Failed(f"in {BOOT_LIMIT_S:g} s after RESET the old session was not refused with {ErrorCode.SESSION}")

    def _start_reset(self) -> None:
        reply = self.ask(Verb.RESET)
        if reply["r"] != Kind.OK:
            raise Failed(f"RESET was refused with {outcome_of(reply)}")
        try:
            self.listen(SETTLE_S)
        except PortFault:
            return  # a USB device leaves the bus; the next write opens the port again

    def _greet_booting(self) -> Hello:
        end = self._clock() + BOOT_LIMIT_S
        self._reader.max_line = INITIAL_MAX_LINE
        request = self.next_request(Verb.HELLO, self.hello_values(), sid="")
        while self._clock() < end:
            self._write_to_boot(frame_of(body_of(request)), end)
            reply = self.reply_to(request, GREETING_S)
            if reply is not None and reply["r"] == Kind.OK:
                hello = Hello.parse(reply)
                self.use(hello)
                return hello
        raise Silent(f"no answer to HELLO within {BOOT_LIMIT_S:g} s after RESET")

    def _write_to_boot(self, data: bytes, end: float) -> None:
        try:
            self.write(data)
        except PortFault:
            self._port.reopen(max(0.0, end - self._clock()))
            self.write(data)

    # --- bytes

    def _read(self, wait_s: float) -> list[Message]:
        data = self._port.read(wait_s)
        self.raw += data
        frames = [found.message for found in self._reader.feed(data) if isinstance(found, Frame)]
        self.heard += frames
        return frames

    def _busy_s(self, message: Message) -> float:
        value = message.get("t")
        self.busy_times.append(value)
        return value / 1000 if type(value) is int and 1 <= value <= MAX_BUSY_MS else 0.0
