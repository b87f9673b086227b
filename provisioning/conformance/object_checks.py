"""What docs/spp1.md, section 4, asks of BEGIN, DATA, COMMIT, READ, HASH and TIME: objects come whole or not at all."""

import hashlib
from collections.abc import Callable
from functools import partial

from mtls.keystore import new_key
from provisioning.conformance.checking import Check, NotAsked
from provisioning.conformance.key_checks import refusal
from provisioning.conformance.line import Failed
from provisioning.conformance.probe import CONF, Probe
from provisioning.possession import spki_der
from provisioning.spp1 import fields
from provisioning.spp1.protocol import MAX_OBJECT_BYTES, MAX_UNIX_TIME, Capability, ErrorCode, Obj, State, Verb

OTHER_CONF = b'{"id":"conformance","other":true}'
NO_DIGEST = "0" * 64
_STATE, _ARG = ErrorCode.STATE, ErrorCode.ARG


def _reads_as(probe: Probe, obj: Obj, content: bytes, after: str) -> None:
    if probe.read(obj, len(content)) != content:
        raise Failed(f"after {after} READ {obj} brings other bytes")


# --- whole objects ---


def _written(obj: Obj, probe: Probe) -> None:
    content = probe.chain() if obj is Obj.CHAIN else probe.ca if obj is Obj.CA else CONF
    probe.write(obj, content)
    _reads_as(probe, obj, content, "COMMIT")


def _chain_certifies(probe: Probe) -> None:
    probe.write(Obj.CHAIN, probe.chain())
    probe.is_in(State.CERTED, "COMMIT of a chain")


def _conf_does_not(probe: Probe) -> None:
    probe.write(Obj.CONF, CONF)
    probe.is_in(State.KEYED, "COMMIT of conf")


def _survives(probe: Probe) -> None:
    probe.write(Obj.CONF, CONF)
    probe.reset()
    _reads_as(probe, Obj.CONF, CONF, "a reset")


def _replaced(probe: Probe) -> None:
    probe.write(Obj.CONF, OTHER_CONF)
    probe.write(Obj.CONF, CONF)
    rest = fields.blob(probe.ok(Verb.READ, obj=Obj.CONF, off=len(CONF), n=1), "b64", most=1)
    if rest:
        raise Failed("bytes of the longer object before it are still there")


def _hash(probe: Probe) -> None:
    probe.write(Obj.CONF, CONF)
    if probe.digest(Obj.CONF) != hashlib.sha256(CONF).digest():
        raise Failed("HASH is not the digest of what was written")


# --- BEGIN ---


def _begin(probe: Probe) -> None:
    probe.begin(Obj.CONF, CONF)
    probe.is_in(State.STAGED, "BEGIN")


def _begin_keeps(probe: Probe) -> None:
    probe.write(Obj.CONF, CONF)
    probe.begin(Obj.CONF, OTHER_CONF)
    probe.send(OTHER_CONF)
    _reads_as(probe, Obj.CONF, CONF, "BEGIN and DATA without COMMIT")


def _begin_drops(probe: Probe) -> None:
    first = probe.begin(Obj.CONF, CONF)
    probe.begin(Obj.CONF, CONF)
    probe.send(CONF)
    probe.refused(_ARG, Verb.COMMIT, txn=first)


def _begin_ends_verified(probe: Probe) -> None:
    txn = probe.begin(Obj.CONF, CONF)
    probe.send(CONF)
    probe.ok(Verb.COMMIT, txn=txn)
    probe.is_in(State.CERTED, "COMMIT in VERIFIED")


def _begin_key(probe: Probe) -> None:
    if Capability.IMPORT_KEY in probe.session.capabilities:
        raise NotAsked("the device declares import_key")
    probe.refused(ErrorCode.FORBIDDEN, Verb.BEGIN, obj=Obj.KEY, len=1, sha256=NO_DIGEST, txn="k")


_PLAIN: dict[str, object] = {"obj": Obj.CONF, "len": len(CONF), "sha256": NO_DIGEST, "txn": "x"}
_BEGIN_ROWS: tuple[tuple[str, str, ErrorCode, dict[str, object]], ...] = (
    ("begin-csr", "BEGIN csr: E_ARG", _ARG, {"obj": Obj.CSR}),
    ("begin-unknown", "an unknown object: E_ARG", _ARG, {"obj": "firmware"}),
    ("begin-empty", "len 0: E_LEN", ErrorCode.LEN, {"len": 0}),
    ("begin-long", "longer than any object: E_NOSPACE", ErrorCode.NO_SPACE, {"len": MAX_OBJECT_BYTES[Obj.CONF] + 1}),
    ("begin-txn", "a txn of 33 characters: E_ARG", _ARG, {"txn": "x" * 33}),
)


# --- DATA ---


def _piece(offset: int, content: bytes) -> dict[str, object]:
    return {"off": offset, "b64": fields.encode_blob(content)}


