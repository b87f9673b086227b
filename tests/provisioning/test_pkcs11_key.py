"""A CA's key in SoftHSM: certificates and CRLs signed inside the token, judged by openssl."""

import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mtls.errors import ConfigFault, Fault
from mtls.keystore import new_key, write_private
from mtls.profiles import DEVICE_OPERATIONAL, ROOT_CA, Issuer, random_certificate_serial
from mtls.revocation import build_crl
from provisioning.pkcs11_key import HsmKey, KeyUri, load_hsm_key, make_hsm_key
from tests.support.pki import now

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = b"correct horse 7"


def no_prompt() -> bytes:
    raise AssertionError("the PIN was asked for")


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A token `station-1` of SoftHSM, and the folder with its PIN file. One for all: the module is initialised once."""
    folder = tmp_path_factory.mktemp("hsm")
    (folder / "tokens").mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("SOFTHSM2_CONF", str(configuration))
    make = ["softhsm2-util", "--init-token", "--free", "--label", "station-1", "--so-pin", "so pin 99", "--pin", PIN]
    subprocess.run(make, check=True, capture_output=True)
    write_private(folder / "pin", PIN + b"\n")
    yield folder
    patch.undo()


def uri(token: Path, label: str, pin_file: str = "pin", name: str = "station-1") -> KeyUri:
    return KeyUri.parse(f"pkcs11:token={name};object={label}?module-path={MODULE}&pin-source=file:{token / pin_file}")


def test_a_key_in_the_token_signs_certificates_and_crls_that_openssl_accepts(token: Path, tmp_path: Path) -> None:
    """Root, leaf and CRL; made in one session, opened again in another, with a second key of the token beside it."""
    name = uri(token, "root-1")
    made = make_hsm_key(name, no_prompt)
    made.close()
    key, other = load_hsm_key(name, no_prompt), make_hsm_key(uri(token, "other-1"), no_prompt)
    assert key.public_key() == made.public_key() != other.public_key()
    root = ROOT_CA.build(
        subject_cn="HSM root",
        public_key=key.public_key(),
        issuer=None,
        key=key,
        now=now(),
        certificate_serial=random_certificate_serial(),
    )
    issuer = Issuer(root, key)
    leaf = DEVICE_OPERATIONAL.build(subject_cn="dev-1", public_key=new_key().public_key(), issuer=issuer, now=now())
    crl = build_crl(issuer, [], now=now(), lifetime=timedelta(days=1), number=1)
    for file, item in {"root": root, "leaf": leaf, "crl": crl}.items():
        (tmp_path / file).write_bytes(item.public_bytes(serialization.Encoding.PEM))
    judge = ["openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", "root", "-CRLfile", "crl", "leaf"]
    done = subprocess.run(judge, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "leaf: OK\n", done.stderr
    other.close()
    key.close()


def test_the_key_does_nothing_but_sign(token: Path) -> None:
    """It cannot be read, not in the token either, and signs with no other hash."""
    key = make_hsm_key(uri(token, "locked-1"), no_prompt)
    no_encryption = serialization.NoEncryption()
    for use in (
        lambda: key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_encryption),
        key.private_numbers,
        lambda: key.exchange(ec.ECDH(), key.public_key()),
        lambda: key.sign(b"x", ec.ECDSA(hashes.SHA384())),
    ):
        with pytest.raises(Fault, match="HSM"):
            use()
    key.close()
    listed = subprocess.run(
        ["pkcs11-tool", "--module", MODULE, "--token-label", "station-1", "--login", "--pin", PIN, "--list-objects"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    described = listed[listed.index("Private Key Object") :]
    assert "sensitive" in described
    assert "extractable" not in described.replace("never extractable", "")


def test_a_label_is_used_once(token: Path) -> None:
    """A key found by name is never reused (F4)."""
    make_hsm_key(uri(token, "twice-1"), no_prompt).close()
    with pytest.raises(ConfigFault, match="already"):
        make_hsm_key(uri(token, "twice-1"), no_prompt)


@pytest.mark.parametrize(
    ("label", "pin", "name", "says"),
    [
        ("none-1", "pin", "station-1", "0 objects 'none-1'"),
        ("root-1", "pin", "station-9", "no token 'station-9'"),
        ("root-1", "wrong", "station-1", "is wrong"),
        ("root-1", "default", "station-1", "sold with"),
        ("root-1", "empty", "station-1", "empty"),
    ],
)
def test_what_is_not_there_or_not_right_is_named(token: Path, label: str, pin: str, name: str, says: str) -> None:
    """Key, token, PIN; a PIN that tokens are sold with is not even tried."""
    for file, content in {"wrong": b"wrong pin 123", "default": b"1234", "empty": b"\n"}.items():
        write_private(token / file, content)
    with pytest.raises(ConfigFault, match=says) as caught:
        load_hsm_key(uri(token, label, pin, name), no_prompt)
    assert PIN.decode() not in str(caught.value)


def test_a_module_that_is_none_is_named(token: Path, tmp_path: Path) -> None:
    """Not a shared object at all."""
    write_private(tmp_path / "module.so", b"no module")
    broken = KeyUri("station-1", "root-1", tmp_path / "module.so", token / "pin")
    with pytest.raises(ConfigFault, match="does not work"):
        load_hsm_key(broken, no_prompt)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("issuing.key", "no pkcs11"),
        ("pkcs11:token=a;object=b", "needs module-path"),
        ("pkcs11:token=a;object=b?module-path=/m&pin-value=1", "shows the PIN"),
        ("pkcs11:token=a;object=b;serial=1?module-path=/m", "does not know 'serial'"),
        ("pkcs11:token=a;object=b?module-path=/m&pin-source=|cat", "not a file"),
    ],
)
def test_a_uri_that_is_not_whole_is_refused(text: str, says: str) -> None:
    """With the example in the hint; a PIN in the open above all."""
    with pytest.raises(ConfigFault, match=says):
        KeyUri.parse(text)


def test_a_uri_is_decoded_and_its_pin_asked_for_when_no_file_is_named() -> None:
    """RFC 7512: percent encoding in every value."""
    parsed = KeyUri.parse("pkcs11:token=Station%201;object=issuing?module-path=/m%2Fx.so")
    assert parsed == KeyUri("Station 1", "issuing", Path("/m/x.so"))
    assert parsed.pin(lambda: b"from the prompt") == b"from the prompt"


def test_a_token_that_answers_nonsense_is_found_out() -> None:
    """A signature of the wrong length never becomes a certificate."""
    key = HsmKey(new_key().public_key(), lambda digest: b"short")
    with pytest.raises(Fault, match="5 bytes"):
        key.sign(b"x", ec.ECDSA(hashes.SHA256()))
