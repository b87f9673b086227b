"""Faults that a virtual device can be given, by name: one table, and the board that lies where the table says.

Three kinds. Line faults happen to frames or bytes in either direction, at a rate, from a seed (line_noise.py). Step
faults end a conversation at a verb or a byte (simulation.py). Board faults are here: a board that signs with
another key, whose flash rots, whose generator fails. Faults compose; each changes one thing, so a test that
names one knows what it tests. Every fault must make a station say FAIL, or be survived; none may end in PASS
for a unit that is not as its record says.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from device_sim.spp1_board import Board, Flash, FlashFailure, RngFailure
from mtls.errors import Fault
from provisioning.spp1.protocol import Obj, Verb

MAX_BYTES = 10_000_000  # of a power-loss-byte; a burn is about 20,000


class Takes(StrEnum):
    """What stands after a fault's `=`."""

    NOTHING = ""
    RATE = "RATE"
    VERB = "VERB"
    BYTES = "N"


@dataclass(frozen=True, slots=True)
class Kind:
    """One line of the table: what the fault takes and what it does."""

    takes: Takes
    effect: str


FAULTS: Mapping[str, Kind] = MappingProxyType(
    {
        # the line
        "drop": Kind(Takes.RATE, "a frame vanishes"),
        "duplicate": Kind(Takes.RATE, "a frame arrives twice"),
        "flip": Kind(Takes.RATE, "one bit of a frame flips"),
        "split": Kind(Takes.RATE, "a frame arrives in two pieces with a pause"),
        "delay": Kind(Takes.RATE, "a frame arrives late"),
        "chatter": Kind(Takes.RATE, "log text without an end stands before a frame"),
        "noise": Kind(Takes.RATE, "a byte is lost, doubled, flipped, late, or has log text before it"),
        # the step
        "silent-at": Kind(Takes.VERB, "from this verb on nothing is answered"),
        "power-loss": Kind(Takes.VERB, "power is lost once, before this verb is carried out"),
        "power-loss-after": Kind(Takes.VERB, "power is lost once, after this verb and before its reply"),
        "power-loss-byte": Kind(Takes.BYTES, "power is lost once, after this many bytes from the host"),
        "slow": Kind(Takes.VERB, "this verb takes a second and says busy first"),
        "no-reset": Kind(Takes.NOTHING, "RESET is answered and does not happen"),
        "same-boot-id": Kind(Takes.NOTHING, "every boot has the same boot id"),
        "replug-on-reset": Kind(Takes.NOTHING, "RESET makes the port go away and come back as another node"),
        "reset-on-open": Kind(Takes.NOTHING, "opening the port resets the board, as DTR does on many"),
        # the board
        "bad-csr-signature": Kind(Takes.NOTHING, "the request's signature is broken"),
        "wrong-key": Kind(Takes.NOTHING, "the request is for another key than KEYGEN returned"),
        "lying-prove": Kind(Takes.NOTHING, "proofs are signed by another key"),
        "wrong-digest": Kind(Takes.NOTHING, "flash reads back other bytes than were written"),
        "wrong-digest-after-reset": Kind(Takes.NOTHING, "flash reads back other bytes after a reset"),
        "forgets-key": Kind(Takes.NOTHING, "another key is in flash after a reset"),
        "change-uid-after-reset": Kind(Takes.NOTHING, "another unit answers after a reset"),
        "flash-error": Kind(Takes.VERB, "writing flash fails in this verb"),
        "rng-error": Kind(Takes.NOTHING, "the random generator is not healthy"),
    }
)


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults of one virtual device, parsed: name -> what stands after its `=`."""

    rates: Mapping[str, float]
    verbs: Mapping[str, frozenset[Verb]]
    bytes: int | None
    flags: frozenset[str]

    def hits(self, name: str, verb: str | None) -> bool:
        """Whether the fault `name` is set for `verb`."""
        return verb in self.verbs.get(name, frozenset())


def parse_faults(texts: Iterable[str]) -> Faults:
    """`drop=0.1`, `silent-at=COMMIT`, `wrong-key` ...; Fault naming the first that is none."""
    rates: dict[str, float] = {}
    verbs: dict[str, frozenset[Verb]] = {}
    count: int | None = None
    flags: set[str] = set()
    for text in texts:
        name, _, value = text.partition("=")
        kind = FAULTS.get(name)
        if kind is None:
            raise Fault(f"there is no fault {name!r}", hint=f"one of: {', '.join(FAULTS)}")
        if kind.takes is Takes.RATE:
            rates[name] = _rate(name, value)
        elif kind.takes is Takes.VERB:
            verbs[name] = verbs.get(name, frozenset()) | {_verb(name, value)}
        elif kind.takes is Takes.BYTES:
            count = _count(name, value)
        elif value:
            raise Fault(f"the fault {name} takes no value", hint=f"write --fault {name}")
        else:
            flags.add(name)
    return Faults(MappingProxyType(rates), MappingProxyType(verbs), count, frozenset(flags))


def _rate(name: str, value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = -1.0
    if not 0.0 <= rate <= 1.0:
        raise Fault(f"the fault {name} takes a rate from 0 to 1", hint=f"for example: --fault {name}=0.1")
    return rate


def _verb(name: str, value: str) -> Verb:
    if value not in set(Verb):
        raise Fault(f"the fault {name} takes a verb", hint=f"one of: {', '.join(Verb)}")
    return Verb(value)


def _count(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 8 and 1 <= int(value) <= MAX_BYTES):
        raise Fault(f"the fault {name} takes a number of bytes from 1", hint=f"for example: --fault {name}=700")
    return int(value)


def parse_delays(texts: Iterable[str]) -> Mapping[Verb, float]:
    """`KEYGEN=2`, `RESET=3.5` ...: seconds from 0 to a minute; Fault naming the first that is none."""
    delays: dict[Verb, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not 0.0 <= seconds <= 60.0:
            raise Fault(f"the delay {text!r} has no seconds from 0 to 60", hint="for example: --delay KEYGEN=2")
        delays[_verb("--delay", name)] = seconds
    return MappingProxyType(delays)


NO_FAULTS = parse_faults(())


class FaultyBoard:
    """A board that behaves as its faults say; `boots` and `verb` are set by who runs the device."""

    def __init__(self, board: Board, faults: Faults) -> None:
        self._board = board
        self._faults = faults
        self.boots = 0
        self.verb: str | None = None
        self._other_key = b""

    def read_flash(self) -> Flash:
        """What the real board holds, changed by every fault that is due."""
        flash = self._board.read_flash()
        for name, change in _CHANGES.items():
            if name in self._faults.flags and change.is_due(self.boots, self.verb):
                flash = change.apply(self, flash)
        return flash

    def write_flash(self, flash: Flash) -> None:
        """Write, unless the fault is set for the verb being carried out."""
        if self._faults.hits("flash-error", self.verb):
            raise FlashFailure("injected")
        self._board.write_flash(flash)

    def random(self, length: int) -> bytes:
        """The real board's."""
        return self._board.random(length)

    def new_key(self, seed: bytes) -> bytes:
        """A key, unless the generator is ill."""
        if "rng-error" in self._faults.flags:
            raise RngFailure("injected")
        return self._board.new_key(seed)

    @property
    def has_network(self) -> bool:
        """The real board's."""
        return self._board.has_network

    def publish(self, host: str, port: int, topic: str) -> None:
        """The real board's."""
        self._board.publish(host, port, topic)

    def public_key(self, private_key: bytes) -> bytes:
        """The real board's."""
        return self._board.public_key(private_key)

    def sign(self, private_key: bytes, message: bytes) -> bytes:
        """A signature, by the right key or by another."""
        lies = "lying-prove" in self._faults.flags
        return self._board.sign(self.other_key() if lies else private_key, message)

    def request(self, private_key: bytes, common_name: str) -> bytes:
        """A request, for the right key or another, with its signature whole or broken."""
        wrong = "wrong-key" in self._faults.flags
        csr = self._board.request(self.other_key() if wrong else private_key, common_name)
        # The last byte belongs to the signature's `s`: the request still parses and no longer verifies.
        return csr[:-1] + bytes([csr[-1] ^ 1]) if "bad-csr-signature" in self._faults.flags else csr

    def certified_key(self, chain: bytes) -> bytes | None:
        """The real board's."""
        return self._board.certified_key(chain)

    def other_key(self) -> bytes:
        """A key that is not the one in flash; the same for as long as the board lives."""
        self._other_key = self._other_key or self._board.new_key(b"")
        return self._other_key


