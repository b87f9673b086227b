"""The CA: what it signs stands before OpenSSL, in order, once, by one signer, and only by a sane clock."""

import os
import shutil
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mtls.errors import ConfigFault, Fault
from mtls.identity import DeviceId
from mtls.keystore import key_pem, new_key, write_private
from mtls.profiles import DEVICE_OPERATIONAL, SERVICE, Profile, certificate_serial_hex
from provisioning import signing
from provisioning.ca import CertificateAuthority, issuable_id
from provisioning.ledger import CertificateState, DuplicateKey, Ledger
from provisioning.signing import clock_fault, pem
from tests.provisioning.conftest import PASSPHRASE
from tests.provisioning.judges import handshake, openssl_text, openssl_verify

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def issue(
    ca: CertificateAuthority, name: str, folder: Path, profile: Profile = DEVICE_OPERATIONAL
) -> tuple[Path, Path]:
    """A device's certificate and key as files."""
    key = new_key()
    certificate_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    certificate_file.write_bytes(pem(*ca.issue(DeviceId(name), profile, key.public_key())))
    write_private(key_file, key_pem(key))
    return certificate_file, key_file


def issue_server(ca: CertificateAuthority, folder: Path) -> tuple[Path, Path]:
    """A gateway's certificate and key as files."""
    key = new_key()
    certificate_file, key_file = folder / "server.crt", folder / "server.key"
    chain = ca.issue_server(key.public_key(), dns=["gateway.test"], ips=["127.0.0.1", "::1"])
    certificate_file.write_bytes(pem(*chain))
    write_private(key_file, key_pem(key))
    return certificate_file, key_file


# --- init


def test_init_makes_a_whole_ca_with_encrypted_private_keys(pristine_ca: Path) -> None:
    """Every file of the contract is there, keys 0600 and unreadable without the passphrase."""
    names = {path.name for path in pristine_ca.iterdir()}
    assert names >= {"root.crt", "root.key", "issuing.crt", "issuing.key", "ca.crt", "ledger.db"}
    assert names >= {"root.crl", "issuing.crl", "crl.pem"}
    for name in ("root.key", "issuing.key"):
        assert stat.S_IMODE((pristine_ca / name).stat().st_mode) == 0o600
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in (pristine_ca / name).read_bytes()
    assert stat.S_IMODE(pristine_ca.stat().st_mode) == 0o700


def test_the_new_chain_passes_openssl_strict_with_its_first_crls(pristine_ca: Path) -> None:
    """F6: the issuing CA stands below the root, and both empty CRLs are valid."""
    accepted, said = openssl_verify(
        pristine_ca / "issuing.crt", ca=pristine_ca / "root.crt", crl=pristine_ca / "crl.pem"
    )
    assert accepted, said
    text = openssl_text("x509", pristine_ca / "issuing.crt")
    assert "CA:TRUE, pathlen:0" in text
    assert "Certificate Sign, CRL Sign" in text
    assert "ASN1 OID: prime256v1" in text


def test_init_never_overwrites(ca_folder: Path) -> None:
    """A second CA in the same folder is refused and the first is untouched."""
    before = {path.name: path.read_bytes() for path in ca_folder.iterdir()}
    with pytest.raises(Fault, match="not an empty folder"):
        CertificateAuthority.init(ca_folder, "other", passphrase=PASSPHRASE)
    assert {path.name: path.read_bytes() for path in ca_folder.iterdir()} == before


@pytest.mark.parametrize("when", ["first key", "ledger", "crl"])
def test_a_failing_init_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Whatever fails half-way, neither a folder nor a draft of it stays."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    target = {"first key": "ca.save_key", "ledger": "ca.sign", "crl": "crls.build_crl"}[when]
    monkeypatch.setattr(f"provisioning.{target}", fail)
    with pytest.raises(Fault, match="No space left"):
        CertificateAuthority.init(tmp_path / "CA", "x", passphrase=PASSPHRASE)
    assert list(tmp_path.iterdir()) == []


