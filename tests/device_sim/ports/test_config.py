"""agent.toml is strict: what is not understood is refused with file, table and key, and exit code 78."""

from pathlib import Path

import pytest

from device_sim.ports.config import load
from device_sim.ports.finding import DeviceName
from device_sim.serial_port import PortLost, UsbPort
from mtls.errors import ConfigFault
from tests.device_sim.processes import run_tool
from tests.docs.pages import REPOSITORY

AGENT = """
[agent]
id = "dev-a"
cert_file = "a.crt"
key_file = "a.key"
ca_file = "ca.crt"
broker = "gateway.local"
spool_file = "spool.db"
"""
PORT = """
[[port]]
name = "scale"
device = "/dev/ttyUSB0"
parser = "raw"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def test_the_example_is_accepted() -> None:
    """examples/agent.toml: three ports, and topics with everything but the kind filled in."""
    config = load(REPOSITORY / "examples" / "agent.toml")
    assert [port.name for port in config.ports] == ["scale", "gps", "valve"]
    gps = config.ports[1]
    assert gps.topic_of("GGA") == "devices/press-07/telemetry/position"
    assert gps.topic_of("RMC") == "devices/press-07/telemetry/gps/RMC"


def test_defaults_and_relative_paths(tmp_path: Path) -> None:
    """The shortest file; paths are relative to it."""
    config = load(written(tmp_path, AGENT + PORT))
    assert config.spool_file == tmp_path / "spool.db"
    assert (config.endpoint.port, config.ports[0].baud, config.ports[0].qos) == (8883, 115200, 1)
    assert config.ports[0].topic_of("") == "devices/dev-a/telemetry/scale"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (AGENT + "retry = 1\n" + PORT, "retry"),
        (AGENT + PORT + "bauds = 9600\n", "bauds"),
        (AGENT + PORT + "[extra]\n", "extra"),
        (AGENT, "port"),
        (PORT, "id"),
        (AGENT + PORT + PORT, "scale"),
        (AGENT + PORT.replace("scale", "a/b"), "name"),
        (AGENT + PORT.replace("/dev/ttyUSB0", "ttyUSB0"), "device"),
        (AGENT + PORT.replace("/dev/ttyUSB0", "/dev/ttyUSB*"), "device"),
        (AGENT + PORT + 'baud = "9600"\n', "baud"),
        (AGENT + PORT + "dtr = 1\n", "dtr"),
        (AGENT + PORT + 'framing = "slip"\n', "framing"),
        (AGENT + PORT + 'topic = "a/#"\n', "topic"),
        (AGENT + PORT + 'topic = "a/{kind}"\n', "topic"),
        (AGENT + PORT + 'topics = { a = "b" }\n', "topics"),
        (AGENT + PORT + 'columns = ["a"]\n', "columns"),
        (AGENT + PORT + 'kind = "type"\n', "kind"),
        (AGENT + PORT + "window_bytes = 64\n", "window_bytes"),
        (AGENT + PORT + "qos = 2\n", "qos"),
        (AGENT + 'when_full = "block"\n' + PORT, "when_full"),
        (AGENT.replace("dev-a", "a/b") + PORT, "id"),
        (AGENT.replace("gateway.local", "a:b:c") + PORT + "x", "TOML"),
    ],
    ids=lambda value: None if "\n" in value else value,
)
def test_what_is_not_understood_is_named(text: str, named: str, tmp_path: Path) -> None:
    """The file and the key stand in the sentence."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigFault, match=named) as fault:
        load(path)
    assert str(path) in str(fault.value)


def test_a_value_that_does_not_fit_is_shown_beside_what_would(tmp_path: Path) -> None:
    """Whoever reads the log of a unit has not got the file at hand."""
    with pytest.raises(ConfigFault) as fault:
        load(written(tmp_path, AGENT + PORT + "qos = 2\n"))
    assert str(fault.value).endswith("agent.toml: [[port]] number 1 qos = 2 is wrong")
    assert fault.value.hint == "qos takes a whole number from 0 to 1"
    with pytest.raises(ConfigFault) as fault:
        load(written(tmp_path, AGENT + PORT + 'topics = { a = "b" }\n'))
    assert str(fault.value).endswith("topics = {'a': 'b'} is wrong")


def test_the_program_ends_with_78_or_2(tmp_path: Path) -> None:
    """A file that cannot be used is 78; a mixture of file and options, or too few options, is a usage error."""
    path = written(tmp_path, AGENT + PORT + "bauds = 9600\n")
    done = run_tool("device-sim", "run", "--config", path)
    assert (done.returncode, "bauds" in done.stderr) == (78, True)
    good = written(tmp_path, AGENT + PORT)
    assert run_tool("device-sim", "run", "--config", good).returncode == 78  # no certificate there
    assert run_tool("device-sim", "run", "--config", good, "--id", "dev-a").returncode == 2
    assert run_tool("device-sim", "run", "--id", "dev-a").returncode == 2


CH340 = [UsbPort("/dev/ttyUSB0", 0x1A86, 0x7523, ""), UsbPort("/dev/ttyUSB1", 0x1A86, 0x7523, "")]
FTDI = UsbPort("/dev/ttyUSB2", 0x0403, 0x6001, "A50285BI")


@pytest.mark.parametrize("text", ["usb:0403:6001", "usb:0403:6001:A50285BI"])
def test_a_usb_identity_finds_its_port(text: str) -> None:
    """Whatever its number is today."""
    assert DeviceName(text).candidates(lambda: [*CH340, FTDI]) == ["/dev/ttyUSB2"]


def test_two_that_fit_are_not_guessed_between() -> None:
    """Two CH340s look the same: neither is opened, and the sentence says what tells them apart."""
    with pytest.raises(PortLost, match="by-path"):
        DeviceName("usb:1a86:7523").candidates(lambda: CH340)
    assert len(DeviceName("usb:1a86:7523", hello="SN-1").candidates(lambda: CH340)) == 2


@pytest.mark.parametrize("text", ["usb:0403:6001:OTHER", "usb:0403:6002"])
def test_another_device_does_not_fit(text: str) -> None:
    """The twin: another serial number or product is another device."""
    with pytest.raises(PortLost, match="no such device"):
        DeviceName(text).candidates(lambda: [FTDI])
