"""`mqtt-gateway explain`, `policy test`, `policy check`: the commands that ask a policy, and no gateway."""

from __future__ import annotations

from pathlib import Path

import click

from gateway import asking, report
from gateway.options import json_option, show
from gateway.policy import Action, Policy
from gateway.policy import explain as policy_tools
from gateway.policy.cases import run_cases
from gateway.policy.check import check
from gateway.timekeeping import wall_clock
from mtls.cli import ListedGroup, path_option
from mtls.errors import Refusal


@click.command()
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


@click.group(cls=ListedGroup)
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