def test_init_fills_an_empty_folder(tmp_path: Path) -> None:
    """An empty folder made by the operator (or a mount's subfolder) is taken."""
    (tmp_path / "CA").mkdir()
    CertificateAuthority.init(tmp_path / "CA", "x", passphrase=None)
    assert (tmp_path / "CA" / "ca.crt").exists()


def test_insecure_keys_say_so_in_their_names(tmp_path: Path) -> None:
    """Without a passphrase the file names carry the warning; 0600 all the same."""
    CertificateAuthority.init(tmp_path / "CA", "x", passphrase=None)
    names = {path.name for path in (tmp_path / "CA").iterdir()}
    assert {"root.INSECURE-DEV.key", "issuing.INSECURE-DEV.key"} <= names
    assert not names & {"root.key", "issuing.key"}
    assert stat.S_IMODE((tmp_path / "CA" / "issuing.INSECURE-DEV.key").stat().st_mode) == 0o600


# --- issuing


@pytest.mark.parametrize("profile", [DEVICE_OPERATIONAL, SERVICE], ids=["device", "service"])
def test_a_device_certificate_stands_before_openssl(ca: CertificateAuthority, tmp_path: Path, profile: Profile) -> None:
    """F6: strict, with both CRLs, as a TLS client; and never as a TLS server."""
    leaf, _ = issue(ca, "dev-1", tmp_path, profile)
    folder = ca.folder
    accepted, said = openssl_verify(leaf, ca=folder.bundle, crl=folder.crl_bundle, purpose="sslclient")
    assert accepted, said
    assert not openssl_verify(leaf, ca=folder.bundle, purpose="sslserver")[0]
    text = openssl_text("x509", leaf)
    assert "URI:urn:mtls-gateway:device:dev-1" in text
    assert "CA:FALSE" in text


def test_the_signature_of_another_ca_does_not_count(ca: CertificateAuthority, tmp_path: Path) -> None:
    """The deny twin: a CA of the same names with other keys is refused."""
    leaf, _ = issue(ca, "dev-1", tmp_path)
    CertificateAuthority.init(tmp_path / "other", "Plant 7", passphrase=None)
    assert not openssl_verify(leaf, ca=tmp_path / "other" / "ca.crt")[0]


def test_mutual_tls_with_what_was_issued(ca: CertificateAuthority, tmp_path: Path) -> None:
    """A real handshake: the gateway's and the device's certificates, each judged by the other side."""
    server = issue_server(ca, tmp_path)
    client = issue(ca, "dev-1", tmp_path)
    assert handshake(server=server, client=client, ca=ca.folder.bundle) == "dev-1"


def test_mutual_tls_fails_without_or_with_a_foreign_certificate(ca: CertificateAuthority, tmp_path: Path) -> None:
    """The deny twins: no certificate, and one of another CA."""
    server = issue_server(ca, tmp_path)
    with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate"):
        handshake(server=server, client=None, ca=ca.folder.bundle)
    CertificateAuthority.init(tmp_path / "other", "Plant 7", passphrase=None)
    (tmp_path / "foreign").mkdir()
    with CertificateAuthority.open(tmp_path / "other", lambda: b"") as other:
        client = issue(other, "dev-1", tmp_path / "foreign")
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate verify failed"):
        handshake(server=server, client=client, ca=ca.folder.bundle)


def test_dates_are_backdated_and_clamped_to_the_chain(ca_folder: Path) -> None:
    """F6: notBefore an hour ago; notAfter never later than the issuing CA's."""
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca:
        near_the_end = ca.issuing.not_valid_after_utc - timedelta(days=10)
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE, clock=lambda: near_the_end) as ca:
        leaf, issuing = ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())
    assert leaf.not_valid_after_utc == issuing.not_valid_after_utc
    assert leaf.not_valid_before_utc == near_the_end - timedelta(hours=1)