@dataclass(frozen=True, slots=True)
class _Change:
    is_due: Callable[[int, str | None], bool]
    apply: Callable[[FaultyBoard, Flash], Flash]


def _rotten(_: FaultyBoard, flash: Flash) -> Flash:
    rotten = {obj: bytes([raw[0] ^ 1]) + raw[1:] for obj, raw in flash.objects.items()}
    return replace(flash, objects=MappingProxyType[Obj, bytes](rotten))


def _other_uid(_: FaultyBoard, flash: Flash) -> Flash:
    return replace(flash, uid=flash.uid[::-1] if flash.uid != flash.uid[::-1] else f"not-{flash.uid}"[:64])


def _other_key(board: FaultyBoard, flash: Flash) -> Flash:
    return replace(flash, private_key=board.other_key()) if flash.private_key else flash


# What flash seems to hold, and when. HASH and READ alone see rotten objects, so that a later write keeps the
# good ones: the fault is in the reading.
_READING = frozenset({Verb.HASH, Verb.READ})
_CHANGES: Mapping[str, _Change] = MappingProxyType(
    {
        "wrong-digest": _Change(lambda boots, verb: verb in _READING, _rotten),
        "wrong-digest-after-reset": _Change(lambda boots, verb: boots > 1 and verb in _READING, _rotten),
        "change-uid-after-reset": _Change(lambda boots, verb: boots > 1, _other_uid),
        "forgets-key": _Change(lambda boots, verb: boots > 1, _other_key),
    }
)
