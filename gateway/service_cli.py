"""`mqtt-gateway run` and `check-config`: the commands that read everything that the configuration names."""

from __future__ import annotations

from pathlib import Path

import click

from gateway import report, service
from gateway.config import GatewayConfig
from gateway.keeping import check_kept
from gateway.options import config_option, json_option, show
from gateway.security import load_security
from mtls.cli import narrate
from mtls.terminal import sanitise


@click.command()
@config_option
@click.option("--verbose", is_flag=True, help="Log what amqtt and its plugins say as well.")
def run(config: Path, verbose: bool) -> None:
    """Serve until SIGTERM or Ctrl-C. SIGHUP reloads.

    \b
    mqtt-gateway run --config /etc/mqtt-gateway/gateway.toml
    """
    service.log_to_stderr(verbose)
    service.serve(config)


@click.command("check-config")
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
