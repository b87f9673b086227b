"""How the gateway's costs grow: with connections, grants, roles, subscriptions and retained messages.

    python -m benchmarks.growth                        tables and one law per curve, some minutes
    python -m benchmarks.growth --curves grants,roles  some of the curves
    python -m benchmarks.growth --quick                does it work? small numbers, one round
    python -m benchmarks.growth --json > growth.json   `python -m benchmarks.report` reads it

Every point is a live gateway under fan-in at QoS 0. All points of a curve run side by side and are measured in turn,
round by round, so that the ratio of two points is formed inside one run.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.brokers import POLICY, Broker, Running, gateway_command, running
from benchmarks.generator import Generator, allow_many_files
from benchmarks.laws import sentence
from benchmarks.link import Link, connect_all, make_links
from benchmarks.pki import BACKEND, Pki
from benchmarks.policies import PROBES, costs_of, many_grants, many_roles
from benchmarks.results import machine
from benchmarks.works import PAYLOAD_BYTES, Work
from gateway.broker.packets import encode_publish

SIZES: dict[str, tuple[int, ...]] = {
    "connections": (100, 500, 2_000, 5_000),
    "grants": (10, 1_000, 100_000),
    "roles": (10, 1_000, 100_000),
    "subscriptions": (10, 100, 2_000, 20_000),
    "retained": (10, 1_000, 100_000),
}
QUICK = {"connections": (5, 10), "grants": (10, 20), "roles": (10, 20), "subscriptions": (10, 20), "retained": (10, 20)}
COUNTABLE = 1_000  # of fewer the memory drowns in what the process holds anyway
BUSY_DEVICES = 10  # that publish while something else grows
FILTERS_EACH = 1_000
AT_ONCE = 50
HOLDERS = '[[role]]\nname = "holder"\nmatch = { id = "hold*" }\nsubscribe = ["held/{id}/#"]\n'


@dataclass(frozen=True, slots=True)
class Curve:
    """Values of one cost over a growing number of `items`."""

    what: str
    unit: str
    items: str
    points: tuple[tuple[float, float], ...]
    ratio: float  # of the last point to the first, the median of the ratios of the rounds

    @property
    def law(self) -> str:
        return sentence(self.what, self.unit, self.items, self.points) + f" (x{self.ratio:.2f})"


@dataclass(frozen=True, slots=True)
class Bench:
    """What every curve needs."""

    generator: Generator
    core: int
    rounds: int

    @property
    def folder(self) -> Path:
        return self.generator.pki.folder

    @contextmanager
    def gateway(self, name: str, policy: str = POLICY, limits: str = "") -> Iterator[Running]:
        broker = Broker("gateway", partial(gateway_command, policy=policy, limits=limits), 150_000)
        with running(broker, self.generator.pki, self.folder / name, {self.core}) as it:
            yield it

    def cpu_us(self, running: Running, devices: int = BUSY_DEVICES) -> float:
        """Microseconds of the gateway's CPU for one message."""
        row = self.generator.measure(Work("fan-in", devices, 1.2, 0.9), running)
        return row.cpu_seconds / max(1, row.done) * 1e6

    def per_message(self, items: str, points: Sequence[tuple[int, Callable[[], float]]]) -> Curve:
        """The points in turn, round by round."""
        rounds = [[measure() for _, measure in points] for _ in range(self.rounds)]
        medians = [statistics.median(values) for values in zip(*rounds, strict=True)]
        ratio = statistics.median([values[-1] / values[0] for values in rounds if values[0]] or [0.0])
        numbers = [float(number) for number, _ in points]
        return Curve("CPU per message", "us", items, tuple(zip(numbers, medians, strict=True)), ratio)


def curve(what: str, unit: str, items: str, points: Sequence[tuple[float, float]]) -> Curve:
    """Of values that were measured once."""
    return Curve(what, unit, items, tuple(points), points[-1][1] / points[0][1] if points[0][1] else 0.0)


def connections(bench: Bench, sizes: Sequence[int]) -> list[Curve]:
    """Devices that take turns: their number changes, the rate does not."""
    limits = f"max_connections = {max(sizes) + 10}"
    memory = []
    for size in sizes:
        with bench.gateway("idle", limits=limits) as fresh:
            row = bench.generator.measure(Work("idle", size, 40, 64, score="kib_per_connection"), fresh)
            memory.append((float(size), row.kib_per_connection))
    with bench.gateway("connections", limits=limits) as it:
        cpu = bench.per_message("connections", [(size, partial(bench.cpu_us, it, size)) for size in sizes])
    return [cpu, curve("memory per idle connection", "KiB", "connections", memory)]


