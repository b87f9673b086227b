"""One real installation below a folder of its own, shared by the tests that only look at it."""

from pathlib import Path

import pytest

from tests.systemd.installation import Installation


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """`make install` into an empty DESTDIR, with the programs and units as an operator gets them."""
    installation = Installation(tmp_path_factory.mktemp("destdir"))
    installation.run("install")
    return installation


@pytest.fixture
def light(tmp_path: Path) -> Installation:
    """An empty DESTDIR for installations whose programs do not have to run: pip leaves the dependencies out."""
    return Installation(tmp_path / "destdir", pip_flags="--no-deps")
