"""A whole device in its surroundings: boots, chatter, faults by name, telemetry. Time is an argument."""

import json
from typing import Any

import pytest

from device_sim.faults import FAULTS, NO_FAULTS, Takes, parse_faults
from device_sim.line_noise import CHATTER, LineNoise, Piece
from device_sim.simulated_board import SimulatedBoard, new_flash
from device_sim.simulation import HOST_QUIET_S, Simulation
from mtls.errors import Fault
from provisioning.spp1.protocol import State
from tests.device_sim.spp1_host import SERIAL, b64, frame, in_state, messages
from tests.support.pki import Pki

HELLO = frame({"s": "", "i": 1, "c": "HELLO", "proto": [1], "station": "t", "nonce": b64(b"n" * 16)})


class Bench:
    """A simulation, a clock and what came out."""

    def __init__(self, *faults: str, board: Any = None, **options: Any) -> None:
        self.now = 0.0
        self.board = board or SimulatedBoard(new_flash(SERIAL))
        self.simulation = Simulation(self.board, faults=parse_faults(faults), now=0.0, **options)
        self.sid = ""
        self.sequence = 1

    def wait(self, seconds: float) -> bytes:
        """Let time pass in small steps; what was written meanwhile."""
        end, out = self.now + seconds, b""
        while self.now < end:
            out += self.simulation.due(self.now)
            self.now += 0.01
        return out

    def send(self, data: bytes, seconds: float = 0.1) -> list[dict[str, Any]]:
        self.simulation.receive(data, self.now)
        return messages(self.wait(seconds))

    def hello(self, nonce: bytes = b"n" * 16) -> dict[str, Any] | None:
        hello = {"s": "", "i": self.sequence, "c": "HELLO", "proto": [1], "station": "t", "nonce": b64(nonce)}
        replies = self.send(frame(hello))
        if replies:
            self.sid = replies[0]["sid"]
        return replies[0] if replies else None

    def ask(self, verb: str, seconds: float = 0.1, **values: Any) -> dict[str, Any] | None:
        self.sequence += 1
        replies = self.send(frame({"s": self.sid, "i": self.sequence, "c": verb, **values}), seconds)
        return replies[-1] if replies else None


def test_a_boot_begins_with_a_log_that_is_no_frame() -> None:
    """Garbage, coloured log and an unfinished line come first, and the frame after them is whole."""
    bench = Bench()
    log = bench.wait(0.1)
    assert b"boot" in log
    assert not log.endswith(b"\n")
    assert messages(log) == []
    assert bench.hello() is not None


def test_log_stands_between_the_frames_of_a_healthy_device() -> None:
    """Every host must live with lines that begin anywhere."""
    bench = Bench()
    bench.hello()
    out = b""
    for sequence in range(2, 30):
        bench.simulation.receive(frame({"s": bench.sid, "i": sequence, "c": "STATUS"}), bench.now)
        out += bench.wait(0.05)
    assert len(messages(out)) == 28
    assert b"adc: value out of range" in out


