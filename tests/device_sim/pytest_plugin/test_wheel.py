"""The plugin in a foreign project: installed from a wheel into a fresh environment, with the example of the docs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from device_sim.targets.programs import leashed
from tests.docs.pages import REPOSITORY, blocks_of
from tests.support.environment import unmeasured
from tests.support.once import made_once

PACKAGES = ("mtls", "gateway", "provisioning", "device_sim")
RUN_S = 120.0

INERT = """
import sys
import threading

HEAVY = {"paho", "cryptography", "aiohttp", "click", "gateway", "mtls", "device_sim.targets", "device_sim.fleet"}

def test_the_plugin_is_there_and_has_imported_nothing(request):
    assert request.config.pluginmanager.has_plugin("mqtt-mtls-gateway")
    assert HEAVY & set(sys.modules) == set()
    assert threading.active_count() == 1
"""

FAILING = """
def test_of_what_nobody_said(device_factory, capture):
    device_factory("press-07").publish("devices/press-07/telemetry/t", "41")
    capture.expect("devices/press-07/telemetry/t", "42", within_s=0.3)

def test_of_silence_where_there_is_none(device_factory, capture):
    device_factory("press-07").publish("devices/press-07/telemetry/t", "41")
    capture.nothing("devices/#")

def test_of_a_refusal_that_does_not_come(device_factory):
    device_factory.refused("press-07")
"""

WAITING = """
import pathlib

def test_that_waits(mtls_gateway, fault_proxy, device_factory, capture):
    device_factory("press-07", through=fault_proxy)
    pathlib.Path("pid").write_text(str(mtls_gateway.process_id))
    capture.expect("devices/#", "never", within_s=100)
"""


class Project:
    """A folder outside of the repository, and the environment whose pytest runs in it."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = folder
        self.command = [str(python), "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", "-rs"]
        # Nothing of this test run may reach the foreign one: not its coverage, not its worker.
        ours = ("COV", "PYTEST", "PYTHON")
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        self.environment |= {"TMPDIR": str(folder / "tmp"), "PYTHONPYCACHEPREFIX": str(python.parents[1] / "pycache")}
        (folder / "tmp").mkdir()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            leashed([*self.command, *arguments]),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def foreign_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that holds our wheel, what it declares to need, and pytest."""
    return made_once(tmp_path_factory, "foreign", build) / "venv/bin/python"


def build(base: Path) -> None:
    """A wheel of a copy of the source, so that the checkout stays clean, and an environment with it."""
    source, dist, home = base / "source", base / "dist", base / "venv"
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", dist, source], env=unmeasured(), check=True, capture_output=True
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], env=unmeasured(), check=True)
    wheels = [str(wheel) for wheel in dist.glob("*.whl")]
    install = [*pip, "--python", str(home / "bin/python"), "install", "--no-compile", *wheels, "pytest", "pytest-xdist"]
    subprocess.run(install, env=unmeasured(), check=True, capture_output=True)


@pytest.fixture
def project(foreign_python: Path, tmp_path: Path) -> Project:
    """A foreign project with nothing in it."""
    return Project(tmp_path, foreign_python)


@pytest.fixture
def example(project: Project) -> Project:
    """The project that docs/pytest.md shows."""
    for block in blocks_of((REPOSITORY / "docs/pytest.md").read_text(encoding="utf-8")):
        if "file" in block.marks:
            project.write(block.marks["file"], block.text)
    return project


def test_the_example_passes_with_two_workers_and_leaves_nothing(example: Project) -> None:
    """Every fixture, allowed and denied; warnings are errors, and the folder is as it was."""
    before = sorted(example.folder.iterdir())
    done = example.run("-n", "2", "test_site.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 passed" in done.stdout
    assert sorted(example.folder.iterdir()) == before


def test_the_example_against_mosquitto_skips_what_only_the_gateway_has(example: Project) -> None:
    """Said by the option; what is skipped says why."""
    done = example.run("--mqtt-target", "mosquitto", "test_site.py", "-k", "reports or will or weekend or not_let_in")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed, 1 skipped" in done.stdout
    assert "the target is mosquitto, and a clock that is set is our gateway's" in done.stdout


def test_a_run_without_the_fixtures_pays_nothing(project: Project) -> None:
    """The plugin is loaded, and imports, starts and writes nothing."""
    project.write("test_inert.py", INERT)
    done = project.run("test_inert.py")
    assert done.returncode == 0, done.stdout + done.stderr


def test_failures_are_failures_and_say_what_was_heard(project: Project) -> None:
    """The twin of the example: three wrong tests fail, each with a sentence that helps."""
    project.write("test_failing.py", FAILING)
    done = project.run("test_failing.py")
    assert done.returncode == 1
    assert "3 failed" in done.stdout
    for said in (
        "no message on devices/press-07/telemetry/t with the payload '42' within 0.3 s",
        "heard 1 message:",
        "devices/press-07/telemetry/t  '41'",
        "a message on devices/# that nobody expected",
        "the gateway let press-07 in",
        "event=admitted id=press-07",
        "- mqtt audit log -",
        "serving mutual TLS on 127.0.0.1:",
    ):
        assert said in done.stdout
    assert "device_sim/pytest_plugin/heard.py" not in done.stdout  # the traceback ends in the test


def test_a_broken_policy_is_told_in_one_sentence(project: Project) -> None:
    """The gateway does not start, and the error is its own, without a traceback of ours."""
    project.write(
        "test_broken.py",
        "import pytest\nfrom device_sim.pytest_plugin.types import Rules\n\n@pytest.fixture\ndef mtls_rules():\n"
        "    return Rules(policy='version = 2')\n\ndef test_it(mtls_gateway):\n    pass\n",
    )
    done = project.run("test_broken.py")
    assert done.returncode == 1
    assert re.search(r"mqtt-gateway ended 78: (.|\n)*policy.toml", done.stdout)
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, 2), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_gateway_outlives_an_interrupted_run(project: Project, number: signal.Signals, ends: int) -> None:
    """Ctrl-C ends it by the fixtures, kill -9 by the kernel."""
    project.write("test_waiting.py", WAITING)
    running = project.start("test_waiting.py")
    pid = project.folder / "pid"
    try:
        wait_until(lambda: (pid.exists() and pid.read_text() != "") or running.poll() is not None)
        gateway = Path("/proc", pid.read_text())
        assert b"mqtt-gateway" in (gateway / "cmdline").read_bytes()
        running.send_signal(number)
        assert running.wait(20) == ends
        wait_until(lambda: not is_alive(gateway))
    finally:
        running.kill()
        running.communicate()


def is_alive(process: Path) -> bool:
    """A zombie is none: who reaps it is not its starter any more."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
