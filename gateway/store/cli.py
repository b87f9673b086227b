"""`mqtt-gateway store`: parse, copy, print."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from gateway.config import GatewayConfig
from gateway.options import config_option
from gateway.store.copying import back_up, restore_copy
from mtls.cli import ListedGroup, narrate
from mtls.errors import ConfigFault


@click.group(cls=ListedGroup)
def store() -> None:
    """Copy the store, and put a copy back.

    \b
    mqtt-gateway store backup --config gateway.toml backup.db
    mqtt-gateway store restore --config gateway.toml backup.db
    """


@store.command()
@config_option
@click.argument("copy", type=click.Path(path_type=Path))
def backup(config: Path, copy: Path) -> None:
    """Copy the store to the new file COPY while the gateway runs.

    \b
    mqtt-gateway store backup --config gateway.toml backup.db
    """
    size = back_up(_path(config), copy)
    narrate(f"{copy} holds everything that was acknowledged when it was begun, {size} bytes")


@store.command()
@config_option
@click.argument("copy", type=click.Path(path_type=Path))
def restore(config: Path, copy: Path) -> None:
    """Put COPY in the place of the store; the gateway must not run.

    \b
    mqtt-gateway store restore --config gateway.toml backup.db
    """
    kept = restore_copy(copy, _path(config), datetime.now(UTC))
    narrate("the store is restored" + (f"; the one before is {kept}" if kept is not None else ""))


def _path(config: Path) -> Path:
    loaded = GatewayConfig.load(config)
    if loaded.store is None:
        raise ConfigFault(f"{config}: there is no [store] table", hint="nothing is stored without one")
    return loaded.store.path
