"""The way of the server key: root's file, handed over by systemd, taken by the gateway."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pki import Pki
from tests.systemd.installation import REPOSITORY


@pytest.fixture
def configured(pki: Pki, tmp_path: Path) -> Path:
    """What is installed in /etc, its absolute folders moved below tmp_path, and root's key beside it."""
    etc = tmp_path / "etc"
    for folder in (etc, tmp_path / "credentials", tmp_path / "log", tmp_path / "run"):
        folder.mkdir()
    server = pki.server()
    shutil.copy(server.cert_file, etc / "server.crt")
    shutil.copy(server.key_file, etc / "server.key")
    shutil.copy(pki.ca_file, etc / "ca.crt")
    shutil.copy(REPOSITORY / "examples/policy.toml", etc)
    text = (REPOSITORY / "systemd/gateway.toml").read_text(encoding="utf-8")
    for shipped, here in (("/var/log/mqtt-gateway", tmp_path / "log"), ("/run/mqtt-gateway", tmp_path / "run")):
        assert shipped in text
        text = text.replace(shipped, str(here))
    (etc / "gateway.toml").write_text(text, encoding="utf-8")
    return etc / "gateway.toml"


@pytest.fixture
def handed_over(configured: Path) -> Path:
    """The folder of the unit's credentials with the key in it, which the service cannot read where root put it."""
    credentials = configured.parent.parent / "credentials"
    shutil.move(configured.with_name("server.key"), credentials)
    (credentials / "server.key").chmod(0o440)  # how a credential looks that is opened to the service by an ACL
    return credentials


def check(config: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [Path(sys.executable).parent / "mqtt-gateway", "check-config", "--config", config]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def test_root_can_check_the_installed_configuration_before_the_first_start(configured: Path) -> None:
    """The command that make install names works when no service runs and no credential exists."""
    done = check(configured)
    assert done.returncode == 0, done.stderr


def test_the_service_takes_the_key_from_systemd(configured: Path, handed_over: Path) -> None:
    """The same configuration in the unit: the credential with the file's name is read in its place."""
    done = check(configured, CREDENTIALS_DIRECTORY=str(handed_over))
    assert done.returncode == 0, done.stderr


def test_a_credential_of_another_name_is_no_key(configured: Path, handed_over: Path) -> None:
    """The deny twin: what systemd handed over for something else is not taken for the key."""
    (handed_over / "server.key").rename(handed_over / "other.key")
    done = check(configured, CREDENTIALS_DIRECTORY=str(handed_over))
    assert done.returncode == 78
    assert "etc/server.key does not exist" in done.stderr


def test_the_same_key_elsewhere_is_too_loose(configured: Path) -> None:
    """The deny twin: outside a credentials folder a key that a group can read ends with status 78."""
    configured.with_name("server.key").chmod(0o440)
    done = check(configured)
    assert done.returncode == 78
    assert "can be read by others" in done.stderr
    assert "Traceback" not in done.stderr
