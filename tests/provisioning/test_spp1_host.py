"""The host's side of SPP/1: stop and wait, bounded repetitions, and nothing a device says breaks it."""

import hashlib
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtls.errors import Fault
from provisioning.spp1 import fields
from provisioning.spp1.frames import Frame, FrameReader, FrameTooLong, LogLine, encode_frame
from provisioning.spp1.host import (
    DeviceRefused,
    DeviceSilent,
    Hello,
    Reply,
    ReplyFault,
    Requester,
    Stray,
    Working,
    read_csr,
    write_object,
)
from provisioning.spp1.protocol import TIMING, ErrorCode, Obj, State, Verb

SID = fields.encode_blob(b"\x01" * 16)
HELLO_REPLY: dict[str, Any] = {
    "proto": 1, "sid": SID, "max_line": 512, "chunk": 240, "caps": [], "state": "BLANK",
    "boot_id": fields.encode_blob(b"\x02" * 16),
}  # fmt: skip


def sent(data: bytes) -> dict[str, Any]:
    """The message in the bytes of one request."""
    (frame,) = FrameReader(4096).feed(data)
    assert isinstance(frame, Frame)
    return dict(frame.message)


def answer(request: bytes, **values: object) -> bytes:
    message = sent(request)
    return encode_frame({"s": message["s"], "i": message["i"], **values})


def in_session() -> Requester:
    requester = Requester()
    data = requester.request(Verb.HELLO, now=0.0)
    (reply,) = requester.feed(answer(data, r="ok", **HELLO_REPLY))
    assert isinstance(reply, Reply)
    requester.open_session(Hello.parse(reply.message))
    return requester


def test_a_request_carries_the_session_and_a_growing_number() -> None:
    """HELLO has no session; what follows has the one that HELLO gave, and `i` never repeats."""
    requester = Requester()
    hello = requester.request(Verb.HELLO, {"nonce": "x"}, now=0.0)
    (reply,) = requester.feed(answer(hello, r="ok", **HELLO_REPLY))
    assert isinstance(reply, Reply)
    requester.open_session(Hello.parse(reply.message))
    ident = requester.request(Verb.IDENT, now=0.0)

    assert sent(hello) == {"s": "", "i": 1, "c": "HELLO", "nonce": "x"}
    assert sent(ident) == {"s": SID, "i": 2, "c": "IDENT"}


def test_an_ok_ends_the_request() -> None:
    """The reply comes out once; the same frame again is a stray, and no timer runs."""
    requester = in_session()
    data = requester.request(Verb.HASH, now=10.0)
    reply = answer(data, r="ok", sha256="x")

    assert requester.feed(reply) == [Reply(Verb.HASH, {"s": SID, "i": 2, "r": "ok", "sha256": "x"})]
    assert [type(event) for event in requester.feed(reply)] == [Stray]
    assert requester.deadline == math.inf


@pytest.mark.parametrize("code", ErrorCode)
def test_an_error_is_typed(code: ErrorCode) -> None:
    """Every code of the protocol arrives as itself, with the verb and the device's words in one sentence."""
    requester = in_session()
    data = requester.request(Verb.COMMIT, now=0.0)

    (refused,) = requester.feed(answer(data, r="err", e=code, m="flash worn"))

    assert isinstance(refused, DeviceRefused)
    assert (refused.verb, refused.code) == (Verb.COMMIT, code)
    assert str(refused) == f"the device answered COMMIT with {code} (flash worn)"


@pytest.mark.parametrize("values", [
    {"r": "err", "e": "E_NEW"}, {"r": "err"}, {"r": "err", "e": 7, "m": "\x1b[2J"}, {"r": "maybe"}, {"r": None},
])  # fmt: skip
def test_an_answer_of_no_known_kind_is_a_refusal(values: dict[str, object]) -> None:
    """What is not `ok` is never taken for it, and nothing unprintable is repeated."""
    requester = in_session()
    (refused,) = requester.feed(answer(requester.request(Verb.SEAL, now=0.0), **values))
    assert isinstance(refused, DeviceRefused)
    assert refused.code is None
    assert str(refused).isprintable()


