"""For each check of the table one device with the defect that the check is there for.

A defect is as narrow as it can be, so that no other check has a reason to fail: some are wrong in one state only, or
in one field of one verb.
"""

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from device_sim.spp1_device import Effect, Remembered, Send
from device_sim.spp1_verbs import Answer, No, Ok
from provisioning.conformance.key_checks import COMMON_NAME, SEED
from provisioning.conformance.object_checks import OTHER_CONF
from provisioning.conformance.probe import CONF
from provisioning.spp1 import fields
from provisioning.spp1.frames import Frame, encode_frame
from provisioning.spp1.protocol import ErrorCode, Obj, SealPolicy, State, Verb
from tests.provisioning.conformance.bench import Good, Message, talkative, wrong

PEM = b"-----BEGIN CERTIFICATE"
ANOTHER = hashlib.sha256(b"another key").hexdigest()
Work = Callable[[], Answer]


def lines(data: bytes) -> list[bytes]:
    return [line for line in data.split(b"\n") if line.startswith(b"!P1 ")]


def trailer(line: bytes) -> bytes:
    """The CRC's digits, if there are any."""
    return line[-8:] if line[-10:-8] == b" *" else b""


def crc_is_right(line: bytes) -> bool:
    return b"%08x" % zlib.crc32(line[4:-10]) == trailer(line).lower()


def holds(*parts: bytes) -> Callable[[bytes], bool]:
    return lambda data: all(part in data for part in parts)


def asks(**wanted: Any) -> Callable[[Good, Message], bool]:
    """Requests with these values; `state` is the device's."""
    state = wanted.pop("state", None)

    def matches(device: Good, message: Message) -> bool:
        return (state is None or device.state is state) and all(message.get(key) == wanted[key] for key in wanted)

    return matches


def is_long(length: int) -> Callable[[bytes], bool]:
    return lambda data: any(len(line) == length for line in lines(data))


# --- HELLO ---


def hello_with(change: Callable[[dict[str, Any]], dict[str, Any]]) -> type[Good]:
    """A device that takes a HELLO for another one."""

    class Hears(Good):
        def reads(self, message: Message) -> Message:
            return change(dict(message)) if message.get("c") == Verb.HELLO else message

    return Hears


class ForgetsHello(Good):
    def reads(self, message: Message) -> Message:
        self._hello = (b"", b"")
        return message


class OneSid(Good):
    """The same sid in every session of a boot."""

    def answer(self, frame: Frame) -> list[Effect]:
        kept, random = self.unit.ram.sid, self.board.random
        if frame.message.get("c") == Verb.HELLO and kept:
            self.board.random = lambda length: kept  # type: ignore[method-assign]
        effects = super().answer(frame)
        self.board.random = random  # type: ignore[method-assign]
        return effects


class BootIdPerSession(Good):
    def reads(self, message: Message) -> Message:
        if message.get("c") == Verb.HELLO:
            self.unit.ram.boot_id = self.board.random(16)
        return message


class HelloDropsStage(Good):
    def reads(self, message: Message) -> Message:
        if message.get("c") == Verb.HELLO:
            self.unit.ram.open = None
        return message


class EchoesSid(Good):
    """Takes requests of sessions that it has to refuse, and answers with the sid that they name."""

    def takes(self, sid: str) -> bool:
        return False

    def reads(self, message: Message) -> Message:
        self.named = message.get("s")
        if message.get("c") == Verb.HELLO or not isinstance(self.named, str) or not self.takes(self.named):
            self.named = None
            return message
        return {**message, "s": fields.encode_blob(self.unit.ram.sid)}

    def replies(self, verb: str, reply: dict[str, Any]) -> dict[str, Any]:
        return reply if self.named is None else reply | {"s": self.named}


class KeepsOldSessions(EchoesSid):
    def booted(self) -> None:
        self.sids: set[str] = set()

    def takes(self, sid: str) -> bool:
        return sid in self.sids

    def reads(self, message: Message) -> Message:
        if self.unit.ram.sid:
            self.sids.add(fields.encode_blob(self.unit.ram.sid))
        return super().reads(message)


class TakesAnySession(KeepsOldSessions):
    def takes(self, sid: str) -> bool:
        return bool(self.unit.ram.sid) and len(sid) == 24 and sid not in self.sids


