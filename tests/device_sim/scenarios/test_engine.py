"""Scenarios against a real gateway and a real mosquitto: what is met, and that every expectation can fail."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_sim.scenarios.engine import Place, run
from device_sim.scenarios.expectations import EXPECTATIONS
from device_sim.scenarios.loading import load
from device_sim.scenarios.result import ScenarioResult
from device_sim.scenarios.table import as_json, as_text
from device_sim.stopping import interruptible
from device_sim.targets.brokers import OurGateway, ProcessBroker, broker_named
from device_sim.targets.site import Site
from mtls.errors import Fault
from tests.docs.pages import REPOSITORY
from tests.integration.programs import BIN, attempt, wait_until

SMOKE = REPOSITORY / "examples" / "scenarios" / "smoke.toml"

DEVICES = """
name = "all-kinds"

[[devices]]
name = "honest"
count = 3
interval_s = 0.1
ramp_per_s = 0

[[devices]]
name = "late"
count = 2
interval_s = 0.1
faults = ["expired"]

[[devices]]
name = "liar"
count = 1
interval_s = 0.1
faults = ["foreign-topic"]

[[devices]]
name = "stutterer"
count = 1
interval_s = 0.1
faults = ["cut-before-puback=3"]

[[phases]]
name = "quiet"
seconds = 2

[[phases]]
name = "slow"
seconds = 2

[[phases.actions]]
do = "network"
latency_s = 0.1
"""

MET = """
[[phases.expect]]
devices = "honest"
admitted = "none"        # they are in since the phase before
connected = "all"
p50_ms = 2000
p99_ms = 2000
recovered_within_s = 1
connections_lost_max = 0

[[phases.expect]]
devices = "late"
connected = "none"

[[expect]]
devices = "honest"
admitted = "all"
acknowledged = "all"
acked_lost = 0
duplicates_max = 0
connect_p99_ms = 2000

[[expect]]
devices = "late"
admitted = 0
acknowledged = "none"
refused = ["certificate_revoked", "certificate_expired"]
audit = { event = "refused", reason = "certificate_expired", at_least = 2 }

[[expect]]
memory_growth_max_mb = 200
"""

NOT_MET = """
[[phases.actions]]
do = "cut"
at_s = 1.2

[[phases.actions]]
do = "heal"
at_s = 1.4

[[phases.expect]]
devices = "late"
connected = "all"
recovered_within_s = 1

[[phases.expect]]
devices = "honest"
p50_ms = 100             # there and back at 100 ms each way
p99_ms = 100
refused = "certificate_expired"

[[expect]]
devices = "late"
admitted = "all"
acknowledged = "all"
refused = "certificate_revoked"

[[expect]]
devices = "honest"
admitted = 2
acknowledged = 100000
connections_lost_max = 0
connect_p99_ms = 0.1
audit = { event = "refused" , reason = "certificate_revoked" }

[[expect]]
devices = "liar"
acked_lost = 0

[[expect]]
devices = "stutterer"
duplicates_max = 0

[[expect]]
attacks_held = ["S1", "P1"]   # nobody carried them out
memory_growth_max_mb = 0
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OurGateway]:
    with OurGateway(Site.make(tmp_path_factory.mktemp("gateway"))) as broker:
        yield broker


def ran(broker: ProcessBroker, folder: Path, text: str) -> ScenarioResult:
    path = folder / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    place = Place(broker.name, broker.endpoint, broker.site.ca, broker)
    return asyncio.run(run(load(path), place, 0))


def test_what_is_so_is_met(gateway: OurGateway, tmp_path: Path) -> None:
    """The allow twin: honest devices, an expired group, a slow line; each expectation of the table but attacks."""
    result = ran(gateway, tmp_path, DEVICES + MET)
    assert result.failed == ()
    assert {verdict.expectation for verdict in result.verdicts} == EXPECTATIONS.keys() - {"attacks_held"}
    assert [phase.name for phase in result.phases] == ["quiet", "slow"]
    honest = [phase.groups["honest"] for phase in result.phases]
    assert [len(figures.admitted) for figures in honest] == [3, 0]
    assert sum(figures.scheduled for figures in honest) > 40
    assert max(sample.connected for sample in result.course) >= 3
    assert result.exit_code == 0