def policies(items: str, text_of: Callable[[int], str], bench: Bench, sizes: Sequence[int]) -> list[Curve]:
    """The policy grows; the devices that publish are the same."""
    costs = [(float(size), costs_of(text_of(size), size, bench.folder)) for size in sizes]
    spread = [(size, cost) for size, cost in costs if size >= PROBES] or costs  # else the same devices come again
    with ExitStack() as open_gateways:
        points = []
        for size in sizes:
            it = open_gateways.enter_context(bench.gateway(f"{items}-{size}", text_of(size)))
            points.append((size, partial(bench.cpu_us, it)))
        cpu = bench.per_message(items, points)
    return [
        cpu,
        curve("time to load the policy", "s", items, [(size, cost.load_s) for size, cost in costs]),
        curve("a first admission", "us", items, [(size, cost.admission_us) for size, cost in spread]),
        curve("a first decision", "us", items, [(size, cost.decision_us) for size, cost in spread]),
        curve("a remembered decision", "us", items, [(size, cost.remembered_us) for size, cost in spread]),
    ]


def subscriptions(bench: Bench, sizes: Sequence[int]) -> list[Curve]:
    """Filters of others, which match nothing that is published meanwhile."""
    return _held("subscriptions", bench, sizes, _subscribe, f"max_subscriptions_per_session = {FILTERS_EACH}")


def retained(bench: Bench, sizes: Sequence[int]) -> list[Curve]:
    """Messages that the gateway keeps for subscribers to come."""
    return _held("retained", bench, sizes, _retain, "")


def _held(
    items: str, bench: Bench, sizes: Sequence[int], hold: Callable[[Bench, Running, int], list[Link]], limits: str
) -> list[Curve]:
    memory, points = [], []
    with ExitStack() as stack:
        for size in sizes:
            it = stack.enter_context(bench.gateway(f"{items}-{size}", POLICY + HOLDERS, limits))
            bench.cpu_us(it)  # what the first messages allocate is not the items' memory
            before = it.resident_kib
            for link in hold(bench, it, size):
                stack.enter_context(closing(link))
            if size >= COUNTABLE or size == max(sizes):
                memory.append((float(size), (it.resident_kib - before) * 1024 / size))
            points.append((size, partial(bench.cpu_us, it)))
        cpu = bench.per_message(items, points)
    return [cpu, curve("memory per item", "bytes", items, memory)]


def _subscribe(bench: Bench, running: Running, count: int) -> list[Link]:
    """Connections that hold so many filters together."""
    links = []
    for number, start in enumerate(range(0, count, FILTERS_EACH)):
        filters = tuple(f"held/{{id}}/f{at}" for at in range(start, min(count, start + FILTERS_EACH)))
        links += make_links(bench.generator.pki, [f"hold{number:03}"], filters)
    connect_all(links, running.port, AT_ONCE)
    return links


def _retain(bench: Bench, running: Running, count: int) -> list[Link]:
    """Retained messages, each acknowledged; the one who sent them has left."""
    (link,) = make_links(bench.generator.pki, [BACKEND])
    connect_all([link], running.port, 1)
    link.socket.settimeout(60.0)
    for start in range(0, count, 100):
        topics = [f"devices/kept{at:06}/state".encode() for at in range(start, min(count, start + 100))]
        packets = [
            encode_publish(topic, bytes(PAYLOAD_BYTES), 1, True, False, at) for at, topic in enumerate(topics, 1)
        ]
        link.send(link.seal(b"".join(packets)))
        acknowledged = 0
        while acknowledged < 4 * len(topics):
            acknowledged += len(link.read())
    link.close()
    return []


CURVES: dict[str, Callable[[Bench, Sequence[int]], list[Curve]]] = {
    "connections": connections,
    "grants": partial(policies, "grants", many_grants),
    "roles": partial(policies, "roles", many_roles),
    "subscriptions": subscriptions,
    "retained": retained,
}


def main() -> int:
    options = _options()
    allow_many_files()
    available = sorted(os.sched_getaffinity(0))
    found: list[Curve] = []
    with tempfile.TemporaryDirectory(prefix="mqtt-growth-") as name:
        generator = Generator(Pki(Path(name)), 1, available[1:2] or available, options.seconds)
        bench = Bench(generator, available[0], options.rounds)
        for items in options.curves:
            print(f"measuring: {items}", file=sys.stderr)
            found += CURVES[items](bench, (QUICK if options.quick else SIZES)[items])
    print(json.dumps(as_json(found), indent=1) if options.json else "\n".join(f"- {one.law}" for one in found))
    return 0


def as_json(curves: Sequence[Curve]) -> dict[str, Any]:
    return {"machine": machine(), "curves": [{**asdict(one), "law": one.law} for one in curves]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curves", type=_names, default=list(CURVES), help=f"of {', '.join(CURVES)}")
    parser.add_argument("--seconds", type=float, default=1.5, help="that each measurement counts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="every point instead of the laws")
    parser.add_argument("--quick", action="store_true", help="for function only: small numbers, one round")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 0.3, 1
    return options


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in CURVES]:
        raise argparse.ArgumentTypeError(f"no curve {unknown[0]}; there are {', '.join(CURVES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
