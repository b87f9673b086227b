"""SPP/1 as data: verbs, states, errors, sizes, time limits, and the bytes that a PROVE signature covers.

Theory: one request is in flight. The host resends it (same `i`, same bytes) when its timer ends; the device
replays its stored reply, so a request happens at most once within a boot. After a reset the host resends
nothing: it asks (HELLO, IDENT, STATUS) and continues from the answer, which is why every verb that writes is
idempotent in flash. The device's states and their moves are TRANSITIONS below; a missing entry is a refusal.

Nothing here knows a port, a clock or a key. The CRC is no MAC, and `sn` and `uid` are the device's own word.
Specification: docs/spp1.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import MappingProxyType

PROTOCOL_VERSION = 1


class Verb(StrEnum):
    """What a host may ask; the value of a request's `c`."""

    HELLO = "HELLO"
    IDENT = "IDENT"
    STATUS = "STATUS"
    KEYGEN = "KEYGEN"
    CSR = "CSR"
    PROVE = "PROVE"
    BEGIN = "BEGIN"
    DATA = "DATA"
    COMMIT = "COMMIT"
    READ = "READ"
    HASH = "HASH"
    TIME = "TIME"
    RESET = "RESET"
    SEAL = "SEAL"
    ERASE = "ERASE"
    CONNECT = "CONNECT"


VERBS = frozenset(Verb)


class Kind(StrEnum):
    """What a reply is; the value of its `r`."""

    OK = "ok"
    ERROR = "err"
    BUSY = "busy"


class State(StrEnum):
    """How far a device is. BLANK, KEYED, CERTED and SEALED live in flash, STAGED and VERIFIED in RAM."""

    BLANK = "BLANK"
    KEYED = "KEYED"
    STAGED = "STAGED"
    CERTED = "CERTED"
    VERIFIED = "VERIFIED"
    SEALED = "SEALED"


class ErrorCode(StrEnum):
    """Why a device said no; the value of an error reply's `e`."""

    VERSION = "E_VERSION"
    UNSUPPORTED = "E_UNSUPPORTED"
    SESSION = "E_SESSION"
    STATE = "E_STATE"
    ARG = "E_ARG"
    LEN = "E_LEN"
    HASH = "E_HASH"
    KEY_MISMATCH = "E_KEYMISMATCH"
    NO_SPACE = "E_NOSPACE"
    FLASH = "E_FLASH"
    RNG = "E_RNG"
    FORBIDDEN = "E_FORBIDDEN"
    SEALED = "E_SEALED"
    BUSY = "E_BUSY"
    NET = "E_NET"


class Obj(StrEnum):
    """What can be written or read by name; the value of `obj`. `csr` is read only, `key` is never read."""

    CHAIN = "chain"
    CA = "ca"
    CONF = "conf"
    CSR = "csr"
    KEY = "key"


class Capability(StrEnum):
    """What a device may declare in HELLO's `caps` beyond the base protocol."""

    IMPORT_KEY = "import_key"
    NET = "net"  # it has a network of its own and serves CONNECT


class SealPolicy(StrEnum):
    """What SEAL's `policy` leaves possible: nothing, or ERASE with the hardware serial as confirmation."""

    FINAL = "final"
    ERASABLE = "erasable"


class Stage(IntEnum):
    """The byte that binds a PROVE signature to its place in the order of steps."""

    KEYED = 1  # after KEYGEN: the key that the CSR will name answers
    RESET = 2  # after RESET: the key survived a boot that began after the last COMMIT
    SEALED = 3  # after SEAL


ALGORITHM = "p256"
DEFAULT_SLOT = "id"

# --- sizes: what each side may say; a longer value is a protocol fault, not a value to be cut ---

SID_BYTES = 16
BOOT_ID_BYTES = 16
HELLO_NONCE_BYTES = 16
PROVE_NONCE_BYTES = 32
SEED_BYTES = 32
SHA256_BYTES = 32
P256_SPKI_BYTES = 91  # DER of an uncompressed P-256 SubjectPublicKeyInfo, RFC 5480 §2
MAX_SIGNATURE_BYTES = 72  # the longest DER ECDSA-Sig-Value over P-256
MAX_CSR_BYTES = 1024  # a P-256 request with a 64-character CN is about 250 bytes
MAX_TEXT_CHARS = 64  # model, hw, fw, sn, uid, station, cn, capabilities: printable ASCII
MAX_SLOT_CHARS = 16  # with it the longest KEYGEN still fits into INITIAL_MAX_LINE
MAX_TXN_CHARS = 32
MAX_UNIX_TIME = 2**53 - 1  # TIME's `unix`; JSON numbers are exact up to here
MAX_MESSAGE_CHARS = 120  # an error's `m`; for people, never parsed
MAX_LIST_ITEMS = 16  # caps, algs, slots, proto
MAX_OBJECT_BYTES: Mapping[Obj, int] = MappingProxyType(
    {
        Obj.CHAIN: 8192,  # leaf and one issuing CA as PEM are about 1.7 KiB
        Obj.CA: 8192,
        Obj.CONF: 2048,
        Obj.CSR: MAX_CSR_BYTES,
        Obj.KEY: 512,
    }
)
MIN_CHUNK_BYTES = 16
LARGEST_CHUNK_BYTES = 2048
DATA_OVERHEAD_BYTES = 112  # a DATA or READ frame without its base64, with room for every number in it
MAX_SEQUENCE = 2**31 - 1  # of `i`: a signed 32-bit integer on every device


