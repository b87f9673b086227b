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
from provisioning.conformance.key_checks import COMMON_NAME, NOT_CANONICAL, SEED
from provisioning.conformance.line_checks import GARBAGE
from provisioning.conformance.object_checks import OTHER_CONF
from provisioning.conformance.probe import CONF
from provisioning.conformance.seal_checks import _OUT_OF_ORDER, NO_SERIAL
from provisioning.spp1 import fields
from provisioning.spp1.frames import Frame, encode_frame
from provisioning.spp1.protocol import ErrorCode, Obj, SealPolicy, State, Verb
from tests.provisioning.conformance.bench import Good, Message, deaf, lenient, talkative, wrong

PEM = b"-----BEGIN CERTIFICATE"
ANOTHER = hashlib.sha256(b"another key").hexdigest()
Work = Callable[[], Answer]


def lines(data: bytes) -> list[bytes]:
    return [line for line in data.split(b"\n") if line.startswith(b"!P1 ")]


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


def _status(name: str, value: Any, state: State) -> type[Good]:
    return wrong(Verb.STATUS, name, value, lambda device, reply: reply["state"] == state)


def _always(device: Good, what: object) -> bool:
    return True


def _parsed(line: bytes) -> dict[str, Any]:
    return dict(json.loads(line[4:].rpartition(b" *")[0]))


def unaddressed(is_so: Callable[[dict[str, Any]], bool]) -> type[Good]:
    def matches(data: bytes) -> bool:
        for line in lines(data):
            try:
                found = is_so(_parsed(line))
            except ValueError:
                continue
            if found:
                return True
        return False

    return talkative(matches)