def _data_says_next(probe: Probe) -> None:
    probe.begin(Obj.CONF, CONF)
    for offset in (0, 8):
        reply = probe.ok(Verb.DATA, **_piece(offset, CONF[offset : offset + 8]))
        if fields.integer(reply, "off") != offset + 8:
            raise Failed("off in the reply is not where the next DATA begins")


def _data_again(probe: Probe) -> None:
    probe.begin(Obj.CONF, CONF)
    probe.send(CONF)
    reply = probe.ok(Verb.DATA, **_piece(0, CONF[:8]))
    if fields.integer(reply, "off") != 8:
        raise Failed("bytes that are there already were not answered with the offset behind them")


def _data_refused(code: ErrorCode, offset: int, content: bytes, probe: Probe) -> None:
    """After the first eight bytes of conf."""
    probe.begin(Obj.CONF, CONF)
    probe.send(CONF[:8])
    probe.refused(code, Verb.DATA, **_piece(offset, content))


def _data_chunk(probe: Probe) -> None:
    content = bytes(probe.session.chunk + 1)
    probe.begin(Obj.CA, content)
    probe.refused(_ARG, Verb.DATA, **_piece(0, content))


_DATA_ROWS: tuple[tuple[str, str, ErrorCode, int, bytes], ...] = (
    ("data-gap", "a gap: E_ARG", _ARG, 9, CONF[9:]),
    ("data-other", "other bytes than are there: E_ARG", _ARG, 0, b"XXXXXXXX"),
    ("data-beyond", "beyond len: E_LEN", ErrorCode.LEN, 8, CONF[8:] + b"x"),
    ("data-empty", "no bytes at all: E_ARG", _ARG, 8, b""),
)


# --- COMMIT ---


def _commit_again(probe: Probe) -> None:
    probe.ok(Verb.COMMIT, txn=probe.write(Obj.CONF, CONF))


def _commit_unknown(probe: Probe) -> None:
    probe.refused(_ARG, Verb.COMMIT, txn="never")


def _commit_other(probe: Probe) -> None:
    probe.begin(Obj.CONF, CONF)
    probe.send(CONF)
    probe.refused(_ARG, Verb.COMMIT, txn="never")


def _commit_short(probe: Probe) -> None:
    txn = probe.begin(Obj.CONF, CONF)
    probe.send(CONF[:8])
    probe.refused(ErrorCode.LEN, Verb.COMMIT, txn=txn)


def _bad_commit(probe: Probe) -> None:
    """A COMMIT whose bytes do not have the digest that BEGIN announced."""
    txn = probe.begin(Obj.CONF, OTHER_CONF, sha256=NO_DIGEST)
    probe.send(OTHER_CONF)
    probe.refused(ErrorCode.HASH, Verb.COMMIT, txn=txn)


def _commit_closes(probe: Probe) -> None:
    _bad_commit(probe)
    probe.is_in(State.KEYED, "a COMMIT that failed")


def _commit_keeps(probe: Probe) -> None:
    probe.write(Obj.CONF, CONF)
    _bad_commit(probe)
    _reads_as(probe, Obj.CONF, CONF, "a COMMIT that failed")


def _commit_wrong(content: Callable[[Probe], bytes], probe: Probe) -> None:
    chain = content(probe)
    txn = probe.begin(Obj.CHAIN, chain)
    probe.send(chain)
    probe.refused(ErrorCode.KEY_MISMATCH, Verb.COMMIT, txn=txn)


def _foreign(probe: Probe) -> bytes:
    return probe.chain(spki_der(new_key().public_key()))


def _turned(probe: Probe) -> bytes:
    """The device's certificate second: the first one counts."""
    return probe.ca + probe.chain()


# --- READ and HASH ---


def _read_part(probe: Probe) -> None:
    probe.write(Obj.CONF, CONF)
    for offset, length in ((3, 5), (len(CONF) - 2, 8), (len(CONF), 4)):
        reply = probe.ok(Verb.READ, obj=Obj.CONF, off=offset, n=length)
        if fields.blob(reply, "b64", most=length) != CONF[offset : offset + length]:
            raise Failed(f"READ of {length} bytes from {offset} of {len(CONF)} brings others")


def _read_refused(offset: int, beyond_chunk: int, probe: Probe) -> None:
    probe.write(Obj.CONF, CONF)
    length = probe.session.chunk + 1 if beyond_chunk else 1
    probe.refused(_ARG, Verb.READ, obj=Obj.CONF, off=offset, n=length)


# --- TIME ---


def _time(probe: Probe) -> None:
    for unix in (1, 0):  # an earlier time changes nothing and is ok
        probe.ok(Verb.TIME, unix=unix, src="conformance")


_READ: dict[str, object] = {"off": 0, "n": 1}

