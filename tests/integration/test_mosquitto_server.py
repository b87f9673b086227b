"""Our certificates and CRLs in another broker: a real mosquitto that asks for certificates and knows the CRL."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device_sim.processes import free_port, is_listening, running, wait_for
from tests.integration.programs import Authority, Identity, attempt


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA whose leaves name a distribution point; press-02 is revoked."""
    authority = Authority.make(tmp_path_factory.mktemp("mosquitto-site"))
    for name in ("press-01", "press-02"):
        authority.issue(name)
    authority.revoke("press-02")
    return authority


@contextlib.contextmanager
def mosquitto(site: Authority, folder: Path) -> Iterator[int]:
    port = free_port()
    (folder / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\ncafile {site.ca_file}\ncertfile {site.server.cert}\nkeyfile {site.server.key}\n"
        f"crlfile {site.crl_file}\nrequire_certificate true\nuse_identity_as_username true\nuser root\n",
        encoding="utf-8",
    )
    with running("/usr/sbin/mosquitto", "-c", folder / "mosquitto.conf") as broker:
        wait_for("mosquitto", lambda: is_listening(port))
        yield port
        assert broker.process.poll() is None


def publish(site: Authority, port: int, name: str) -> subprocess.CompletedProcess[str]:
    who = Identity(name, site.folder / f"issued/{name}.crt", site.folder / f"issued/{name}.key")
    shown = ("--cafile", site.ca_file, "--cert", who.cert, "--key", who.key)
    return attempt("mosquitto_pub", "-h", "localhost", "-p", port, *shown, "-i", name, "-t", "t", "-m", "x", "-q", "1")


def test_mosquitto_takes_our_certificates_and_our_crl(site: Authority, tmp_path: Path) -> None:
    """R4: a leaf with a CDP and a CRL without an IDP; the revoked device is refused, its neighbour is not."""
    with mosquitto(site, tmp_path) as port:
        allowed = publish(site, port, "press-01")
        assert allowed.returncode == 0, allowed.stderr
        assert publish(site, port, "press-02").returncode != 0
