"""`mqtt-gateway`: the commands of the gateway.

Each command parses, calls the library and prints: results on standard output, narration on standard error, faults as
`error:` and `hint:` in one place. Exit codes: 0 done, 1 the answer is no, 2 usage, 78 configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway import asking, crl_fetch, report, service
from gateway.config import GatewayConfig
from gateway.keeping import check_kept
from gateway.options import Command, ask, config_option, json_option, live, path_option, show
from gateway.policy import Action, Policy
from gateway.policy import explain as policy_tools
from gateway.policy.cases import run_cases
from gateway.policy.check import check
from gateway.security import load_security
from gateway.store.cli import store
from gateway.timekeeping import wall_clock
from gateway.torture.cli import torture
from gateway.uplink.cli import spool
from mtls.cli import FaultGroup, narrate
from mtls.errors import Refusal
from mtls.terminal import sanitise


@click.group(cls=FaultGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
def cli() -> None:
    """Serve MQTT to devices that are who their certificates say.

    \b
    mqtt-gateway check-config --config gateway.toml
    mqtt-gateway run --config gateway.toml
    mqtt-gateway status
    mqtt-gateway deny add press-07
    mqtt-gateway explain --cert press-07.crt --action publish \\
        --topic devices/press-07/state --config gateway.toml
    """


@cli.command()
@config_option
@click.option("--verbose", is_flag=True, help="Log what amqtt and its plugins say as well.")
def run(config: Path, verbose: bool) -> None:
    """Serve until SIGTERM or Ctrl-C. SIGHUP reloads.

    \b
    mqtt-gateway run --config /etc/mqtt-gateway/gateway.toml
    """
    service.log_to_stderr(verbose)
    service.serve(config)


@cli.command("check-config")
@config_option
@json_option
def check_config(config: Path, json_: bool) -> None:
    """Read and verify everything that the configuration names; exit 78 when it cannot be used.

    \b
    mqtt-gateway check-config --config /etc/mqtt-gateway/gateway.toml
    mqtt-gateway check-config --config gateway.toml --json
    """
    loaded = GatewayConfig.load(config)
    row = report.check_config_row(loaded, load_security(loaded), check_kept(loaded))
    show(row, json_, report.check_config_text)
    for warning in row["warnings"]:
        narrate(f"warning: {sanitise(warning)}")


@cli.command()
@live
@json_option
def status(socket_file: Path | None, config: Path | None, json_: bool) -> None:
    """Show how the running gateway is doing.

    \b
    mqtt-gateway status
    mqtt-gateway status --config gateway.toml --json
    """
    show(ask(socket_file, config, "status"), json_, report.status_text)


@cli.command()
@live
@json_option
def sessions(socket_file: Path | None, config: Path | None, json_: bool) -> None:
    """List sessions, live and stored.

    \b
    mqtt-gateway sessions
    mqtt-gateway sessions --json | jq '.[] | select(.connected) | .id'
    """
    show(ask(socket_file, config, "sessions"), json_, report.sessions_text)


@cli.command()
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


@cli.command()
@live
@json_option
def reload(socket_file: Path | None, config: Path | None, json_: bool) -> None:
    """Read policy, CRL, deny list, CAs and server certificate again; on a fault the old set stays.

    \b
    mqtt-gateway reload
    mqtt-gateway reload --config gateway.toml
    """
    show_reload(ask(socket_file, config, "reload"), json_)


def show_reload(row: dict[str, Any], json_: bool) -> None:
    """What a reload did, and what it could not."""
    show(row, json_, report.reload_text)
    for warning in row["warnings"]:
        narrate(f"warning: {sanitise(warning)}")
    if row["needs_restart"]:
        narrate(f"warning: in force after a restart only: {', '.join(row['needs_restart'])}")


@cli.group()
def deny() -> None:
    """The deny list: ids and certificates that are refused at once, without waiting for a CRL.

    \b
    mqtt-gateway deny add press-07
    mqtt-gateway deny list
    """


def deny_entries(command: Command) -> Command:
    """What goes on the list or off it."""
    command = click.argument("ids", metavar="[ID]...", nargs=-1)(command)
    command = click.option("--certificate-serial", "serials", metavar="HEX", multiple=True, help="Repeatable.")(command)
    return click.option("--fingerprint", "fingerprints", metavar="HEX", multiple=True, help="SHA-256; repeatable.")(
        command
    )


def change_deny_list(
    command: str,
    ids: tuple[str, ...],
    serials: tuple[str, ...],
    fingerprints: tuple[str, ...],
    where: tuple[Path | None, Path | None],
    json_: bool,
) -> None:
    """Change the list through the running gateway; exit 1 when nothing changed."""
    if not (ids or serials or fingerprints):
        raise click.UsageError("name an ID, --certificate-serial or --fingerprint")
    result = ask(*where, command, ids=ids, certificate_serials=serials, fingerprints=fingerprints)
    show(result, json_, lambda row: f"{row['file']}: {row['changed']} entries changed")
    if not json_:
        show_reload(result["reload"], json_)
    if not result["changed"]:
        click.get_current_context().exit(1)


@deny.command("add")
@deny_entries
@live
@json_option
def deny_add(
    ids: tuple[str, ...],
    serials: tuple[str, ...],
    fingerprints: tuple[str, ...],
    socket_file: Path | None,
    config: Path | None,
    json_: bool,
) -> None:
    """Refuse devices or certificates from now on; live connections are closed within 2 s.

    \b
    mqtt-gateway deny add press-07 press-08
    mqtt-gateway deny add --certificate-serial 3f:9a:...
    """
    change_deny_list("deny_add", ids, serials, fingerprints, (socket_file, config), json_)


@deny.command("remove")
@deny_entries
@live
@json_option
def deny_remove(
    ids: tuple[str, ...],
    serials: tuple[str, ...],
    fingerprints: tuple[str, ...],
    socket_file: Path | None,
    config: Path | None,
    json_: bool,
) -> None:
    """Take devices or certificates off the list. A revoked certificate stays revoked.

    \b
    mqtt-gateway deny remove press-07
    """
    change_deny_list("deny_remove", ids, serials, fingerprints, (socket_file, config), json_)


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


@cli.command()
@path_option("--cert", metavar="F", help="Ask as the holder of this certificate.")
@click.option("--id", "id_", metavar="ID", help="Ask as a device of this name.")
@click.option("--issuer", metavar="CN", help="With --id: common name of its issuing CA.")
@click.option("--ou", multiple=True, metavar="OU", help="With --id: its organizational unit; repeatable.")
@click.option("--action", required=True, type=click.Choice([action.value for action in Action]))
@click.option("--topic", default="", metavar="T", help="Topic name, or filter to subscribe.")
@click.option("--client-id", metavar="C", help="Client identifier; else one that the policy allows.")
@path_option("--config", metavar="F", help="Judge the certificate too, and take the policy from this gateway.toml.")
@path_option("--policy", "policy_file", metavar="F", help="Ask this policy.")
@json_option
def explain(
    cert: Path | None,
    id_: str | None,
    issuer: str | None,
    ou: tuple[str, ...],
    action: str,
    topic: str,
    client_id: str | None,
    config: Path | None,
    policy_file: Path | None,
    json_: bool,
) -> None:
    """Say what a device may do and why: decision, role, rule, line; exit 1 when denied.

    \b
    mqtt-gateway explain --cert press-07.crt --action publish \\
        --topic devices/press-07/state --config gateway.toml
    mqtt-gateway explain --id press-07 --action subscribe \\
        --topic 'devices/#' --policy policy.toml
    """
    if (cert is None) == (id_ is None):
        raise click.UsageError("name either --cert or --id")
    if (action == Action.CONNECT) == bool(topic):
        raise click.UsageError("every action but connect needs --topic")
    rules = asking.Rules.load(config, policy_file)
    peer = asking.peer_of_file(cert, rules, wall_clock()) if cert else None
    peer = peer or asking.peer_named(str(id_), issuer, ou, rules)
    if isinstance(peer, Refusal):
        show(
            report.refusal_row(peer),
            json_,
            lambda row: f"decision   deny ({row['reason']})\nwhy        {row['detail']}",
        )
        click.get_current_context().exit(1)
    known = rules.registry.attributes(peer.id)
    found = policy_tools.explain(rules.policy, peer, Action(action), topic, client_id, attributes=known)
    click.echo(found.to_json() if json_ else found.to_text())
    click.get_current_context().exit(found.exit_code)


@cli.group()
def policy() -> None:
    """Test and prove a policy.

    \b
    mqtt-gateway policy test cases.toml --policy policy.toml
    mqtt-gateway policy check --policy policy.toml
    """


@policy.command("test")
@click.argument("cases", type=click.Path(path_type=Path))
@path_option("--policy", "policy_file", required=True, metavar="F", help="The policy to ask.")
@json_option
def policy_test(cases: Path, policy_file: Path, json_: bool) -> None:
    """Ask the policy every case of a file; exit 1 when an answer differs.

    \b
    mqtt-gateway policy test cases.toml --policy policy.toml
    """
    found = run_cases(Policy.load(policy_file), cases)
    click.echo(found.to_json() if json_ else found.to_text())
    click.get_current_context().exit(found.exit_code)


@policy.command("check")
@path_option("--policy", "policy_file", required=True, metavar="F", help="The policy to prove.")
@click.option("--id", "ids", metavar="ID", multiple=True, help="An id to think with, where patterns hide them.")
@json_option
def policy_check(policy_file: Path, ids: tuple[str, ...], json_: bool) -> None:
    """Prove that no device reaches another's topics, or show the topic; exit 1 when one does.

    \b
    mqtt-gateway policy check --policy policy.toml
    mqtt-gateway policy check --policy policy.toml --id press-07 --id press-08
    """
    found = check(Policy.load(policy_file), ids)
    click.echo(found.to_json() if json_ else found.to_text())
    click.get_current_context().exit(found.exit_code)


@cli.group()
def crl() -> None:
    """Certificate revocation lists.

    \b
    mqtt-gateway crl fetch --config gateway.toml
    """


@crl.command("fetch")
@config_option
@json_option
def crl_fetch_(config: Path, json_: bool) -> None:
    """Fetch [listener] crl_url into crl_file if a known CA signed it and its number grew.

    \b
    mqtt-gateway crl fetch --config /etc/mqtt-gateway/gateway.toml
    """
    found = crl_fetch.fetch_crl(GatewayConfig.load(config))
    show(report.fetch_row(found), json_, report.fetch_text)
    narrate(f"{found.file} {'is replaced' if found.replaced else 'is as new as what was fetched'}")


cli.add_command(store)
cli.add_command(torture)
cli.add_command(spool)


def main() -> None:
    """The entry point of the console script."""
    cli(prog_name="mqtt-gateway")


if __name__ == "__main__":
    main()