def test_the_aki_is_the_issuers_own_ski(ca: CertificateAuthority) -> None:
    """F6: copied from the issuer's extension, so that a CA with another way of computing it still matches."""
    leaf, issuing = ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())
    aki = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert aki == issuing.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def test_an_expired_issuing_ca_signs_nothing(ca_folder: Path) -> None:
    """A certificate that nobody could verify is not made."""
    late = datetime.now(UTC) + timedelta(days=11 * 365)
    with (
        CertificateAuthority.open(ca_folder, lambda: PASSPHRASE, clock=lambda: late) as ca,
        pytest.raises(Fault, match="issuing CA expired"),
    ):
        ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())


@pytest.mark.parametrize("name", ["dev-1", "0042", "a", "press.07:left_arm", "x" * 64])
def test_lower_case_ids_are_issuable(name: str) -> None:
    """F11: leading zeros stay, 64 characters fit."""
    assert str(issuable_id(name)) == name


@pytest.mark.parametrize(
    "name",
    ["", "Dev-1", "DEV", "a/b", "a+", "#", "$sys", "a b", "a\0b", "a\nb", "x" * 65, "-a", ".", "..", "é", "\u202e"],
)
def test_other_ids_are_refused(name: str) -> None:
    """F11: upper case, topic structure, control characters, over-long and anything that is not plain ASCII."""
    with pytest.raises(Fault) as caught:
        issuable_id(name)
    assert caught.value.hint
    assert str(caught.value).isprintable()


def test_the_library_refuses_upper_case_too(ca: CertificateAuthority) -> None:
    """A caller that skips `issuable_id` does not get around it, and no serial is spent."""
    before = len(ca.ledger.certificates())
    with pytest.raises(Fault, match="'DEV' is not an id"):
        ca.issue(DeviceId("DEV"), DEVICE_OPERATIONAL, new_key().public_key())
    assert len(ca.ledger.certificates()) == before


@pytest.mark.parametrize("ou", ["", "x" * 65, "a\0b", "a\nb"], ids=["empty", "over-long", "nul", "newline"])
def test_an_organizational_unit_that_x509_does_not_take_is_refused(ca: CertificateAuthority, ou: str) -> None:
    """RFC 5280 allows 64 characters; OpenSSL would show a certificate that breaks it, and strict peers refuse it."""
    rows = len(ca.ledger.certificates())
    with pytest.raises(Fault, match="organizational unit"):
        ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key(), ou=ou)
    assert len(ca.ledger.certificates()) == rows


@pytest.mark.parametrize("names", [{"dns": ["ümlaut"]}, {"ips": ["300.1.1.1"]}], ids=["dns", "ip"])
def test_a_server_name_that_is_none_is_one_sentence(ca: CertificateAuthority, names: dict[str, list[str]]) -> None:
    """A mistyped address or a name that is not ASCII."""
    with pytest.raises(Fault, match="no certificate for"):
        ca.issue_server(new_key().public_key(), dns=names.get("dns", []), ips=names.get("ips", []))


# --- serials and keys (F3, F5)


def test_certificate_serials_are_random_and_in_the_ledger(ca: CertificateAuthority) -> None:
    """F5: 128 bits, all different, each row issued with what was signed."""
    leaves = [ca.issue(DeviceId(f"dev-{n}"), DEVICE_OPERATIONAL, new_key().public_key())[0] for n in range(8)]
    serials = {leaf.serial_number for leaf in leaves}
    assert len(serials) == 8
    assert max(serial.bit_length() for serial in serials) <= 128
    assert max(serial.bit_length() for serial in serials) > 120  # all eight below it: once in 10^19 runs
    for leaf in leaves:
        (row,) = ca.ledger.certificates(certificate_serial=certificate_serial_hex(leaf))
        assert row.state is CertificateState.ISSUED
        assert row.der == leaf.public_bytes(Encoding.DER)


