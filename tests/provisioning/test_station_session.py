"""A conversation with a device that means no good, or is none: bounded, one sentence, never PASS."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_sim.simulated_board import SimulatedBoard, new_flash
from mtls.errors import Fault
from provisioning.burning import Step, burn
from provisioning.ca import CertificateAuthority
from provisioning.ledger import UnitState
from provisioning.port import PortFault
from provisioning.session import STEP_LIMIT_S, Session
from provisioning.spp1 import fields
from provisioning.spp1.frames import Frame, FrameReader, encode_frame
from provisioning.spp1.protocol import Verb
from provisioning.trace import MAX_TRACE_BYTES, Trace
from tests.provisioning.station_bench import Bench, open_bench

Answer = Callable[[dict[str, Any]], bytes]


@dataclass
class ScriptedPort:
    """A port that answers each frame by a function; time passes only while nothing comes."""

    answer: Answer
    name: str = "/dev/bench0"
    now: float = 0.0
    byte_s: float = 0.0
    waiting: bytearray = field(default_factory=bytearray)
    reader: FrameReader = field(default_factory=lambda: FrameReader(4096))

    def clock(self) -> float:
        return self.now

    def read(self, timeout_s: float) -> bytes:
        data = bytes(self.waiting)
        self.waiting.clear()
        self.now += len(data) * self.byte_s if data else timeout_s
        return data

    def write(self, data: bytes) -> float:
        for line in self.reader.feed(data):
            if isinstance(line, Frame):
                self.waiting += self.answer(dict(line.message))
        return 0.0

    def reopen(self, timeout_s: float) -> None:
        raise PortFault(f"{self.name} is gone")


def reply_to(request: dict[str, Any], **values: object) -> bytes:
    return encode_frame({"s": request["s"], "i": request["i"], "r": "ok", **values})


def hello_reply(request: dict[str, Any]) -> bytes:
    blob = fields.encode_blob(bytes(16))
    return reply_to(
        request, proto=1, sid=blob, max_line=4096, chunk=2048, caps=["import_key"], state="BLANK", boot_id=blob
    )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A station with a CA of its own."""
    with open_bench(tmp_path) as bench:
        yield bench


def burn_on(port: ScriptedPort, ca: CertificateAuthority, trace: Trace | None = None, station: str = "line-a") -> Any:
    return burn(port, ca, ca.ledger, station=station, trace=trace, clock=port.clock)


# --- a port on which no device answers


@pytest.mark.parametrize(("heard", "words"), [
    (b"", "heard nothing"),
    (b"login: ", "heard 21 bytes"),
    (b"\x00\xff\x80" * 40, "heard 360 bytes"),
    (b"AT\r\nOK\r\n", "heard 24 bytes"),
], ids=["nothing", "a login", "another baud rate", "a modem"])  # fmt: skip
def test_a_port_that_is_no_device_is_one_sentence(bench: Bench, heard: bytes, words: str) -> None:
    """FAIL at hello after three tries, naming the port and what was heard, with a hint."""
    port = ScriptedPort(lambda request: heard)

    verdict = burn_on(port, bench.ca)

    assert (verdict.passed, verdict.step) == (False, Step.HELLO)
    assert verdict.reason == f"no device on /dev/bench0 answers SPP/1 ({words})"
    assert "baud" in verdict.hint
    assert port.now == pytest.approx(6.0)
    assert bench.ca.ledger.units() == []


def test_a_loop_back_plug_is_no_device(bench: Bench) -> None:
    """Our own echo has a right CRC and no answer in it."""
    verdict = burn_on(ScriptedPort(encode_frame), bench.ca)
    assert (verdict.passed, verdict.step) == (False, Step.HELLO)


def test_a_device_of_another_version_says_so(bench: Bench) -> None:
    """E_VERSION arrives in the verdict as what it is."""
    port = ScriptedPort(
        lambda request: encode_frame({"s": "", "i": request["i"], "r": "err", "e": "E_VERSION", "m": "proto 2"})
    )
    assert "HELLO with E_VERSION (proto 2)" in burn_on(port, bench.ca).reason


