"""docs/gateway.md against the program: every reason, event and command, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gateway.audit import EVENTS
from gateway.cli import cli
from gateway.metrics import PREFIX, registry_of
from mtls.errors import Reason
from tests.gateway.test_metrics import STATUS

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")


def first_cells(header: str) -> list[str]:
    """What stands between backquotes in the first column of the table with this header."""
    table = GUIDE.split(f"| {header} |", 1)[1].split("\n\n", 1)[0]
    return [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name in group.list_commands(context := click.Context(group)):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


COMMANDS = commands(cli)


def test_the_guide_explains_every_reason_and_no_other() -> None:
    """A reason that is not in the list does not exist, in the order of the enum."""
    assert first_cells("reason") == [reason.value for reason in Reason]


def test_the_guide_explains_every_event_and_no_other() -> None:
    """The same for events."""
    assert sorted(first_cells("event")) == sorted(EVENTS)


def test_the_guide_explains_every_metric_and_no_other() -> None:
    """The same for metrics."""
    families = registry_of(lambda: STATUS).collect()
    shown = [sample.name for family in families for sample in family.samples if sample.name.startswith(PREFIX)]
    assert sorted(first_cells("metric")) == sorted({name.removeprefix(PREFIX) for name in shown})


def test_the_guide_lists_every_command_and_no_other() -> None:
    """The same for commands."""
    assert sorted(first_cells("command")) == sorted(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_opens_with_real_examples_within_80_columns(name: str) -> None:
    """Every command shows how it is typed; options and text fit a small terminal."""
    done = CliRunner().invoke(cli, [*name.split(), "--help"], prog_name="mqtt-gateway")
    assert done.exit_code == 0
    assert f"  mqtt-gateway {name}" in done.output.split("Options:")[0].split("\n", 1)[1]
    assert max(len(line) for line in done.output.splitlines()) <= 80


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_an_unknown_option_is_a_usage_error(name: str) -> None:
    """Exit code 2 is for the way a command is typed, and for nothing else."""
    assert CliRunner().invoke(cli, [*name.split(), "--no-such-option"]).exit_code == 2
