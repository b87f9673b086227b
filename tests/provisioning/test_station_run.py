"""`station run`: many ports after one work order, with real processes and pseudo-terminals."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.ca import CertificateAuthority
from provisioning.ledger import CertificateState, Ledger, Outcome, UnitState
from provisioning.records.verify import verify_ledger
from provisioning.spp1.protocol import Verb
from tests.provisioning.virtual_line import Unit, blank, events_of, sockets, station, work

ORDER = """
version = 1
order = "WO-1"
quantity = {quantity}
id = "press-{{serial}}"
"""


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    CertificateAuthority.init(tmp_path / "ca", "Line", passphrase=None)
    return tmp_path / "ca"


def order_file(folder: Path, quantity: int, more: str = "") -> Path:
    path = folder / "wo.toml"
    path.write_text(ORDER.format(quantity=quantity) + more)
    return path


def fresh_units(first: int = 1) -> Iterator[Unit]:
    number = first
    while True:
        yield blank(f"{number:06}")
        number += 1


def test_eight_ports_make_a_work_order_and_stop(ca: Path, tmp_path: Path) -> None:
    """Quantity units pass, no more; ids keep leading zeros; the ledger agrees with the events."""
    with sockets(tmp_path, 8) as line:
        links = {name: socket.link for name, socket in line.items()}
        with station(ca, order_file(tmp_path, 20), links) as process:
            verdicts = work(process, line, fresh_units())
            assert process.wait(30) == 0

    passed = [verdict for verdict in verdicts if verdict["passed"]]
    assert len(passed) == 20
    assert {verdict["port"] for verdict in passed} == set(links)
    assert all(verdict["device_id"] == f"press-{verdict['hardware_serial']}" for verdict in passed)
    with Ledger.open(ca / "ledger.db") as ledger:
        assert ledger.counts("WO-1").passed == 20
        assert ledger.counts().started == 20
        assert verify_ledger(ledger).problems == ()


def test_realistic_devices_do_not_wait_for_the_station(ca: Path, tmp_path: Path) -> None:
    """KEYGEN 0.5 s and a boot of 1 s on four ports: the devices' own time is most of it."""
    delays = {Verb.KEYGEN: 0.5, Verb.RESET: 1.0}
    with sockets(tmp_path, 4, delays) as line:
        links = {name: socket.link for name, socket in line.items()}
        with station(ca, order_file(tmp_path, 8), links) as process:
            began = time.monotonic()
            verdicts = work(process, line, fresh_units())
            assert process.wait(30) == 0
    assert len([verdict for verdict in verdicts if verdict["passed"]]) == 8
    assert min(verdict["duration_s"] for verdict in verdicts) >= 1.5
    assert time.monotonic() - began < 60


def test_a_failed_unit_is_told_and_the_next_one_is_burned(ca: Path, tmp_path: Path) -> None:
    """FAIL on one port, and it stays alone until it is taken out; PASS on the other; plain lines without --json."""
    order = order_file(tmp_path, 1)
    with sockets(tmp_path, 2) as line:
        links = {name: socket.link for name, socket in line.items()}
        with station(ca, order, links, json_=False) as process:
            line["1"].put(blank("000001", "wrong-digest"))
            assert process.stdout is not None
            first = process.stdout.readline()
            line["2"].put(blank("000002"))
            second = process.stdout.readline()
            _, errors = process.communicate(timeout=30)
    assert first.startswith("1: FAIL press-000001 at hash: the device does not hold")
    assert second.startswith("2: PASS press-000002")
    assert process.returncode == 0
    assert "1 passed, 1 failed, 0 quarantined; first-pass yield 50%" in errors
    assert "Traceback" not in errors


def twin_of(unit: Unit, serial: str) -> Unit:
    """A device whose generator makes the key of another."""
    key, twin = unit.board.read_flash().private_key, blank(serial)
    twin.board.new_key = lambda seed: key  # type: ignore[method-assign]
    return twin


def test_the_same_key_twice_stops_every_port(ca: Path, tmp_path: Path) -> None:
    """F3: exit 1, the reason in the last event, no second unit with that key."""
    one = blank("000001")
    with sockets(tmp_path, 2) as line:
        links = {name: socket.link for name, socket in line.items()}
        with station(ca, order_file(tmp_path, 100), links) as process:
            line["1"].put(one)
            for event in events_of(process):
                if event["event"] == "verdict" and event["passed"]:
                    line["2"].put(twin_of(one, "000002"))
                last = event
            assert process.wait(30) == 1
    assert last["event"] == "end"
    assert "the line stops" in last["why"]
    with Ledger.open(ca / "ledger.db") as ledger:
        assert ledger.certificates(subject="press-000002") == []


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_finishes_what_is_in_work_and_twice_interrupts_it(ca: Path, tmp_path: Path, count: int) -> None:
    """Once: the slow unit passes. Twice: it is left unfinished, and the next run continues the same row."""
    delays = {Verb.COMMIT: 1.0}
    order = order_file(tmp_path, 2)
    with sockets(tmp_path, 1, delays) as line:
        links = {name: socket.link for name, socket in line.items()}
        with station(ca, order, links) as process:
            line["1"].put(blank("000001"))
            for event in events_of(process):
                if event["event"] == "step" and event["step"] == "write-chain":
                    process.send_signal(signal.SIGINT)
                if count == 2 and event.get("state") == "stopping":
                    process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        with Ledger.open(ca / "ledger.db") as ledger:
            (unit,) = ledger.units()
            assert unit.state is (UnitState.RECORDED if count == 1 else UnitState.ISSUED)
        if count == 1:
            return
        with station(ca, order_file(tmp_path, 1), links) as process:
            for event in events_of(process):
                if event["event"] == "line":
                    assert event["unfinished"] == ["000001"]
            assert process.wait(30) == 0
    with Ledger.open(ca / "ledger.db") as ledger:
        assert [unit.state for unit in ledger.units()] == [UnitState.RECORDED]
        assert len(ledger.certificates(subject="press-000001")) == 1