@pytest.fixture(scope="module")
def wrong(gateway: OurGateway, tmp_path_factory: pytest.TempPathFactory) -> ScenarioResult:
    """The same devices, and nothing that is expected of them is so."""
    return ran(gateway, tmp_path_factory.mktemp("wrong"), DEVICES + NOT_MET)


@pytest.mark.parametrize("expectation", EXPECTATIONS)
def test_every_expectation_fails_when_it_is_not_so(wrong: ScenarioResult, expectation: str) -> None:
    """The deny twin of each line of the table, by devices that break it."""
    judged = [verdict for verdict in wrong.verdicts if verdict.expectation == expectation]
    assert judged
    assert [verdict for verdict in judged if verdict.is_met] == []
    assert wrong.exit_code == 1


def test_the_table_and_the_json_say_what_failed_in_80_columns(wrong: ScenarioResult) -> None:
    """Failed expectations stand at the end, with what was wanted and what was seen."""
    lines = as_text(wrong).splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert lines[-1].startswith("FAIL: ")
    assert any(line.startswith("FAILED") and "admitted all: 0 of 2" in line for line in lines)
    row = json.loads(as_json(wrong))
    assert row["passed"] is False
    assert {each["met"] for each in row["expectations"]} == {False}
    assert row["phases"][0]["devices"]["late"]["refused"].keys() == {"certificate_expired"}
    assert row["attacks"] is None


def test_an_attack_that_is_let_through_fails_the_scenario(tmp_path: Path) -> None:
    """mosquitto delivers a will on another device's topic; the report names it."""
    action = '[[phases.actions]]\ndo = "attack"\ntraps = ["P1"]\n'
    text = f'name = "x"\nlisten = ""\n[[phases]]\nname = "attack"\nseconds = 0.1\n{action}'
    with broker_named("mosquitto", tmp_path / "site") as broker:
        wanted = "[[expect]]\nattacks_held = true\n[[expect]]\nattacks_held = ['P1', 'P2']\n"
        result = ran(broker, tmp_path, text + wanted)
    assert len(result.failed) == 2
    assert "P1" in result.verdicts[0].seen
    assert result.verdicts[1].seen == "not carried out: P2"
    assert json.loads(as_json(result))["attacks"]["let_through"] == 1
    assert result.attacks is not None
    assert result.attacks.let_through


def test_devices_come_and_go_with_their_phases(gateway: OurGateway, tmp_path: Path) -> None:
    """A group is connected in its phases and in no other; what it said is counted there."""
    text = 'name = "x"\n[[devices]]\nname = "guest"\ncount = 2\ninterval_s = 0.1\nqos = 2\nphases = ["b"]\n' + "".join(
        f'[[phases]]\nname = "{name}"\nseconds = 0.5\n' for name in "abc"
    )
    result = ran(gateway, tmp_path, text + '[[expect]]\nadmitted = "all"\nacked_lost = 0\n')
    assert result.failed == ()
    assert [sorted(phase.groups) for phase in result.phases] == [[], ["guest"], []]
    assert result.phases[1].groups["guest"].acknowledged == result.phases[1].groups["guest"].scheduled > 4


def test_an_operator_s_action_is_refused_where_there_is_no_operator(gateway: OurGateway, tmp_path: Path) -> None:
    """A broker that runs already is somebody else's: nothing is started and nothing is revoked."""
    path = tmp_path / "scenario.toml"
    text = 'name = "x"\n[[devices]]\nname = "a"\ncount = 1\n[[phases]]\nname = "p"\nseconds = 0.2\n'
    action = '[[phases.actions]]\ndo = "revoke"\ndevices = "a"\n'
    path.write_text(text + action + '[[expect]]\nadmitted = "all"\n', encoding="utf-8")
    with pytest.raises(Fault, match="revoke"):
        asyncio.run(run(load(path), Place("there", gateway.endpoint, gateway.site.ca), 0))


