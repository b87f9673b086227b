"""`make bench` and its companions in their shortest forms, for function: nothing here judges a time.

What docs/performance.md shows runs here so, with fewer devices and rounds:

    make bench
    make bench BENCH='--quick'
    make bench BENCH='--devices 100,2000 --rounds 5'
    make bench BENCH='--chart bench.svg'
    .venv/bin/python -m benchmarks.growth
    .venv/bin/python -m benchmarks.report bench.json growth.json
"""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.generator import Generator
from benchmarks.growth import Bench
from benchmarks.laws import law_of
from benchmarks.pki import Pki
from benchmarks.report import put
from benchmarks.results import Run, lines_of
from benchmarks.works import Work
from tests.integration.programs import ENVIRONMENT, REPOSITORY, wait_until
from tests.support.environment import unmeasured
from tests.support.once import made_once

BROKERS = {"mosquitto", "gateway", "amqtt"}
FAN_IN = Work("fan-in", 100, 1.2, 0.9)


def module(name: str, *words: str) -> str:
    """What a module of the benchmarks prints."""
    command = [sys.executable, "-m", name, *words]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=unmeasured(ENVIRONMENT), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a quick run with two sizes of fleet and two generator processes."""

    def measure(folder: Path) -> None:
        words = ("--quick", "--processes", "2", "--json")
        (folder / "bench.json").write_text(module("benchmarks", *words), encoding="utf-8")

    return made_once(tmp_path_factory, "bench", measure) / "bench.json"


def test_the_bench_measures_every_work_of_every_broker(bench: Path) -> None:
    """Everything is done by all three brokers, and the gateway loses no QoS 1 message."""
    run = Run.from_json(json.loads(bench.read_text(encoding="utf-8")))
    assert {(row.work, row.broker) for row in run.rows} == {(work.name, name) for work in run.works for name in BROKERS}
    assert all(row.figure > 0 for row in run.rows if row.score != "kib_per_connection")
    assert all(row.lost == 0 for row in run.rows if "QoS 1" in row.work and row.broker == "gateway")


def test_a_bench_that_is_ended_leaves_no_broker_behind(tmp_path: Path) -> None:
    """SIGTERM ends Python without a word; what it has started ends with it."""
    command = [sys.executable, "-m", "benchmarks", "--quick"]
    environment = {**unmeasured(ENVIRONMENT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL) as running:
        wait_until(lambda: serving_below(tmp_path), "the first broker", 60)
        running.terminate()
        running.wait(20)
    wait_until(lambda: not serving_below(tmp_path), "the end of the broker")


def serving_below(folder: Path) -> list[str]:
    """The command lines of the processes that work with this folder; a zombie has none."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            found.append((process / "cmdline").read_text(errors="replace"))
    return [words for words in found if str(folder) in words]


def test_the_report_fills_the_page_and_draws(bench: Path, tmp_path: Path) -> None:
    """Tables stand between their markers, the rest of the page is as it was, and the charts are SVG."""
    growth = tmp_path / "growth.json"
    words = ("--quick", "--curves", "grants,connections", "--json")
    growth.write_text(module("benchmarks.growth", *words), encoding="utf-8")
    shutil.copy(REPOSITORY / "docs/performance.md", tmp_path)
    module("benchmarks.report", str(bench), str(growth), "--docs", str(tmp_path))
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    assert "| fan-in QoS 1, 10 devices" in page
    assert "CPU per message" in page
    before = (REPOSITORY / "docs/performance.md").read_text(encoding="utf-8")
    assert page.split("<!-- machine -->")[0] == before.split("<!-- machine -->")[0]
    for chart in ("performance.svg", "growth.svg"):
        assert ET.parse(tmp_path / chart).getroot().tag.endswith("svg")  # noqa: S314


def test_a_page_without_its_markers_is_refused() -> None:
    """The twin: results have a place on the page, or the report says which is missing."""
    assert put("a\n<!-- x -->\nold\n<!-- /x -->\nb\n", "x", "new") == "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="<!-- y -->"):
        put("<!-- x -->\n<!-- /x -->\n", "y", "new")


