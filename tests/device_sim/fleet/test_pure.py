"""What a fleet is made of and needs no network: histogram, payloads, schedule, faults, deliveries, certificates."""

from __future__ import annotations

import json
import math
import stat
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.fleet.faults import FAULTS, parse_fault_set
from device_sim.fleet.figures import Deliveries, Load
from device_sim.fleet.histogram import LARGEST_US, Histogram, highest_of, index_of
from device_sim.fleet.identities import CertDir, SimulationCa
from device_sim.fleet.payloads import MODEL_NAMES, parse_model
from device_sim.fleet.schedule import Traffic, ramp, schedule
from device_sim.fleet.wrong_certificates import WRONG
from mtls.errors import ConfigFault, Fault
from mtls.profiles import DEVICE_OPERATIONAL


@given(st.integers(0, LARGEST_US))
def test_a_counter_is_never_wider_than_a_hundredth_of_its_value(value: int) -> None:
    """The counter's largest value is at or above the value recorded, and within 1 % of it."""
    assert value <= highest_of(index_of(value)) <= value + value // 100


@given(st.lists(st.floats(1e-6, 1000), min_size=1, max_size=200), st.sampled_from([50.0, 90.0, 99.0, 100.0]))
def test_a_percentile_is_the_sorted_lists_within_one_per_cent(values: list[float], share: float) -> None:
    """Judged by sorting."""
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    exact = sorted(values)[math.ceil(share * len(values) / 100) - 1]
    assert exact * 0.99 - 1e-6 <= histogram.percentile(share) <= exact * 1.01 + 1e-6


@given(st.lists(st.floats(0, 100)), st.lists(st.floats(0, 100)))
def test_histograms_merge_exactly(first: list[float], second: list[float]) -> None:
    """Two added are the same as one that counted all."""
    one, two, both = Histogram(), Histogram(), Histogram()
    for histogram, values in ((one, first), (two, second), (both, first + second)):
        for value in values:
            histogram.record(value)
    one.add(two)
    assert one == both


def test_an_empty_histogram_has_percentiles() -> None:
    """Zero, and no division by nothing."""
    assert Histogram().as_row()["p99_ms"] == 0.0


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name not in ("enum", "csv")])
def test_a_model_says_the_same_for_the_same_seed_and_device_and_else_something_else(name: str) -> None:
    """Byte for byte."""
    model = parse_model(name)

    def said(seed: int, device: int) -> list[bytes]:
        return list(islice(model.payloads(seed, device), 50))

    assert said(1, 2) == said(1, 2)
    if name not in ("expression",):  # its default is the message's number
        assert len({tuple(said(1, 2)), tuple(said(1, 3)), tuple(said(2, 2))}) == 3


def values(text: str, count: int = 200, folder: Path = Path()) -> list[object]:
    payloads = islice(parse_model(text, folder).payloads(7, 0), count)
    return [json.loads(payload)["value"] for payload in payloads]


def test_models_keep_their_bounds_and_steps(tmp_path: Path) -> None:
    """Each model's own promise."""
    assert set(values("number?low=1&high=2&step=0.25")) == {1.0, 1.25, 1.5, 1.75, 2.0}
    assert set(values("enum?values=idle|run")) == {"idle", "run"}
    assert set(values("boolean?chance=1")) == {True}
    walked = [float(str(value)) for value in values("walk?start=5&step=1&low=4&high=6")]
    assert all(4 <= value <= 6 for value in walked)
    assert all(abs(a - b) <= 1 for a, b in pairwise(walked))
    assert values("expression?text=2*n%2Bsqrt(4)", 3) == [2.0, 4.0, 6.0]
    (tmp_path / "day.csv").write_text("t,celsius\n0,20.5\n1,21\n2,off\n")
    assert values("csv?file=day.csv&column=celsius", 4, tmp_path) == [20.5, 21.0, "off", 20.5]
    assert next(parse_model("raw?text=hello").payloads(0, 0)) == b"hello"
    assert len(next(parse_model("raw?size=5000").payloads(0, 0))) == 5000


