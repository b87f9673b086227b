"""The page of a run: verdict in words, wanted and seen, charts that are there, nothing foreign in it, bounded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from device_sim.fleet.fleet import Sample
from device_sim.reports.charts import MAX_POINTS, Point, thin
from device_sim.scenarios.html import as_html
from device_sim.scenarios.result import Verdict
from tests.device_sim.reports.judge import judged, pictures
from tests.device_sim.scenarios.results import BUSY, MET, attacked, result
from tests.integration.programs import REPOSITORY, attempt
from tests.support.browser import FLAWS, Browser

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
SMOKE = REPOSITORY / "examples" / "scenarios" / "smoke.toml"
LARGEST_PAGE = 600_000


def test_the_verdict_is_a_word_and_names_what_was_not_met() -> None:
    """FAIL with the expectation, what was wanted and what was seen; PASS when all was met."""
    failed, passed = judged(as_html(result())), judged(as_html(result(verdicts=(MET,))))
    assert "FAIL" in failed.text
    assert "1 of 2 expectations met" in failed.text
    assert "ramp · gone: refused: wanted certificate_expired, seen 3 certificate_revoked" in failed.text
    assert "NOT MET" in failed.text
    assert "PASS" in passed.text
    assert "FAIL" not in passed.text
    assert "NOT MET" not in passed.text


def test_what_a_reader_needs_is_on_the_page() -> None:
    """Broker, seed, how to run it again, losses, reasons, and whether the simulator was the limit."""
    text = judged(as_html(result())).text
    for words in (
        *("mqtt-gateway 0.1.0", "0 lost, 2 duplicates", "certificate_expired", "not the limit"),
        *("device-sim scenario run", "--seed 7", "Latency by percentile", "99.99%", "Backlog"),
    ):
        assert words in text, words
    assert "THE SIMULATOR WAS THE LIMIT" not in text
    assert "THE SIMULATOR WAS THE LIMIT" in judged(as_html(result(load=BUSY))).text
    assert "nobody listened" in judged(as_html(result(lost=None))).text


def test_attacks_are_shown_when_there_were_any() -> None:
    """Held and let through, with the evidence; without attacks there is no such part."""
    text = judged(as_html(result(attacks=attacked(frozenset({"subscribe to #"}))))).text
    assert "LET THROUGHseen of subscribe to #" in text
    assert "Attacks" not in judged(as_html(result())).text


def test_every_chart_is_well_formed_and_none_is_empty() -> None:
    """Two of latency, three of the course; each draws something and names its ticks."""
    charts = pictures(as_html(result()))
    assert len(charts) == 5
    for chart in charts:
        tags = [one.tag for one in chart.iter()]
        assert "polyline" in tags or tags.count("rect") > 4
        assert tags.count("text") > 4
        for one in chart.iter("polyline"):
            pairs = [pair.split(",") for pair in (one.get("points") or "").split()]
            assert all(-1 <= float(x) <= 401 and -1 <= float(y) <= 241 for x, y in pairs)


def test_a_run_without_messages_devices_or_time_makes_a_page() -> None:
    """A scenario that was refused everything has figures too."""
    page = as_html(result(groups=("x", "gone"), messages=0))
    assert "No message was acknowledged" in judged(page).text
    assert len(pictures(page)) == 3
    short = result(names=("x",), groups=("x",), seconds=0.0)
    assert len(pictures(as_html(dataclasses.replace(short, course=(), verdicts=())))) == 5


def test_a_scenario_of_attacks_alone_shows_no_empty_charts() -> None:
    """No devices, no curves; the attacks are there."""
    page = as_html(result(groups=(), attacks=attacked()))
    assert pictures(page) == []
    assert "No message" not in judged(page).text
    assert "51 of 51 attacks held" in judged(page).text


def test_names_and_evidence_are_text() -> None:
    """Whatever a scenario, a certificate or a broker calls itself: no tag and no attribute comes of it."""
    hostile = result(
        name=HOSTILE,
        names=(HOSTILE, "steady"),
        groups=(HOSTILE, "gone"),
        attacks=attacked(),
        verdicts=(MET, Verdict(HOSTILE, "ramp", HOSTILE, HOSTILE, HOSTILE, False)),
    )
    judge = judged(as_html(dataclasses.replace(hostile, broker=HOSTILE, description=HOSTILE)))
    assert not {"script", "img"} & {*judge.tags}
    assert judge.faults == []
    assert HOSTILE in judge.text


def test_a_day_and_many_phases_make_a_page_of_bounded_size() -> None:
    """Points are merged; the peak of a single second is still there."""
    day = 86400
    course = tuple(Sample(float(at), 4000 if at == 33_333 else 100, 0) for at in range(day))
    names = tuple(f"phase-{number}" for number in range(40))
    page = as_html(dataclasses.replace(result(names=names, seconds=day / 40, attacks=attacked()), course=course))
    assert len(page) < LARGEST_PAGE
    connected = pictures(page)[2]
    (line,) = connected.iter("polyline")
    heights = [float(pair.split(",")[1]) for pair in (line.get("points") or "").split()]
    assert len(heights) <= MAX_POINTS
    assert min(heights) < 25  # at the top of the picture: 4000 of 4000


def test_thinning_keeps_order_and_extremes() -> None:
    """Lowest and highest of every stretch, none moved."""
    points = [Point(number, (number * 37) % 101) for number in range(5000)]
    kept = thin(points)
    assert len(kept) <= MAX_POINTS
    assert {*kept} <= {*points}
    assert list(kept) == sorted(kept)
    assert {0, 100} <= {point.y for point in kept}
    assert thin(points[:10]) == points[:10]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    with Browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_drawn_without_flaw(browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    """In Chromium, narrow and wide, light and dark: no text over another, none cut off, nothing wider than the page."""
    page = tmp_path / "run.html"
    names = ("ramp", "steady", "power-cut-of-the-whole-site", "recovery", *(f"phase-{number}" for number in range(9)))
    page.write_text(as_html(result(names=names, attacks=attacked(), load=BUSY)), encoding="utf-8")
    browser.complaints.clear()
    browser.fetched.clear()
    browser.open(page, width=width, scheme=scheme)
    assert browser.evaluate(FLAWS) == []
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert browser.complaints == []
    assert browser.fetched == [page.as_uri()]


def test_a_page_that_runs_or_fetches_something_is_complained_of(browser: Browser, tmp_path: Path) -> None:
    """The twin: the policy in the page stops a script and a picture, and the browser says so; flaws are seen."""
    page = tmp_path / "bad.html"
    bad = "<script>document.title='run'</script><img src='http://127.0.0.1:9/x.png'><div style='width:9000px'>x</div>"
    overlap = "<figure><svg viewBox='0 0 9 9'><text x='1' y='8'>a</text><text x='1' y='8'>b</text></svg></figure>"
    page.write_text(as_html(result()).replace("</body>", bad + overlap + "</body>"), encoding="utf-8")
    browser.complaints.clear()
    browser.open(page)
    assert browser.evaluate("document.title") != "run"
    assert len([one for one in browser.complaints if "Content Security Policy" in one]) >= 3
    assert "overlap: a / b" in browser.evaluate(FLAWS)


def test_a_real_run_is_drawn(browser: Browser, tmp_path: Path) -> None:
    """The command's own page: what the engine measured fills the charts, and nothing in it is complained of."""
    page = tmp_path / "smoke.html"
    done = attempt("device-sim", "scenario", "run", SMOKE, "--scale", "0.1", "--html", page)
    assert page.exists(), done.stdout + done.stderr
    text = page.read_text(encoding="utf-8")
    assert ("PASS" in judged(text).text) == (done.returncode == 0)
    connected = pictures(text)[2]
    assert len((connected.findall("polyline")[0].get("points") or "").split()) >= 2
    browser.complaints.clear()
    browser.open(page, width=390)
    assert browser.evaluate(FLAWS) == []
    assert browser.complaints == []
