"""`make bench` in its shortest form: it measures both brokers, and nothing is lost that must not be."""

import json
import sys

from tests.integration.programs import REPOSITORY, attempt


def test_the_bench_measures_both_brokers() -> None:
    """Every kind of work is done by both brokers, and no QoS 1 message is lost by either."""
    options = ("--seconds", "0.5", "--rounds", "1", "--devices", "2", "--processes", "1", "--json")
    done = attempt(sys.executable, REPOSITORY / "benchmarks/bench.py", *options, timeout_s=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 8
    assert {row["broker"] for row in rows} == {"mosquitto", "gateway"}
    assert all(row["done"] > 0 for row in rows)
    assert all(row["lost"] == 0 for row in rows if "QoS 1" in row["work"])


def test_the_durable_bench_measures_a_store_beside_memory_and_mosquitto() -> None:
    """Each broker acknowledges, and only the gateway with a store commits."""
    options = ("--seconds", "0.5", "--rounds", "1", "--devices", "2", "--processes", "1", "--json")
    done = attempt(sys.executable, REPOSITORY / "benchmarks/durable.py", *options, timeout_s=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["disk_syncs_per_second"] > 0
    assert len(result["rows"]) == 3
    assert all(row["acknowledged"] > 0 for row in result["rows"])
    assert [row["commits"] > 0 for row in result["rows"]] == [True, False, False]