def test_a_killed_station_is_continued_by_the_next(ca: Path, tmp_path: Path) -> None:
    """F8: kill -9 in the middle; the next start finds the device and finishes it, one certificate in all."""
    delays = {Verb.COMMIT: 0.5}
    order = order_file(tmp_path, 1)
    with sockets(tmp_path, 1, delays) as line:
        links = {name: socket.link for name, socket in line.items()}
        line["1"].put(blank("000001"))
        with station(ca, order, links) as process:
            for event in events_of(process):
                if event["event"] == "step" and event["step"] == "write-ca":
                    process.kill()
            process.wait(30)
        with station(ca, order, links) as process:
            steps = [event["step"] for event in events_of(process) if event["event"] == "step"]
            assert process.wait(30) == 0
    assert "recover" in steps
    assert "keygen" not in steps
    with Ledger.open(ca / "ledger.db") as ledger:
        assert ledger.counts("WO-1").passed == 1
        assert len(ledger.certificates(subject="press-000001")) == 1


def test_a_pulled_cable_is_continued_when_it_is_plugged_in_again(ca: Path, tmp_path: Path) -> None:
    """U1: the port goes away in the middle of a burn; the unit is continued at another port, too."""
    with sockets(tmp_path, 2, {Verb.COMMIT: 0.3}) as line:
        links = {name: socket.link for name, socket in line.items()}
        with station(ca, order_file(tmp_path, 1), links) as process:
            line["1"].put(blank("000001"))
            outcomes = []
            for event in events_of(process):
                if event["event"] == "step" and event["step"] == "write-conf" and event["port"] == "1":
                    unit = line["1"].take_out()
                    assert unit is not None
                    line["2"].put(unit)
                if event["event"] == "verdict":
                    outcomes.append((event["port"], event["outcome"]))
            assert process.wait(30) == 0
    assert outcomes == [("1", Outcome.OPEN), ("2", Outcome.PASSED)]


def test_labels_are_compared_before_pass(ca: Path, tmp_path: Path) -> None:
    """F7: a wrong label fails the unit of its port, the right one passes, and one of nobody is told."""
    with sockets(tmp_path, 2) as line:
        links = {name: socket.link for name, socket in line.items()}
        with station(ca, order_file(tmp_path, 2), links, "--expect-label", "-") as process:
            assert process.stdin is not None
            line["1"].put(blank("000001"))
            line["2"].put(blank("000002"))
            verdicts, nobody, waiting = {}, [], set()
            for event in events_of(process):
                if event["event"] == "label" and event["port"]:
                    waiting.add(event["port"])
                    lines = "000009\n1 000002\npress-000002\n" if waiting == {"1", "2"} else ""
                    process.stdin.write("000003\n" if verdicts else lines)
                    process.stdin.flush()
                if event["event"] == "label" and not event["port"]:
                    nobody.append(event["detail"])
                if event["event"] == "verdict":
                    verdicts[event["hardware_serial"]] = (event["outcome"], event["step"])
                    if not event["passed"]:
                        waiting.clear()
                        line["1"].put(blank("000003"))
            assert process.wait(30) == 0
    assert verdicts == {
        "000001": ("failed", "label"),
        "000002": ("passed", "record"),
        "000003": ("passed", "record"),
    }
    assert len(nobody) == 1
    assert "000009" in nobody[0]
    with Ledger.open(ca / "ledger.db") as ledger:
        assert ledger.certificates(subject="press-000001", state=CertificateState.ISSUED) == []


def test_a_list_of_serials_is_an_allow_list_with_attributes(ca: Path, tmp_path: Path) -> None:
    """What is not listed is refused untouched; what is gets its id and its attributes, leading zeros and all."""
    (tmp_path / "serials.csv").write_text("hardware_serial,device_id,site\n000002,pump-02,north\n")
    order = tmp_path / "wo.toml"
    order.write_text(
        'version = 1\norder = "WO-2"\nquantity = 1\nserials = "serials.csv"\n[attributes]\nmake = "acme"\n'
    )
    stranger = blank("000001")
    with sockets(tmp_path, 2) as line:
        links = {name: socket.link for name, socket in line.items()}
        with station(ca, order, links) as process:
            line["1"].put(stranger)
            for event in events_of(process):
                if event["event"] == "verdict" and not event["passed"]:
                    assert "not in the work order's list" in event["reason"]
                    line["2"].put(blank("000002"))
            assert process.wait(30) == 0
    assert stranger.board.read_flash().private_key == b""
    with Ledger.open(ca / "ledger.db") as ledger:
        attempt = ledger.attempts(work_order="WO-2")[-1]
        assert json.loads(attempt.attributes) == {"make": "acme", "site": "north"}
        assert [unit.device_id for unit in ledger.units()] == ["pump-02"]
