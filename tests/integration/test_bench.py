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
