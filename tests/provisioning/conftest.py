"""A CA with encrypted keys, made once and copied for the tests that change it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.ca import CertificateAuthority

PASSPHRASE = b"correct horse battery staple"


@pytest.fixture(scope="session")
def pristine_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA folder that no test changes."""
    folder = tmp_path_factory.mktemp("pristine") / "CA"
    CertificateAuthority.init(folder, "Plant 7", passphrase=PASSPHRASE)
    return folder


@pytest.fixture
def ca_folder(pristine_ca: Path, tmp_path: Path) -> Path:
    """A CA folder of the test's own."""
    return Path(shutil.copytree(pristine_ca, tmp_path / "CA"))


@pytest.fixture
def ca(ca_folder: Path) -> Iterator[CertificateAuthority]:
    """That CA, open."""
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as opened:
        yield opened


@pytest.fixture
def passphrase_file(tmp_path: Path) -> Path:
    """Its passphrase in a private file."""
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_bytes(PASSPHRASE + b"\n")
    return path
