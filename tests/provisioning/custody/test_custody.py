"""Custody of CA keys: offline root, stations, rotation, quota, the revocation of a station; openssl is the judge."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from mtls.errors import ConfigFault, Fault
from mtls.identity import DeviceId
from mtls.keystore import new_key
from mtls.profiles import spki_sha256
from provisioning.ca import CertificateAuthority
from provisioning.ca_folder import CaFolder, certificate_at
from provisioning.ca_settings import CaSettings, key_id
from provisioning.crls import crl_at, crls_at, crls_pem, merged
from provisioning.custody import publishing, station
from provisioning.custody.root import RootAuthority, Station
from provisioning.records.backup import back_up, restore_backup
from provisioning.signing import pem
from tests.provisioning.custody.conftest import nothing_to_ask, now
from tests.provisioning.judges import openssl_text, openssl_verify

Line = Callable[..., CaFolder]


def issue(folder: CaFolder, name: str) -> Path:
    """A device's certificate as a file; the leaf alone, as a device may send it."""
    with CertificateAuthority.open(folder.path, nothing_to_ask) as ca:
        leaf = ca.issue(DeviceId(name), public_key=new_key().public_key())[0]
    path = folder.path.parent / f"{name}.crt"
    path.write_bytes(pem(leaf))
    return path


def judge(leaf: Path, folder: CaFolder, crl: Path | None = None) -> bool:
    accepted, _ = openssl_verify(leaf, ca=folder.bundle, crl=crl or folder.crl_bundle)
    return accepted


def keys_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.key"))


def test_a_station_certifies_devices_and_the_roots_key_never_leaves_its_folder(line: Line, root: Path) -> None:
    """What went to and fro on the stick is public; openssl accepts the chain with every CRL."""
    made = line("line-a")
    assert judge(issue(made, "dev-1"), made)
    assert keys_in(root.parent / "stick-line-a") == []
    assert keys_in(made.path) == ["issuing.INSECURE-DEV.key"]
    assert keys_in(root) == ["root.INSECURE-DEV.key"]


def test_a_ca_that_waits_for_its_certificate_says_what_it_waits_for(tmp_path: Path) -> None:
    """Between request and install nothing is signed, and the hint is the next step and no missing file."""
    station.begin(tmp_path / "CA", "line-a", tmp_path / "a.csr", passphrase=None)
    with pytest.raises(ConfigFault, match="has no certificate yet") as fault:
        CertificateAuthority.open(tmp_path / "CA", nothing_to_ask)
    assert "ca install" in fault.value.hint


def test_two_stations_share_a_root_and_no_names(line: Line, tmp_path: Path) -> None:
    """A gateway trusts both with one ca.crt and the merged CRLs; without the other's CRL its devices are refused."""
    a, b = line("line-a"), line("line-b")
    leaves = issue(a, "dev-a"), issue(b, "dev-b")
    (tmp_path / "ca.crt").write_bytes(a.bundle.read_bytes() + b.certificate("issuing").read_bytes())
    (tmp_path / "crl.pem").write_bytes(crls_pem(merged([a.crl_bundle, b.crl_bundle])))
    assert len(crls_at(tmp_path / "crl.pem")) == 3  # the root's once
    for leaf in leaves:
        assert openssl_verify(leaf, ca=tmp_path / "ca.crt", crl=tmp_path / "crl.pem")[0]
    accepted, said = openssl_verify(leaves[1], ca=tmp_path / "ca.crt", crl=a.crl_bundle)
    assert (accepted, "unable to get certificate CRL" in said) == (False, True)


def test_merging_takes_the_newest_of_each_issuer(line: Line, tmp_path: Path) -> None:
    """In whatever order the files are named."""
    made = line("line-a")
    (tmp_path / "old.pem").write_bytes(made.crl_bundle.read_bytes())
    with CertificateAuthority.open(made.path, nothing_to_ask) as ca:
        ca.write_crl()
    newest = crl_at(made.crl("issuing"))
    for files in ([tmp_path / "old.pem", made.crl_bundle], [made.crl_bundle, tmp_path / "old.pem"]):
        assert newest in merged(files)
        assert len(merged(files)) == 2