def test_a_serial_drawn_twice_is_drawn_again(ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    """F5: the constraint refuses the second use, the CA takes another."""
    draws = iter([7, 7, 8])
    monkeypatch.setattr(signing, "random_certificate_serial", lambda: next(draws))
    first, _ = ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())
    second, _ = ca.issue(DeviceId("dev-2"), DEVICE_OPERATIONAL, new_key().public_key())
    assert (first.serial_number, second.serial_number) == (7, 8)


def test_a_broken_random_generator_stops_the_signing(ca: CertificateAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    """F5: the same number again and again is no bad luck."""
    monkeypatch.setattr(signing, "random_certificate_serial", lambda: 7)
    ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())
    with pytest.raises(Fault, match="were used before"):
        ca.issue(DeviceId("dev-2"), DEVICE_OPERATIONAL, new_key().public_key())


CRASH_BETWEEN = """
import os, pathlib, sys
from mtls.identity import DeviceId
from mtls.keystore import new_key
from mtls.profiles import DEVICE_OPERATIONAL, Profile
from provisioning import signing
from provisioning.ca import CertificateAuthority
signing.random_certificate_serial = lambda: 0xABCD
Profile.build = lambda *_, **__: os.kill(os.getpid(), 9)
with CertificateAuthority.open(pathlib.Path(sys.argv[1]), lambda: sys.argv[2].encode()) as ca:
    ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())
"""


def test_a_crash_between_reserving_and_signing_costs_a_serial_and_repeats_none(ca_folder: Path) -> None:
    """F5: killed before the signature, the serial is on disk, never used again, and revoked by the next signer."""
    command = [sys.executable, "-c", CRASH_BETWEEN, str(ca_folder), PASSPHRASE.decode()]
    died = subprocess.run(command, check=False, timeout=60, capture_output=True)
    assert died.returncode == -9, died.stderr
    with Ledger.open(ca_folder / "ledger.db") as ledger:
        (orphan,) = ledger.certificates(certificate_serial="abcd")
        assert (orphan.state, orphan.der) == (CertificateState.RESERVED, None)
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca:
        leaf, _ = ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())
        ca.write_crl()
        assert certificate_serial_hex(leaf) != "abcd"
        assert ca.ledger.certificate(orphan.id).state is CertificateState.REVOKED
    assert "Serial Number: ABCD" in openssl_text("crl", ca_folder / "issuing.crl")


def test_the_same_public_key_is_never_certified_twice(ca: CertificateAuthority) -> None:
    """F3: neither for another device nor for the same one again."""
    key = new_key().public_key()
    ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, key)
    for name in ("dev-2", "dev-1"):
        with pytest.raises(DuplicateKey):
            ca.issue(DeviceId(name), DEVICE_OPERATIONAL, key)
    assert [row.subject for row in ca.ledger.certificates() if row.subject.startswith("dev")] == ["dev-1"]


def test_one_signer_at_a_time(ca: CertificateAuthority) -> None:
    """F5: a second signer waits and then says so; afterwards it is free again."""
    with ca.folder.locked(), pytest.raises(Fault, match="another program has been signing"), ca.folder.locked(0.1):
        pytest.fail("two signers at once")
    ca.issue(DeviceId("dev-2"), DEVICE_OPERATIONAL, new_key().public_key())


def test_the_lock_falls_with_its_process(ca_folder: Path) -> None:
    """A killed station leaves no stale lock behind."""
    script = (
        "import os, pathlib, sys\n"
        "from provisioning.ca_folder import CaFolder\n"
        "with CaFolder(pathlib.Path(sys.argv[1])).locked():\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(ca_folder)], check=False, timeout=60)
    assert died.returncode == -9
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca:
        ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())


# --- the clock (F6)


