"""The gateway beside mosquitto and stock amqtt, on this machine, over mutual TLS, in one run.

    make bench                                               three rounds with 100 devices, about four minutes
    make bench BENCH='--quick'                               does it work? under a minute, the figures mean little
    make bench BENCH='--devices 100,2000 --rounds 5'         what grows with the fleet with 2,000 devices as well
    make bench BENCH='--json' > bench.json                   every measurement; `python -m benchmarks.report` reads it
    make bench BENCH='--chart bench.svg'                     a chart beside the table

Each broker has the first core, the generator the others. The table, in Markdown, is on standard output. It ends 1
when the gateway failed at something. How to read it: docs/performance.md.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.brokers import GATEWAY, Broker, installed, running
from benchmarks.charts import ratios
from benchmarks.generator import Failed, Generator, Row, allow_many_files
from benchmarks.pki import Pki
from benchmarks.results import Run, lines_of, machine
from benchmarks.tables import rates, scores
from benchmarks.works import CONNECTS, Work, works
from mtls.errors import Fault


def main() -> int:
    options = _options()
    available = sorted(os.sched_getaffinity(0))
    others = available[1:] or available
    processes = options.processes or max(1, min(4, len(others)))
    wanted = works(options.devices, options.idle, connects=options.connects, two_cores=len(available) > 1)
    allow_many_files()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mqtt-bench-") as name:
        folder = Path(name)
        generator = Generator(Pki(folder), processes, others, options.seconds)
        for number in range(1, options.rounds + 1):
            for broker in installed():
                print(f"round {number} of {options.rounds}: {broker.name}", file=sys.stderr)
                rows += _round(number, broker, _for(broker, wanted, options.devices[0]), generator, available[:2])
    run = Run(machine(), tuple(wanted), tuple(rows))
    lines = lines_of([run])
    if options.chart:
        options.chart.write_text(ratios(lines), encoding="utf-8")
    print(json.dumps(run.as_json(), indent=1) if options.json else f"{scores(lines)}\n\n{rates(lines)}")
    return 0 if len([row for row in rows if row.broker == "gateway"]) == len(wanted) * options.rounds else 1


def _for(broker: Broker, wanted: list[Work], first: int) -> list[Work]:
    """Stock amqtt needs minutes for thousands of devices: it is measured with the first number only."""
    return [
        work for work in wanted if broker.name != "amqtt" or work.devices <= first or work.kind in ("idle", "connect")
    ]


def _round(number: int, broker: Broker, wanted: list[Work], generator: Generator, cores: list[int]) -> list[Row]:
    """All kinds of work against one broker: those for one core, then, started anew, those for two."""
    rows = []
    for spread in (False, True):
        own = [work for work in wanted if (work.score == "per_second") == spread]
        # The others run on one core whatever they are given.
        mine = cores if spread and broker is GATEWAY else cores[:1]
        if not own:
            continue
        try:
            with running(broker, generator.pki, generator.pki.folder / broker.name, mine) as it:
                for work in own:
                    try:
                        rows.append(generator.measure(work, it, number))
                    except Failed as fault:
                        print(f"failed: {fault}", file=sys.stderr)
        except Fault as fault:
            print(f"failed: {fault}", file=sys.stderr)
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=_sizes, default=[100], help="100, or several numbers: 100,2000")
    parser.add_argument("--seconds", type=float, default=1.5, help="that each measurement counts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=int, default=1000, help="connections for the memory of an idle one")
    parser.add_argument("--connects", type=int, default=CONNECTS, help="full handshakes in one measurement")
    parser.add_argument("--processes", type=int, help="of the generator; one per core that it has, at most four")
    parser.add_argument("--json", action="store_true", help="every measurement instead of the table")
    parser.add_argument("--chart", type=Path, help="write the ratios to this SVG file")
    parser.add_argument("--quick", action="store_true", help="for function only: few devices, short, one round")
    options = parser.parse_args()
    if options.quick:
        options.devices, options.seconds, options.rounds = [10], 0.3, 1
        options.idle, options.connects = 20, 20
    return options


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in text.split(",")]
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text}: numbers of devices are 1 and more")
    return sizes


if __name__ == "__main__":
    sys.exit(main())
