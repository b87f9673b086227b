"""Changing the deny list: what a person types is understood or refused, and the file is whole at every moment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway import denying
from gateway.denying import parse
from mtls.errors import ConfigFault, Fault
from mtls.profiles import certificate_serial_hex, fingerprint_sha256
from mtls.revocation import MAX_DENY_BYTES, DenyList
from tests.support.pki import Pki


def test_what_inspect_prints_and_openssl_prints_denies_the_certificate(tmp_path: Path, pki: Pki) -> None:
    """Hex with colons and in upper case is the same certificate; the list then refuses it."""
    path = tmp_path / "deny.toml"
    path.write_text("")
    certificate = pki.device("dev-a").certificate
    serial, fingerprint = certificate_serial_hex(certificate), fingerprint_sha256(certificate)
    typed = ":".join(f"{byte:02X}" for byte in bytes.fromhex(fingerprint))
    assert denying.add(path, parse(["dev-b"], ["0x" + serial.upper(), "00" + serial], [typed])) == 3
    held = DenyList.from_file(path)
    assert (held.ids, held.certificate_serials, held.fingerprints) == ({"dev-b"}, {serial}, {fingerprint})


def test_a_longer_serial_than_rfc_5280_allows_is_denied_and_the_list_stays_readable(tmp_path: Path) -> None:
    """Such certificates exist and are admitted; denying one must not leave a file that no reload and no start takes."""
    path = tmp_path / "deny.toml"
    path.write_text("")
    assert denying.add(path, parse([], ["ab" * 32], [])) == 1
    assert DenyList.from_file(path).certificate_serials == {"ab" * 32}
    with pytest.raises(Fault, match="no certificate serial"):
        parse([], ["ab" * 33], [])


def test_a_list_too_large_to_be_read_again_is_not_written(tmp_path: Path) -> None:
    """The last entry that does not fit is refused; the file of before stays, and can be read."""
    path = tmp_path / "deny.toml"
    path.write_text("")
    many = [f"{number:064x}" for number in range(MAX_DENY_BYTES // 68 - 1)]
    assert denying.add(path, parse([], [], many)) == len(many)
    with pytest.raises(Fault, match="would be larger"):
        denying.add(path, parse([], [], ["f" * 64, "e" * 64]))
    assert len(DenyList.from_file(path).fingerprints) == len(many)


def test_of_changes_at_the_same_time_none_is_lost(tmp_path: Path) -> None:
    """The control socket serves several at a time; a device that was reported as denied is on the list."""
    path = tmp_path / "deny.toml"
    path.write_text("")
    names = [f"dev-{number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        changed = list(pool.map(lambda name: denying.add(path, parse([name], [], [])), names))
    assert changed == [1] * len(names)
    assert DenyList.from_file(path).ids == set(names)


def test_adding_twice_and_removing_what_is_not_there_change_nothing(tmp_path: Path) -> None:
    """The number of changes is the answer, and an unchanged file is not written."""
    path = tmp_path / "deny.toml"
    path.write_text("# mine\nids = ['a', 'b']\n")
    assert denying.add(path, parse(["a"], [], [])) == 0
    assert denying.remove(path, parse(["c"], [], [])) == 0
    assert path.read_text().startswith("# mine")
    assert denying.remove(path, parse(["a", "c"], [], [])) == 1
    assert DenyList.from_file(path).ids == {"b"}


@pytest.mark.parametrize(
    ("ids", "serials", "fingerprints"),
    [
        (["a/b"], [], []),
        ([""], [], []),
        (["dev a"], [], []),
        (["x" * 65], [], []),
        ([], ["xyz"], []),
        ([], [""], []),
        ([], [], ["abcd"]),
        ([], [], ["g" * 64]),
    ],
)
def test_an_entry_that_could_match_nothing_is_refused(
    ids: list[str], serials: list[str], fingerprints: list[str]
) -> None:
    """A typing error must not look like a denial."""
    with pytest.raises(Fault) as caught:
        parse(ids, serials, fingerprints)
    assert caught.value.hint


def test_a_broken_list_is_not_overwritten(tmp_path: Path) -> None:
    """What an operator has half typed is theirs; the fault names the file."""
    path = tmp_path / "deny.toml"
    path.write_text("ids = [")
    with pytest.raises(ConfigFault, match=r"deny\.toml"):
        denying.add(path, parse(["a"], [], []))
    assert path.read_text() == "ids = ["


def test_a_folder_that_cannot_be_written_leaves_the_list_as_it_was(tmp_path: Path) -> None:
    """A disk or permission fault is a sentence, and the old list is still whole."""
    folder = tmp_path / "etc"
    folder.mkdir()
    path = folder / "deny.toml"
    path.write_text("ids = ['a']\n")
    path.with_name(".x").mkdir()
    link = tmp_path / "elsewhere"
    link.symlink_to("/proc/self")  # a folder where nobody can make files
    (tmp_path / "list").write_text("")
    with pytest.raises(Fault):
        denying.add(link / "environ", parse(["b"], [], []))
    assert DenyList.from_file(path).ids == {"a"}