def test_a_revoked_station_takes_its_devices_along_and_no_others(line: Line, root: Path, tmp_path: Path) -> None:
    """The drill: one new CRL of the root; line A's devices are refused, line B's are not."""
    a, b = line("line-a"), line("line-b")
    leaf_a, leaf_b = issue(a, "dev-a"), issue(b, "dev-b")
    with RootAuthority.open(root, nothing_to_ask) as authority:
        assert [row.subject for row in authority.revoke_station("line-a", "keyCompromise")] == ["line-a issuing CA"]
        authority.write_crl(tmp_path / "root.crl")
    for folder in (a, b):
        folder.crl_bundle.write_bytes(crls_pem(merged([tmp_path / "root.crl", folder.crl_bundle])))
    assert not judge(leaf_a, a)
    assert judge(leaf_b, b)
    with RootAuthority.open(root, nothing_to_ask) as authority, pytest.raises(Fault, match="no issuing CA line-c"):
        authority.revoke_station("line-c", "keyCompromise")


def test_a_quota_ends_signing_and_a_new_key_begins_anew(line: Line, root: Path) -> None:
    """Revoked and orphaned serials count; nothing is signed beyond it."""
    made = line("line-a", settings=CaSettings(quota=2))
    issue(made, "dev-1")
    issue(made, "dev-2")
    with pytest.raises(Fault, match="the 2 certificates of its quota"):
        issue(made, "dev-3")
    rotate(made, root)
    assert judge(issue(made, "dev-3"), made)


def rotate(folder: CaFolder, root: Path) -> None:
    stick = folder.path.parent / f"next-{folder.path.name}"
    stick.mkdir()
    station.follow(folder, stick / "next.csr", passphrase=None)
    with RootAuthority.open(root, nothing_to_ask) as authority:
        authority.sign_request(stick / "next.csr", Station(folder.path.name, None, folder.settings), stick / "answer")
    station.install(folder, CaFolder(stick / "answer"), now())
    station.publish(folder, nothing_to_ask)


def test_devices_of_a_former_issuing_ca_stay_valid_and_can_be_revoked(line: Line, root: Path) -> None:
    """Several issuing CAs, one CRL each: the former one signs CRLs and nothing else."""
    made = line("line-a")
    old, doomed = issue(made, "dev-old"), issue(made, "dev-doomed")
    former = key_id(certificate_at(made.certificate("issuing")))
    rotate(made, root)
    new = issue(made, "dev-new")
    assert certificate_at(made.certificate(f"issuing-{former[:12]}")) != certificate_at(made.certificate("issuing"))
    with CertificateAuthority.open(made.path, nothing_to_ask) as ca:
        ca.revoke(subject="dev-doomed")
        assert [line.issuer for line in ca.write_crl().crls] == ["Plant root CA", *["line-a issuing CA"] * 2]
    assert [judge(leaf, made) for leaf in (old, doomed, new)] == [True, False, True]


def test_a_rotation_where_the_roots_key_is_at_hand_is_one_step(tmp_path: Path) -> None:
    """A CA of `ca init` keeps its two keys in one folder."""
    CertificateAuthority.init(tmp_path / "ca", "Plant", passphrase=None)
    folder = CaFolder(tmp_path / "ca")
    before = issue(folder, "dev-1")
    key = spki_sha256(certificate_at(folder.certificate("issuing")))
    station.rotate_with_root(folder, nothing_to_ask, None)
    assert spki_sha256(certificate_at(folder.certificate("issuing"))) != key
    assert judge(before, folder)
    assert judge(issue(folder, "dev-2"), folder)
    assert not list(folder.path.glob("next.*"))


