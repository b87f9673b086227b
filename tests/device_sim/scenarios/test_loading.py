"""A scenario's file: what is in it is what is run, and whatever does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_sim.fleet.schedule import Traffic, schedule
from device_sim.scenarios.loading import MAX_FILE_BYTES, load
from device_sim.scenarios.model import Scenario
from mtls.errors import ConfigFault
from tests.docs.pages import REPOSITORY
from tests.integration.programs import attempt

EXAMPLES = sorted((REPOSITORY / "examples" / "scenarios").glob("*.toml"))

GOOD = """
name = "good"

[[devices]]
name = "a"
count = 100
at_least = 5
interval_s = 0.5

[[devices]]
name = "b"
count = 3
phases = ["second"]
faults = ["expired"]

[[phases]]
name = "first"
seconds = 10
at_least_s = 2

[[phases.actions]]
do = "network"
at_s = 5
latency_s = 0.1

[[phases]]
name = "second"
seconds = 4

[[phases.expect]]
devices = "b"
refused = "certificate_expired"

[[expect]]
acked_lost = 0
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return path


def loaded(folder: Path, text: str = GOOD) -> Scenario:
    return load(written(folder, text))


def test_a_scenario_is_what_its_file_says(tmp_path: Path) -> None:
    """Groups, phases, actions and expectations, with defaults for what is not there."""
    scenario = loaded(tmp_path)
    assert [(group.name, group.phases) for group in scenario.devices] == [
        ("a", ("first", "second")),
        ("b", ("second",)),
    ]
    assert [scenario.seconds_of(group) for group in scenario.devices] == [14.0, 4.0]
    assert "expired" in scenario.devices[1].settings.faults
    (step,) = scenario.phases[0].steps
    assert (step.action, step.at_s, step.arguments["latency_s"], step.arguments["is_half_open"]) == (
        *("network", 5.0, 0.1),
        False,
    )
    assert [(each.key, each.devices, each.phase) for each in (*scenario.phases[1].wanted, *scenario.wanted)] == [
        ("refused", "b", "second"),
        ("acked_lost", "", ""),
    ]


def test_a_scenario_is_scaled_down_to_its_least_and_no_further(tmp_path: Path) -> None:
    """Devices, seconds and the times of actions; an action stays at its share of the phase."""
    scenario = loaded(tmp_path).scaled(0.1)
    assert [group.count for group in scenario.devices] == [10, 1]
    assert [phase.seconds for phase in scenario.phases] == [2.0, 1.0]
    assert scenario.phases[0].steps[0].at_s == 1.0
    assert [group.count for group in scenario.scaled(0.001).devices] == [5, 1]
    assert scenario.scaled(20).phases[0].seconds == 40.0


def test_the_same_seed_says_the_same_and_each_group_something_else(tmp_path: Path) -> None:
    """Payloads, order and times of a whole run, byte for byte."""
    scenario = loaded(tmp_path)

    def plan(number: int, seed: int) -> list[object]:
        group = scenario.group_of(scenario.devices[number], seed)
        traffic = Traffic(("x",) * 3, group.topic, group.payload, group.interval_s, group.jitter, group.seed)
        return [*schedule(traffic, 5.0)]

    assert plan(0, 7) == plan(0, 7)
    assert plan(0, 7) != plan(0, 8)
    assert plan(0, 7) != plan(1, 7)


