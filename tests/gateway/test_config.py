"""gateway.toml: every key known, every value in range, every fault one sentence that names its place."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from gateway.config import GatewayConfig, TimeConfig
from gateway.uplink.settings import UPLINK_KEYS
from mtls.errors import ConfigFault

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gateway.toml"
SMALLEST = """
[listener]
cert_file = "server.crt"
key_file = "server.key"
ca_file = "ca.crt"
[policy]
file = "policy.toml"
"""


def load(folder: Path, text: str) -> GatewayConfig:
    path = folder / "gateway.toml"
    path.write_text(text)
    return GatewayConfig.load(path)


def refused(folder: Path, text: str) -> ConfigFault:
    with pytest.raises(ConfigFault) as caught:
        load(folder, text)
    return caught.value


def test_the_example_holds_every_key_with_its_default(tmp_path: Path) -> None:
    """Loading the example gives what loading nothing but the required keys gives, and it leaves no key out."""
    smallest = load(tmp_path, SMALLEST + "[store]\n")  # a table that switches something on, with its defaults
    (tmp_path / "gateway.toml").write_text(EXAMPLE.read_text())
    assert GatewayConfig.load(tmp_path / "gateway.toml") == smallest
    text = EXAMPLE.read_text()
    for table in ("listener", "limits", "policy", "store", "control", "audit", "console"):
        for key in getattr(smallest, table).__slots__:
            assert f"\n{key} = " in text


def test_the_example_shows_every_key_of_the_uplink_with_its_default(tmp_path: Path) -> None:
    """The table stands in the example as comments, because it switches something on; uncommented, it loads."""
    lines = EXAMPLE.read_text().split("#[uplink]", 1)[1].split("\n\n", 1)[0].splitlines()
    shown = "[uplink]\n" + "\n".join(line.removeprefix("#") for line in lines)
    required = '[uplink]\nhost = "mqtt.example.com"\nca_file = "uplink-ca.crt"\n'
    required += 'cert_file = "uplink.crt"\nkey_file = "uplink.key"\n'
    smallest = load(tmp_path, SMALLEST + required).uplink
    assert load(tmp_path, SMALLEST + shown).uplink == smallest
    for key in UPLINK_KEYS:
        assert f"\n{key} = " in shown


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """A configuration can be moved with what it names."""
    config = load(tmp_path, SMALLEST.replace('"server.crt"', '"/etc/server.crt"'))
    assert config.listener.ca_file == tmp_path / "ca.crt"
    assert config.listener.cert_file == Path("/etc/server.crt")


def test_values_arrive_as_what_they_mean(tmp_path: Path) -> None:
    """Addresses, durations and the rule for stale CRLs are parsed once, here."""
    config = load(
        tmp_path,
        SMALLEST.replace(
            "[listener]", '[listener]\nbind = ["127.0.0.1:0", "[::1]:8883", "localhost:1"]\ncrl_stale = "grace 48h"'
        )
        + '[limits]\nconnect_timeout_s = 0.5\n[audit]\nfile = "a.jsonl"\n[amqtt.plugins."a.B"]\nx = 1\n',
    )
    assert config.listener.bind == (("127.0.0.1", 0), ("::1", 8883), ("localhost", 1))
    assert config.listener.crl_stale.grace == timedelta(hours=48)
    assert config.limits.connect_timeout_s == 0.5
    assert config.audit.file == tmp_path / "a.jsonl"
    assert config.plugins == {"a.B": {"x": 1}}


@pytest.mark.parametrize(
    ("table", "line", "named"),
    [
        ("listener", "bind = []", "bind"),
        ("listener", 'bind = "0.0.0.0:8883"', "bind"),
        ("listener", 'bind = ["0.0.0.0"]', "bind"),
        ("listener", 'bind = ["0.0.0.0:65536"]', "bind"),
        ("listener", 'bind = ["::1:8883"]', "bind"),
        ("listener", 'bind = ["[1.2.3]:8883"]', "bind"),
        ("listener", "bind = [8883]", "bind"),
        ("listener", 'min_tls = "1.1"', "min_tls"),
        ("listener", "min_tls = 1.2", "min_tls"),
        ("listener", 'crl_stale = "ignore"', "crl_stale"),
        ("listener", 'crl_stale = "grace 0h"', "crl_stale"),
        ("listener", 'crl_url = "ftp://x/crl"', "crl_url"),
        ("listener", "crl_file = 7", "crl_file"),
        ("limits", "max_connections = 0", "max_connections"),
        ("limits", "max_connections = true", "max_connections"),
        ("limits", "max_connections = 1.5", "max_connections"),
        ("limits", 'max_connections = "5"', "max_connections"),
        ("limits", "connect_timeout_s = 0", "connect_timeout_s"),
        ("limits", "connect_timeout_s = nan", "connect_timeout_s"),
        ("limits", "connect_timeout_s = inf", "connect_timeout_s"),
        ("limits", "connect_timeout_s = true", "connect_timeout_s"),
        ("limits", "max_packet_bytes = 268435456", "max_packet_bytes"),
        ("control", "socket = 1", "socket"),
        ("audit", 'file = ""', "file"),
        ("audit", "keep = -1", "keep"),
        ("console", 'bind = "0.0.0.0:9883"', "bind"),
        ("console", 'bind = "localhost:9883"', "bind"),
        ("console", "bind = 9883", "bind"),
        ("uplink", 'host = ""', "host"),
        ("uplink", 'host = "mqtt..example.com"', "host"),
        ("uplink", 'host = ".example.com"', "host"),
        ("uplink", f'host = "{"x" * 64}.example.com"', "host"),
    ],
)
def test_a_value_of_the_wrong_kind_or_range_is_refused_by_name(
    tmp_path: Path, table: str, line: str, named: str
) -> None:
    """Nothing is converted silently: a true is no 1, a NaN is no duration."""
    text = (
        SMALLEST.replace("[listener]", f"[listener]\n{line}")
        if table == "listener"
        else f"{SMALLEST}[{table}]\n{line}\n"
    )
    fault = refused(tmp_path, text)
    assert f"[{table}] {named}" in str(fault)
    assert str(tmp_path / "gateway.toml") in str(fault)
    assert fault.exit_code == 78
    assert fault.hint


@pytest.mark.parametrize(
    ("table", "value", "says"),
    [
        ("listener", '"127.0.0.1:8883"', 'is not a list of "address:port"'),
        ("listener", '["8883"]', 'is not a list of "address:port", as in'),
        ("console", '["127.0.0.1:9883"]', 'is not "address:port", as in'),
        ("enrolment", '"8443"', 'is not "address:port", as in'),
    ],
)
def test_an_address_and_a_list_of_them_are_told_apart(tmp_path: Path, table: str, value: str, says: str) -> None:
    """Who wrote one where a list is wanted, or the other way round, reads which it is."""
    text = SMALLEST if table == "listener" else f"{SMALLEST}[{table}]\n"
    fault = refused(tmp_path, text.replace(f"[{table}]\n", f"[{table}]\nbind = {value}\n"))
    assert says in str(fault)


@pytest.mark.parametrize(
    ("text", "says", "hints"),
    [
        (SMALLEST + "[limits]\nmax_connection = 1\n", "[limits]: unknown key 'max_connection'", "max_connections"),
        (SMALLEST + "[limit]\n", "unknown table 'limit'", "limits"),
        (SMALLEST + "[amqtt.listeners.default]\n", "unknown key 'listeners'", ""),
        (SMALLEST.replace('ca_file = "ca.crt"', ""), "[listener] ca_file is missing", "examples"),
        (SMALLEST.replace("[policy]", "[limits]\n[[policy]]"), "[policy] is not a table", ""),
        ("", "[listener] cert_file is missing", ""),
        ("listener = 1", "[listener] is not a table", ""),
        (SMALLEST + "[amqtt]\nplugins = 1\n", "[amqtt.plugins]", ""),
        ("[listener", "gateway.toml", "TOML"),
    ],
)
def test_what_is_not_known_is_refused_with_the_nearest_known(tmp_path: Path, text: str, says: str, hints: str) -> None:
    """A typing error never becomes a default."""
    fault = refused(tmp_path, text)
    assert says in str(fault)
    assert hints in fault.hint


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a" * 70_000, b"\x00"], ids=["no UTF-8", "too large", "NUL"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever stands in the file, the answer is one sentence and exit code 78."""
    path = tmp_path / "gateway.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigFault, match=r"gateway\.toml"):
        GatewayConfig.load(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    """The twin of every load that works."""
    with pytest.raises(ConfigFault, match=r"absent\.toml does not exist"):
        GatewayConfig.load(tmp_path / "absent.toml")


def test_the_time_is_kept_where_the_configuration_says(tmp_path: Path) -> None:
    """Nowhere by default; a source is one of two words or the path of a file."""
    path = tmp_path / "gateway.toml"
    path.write_text(SMALLEST)
    assert GatewayConfig.load(path).time == TimeConfig(None, "auto", tmp_path)
    path.write_text(SMALLEST + '[time]\nfloor_file = "floor"\nsource = "/run/clock-is-right"\n')
    assert GatewayConfig.load(path).time == TimeConfig(tmp_path / "floor", "/run/clock-is-right", tmp_path)
    path.write_text(SMALLEST + '[time]\nsource = "ntp"\n')
    with pytest.raises(ConfigFault, match=r"\[time\] source = 'ntp' is not"):
        GatewayConfig.load(path)
