"""Fixtures for every test."""

from __future__ import annotations

import pytest

from tests.support.pki import Pki


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """A root and an issuing CA for the whole run; tests add leaves and leave the CAs alone."""
    return Pki(tmp_path_factory.mktemp("pki"))