REFUSED = [
    ('name = "good"', 'nmae = "good"', "has no key 'nmae'"),
    ('name = "good"', "", "lacks the key name"),
    ('name = "good"', "name = 7", "name = 7 is wrong"),
    ('name = "good"', 'name = "a/b"', "name = 'a/b' is wrong"),
    ("count = 100", "count = true", "[[devices]] number 1 count = True is wrong"),
    ("count = 100", "count = 1000000", "count = 1000000 is wrong"),
    ("count = 100", "count = 20000", "more than 20000 devices"),
    ("interval_s = 0.5", "interval_s = 0", "interval_s = 0 is wrong"),
    ("interval_s = 0.5", 'topic = "devices/+/x"', "topic = 'devices/+/x' is wrong"),
    ("interval_s = 0.5", 'payload = "wlak"', "there is no payload model 'wlak'"),
    ("interval_s = 0.5", 'payload = { model = "walk", stap = 1 }', "has no setting 'stap'"),
    ("interval_s = 0.5", "colour = 1", "has no key 'colour'"),
    ("interval_s = 0.5", "qos = 3", "qos = 3 is wrong"),
    ("interval_s = 0.5", "qos = 2\nstored_session = true", "qos = 2 is wrong"),
    ('faults = ["expired"]', 'faults = ["expird"]', "there is no fault 'expird'"),
    ('faults = ["expired"]', 'faults = "expired"', "faults = 'expired' is wrong"),
    ('phases = ["second"]', 'phases = ["third"]', "phases = 'third' is wrong"),
    ('name = "b"', 'name = "a"', "two [[devices]] tables have the name a"),
    ('name = "second"\nseconds', 'name = "first"\nseconds', "two [[phases]] tables have the name first"),
    ('do = "network"', 'do = "netwrok"', "do = 'netwrok' is wrong"),
    ('do = "network"\nat_s = 5\nlatency_s = 0.1', 'do = "attack"', "listen = 'devices/#' and attacks"),
    ('do = "network"', 'do = "reload"', "(reload) has no key 'latency_s'"),
    ('do = "network"\nat_s = 5\nlatency_s = 0.1', 'do = "revoke"\ndevices = "c"', "there are no devices 'c'"),
    ("at_s = 5", "at_s = 11", "at_s = 11.0 is wrong"),
    ("latency_s = 0.1", "latency_s = -1", "latency_s = -1 is wrong"),
    ("seconds = 4", "seconds = 0", "seconds = 0 is wrong"),
    ('refused = "certificate_expired"', 'refused = "certificate_expird"', "refused = 'certificate_expird' is wrong"),
    ('refused = "certificate_expired"', "refusd = 1", "has no key 'refusd'"),
    ('refused = "certificate_expired"', "acked_lost = 0", "has the key acked_lost"),
    ('refused = "certificate_expired"', 'audit = { reason = "x" }', "is wrong"),
    ('refused = "certificate_expired"', "attacks_held = false", "attacks_held = False is wrong"),
    ('devices = "b"', 'devices = "c"', "there are no devices 'c'"),
    ("acked_lost = 0", "recovered_within_s = 1", "has the key recovered_within_s"),
    ("acked_lost = 0", 'admitted = "some"', "admitted = 'some' is wrong"),
    ("[[expect]]", "[expect]", "0 to 64 [[expect]] tables"),
    ("[[expect]]", "[[expect", "is no TOML"),
]


@pytest.mark.parametrize(("old", "new", "words"), REFUSED, ids=[f"{new!a} for {old!a}"[:70] for old, new, _ in REFUSED])
def test_what_does_not_fit_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    """The file, the table, the key and its value, and something to do next."""
    assert GOOD.count(old) >= 1
    with pytest.raises(ConfigFault) as caught:
        loaded(tmp_path, GOOD.replace(old, new, 1))
    assert words in str(caught.value)
    assert str(tmp_path / "scenario.toml") in str(caught.value)
    assert caught.value.hint


def test_a_scenario_that_expects_nothing_is_refused(tmp_path: Path) -> None:
    """It could not fail."""
    with pytest.raises(ConfigFault, match="nothing is expected"):
        loaded(tmp_path, 'name = "x"\n[[phases]]\nname = "p"\nseconds = 1\n')


def test_a_file_that_is_too_large_or_not_there_is_refused(tmp_path: Path) -> None:
    """Before it is parsed."""
    with pytest.raises(ConfigFault):
        loaded(tmp_path, GOOD + "#" * MAX_FILE_BYTES)
    with pytest.raises(ConfigFault):
        load(tmp_path / "absent.toml")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_taken_and_named_like_its_file(example: Path) -> None:
    """`scenario check` reads it and starts nothing."""
    assert load(example).name == example.stem
    done = attempt("device-sim", "scenario", "check", example)
    assert done.returncode == 0, done.stderr
    assert example.stem in done.stdout


def test_the_command_ends_2_for_what_cannot_be_read(tmp_path: Path) -> None:
    """Neither pass nor fail: the key is named, and what takes its place."""
    done = attempt("device-sim", "scenario", "run", written(tmp_path, GOOD.replace("count", "cuont")))
    assert done.returncode == 2
    assert "has no key 'cuont'" in done.stderr
    assert "hint:" in done.stderr
