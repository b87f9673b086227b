"""A device on the judge's table without a line: the virtual device in memory, boot after boot, on a clock of its own.

`Good` is the virtual device with the places in which a defect can be put: what it hears, what it makes of a request,
what it answers, what its next boot finds. Silence costs no time here, because the clock jumps.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from device_sim.simulated_board import SimulatedBoard, new_flash
from device_sim.spp1_board import Board, Flash, NetFailure
from device_sim.spp1_device import Device, Effect, Restart, Send
from device_sim.spp1_verbs import Answer, Ok
from provisioning.conformance.checking import Result
from provisioning.conformance.judging import judge
from provisioning.spp1.frames import Frame, encode_frame
from provisioning.spp1.protocol import Obj, Verb

Message = Mapping[str, Any]


class NetBoard(SimulatedBoard):
    """A board with a network on which nobody listens."""

    def __init__(self) -> None:
        super().__init__(new_flash("SN-0001"), network=True)

    def publish(self, host: str, port: int, topic: str) -> None:
        raise NetFailure("connection refused")


class Good(Device):
    """The virtual device as it is; defects override one thing of it."""

    def __init__(self, board: Board, previous: "Good | None" = None) -> None:
        super().__init__(board)
        self.board = board
        self.previous = previous
        self.booted()

    # --- where defects go ---

    def booted(self) -> None:
        """A boot has begun; `previous` is the one before."""

    def hears(self, data: bytes) -> bytes:
        """The bytes of one write, as this device takes them."""
        return data

    def says(self, data: bytes) -> bytes:
        """The bytes of one reply, as they leave."""
        return data

    def reads(self, message: Message) -> Message:
        """A request, as this device understands it."""
        return message

    def does(self, verb: str, message: Message, carry_out: Callable[[], Answer]) -> Answer:
        """A request carried out."""
        return carry_out()

    def replies(self, verb: str, reply: dict[str, Any]) -> dict[str, Any]:
        """A reply before it is framed; what is changed here is what a resend brings as well."""
        return reply

    # --- what is in them ---

    def frames(self, data: bytes) -> list[Frame]:
        return [Frame(self.reads(frame.message), frame.crc) for frame in super().frames(data)]

    def answer(self, frame: Frame) -> list[Effect]:
        self.asked = str(frame.message.get("c"))
        effects = super().answer(frame)
        return [self._changed(effect) if isinstance(effect, Send) else effect for effect in effects]

    def _changed(self, send: Send) -> Send:
        if type(self).replies is Good.replies:
            return send
        body = send.data.strip(b"\n")[4:-10]
        return Send(encode_frame(self.replies(self.asked, json.loads(body))))

    def _perform(self, name: str, message: Message) -> Answer:
        return self.does(name, message, lambda: super(Good, self)._perform(name, message))

    # --- shortcuts for defects ---

    @property
    def flash(self) -> Flash:
        return self.board.read_flash()

    def write(self, **changes: Any) -> None:
        """Change flash behind the protocol's back."""
        self.board.write_flash(replace(self.flash, **changes))

    def write_object(self, obj: Obj, content: bytes | None) -> None:
        objects = {kept: raw for kept, raw in self.flash.objects.items() if kept is not obj}
        self.write(objects=MappingProxyType(objects if content is None else objects | {obj: content}))


class BenchPort:
    """The port that the judge talks to; `kind` makes every boot of the device."""

    name = "bench"

    def __init__(self, kind: type[Good] = Good, board: Board | None = None) -> None:
        self.kind = kind
        self.board = board or SimulatedBoard(new_flash("SN-0001"))
        self.device = kind(self.board)
        self.now = 0.0
        self.waiting = b""

    def clock(self) -> float:
        return self.now

    def write(self, data: bytes) -> float:
        effects = self.device.receive(self.device.hears(data))
        while effects:
            effect, *effects = effects
            if isinstance(effect, Send):
                self.waiting += self.device.says(effect.data)
            elif isinstance(effect, Restart):
                self.device = self.kind(self.board, self.device)
            else:
                effects += self.device.wake()
        return 0.0

    def read(self, timeout_s: float) -> bytes:
        data, self.waiting = self.waiting, b""
        if not data:
            self.now += max(timeout_s, 0.001)
        return data

    def reopen(self, timeout_s: float) -> None:
        raise AssertionError("this port never goes away")


def judged(kind: type[Good] = Good, board: Board | None = None, **options: bool) -> list[Result]:
    """The whole table over one device."""
    port = BenchPort(kind, board)
    return list(judge(port, clock=port.clock, **options))


def lenient(verb: str, matches: Callable[[Good, Message], bool], **fields: Any) -> type[Good]:
    """A device that says ok to what it must refuse."""

    class Lenient(Good):
        def does(self, name: str, message: Message, carry_out: Callable[[], Answer]) -> Answer:
            return Ok(fields) if name == verb and matches(self, message) else carry_out()

    return Lenient


def deaf(matches: Callable[[bytes], bool]) -> type[Good]:
    """A device that loses what it must read."""

    class Deaf(Good):
        def hears(self, data: bytes) -> bytes:
            return b"" if matches(data) else data

    return Deaf


def talkative(matches: Callable[[bytes], bool]) -> type[Good]:
    """A device that answers a line which it must drop: an error, without a number."""

    class Talkative(Good):
        said = b""

        def hears(self, data: bytes) -> bytes:
            self.said = b"\n" + encode_frame({"s": "", "r": "err", "e": "E_ARG", "m": ""}) if matches(data) else b""
            return data

        def says(self, data: bytes) -> bytes:
            said, self.said = self.said, b""
            return said + data

    return Talkative


def wrong(verb: Verb, name: str, value: Any, matches: Callable[[Good, dict[str, Any]], bool]) -> type[Good]:
    """A device whose replies to a verb carry another value in one field."""

    class Wrong(Good):
        def replies(self, asked: str, reply: dict[str, Any]) -> dict[str, Any]:
            is_due = asked == verb and reply["r"] == "ok" and matches(self, reply)
            return reply | {name: value(reply) if callable(value) else value} if is_due else reply

    return Wrong
