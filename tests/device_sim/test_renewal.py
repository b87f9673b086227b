"""The agent renews its own certificate at a real gateway; whatever fails, the old identity stays (R7)."""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from device_sim.credentials import Files, leaf_of
from device_sim.renewal import (
    MAX_REPLY_BYTES,
    EstServer,
    Renewal,
    RenewalFault,
    certificate_in,
    next_to,
    request_for,
    settle,
)
from mtls.csr import verified_csr
from mtls.errors import Fault
from mtls.keystore import load_key, new_key
from mtls.profiles import spki_sha256
from tests.device_sim.processes import Program, device_sim, wait_for
from tests.gateway.enrolment.est_site import EstSite, due
from tests.gateway.site import Running
from tests.support.pki import Pki

POLICY = """
version = 1
[[role]]
name = "device"
match = { id = "*" }
publish = ["devices/{id}/#"]
retain = ["devices/{id}/state"]
will = ["devices/{id}/state"]
"""
ONLY_THE_FACTORY = POLICY + '\n[[issuer]]\nsubject_cn = "{cn}"\nspki_sha256 = "{spki}"\nids = ["*"]\n'


def device(folder: Path, pki: Pki, name: str = "dev-1") -> Files:
    """A device of the factory whose certificate is due at whatever moment an agent draws, in files of its own."""
    made, home = due(pki, name, lived=80, left=10), folder / "device"
    home.mkdir()
    files = Files(home / f"{name}.crt", home / f"{name}.key", pki.ca_file)
    shutil.copy(made.cert_file, files.cert_file)
    shutil.copy(made.key_file, files.key_file)
    files.key_file.chmod(0o600)
    return files


def identity(files: Files) -> tuple[bytes, bytes]:
    return files.cert_file.read_bytes(), files.key_file.read_bytes()


def is_a_pair(files: Files) -> bool:
    return spki_sha256(leaf_of(files.cert_file)) == spki_sha256(load_key(files.key_file).public_key())


@contextlib.contextmanager
def agent(files: Files, port: int, renew_url: str) -> Iterator[Program]:
    told = ("--cert", files.cert_file, "--key", files.key_file, "--ca", files.ca_file)
    where = ("--broker", f"localhost:{port}", "--source", "sim://counter?interval=0.1", "--renew-url", renew_url)
    with device_sim("run", "--id", "dev-1", *told, *where) as program:
        yield program


def test_the_agent_renews_its_certificate_and_goes_on_with_it(tmp_path: Path, pki: Pki) -> None:
    """Another key, another issuer; the same name; admitted with it; nothing left beside the files."""
    site, files = EstSite(tmp_path, pki, policy=POLICY), device(tmp_path, pki)
    before = identity(files)
    with Running(site) as gateway, agent(files, gateway.port, f"https://localhost:{site.port}") as program:
        program.says("renewed: ")
        new = leaf_of(files.cert_file)
        wait_for("the new certificate's admission", lambda: _admitted(site, new))
        assert program.stop() == 0
    assert is_a_pair(files)
    assert (identity(files)[0] != before[0], identity(files)[1] != before[1]) == (True, True)
    assert new.issuer == site.issuer.certificate.subject
    assert files.key_file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in files.cert_file.parent.iterdir()) == ["dev-1.crt", "dev-1.key"]


def _admitted(site: EstSite, leaf: x509.Certificate) -> bool:
    serial = f"{leaf.serial_number:x}"
    return any(line["certificate_serial"].lstrip("0") == serial for line in site.audit("admitted", id="dev-1"))


def test_r7_a_renewed_identity_that_the_gateway_refuses_takes_nothing_away(tmp_path: Path, pki: Pki) -> None:
    """The policy trusts the factory's issuer alone: the renewal is dropped, and the old certificate serves on."""
    factory = pki.issuing.certificate
    cn = factory.subject.rfc4514_string().removeprefix("CN=")
    policy = ONLY_THE_FACTORY.replace("{cn}", cn).replace("{spki}", spki_sha256(factory))
    site, files = EstSite(tmp_path, pki, policy=policy), device(tmp_path, pki)
    before = identity(files)
    with Running(site) as gateway, agent(files, gateway.port, f"https://localhost:{site.port}") as program:
        program.says("is not accepted")
        wait_for("the old one again", lambda: len(site.audit("admitted", id="dev-1")) >= 2)
        assert program.process.poll() is None
        assert program.stop() == 0
    assert identity(files) == before
    assert site.audit("refused", reason="issuer_not_allowed") != []
    assert sorted(path.name for path in files.cert_file.parent.iterdir()) == ["dev-1.crt", "dev-1.key"]


