"""Files that are whole, private, or both; keys that others could read are refused (F4, F9)."""

from __future__ import annotations

import base64
import os
import ssl
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from mtls import keystore
from mtls.errors import ConfigFault, Fault
from mtls.keystore import (
    key_pem,
    load_certificate,
    load_key,
    new_key,
    read_limited,
    read_private,
    save_key,
    write_private,
    write_public,
)
from tests.support.pki import Pki


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_umask() -> object:
    """A umask that protects nothing, as in a careless container."""
    before = os.umask(0)
    yield
    os.umask(before)


# --- writing


@pytest.mark.usefixtures("open_umask")
def test_a_private_file_is_the_owners_from_the_moment_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its temporary twin, at every step of the writing, under any umask."""
    seen: list[int] = []

    def spy(name: str) -> None:
        real = getattr(os, name)

        def wrapper(*arguments: object, **named: object) -> object:
            seen.extend(mode(path) for path in tmp_path.iterdir())
            result = real(*arguments, **named)
            seen.extend(mode(path) for path in tmp_path.iterdir())
            return result

        monkeypatch.setattr(os, name, wrapper)

    for name in ("open", "write", "fchmod", "fsync", "close"):
        spy(name)
    write_private(tmp_path / "a.key", b"secret")
    monkeypatch.undo()
    assert len(seen) >= 6
    assert set(seen) == {0o600}
    assert (tmp_path / "a.key").read_bytes() == b"secret"


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_public_file_can_be_read_by_everybody_and_written_by_nobody_else(tmp_path: Path, umask: int) -> None:
    """Certificates and CRLs are read by services of other users, whatever the umask of the writer."""
    before = os.umask(umask)
    try:
        write_public(tmp_path / "a.crt", b"public")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a.crt") == 0o644


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """Who has the old one open goes on reading the old one."""
    path = tmp_path / "a.crt"
    write_public(path, b"old")
    with path.open("rb") as held:
        write_public(path, b"new and longer")
        assert held.read() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_through_a_symlink_replaces_the_link_and_not_its_target(tmp_path: Path) -> None:
    """Somebody's link to /etc/passwd costs him his link."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"theirs")
    link.symlink_to(target)
    write_private(link, b"ours")
    assert target.read_bytes() == b"theirs"
    assert not link.is_symlink()
    assert link.read_bytes() == b"ours"