@pytest.mark.parametrize("station", ["", "x" * 65, "Straße", "a\nb"])
def test_a_station_name_that_cannot_travel_is_refused(bench: Bench, station: str) -> None:
    """Before a byte is sent."""
    port = ScriptedPort(hello_reply)
    verdict = burn_on(port, bench.ca, station=station)
    assert (verdict.passed, verdict.step) == (False, Step.HELLO)
    assert "--station" in verdict.hint
    assert port.waiting == b""


def test_a_port_that_dies_is_a_verdict_too(bench: Bench) -> None:
    """The cable is pulled in the middle: FAIL with the port's sentence, and the row waits to be continued."""
    simulated = bench.port(SimulatedBoard(new_flash("SN-0001")))
    read = simulated.read

    def pulled(timeout_s: float) -> bytes:
        if len(simulated.sent) > 12:
            raise PortFault("/dev/bench0 went away (the device is disconnected)", hint="plug it in")
        return read(timeout_s)

    simulated.read = pulled  # type: ignore[method-assign]
    verdict = bench.burn(simulated)
    assert (verdict.passed, verdict.hint) == (False, "plug it in")
    assert [unit.state.value for unit in bench.ca.ledger.units()] == ["issued"]


# --- a device that wastes time


def session_on(port: ScriptedPort) -> Session:
    return Session(port, station="line-a", trace=Trace(), clock=port.clock)


def test_a_log_flood_does_not_hold_the_station() -> None:
    """A device that only ever logs is silent: three tries, then the sentence, though bytes never stop coming."""
    port = ScriptedPort(lambda request: b"", byte_s=1e-4)
    read = port.read
    port.read = lambda timeout_s: (port.waiting.extend(b"I am fine\n" * 50), read(timeout_s))[1]  # type: ignore[method-assign, func-returns-value]

    with pytest.raises(Fault, match="answers SPP/1"):
        session_on(port).connect()

    assert 6.0 <= port.now < 7.0


def test_a_step_ends_when_its_time_is_over() -> None:
    """Busy within its own bounds, request after request, still ends with the step."""

    def answer(request: dict[str, Any]) -> bytes:
        if request["c"] == Verb.HELLO:
            return hello_reply(request)
        return encode_frame({"s": request["s"], "i": request["i"], "r": "busy", "t": 60000})

    port = ScriptedPort(answer)
    session = session_on(port)
    session.connect()
    session.begin_step("a step", limit_s=20.0)
    with pytest.raises(Fault, match="longer than a step may take"):
        session.call(Verb.KEYGEN)
    assert port.now == pytest.approx(20.0, abs=1.0)
    assert STEP_LIMIT_S >= 210.0


# --- a device that says anything

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 2**40), st.text(max_size=70), st.just("0" * 64)),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
NAMES = [
    *("model", "hw", "fw", "sn", "uid", "rng", "algs", "spki", "existing", "sig", "len", "sha256"),
    *("off", "b64", "state", "sid", "boot_id", "sealed", "e", "m", "t", "r"),
]
answers = st.lists(st.dictionaries(st.sampled_from(NAMES), json_values, max_size=8), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers, st.booleans())
def test_no_answers_crash_a_burn_or_make_it_pass(bench: Bench, scripted: list[dict[str, Any]], greets: bool) -> None:
    """Valid frames with arbitrary content end in FAIL with a printable sentence, whatever they say."""
    rest = iter(scripted)

    def answer(request: dict[str, Any]) -> bytes:
        if request["c"] == Verb.HELLO and greets:
            return hello_reply(request)
        message = {"s": request["s"], "i": request["i"], "r": "ok", **next(rest, {"r": "err"})}
        return encode_frame(message, max_line=100_000)

    verdict = burn_on(ScriptedPort(answer), bench.ca)

    assert not verdict.passed
    assert verdict.reason.isprintable()
    assert "program" not in verdict.hint  # no exception of ours behind it


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 40), st.sampled_from([*NAMES, "s", "i", "r", "slots", "max_line", "chunk"]), json_values)
def test_one_lie_of_a_good_device_never_makes_a_wrong_pass(bench: Bench, at: int, name: str, value: object) -> None:
    """One field of one reply is something else, CRC included: no crash, and PASS only for a sealed device.

    A lie about the answer to a question that the burn does not ask (a reply without that field) is no lie.
    """
    board = SimulatedBoard(new_flash())
    port = bench.port(board)
    honest, reader, replies = port.read, FrameReader(4096), iter(range(10_000))

    def lying(timeout_s: float) -> bytes:
        lines = reader.feed(honest(timeout_s))
        frames = [dict(line.message) for line in lines if isinstance(line, Frame)]
        told = [{**frame, name: value} if next(replies) == at and name in frame else frame for frame in frames]
        return b"".join(encode_frame(frame, max_line=100_000) for frame in told)

    port.read = lying  # type: ignore[method-assign]

    verdict = bench.burn(port)

    assert verdict.reason.isprintable()
    assert "program" not in verdict.hint
    recorded = [unit.id for unit in bench.ca.ledger.units(state=UnitState.RECORDED)]
    assert verdict.passed == (verdict.unit_id in recorded)
    assert board.read_flash().seal_policy is not None or not verdict.passed


