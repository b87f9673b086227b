"""A conversation with one device over one port: SPP/1 requests with their time limits, and its reset.

Joins the host machine (no I/O) to a port, a clock and a trace. Every wait has a deadline: a request's own, and
the step's, so that a device that answers just often enough does not hold a station for ever. Everything that
goes wrong is a Fault with one sentence. It decides nothing about keys or certificates.
Specification: docs/spp1.md, sections 3 to 5 and 7.
"""

import math
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from mtls.errors import Fault
from provisioning.dialects.device import DeviceGone
from provisioning.port import PortFault
from provisioning.spp1 import fields
from provisioning.spp1.frames import LogLine
from provisioning.spp1.host import (
    DeviceRefused,
    DeviceSilent,
    Hello,
    Identity,
    Reply,
    ReplyFault,
    Requester,
)
from provisioning.spp1.protocol import HELLO_NONCE_BYTES, PROTOCOL_VERSION, TIMING, ErrorCode, Verb
from provisioning.trace import Trace

STEP_LIMIT_S = 300.0  # KEYGEN with all its tries and all its `busy` takes 210 s
READ_SLICE_S = 0.5  # how long one wait on the port may last before deadlines are looked at again
BOOT_LIMIT_S = 30.0  # from RESET to the answer of the next boot, USB enumeration included
RESET_TRIES = 3
GREETINGS_PER_RESET = 2  # the first may still be answered by the old boot
GREETING_S = 0.25  # between two HELLOs to a device that boots: what it missed must not cost a whole time-out
SETTLE_S = 0.5  # between the reply to RESET, the boot, and the next question


class Port(Protocol):
    """What a session needs of a port; `provisioning.port.SerialPort` is one."""

    name: str

    def read(self, timeout_s: float) -> bytes: ...
    def write(self, data: bytes) -> float: ...
    def reopen(self, timeout_s: float) -> None: ...