@pytest.mark.parametrize("step", ["write", "fchmod", "fsync", "link", "rename"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    """A full disk or Ctrl-C at any step: no half file, no temporary file with a key in it."""
    old = tmp_path / "old.key"
    write_private(old, b"old")

    def fail(*_arguments: object, **_named: object) -> object:
        raise error

    monkeypatch.setattr(Path if step == "rename" else os, step, fail)
    new, attempts = tmp_path / "new.key", {"link": lambda: save_key(new, new_key(), None)}
    with pytest.raises(Fault if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        attempts.get(step, lambda: write_private(old, b"new"))()
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"old"
    if isinstance(caught.value, Fault):
        assert str(caught.value).endswith("No space left on device")
        assert caught.value.hint


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take fewer bytes than it was given."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:3])))
    write_public(tmp_path / "a", b"0123456789")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_file_and_folder_are_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File before the rename, folder after it: a power cut finds the old one or the new one."""
    steps: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_sync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    write_private(tmp_path / "a", b"x")
    assert steps == ["file", "rename", "folder"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One sentence with the path, and no traceback of the system's."""
    path = tmp_path / "missing" / "a.key"
    with pytest.raises(Fault, match=f"cannot write {path}: No such file"):
        write_private(path, b"x")


# --- reading


def test_a_file_within_its_limit_is_read(tmp_path: Path) -> None:
    """The limit itself is allowed."""
    (tmp_path / "a").write_bytes(b"12345")
    assert read_limited(tmp_path / "a", 5) == b"12345"


def test_a_file_above_its_limit_is_refused_by_name(tmp_path: Path) -> None:
    """The deny twin: one byte more."""
    (tmp_path / "a").write_bytes(b"123456")
    with pytest.raises(ConfigFault, match=r"a is larger than 5 bytes"):
        read_limited(tmp_path / "a", 5)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """A folder, a device, and a FIFO that nobody writes to: none of them makes the reader wait."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, fifo, Path("/dev/zero")):
        with pytest.raises(ConfigFault, match="is not a regular file"):
            read_limited(path)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    """With exit code 78: it is a fault of the configuration."""
    with pytest.raises(ConfigFault, match=r"nowhere does not exist") as caught:
        read_limited(tmp_path / "nowhere")
    assert caught.value.exit_code == 78
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigFault, match=r"cannot read .*loop: Too many levels"):
        read_limited(loop)


# --- keys


def test_a_new_key_is_p256_and_comes_back_from_its_file(tmp_path: Path) -> None:
    """With and without a passphrase; OpenSSL reads the same file."""
    key = new_key()
    for name, passphrase in (("plain", None), ("sealed", b"correct horse")):
        path = tmp_path / name
        save_key(path, key, passphrase)
        assert mode(path) == 0o600
        assert load_key(path, passphrase).private_numbers() == key.private_numbers()
        words = ["-passin", "pass:correct horse"] if passphrase else []
        text = subprocess.run(
            ["openssl", "pkey", "-in", str(path), "-noout", "-text_pub", *words],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert "prime256v1" in text


def test_an_encrypted_key_does_not_stand_in_its_file(tmp_path: Path) -> None:
    """PKCS#8 encrypted: neither the scalar nor a plain key block."""
    key = new_key()
    save_key(tmp_path / "a.key", key, b"passphrase")
    data = (tmp_path / "a.key").read_bytes()
    assert data.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    der = base64.b64decode(b"".join(data.splitlines()[1:-1]))
    assert key.private_numbers().private_value.to_bytes(32) not in der


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    """Nor is a file of another kind at its place, nor a link that points nowhere."""
    path, dangling = tmp_path / "a.key", tmp_path / "b.key"
    save_key(path, new_key(), None)
    before = path.read_bytes()
    dangling.symlink_to(tmp_path / "nowhere")
    for place in (path, dangling):
        with pytest.raises(Fault, match=r"exists already"):
            save_key(place, new_key(), None)
    assert path.read_bytes() == before
    assert dangling.is_symlink()
    assert sorted(tmp_path.iterdir()) == [path, dangling]


def test_of_many_that_save_at_once_exactly_one_wins(tmp_path: Path) -> None:
    """The check and the placing are one step, so that no key vanishes behind another's back."""
    path, keys, won = tmp_path / "a.key", [new_key() for _ in range(8)], []
    start = threading.Barrier(len(keys))

    def save(key: ec.EllipticCurvePrivateKey) -> None:
        start.wait(10)
        try:
            save_key(path, key, None)
        except Fault:
            return
        won.append(key)

    threads = [threading.Thread(target=save, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(won) == 1
    assert load_key(path).private_numbers() == won[0].private_numbers()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o644, 0o620, 0o666, 0o611])
def test_a_key_that_others_can_touch_is_refused(tmp_path: Path, bits: int) -> None:
    """Refused, not repaired: it may have been read already. The hint says both ways out."""
    path = tmp_path / "a.key"
    save_key(path, new_key(), None)
    path.chmod(bits)
    with pytest.raises(ConfigFault, match=rf"can be read by others \(mode {bits:04o}\)") as caught:
        load_key(path)
    assert f"chmod 600 {path}" in caught.value.hint
    assert mode(path) == bits


@pytest.mark.parametrize("bits", [0o600, 0o400])
def test_a_key_of_its_owner_alone_is_read(tmp_path: Path, bits: int) -> None:
    """The allow twin."""
    path = tmp_path / "a.key"
    save_key(path, new_key(), None)
    path.chmod(bits)
    load_key(path)


def test_a_link_to_a_loose_key_is_as_loose_as_the_key(tmp_path: Path) -> None:
    """A link's own mode says nothing; a link to a tight key works."""
    loose, tight = tmp_path / "loose.key", tmp_path / "tight.key"
    for path in (loose, tight):
        save_key(path, new_key(), None)
        path.with_suffix(".link").symlink_to(path)
    loose.chmod(0o644)
    load_key(tmp_path / "tight.link")
    with pytest.raises(ConfigFault, match="can be read by others"):
        load_key(tmp_path / "loose.link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    """Who owns a file can read it at any time; root's are fine."""
    path = tmp_path / "a.key"
    save_key(path, new_key(), None)
    load_key(path)
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigFault, match=r"belongs to user 12345"):
        load_key(path)


def test_the_group_bit_of_a_credential_of_the_service_manager_is_allowed_there_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd opens a credential by an ACL, which shows as the group's read bit; others' bits stay refused."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    inside, outside = folder / "server.key", tmp_path / "server.key"
    for path in (inside, outside):
        write_private(path, b"x")
        path.chmod(0o440)
    with pytest.raises(ConfigFault, match="can be read by others"):
        read_private(inside)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert read_private(inside) == b"x"
    for path in (outside, folder / ".." / "server.key"):
        with pytest.raises(ConfigFault, match="can be read by others"):
            read_private(path)
    inside.chmod(0o444)
    with pytest.raises(ConfigFault, match="can be read by others"):
        read_private(inside)


def pkcs8(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def refusal_of(path: Path, passphrase: bytes | None = None) -> tuple[str, str]:
    """What `load_key` says, and its hint."""
    with pytest.raises(ConfigFault) as caught:
        load_key(path, passphrase)
    return str(caught.value).removeprefix(f"{path} "), caught.value.hint


def test_each_kind_of_unusable_key_has_its_sentence(tmp_path: Path) -> None:
    """Wrong passphrase, missing, needless; cut short; no key at all; another algorithm or curve."""
    plain, sealed = key_pem(new_key()), key_pem(new_key(), b"right")
    cases: list[tuple[bytes, bytes | None, str]] = [
        (sealed, None, "is encrypted"),
        (sealed, b"wrong", "has another passphrase or is damaged"),
        (plain, b"needless", "is not encrypted"),
        (plain[:-40], None, "is not a private key in PEM"),
        (plain[: len(plain) // 2], None, "is not a private key in PEM"),
        (sealed[:-40], b"right", "has another passphrase or is damaged"),
        (b"", None, "is not a private key in PEM"),
        (b"\x00\xff" * 100, None, "is not a private key in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None, "is not a private key in PEM"),
        (pkcs8(rsa.generate_private_key(65537, 2048)), None, "is not a P-256 key"),
        (pkcs8(ec.generate_private_key(ec.SECP384R1())), None, "is not a P-256 key"),
        (pkcs8(ed25519.Ed25519PrivateKey.generate()), None, "is not a P-256 key"),
    ]
    path = tmp_path / "a.key"
    for data, passphrase, sentence in cases:
        write_private(path, data)
        said, hint = refusal_of(path, passphrase)
        assert said == sentence
        assert hint


def test_the_first_certificate_of_a_file_is_its_leaf(pki: Pki) -> None:
    """A chain stands behind it, as TLS sends it."""
    server = pki.server()
    assert load_certificate(server.cert_file, "unused") == server.certificate


def test_a_certificate_of_a_version_that_does_not_exist_is_no_traceback(tmp_path: Path, pki: Pki) -> None:
    """What the parser raises by a name of its own is the same fault."""
    whole = pki.server().certificate.public_bytes(Encoding.DER)
    path = tmp_path / "a.crt"
    path.write_text(ssl.DER_cert_to_PEM_cert(whole.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020103"))))
    with pytest.raises(ConfigFault, match="holds no certificate in PEM"):
        load_certificate(path, "make it anew")


@pytest.mark.parametrize("data", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_without_a_certificate_is_named_with_the_caller_s_hint(tmp_path: Path, data: bytes) -> None:
    """The deny twin: what the file is for, only the caller knows."""
    path = tmp_path / "a.crt"
    path.write_bytes(data)
    with pytest.raises(ConfigFault) as caught:
        load_certificate(path, "make it anew")
    assert (str(caught.value), caught.value.hint) == (f"{path} holds no certificate in PEM", "make it anew")


def test_no_message_ever_holds_key_material(tmp_path: Path) -> None:
    """F9: whatever is wrong with a key file, neither its text nor the passphrase stands in the message."""
    path = tmp_path / "a.key"
    body = key_pem(new_key()).splitlines()[1]
    write_private(path, b"-----BEGIN PRIVATE KEY-----\n" + body + b"\n-----END PRIVATE KEY-----\n")
    said, hint = refusal_of(path, b"correct horse")
    assert body.decode()[:16] not in said + hint
    assert "correct horse" not in said + hint


def test_the_limit_holds_for_keys_too(tmp_path: Path) -> None:
    """A key file of a megabyte is no key file."""
    path = tmp_path / "a.key"
    write_private(path, b"x" * (keystore.MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigFault, match="is larger than"):
        load_key(path)
