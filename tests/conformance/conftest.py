"""One gateway with a policy that allows everything, for tests of the protocol itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway import OPEN_POLICY, Gateway, running
from tests.support.pki import Pki


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Gateway]:
    """A gateway for a whole module; tests use client identifiers and topics of their own."""
    gateway = Gateway(
        tmp_path_factory.mktemp("conformance"),
        pki,
        OPEN_POLICY,
        limits={"connect_max_bytes": 327_695, "max_topic_levels": 65_535},
    )
    with running(gateway) as started:
        yield started