@pytest.mark.parametrize(
    ("now", "refused"),
    [(NOON, False), (NOON - timedelta(seconds=30), False), (NOON - timedelta(minutes=2), True)],
    ids=["at", "within the tolerance", "behind"],
)
@pytest.mark.parametrize("floor", ["ledger", "build"])
def test_a_clock_behind_the_record_is_refused(now: datetime, refused: bool, floor: str) -> None:
    """F6: the last signature and the program's own date are floors of an honest clock."""
    long_ago = NOON - timedelta(days=99)
    fault = clock_fault(now, NOON if floor == "ledger" else None, NOON if floor == "build" else long_ago)
    assert (fault is not None) is refused
    if fault is not None:
        assert "--accept-clock" in fault.hint


def test_nothing_is_issued_by_a_clock_that_went_back(ca_folder: Path) -> None:
    """F6: refused and no serial spent; with accept_clock it is done; a CRL obeys the same rule."""
    back = datetime.now(UTC) - timedelta(days=1)
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE, clock=lambda: back) as ca:
        rows = len(ca.ledger.certificates())
        with pytest.raises(Fault, match="the clock says"):
            ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())
        with pytest.raises(Fault, match="the clock says"):
            ca.write_crl()
        assert len(ca.ledger.certificates()) == rows
        ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key(), accept_clock=True)


def test_init_refuses_an_unset_clock(tmp_path: Path) -> None:
    """F6: a Pi without a battery starts in the past; its root CA would be born there."""
    unset = datetime(1970, 1, 1, tzinfo=UTC)
    with pytest.raises(Fault, match="this program's installation"):
        CertificateAuthority.init(tmp_path / "CA", "x", passphrase=None, clock=lambda: unset)
    assert list(tmp_path.iterdir()) == []


# --- revocation


def test_a_revoked_device_fails_openssl_and_its_neighbour_does_not(ca: CertificateAuthority, tmp_path: Path) -> None:
    """R1 at the source: the CRL lists exactly the revoked certificate, with its reason."""
    revoked, _ = issue(ca, "dev-1", tmp_path)
    other, _ = issue(ca, "dev-2", tmp_path)
    (row,) = ca.revoke(subject="dev-1", reason="keyCompromise")
    ca.write_crl(tmp_path / "crl.pem")
    accepted, said = openssl_verify(revoked, ca=ca.folder.bundle, crl=tmp_path / "crl.pem")
    assert not accepted
    assert "certificate revoked" in said
    assert openssl_verify(other, ca=ca.folder.bundle, crl=tmp_path / "crl.pem")[0]
    text = openssl_text("crl", ca.folder.crl("issuing"))
    assert row.certificate_serial.upper() in text
    assert "Key Compromise" in text


def test_unspecified_is_said_by_saying_nothing(ca: CertificateAuthority, tmp_path: Path) -> None:
    """RFC 5280 §5.3.1: the reason extension should be absent."""
    issue(ca, "dev-1", tmp_path)
    ca.revoke(subject="dev-1")
    ca.write_crl()
    assert "CRL Reason Code" not in openssl_text("crl", ca.folder.crl("issuing"))


def test_a_revoked_issuing_ca_takes_its_devices_with_it(ca: CertificateAuthority, tmp_path: Path) -> None:
    """R4: the root's CRL is in the same file, so a checker of the whole chain sees it."""
    leaf, _ = issue(ca, "dev-1", tmp_path)
    ca.revoke(certificate_serial=certificate_serial_hex(ca.issuing), reason="cACompromise")
    ca.write_crl(tmp_path / "crl.pem")
    accepted, said = openssl_verify(leaf, ca=ca.folder.bundle, crl=tmp_path / "crl.pem")
    assert not accepted
    assert "revoked" in said


def test_every_certificate_of_an_id_is_revoked_at_once(ca: CertificateAuthority, tmp_path: Path) -> None:
    """A renewed device has two certificates; revoking the device leaves none."""
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        issue(ca, "dev-1", tmp_path / run)
    assert len(ca.revoke(subject="dev-1")) == 2
    ca.write_crl(tmp_path / "crl.pem")
    for run in ("a", "b"):
        assert not openssl_verify(tmp_path / run / "dev-1.crt", ca=ca.folder.bundle, crl=tmp_path / "crl.pem")[0]


