"""What commands of the gateway share: options, how they ask the running gateway, and how they show an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gateway import control, report
from mtls.cli import Command, path_option


def show(value: Any, json_: bool, text: Callable[[Any], str]) -> None:
    """A result as JSON or as text; nothing for an empty text."""
    shown = report.as_json(value) if json_ else text(value)
    if shown:
        click.echo(shown)


config_option = path_option("--config", required=True, metavar="F", help="The gateway's configuration, gateway.toml.")
json_option = click.option("--json", "json_", is_flag=True, help="Print the result as JSON.")


def live(command: Command) -> Command:
    """The options that say which running gateway is meant."""
    command = path_option("--socket", "socket_file", metavar="S", help="The gateway's control socket.")(command)
    return path_option("--config", metavar="F", help="Take the socket from this gateway.toml.")(command)


def ask(socket_file: Path | None, config: Path | None, command: str, **arguments: Any) -> Any:
    """Ask the running gateway."""
    return control.call(control.socket_path(socket_file, config), command, **arguments)