class SessionOverBoot(Good):
    def reads(self, message: Message) -> Message:
        before = self.previous.unit.ram.sid if self.previous else b""
        if not self.unit.ram.sid and before and message.get("s") == fields.encode_blob(before):
            self.unit.ram.sid = before
        return message


# --- answering once ---


class Repeats(Good):
    """Carries out again what it should only answer again; `when` says what."""

    def when(self, frame: Frame, last: Remembered) -> bool:
        return False

    def answer(self, frame: Frame) -> list[Effect]:
        last, number = self._last, frame.message.get("i")
        if last is None or not isinstance(number, int) or frame.message.get("c") == Verb.HELLO:
            return super().answer(frame)
        if not self.when(frame, last):
            return super().answer(frame)
        self._last = None
        effects = super().answer(frame)
        self._last = last
        return effects


class DoesTwice(Repeats):
    def when(self, frame: Frame, last: Remembered) -> bool:
        return frame.message["i"] == last.sequence and frame.crc == last.crc and frame.message["c"] == Verb.KEYGEN


class TakesUsedNumber(Repeats):
    def when(self, frame: Frame, last: Remembered) -> bool:
        return bool(frame.message["i"] == last.sequence and frame.crc != last.crc)


class TakesOlderNumber(Repeats):
    def when(self, frame: Frame, last: Remembered) -> bool:
        return bool(frame.message["i"] < last.sequence)


class ReplyGoes(Good):
    def answer(self, frame: Frame) -> list[Effect]:
        last = self._last
        effects = super().answer(frame)
        if last and frame.message.get("i") == last.sequence and frame.crc != last.crc and self._last is last:
            self._last = replace(last, crc=frame.crc)
        return effects


class WantsNextNumber(Good):
    def answer(self, frame: Frame) -> list[Effect]:
        last, number = self._last, frame.message.get("i")
        is_hello = frame.message.get("c") == Verb.HELLO
        return [] if last and not is_hello and isinstance(number, int) and number > last.sequence + 500 else (
            super().answer(frame)
        )  # fmt: skip


# --- IDENT, boots ---


class NewFirmwareEachTime(Good):
    asked_often = 0

    def replies(self, verb: str, reply: dict[str, Any]) -> dict[str, Any]:
        NewFirmwareEachTime.asked_often += 1
        return reply | {"fw": str(self.asked_often)} if verb == Verb.IDENT and reply["r"] == "ok" else reply


class NewFirmwareEachBoot(Good):
    boots = 0

    def booted(self) -> None:
        NewFirmwareEachBoot.boots += 1

    def replies(self, verb: str, reply: dict[str, Any]) -> dict[str, Any]:
        return reply | {"fw": str(self.boots)} if verb == Verb.IDENT and reply["r"] == "ok" else reply


class SameBoot(Good):
    def booted(self) -> None:
        if self.previous:
            self.unit.ram.boot_id = self.previous.unit.ram.boot_id


class StageOverBoot(Good):
    def booted(self) -> None:
        if self.previous:
            self.unit.ram.open = self.previous.unit.ram.open


class KeyLostAtBoot(Good):
    def booted(self) -> None:
        if Obj.CHAIN not in self.flash.objects:
            self.write(private_key=b"")


class OtherKeyAtBoot(Good):
    def booted(self) -> None:
        if self.flash.private_key and Obj.CHAIN not in self.flash.objects:
            self.write(private_key=self.board.new_key(b""))


class ChainLostAtBoot(Good):
    def booted(self) -> None:
        self.write_object(Obj.CHAIN, None)


class ConfLostAtBoot(Good):
    def booted(self) -> None:
        self.write_object(Obj.CONF, None)


class VerifiedOverBoot(Good):
    def booted(self) -> None:
        if self.previous:
            self.unit.ram.is_verified = self.previous.unit.ram.is_verified


class CsrOverBoot(Good):
    def booted(self) -> None:
        if self.previous:
            self.unit.ram.csr = self.previous.unit.ram.csr


# --- one verb, done otherwise ---


def doing(verb: Verb, act: Callable[[Good, Message, Work], Answer]) -> type[Good]:
    """A device with a verb of its own."""

    class Does(Good):
        def does(self, name: str, message: Message, carry_out: Work) -> Answer:
            return act(self, message, carry_out) if name == verb else carry_out()

    return Does