@pytest.mark.parametrize(
    "text",
    [
        *("tea", "number?low=x", "number?step=0", "number?low=5&high=1", "number?tea=1", "enum", "number?low"),
        *(
            "expression?text=__import__('os')",
            "expression?text=n.real",
            "expression?text=1%2B",
            "expression?text=abs()",
        ),
        *("expression?text=" + "1%2B" * 200 + "1", "raw?size=-1", "raw?size=9999999", "walk?start=nan"),
    ],
)
def test_a_model_that_is_none_is_refused_with_a_hint(text: str) -> None:
    """The deny twin: nothing is guessed and nothing is run."""
    with pytest.raises(Fault) as refused:
        parse_model(text)
    assert refused.value.hint


def test_a_csv_without_the_column_is_refused(tmp_path: Path) -> None:
    """A replay that says nothing would look like a silent device."""
    (tmp_path / "day.csv").write_text("t\n1\n")
    with pytest.raises(Fault, match="no column"):
        parse_model("csv?file=day.csv&column=celsius", tmp_path)


def test_an_expression_that_grows_without_end_ends() -> None:
    """9**9**9**9 is no way to stop a simulator."""
    started = time.monotonic()
    assert values("expression?text=9**9**9**9", 1) != []
    assert time.monotonic() - started < 1


def traffic(seed: int) -> Traffic:
    ids = ("a", "b", "c", "d")
    return Traffic(ids, "devices/{id}/x", parse_model("walk"), interval_s=1.0, jitter=0.5, seed=seed)


def test_the_schedule_is_a_function_of_the_seed() -> None:
    """Same seed: same messages in the same order, another seed: another run."""
    assert list(schedule(traffic(1), 20)) == list(schedule(traffic(1), 20))
    assert list(schedule(traffic(1), 20)) != list(schedule(traffic(2), 20))


def test_the_schedule_is_in_order_and_jitter_does_not_add_up() -> None:
    """Every device says one message per interval, however long it goes on."""
    messages = list(schedule(traffic(3), 500))
    assert [message.at_s for message in messages] == sorted(message.at_s for message in messages)
    per_device = [sum(message.device == device for message in messages) for device in range(4)]
    assert all(499 <= count <= 501 for count in per_device), per_device
    assert {message.topic for message in messages} == {f"devices/{name}/x" for name in "abcd"}


def test_a_device_says_nothing_before_it_is_switched_on() -> None:
    """Along a ramp the first message is due within an interval of the first connection, and not of the run's start."""
    plan = list(schedule(replace(traffic(4), starts_s=tuple(10.0 * n for n in range(len(traffic(4).ids)))), 60))
    for number in range(len(traffic(4).ids)):
        first_s = next(message.at_s for message in plan if message.device == number)
        assert 10.0 * number <= first_s < 10.0 * number + 1.0


def test_a_ramp_paces_first_connections() -> None:
    """100 devices at 50 per second begin within two seconds; 0 means all at once."""
    starts = ramp(100, 50, 0.5, 1)
    assert starts[0] < 0.02
    assert 1.9 < starts[-1] < 2.1
    assert ramp(3, 0, 0.5, 1) == [0.0, 0.0, 0.0]


def test_deliveries_count_losses_and_duplicates() -> None:
    """Acknowledged and never heard is lost; heard more often is duplicate; heard only is neither."""
    deliveries = Deliveries()
    for payload in (b"1", b"2", b"3", b"3"):
        deliveries.acknowledge("t", payload)
    for payload in (b"1", b"1", b"3", b"3", b"4"):
        deliveries.hear("t", payload)
    assert (deliveries.lost, deliveries.duplicates) == (1, 1)


def test_the_simulator_says_when_it_was_the_limit() -> None:
    """By its share of a core or by its lag, and not otherwise."""
    assert not Load(10, 5, 1, 0.01).was_the_limit
    assert Load(10, 9.5, 1, 0.01).was_the_limit
    assert Load(10, 5, 1, 0.5).was_the_limit
    assert "THE SIMULATOR WAS THE LIMIT" in Load(10, 5, 1, 0.5).sentence()


