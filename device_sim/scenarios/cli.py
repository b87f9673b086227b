"""`device-sim scenario run` and `check`: parse, call the library, print.

Exit codes are a test's: 0 every expectation was met, 1 one was not, 2 the scenario could not be carried out.
"""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from device_sim.attacks.report import patience_with
from device_sim.fleet.identities import SimulationCa
from device_sim.scenarios.actions import ACTIONS
from device_sim.scenarios.engine import Place, Progress, check_answers, check_place, run
from device_sim.scenarios.expectations import EXPECTATIONS
from device_sim.scenarios.html import as_html
from device_sim.scenarios.junit import as_junit
from device_sim.scenarios.loading import load
from device_sim.scenarios.model import Scenario
from device_sim.scenarios.prometheus import as_prometheus
from device_sim.scenarios.result import ScenarioResult
from device_sim.scenarios.table import as_json, as_text
from device_sim.settings import parse_endpoint
from device_sim.stopping import interruptible
from device_sim.targets.brokers import BROKERS, broker_named
from mtls.cli import ListedGroup, defined, narrate, system_words
from mtls.errors import Fault, NoVerdict
from mtls.keystore import write_public

PATH = click.Path(path_type=Path)
REPORT = click.Path(path_type=Path, dir_okay=False)
REPORTS = {"html": as_html, "junit": as_junit, "prometheus": as_prometheus}
Words = Callable[[ScenarioResult], str]
ACTION_LINES = defined((name, action.effect) for name, action in ACTIONS.items())
EXPECTATION_LINES = defined((name, f"{one.takes}: {one.effect}") for name, one in EXPECTATIONS.items())


class ScenarioGroup(ListedGroup):
    """Whatever keeps a scenario from its verdict ends with 2, so that 1 is a verdict."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except Fault as fault:
            raise NoVerdict(str(fault), hint=fault.hint) from fault
        except OSError as error:
            raise NoVerdict(system_words(error)) from error


@click.group("scenario", cls=ScenarioGroup)
def scenario() -> None:
    """A file of phases, devices, faults and expectations, and a verdict in the exit code.

    \b
      device-sim scenario check smoke.toml
      device-sim scenario run smoke.toml
    """


@scenario.command("run")
@click.argument("file", type=PATH)
@click.option("--target", type=click.Choice(list(BROKERS)), help="The broker to start.  [default: gateway]")
@click.option("--broker", metavar="HOST[:PORT]", help="A broker that runs already, instead of --target.")
@click.option("--ca", type=PATH, help="With --broker: the test CA whose devices it lets in (device-sim test-ca).")
@click.option(
    "--seed", type=click.IntRange(0), help="The same seed: the same payloads in the same order.  [the file's]"
)
@click.option("--scale", type=click.FloatRange(0.001, 1000), default=1.0, help="Times the devices and the seconds.")
@click.option("--html", type=REPORT, help="Write a page with charts there.")
@click.option("--junit", type=REPORT, help="Write a JUnit XML report there.")
@click.option("--prometheus", type=REPORT, help="Write metrics there, as text for node_exporter's textfile collector.")
@click.option("--json", "json_wanted", is_flag=True, help="The report as JSON.")
def run_command(
    file: Path,
    target: str | None,
    broker: str | None,
    ca: Path | None,
    seed: int | None,
    scale: float,
    json_wanted: bool,
    **reports: Path | None,
) -> None:
    """Run a scenario against a broker that is started for it, and judge what was seen.

    \b
      device-sim scenario run examples/scenarios/smoke.toml
      device-sim scenario run examples/scenarios/attack.toml --target mosquitto
      device-sim scenario run smoke.toml --scale 0.1 \\
          --junit smoke.xml --html smoke.html
      device-sim scenario run smoke.toml --broker localhost:8883 --ca testca

    Exit code: 0 every expectation was met, 1 one was not, 2 the scenario could not be carried out.
    """
    wanted, writers = load(file).scaled(scale), writers_of(reports)
    with interruptible(), place_of(wanted, target, broker, ca) as place:
        result = asyncio.run(run(wanted, place, wanted.seed if seed is None else seed, progress_line()))
    for path, words in writers.items():
        write_public(path, words(result).encode())
    click.echo(as_json(result) if json_wanted else as_text(result))
    click.get_current_context().exit(result.exit_code)


@scenario.command("check", epilog=f"\b\nActions:\n{ACTION_LINES}\n\n\b\nExpectations:\n{EXPECTATION_LINES}")
@click.argument("file", type=PATH)
def check(file: Path) -> None:
    """Read a scenario, say what is in it, and start nothing.

    \b
      device-sim scenario check examples/scenarios/smoke.toml
    """
    wanted = load(file)
    number = len(wanted.wanted) + sum(len(phase.wanted) for phase in wanted.phases)
    devices, seconds = sum(group.count for group in wanted.devices), sum(phase.seconds for phase in wanted.phases)
    click.echo(
        f"{file}: {wanted.name}, {devices} devices, {len(wanted.phases)} phases, {seconds:g} s, {number} expectations"
    )


# --- out of what stands on the command line ---


def writers_of(reports: Mapping[str, Path | None]) -> dict[Path, Words]:
    """What is written where; Fault before a long run whose report would have no place."""
    writers: dict[Path, Words] = {path: REPORTS[kind] for kind, path in reports.items() if path is not None}
    for path in writers:
        if not path.parent.is_dir():
            raise Fault(f"{path.parent} is no folder for a report", hint=f"mkdir -p {path.parent}")
    return writers


@contextlib.contextmanager
def place_of(wanted: Scenario, target: str | None, broker: str | None, ca: Path | None) -> Iterator[Place]:
    """A broker that is started here and ended with the block, or one that runs already."""
    if broker is not None:
        if target is not None or ca is None:
            raise click.UsageError("--broker goes with --ca DIR, and without --target")
        place = Place(broker, parse_endpoint(broker), SimulationCa(ca))
        check_place(wanted, place)
        check_answers(place)
        yield place
        return
    kind = target or "gateway"
    with tempfile.TemporaryDirectory() as folder, broker_named(kind, Path(folder), wanted.gateway) as started:
        yield Place(started.name, started.endpoint, started.site.ca, started, patience_with(kind))


def progress_line() -> Progress:
    """What happens now, on a terminal only."""
    return narrate if sys.stderr.isatty() else lambda _: None
