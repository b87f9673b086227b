"""The folder of a file exchange: opened once, locked, limited, and never a way to somewhere else."""

from pathlib import Path

import pytest

from mtls.errors import Fault
from provisioning.folder import Folder
from provisioning.port import PortFault


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty folder."""
    path = tmp_path / "stick"
    path.mkdir()
    return path


def test_what_is_written_is_read_again_and_nothing_else_is_left(path: Path) -> None:
    """Whole and replaced whole; what is not there is None."""
    with Folder(str(path)) as folder:
        assert folder.read("a.crt", 10) is None
        for content in (b"first", b"second"):
            folder.write("a.crt", content)
            assert folder.read("a.crt", 10) == content
    assert [entry.name for entry in path.iterdir()] == ["a.crt"]


def test_a_file_is_read_up_to_its_limit_and_not_beyond(path: Path) -> None:
    """One byte more is a refusal, not a file cut short."""
    (path / "a.csr").write_bytes(bytes(10))
    with Folder(str(path)) as folder:
        assert folder.read("a.csr", 10) == bytes(10)
        with pytest.raises(Fault, match="larger than 9 bytes"):
            folder.read("a.csr", 9)


def test_a_folder_that_is_exchanged_for_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    """Reads and writes stay in the folder that was opened, wherever its path leads by now."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "a.crt").write_bytes(b"precious")
    with Folder(str(path)) as folder:
        path.rename(tmp_path / "moved")
        path.symlink_to(victim)
        assert folder.read("a.crt", 10) is None
        folder.write("a.crt", b"ours")
    assert (victim / "a.crt").read_bytes() == b"precious"
    assert (tmp_path / "moved" / "a.crt").read_bytes() == b"ours"


def test_a_folder_that_is_gone_is_an_interruption(path: Path) -> None:
    """A write says so as the fault of a port; nothing is made in its place."""
    with Folder(str(path)) as folder:
        path.rmdir()
        assert folder.read("a.crt", 10) is None
        with pytest.raises(PortFault, match=f"cannot write {path}/a.crt: no such file"):
            folder.write("a.crt", b"ours")
    assert not path.exists()


def test_two_stations_do_not_share_a_folder(path: Path) -> None:
    """One has it; for the other it is busy, and free again afterwards."""
    with Folder(str(path)), pytest.raises(PortFault, match="another program has it"):
        Folder(str(path))
    Folder(str(path)).close()


def test_what_is_no_folder_is_said_in_one_sentence(path: Path) -> None:
    """A file and a missing path."""
    (path / "file").touch()
    for name, why in (("file", "not a directory"), ("none", "no such file")):
        with pytest.raises(PortFault, match=f"cannot open the folder {path / name}: {why}"):
            Folder(str(path / name))