def test_one_certificate_is_revoked_by_its_serial(ca: CertificateAuthority, tmp_path: Path) -> None:
    """The deny twin: the other certificate of the same device stays good."""
    old, _ = ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())
    new_leaf, _ = issue(ca, "dev-1", tmp_path)
    ca.revoke(certificate_serial=certificate_serial_hex(old), reason="superseded")
    ca.write_crl(tmp_path / "crl.pem")
    assert openssl_verify(new_leaf, ca=ca.folder.bundle, crl=tmp_path / "crl.pem")[0]


def test_revoking_what_was_never_issued_is_a_fault(ca: CertificateAuthority) -> None:
    """A typing error must not look like a revocation."""
    with pytest.raises(Fault, match="no certificate was issued for dev-9"):
        ca.revoke(subject="dev-9")


def test_revoking_needs_no_key_and_no_passphrase(ca_folder: Path, tmp_path: Path) -> None:
    """Anybody who keeps the ledger can revoke at night, with the keys in the safe."""
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca:
        issue(ca, "dev-1", tmp_path)
    for name in ("root.key", "issuing.key"):
        (ca_folder / name).unlink()

    def no_passphrase() -> bytes:
        pytest.fail("asked for a passphrase")

    with CertificateAuthority.open(ca_folder, no_passphrase) as ca:
        assert ca.revoke(subject="dev-1")[0].state is CertificateState.REVOKED


def test_each_crl_is_later_and_numbered_higher(ca: CertificateAuthority) -> None:
    """R2: two CRLs within one second have different thisUpdate seconds and growing cRLNumbers."""
    seen = []
    for _ in range(4):
        ca.write_crl()
        crl = x509.load_pem_x509_crl(ca.folder.crl("issuing").read_bytes())
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        seen.append((crl.last_update_utc, number))
    assert all(later[0] > earlier[0] and later[1] > earlier[1] for earlier, later in pairwise(seen))


def test_a_ledger_from_a_backup_forgets_no_revocation(ca_folder: Path, tmp_path: Path) -> None:
    """The CRL on disk counts too: numbers go on upwards, and what it lists stays revoked, with its reason."""
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca:
        leaf, _ = issue(ca, "dev-1", tmp_path)
    shutil.copy(ca_folder / "ledger.db", tmp_path / "backup.db")
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca:
        ca.revoke(subject="dev-1", reason="keyCompromise")
        numbers = [ca.write_crl().crls[1].number for _ in range(3)]
    for leftover in ca_folder.glob("ledger.db*"):
        leftover.unlink()
    shutil.copy(tmp_path / "backup.db", ca_folder / "ledger.db")
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca:
        assert ca.write_crl().crls[1].number > max(numbers)
        assert not openssl_verify(leaf, ca=ca.folder.bundle, crl=ca.folder.crl_bundle)[0]
    assert "Key Compromise" in openssl_text("crl", ca_folder / "issuing.crl")


def test_a_crl_of_a_clock_that_ran_ahead_is_left_behind(ca_folder: Path, tmp_path: Path) -> None:
    """Following a thisUpdate of next year would lock the fleet out until then; accept_clock starts afresh."""
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca:
        leaf, _ = issue(ca, "dev-1", tmp_path)
    ahead = datetime.now(UTC) + timedelta(days=365)
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE, clock=lambda: ahead) as ca:
        ca.write_crl()
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca:
        with pytest.raises(Fault, match="the clock says"):
            ca.write_crl()
        ca.write_crl(accept_clock=True)
        assert openssl_verify(leaf, ca=ca.folder.bundle, crl=ca.folder.crl_bundle)[0]