@pytest.mark.parametrize(
    "change", [{"s": "other"}, {"s": ""}, {"i": 1}, {"i": 99}, {"i": True}, {"i": "2"}, {"i": None}]
)
def test_a_reply_of_another_request_is_ignored(change: dict[str, object]) -> None:
    """Wrong `s` or `i`: a stray, the request stays in flight, and the true reply still ends it."""
    requester = in_session()
    data = requester.request(Verb.IDENT, now=0.0)
    message = sent(data)
    wrong = {"s": message["s"], "i": message["i"], "r": "ok", **change}

    assert [type(event) for event in requester.feed(encode_frame(wrong))] == [Stray]
    assert requester.deadline == TIMING[Verb.IDENT].timeout_s
    assert [type(event) for event in requester.feed(answer(data, r="ok"))] == [Reply]


def test_our_own_echo_is_no_reply() -> None:
    """A loop-back plug repeats the request: it has no `r`."""
    requester = in_session()
    data = requester.request(Verb.IDENT, now=0.0)
    assert [type(event) for event in requester.feed(data)] == [Stray]


@pytest.mark.parametrize("verb", [verb for verb in Verb if verb is not Verb.HELLO])
def test_a_silent_device_is_asked_as_often_as_the_table_says(verb: Verb) -> None:
    """The same bytes after each time-out, then DeviceSilent."""
    requester, timing, now = in_session(), TIMING[verb], 100.0
    data = requester.request(verb, now=now)
    for _ in range(timing.tries - 1):
        assert requester.deadline == now + timing.timeout_s
        now = requester.deadline
        assert requester.on_timeout(now) == data
    with pytest.raises(DeviceSilent) as silent:
        requester.on_timeout(requester.deadline)
    assert silent.value.verb is verb
    assert silent.value.hint


def test_a_late_reply_of_a_given_up_request_is_ignored() -> None:
    """The next request has another `i`."""
    requester = in_session()
    late = requester.request(Verb.RESET, now=0.0)
    with pytest.raises(DeviceSilent):
        requester.on_timeout(2.0)
    current = requester.request(Verb.STATUS, now=2.0)
    events = requester.feed(answer(late, r="ok") + answer(current, r="ok"))
    assert [type(event) for event in events] == [Stray, Reply]


def test_busy_extends_the_timer_by_what_it_says() -> None:
    """`t` milliseconds, more than once, without a new try."""
    requester = in_session()
    data = requester.request(Verb.COMMIT, now=0.0)
    for expected in (13.0, 16.0):
        assert [type(event) for event in requester.feed(answer(data, r="busy", t=3000))] == [Working]
        assert requester.deadline == expected
    assert [type(event) for event in requester.feed(answer(data, r="ok"))] == [Reply]


def test_busy_for_ever_is_given_up() -> None:
    """The sum of all extensions is bounded, so the deadline comes."""
    requester = in_session()
    data = requester.request(Verb.COMMIT, now=0.0)
    for _ in range(1000):
        requester.feed(answer(data, r="busy", t=60000))
    assert requester.deadline == TIMING[Verb.COMMIT].timeout_s + TIMING[Verb.COMMIT].busy_total_s


@pytest.mark.parametrize("t", [0, -1, 60001, 1.5, True, "3000", None])
def test_a_busy_without_a_usable_time_extends_nothing(t: object) -> None:
    """A stray, and the deadline stays."""
    requester = in_session()
    data = requester.request(Verb.COMMIT, now=0.0)
    assert [type(event) for event in requester.feed(answer(data, r="busy", t=t))] == [Stray]
    assert requester.deadline == 10.0


def test_hello_starts_again_with_the_shortest_line() -> None:
    """After a reset the device's buffer is 256 bytes again, and there is no session."""
    requester = in_session()
    assert (requester.max_line, requester.reader.max_line) == (512, 512)
    data = requester.request(Verb.HELLO, now=0.0)
    assert sent(data)["s"] == ""
    assert (requester.max_line, requester.reader.max_line) == (256, 256)
    with pytest.raises(FrameTooLong):
        requester.request(Verb.HELLO, {"station": "x" * 300}, now=0.0)


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_no_bytes_break_the_host(chunks: list[bytes]) -> None:
    """Arbitrary bytes never raise and never answer a request."""
    requester = in_session()
    requester.request(Verb.KEYGEN, now=0.0)
    for chunk in chunks:
        assert all(isinstance(event, LogLine | Stray) for event in requester.feed(chunk))


