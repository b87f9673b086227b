"""`mqtt-gateway status`, `sessions`, `kick`, `reload`, `deny`: the commands that ask the running gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway import report
from gateway.options import ask, json_option, live, show
from mtls.cli import Command, ListedGroup, narrate
from mtls.errors import ConfigFault
from mtls.terminal import sanitise


@click.command()
@live
@json_option
def status(socket_file: Path | None, config: Path | None, json_: bool) -> None:
    """Show how the running gateway is doing.

    \b
    mqtt-gateway status
    mqtt-gateway status --config gateway.toml --json
    """
    show(ask(socket_file, config, "status"), json_, report.status_text)


@click.command()
@live
@json_option
def sessions(socket_file: Path | None, config: Path | None, json_: bool) -> None:
    """List sessions, live and stored.

    \b
    mqtt-gateway sessions
    mqtt-gateway sessions --json | jq '.[] | select(.connected) | .id'
    """
    show(ask(socket_file, config, "sessions"), json_, report.sessions_text)


@click.command()
@click.argument("id_", metavar="ID")
@live
@json_option
def kick(id_: str, socket_file: Path | None, config: Path | None, json_: bool) -> None:
    """Close the connections of a device; it may come back. Exit 1 when it has none.

    \b
    mqtt-gateway kick press-07
    mqtt-gateway deny add press-07        to keep it out
    """
    result = ask(socket_file, config, "kick", id=id_)
    show(result, json_, lambda row: f"closed {row['closed']} connections of {sanitise(row['id'])}")
    if not result["closed"]:
        click.get_current_context().exit(1)


@click.command()
@live
@json_option
def reload(socket_file: Path | None, config: Path | None, json_: bool) -> None:
    """Read policy, CRL, deny list, CAs and server certificate again; on a fault the old set stays.

    \b
    mqtt-gateway reload
    mqtt-gateway reload --config gateway.toml
    """
    try:
        row = ask(socket_file, config, "reload")
    except ConfigFault:
        narrate("nothing was reloaded: what was in force stays in force")
        raise
    show_reload(row, json_)


def show_reload(row: dict[str, Any], json_: bool) -> None:
    """What a reload did, and what it could not."""
    show(row, json_, report.reload_text)
    for warning in row["warnings"]:
        narrate(f"warning: {sanitise(warning)}")
    if row["needs_restart"]:
        narrate(f"warning: in force after a restart only: {', '.join(row['needs_restart'])}")


@click.group(cls=ListedGroup)
def deny() -> None:
    """The deny list: ids and certificates that are refused at once, without waiting for a CRL.

    \b
    mqtt-gateway deny add press-07
    mqtt-gateway deny list
    """


def deny_entries(command: Command) -> Command:
    """What goes on the list or off it."""
    command = click.argument("ids", metavar="[ID]...", nargs=-1)(command)
    for option, kind, help_ in (
        ("--certificate-serial", "certificate_serials", "Repeatable."),
        ("--fingerprint", "fingerprints", "SHA-256; repeatable."),
    ):
        command = click.option(option, kind, metavar="HEX", multiple=True, help=help_)(command)
    return command


def change_deny_list(
    command: str, *, socket_file: Path | None, config: Path | None, json_: bool, **entries: tuple[str, ...]
) -> None:
    """Change the list through the running gateway, by kind of entry; exit 1 when nothing changed."""
    if not any(entries.values()):
        raise click.UsageError("name an ID, --certificate-serial or --fingerprint")
    result = ask(socket_file, config, command, **entries)
    show(result, json_, lambda row: f"{row['file']}: {row['changed']} entries changed")
    if not json_:
        show_reload(result["reload"], json_)
    if not result["changed"]:
        click.get_current_context().exit(1)


@deny.command("add")
@deny_entries
@live
@json_option
def deny_add(**told: Any) -> None:
    """Refuse devices or certificates from now on; live connections are closed within 2 s.

    \b
    mqtt-gateway deny add press-07 press-08
    mqtt-gateway deny add --certificate-serial 3f:9a:...
    """
    change_deny_list("deny_add", **told)


@deny.command("remove")
@deny_entries
@live
@json_option
def deny_remove(**told: Any) -> None:
    """Take devices or certificates off the list. A revoked certificate stays revoked.

    \b
    mqtt-gateway deny remove press-07
    """
    change_deny_list("deny_remove", **told)


@deny.command("list")
@live
@json_option
def deny_list(socket_file: Path | None, config: Path | None, json_: bool) -> None:
    """Show the deny list.

    \b
    mqtt-gateway deny list
    mqtt-gateway deny list --json
    """
    show(ask(socket_file, config, "deny_list"), json_, report.deny_text)