def refuses(verb: Verb, code: ErrorCode, matches: Callable[[Good, Message], bool]) -> type[Good]:
    return doing(verb, lambda device, message, work: No(code) if matches(device, message) else work())


def calls_new_existing(device: Good, message: Message, work: Work) -> Answer:
    was_blank = device.state is State.BLANK
    answer = work()
    return Ok({**answer.fields, "existing": True}) if was_blank and isinstance(answer, Ok) else answer


def is_repeated(device: Good, message: Message) -> bool:
    return device.state is State.KEYED and message.get("txn") == device.unit.ram.committed_txn


def keeps_chain(device: Good, message: Message, work: Work) -> Answer:
    chain = device.flash.objects.get(Obj.CHAIN)
    answer = work()
    device.write_object(Obj.CHAIN, chain)
    return answer


def names_present_key(when: Callable[[Good, str], bool]) -> Callable[[Good, Message, Work], Answer]:
    """Replaces the key although another is named."""

    def act(device: Good, message: Message, work: Work) -> Answer:
        before = device.flash.private_key
        if before and when(device, str(message.get("if_spki", ""))):
            device.write(private_key=device.board.new_key(b""))
            return Ok(
                {"spki": fields.encode_blob(device.board.public_key(device.flash.private_key)), "existing": False}
            )
        device.board.__dict__.setdefault("named", set()).add(message.get("if_spki"))
        return work()

    return act


def was_named(device: Good, named: str) -> bool:
    """Whether a request of before named this key."""
    return bool(named) and named in device.board.__dict__.get("named", ())


class SeedIsAll(Good):
    keys: dict[str, bytes] = {}  # noqa: RUF012 - the defect is that it is shared

    def does(self, name: str, message: Message, carry_out: Work) -> Answer:
        answer = carry_out()
        if name == Verb.KEYGEN and message.get("seed") == SEED and isinstance(answer, Ok):
            self.write(private_key=self.keys.setdefault(SEED, self.flash.private_key))
            return Ok({**answer.fields, "spki": fields.encode_blob(self.board.public_key(self.flash.private_key))})
        return answer


class CsrOverKeygen(Good):
    def does(self, name: str, message: Message, carry_out: Work) -> Answer:
        csr = self.unit.ram.csr
        answer = carry_out()
        if name == Verb.KEYGEN:
            self.unit.ram.csr = csr
        return answer


def csr_made(change: Callable[[Good, bytes, str], bytes]) -> type[Good]:
    """A device whose request is another one."""

    def act(device: Good, message: Message, work: Work) -> Answer:
        device.unit.ram.csr = change(device, device.flash.private_key, str(message["cn"]))
        digest = hashlib.sha256(device.unit.ram.csr).hexdigest()
        return Ok({"len": len(device.unit.ram.csr), "sha256": digest})

    return doing(Verb.CSR, lambda d, m, w: act(d, m, w) if m.get("cn") == COMMON_NAME and isinstance(w(), Ok) else w())


def broken(device: Good, key: bytes, name: str) -> bytes:
    csr = device.board.request(key, name)
    return csr[:-1] + bytes([csr[-1] ^ 1])


# --- PROVE ---


def signing(act: Callable[[Good, Message, Work], Answer]) -> type[Good]:
    return doing(Verb.PROVE, act)


def by_another_key(device: Good, message: Message, work: Work) -> Answer:
    answer = work()
    if not isinstance(answer, Ok):
        return answer
    return Ok({"sig": fields.encode_blob(device.board.sign(device.board.new_key(b""), b"something"))})


def remembered(name: Callable[[Good, Message], object]) -> type[Good]:
    """A device that signs once for everything that has the same name."""
    signed: dict[object, Answer] = {}

    def act(device: Good, message: Message, work: Work) -> Answer:
        answer = work()
        if not isinstance(answer, Ok) or message.get("stage") != 1:
            return answer
        return signed.setdefault(name(device, message), answer)

    return signing(act)


def with_ram(**other: Callable[[Good, Message], Any]) -> type[Good]:
    """A device that carries out PROVE over other RAM than it has."""

    def act(device: Good, message: Message, work: Work) -> Answer:
        ram = device.unit.ram
        kept = {name: getattr(ram, name) for name in other}
        for name, value in other.items():
            setattr(ram, name, value(device, message))
        answer = work()
        for name, value in kept.items():
            setattr(ram, name, value)
        return answer

    return signing(act)


