"""A run for CI servers and for Prometheus, judged by ElementTree and by Prometheus' own parser."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from device_sim.scenarios.junit import as_junit
from device_sim.scenarios.prometheus import as_prometheus
from device_sim.scenarios.result import ScenarioResult, Verdict
from tests.device_sim.scenarios.results import BUSY, MET, NOT_MET, attacked, result

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def test_a_suite_per_phase_and_a_case_per_expectation() -> None:
    """A failure says what was wanted and what was seen; an attack let through is a failure as well."""
    root = ET.fromstring(as_junit(result(attacks=attacked(frozenset({"subscribe to #"})))).encode())  # noqa: S314
    suites = {suite.get("name"): suite for suite in root}
    assert [*suites] == [
        *(f"power-cut: {name}" for name in ("ramp", "steady", "power-cut-of-the-whole-site", "recovery")),
        *("power-cut: the whole run", "mosquitto"),
    ]
    (case,) = suites["power-cut: ramp"]
    assert (case.get("name"), case.get("classname")) == ("refused certificate_expired (gone)", "power-cut.ramp")
    assert [(one.get("message"), one.text) for one in case] == [("3 certificate_revoked", "must: certificate_expired")]
    assert [(suite.get("tests"), suite.get("failures")) for suite in suites.values()][-2:] == [("1", "0"), ("51", "1")]
    assert (root.get("tests"), root.get("failures")) == ("53", "2")


def test_a_run_that_passed_has_no_failure() -> None:
    """The twin; an expectation that saw nothing fails nevertheless when it was not met."""
    assert ET.fromstring(as_junit(result(verdicts=(MET,))).encode()).get("failures") == "0"  # noqa: S314
    silent = dataclasses.replace(NOT_MET, seen="")
    assert ET.fromstring(as_junit(result(verdicts=(silent,))).encode()).get("failures") == "1"  # noqa: S314


def samples_of(run: ScenarioResult) -> Samples:
    """Name and labels -> value, but for scenario and broker; AssertionError when a series stands twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(as_prometheus(run)):
        for sample in family.samples:
            labels = frozenset((k, v) for k, v in sample.labels.items() if k not in ("scenario", "broker"))
            assert (sample.name, labels) not in found
            found[sample.name, labels] = sample.value
    return found


def one(found: Samples, name: str, **labels: str) -> float:
    return found[f"device_sim_{name}", frozenset(labels.items())]


def test_prometheus_reads_what_was_measured() -> None:
    """Verdicts, counts by reason, and a histogram that ends in all messages."""
    run = result(load=BUSY, attacks=attacked(frozenset({"subscribe to #"})), verdicts=(MET, NOT_MET, NOT_MET))
    found, ramp = samples_of(run), {"phase": "ramp", "devices": "sensors"}
    assert one(found, "scenario_passed") == 0
    assert one(found, "simulator_was_the_limit") == 1
    assert one(found, "acknowledged_lost") == 0
    assert one(found, "messages_acknowledged", **ramp) == 400
    assert one(found, "connections_refused", phase="ramp", devices="gone", reason="certificate_expired") == 9
    assert one(found, "latency_seconds_count", **ramp) == one(found, "latency_seconds_bucket", le="+Inf", **ramp) == 400
    assert one(found, "attack_held", trap="P3", attack="subscribe to #") == 0
    met = {"phase": "", "devices": "", "expectation": "acked_lost", "wanted": "<= 0"}
    assert one(found, "expectation_met", **met) == 1


def test_buckets_are_the_sorted_durations() -> None:
    """Counted by sorting, within the width of one counter."""
    run = result(names=("ramp",), groups=("sensors",))
    found, ramp = samples_of(run), {"phase": "ramp", "devices": "sensors"}
    latency = run.phases[0].groups["sensors"].latency
    for bound in (0.001, 0.0025, 0.01):
        least = sum(count for seconds, count in latency.steps() if seconds <= bound * 0.992)
        most = sum(count for seconds, count in latency.steps() if seconds <= bound * 1.008)
        assert least <= one(found, "latency_seconds_bucket", le=str(bound), **ramp) <= most
    assert one(found, "latency_seconds_sum", **ramp) == pytest.approx(
        sum(seconds * count for seconds, count in latency.steps())
    )


def test_what_was_not_measured_is_not_said() -> None:
    """Nobody listened: no number of losses, rather than a zero that nobody saw."""
    names = {name for name, _ in samples_of(result(lost=None))}
    assert "device_sim_acknowledged_lost" not in names
    assert "device_sim_attack_held" not in names
    assert one(samples_of(result(verdicts=(MET,))), "scenario_passed") == 1


def test_names_from_outside_stay_within_their_quotes() -> None:
    """Quotes, line breaks and escape sequences in a name make no second series."""
    words = 'a"} 1\ndevice_sim_forged{x="\x1b[2J'
    run = result(name=words, verdicts=(Verdict(words, words, words, words, words, False),))
    assert "device_sim_forged" not in {name for name, _ in samples_of(run)}


def test_the_page_of_the_documentation_names_every_metric_and_no_other() -> None:
    """docs/reports.md is what somebody builds a dashboard from."""
    page = (Path(__file__).parents[3] / "docs" / "reports.md").read_text(encoding="utf-8")
    lines = page.partition("## Prometheus")[2].partition("\n## ")[0].splitlines()
    named = {name for line in lines if line.startswith("| `") for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    families = text_string_to_metric_families(as_prometheus(result(attacks=attacked())))
    assert {family.name.removeprefix("device_sim_") for family in families} == named