def chunk_limit(max_line: int) -> int:
    """The most raw bytes whose base64 still fits into one DATA request or READ reply of `max_line` bytes."""
    return max(0, (max_line - DATA_OVERHEAD_BYTES) // 4 * 3)


# --- time ---


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the host waits for a reply, how often it sends, and how long `busy` may stretch it in all."""

    timeout_s: float = 2.0
    tries: int = 3
    busy_total_s: float = 60.0


# RESET is sent once: a resend could reach the next boot. Whether it happened is read from `boot_id`.
TIMING: Mapping[Verb, Timing] = MappingProxyType(
    dict.fromkeys(Verb, Timing())
    | {
        Verb.KEYGEN: Timing(timeout_s=30.0, busy_total_s=120.0),
        Verb.COMMIT: Timing(timeout_s=10.0),
        Verb.SEAL: Timing(timeout_s=10.0),
        Verb.CONNECT: Timing(timeout_s=30.0),
        Verb.RESET: Timing(tries=1),
    }
)
MAX_BUSY_MS = 60_000  # of one busy reply

# --- the device's states ---

_S = State
_ALWAYS = (Verb.HELLO, Verb.IDENT, Verb.STATUS)
_KEYED_STATES = (_S.KEYED, _S.STAGED, _S.CERTED, _S.VERIFIED)


def _stay(states: tuple[State, ...]) -> dict[State, tuple[State, ...]]:
    return {state: (state,) for state in states}


# Verb -> state before -> the states an `ok` may leave. A missing state is refused: E_SEALED in SEALED,
# E_STATE elsewhere. Further conditions (stage, txn, confirm, capability) are in docs/spp1.md, "Verbs".
TRANSITIONS: Mapping[Verb, Mapping[State, tuple[State, ...]]] = MappingProxyType(
    dict.fromkeys(_ALWAYS, _stay(tuple(State)))
    | {
        # `if_spki` naming the present key replaces it, and a replaced key takes its chain with it
        Verb.KEYGEN: {_S.BLANK: (_S.KEYED,)}
        | {state: (state, _S.KEYED) for state in _KEYED_STATES}
        | {_S.KEYED: (_S.KEYED,)},
        Verb.CSR: _stay(_KEYED_STATES),
        # stage 1 from KEYED on; stage 2 from CERTED, and only in a boot later than the last COMMIT's; 3 in SEALED
        Verb.PROVE: _stay((_S.KEYED, _S.STAGED, _S.VERIFIED, _S.SEALED)) | {_S.CERTED: (_S.CERTED, _S.VERIFIED)},
        Verb.BEGIN: dict.fromkeys(_KEYED_STATES, (_S.STAGED,)),
        Verb.DATA: _stay((_S.STAGED,)),
        # CERTED once a chain is in flash; `ca` or `conf` before it lead back to KEYED. Outside STAGED only
        # the last committed txn is answered ok, and changes nothing.
        Verb.COMMIT: {_S.STAGED: (_S.CERTED, _S.KEYED)} | _stay((_S.KEYED, _S.CERTED, _S.VERIFIED)),
        Verb.READ: _stay((_S.BLANK, *_KEYED_STATES)),
        Verb.HASH: _stay(tuple(State)),
        Verb.TIME: _stay((_S.BLANK, *_KEYED_STATES)),
        Verb.RESET: {
            _S.BLANK: (_S.BLANK,),
            _S.KEYED: (_S.KEYED,),
            _S.STAGED: (_S.KEYED, _S.CERTED),
            _S.CERTED: (_S.CERTED,),
            _S.VERIFIED: (_S.CERTED,),
        },
        Verb.SEAL: {_S.VERIFIED: (_S.SEALED,), _S.SEALED: (_S.SEALED,)},
        # only with the capability `net`: without it E_UNSUPPORTED
        Verb.CONNECT: {_S.VERIFIED: (_S.VERIFIED,)},
        # in SEALED only when SEAL's policy was `erasable`
        Verb.ERASE: dict.fromkeys(State, (_S.BLANK,)),
    }
)

# What must not hit the wrong unit: the host reads IDENT again and compares it before each of these.
DESTRUCTIVE = frozenset({Verb.KEYGEN, Verb.BEGIN, Verb.COMMIT, Verb.RESET, Verb.SEAL, Verb.ERASE})


def refusal_code(state: State) -> ErrorCode:
    """The error for a verb that TRANSITIONS does not hold for `state`."""
    return ErrorCode.SEALED if state is State.SEALED else ErrorCode.STATE


# --- proof of possession ---

PROVE_CONTEXT = b"SPP1-PROVE-v1\0"


def prove_message(
    stage: int, sid: bytes, nonce: bytes, boot_id: bytes, uid: str, sn: str, slot: str, spki_sha256: bytes
) -> bytes:
    """The bytes that PROVE signs (ECDSA-P256-SHA256): the context, the stage byte, then every field with a
    16-bit big-endian length in front, so that no two sets of fields give the same bytes.

    `sid`, `nonce`, `boot_id` and `spki_sha256` are raw bytes, `uid`, `sn` and `slot` the ASCII of the texts.
    """
    texts = (uid.encode("ascii"), sn.encode("ascii"), slot.encode("ascii"))
    parts = (sid, nonce, boot_id, *texts, spki_sha256)
    return PROVE_CONTEXT + bytes([stage]) + b"".join(len(part).to_bytes(2, "big") + part for part in parts)
