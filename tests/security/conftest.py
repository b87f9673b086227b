"""A gateway per test, and a factory for one with other settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway
from tests.support.pki import Pki


@pytest.fixture
def make_gateway(tmp_path: Path, pki: Pki) -> Iterator[Callable[..., Gateway]]:
    """Start gateways with settings of the test's own; all are stopped at the end."""
    started: list[Gateway] = []

    def make(policy: str | None = None, **settings: Any) -> Gateway:
        folder = tmp_path / f"gateway{len(started)}"
        folder.mkdir()
        arguments = {"policy": policy} if policy is not None else {}
        gateway = Gateway(folder, settings.pop("pki", pki), **arguments, **settings)
        started.append(gateway)
        return gateway.start()

    yield make
    for gateway in started:
        gateway.stop()


@pytest.fixture
def gateway(make_gateway: Callable[..., Gateway]) -> Gateway:
    """A gateway with the policy of a usual site: a device has its own tree, a backend reads all."""
    return make_gateway()
