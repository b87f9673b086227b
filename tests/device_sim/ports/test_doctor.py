"""`device-sim doctor` beside a pty, a gateway and an agent: well is said of what is well, and of nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from device_sim.fleet.identities import Identity
from device_sim.ports import doctor
from device_sim.targets.brokers import OurGateway
from device_sim.targets.site import POLICY, Site
from mtls.checkup import Level
from tests.device_sim.processes import BIN, device_sim, wait_for
from tests.device_sim.test_serial_source import Cable

ID = "press-07"
Rows = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OurGateway]:
    """`mqtt-gateway run`; devices are called press-..."""
    site = Site.make(tmp_path_factory.mktemp("gateway"))
    site.write_policy(POLICY.replace('id = "*"', 'id = "press-*"'))
    with OurGateway(site) as broker:
        yield broker


@dataclass
class Desk:
    """An agent.toml with one port, which is a pty."""

    folder: Path
    gateway: OurGateway
    cable: Cable
    identity: Identity

    def write(self, **changed: str) -> None:
        """agent.toml; `changed` replaces values of [agent], and `framing` the port's."""
        broker = f"localhost:{self.gateway.endpoint.port}"
        files = {"cert_file": self.identity.cert_file, "key_file": self.identity.key_file}
        agent = {"id": ID, **files, "ca_file": self.identity.ca_file, "broker": broker, "spool_file": "spool.db"}
        framing = changed.pop("framing", "line")
        lines = ["[agent]", *(f'{key} = "{value}"' for key, value in {**agent, **changed}.items())]
        lines += ["[[port]]", 'name = "scale"', f'device = "{self.cable.link}"', 'parser = "raw"']
        (self.folder / "agent.toml").write_text("\n".join([*lines, f'framing = "{framing}"', ""]))

    def ask(self, *more: object) -> tuple[int, Rows]:
        """Run the doctor; its exit code, and its lines by their names."""
        done = attempt("--config", self.folder / "agent.toml", "--json", *more)
        assert done.stdout, done.stderr
        return done.returncode, {row["name"]: row for row in json.loads(done.stdout)}


def attempt(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "device-sim"), "doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def desk(tmp_path: Path, gateway: OurGateway) -> Iterator[Desk]:
    cable = Cable(tmp_path / "tty-scale")
    cable.plug_in()
    found = Desk(tmp_path, gateway, cable, gateway.site.ca.new(ID))
    found.write()
    yield found
    if cable.link.is_symlink():
        cable.pull()


def test_all_is_well(desk: Desk) -> None:
    """The allow: every check is made, none fails, and what may be warned of is the machine, not the device."""
    code, rows = desk.ask()
    assert code == 0
    names = ["clock", "certificate", "key", "chain", "spool", "disk", "modem manager", "port scale"]
    assert list(rows) == [*names, "gateway", "handshake", "connect"]
    assert {name for name, row in rows.items() if row["level"] != "ok"} <= {"clock", "disk", "modem manager"}
    admitted = desk.gateway.site.audit("admitted", id=ID)
    assert admitted
    assert not desk.gateway.site.audit("denied", id=ID)


def test_one_device_without_a_file(desk: Desk) -> None:
    """The same by four options; in 80 columns."""
    identity = desk.identity
    files = ("--cert", identity.cert_file, "--key", identity.key_file, "--ca", identity.ca_file)
    done = attempt("--broker", f"localhost:{desk.gateway.endpoint.port}", *files)
    assert done.returncode == 0
    assert f"ok   connect        the gateway has let {ID} in" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def expired(desk: Desk) -> None:
    desk.identity = desk.gateway.site.ca.wrong(ID, "expired")
    desk.write()


def not_yet_valid(desk: Desk) -> None:
    desk.identity = desk.gateway.site.ca.wrong(ID, "not-yet-valid")
    desk.write()


def of_another_device(desk: Desk) -> None:
    desk.identity = desk.gateway.site.ca.new("press-08")
    desk.write()


def loose_key(desk: Desk) -> None:
    desk.identity.key_file.chmod(0o644)


def key_of_another(desk: Desk) -> None:
    desk.write(key_file=str(desk.gateway.site.ca.new("press-08").key_file))


def no_ca(desk: Desk) -> None:
    desk.write(ca_file=str(desk.folder / "absent.crt"))


def no_spool_folder(desk: Desk) -> None:
    desk.write(spool_file="absent/spool.db")


def unplugged(desk: Desk) -> None:
    desk.cable.pull()


def a_file_as_port(desk: Desk) -> None:
    desk.cable.link.unlink()
    desk.cable.link.symlink_to(desk.folder / "agent.toml")


def no_gateway(desk: Desk) -> None:
    desk.write(broker="localhost:1")


def no_role(desk: Desk) -> None:
    desk.identity = desk.gateway.site.ca.new("drill-07")
    desk.write(id="drill-07")