@pytest.mark.parametrize(
    ("name", "value", "step"),
    [
        ("existing", True, Step.KEYGEN),
        ("spki", fields.encode_blob(bytes(91)), Step.KEYGEN),
        ("algs", ["rsa2048"], Step.IDENT),
        ("sealed", False, Step.SEAL),
        ("sig", fields.encode_blob(bytes(70)), Step.PROVE_KEYED),
    ],
)
def test_what_a_device_claims_is_read(bench: Bench, name: str, value: object, step: Step) -> None:
    """A key it kept, a key that is none, no P-256, a seal it did not set, a signature that is none: FAIL there."""
    port, reader = bench.port(SimulatedBoard(new_flash("SN-0001"))), FrameReader(4096)
    honest = port.read

    def lying(timeout_s: float) -> bytes:
        frames = [dict(line.message) for line in reader.feed(honest(timeout_s)) if isinstance(line, Frame)]
        return b"".join(encode_frame({**frame, name: value} if name in frame else frame) for frame in frames)

    port.read = lying  # type: ignore[method-assign]

    verdict = bench.burn(port)

    assert (verdict.passed, verdict.step) == (False, step), verdict
    assert "program" not in verdict.hint


# --- the trace


def test_a_trace_is_bounded(tmp_path: Path) -> None:
    """A flood ends the trace with a remark, and the file stays within its limit."""
    with Trace.open(tmp_path / "trace") as trace:
        for number in range(2 * MAX_TRACE_BYTES // 1000):
            trace.note("x" * 1000, float(number))
    assert (tmp_path / "trace").stat().st_size <= MAX_TRACE_BYTES + 100
    assert "the trace ends here" in (tmp_path / "trace").read_text()[-100:]


def test_a_full_disk_ends_the_trace_and_not_the_burn(bench: Bench) -> None:
    """/dev/full takes no byte: the burn passes all the same."""
    with open("/dev/full", "w", buffering=1, encoding="utf-8") as full:  # noqa: PTH123
        trace = Trace(full)
        port = bench.port()
        assert burn(port, bench.ca, bench.ca.ledger, station="s", trace=trace, clock=port.clock).passed
        trace.close()


def test_a_trace_does_not_follow_a_link(tmp_path: Path) -> None:
    """A planted link cannot make the station append to another file."""
    (tmp_path / "victim").write_text("")
    (tmp_path / "trace").symlink_to(tmp_path / "victim")
    with pytest.raises(Fault, match="cannot write the trace"):
        Trace.open(tmp_path / "trace")


def test_a_verdict_is_plain_data(bench: Bench) -> None:
    """For --json: every value survives a round trip."""
    row = bench.burn(bench.port()).as_row()
    assert json.loads(json.dumps(row)) == row
    assert row["verdict"] == "PASS"
