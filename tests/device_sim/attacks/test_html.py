"""The page that compares brokers: a column for each, and what each lets through."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

from device_sim.attacks.ground import Attack, Finding, Ground
from device_sim.attacks.html import as_html
from device_sim.attacks.report import ATTACKS, AttackReport, Line
from tests.device_sim.reports.judge import judged
from tests.integration.programs import attempt
from tests.support.browser import FLAWS, Browser


def never(ground: Ground) -> Finding:
    raise AssertionError(ground)


def report_of(broker: str, attacks: tuple[Attack, ...], through: frozenset[str] = frozenset()) -> AttackReport:
    return AttackReport(
        broker,
        tuple(Line(one, Finding(one.name not in through, f"seen of {one.name} at {broker}")) for one in attacks),
    )


THROUGH = frozenset({"subscribe to #", "publish as another"})


def cells(page: str) -> list[list[str]]:
    """The table's lines as text."""
    root = ET.fromstring(page)  # noqa: S314 - our own page
    return [["".join(cell.itertext()) for cell in line.iter("td")] for line in root.iter("tr")][1:]


def test_a_column_for_each_broker_says_what_it_lets_through() -> None:
    """Ours holds what the other does not; the words stand in the cells of the right column."""
    page = as_html([report_of("ours", ATTACKS), report_of("theirs", ATTACKS, THROUGH)])
    lines = cells(page)
    assert len(lines) == len(ATTACKS)
    assert all(line[3].startswith("held") for line in lines)
    assert {line[1] for line in lines if line[4].startswith("LET THROUGH")} == THROUGH
    assert f"ours: {len(ATTACKS)} of {len(ATTACKS)} attacks held" in judged(page).text


def test_an_attack_that_was_not_tried_on_a_broker_is_not_called_held() -> None:
    """Reports of different length are aligned by attack, not by place."""
    first, second = ATTACKS[:2]
    lines = cells(as_html([report_of("ours", (first, second)), report_of("theirs", (second,))]))
    assert [line[4] for line in lines] == ["not tried", f"heldseen of {second.name} at theirs"]


def test_evidence_is_text() -> None:
    """Names and evidence come from brokers and certificates."""
    attack = Attack("<i>", "<script>alert(1)</script>", '" onclick="x', never)
    judge = judged(as_html([AttackReport("<b>", (Line(attack, Finding(False, "<img src=x>")),))]))
    assert not {"script", "img", "i"} & {*judge.tags}
    assert "<img src=x>" in judge.text
    assert judge.faults == []


def test_the_page_loads_in_a_browser_without_complaint(tmp_path: Path) -> None:
    """Chromium at the width of a desk and of a phone: no console message, nothing fetched, nothing too wide."""
    page = tmp_path / "compared.html"
    page.write_text(as_html([report_of("ours", ATTACKS), report_of("theirs", ATTACKS, THROUGH)]), encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        for width in (1280, 390):
            browser.open(page, width=width)
            assert browser.evaluate(FLAWS) == []
    assert browser.complaints == []
    assert {*browser.fetched} == {page.as_uri()}


def test_the_command_compares_two_brokers(tmp_path: Path) -> None:
    """One page with both, JSON as a list, JUnit with a suite each, exit code 1 because one let something through."""
    page, junit = tmp_path / "compared.html", tmp_path / "compared.xml"
    targets = ("--target", "gateway", "--target", "mosquitto", "--target", "gateway")
    done = attempt("device-sim", "attack", *targets, "--only", "P1", "--html", page, "--junit", junit, "--json")
    assert done.returncode == 1, done.stderr
    ours, theirs = json.loads(done.stdout)
    assert (ours["let_through"], theirs["let_through"]) == (0, 1)
    suites = ET.parse(junit).getroot()  # noqa: S314 - our own file
    assert [(suite.get("name"), suite.get("failures")) for suite in suites] == [
        (ours["broker"], "0"),
        (theirs["broker"], "1"),
    ]
    (line,) = cells(page.read_text(encoding="utf-8"))
    assert [cell[:4] for cell in line[3:]] == ["held", "LET "]
