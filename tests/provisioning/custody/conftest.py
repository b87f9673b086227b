"""An offline root and a station, as folders, with keys that no passphrase protects."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from provisioning.ca_folder import CaFolder
from provisioning.custody import station
from provisioning.custody.root import RootAuthority, Station


def nothing_to_ask() -> bytes:
    raise AssertionError("a passphrase was asked for")


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a root that is kept alone."""
    RootAuthority.init(tmp_path / "root", "Plant", passphrase=None)
    return tmp_path / "root"


@pytest.fixture
def line(root: Path, tmp_path: Path) -> Callable[..., CaFolder]:
    """Makes a station's CA: the key there, the certificate at the root, the answer installed."""

    def make(name: str, **wishes: object) -> CaFolder:
        folder, stick = tmp_path / name, tmp_path / f"stick-{name}"
        stick.mkdir()
        station.begin(folder, name, stick / "a.csr", passphrase=None)
        with RootAuthority.open(root, nothing_to_ask) as authority:
            authority.sign_request(stick / "a.csr", Station(name, **wishes), stick / "answer")  # type: ignore[arg-type]
        files = CaFolder(folder)
        station.install(files, CaFolder(stick / "answer"), now())
        station.publish(files, nothing_to_ask)
        return files

    return make