@given(st.data())
def test_any_split_gives_the_same_events(data: st.DataObject) -> None:
    """Busy, log, a stray and the reply come out the same, however the bytes are cut."""
    whole, split = in_session(), in_session()
    request = whole.request(Verb.SEAL, now=0.0)
    assert split.request(Verb.SEAL, now=0.0) == request
    stream = answer(request, r="busy", t=1000) + b"I log\n" + encode_frame({"s": "x"}) + answer(request, r="ok")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    events: list[object] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += split.feed(stream[start:end])
    assert events == whole.feed(stream)
    assert split.deadline == whole.deadline


# --- replies with content


@pytest.mark.parametrize(("name", "value"), [
    ("proto", 2), ("proto", [1]), ("max_line", 255), ("max_line", 4097), ("chunk", 0), ("chunk", 2049), ("sid", ""),
    ("sid", fields.encode_blob(b"\x01" * 15)), ("boot_id", "x"), ("state", "READY"), ("caps", "import_key"),
    ("caps", ["x"] * 17),
])  # fmt: skip
def test_a_hello_beyond_the_limits_is_refused(name: str, value: object) -> None:
    """A device cannot talk the host into other sizes than the protocol's."""
    with pytest.raises(fields.FieldFault, match=name):
        Hello.parse({**HELLO_REPLY, name: value})


def test_a_chunk_that_does_not_fit_the_line_is_cut_to_it() -> None:
    """A device that promises more than its line holds is not believed."""
    hello = Hello.parse({**HELLO_REPLY, "max_line": 256, "chunk": 2048, "new_in_2030": {"a": 1.5}})
    assert hello.chunk == 108
    assert hello.state is State.BLANK


# --- procedures

CSR = bytes(range(256)) * 2


class Scripted:
    """A `call` that answers from a table and remembers what it was asked."""

    def __init__(self, replies: Callable[[Verb, dict[str, Any]], dict[str, Any]]) -> None:
        self._replies = replies
        self.asked: list[tuple[Verb, dict[str, Any]]] = []

    def __call__(self, verb: Verb, **values: Any) -> Reply:
        self.asked.append((verb, values))
        return Reply(verb, self._replies(verb, values))


def honest_csr(verb: Verb, values: dict[str, Any]) -> dict[str, Any]:
    if verb is Verb.CSR:
        return {"len": len(CSR), "sha256": hashlib.sha256(CSR).hexdigest()}
    return {"off": values["off"], "b64": fields.encode_blob(CSR[values["off"] :][: values["n"]])}


def test_a_request_is_read_in_chunks() -> None:
    """512 bytes at 200 a time are three READs, and the digest is compared."""
    call = Scripted(honest_csr)
    assert read_csr(call, 200, slot="id", cn="x") == CSR
    assert [values["n"] for verb, values in call.asked if verb is Verb.READ] == [200, 200, 112]


@pytest.mark.parametrize("lie", [
    {"len": 1025}, {"len": 0}, {"len": 10**9}, {"sha256": "0" * 64}, {"b64": ""}, {"off": 7},
    {"b64": fields.encode_blob(bytes(201))},
], ids=str)  # fmt: skip
def test_a_device_that_lies_about_its_request_is_refused(lie: dict[str, Any]) -> None:
    """Too long, empty, endless, shifted, or with another digest: a fault after a bounded number of READs."""

    def replies(verb: Verb, values: dict[str, Any]) -> dict[str, Any]:
        honest = honest_csr(verb, values)
        return {**honest, **{name: value for name, value in lie.items() if name in honest}}

    call = Scripted(replies)
    with pytest.raises((fields.FieldFault, ReplyFault)):
        read_csr(call, 200, slot="id", cn="x")
    assert len(call.asked) <= 4


def test_a_device_that_gives_one_byte_at_a_time_is_still_bounded() -> None:
    """Short READs are allowed; their number cannot exceed the length."""

    def one_byte(verb: Verb, values: dict[str, Any]) -> dict[str, Any]:
        return honest_csr(verb, {**values, "n": 1})

    call = Scripted(one_byte)
    assert read_csr(call, 200, slot="id", cn="x") == CSR
    assert len(call.asked) == 1 + len(CSR)


