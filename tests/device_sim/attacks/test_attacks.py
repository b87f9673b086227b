"""Every attack is held by our gateway; what each can catch is in test_let_through.py."""

from __future__ import annotations

import json
import os
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_sim.attacks.ground import Attack, carry_out
from device_sim.attacks.report import ATTACKS
from device_sim.targets.brokers import ProcessBroker, broker_named
from tests.integration.programs import BIN, attempt, wait_until


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessBroker]:
    with broker_named("gateway", tmp_path_factory.mktemp("gateway")) as broker:
        yield broker


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.trap} {attack.name}")
def test_the_gateway_holds(gateway: ProcessBroker, attack: Attack) -> None:
    """Each attack, with what was seen in the message when it was not held."""
    finding = carry_out(attack, gateway)
    assert finding.held, finding.evidence


def test_the_command_writes_its_reports(tmp_path: Path) -> None:
    """JSON on standard output, JUnit in a file, exit code 0."""
    junit = tmp_path / "attacks.xml"
    done = attempt("device-sim", "attack", "--only", "P1", "--junit", junit, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["let_through"] == 0
    suite = ET.parse(junit).getroot()  # noqa: S314 - our own file
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")


def test_a_trap_that_there_is_none_of_is_named(tmp_path: Path) -> None:
    """Also beside one that there is: a name mistyped in a CI job is no attack held."""
    report = tmp_path / "attacks.xml"
    done = attempt("device-sim", "attack", "--only", "P1", "--only", "Z9", "--junit", report)
    assert (done.returncode, done.stdout, report.exists()) == (1, "", False)
    assert "'Z9'" in done.stderr


def test_an_interrupted_attack_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGTERM, as a CI server sends it: no verdict, no keys of its site in the temporary folder, and no gateway."""
    command = [BIN / "device-sim", "attack"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        wait_until(lambda: [*tmp_path.glob("*/audit.jsonl")], "the gateway's audit log", 60)
        running.terminate()
        _, said = running.communicate(timeout=60)
    assert (running.returncode, said) == (2, b"error: interrupted\n")
    assert [*tmp_path.iterdir()] == []


def test_the_command_says_what_is_let_through(tmp_path: Path) -> None:
    """The twin: mosquitto, a failure in the JUnit file, exit code 1."""
    junit = tmp_path / "attacks.xml"
    done = attempt("device-sim", "attack", "--target", "mosquitto", "--only", "P1", "--junit", junit)
    assert done.returncode == 1
    assert "LET THROUGH" in done.stdout
    assert ET.parse(junit).getroot().get("failures") == "1"  # noqa: S314 - our own file