def test_a_burned_device_speaks_when_no_host_does(pki: Pki) -> None:
    """Telemetry every interval, none for a while after a frame, and frames are still answered."""
    board = in_state(State.SEALED, pki).board
    bench = Bench(board=board, interval_s=0.5)
    lines = [json.loads(line) for line in bench.wait(6).split(b"\n") if line.startswith(b"{")]
    assert [line["sequence"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) >= 4
    assert lines[0]["sn"] == SERIAL
    reply = bench.hello()
    assert reply is not None
    assert reply["state"] == "SEALED"
    assert b'"sequence"' not in bench.wait(HOST_QUIET_S - 0.5)
    assert b'"sequence"' in bench.wait(2)


@pytest.mark.parametrize("state", [State.BLANK, State.KEYED])
def test_a_device_without_a_certificate_has_nothing_to_say(state: State, pki: Pki) -> None:
    """The twin: before CERTED there is no telemetry."""
    bench = Bench(board=in_state(state, pki).board, interval_s=0.1)
    assert b"sequence" not in bench.wait(6)


def test_telemetry_is_the_same_for_the_same_seed(pki: Pki) -> None:
    """A recorded run can be made again."""
    board = in_state(State.SEALED, pki).board
    outs = [Bench(board=board, interval_s=0.5, seed=seed).wait(8) for seed in (1, 1, 2)]
    assert outs[0] == outs[1]
    assert outs[0] != outs[2]


# --- step faults ---


def test_silent_at_answers_nothing_from_that_verb_on() -> None:
    """What came before was answered; afterwards there is silence for good."""
    bench = Bench("silent-at=KEYGEN")
    bench.hello()
    assert bench.ask("IDENT") is not None
    assert bench.ask("KEYGEN", slot="id", alg="p256") is None
    assert bench.ask("IDENT") is None
    assert bench.board.read_flash().private_key == b""


@pytest.mark.parametrize(("fault", "is_done"), [("power-loss=KEYGEN", False), ("power-loss-after=KEYGEN", True)])
def test_power_is_lost_before_or_after_a_verb_and_once(fault: str, is_done: bool) -> None:
    """No reply either way; the key exists only when the verb was carried out; the next boot is healthy."""
    bench = Bench(fault)
    first = bench.hello()
    assert bench.ask("KEYGEN", slot="id", alg="p256") is None
    assert bool(bench.board.read_flash().private_key) is is_done
    second = bench.hello(b"m" * 16)
    assert first is not None
    assert second is not None
    assert first["boot_id"] != second["boot_id"]
    assert bench.ask("KEYGEN", slot="id", alg="p256") is not None


@pytest.mark.parametrize("at", range(1, len(HELLO) + 1, 7))
def test_power_may_be_lost_at_any_byte(at: int) -> None:
    """The half frame before the cut and the half after it never meet, and the device boots."""
    bench = Bench(f"power-loss-byte={at}")
    bench.send(HELLO)
    assert b"boot" in bench.wait(0.1) or bench.simulation.board.boots == 2
    reply = bench.hello(b"q" * 16)
    assert reply is not None
    assert reply["state"] == "BLANK"


def test_a_slow_verb_is_busy_first() -> None:
    """busy, then the reply."""
    bench = Bench("slow=KEYGEN")
    bench.hello()
    bench.simulation.receive(frame({"s": bench.sid, "i": 2, "c": "KEYGEN", "slot": "id", "alg": "p256"}), bench.now)
    assert [reply["r"] for reply in messages(bench.wait(2))] == ["busy", "ok"]


def test_a_reset_that_does_not_happen_keeps_the_boot_id() -> None:
    """RESET says ok; the boot id tells the truth."""
    bench = Bench("no-reset")
    first = bench.hello()
    assert bench.ask("RESET") is not None
    second = bench.hello(b"m" * 16)
    assert first is not None
    assert second is not None
    assert first["boot_id"] == second["boot_id"]


def test_a_reset_that_happens_changes_it_unless_it_is_faulty() -> None:
    """The twin, and the device whose generator gives every boot the same id."""
    for faults, is_same in (((), False), (("same-boot-id",), True)):
        bench = Bench(*faults)
        first = bench.hello()
        bench.ask("RESET", seconds=0.3)
        second = bench.hello(b"m" * 16)
        assert first is not None
        assert second is not None
        assert (first["boot_id"] == second["boot_id"]) is is_same
        assert bench.simulation.board.boots == 2


def test_opening_the_port_resets_a_board_that_is_wired_so() -> None:
    """reset-on-open boots; without it opening does nothing."""
    for faults, boots in (((), 1), (("reset-on-open",), 2)):
        bench = Bench(*faults)
        bench.simulation.opened(bench.now)
        assert bench.simulation.board.boots == boots


def test_another_unit_answers_after_a_reset() -> None:
    """change-uid-after-reset: the serial on the label stays, the chip is another."""
    bench = Bench("change-uid-after-reset")
    bench.hello()
    before = bench.ask("IDENT")
    bench.ask("RESET", seconds=0.3)
    bench.hello(b"m" * 16)
    after = bench.ask("IDENT")
    assert before is not None
    assert after is not None
    assert before["sn"] == after["sn"]
    assert before["uid"] != after["uid"]


def test_another_key_is_there_after_a_reset() -> None:
    """forgets-key: STATUS names another key in the second boot."""
    bench = Bench("forgets-key")
    bench.hello()
    bench.ask("KEYGEN", slot="id", alg="p256")
    before = bench.ask("STATUS")
    bench.ask("RESET", seconds=0.3)
    bench.hello(b"m" * 16)
    after = bench.ask("STATUS")
    assert before is not None
    assert after is not None
    assert before["spki_sha256"] != after["spki_sha256"]


# --- the table of faults ---


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_of_the_table_parses(name: str) -> None:
    """With a value of the kind it takes."""
    value = {Takes.NOTHING: "", Takes.RATE: "=0.5", Takes.VERB: "=COMMIT", Takes.BYTES: "=100"}[FAULTS[name].takes]
    assert parse_faults([name + value]) != NO_FAULTS


@pytest.mark.parametrize(
    "text",
    [
        *("", "unknown", "drop", "drop=2", "drop=-0.1", "drop=nan", "silent-at", "silent-at=NOW", "wrong-key=1"),
        *("power-loss-byte=0", "power-loss-byte=x", "power-loss-byte=99999999"),
    ],
)
def test_a_fault_that_is_none_is_refused_with_a_hint(text: str) -> None:
    """Unknown names and wrong values are faults of the command line."""
    with pytest.raises(Fault) as caught:
        parse_faults([text])
    assert caught.value.hint


# --- the line ---


@pytest.mark.parametrize("name", ["drop", "duplicate", "flip", "split", "delay", "chatter"])
def test_each_line_fault_does_what_its_name_says(name: str) -> None:
    """At rate 1 every frame is hit, at rate 0 none is."""
    unit = b'\n!P1 {"a":1} *00000000\n'
    assert LineNoise({name: 0.0}, "s").carry(unit) == [Piece(0.0, unit)]
    pieces = LineNoise({name: 1.0}, "s").carry(unit)
    arrived = b"".join(piece.data for piece in pieces)
    shown = {
        "drop": pieces == [],
        "duplicate": arrived == unit * 2,
        "flip": len(arrived) == len(unit) and sum(a != b for a, b in zip(arrived, unit, strict=True)) == 1,
        "split": len(pieces) == 2 and arrived == unit and pieces[1].after_s > pieces[0].after_s,
        "delay": arrived == unit and pieces[0].after_s > 0.0,
        "chatter": arrived.endswith(unit) and len(arrived) > len(unit),
    }
    assert shown[name]


def test_noise_hits_bytes_at_its_rate_and_leaves_their_order() -> None:
    """One byte in a hundred of a long line, in six ways: counted by what is different on the other side."""
    text = bytes(range(32, 127)) * 1000
    assert LineNoise({"noise": 0.0}, "s").carry(text) == [Piece(0.0, text)]
    pieces = LineNoise({"noise": 0.01}, "s").carry(text)

    pauses = len(pieces) - 1  # splits and delays, two kinds of six
    assert 0.8 < pauses / (len(text) * 0.01 / 3) < 1.2
    assert [piece.after_s for piece in pieces] == sorted(piece.after_s for piece in pieces)
    arrived = b"".join(piece.data for piece in pieces)
    for log in CHATTER:
        assert log in arrived
        arrived = arrived.replace(log, b"")
    assert abs(len(arrived) - len(text)) < 100  # what is lost and what is doubled is about the same
    whole = sum(row == text[:95] for row in (arrived[at : at + 95] for at in _rows(arrived)))
    assert 0.4 < whole / 1000 < 0.75  # 0.9933 to the 95th is 0.53: three kinds of six change a byte


def _rows(arrived: bytes) -> list[int]:
    return [at for at in range(len(arrived)) if arrived[at : at + 3] == b' !"']


def test_the_same_seed_gives_the_same_damage() -> None:
    """Two lines with one seed agree, a third with another does not."""
    rates = dict.fromkeys(("drop", "flip", "delay", "chatter", "duplicate", "split"), 0.3)
    runs = []
    for seed in ("a", "a", "b"):
        line = LineNoise(rates, seed)
        runs.append([line.carry(b"frame %d of the run" % number) for number in range(50)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_noisy_line_is_survived_by_repeating() -> None:
    """With a fifth of all frames hurt in both directions, a host that repeats gets every answer, once each."""
    bench = Bench("drop=0.1", "flip=0.1", "duplicate=0.1", "split=0.2", "delay=0.2", "chatter=0.3", seed=5)
    while bench.hello() is None:
        bench.wait(0.5)
    for sequence in range(2, 40):
        request = frame({"s": bench.sid, "i": sequence, "c": "KEYGEN", "slot": "id", "alg": "p256"})
        replies: list[dict[str, Any]] = []
        for _ in range(20):
            replies += [reply for reply in bench.send(request, 0.5) if reply["i"] == sequence]
            if replies:
                break
        assert replies
        assert replies[0]["existing"] is (sequence > 2)