def test_r7_a_renewal_that_is_not_answered_takes_nothing_away(tmp_path: Path, pki: Pki) -> None:
    """Nobody listens there; the agent says so and goes on publishing."""
    site, files = EstSite(tmp_path, pki, policy=POLICY), device(tmp_path, pki)
    before = identity(files)
    with Running(site) as gateway, agent(files, gateway.port, "https://localhost:1") as program:
        program.says("not renewed")
        program.says("connected to")
        assert program.stop() == 0
    assert identity(files) == before


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_r7_a_kill_during_the_swap_leaves_a_usable_identity(
    steps: int, tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, between and after the renames: the next start has a pair that fits, new from the first rename on."""
    files, following = device(tmp_path, pki), due(pki, "dev-1-next")
    shutil.copy(following.cert_file, next_to(files.cert_file))
    shutil.copy(following.key_file, next_to(files.key_file))
    for path in (next_to(files.key_file), files.key_file):
        path.chmod(0o600)
    old = identity(files)
    renewal = Renewal(files, EstServer("localhost", 1), lambda _: None)
    done, genuine = 0, Path.rename

    def rename(self: Path, target: Path) -> Path:
        nonlocal done
        if done == steps:
            raise Killed
        done += 1
        return genuine(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with contextlib.suppress(Killed):
            renewal.proven()
    settle(files)
    assert is_a_pair(files)
    assert (identity(files) == old) == (steps == 0)
    waiting = [next_to(files.cert_file).exists(), next_to(files.key_file).exists()]
    assert waiting == [steps == 0, steps == 0]  # with nothing swapped it is tried once more


@pytest.mark.parametrize("left", ["crt", "key"])
def test_half_of_a_new_identity_is_thrown_away(left: str, tmp_path: Path, pki: Pki) -> None:
    """A kill while the new files were written: no pair, no candidate."""
    files = device(tmp_path, pki)
    old, following = identity(files), due(pki, "dev-1-next")
    source, place = (following.cert_file, files.cert_file) if left == "crt" else (following.key_file, files.key_file)
    shutil.copy(source, next_to(place))
    settle(files)
    assert identity(files) == old
    assert not next_to(place).exists()


def test_the_request_has_the_names_of_the_certificate(tmp_path: Path, pki: Pki) -> None:
    """openssl reads it; the key is the new one."""
    leaf, key = due(pki, "dev-1").certificate, new_key()
    der = request_for(leaf, key)
    _, public = verified_csr(der, "the request")
    assert public == key.public_key()
    command = ["openssl", "req", "-inform", "DER", "-noout", "-text", "-verify"]
    said = subprocess.run(command, input=der, capture_output=True, check=True).stdout.decode()
    assert "CN = dev-1" in said
    assert "URI:urn:mtls-gateway:device:dev-1" in said


def reply(*certificates: x509.Certificate) -> bytes:
    return base64.encodebytes(pkcs7.serialize_certificates(list(certificates), Encoding.DER))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda pki, old: b"", "no certificates"),
        (lambda pki, old: b"<html>", "no certificates"),
        (lambda pki, old: base64.b64encode(b"\x30\x82\xff\xff"), "no certificates"),
        (lambda pki, old: b"A" * (MAX_REPLY_BYTES + 1), "longer than"),
        (lambda pki, old: reply(old.certificate), "new key"),
        (lambda pki, old: reply(due(pki, "dev-2").certificate), "new key"),
    ],
    ids=["nothing", "html", "broken", "too long", "the old one", "another's"],
)
def test_an_absurd_reply_is_no_certificate(make: Callable[..., bytes], says: str, pki: Pki) -> None:
    """Refused with a sentence; whoever runs the agent reads it."""
    old = due(pki, "dev-1")
    with pytest.raises(RenewalFault, match=says):
        certificate_in(make(pki, old), old.certificate, new_key())


def test_a_certificate_of_another_name_for_the_new_key_is_refused(pki: Pki) -> None:
    """And the twin: one for the key with these names is taken."""
    old, other = due(pki, "dev-1"), due(pki, "dev-2")
    with pytest.raises(RenewalFault, match="names"):
        certificate_in(reply(other.certificate), old.certificate, load_key(other.key_file))
    same = due(pki, "dev-1")
    assert certificate_in(reply(same.certificate), old.certificate, load_key(same.key_file)) == same.certificate


@pytest.mark.parametrize("url", ["http://gw", "https://", "https://gw:x", "https://gw/else", "https://u@gw", "gw:8443"])
def test_a_renewal_url_is_https_and_a_host(url: str) -> None:
    """A key must not travel beside plain HTTP, and a slip in the path must show at once."""
    with pytest.raises(Fault, match="https"):
        EstServer.parse(url)
    assert EstServer.parse("https://gw.local:8443/.well-known/est/") == EstServer("gw.local", 8443)