def test_the_command_passes_fails_and_reports_as_json(gateway: OurGateway, tmp_path: Path) -> None:
    """Exit code 0 against a gateway that is started for it, 1 when an expectation is not met."""
    reports = {kind: tmp_path / f"smoke.{kind}" for kind in ("html", "junit", "prometheus")}
    options = [part for kind, file in reports.items() for part in (f"--{kind}", file)]
    done = attempt("device-sim", "scenario", "run", SMOKE, "--scale", "0.1", "--json", "--seed", "5", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads(done.stdout)
    assert (row["scenario"], row["seed"], row["passed"]) == ("smoke", 5, True)
    assert reports["html"].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert 'failures="0"' in reports["junit"].read_text(encoding="utf-8")
    assert 'scenario="smoke"' in reports["prometheus"].read_text(encoding="utf-8")

    path = tmp_path / "scenario.toml"
    text = 'name = "x"\n[[devices]]\nname = "a"\ncount = 1\n[[phases]]\nname = "p"\nseconds = 0.3\n'
    path.write_text(text + '[[expect]]\nadmitted = "none"\n', encoding="utf-8")
    where = ("--broker", str(gateway.endpoint), "--ca", gateway.site.ca.folder)
    done = attempt("device-sim", "scenario", "run", path, *where)
    assert done.returncode == 1, done.stderr
    assert "FAIL: 1 of 1" in done.stdout


def gateway_of(process_id: int, event: str) -> tuple[int, Path]:
    """The gateway that this process has started, and its folder, once its audit log tells of such an event."""
    found: list[tuple[int, Path]] = []

    def has_come() -> bool:
        for child in Path(f"/proc/{process_id}/task/{process_id}/children").read_text(encoding="ascii").split():
            try:
                words = Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8").split("\0")
            except OSError:
                continue  # it has ended meanwhile
            if "run" in words and "--config" in words:
                folder = Path(words[words.index("--config") + 1]).parent
                found[:] = [(int(child), folder)]
                audit = folder / "audit.jsonl"
                return event == "" or (audit.exists() and f'"event":"{event}"' in audit.read_text(encoding="utf-8"))
        return False

    wait_until(has_come, f"a gateway of that process, and its {event or 'start'}", 60)
    return found[0]


@pytest.mark.parametrize(("example", "event"), [("smoke", ""), ("smoke", "admitted"), ("attack", "refused")])
def test_an_interrupted_run_ends_2_and_leaves_nothing_behind(example: str, event: str, tmp_path: Path) -> None:
    """SIGTERM, as a CI server sends it, while the gateway starts, with devices there, and in the middle of attacks."""
    report = tmp_path / "report.xml"
    command = [BIN / "device-sim", "scenario", "run", SMOKE.with_stem(example), "--junit", report]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        gateway_process, folder = gateway_of(running.pid, event)
        running.terminate()
        _, said = running.communicate(timeout=60)
    assert running.returncode == 2
    assert b"interrupted" in said
    assert not Path(f"/proc/{gateway_process}").exists()
    assert not folder.exists()
    assert not report.exists()


def test_a_signal_in_the_middle_of_a_start_comes_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between fork and return Popen is the only one who knows the process: an exception there would lose it."""
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("subprocess.Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt), interruptible(), OurGateway(Site.make(tmp_path)):
        pytest.fail("it was let on")
    assert [process.poll() is None for process in started] == [False]


def test_the_command_ends_2_when_there_is_no_broker(gateway: OurGateway) -> None:
    """No verdict: nothing answers there, --broker stands without its CA, or a report has no place."""
    where = ("--broker", "127.0.0.1:1", "--ca", gateway.site.ca.folder)
    run_it = ("device-sim", "scenario", "run", SMOKE, "--scale", "0.01")
    assert attempt(*run_it, "--broker", "localhost").returncode == 2
    assert attempt(*run_it, *where).returncode == 2
    assert attempt(*run_it, "--junit", gateway.site.folder / "absent" / "smoke.xml").returncode == 2
