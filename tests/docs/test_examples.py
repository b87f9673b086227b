"""The example files are what they say: complete, and accepted by the programs they are for."""

import re
import shlex
import tomllib
from pathlib import Path

from gateway.config import _TABLES, GatewayConfig
from tests.docs.pages import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


def keys_shown(text: str) -> dict[str, set[str]]:
    """Table -> every key the file sets or shows commented out."""
    shown: dict[str, set[str]] = {}
    table = ""
    for line in text.splitlines():
        if found := re.match(r"^#?\[(\w+)\]", line):
            table = found[1]
        elif found := re.match(r"^#?(\w+) = ", line):
            shown.setdefault(table, set()).add(found[1])
    return shown


def test_the_gateway_s_example_shows_every_key() -> None:
    """examples/gateway.toml names every key there is, and the gateway's reader takes it."""
    text = (EXAMPLES / "gateway.toml").read_text(encoding="utf-8")
    assert keys_shown(text) == {table: set(keys) for table, keys in _TABLES.items()}
    GatewayConfig.load(EXAMPLES / "gateway.toml")


def test_the_installed_configuration_is_accepted(tmp_path: Path) -> None:
    """What `make install` puts into /etc is taken by the gateway's reader, also with the optional keys in force."""
    text = (REPOSITORY / "systemd/gateway.toml").read_text(encoding="utf-8")
    for variant in (text, re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE)):
        (tmp_path / "gateway.toml").write_text(variant, encoding="utf-8")
        GatewayConfig.load(tmp_path / "gateway.toml")


def test_the_gateway_s_example_states_the_defaults() -> None:
    """A limit in the example is the default, so that deleting the line changes nothing."""
    example = tomllib.loads((EXAMPLES / "gateway.toml").read_text(encoding="utf-8"))
    for table in ("limits",):
        assert example[table] == {key: default for key, (_, default) in _TABLES[table].items()}
    for key in ("bind", "min_tls", "crl_stale", "crl_url"):
        assert example["listener"][key] == _TABLES["listener"][key][1]


def test_the_agent_s_example_sets_what_its_unit_needs() -> None:
    """Every variable that device-sim@.service expands is in examples/agent.env, or is given by systemd."""
    unit = (REPOSITORY / "systemd/device-sim@.service").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{?([A-Z_]+)\}?", unit)) - {"CREDENTIALS_DIRECTORY"}
    lines = (EXAMPLES / "agent.env").read_text(encoding="utf-8").splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert given.keys() == used
    assert all(len(shlex.split(value)) <= 1 for value in given.values())