def first_boot_of_nonce() -> Callable[[Good, Message], bytes]:
    boots: dict[object, bytes] = {}
    return lambda device, message: boots.setdefault(message.get("nonce"), device.unit.ram.boot_id)


def signs_as(stage: int, other: int) -> type[Good]:
    """The message that is signed has another stage in it."""

    def act(device: Good, message: Message, work: Work) -> Answer:
        if message.get("stage") != stage:
            return work()
        board = device.unit.board
        kept, sign = board.sign, board.sign
        device.unit.board.sign = lambda key, text: sign(key, text[:14] + bytes([other]) + text[15:])  # type: ignore[method-assign]
        answer = work()
        device.unit.board.sign = kept  # type: ignore[method-assign]
        return answer

    return signing(act)


def never_verifies(device: Good, message: Message, work: Work) -> Answer:
    answer = work()
    device.unit.ram.is_verified = False
    return answer


def verifies_at_once(device: Good, message: Message, work: Work) -> Answer:
    answer = work()
    device.unit.ram.is_verified = device.unit.ram.is_verified or device.state is State.CERTED
    return answer


# --- objects ---


def rotten(obj: Obj) -> type[Good]:
    def act(device: Good, message: Message, work: Work) -> Answer:
        answer = work()
        if message.get("obj") != obj or not isinstance(answer, Ok) or not answer.fields["b64"]:
            return answer
        raw = fields.blob(answer.fields, "b64", most=4096)
        return Ok({**answer.fields, "b64": fields.encode_blob(bytes([raw[0] ^ 1]) + raw[1:])})

    return doing(Verb.READ, act)


def keeps_tail(device: Good, message: Message, work: Work) -> Answer:
    old = device.flash.objects.get(Obj.CONF, b"")
    answer = work()
    new = device.flash.objects.get(Obj.CONF, b"")
    if isinstance(answer, Ok) and len(new) < len(old):
        device.write_object(Obj.CONF, new + old[len(new) :])
    return answer


def writes_at_once(device: Good, message: Message, work: Work) -> Answer:
    answer = work()
    stage = device.unit.ram.open
    if isinstance(answer, Ok) and stage and stage.obj is Obj.CONF:
        device.write_object(Obj.CONF, bytes(stage.content))
    return answer


def keeps_first_name(device: Good, message: Message, work: Work) -> Answer:
    before = device.unit.ram.open
    answer = work()
    if before and device.unit.ram.open:
        device.unit.ram.open.txn = before.txn
    return answer


class StaysVerified(Good):
    was_verified = False

    def does(self, name: str, message: Message, carry_out: Work) -> Answer:
        if name == Verb.BEGIN:
            self.was_verified = self.unit.ram.is_verified
        answer = carry_out()
        if name == Verb.COMMIT and isinstance(answer, Ok):
            self.unit.ram.is_verified = self.was_verified
        return answer


def wrong_next(device: Good, message: Message, work: Work) -> Answer:
    answer = work()
    is_due = isinstance(answer, Ok) and message.get("off") == 8 and answer.fields["off"] == 16
    return Ok({"off": 8}) if is_due else answer


def no_repetition(device: Good, message: Message, work: Work) -> Answer:
    stage = device.unit.ram.open
    is_repeated = stage is not None and len(stage.content) == len(CONF) and message.get("off") == 0
    return No(ErrorCode.ARG) if is_repeated else work()


def commits(when: Callable[[Good, Message], bool]) -> type[Good]:
    """A device that says ok and writes nothing, and closes the transaction."""

    def act(device: Good, message: Message, work: Work) -> Answer:
        if device.unit.ram.open is None or not when(device, message):
            return work()
        device.unit.ram.open = None
        return Ok()

    return doing(Verb.COMMIT, act)


def is_short(device: Good, message: Message) -> bool:
    stage = device.unit.ram.open
    return stage is not None and 0 < len(stage.content) < stage.length


def has_wrong_digest(device: Good, message: Message) -> bool:
    stage = device.unit.ram.open
    assert stage
    full = len(stage.content) == stage.length and stage.txn == message.get("txn")
    return full and hashlib.sha256(stage.content).digest() != stage.sha256


def stays_open(device: Good, message: Message, work: Work) -> Answer:
    stage = device.unit.ram.open
    answer = work()
    if isinstance(answer, No) and answer.code is ErrorCode.HASH:
        device.unit.ram.open = stage
    return answer


