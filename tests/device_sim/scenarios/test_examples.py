"""The scenarios of examples/scenarios in their short form: green against our gateway, red when the cause is missing."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from device_sim.attacks.report import ATTACKS
from device_sim.scenarios.engine import Place, run
from device_sim.scenarios.loading import load
from device_sim.scenarios.result import ScenarioResult
from device_sim.scenarios.table import as_text
from device_sim.targets.brokers import broker_named
from tests.docs.pages import REPOSITORY

EXAMPLES = REPOSITORY / "examples" / "scenarios"
SHORT = 0.004  # devices and phases down to what the files call their least


def ran(path: Path, folder: Path) -> ScenarioResult:
    scenario = load(path).scaled(SHORT)
    with broker_named("gateway", folder / "site", scenario.gateway) as broker:
        place = Place(broker.name, broker.endpoint, broker.site.ca, broker)
        return asyncio.run(run(scenario, place, scenario.seed))


def long_when_it_has_no_short_form(path: Path) -> Any:
    return pytest.param(path, id=path.stem, marks=pytest.mark.torture if path.stem == "attack" else ())


@pytest.mark.parametrize("example", [*map(long_when_it_has_no_short_form, sorted(EXAMPLES.glob("*.toml")))])
def test_an_example_passes_against_the_gateway(example: Path, tmp_path: Path) -> None:
    """Every expectation of it is met."""
    result = ran(example, tmp_path)
    assert result.exit_code == 0, as_text(result)


def test_the_attack_example_passes_with_a_trap_of_each_kind(tmp_path: Path) -> None:
    """Its short form, made here; each attack by itself is in tests/device_sim/attacks."""
    path = tmp_path / "attack.toml"
    text = (EXAMPLES / "attack.toml").read_text(encoding="utf-8")
    path.write_text(re.sub(r'\["([SPR])1",.*\]', r'["\g<1>2"]', text), encoding="utf-8")
    result = ran(path, tmp_path)
    assert result.exit_code == 0, as_text(result)
    assert result.attacks is not None
    assert {line.attack.trap for line in result.attacks.lines} == {"S2", "P2", "R2"}


def test_the_attack_example_carries_out_every_attack() -> None:
    """None of the simulator's traps is left out."""
    steps = [step for phase in load(EXAMPLES / "attack.toml").phases for step in phase.steps]
    assert {trap for step in steps for trap in step.arguments["traps"]} == {attack.trap for attack in ATTACKS}


TWINS = [
    ("smoke", 'faults = ["expired"]', "", {("steady", "admitted"), ("steady", "refused"), ("steady", "audit")}),
    ("power-cut", 'do = "start"', 'do = "stop"', {("cut", "connected"), ("cut", "recovered_within_s")}),
    ("wan-outage", "bytes_per_s = 20000", "reset_rate = 1.0", {("narrow", "connected"), ("", "acknowledged")}),
    ("expiry-weekend", 'do = "renew"', 'do = "revoke"', {("monday", "connected"), ("", "acknowledged")}),
    ("soak", 'name = "steady"', 'name = "steady"\nfaults = ["malformed-packet"]', {("soak", "connections_lost_max")}),
]


@pytest.mark.parametrize(("name", "old", "new", "failed"), TWINS, ids=[twin[0] for twin in TWINS])
def test_an_example_fails_when_what_it_needs_is_missing(
    name: str, old: str, new: str, failed: set[tuple[str, str]], tmp_path: Path
) -> None:
    """The same file with one line changed: a gateway that stays down, a line that never heals, no new certificates."""
    text = (EXAMPLES / f"{name}.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / f"{name}.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    result = ran(path, tmp_path)
    assert result.exit_code == 1
    assert failed <= {(verdict.phase, verdict.expectation) for verdict in result.failed}, as_text(result)