class Session:
    """One device on one port."""

    def __init__(
        self,
        port: Port,
        *,
        station: str,
        trace: Trace,
        clock: Callable[[], float] = time.monotonic,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.random_bytes = random_bytes
        self.last_verb = Verb.HELLO
        self._port = port
        self._station = station
        self._trace = trace
        self._clock = clock
        self._requester = Requester()
        self._step_deadline = math.inf
        self._heard_bytes = 0
        self._heard_frames = 0
        self._agreed: Hello | None = None

    @property
    def hello_agreed(self) -> Hello:
        """What the last HELLO agreed on."""
        if self._agreed is None:
            raise Fault("no session is open with the device")
        return self._agreed

    def begin_step(self, name: str, limit_s: float = STEP_LIMIT_S) -> None:
        """Start the clock of one step of the burn."""
        now = self._clock()
        self._step_deadline = now + limit_s
        self._trace.note(name, now)

    def call(self, verb: Verb, **values: object) -> Reply:
        """Send one request and return its `ok`; DeviceRefused, DeviceSilent or PortFault otherwise."""
        return self._call(verb, TIMING[verb].tries, values)

    def _call(self, verb: Verb, tries: int, values: Mapping[str, object], timeout_s: float | None = None) -> Reply:
        self.last_verb = verb
        self._send(self._requester.request(verb, values, now=self._clock(), tries=tries, timeout_s=timeout_s))
        while True:
            answer = self._listen()
            if isinstance(answer, DeviceRefused):
                raise answer
            if answer is not None:
                return answer
            now = self._clock()
            if now >= self._step_deadline:
                raise Fault(f"the device kept the station waiting in {verb} longer than a step may take")
            if now >= self._requester.deadline:
                self._send(self._requester.on_timeout(now))

    def _send(self, data: bytes) -> None:
        self._trace.sent(data, self._clock())
        self._requester.deadline += self._port.write(data)

    def _listen(self) -> Reply | DeviceRefused | None:
        """Read once, up to the next deadline; the answer to the request in flight, if it came."""
        wait_s = min(self._requester.deadline, self._step_deadline) - self._clock()
        data = self._port.read(min(max(wait_s, 0.0), READ_SLICE_S))
        self._heard_bytes += len(data)
        answer: Reply | DeviceRefused | None = None
        now = self._clock()
        for event in self._requester.feed(data):
            self._trace.heard(event, now)
            self._heard_frames += not isinstance(event, LogLine)
            if isinstance(event, Reply | DeviceRefused):
                answer = event
        return answer

    # --- sessions and boots

    def connect(self) -> Hello:
        """The first HELLO; a port on which no device answers gives one sentence that says what was heard."""
        try:
            return self._hello(tries=TIMING[Verb.HELLO].tries)
        except DeviceSilent:
            if self._heard_frames:
                raise
            heard = f"{self._heard_bytes} bytes" if self._heard_bytes else "nothing"
            raise Fault(
                f"no device on {self._port.name} answers SPP/1 (heard {heard})",
                hint="check the port's name, the baud rate and the device's power",
            ) from None

    def knock(self, timeout_s: float) -> bool:
        """One short HELLO: whether a device answers; PortFault when the port is gone."""
        try:
            self._hello(tries=1, timeout_s=timeout_s)
        except DeviceSilent:
            return False
        return True

    def _hello(self, *, tries: int, timeout_s: float | None = None) -> Hello:
        nonce = fields.encode_blob(self.random_bytes(HELLO_NONCE_BYTES))
        values = {"proto": [PROTOCOL_VERSION], "station": self._station, "nonce": nonce}
        reply = self._call(Verb.HELLO, tries, values, timeout_s)
        try:
            agreed = Hello.parse(reply.message)
        except fields.FieldFault as error:
            raise ReplyFault(Verb.HELLO, str(error)) from None
        self._requester.open_session(agreed)
        self._agreed = agreed
        return agreed

    def identify(self) -> Identity:
        """IDENT, read now."""
        try:
            return Identity.parse(self.call(Verb.IDENT).message)
        except fields.FieldFault as error:
            raise ReplyFault(Verb.IDENT, str(error)) from None

    def reset(self) -> Hello:
        """RESET, judged by a new boot id; the session of the new boot. The RESET itself is never repeated blindly."""
        old = self.hello_agreed.boot_id
        for _ in range(RESET_TRIES):
            self._ask_for_reset()
            for _ in range(GREETINGS_PER_RESET):
                self._settle()
                fresh = self._greet_after_boot()
                if fresh.boot_id != old:
                    return fresh
        raise Fault(
            f"the device did not reset in {RESET_TRIES} attempts: its boot id stayed the same",
            hint="its firmware must draw a new boot id in every boot",
        )

    def _ask_for_reset(self) -> None:
        # Its answer may be lost with the boot, its port with the USB device: the boot id judges what happened.
        try:
            self.call(Verb.RESET)
        except DeviceRefused as refused:
            if refused.code is not ErrorCode.SESSION:
                raise
        except (DeviceSilent, PortFault):
            return

    def _greet_after_boot(self) -> Hello:
        deadline = self._clock() + BOOT_LIMIT_S
        tries = math.ceil(BOOT_LIMIT_S / GREETING_S)
        while True:
            try:
                return self._hello(tries=tries, timeout_s=GREETING_S)
            except PortFault:
                left_s = deadline - self._clock()
                if left_s <= 0:
                    raise
                self._note_unfinished()
                self._port.reopen(left_s)
            except DeviceSilent:
                raise DeviceGone(
                    f"the device did not come back within {BOOT_LIMIT_S:g} s after RESET",
                    hint="check its supply: a device that draws more at boot may brown out",
                ) from None

    def _settle(self) -> None:
        deadline = self._clock() + SETTLE_S
        with suppress(PortFault):
            while self._clock() < deadline:
                self._listen()

    def _note_unfinished(self) -> None:
        rest = self._requester.reader.flush()
        if rest is not None:
            self._trace.heard(rest, self._clock())

    def close(self) -> None:
        """Write the unfinished line into the trace; the port and the trace belong to the caller."""
        self._note_unfinished()