@pytest.mark.parametrize("after", ["_set_aside", "_take_next_key"])
def test_an_installation_cut_short_is_finished_by_the_same_command(
    after: str, line: Line, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then nothing is signed with a key that does not match, and the former CA is not lost."""
    made = line("line-a")
    old = issue(made, "dev-old")
    genuine = getattr(station, after)

    def cut(*arguments: object) -> None:
        genuine(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(station, after, cut)
        with pytest.raises(KeyboardInterrupt):
            rotate(made, root)
    if after == "_take_next_key":
        with pytest.raises(ConfigFault, match="does not belong"):
            issue(made, "dev-new")
    station.install(made, CaFolder(made.path.parent / "next-line-a" / "answer"), now())
    station.publish(made, nothing_to_ask)
    assert judge(old, made)
    assert judge(issue(made, "dev-2"), made)


def test_a_backup_holds_every_ca_of_a_folder_and_of_a_root(line: Line, root: Path, tmp_path: Path) -> None:
    """Former issuing CA, waiting key and settings come back; so does an offline root."""
    made = line("line-a", settings=CaSettings(quota=100))
    rotate(made, root)
    station.follow(made, tmp_path / "next.csr", passphrase=None)
    for folder in (made.path, root):
        back_up(folder, tmp_path / f"{folder.name}.tar")
        restore_backup(tmp_path / f"{folder.name}.tar", tmp_path / f"{folder.name}-again")
        before, after = (
            {path.name: path.read_bytes() for path in where.iterdir() if path.suffix not in {".lock", ".db"}}
            for where in (folder, tmp_path / f"{folder.name}-again")
        )
        assert after == before
        assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / f"{folder.name}-again").glob("*.key"))


def test_what_does_not_fit_is_not_installed(line: Line, root: Path, tmp_path: Path) -> None:
    """Another's answer, another root's, an older CRL of the root, nothing asked for: refused, and nothing changed."""
    made, other = line("line-a"), line("line-b")
    before = {path.name: path.read_bytes() for path in made.path.iterdir() if path.suffix in {".crt", ".crl", ".key"}}
    with pytest.raises(Fault, match="waits for no certificate"):
        station.install(made, other, now())
    station.follow(made, tmp_path / "next.csr", passphrase=None)
    with pytest.raises(Fault, match="for another key"):
        station.install(made, other, now())
    RootAuthority.init(tmp_path / "root2", "Other", passphrase=None)
    with RootAuthority.open(tmp_path / "root2", nothing_to_ask) as authority:
        authority.sign_request(tmp_path / "next.csr", Station("line-a"), tmp_path / "answer2")
    with pytest.raises(Fault, match="another root"):
        station.install(made, CaFolder(tmp_path / "answer2"), now())
    with pytest.raises(Fault, match="waits for the certificate"):
        station.follow(made, tmp_path / "again.csr", passphrase=None)
    after = {name: (made.path / name).read_bytes() for name in before}
    assert after == before


def test_a_root_crl_is_taken_when_it_is_newer_and_the_roots(line: Line, root: Path, tmp_path: Path) -> None:
    """The twin: another root's and an older one are refused."""
    made = line("line-a")
    (tmp_path / "old.crl").write_bytes(made.crl("root").read_bytes())
    RootAuthority.init(tmp_path / "root2", "Plant", passphrase=None)
    with RootAuthority.open(root, nothing_to_ask) as authority:
        authority.write_crl(tmp_path / "new.crl")
    with CertificateAuthority.open(made.path, nothing_to_ask) as ca:
        assert ca.take_root_crl(tmp_path / "new.crl").number == 2
        with pytest.raises(Fault, match="the one here is newer"):
            ca.take_root_crl(tmp_path / "old.crl")
        with pytest.raises(Fault, match="not signed by Plant root CA"):
            ca.take_root_crl(tmp_path / "root2" / "root.crl")
    assert crl_at(made.crl("root")) == crl_at(tmp_path / "new.crl")


def test_a_station_made_at_the_root_is_a_whole_ca_with_a_key_of_its_own(root: Path, tmp_path: Path) -> None:
    """Its passphrase is not the root's; it signs at once."""
    with RootAuthority.open(root, nothing_to_ask) as authority:
        authority.issue_station(Station("line-a", timedelta(days=400)), tmp_path / "line-a", b"the station's own")
    files = CaFolder(tmp_path / "line-a")
    with CertificateAuthority.open(files.path, lambda: b"the station's own") as ca:
        leaf = ca.issue(DeviceId("dev-1"), public_key=new_key().public_key())[0]
    (tmp_path / "dev.crt").write_bytes(pem(leaf))
    assert judge(tmp_path / "dev.crt", files)
    assert leaf.not_valid_after_utc <= ca.issuing.not_valid_after_utc
    with CertificateAuthority.open(files.path, lambda: b"another one") as ca, pytest.raises(ConfigFault):
        ca.unlock()


def test_a_crl_url_stands_in_leaves_with_the_key_id_of_their_issuer(line: Line, tmp_path: Path) -> None:
    """R4: the leaf carries the CDP, our CRL no IDP; openssl accepts both together, and serves the file of that name."""
    made = line("line-a", settings=CaSettings(crl_url="http://ca.test/{issuer}.crl"))
    leaf = issue(made, "dev-1")
    name = f"{key_id(certificate_at(made.certificate('issuing')))}.crl"
    assert f"URI:http://ca.test/{name}" in openssl_text("x509", leaf)
    assert judge(leaf, made)
    (tmp_path / "www").mkdir()
    with CertificateAuthority.open(made.path, nothing_to_ask) as ca:
        files = publishing.serve(ca, tmp_path / "www", now())
    assert tmp_path / "www" / name in files
    assert x509.load_der_x509_crl((tmp_path / "www" / name).read_bytes()) == crl_at(made.crl("issuing"))


def test_a_crl_is_due_when_somebody_was_revoked_or_half_its_life_is_over(line: Line) -> None:
    """F10: by a timer, long before it ends."""
    made = line("line-a")
    issue(made, "dev-1")
    with CertificateAuthority.open(made.path, nothing_to_ask) as ca:
        assert publishing.due(ca, now()) == []
        assert publishing.due(ca, now() + timedelta(days=4)) == ["half the life of line-a issuing CA's CRL is over"]
        ca.revoke(subject="dev-1")
        assert publishing.due(ca, now()) == ["line-a issuing CA has revoked 1 more"]
        ca.write_crl()
        assert publishing.due(ca, now()) == []


def test_a_crl_that_ends_soon_raises_the_alarm(line: Line) -> None:
    """Also one that has ended; one that has time left does not."""
    made = line("line-a")
    assert publishing.stale([made.crl_bundle], now(), timedelta(hours=48)) == []
    (soon,) = publishing.stale([made.crl_bundle], now() + timedelta(days=6), timedelta(hours=48))
    assert "line-a issuing CA ends at" in str(soon)
    ended = publishing.stale([made.crl_bundle], now() + timedelta(days=400), timedelta(hours=48))
    assert ["ended at" in str(one) for one in ended] == [True, True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("quota = 0", "quota = 0"),
        ("quota = true", "quota = True"),
        ("crl_url = 'ftp://x'", "crl_url"),
        ("crl_url = 'http://a b'", "crl_url"),
        ("qouta = 1", "unknown key 'qouta'"),
        ("quota =", "ca.toml"),
    ],
)
def test_settings_that_are_wrong_stop_the_ca(line: Line, text: str, says: str) -> None:
    """Named by file, key and value; nothing is signed without a quota because its line has a slip."""
    made = line("line-a")
    (made.path / "ca.toml").write_text(text)
    with pytest.raises(ConfigFault, match=says):
        issue(made, "dev-1")
