"""The rendered units, judged by systemd itself: they load, they are hardened, they wait for nothing."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest

from tests.systemd.installation import Installation

UNITS = (
    *("mqtt-gateway.service", "mqtt-gateway-crl.service", "mqtt-gateway-crl.timer", "device-sim@.service"),
    *("mqtt-provision-crl.service", "mqtt-provision-crl.timer"),
)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def rendered(installed: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed units with the paths of the installation, so that systemd finds the programs they start."""
    folder = tmp_path_factory.mktemp("units")
    for name in UNITS:
        text = (installed.units / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("/opt/mqtt-gateway", str(installed.prefix)), encoding="utf-8")
    return folder


def settings(unit: Path) -> dict[str, list[str]]:
    """Section.Key -> values, in order; systemd lets a key repeat."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_unit(rendered: Path, name: str) -> None:
    """`systemd-analyze verify` has nothing to say: every key is known and every program exists."""
    judged = analyze("verify", str(rendered / name))
    assert (judged.returncode, judged.stderr) == (0, "")


def test_systemd_refuses_a_unit_whose_program_is_missing(rendered: Path, tmp_path: Path) -> None:
    """The twin: the same judge refuses the same unit when the program is not there."""
    text = (rendered / "mqtt-gateway.service").read_text(encoding="utf-8")
    (tmp_path / "mqtt-gateway.service").write_text(text.replace("/venv/bin/", "/absent/"), encoding="utf-8")
    judged = analyze("verify", str(tmp_path / "mqtt-gateway.service"))
    assert judged.returncode != 0
    assert "absent" in judged.stderr


@pytest.mark.parametrize("name", [unit for unit in UNITS if unit.endswith(".service")])
def test_the_exposure_is_low(rendered: Path, name: str) -> None:
    """`systemd-analyze security` rates every service 2.0 or lower, and fails above the threshold it is given."""
    assert analyze("security", "--offline=true", "--threshold=20", str(rendered / name)).returncode == 0
    assert analyze("security", "--offline=true", "--threshold=5", str(rendered / name)).returncode != 0


@pytest.mark.parametrize("name", UNITS)
def test_no_unit_waits_for_the_network_or_the_clock(rendered: Path, name: str) -> None:
    """A site without an uplink or a time server starts: no unit names network-online or a time target."""
    keys = settings(rendered / name)
    named = " ".join(value for key, values in keys.items() if key.startswith("Unit.") for value in values)
    assert not re.search(r"network-online|time-sync|time-set|systemd-timesyncd", named)


def test_a_wrong_configuration_is_not_tried_again(rendered: Path) -> None:
    """Exit status 78 ends the service, any other failure restarts it, for gateway and agent."""
    for name in ("mqtt-gateway.service", "device-sim@.service"):
        keys = settings(rendered / name)
        assert keys["Service.RestartPreventExitStatus"] == ["78"]
        assert keys["Service.Restart"] == ["on-failure"]
        assert keys["Unit.StartLimitIntervalSec"] == ["0"]


def test_the_gateway_reports_that_it_lives(rendered: Path) -> None:
    """The unit is ready when the gateway says so, is reloaded by SIGHUP and killed when it stops reporting."""
    keys = settings(rendered / "mqtt-gateway.service")
    assert keys["Service.Type"] == ["notify"]
    assert keys["Service.ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert int(keys["Service.WatchdogSec"][0]) >= 10


def test_the_gateway_sees_no_device_and_the_agent_serial_ports_only(rendered: Path) -> None:
    """Devices: none for the gateway; ttyUSB, ttyACM and ttyAMA, by class, for the agent in group dialout."""
    assert settings(rendered / "mqtt-gateway.service")["Service.PrivateDevices"] == ["yes"]
    agent = settings(rendered / "device-sim@.service")
    assert agent["Service.DeviceAllow"] == ["char-ttyUSB rw", "char-ttyACM rw", "char-ttyAMA rw"]
    assert agent["Service.DevicePolicy"] == ["closed"]
    assert agent["Service.SupplementaryGroups"] == ["dialout"]
    assert "Service.PrivateDevices" not in agent


def test_keys_come_as_credentials(installed: Installation, rendered: Path) -> None:
    """Keys stay readable by root alone: systemd hands them over by the name that the example configuration has."""
    gateway = settings(rendered / "mqtt-gateway.service")
    assert gateway["Service.LoadCredential"] == ["server.key:/etc/mqtt-gateway/server.key"]
    assert settings(rendered / "device-sim@.service")["Service.LoadCredential"] == [
        "device.key:/etc/mqtt-gateway/agents/%i.key"
    ]
    example = (installed.etc / "gateway.toml").read_text(encoding="utf-8")
    assert 'key_file = "server.key"' in example


@pytest.mark.parametrize("name", [unit for unit in UNITS if unit.endswith(".service")])
def test_no_service_leaves_its_memory_in_a_core_dump(rendered: Path, name: str) -> None:
    """Private keys and passphrases are in it."""
    assert settings(rendered / name)["Service.LimitCORE"] == ["0"]


def test_the_users_and_folders_are_known_to_systemd(installed: Installation) -> None:
    """Every user a unit runs as is made by sysusers.d, and tmpfiles.d gives folders to no one else."""
    lib = installed.units.parents[1]
    made = {
        line.split()[1] for line in (lib / "sysusers.d/mqtt-gateway.conf").read_text().splitlines() if line[0] == "u"
    }
    used = {
        value
        for name in UNITS
        for key, values in settings(installed.units / name).items()
        if key == "Service.User"
        for value in values
    }
    assert used == made
    rows = [line.split() for line in (lib / "tmpfiles.d/mqtt-gateway.conf").read_text().splitlines() if line[0] == "d"]
    assert {row[3] for row in rows} == made | {"root"}
    own = [row for row in rows if row[3] != "root"]
    assert [row[1] for row in own if row[2] != "0700"] == ["/var/lib/mqtt-provision-www"]


def test_systemd_makes_the_users_and_folders(installed: Installation, tmp_path: Path) -> None:
    """systemd-sysusers and systemd-tmpfiles take the files as they are and make what they name below a root."""
    lib = installed.units.parents[1]
    (tmp_path / "etc").mkdir()
    for command in (
        ["systemd-sysusers", f"--root={tmp_path}", str(lib / "sysusers.d/mqtt-gateway.conf")],
        ["systemd-tmpfiles", "--create", f"--root={tmp_path}", str(lib / "tmpfiles.d/mqtt-gateway.conf")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    assert "mqtt-gateway" in (tmp_path / "etc/passwd").read_text()
    assert (tmp_path / "var/lib/mqtt-gateway").stat().st_mode & 0o777 == 0o700


def test_modem_manager_leaves_the_serial_adapters_alone(installed: Installation) -> None:
    """The udev rule marks whole USB devices of known adapter makers, each once, and jumps over all others."""
    text = (installed.units.parents[1] / "udev/rules.d/78-mqtt-gateway-serial.rules").read_text(encoding="utf-8")
    rules = [line for line in text.splitlines() if line and not line.startswith("#")]
    vendors = re.findall(r'^ATTR\{idVendor\}=="([0-9a-f]{4})", ENV\{ID_MM_DEVICE_IGNORE\}="1"$', text, re.MULTILINE)
    assert len(vendors) == len(set(vendors)) == len(rules) - 4
    assert {"0403", "10c4", "1a86", "303a"} <= set(vendors)
    assert rules[-1] == 'LABEL="mqtt_gateway_serial_end"'
    assert all('GOTO="mqtt_gateway_serial_end"' in rule for rule in rules[:3])


def test_the_crl_is_fetched_by_a_timer(rendered: Path) -> None:
    """The timer repeats after boot and after each run, and names its service by sharing its name."""
    parser = configparser.ConfigParser()
    parser.read(rendered / "mqtt-gateway-crl.timer")
    assert set(parser["Timer"]) >= {"onbootsec", "onunitactivesec"}
    started = settings(rendered / "mqtt-gateway-crl.service")["Service.ExecStart"]
    assert started[0].endswith("mqtt-gateway crl fetch --config /etc/mqtt-gateway/gateway.toml")
