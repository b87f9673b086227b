"""One real installation below a folder of its own, shared by the tests that only look at it."""

import subprocess
from pathlib import Path

import pytest

from tests.support.once import made_once
from tests.systemd.installation import Installation


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """`make install` into an empty DESTDIR, with the programs and units as an operator gets them."""
    return Installation(made_once(tmp_path_factory, "destdir", lambda folder: Installation(folder).run("install")))


@pytest.fixture
def copied(installed: Installation, tmp_path: Path) -> Installation:
    """That installation, copied for a test that changes it: nothing in it names its DESTDIR, as another test shows.

    Programs that come into it later do not have to run: pip leaves the dependencies out.
    """
    subprocess.run(["cp", "-a", installed.destdir, tmp_path / "destdir"], check=True, timeout=120)
    return Installation(tmp_path / "destdir", pip_flags="--no-deps")