def run_of(*figures: tuple[int, str, int, float], work: Work = FAN_IN) -> Run:
    """A run from (round, broker, messages, CPU seconds)."""
    rows = [
        {"work": work.name, "broker": broker, "round": number, "score": work.score, "done": done, "cpu_seconds": cpu}
        for number, broker, done, cpu in figures
    ]
    rest = ("lost", "seconds", "generator_busy", "late_p99_ms", "p50_ms", "p99_ms", "kib_per_connection")
    values = {"machine": {}, "works": [], "rows": [{**dict.fromkeys(rest, 0), **row} for row in rows]}
    return Run({}, (work,), Run.from_json(values).rows)


def test_a_ratio_is_formed_inside_one_round() -> None:
    """A machine that is half as fast in one round halves both figures and leaves the ratio alone."""
    slow, fast = (
        ((1, "mosquitto", 100, 2.0), (1, "gateway", 120, 2.0)),
        ((1, "mosquitto", 100, 1.0), (1, "gateway", 120, 1.0)),
    )
    (line,) = lines_of([run_of(*slow), run_of(*fast)])
    assert line.ratio == pytest.approx(1.2)
    assert line.verdict == "reached"
    (missed,) = lines_of([run_of((1, "mosquitto", 100, 1.0), (1, "gateway", 80, 1.0))])
    assert missed.verdict == "below the floor"
    few, many = (run_of(*fast, work=Work("connect", number, 1.4, 1.1)) for number in (300, 1_000))
    assert [line.rounds for line in lines_of([few, many])] == [2]
    (alone,) = lines_of([run_of((1, "gateway", 80, 1.0))])
    assert (alone.ratio, alone.verdict) == (None, "")


@pytest.mark.parametrize(
    ("values", "law"),
    [
        ((5.0, 5.2, 5.1, 5.3), "flat"),
        ((5.0, 4.0, 3.0, 2.0), "flat"),
        ((1.0, 2.0, 3.0, 4.0), "logarithmic"),
        ((0.1, 1.0, 10.0, 100.0), "linear"),
        ((5.1, 6.0, 15.0, 105.0), "linear"),
    ],
)
def test_the_law_is_the_one_that_fits(values: tuple[float, ...], law: str) -> None:
    """Over 10, 100, 1,000 and 10,000 items, each law is told from the others."""
    assert law_of(list(zip((10.0, 100.0, 1_000.0, 10_000.0), values, strict=True))) == law


def test_a_cost_too_small_for_the_clock_ends_no_curve(tmp_path: Path) -> None:
    """CPU time comes in hundredths of a second: on a busy machine a short measurement may have cost none."""
    bench = Bench(Generator(Pki(tmp_path), 1, [0], 0.1), 0, rounds=2)
    assert bench.per_message("things", [(1, lambda: 0.0), (10, lambda: 5.0)]).ratio == 0.0
    assert bench.per_message("things", [(1, lambda: 2.0), (10, lambda: 5.0)]).ratio == 2.5


def test_the_durable_bench_measures_a_store_beside_memory_and_mosquitto() -> None:
    """Each broker acknowledges, and only the gateway with a store commits."""
    options = ("--seconds", "0.4,0.6", "--rounds", "1", "--devices", "2", "--processes", "1", "--json")
    result = json.loads(module("benchmarks.durable", *options))
    assert result["disk_syncs_per_second"] > 0
    assert [row["seconds"] for row in result["rows"]] == [0.4] * 3 + [0.6] * 3
    assert all(row["acknowledged"] > 0 for row in result["rows"])
    assert [row["commits"] > 0 for row in result["rows"]] == 2 * [True, False, False]


def test_the_replay_bench_hears_live_messages_alone_and_beside_a_backlog() -> None:
    """At both paces live messages arrive upstream, and the backlog goes."""
    rows = json.loads(module("benchmarks.replay", "--backlog", "500", "--seconds", "1", "--json"))
    assert len(rows) == 2
    assert all(row["alone_ms"] and row["beside_ms"] for row in rows)
    assert all(row["replayed_per_s"] > 0 for row in rows)
