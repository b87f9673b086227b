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
    """What is installed in /etc, its absolute folders moved below tmp_path, with the key as a credential."""
    etc, credentials = tmp_path / "etc", tmp_path / "credentials"
    for folder in (etc, credentials, tmp_path / "log", tmp_path / "run"):
        folder.mkdir()
    server = pki.server()
    shutil.copy(server.cert_file, etc / "server.crt")
    shutil.copy(pki.ca_file, etc / "ca.crt")
    shutil.copy(REPOSITORY / "examples/policy.toml", etc)
    shutil.copy(server.key_file, credentials / "server.key")
    (credentials / "server.key").chmod(0o440)  # how a credential looks that is opened to the service by an ACL
    text = (REPOSITORY / "systemd/gateway.toml").read_text(encoding="utf-8")
    for shipped, here in (
        ("/run/credentials/mqtt-gateway.service", credentials),
        ("/var/log/mqtt-gateway", tmp_path / "log"),
        ("/run/mqtt-gateway", tmp_path / "run"),
    ):
        assert shipped in text
        text = text.replace(shipped, str(here))
    (etc / "gateway.toml").write_text(text, encoding="utf-8")
    return etc / "gateway.toml"


def check(config: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [Path(sys.executable).parent / "mqtt-gateway", "check-config", "--config", config]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_example_works_with_a_key_from_systemd(configured: Path) -> None:
    """check-config accepts the shipped example when the key lies in the unit's credentials folder."""
    done = check(configured, CREDENTIALS_DIRECTORY=str(configured.parent.parent / "credentials"))
    assert done.returncode == 0, done.stderr


def test_the_same_key_elsewhere_is_too_loose(configured: Path) -> None:
    """The deny twin: outside a credentials folder a key that a group can read ends with status 78."""
    done = check(configured)
    assert done.returncode == 78
    assert "can be read by others" in done.stderr
    assert "Traceback" not in done.stderr
