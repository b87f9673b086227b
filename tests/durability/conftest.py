"""A gateway with a store, and a second one that takes up what the first left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import OPEN_POLICY, Gateway
from tests.support.pki import Pki

Start = Callable[..., Gateway]


@pytest.fixture
def start(tmp_path: Path, pki: Pki) -> Iterator[Start]:
    """Start a gateway on the store of this test; one at a time."""
    started: list[Gateway] = []

    def begin(policy: str = OPEN_POLICY, *, store: dict[str, Any] | None = None, **options: Any) -> Gateway:
        gateway = Gateway(tmp_path, pki, policy, store=store or {}, **options).start()
        started.append(gateway)
        return gateway

    yield begin
    for gateway in started:
        gateway.stop()