DEFECTS: dict[str, type[Good]] = {
    "hello": wrong(Verb.HELLO, "chunk", lambda reply: reply["chunk"] + 60, _always),
    "hello-noise": deaf(holds(b"{boot")),
    "hello-version": hello_with(lambda message: message | {"proto": [1]} if message["proto"] == [2] else message),
    "hello-versions": hello_with(lambda message: message | {"proto": message["proto"][:1]} if 1 in message["proto"] else message),
    "hello-nonce": hello_with(lambda message: message | {"nonce": message["nonce"][:22].ljust(22, "A") + "=="}),
    "hello-station": hello_with(lambda message: message | {"station": "any"}),
    "hello-again": ForgetsHello,
    "hello-new-sid": OneSid,
    "hello-boot-id": BootIdPerSession,
    "hello-state": wrong(Verb.HELLO, "state", State.BLANK, lambda device, reply: reply["state"] == State.KEYED),
    "hello-keeps": HelloDropsStage,
    "hello-ends-old": KeepsOldSessions,
    # lines
    "line-noise-before": deaf(holds(GARBAGE)),
    "line-half-before": deaf(lambda data: data.count(b"!P1 ") == 2 and b"\n\n" not in data and b"{boot" not in data),
    "line-cr": deaf(holds(b"\r")),
    "line-last-trailer": deaf(holds(b"*00000000 b")),
    "line-unknown-field": deaf(holds(b'"y":[1,null')),
    "json-spaces": deaf(holds(b'"s" : ')),
    "json-order": deaf(holds(b'!P1 {"c"')),
    "json-escape": deaf(holds(b"\\u0054")),
    "line-pause": deaf(lambda data: not data.endswith(b"\n")),
    "line-longest": deaf(is_long(1024)),
    "line-too-long": talkative(is_long(1025)),
    "line-first": deaf(is_long(256)),
    "line-first-too-long": talkative(is_long(257)),
    "line-newline": type("NoNewline", (Good,), {"says": lambda self, data: data[1:]}),
    "crc-wrong": talkative(lambda data: any(line[-9:-8] == b"*" and not _crc_is_right(line) for line in lines(data))),
    "crc-upper-case": talkative(lambda data: any(line[-10:-8] == b" *" and line[-8:] != line[-8:].lower() for line in lines(data))),
    "crc-missing": talkative(lambda data: any(b" *" not in line and line.endswith(b"}") for line in lines(data))),
    "json-array": talkative(holds(b"!P1 [")),
    "json-cut": talkative(holds(b'"STATUS" *')),
    "json-more": talkative(holds(b"} x *")),
    "json-twice": talkative(holds(b',"c":"IDENT"} *', b'"c":"STATUS",')),
    "json-control": talkative(holds(b"\t")),
    "json-nan": talkative(holds(b"NaN")),
    "json-utf8": talkative(holds(b'"\xff')),
    "json-deep": talkative(holds(b"[[[[")),
    "request-no-s": unaddressed(lambda message: "s" not in message),
    "request-no-i": unaddressed(lambda message: "i" not in message),
    "request-no-c": unaddressed(lambda message: "c" not in message),
    "request-i-zero": unaddressed(lambda message: message.get("i") == 0),
    "request-i-text": unaddressed(lambda message: isinstance(message.get("i"), str)),
    "request-i-large": unaddressed(lambda message: message.get("i") == 2**31),
    # sessions and boots
    "session-other": TakesAnySession,
    "session-boot": SessionOverBoot,
    "once-replay": DoesTwice,
    "once-number": TakesUsedNumber,
    "once-reply-stays": ReplyGoes,
    "once-older": TakesOlderNumber,
    "once-skips": WantsNextNumber,
    "verb-unknown": lenient("FROBNICATE", _always),
    "ident": wrong(Verb.IDENT, "algs", ["rsa2048"], _always),
    "ident-again": NewFirmwareEachTime,
    "ident-boot": NewFirmwareEachBoot,
    "status": wrong(Verb.STATUS, "last_error", "E_OOPS", _always),
    "reset": SameBoot,
    "reset-staged": StageOverBoot,
    "reset-keyed": KeyLostAtBoot,
    "reset-certed": ChainLostAtBoot,
    "reset-verified": VerifiedOverBoot,
    # the key
    "keygen": doing(Verb.KEYGEN, calls_new_existing),
    "keygen-status": wrong(Verb.STATUS, "slots", [], _always),
    "keygen-existing": wrong(Verb.KEYGEN, "existing", False, _always),
    "keygen-boot": OtherKeyAtBoot,
    "keygen-swap": doing(Verb.KEYGEN, keeps_chain),
    "keygen-swap-other": doing(Verb.KEYGEN, names_present_key(lambda device, named: named == ANOTHER)),
    "keygen-swap-again": doing(
        Verb.KEYGEN, names_present_key(lambda device, named: bool(named) and named in device.board.__dict__.get("named", ()))
    ),
    "keygen-seed": SeedIsAll,
    "keygen-alg": lenient(Verb.KEYGEN, asks(alg="rsa2048")),
    "keygen-slot": lenient(Verb.KEYGEN, asks(slot="other")),
    "keygen-no-slot": lenient(Verb.KEYGEN, lambda device, message: "slot" not in message),
    "keygen-if-spki": lenient(Verb.KEYGEN, asks(if_spki="AB" * 32)),
    "keygen-seed-long": lenient(Verb.KEYGEN, asks(seed=fields.encode_blob(bytes(33)))),
    "csr": wrong(Verb.CSR, "sha256", "0" * 64, _always),
    "csr-signature": csr_made(broken),
    "csr-key": csr_made(lambda device, key, name: device.board.request(device.board.new_key(b""), name)),
    "csr-cn": csr_made(lambda device, key, name: device.board.request(key, "somebody")),
    "csr-boot": CsrOverBoot,
    "csr-keygen": CsrOverKeygen,
    "csr-slot": lenient(Verb.CSR, asks(slot="other")),
    "csr-cn-long": lenient(Verb.CSR, asks(cn="x" * 65)),
    "csr-cn-ascii": lenient(Verb.CSR, asks(cn="caf\u00e9")),
    "prove": signing(by_another_key),
    "prove-nonce": remembered(lambda device, message: device.unit.ram.sid),
    "prove-session": remembered(lambda device, message: (device.unit.ram.boot_id, message["nonce"])),
    "prove-boot": with_ram(boot_id=first_boot_of_nonce()),
    "prove-2": signs_as(2, 1),
    "prove-2-verifies": signing(never_verifies),
    "prove-2-boot": with_ram(committed_txn=lambda device, message: ""),
    "prove-1-stays": signing(verifies_at_once),
    "prove-2-keyed": lenient(Verb.PROVE, asks(stage=2, state=State.KEYED)),
    "prove-3-verified": lenient(Verb.PROVE, asks(stage=3, state=State.VERIFIED)),
    "prove-stage-4": lenient(Verb.PROVE, asks(stage=4)),
    "prove-stage-1.0": lenient(Verb.PROVE, lambda device, message: isinstance(message.get("stage"), float)),
    "prove-nonce-31": lenient(Verb.PROVE, asks(nonce=fields.encode_blob(b"n" * 31))),
    "prove-nonce-b64": lenient(Verb.PROVE, asks(nonce=NOT_CANONICAL)),
    "prove-slot": lenient(Verb.PROVE, asks(slot="other")),
    # objects
    "write-chain": rotten(Obj.CHAIN),
    "write-ca": rotten(Obj.CA),
    "write-conf": rotten(Obj.CONF),
    "write-certed": wrong(
        Verb.STATUS, "state", State.KEYED,
        lambda device, reply: reply["state"] == State.CERTED and device.unit.ram.committed_txn != "",
    ),
    "write-keyed": wrong(
        Verb.STATUS, "state", State.CERTED,
        lambda device, reply: reply["state"] == State.KEYED and Obj.CONF in device.flash.objects,
    ),
    "write-boot": ConfLostAtBoot,
    "write-shorter": doing(Verb.COMMIT, keeps_tail),
    "begin": _status("state", State.KEYED, State.STAGED),
    "begin-keeps": doing(Verb.DATA, writes_at_once),
    "begin-drops": doing(Verb.BEGIN, keeps_first_name),
    "begin-verified": StaysVerified,
    "begin-key": lenient(Verb.BEGIN, asks(obj="key")),
    "begin-csr": lenient(Verb.BEGIN, asks(obj="csr")),
    "begin-unknown": lenient(Verb.BEGIN, asks(obj="firmware")),
    "begin-empty": lenient(Verb.BEGIN, asks(len=0)),
    "begin-long": lenient(Verb.BEGIN, asks(len=2049)),
    "begin-txn": lenient(Verb.BEGIN, asks(txn="x" * 33)),
    "data": doing(Verb.DATA, wrong_next),
    "data-again": doing(Verb.DATA, no_repetition),
    "data-gap": lenient(Verb.DATA, asks(off=9)),
    "data-other": lenient(Verb.DATA, asks(b64=fields.encode_blob(b"XXXXXXXX"))),
    "data-beyond": lenient(Verb.DATA, asks(b64=fields.encode_blob(CONF[8:] + b"x"))),
    "data-empty": lenient(Verb.DATA, asks(b64="")),
    "data-chunk": lenient(Verb.DATA, lambda device, message: message.get("b64", "").startswith("A" * 900)),
    "commit-again": doing(
        Verb.COMMIT, lambda device, message, work: No(ErrorCode.ARG) if is_repeated(device, message) else work()
    ),
    "commit-unknown": lenient(Verb.COMMIT, asks(txn="never", state=State.KEYED)),
    "commit-other": lenient(Verb.COMMIT, asks(txn="never", state=State.STAGED)),
    "commit-short": commits(lambda device, message: 0 < len(device.unit.ram.open.content) < device.unit.ram.open.length),  # type: ignore[union-attr]
    "commit-digest": commits(has_wrong_digest),
    "commit-closes": doing(Verb.COMMIT, stays_open),
    "commit-keeps": doing(Verb.COMMIT, writes_although),
    "commit-key": commits(chain_is("foreign")),
    "commit-first": commits(chain_is("turned")),
    "commit-garbage": commits(chain_is("garbage")),
    "read": doing(Verb.READ, refuses_past_end),
    "read-beyond": lenient(Verb.READ, asks(off=len(CONF) + 1), off=len(CONF) + 1, b64=""),
    "read-n": lenient(Verb.READ, lambda device, message: message.get("n", 0) > device.unit.chunk),
    "read-absent": lenient(Verb.READ, asks(obj="ca", state=State.BLANK)),
    "read-key": lenient(Verb.READ, asks(obj="key")),
    "hash": wrong(Verb.HASH, "sha256", "0" * 64, _always),
    "hash-absent": lenient(Verb.HASH, asks(obj="conf", state=State.BLANK)),
    "hash-key": lenient(Verb.HASH, asks(obj="key")),
    "time": refuses(Verb.TIME, ErrorCode.ARG, asks(unix=0)),
    "time-large": lenient(Verb.TIME, asks(unix=2**53)),
    # order, erase, seal
    **{f"order-{state}-{verb}".lower(): lenient(verb, asks(state=state)) for state, verb in _OUT_OF_ORDER},
    "erase": lenient(Verb.ERASE, lambda device, message: message.get("confirm") == device.flash.hardware_serial),
    "erase-key": OldKeyComesBack,
    "erase-objects": doing(Verb.ERASE, keeps_ca),
    "erase-blank": refuses(Verb.ERASE, ErrorCode.STATE, asks(state=State.BLANK)),
    "erase-confirm": lenient(Verb.ERASE, asks(confirm=NO_SERIAL, state=State.KEYED)),
    "connect": lenient(Verb.CONNECT, _always),
    "connect-nobody": lenient(Verb.CONNECT, _always),
    "seal-confirm": lenient(Verb.SEAL, asks(confirm=NO_SERIAL, state=State.VERIFIED)),
    "seal-policy": lenient(Verb.SEAL, asks(policy="for-now")),
    "seal": wrong(Verb.SEAL, "sealed", False, _always),
    "seal-status": _status("sealed", False, State.SEALED),
    "seal-again": refuses(Verb.SEAL, ErrorCode.SEALED, asks(state=State.SEALED)),
    "sealed-ident": refuses(Verb.IDENT, ErrorCode.SEALED, asks(state=State.SEALED)),
    "sealed-hash": refuses(Verb.HASH, ErrorCode.SEALED, asks(state=State.SEALED)),
    "sealed-prove": signs_as(3, 2),
    "sealed-erase-confirm": lenient(Verb.ERASE, asks(confirm=NO_SERIAL, state=State.SEALED)),
    "sealed-erase": refuses(Verb.ERASE, ErrorCode.SEALED, asks(state=State.SEALED, confirm="SN-0001")),
    "final-first": doing(Verb.SEAL, last_policy_wins),
    "final-erase": FinalIsNot,
    "time-limits": LosesOne,
    "time-busy": BusyForNoTime,
}  # fmt: skip


def _crc_is_right(line: bytes) -> bool:
    body, _, digits = line[4:].rpartition(b" *")
    return b"%08x" % zlib.crc32(body) == digits.lower()
