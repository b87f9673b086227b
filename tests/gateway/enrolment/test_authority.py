"""The gateway's own issuing CA, and the record of what it signed."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.enrolment.authority import Issued, Record, load_issuer
from mtls.errors import ConfigFault, Fault
from mtls.keystore import key_pem, new_key, write_private
from mtls.trust import TrustStore
from provisioning.ca import CertificateAuthority
from provisioning.custody.root import RootAuthority
from provisioning.site_ca import make_site_ca
from tests.integration.programs import run
from tests.support.pki import Pki, now

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A factory's CA, and below it a site's in `site`."""
    folder = tmp_path_factory.mktemp("factory")
    CertificateAuthority.init(folder / "ca", "Plant 7", passphrase=None)
    with RootAuthority.open(folder / "ca", lambda: b"") as root:
        make_site_ca(root, "Site 7", folder / "site", now=now())
    with CertificateAuthority.open(folder / "ca", lambda: b"") as ca:
        (folder / "all.crt").write_bytes(ca.bundle_pem + (folder / "site" / "issuing.crt").read_bytes())
    return folder


@pytest.fixture
def site(factory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(factory / "site", tmp_path / "site"))


@pytest.fixture
def trust(factory: Path) -> TrustStore:
    return TrustStore.from_pem((factory / "all.crt").read_bytes(), "all.crt")


def test_the_ca_that_the_factory_made_signs(site: Path, trust: TrustStore) -> None:
    """It is an issuing CA below the root, and its key is private."""
    assert load_issuer(site, trust).certificate in trust.issuing
    assert (site / "issuing.key").stat().st_mode & 0o077 == 0


def test_a_ca_is_made_once(factory: Path) -> None:
    """A second one in the same folder would leave the first one's certificates without a key."""
    with RootAuthority.open(factory / "ca", lambda: b"") as root, pytest.raises(Fault, match="already"):
        make_site_ca(root, "Site 7", factory / "site", now=now())


def test_a_root_that_is_kept_alone_makes_one(tmp_path: Path) -> None:
    """It needs the root and nobody's issuing CA: the same rule as for a station."""
    RootAuthority.init(tmp_path / "root", "Plant 7", passphrase=None)
    with RootAuthority.open(tmp_path / "root", lambda: b"") as root:
        files = make_site_ca(root, "Site 7", tmp_path / "site", now=now())
        assert [row.subject for row in root.ledger.certificates(subject="Site 7")] == ["Site 7"]
    anchor = tmp_path / "root" / "root.crt"
    run("openssl", "verify", "-x509_strict", "-CAfile", str(anchor), str(files[0]))
    trust = TrustStore.from_pem(anchor.read_bytes() + files[0].read_bytes(), "all.crt")
    assert load_issuer(tmp_path / "site", trust).certificate in trust.issuing


def test_a_factory_s_ca_is_refused(factory: Path, trust: TrustStore) -> None:
    """One CA has one signer."""
    with pytest.raises(ConfigFault, match=r"ledger\.db: it is a factory's CA"):
        load_issuer(factory / "ca", trust)


def test_a_ca_that_is_not_trusted_here_is_refused(site: Path, pki: Pki) -> None:
    """What it signed would be admitted nowhere."""
    with pytest.raises(ConfigFault, match="is not in ca_file"):
        load_issuer(site, TrustStore.from_pem(pki.ca_file.read_bytes(), "ca.crt"))


def test_a_key_of_another_ca_is_refused(site: Path, trust: TrustStore) -> None:
    """Nothing is signed that nobody could verify."""
    write_private(site / "issuing.key", key_pem(new_key()))
    with pytest.raises(ConfigFault, match="is not the key of"):
        load_issuer(site, trust)


def test_a_key_that_others_can_read_is_refused(site: Path, trust: TrustStore) -> None:
    """Somebody may have read it already."""
    (site / "issuing.key").chmod(0o644)
    with pytest.raises(ConfigFault, match="can be read by others"):
        load_issuer(site, trust)


def test_the_record_outlives_a_power_cut(tmp_path: Path) -> None:
    """Half a last line is dropped, what has ended is forgotten, the rest is known."""
    record = Record(tmp_path, now())
    record.add(Issued("dev-a", "0a", "aa" * 32, now() + DAY))
    record.add(Issued("dev-b", "0b", "bb" * 32, now() - DAY))
    with (tmp_path / "issued.jsonl").open("ab") as file:
        file.write(b'{"id": "dev-c", "certif')
    again = Record(tmp_path, now())
    assert [again.owner_of(spki * 32) for spki in ("aa", "bb", "cc")] == ["dev-a", None, None]
    assert (tmp_path / "issued.jsonl").read_bytes().count(b"\n") == 1


def test_a_certificate_serial_that_comes_twice_is_not_issued(tmp_path: Path) -> None:
    """F5: that is a broken random generator."""
    record = Record(tmp_path, now())
    record.add(Issued("dev-a", "0a", "aa" * 32, now() + DAY))
    with pytest.raises(Fault, match="came twice"):
        record.add(Issued("dev-b", "0a", "bb" * 32, now() + DAY))


def test_a_record_that_cannot_be_written_stops_the_signing(tmp_path: Path) -> None:
    """What is not on record must not leave."""
    record = Record(tmp_path, now())
    (tmp_path / "issued.jsonl").unlink()
    (tmp_path / "issued.jsonl").mkdir()
    with pytest.raises(Fault, match="cannot write"):
        record.add(Issued("dev-a", "0a", "aa" * 32, now() + DAY))
    assert record.owner_of("aa" * 32) is None
