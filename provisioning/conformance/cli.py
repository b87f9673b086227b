"""`mqtt-provision spp1 conformance`: what a firmware engineer runs against a device."""

import textwrap
from collections import Counter
from collections.abc import Iterable

import click

from mtls.cli import ListedGroup, narrate
from provisioning import report
from provisioning.conformance.checking import Outcome, Result, conforms
from provisioning.conformance.judging import judge
from provisioning.options import baud_option, json_option
from provisioning.port import SerialPort

COLUMNS = 80
INDENT = " " * 8


@click.group("spp1", cls=ListedGroup)
def spp1() -> None:
    """The serial protocol's device side.

    \b
    mqtt-provision spp1 conformance --port /dev/serial/by-path/...
    """


@spp1.command()
@click.option("--port", required=True, metavar="PORT", help="Serial port, best by /dev/serial/by-path.")
@baud_option
@click.option("--yes-erase", is_flag=True, help="The device is not blank, and what it holds may be lost.")
@click.option("--seal-final", is_flag=True, help="Judge the policy `final` too: the device stays sealed for good.")
@json_option
def conformance(port: str, baud: int, yes_erase: bool, seal_final: bool, json_: bool) -> None:
    """Hold a device against the specification, check by check (docs/spp1.md).

    DESTRUCTIVE: the checks make keys, replace them, seal the device and erase
    it. Exit 0: it conforms, 1: it does not, 2: it holds a key, and nobody said
    --yes-erase.

    \b
    mqtt-provision spp1 conformance --port /dev/serial/by-path/...
    mqtt-provision spp1 conformance --port dev0 --yes-erase --json
    """
    narrate("warning: this makes keys in the device, seals it and erases it")
    with SerialPort(port, baud) as line:
        results = shown(judge(line, yes_erase=yes_erase, seal_final=seal_final), json_=json_)
    click.echo(report.as_json(as_row(port, results)) if json_ else summary(results))
    click.get_current_context().exit(0 if conforms(results) else 1)


def shown(results: Iterable[Result], *, json_: bool) -> list[Result]:
    """All results, each printed as soon as it is there unless one object is wanted in the end."""
    kept = []
    for result in results:
        kept.append(result)
        if not json_:
            click.echo(as_text(result))
    return kept


def as_text(result: Result) -> str:
    """One line, and the reason below it where there is one."""
    check = result.check
    line = f"{result.outcome:<{len(INDENT)}}{check.clause:<10}{check.name:<20} {check.must}"
    if not result.reason:
        return line
    return f"{line}\n{textwrap.fill(result.reason, COLUMNS, initial_indent=INDENT, subsequent_indent=INDENT)}"


def summary(results: Iterable[Result]) -> str:
    """The last line."""
    kept = list(results)
    counts = Counter(result.outcome for result in kept)
    words = ", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome)
    return f"{words}: the device {'conforms' if conforms(kept) else 'does not conform'} to SPP/1"


def as_row(port: str, results: list[Result]) -> dict[str, object]:
    """The whole judgement for a program."""
    return {"port": port, "conforms": conforms(results), "checks": [result.as_row() for result in results]}