def test_an_object_is_written_begin_data_commit_with_a_look_before_each_destructive_verb() -> None:
    """The whole conversation, and where identity is compared in it."""
    order: list[object] = []

    def replies(verb: Verb, values: dict[str, Any]) -> dict[str, Any]:
        order.append(verb)
        return {"off": values["off"] + len(fields.blob(values, "b64", most=100))} if verb is Verb.DATA else {}

    write_object(Scripted(replies), 100, Obj.CA, bytes(250), txn="t", before=lambda: order.append("identity"))

    assert order == ["identity", Verb.BEGIN, Verb.DATA, Verb.DATA, Verb.DATA, "identity", Verb.COMMIT]


class Stage:
    """The device's side of DATA behind a line that loses requests and replies; `lost` draws which."""

    def __init__(self, lost: Callable[[int], str]) -> None:
        self.lost = lost
        self.content = b""
        self.sizes: list[int] = []

    def __call__(self, verb: Verb, **values: Any) -> Reply:
        if verb is not Verb.DATA:
            return Reply(verb, {})
        piece = fields.blob(values, "b64", most=2048)
        self.sizes.append(len(piece))
        loss = self.lost(len(piece))
        if loss != "request":
            end = values["off"] + len(piece)
            if end > len(self.content):
                assert values["off"] == len(self.content), "E_ARG: a gap, or old and new bytes in one"
                self.content += piece
            assert self.content[values["off"] : end] == piece
        if loss:
            raise DeviceSilent(verb, 3)
        return Reply(verb, {"off": values["off"] + len(piece)})


@given(st.randoms(use_true_random=False), st.integers(48, 2000), st.integers(1, 4000))
def test_pieces_whose_replies_are_lost_are_repeated_in_parts_that_fit(
    drawn: random.Random, chunk: int, length: int
) -> None:
    """Whatever is lost, the device is never asked for a gap, and what it holds in the end is the object."""
    content = bytes(number % 251 for number in range(length))
    # The shortest frames get through, the longer the rarer.
    stage = Stage(lambda size: drawn.choice(["request", "reply", ""]) if size > 48 else "")
    write_object(stage, chunk, Obj.CA, content, txn="t", before=lambda: None)
    assert stage.content == content


def test_silence_at_the_shortest_piece_ends_the_writing() -> None:
    """Half as many bytes each time, and then it is the device that is silent."""
    stage = Stage(lambda size: "request")
    with pytest.raises(DeviceSilent):
        write_object(stage, 700, Obj.CA, bytes(700), txn="t", before=lambda: None)
    assert stage.sizes == [700, 350, 175, 87, 48]


def test_a_request_is_read_in_shorter_pieces_after_silence() -> None:
    """READ as well: the reply is the long frame there."""
    sizes: list[int] = []

    def loses_long_replies(verb: Verb, values: dict[str, Any]) -> dict[str, Any]:
        if verb is Verb.READ:
            sizes.append(values["n"])
            if values["n"] > 100:
                raise DeviceSilent(verb, 3)
        return honest_csr(verb, values)

    assert read_csr(Scripted(loses_long_replies), 200, slot="id", cn="x") == CSR
    assert sizes[:2] == [200, 100]


@pytest.mark.parametrize("off", [0, 99, 101, None])
def test_a_device_that_counts_otherwise_is_refused_before_commit(off: object) -> None:
    """A wrong next `off` means that bytes were lost: nothing is committed."""
    call = Scripted(lambda verb, values: {"off": off})
    with pytest.raises(fields.FieldFault):
        write_object(call, 100, Obj.CA, bytes(250), txn="t", before=lambda: None)
    assert Verb.COMMIT not in [verb for verb, _ in call.asked]


def test_a_key_made_on_the_host_is_never_sent() -> None:
    """import_key is not offered, whatever the device can do."""
    call = Scripted(lambda verb, values: {})
    with pytest.raises(Fault, match="not offered"):
        write_object(call, 100, Obj.KEY, b"secret", txn="t", before=lambda: None)
    assert call.asked == []