def test_the_root_key_may_be_away(ca_folder: Path, tmp_path: Path) -> None:
    """Its last CRL is carried over while it is valid, and the fleet verifies on."""
    (ca_folder / "root.key").rename(tmp_path / "safe.key")
    with CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca:
        leaf, _ = issue(ca, "dev-1", tmp_path)
        assert ca.write_crl(tmp_path / "crl.pem").root_is_old
        assert openssl_verify(leaf, ca=ca.folder.bundle, crl=tmp_path / "crl.pem")[0]


def test_an_expired_root_crl_is_not_carried_over(ca_folder: Path) -> None:
    """F10: the command says that the root's key is due instead of publishing what locks the fleet out."""
    (ca_folder / "root.key").unlink()
    late = datetime.now(UTC) + timedelta(days=366)
    with (
        CertificateAuthority.open(ca_folder, lambda: PASSPHRASE, clock=lambda: late) as ca,
        pytest.raises(ConfigFault, match="has expired and the root's key is not there"),
    ):
        ca.write_crl()


# --- bad folders


def test_a_wrong_passphrase_signs_nothing(ca_folder: Path) -> None:
    """One sentence, and no serial is spent."""
    with CertificateAuthority.open(ca_folder, lambda: b"wrong") as ca:
        rows = len(ca.ledger.certificates())
        with pytest.raises(ConfigFault, match="passphrase"):
            ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())
        assert len(ca.ledger.certificates()) == rows


def test_the_passphrase_is_asked_for_once(ca_folder: Path) -> None:
    """Root and issuing key share it; two prompts for one CRL would be one too many."""
    asked = []

    def ask() -> bytes:
        asked.append(1)
        return PASSPHRASE

    with CertificateAuthority.open(ca_folder, ask) as ca:
        assert asked == []
        ca.write_crl()
        ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())
    assert asked == [1]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_loose_ca_key_is_refused(ca_folder: Path, mode: int) -> None:
    """F9: others may have read it already."""
    (ca_folder / "issuing.key").chmod(mode)
    with (
        CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca,
        pytest.raises(ConfigFault, match=r"issuing\.key can be read by others"),
    ):
        ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, "gone") for name in ("root.crt", "issuing.crt", "issuing.key", "ledger.db")),  # a CRL is made again
        *(
            (name, damage)
            for name in ("root.crt", "issuing.crt", "issuing.key", "ledger.db", "issuing.crl")
            for damage in ("empty", "cut", "junk")
        ),
    ],
)
def test_a_damaged_folder_is_one_sentence(ca_folder: Path, name: str, damage: str) -> None:
    """Missing, empty, truncated or foreign: a fault that names the file, never a traceback."""
    path = ca_folder / name
    whole = path.read_bytes()
    damaged = {"empty": b"", "cut": whole[: len(whole) // 2], "junk": os.urandom(200)}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    with pytest.raises(Fault) as caught, CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca:
        ca.write_crl()
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_of_another_ca_is_refused(ca_folder: Path, tmp_path: Path) -> None:
    """Mixed-up backups: a signature by the wrong key would verify nowhere."""
    CertificateAuthority.init(tmp_path / "other", "Plant 7", passphrase=PASSPHRASE)
    shutil.copy(tmp_path / "other" / "issuing.key", ca_folder / "issuing.key")
    with (
        CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca,
        pytest.raises(ConfigFault, match=r"does not belong to issuing\.crt"),
    ):
        ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())


def test_both_kinds_of_key_at_once_are_refused(ca_folder: Path) -> None:
    """An unencrypted copy left beside the real key is no choice to make silently."""
    write_private(ca_folder / "issuing.INSECURE-DEV.key", key_pem(new_key()))
    with (
        CertificateAuthority.open(ca_folder, lambda: PASSPHRASE) as ca,
        pytest.raises(ConfigFault, match="an encrypted and an unencrypted"),
    ):
        ca.issue(DeviceId("dev-1"), DEVICE_OPERATIONAL, new_key().public_key())