@pytest.mark.parametrize(
    ("spoil", "failed", "said"),
    [
        (expired, {"certificate", "handshake"}, "expired at"),
        (not_yet_valid, {"clock", "certificate", "handshake"}, "before the certificate's notBefore"),
        (of_another_device, {"certificate", "connect"}, "names press-08, not press-07"),
        (loose_key, {"key", "gateway"}, "can be read by others"),
        (key_of_another, {"key", "gateway"}, "is not the key of"),
        (no_ca, {"chain", "gateway"}, "absent.crt does not exist"),
        (no_spool_folder, {"spool"}, "absent is no folder that this user may write"),
        (unplugged, {"port scale"}, "is not there"),
        (a_file_as_port, {"port scale"}, "is no serial port"),
        (no_gateway, {"gateway"}, "connection refused"),
        (no_role, {"connect"}, "did not authorise this device"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_well_is_named(desk: Desk, spoil: Callable[[Desk], None], failed: set[str], said: str) -> None:
    """Only what was spoilt fails, with what was found and what to do."""
    spoil(desk)
    code, rows = desk.ask()
    found = {name: row for name, row in rows.items() if row["level"] == "fail"}
    assert (code, set(found)) == (1, failed)
    assert any(said in row["detail"] for row in found.values()), found
    assert all(row["hint"] for row in found.values())


def test_a_ca_of_another_site_is_a_warning_and_the_handshake_says_whose(desk: Desk, tmp_path: Path) -> None:
    """The device's own chain may end elsewhere; that the gateway's does not end there is a failure."""
    other = Site.make(tmp_path / "other")
    desk.write(ca_file=str(other.ca.ca_file))
    code, rows = desk.ask()
    assert (code, rows["chain"]["level"], rows["handshake"]["level"]) == (1, "warn", "fail")
    assert "connect" not in rows


def test_a_port_in_use_is_named_with_its_program(desk: Desk) -> None:
    """This test's own process holds the pty."""
    held = os.open(desk.cable.link, os.O_RDWR | os.O_NOCTTY)
    try:
        code, rows = desk.ask()
    finally:
        os.close(held)
    assert code == 1
    assert f"(process {os.getpid()})" in rows["port scale"]["detail"]


def test_a_port_without_permission_names_the_group(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests as root may do everything, so the system's answer is made up here."""
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    line = doctor._place("port scale", str(desk.cable.link))
    assert line.level is Level.FAIL
    assert line.hint.startswith(f"usermod -aG {desk.cable.link.group()} ")


@pytest.mark.parametrize(
    ("speech", "level", "said"),
    [
        (b"21.5 kg\n", "ok", "a whole frame (line)"),
        (b"\xf8\x1e\x00", "fail", "no whole frame"),
        (b"", "warn", "silent"),
    ],
    ids=["frames", "noise", "silence"],
)
def test_a_device_is_listened_to_when_asked(desk: Desk, speech: bytes, level: str, said: str) -> None:
    """It speaks for as long as the doctor listens, and every tenth of a second."""
    over = threading.Event()

    def speak() -> None:
        while not over.wait(0.1):
            desk.cable.write(speech)

    speaker = threading.Thread(target=speak)
    speaker.start()
    try:
        _, rows = desk.ask("--listen", 10 if level == "ok" else 1)
    finally:
        over.set()
        speaker.join()
    assert rows["data scale"]["level"] == level
    assert said in rows["data scale"]["detail"]


def test_modem_manager_is_seen(desk: Desk, tmp_path: Path) -> None:
    """A process of that name is a warning, which stops nothing."""
    program = tmp_path / "ModemManager"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    running = subprocess.Popen([program, "60"])
    try:
        code, rows = desk.ask()
    finally:
        running.kill()
        running.wait()
    assert (code, rows["modem manager"]["level"]) == (0, "warn")


def test_an_agent_that_runs_is_not_disturbed(desk: Desk) -> None:
    """Its connection stays the only one, and its spool and port are said to be in use."""

    def admitted() -> int:
        return len(desk.gateway.site.audit("admitted", id=ID))

    before = admitted()
    with device_sim("run", "--config", desk.folder / "agent.toml") as agent:
        agent.says("reading port scale")
        wait_for("the agent", lambda: admitted() > before)
        _, rows = desk.ask()
        assert rows["connect"]["detail"].startswith("not tried")
        assert "an agent has it open" in rows["spool"]["detail"]
        assert f"(process {agent.process.pid})" in rows["port scale"]["detail"]
        assert admitted() == before + 1
        assert agent.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 2),
        (("--broker", "localhost"), 2),
        (("--config", "absent.toml", "--key", "x"), 2),
        (("--config", "absent.toml"), 78),
    ],
    ids=["nothing", "half", "both", "absent"],
)
def test_what_cannot_be_looked_at_is_no_diagnosis(arguments: tuple[str, ...], code: int) -> None:
    """Usage is 2, a configuration that cannot be read 78, and neither prints a check."""
    done = attempt(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
