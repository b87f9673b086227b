"""`mqtt-gateway`: the commands of the gateway.

Each command parses, calls the library and prints: results on standard output, narration on standard error, faults as
`error:` and `hint:` in one place. Exit codes: 0 done, 1 the answer is no, 2 usage, 78 configuration. Here is only the
table of commands; each is imported when it is asked for.
"""

from __future__ import annotations

from typing import Final

import click

from mtls.cli import CommandTable, FaultGroup, version_option

COMMANDS: Final[CommandTable] = {
    "run": ("gateway.service_cli:run", "Serve until SIGTERM or Ctrl-C."),
    "check-config": (
        "gateway.service_cli:check_config",
        "Read and verify everything that the configuration names; exit 78 when it cannot be used.",
    ),
    "crl": ("gateway.crl_cli:crl", "Certificate revocation lists."),
    "status": ("gateway.live_cli:status", "Show how the running gateway is doing."),
    "sessions": ("gateway.live_cli:sessions", "List sessions, live and stored."),
    "kick": ("gateway.live_cli:kick", "Close the connections of a device; it may come back."),
    "reload": (
        "gateway.live_cli:reload",
        "Read policy, CRL, deny list, CAs and server certificate again; on a fault the old set stays.",
    ),
    "deny": (
        "gateway.live_cli:deny",
        "The deny list: ids and certificates that are refused at once, without waiting for a CRL.",
    ),
    "explain": (
        "gateway.policy_cli:explain",
        "Say what a device may do and why: decision, role, rule, line; exit 1 when denied.",
    ),
    "policy": ("gateway.policy_cli:policy", "Test and prove a policy."),
    "store": ("gateway.store.cli:store", "Copy the store, and put a copy back."),
    "spool": ("gateway.uplink.cli:spool", "What waits here for the upstream."),
    "torture": (
        "gateway.torture.cli:torture",
        "Kill a broker again and again: what it acknowledged must still be there.",
    ),
}


@click.group(
    cls=FaultGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80}
)
@version_option
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


def main() -> None:
    """The entry point of the console script."""
    cli(prog_name="mqtt-gateway")


if __name__ == "__main__":
    main()