def writes_although(device: Good, message: Message, work: Work) -> Answer:
    answer = work()
    if isinstance(answer, No) and answer.code is ErrorCode.HASH:
        device.write_object(Obj.CONF, OTHER_CONF)
    return answer


def chain_is(kind: str) -> Callable[[Good, Message], bool]:
    """What stands in the open transaction: a foreign key's chain, the own key's in the second place, or garbage."""

    def matches(device: Good, message: Message) -> bool:
        stage = device.unit.ram.open
        assert stage
        content = bytes(stage.content)
        if stage.obj is not Obj.CHAIN:
            return False
        certified = device.board.certified_key(content)
        own = device.board.public_key(device.flash.private_key)
        others = [device.board.certified_key(PEM + rest) for rest in content.split(PEM)[2:]]
        turned = "turned" if own in others else "foreign"
        found = "garbage" if certified is None else "own" if certified == own else turned
        return found == kind

    return matches


def refuses_past_end(device: Good, message: Message, work: Work) -> Answer:
    is_past = message.get("obj") == Obj.CONF and message.get("off", 0) + message.get("n", 0) > len(CONF)
    return No(ErrorCode.ARG) if is_past and message.get("n") == 8 else work()


# --- ERASE and SEAL ---


class OldKeyComesBack(Good):
    erased = b""

    def does(self, name: str, message: Message, carry_out: Work) -> Answer:
        key = self.flash.private_key
        answer = carry_out()
        if name == Verb.ERASE:
            self.erased = key
        elif name == Verb.KEYGEN and self.erased and isinstance(answer, Ok):
            self.write(private_key=self.erased)
            self.erased = b""
            return Ok({**answer.fields, "spki": fields.encode_blob(self.board.public_key(self.flash.private_key))})
        return answer


def keeps_ca(device: Good, message: Message, work: Work) -> Answer:
    ca = device.flash.objects.get(Obj.CA)
    answer = work()
    device.write_object(Obj.CA, ca)
    return answer


def last_policy_wins(device: Good, message: Message, work: Work) -> Answer:
    answer = work()
    if isinstance(answer, Ok):
        device.write(seal_policy=SealPolicy(str(message["policy"])))
    return answer


class FinalIsNot(Good):
    def does(self, name: str, message: Message, carry_out: Work) -> Answer:
        if name == Verb.ERASE and self.flash.seal_policy is SealPolicy.FINAL:
            self.write(seal_policy=SealPolicy.ERASABLE)
        return carry_out()


# --- time ---


class LosesOne(Good):
    lost = False

    def hears(self, data: bytes) -> bytes:
        if not LosesOne.lost and b'"c":"IDENT"' in data:
            LosesOne.lost = True
            return b""
        return data


class BusyForNoTime(Good):
    def answer(self, frame: Frame) -> list[Effect]:
        effects = super().answer(frame)
        if frame.message.get("c") != Verb.KEYGEN:
            return effects
        busy = {"s": frame.message["s"], "i": frame.message["i"], "r": "busy", "t": 0}
        return [Send(encode_frame(busy)), *effects]


def status_says(name: str, value: Any, state: State) -> type[Good]:
    return wrong(Verb.STATUS, name, value, lambda device, reply: reply["state"] == state)


def always(device: Good, what: object) -> bool:
    return True


def parsed(line: bytes) -> dict[str, Any]:
    return dict(json.loads(line[4:].rpartition(b" *")[0]))


def unaddressed(is_so: Callable[[dict[str, Any]], bool]) -> type[Good]:
    def matches(data: bytes) -> bool:
        for line in lines(data):
            try:
                found = is_so(parsed(line))
            except ValueError:
                continue
            if found:
                return True
        return False

    return talkative(matches)


# --- whole devices ---


class SlowKeygen(Good):
    """Nothing is wrong with it: a key takes a while, and it says so."""

    def answer(self, frame: Frame) -> list[Effect]:
        effects = super().answer(frame)
        if frame.message.get("c") != Verb.KEYGEN:
            return effects
        busy = {"s": frame.message["s"], "i": frame.message["i"], "r": "busy", "t": 3000}
        return [Send(encode_frame(busy)), *effects]


class WentSilent(Good):
    """From its first key on it says nothing any more."""

    def hears(self, data: bytes) -> bytes:
        return b"" if self.flash.private_key else data
