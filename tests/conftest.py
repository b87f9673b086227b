"""Fixtures for every test."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

from tests.support.pki import Pki


def pytest_addoption(parser: pytest.Parser) -> None:
    """--long: the long forms of tests too, some of them minutes each."""
    parser.addoption("--long", action="store_true", help="also run the tests marked torture")


def pytest_configure() -> None:
    """Let busy machines pass, and Ctrl-C be tested where a shell in the background had SIGINT ignored by all."""
    settings.register_profile("any machine", deadline=None)  # how long an example takes says how busy the machine is
    settings.load_profile("any machine")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every long form has a short one, which always runs."""
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("torture")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """A root and an issuing CA for the whole run; tests add leaves and leave the CAs alone."""
    return Pki(tmp_path_factory.mktemp("pki"))
