"""`mqtt-gateway crl`: parse, fetch, print."""

from __future__ import annotations

from pathlib import Path

import click

from gateway import crl_fetch, report
from gateway.config import GatewayConfig
from gateway.options import config_option, json_option, show
from mtls.cli import ListedGroup, narrate


@click.group(cls=ListedGroup)
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