OBJECT_CHECKS: tuple[Check, ...] = (
    *(Check(f"write-{o}", "4 COMMIT", f"{o} comes back as it was written", State.KEYED, partial(_written, o))
      for o in (Obj.CHAIN, Obj.CA, Obj.CONF)),
    Check("write-certed", "4", "the key's chain makes KEYED CERTED", State.KEYED, _chain_certifies),
    Check("write-keyed", "4", "conf alone leaves KEYED", State.KEYED, _conf_does_not),
    Check("write-boot", "4 COMMIT", "what was committed survives a boot", State.KEYED,
          _survives, ("write-conf", "reset")),
    Check("write-shorter", "4 COMMIT", "the object is replaced as a whole", State.KEYED, _replaced),
    Check("begin", "4 BEGIN", "a transaction is open: STAGED", State.KEYED, _begin),
    Check("begin-keeps", "4 BEGIN", "nothing changes before COMMIT", State.KEYED, _begin_keeps, ("write-conf",)),
    Check("begin-drops", "4 BEGIN", "an open transaction is dropped", State.KEYED, _begin_drops),
    Check("begin-verified", "4", "after a COMMIT it is not VERIFIED", State.VERIFIED, _begin_ends_verified,
          ("write-certed",)),
    Check("begin-key", "4 BEGIN", "a key from outside: E_FORBIDDEN", State.KEYED, _begin_key),
    *(refusal(name, "4 BEGIN", must, State.KEYED, code, Verb.BEGIN, _PLAIN | values)
      for name, must, code, values in _BEGIN_ROWS),
    Check("data", "4 DATA", "off says where the next DATA begins", State.KEYED, _data_says_next),
    Check("data-again", "4 DATA", "bytes that are there already: ok", State.KEYED, _data_again),
    *(Check(name, "4 DATA", must, State.KEYED, partial(_data_refused, code, offset, content))
      for name, must, code, offset, content in _DATA_ROWS),
    Check("data-chunk", "4 DATA", "more than chunk bytes: E_ARG", State.KEYED, _data_chunk),
    Check("commit-again", "4 COMMIT", "the last txn again: ok", State.KEYED, _commit_again),
    Check("commit-unknown", "4 COMMIT", "no transaction of that name: E_ARG", State.KEYED, _commit_unknown),
    Check("commit-other", "4 COMMIT", "not the open txn: E_ARG", State.KEYED, _commit_other),
    Check("commit-short", "4 COMMIT", "fewer bytes than len: E_LEN", State.KEYED, _commit_short),
    Check("commit-digest", "4 COMMIT", "another digest: E_HASH", State.KEYED, _bad_commit),
    Check("commit-closes", "4 COMMIT", "an error closes the transaction", State.KEYED,
          _commit_closes, ("commit-digest",)),
    Check("commit-keeps", "4 COMMIT", "an error keeps the old object", State.KEYED,
          _commit_keeps, ("commit-digest", "begin-keeps")),
    Check("commit-key", "4 COMMIT", "another key's chain: E_KEYMISMATCH", State.KEYED,
          partial(_commit_wrong, _foreign)),
    Check("commit-first", "4 COMMIT", "the chain's first certificate counts", State.KEYED,
          partial(_commit_wrong, _turned)),
    Check("commit-garbage", "4 COMMIT", "no certificate: E_KEYMISMATCH", State.KEYED,
          partial(_commit_wrong, lambda probe: b"no certificate")),
    Check("read", "4 READ", "READ brings what stands at off", State.KEYED, _read_part, ("write-conf", "write-shorter")),
    Check("read-beyond", "4 READ", "off beyond the end: E_ARG", State.KEYED, partial(_read_refused, len(CONF) + 1, 0)),
    Check("read-n", "4 READ", "n over chunk: E_ARG", State.KEYED, partial(_read_refused, 0, 1)),
    refusal("read-absent", "4 READ", "no such object there: E_STATE", State.BLANK, _STATE, Verb.READ,
            {"obj": Obj.CA, **_READ}, ("erase-objects",)),
    refusal("read-key", "4 READ", "a private key: E_FORBIDDEN", State.KEYED, ErrorCode.FORBIDDEN, Verb.READ,
            {"obj": Obj.KEY, **_READ}),
    Check("hash", "4 HASH", "HASH is the digest of what is in flash", State.KEYED, _hash, ("write-shorter",)),
    refusal("hash-absent", "4 HASH", "no such object there: E_STATE", State.BLANK, _STATE, Verb.HASH,
            {"obj": Obj.CONF}),
    refusal("hash-key", "4 HASH", "a private key: E_FORBIDDEN", State.KEYED, ErrorCode.FORBIDDEN, Verb.HASH,
            {"obj": Obj.KEY}),
    Check("time", "4 TIME", "TIME is ok, an earlier one too", State.BLANK, _time),
    refusal("time-large", "2", "unix over 2^53-1: E_ARG", State.BLANK, _ARG, Verb.TIME,
            {"unix": MAX_UNIX_TIME + 1, "src": "conformance"}),
)  # fmt: skip