def test_faults_compose_and_say_what_they_are() -> None:
    """A certificate's, a CONNECT's and an action's fault at once; each line of the table has its words."""
    faults = parse_fault_set(["expired", "foreign-will", "flood=5"])
    assert (faults.wrong_certificate, faults.number("flood"), "foreign-will" in faults) == ("expired", 5, True)
    assert str(faults) == "expired, foreign-will, flood=5"
    assert all(kind.effect for kind in FAULTS.values())


@pytest.mark.parametrize(
    "texts", [["tea"], ["expired=1"], ["flood"], ["flood=0"], ["flood=x"], ["expired", "wrong-ca"], ["clock-skew=1e3"]]
)
def test_faults_that_are_none_or_contradict_are_refused(texts: list[str]) -> None:
    """A fault that is not injected would pass for a gateway that withstood it."""
    with pytest.raises(Fault) as refused:
        parse_fault_set(texts)
    assert refused.value.hint


def test_the_test_ca_issues_what_the_station_would_and_keeps_it(tmp_path: Path) -> None:
    """The profile accepts it, the file is private, the second asking issues nothing."""
    ca = SimulationCa(tmp_path / "ca")
    first = ca.of("sim-1")
    assert DEVICE_OPERATIONAL.check(first.certificate(), ca.issuing.certificate) == ()
    assert stat.S_IMODE(first.key_file.stat().st_mode) == 0o600
    certificate = first.certificate()
    assert SimulationCa(tmp_path / "ca").of("sim-1").certificate() == certificate
    assert ca.new("sim-1").certificate() != certificate


def test_a_torn_or_expiring_certificate_is_made_anew(tmp_path: Path) -> None:
    """What is kept is used only as long as it is good."""
    ca = SimulationCa(tmp_path / "ca")
    path = ca.of("sim-1").cert_file
    path.write_bytes(path.read_bytes()[:100])
    assert ca.of("sim-1").certificate().not_valid_after_utc > datetime.now(UTC)
    soon = ca.new("sim-2", lifetime=timedelta(minutes=5)).certificate()
    assert ca.of("sim-2").certificate() != soon


def test_the_test_ca_issues_fast(tmp_path: Path) -> None:
    """300 devices in well under the time that 300 flushes to disk would take."""
    ca = SimulationCa(tmp_path / "ca")
    started = time.process_time()
    for number in range(300):
        ca.of(f"sim-{number}")
    assert time.process_time() - started < 3


def test_a_factorys_ca_is_not_borrowed(tmp_path: Path) -> None:
    """A ledger in the folder means that somebody's devices depend on it."""
    (tmp_path / "ledger.db").touch()
    with pytest.raises(ConfigFault, match="factory"):
        SimulationCa(tmp_path)


def test_a_cert_dir_names_what_is_missing(tmp_path: Path) -> None:
    """The file and the command that makes it."""
    with pytest.raises(ConfigFault, match=r"ca\.crt"):
        CertDir(tmp_path)
    (tmp_path / "ca.crt").touch()
    with pytest.raises(ConfigFault, match=r"dev-a\.crt"):
        CertDir(tmp_path).of("dev-a")


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_certificate_is_wrong_in_one_thing(tmp_path: Path, how: str) -> None:
    """It carries a client's key usage and ours or a namesake's issuer, and it differs from the right one."""
    ca = SimulationCa(tmp_path / "ca")
    wrong, right = ca.wrong("sim-1", how).certificate(), ca.of("sim-1").certificate()
    assert wrong.public_key() != right.public_key()
    expired = wrong.not_valid_after_utc < datetime.now(UTC)
    early = wrong.not_valid_before_utc > datetime.now(UTC)
    assert (expired, early) == (how == "expired", how == "not-yet-valid")
    assert (wrong.issuer == right.issuer) == (how != "self-signed")
    assert (wrong.subject == right.subject) == (how not in ("two-names", "no-name", "wrong-name", "wildcard-name"))
