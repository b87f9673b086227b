"""Installing, upgrading and removing below a DESTDIR: what is yours stays yours."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.systemd.installation import REPOSITORY, Installation

PROGRAMS = ("mqtt-gateway", "mqtt-provision", "device-sim")


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources that a test may change."""
    target = tmp_path / "checkout"
    target.mkdir()
    for name in ("Makefile", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, target)
    for name in ("systemd", "examples", "mtls", "gateway", "provisioning", "device_sim"):
        shutil.copytree(REPOSITORY / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def test_the_installed_programs_run(installed: Installation) -> None:
    """Every program answers --help from its installed place, with nothing taken from the checkout."""
    for program in PROGRAMS:
        python = installed.prefix / "venv/bin/python"
        command = [str(python), "-I", str(installed.prefix / "venv/bin" / program), "--help"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
        assert done.returncode == 0, done.stderr
        assert "Usage:" in done.stdout


def test_nothing_installed_remembers_the_folder_it_was_built_in(installed: Installation) -> None:
    """Scripts, links and byte code name their final place, so that a package can be made from a DESTDIR."""
    needle = str(installed.destdir).encode()
    files = [path for path in installed.destdir.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files if needle in path.read_bytes()] == []
    for program in PROGRAMS:
        link = installed.destdir / "usr/local/bin" / program
        assert str(link.readlink()) == f"/opt/mqtt-gateway/venv/bin/{program}"
        script = (installed.prefix / "venv/bin" / program).read_text(encoding="utf-8")
        assert script.splitlines()[0] == "#!/opt/mqtt-gateway/venv/bin/python"


def test_an_upgrade_keeps_configuration_and_data(copied: Installation, checkout: Path) -> None:
    """After an upgrade the operator's files are as they were, the program is new, and the new example is beside."""
    copied.source = checkout
    kept = {
        copied.etc / "gateway.toml": "# mine\n",
        copied.etc / "server.key": "a key\n",
        copied.data / "gateway.db": "sessions\n",
        copied.destdir / "var/log/mqtt-gateway/audit.jsonl": "{}\n",
    }
    for path, text in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (checkout / "mtls/__init__.py").write_text('"""The new version."""\n', encoding="utf-8")
    old = (copied.prefix / "venv").resolve()

    copied.run("upgrade")

    assert {path: path.read_text(encoding="utf-8") for path in kept} == kept
    assert (copied.etc / "gateway.toml.dist").exists()
    assert not (copied.etc / "policy.toml.dist").exists()
    found = list((copied.prefix / "venv").resolve().glob("lib/*/site-packages/mtls/__init__.py"))
    assert [path.read_text(encoding="utf-8") for path in found] == ['"""The new version."""\n']
    assert not old.exists()


def test_an_upgrade_that_fails_leaves_the_old_version_running(copied: Installation, checkout: Path) -> None:
    """When pip fails, the link still names the old programs and nothing half-made is left."""
    copied.source = checkout
    before = (copied.prefix / "venv").resolve()
    (checkout / "pyproject.toml").write_text("broken", encoding="utf-8")

    assert copied.attempt("upgrade").returncode != 0

    assert (copied.prefix / "venv").resolve() == before
    assert [path.name for path in (copied.prefix / "releases").iterdir()] == [before.name]


def test_an_upgrade_of_nothing_is_refused(tmp_path: Path) -> None:
    """The twin: without an installation the command says so, names the next one, and makes no file."""
    nothing = Installation(tmp_path / "destdir")
    done = nothing.attempt("upgrade")
    assert done.returncode != 0
    assert "error: nothing is installed" in done.stderr
    assert "hint: run make install" in done.stderr
    assert not nothing.destdir.exists() or files_below(nothing.destdir) == set()


def test_uninstalling_keeps_data_until_it_is_told_to_purge(copied: Installation) -> None:
    """Programs and units go; configuration, keys and data go with PURGE=1 only; other files are never touched."""
    key, database = copied.etc / "server.key", copied.data / "gateway.db"
    foreign = copied.destdir / "usr/local/bin/other"
    for path in (key, database, foreign):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kept\n", encoding="utf-8")

    copied.run("uninstall")
    left = files_below(copied.destdir)
    assert {"etc/mqtt-gateway/server.key", "var/lib/mqtt-gateway/gateway.db", "usr/local/bin/other"} <= left
    assert {name for name in left if name.startswith(("opt/", "usr/local/lib/"))} == set()
    assert not (copied.destdir / "usr/local/bin/mqtt-gateway").is_symlink()

    copied.run("uninstall", PURGE="1")
    assert files_below(copied.destdir) == {"usr/local/bin/other"}


def test_a_python_in_a_home_folder_is_named_before_a_service_fails_over_it(tmp_path: Path) -> None:
    """The units cannot see home folders; an installation for another machine is only warned."""
    installation = Installation(tmp_path, pip_flags="--no-index --no-deps")
    home = tmp_path / "python"
    home.write_text("#!/bin/sh\ncase $2 in *executable*) echo /root/.pyenv/bin/python3.11 ;; esac\n", encoding="utf-8")
    home.chmod(0o755)
    done = installation.attempt("install", PYTHON=str(home))
    assert "/root/.pyenv/bin/python3.11 lies in a home folder" in done.stderr
    assert "PYTHON=/usr/bin/python3" in done.stderr
