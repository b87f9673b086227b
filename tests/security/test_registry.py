"""The device registry: who is not in it stays out, attributes decide, and a broken one changes nothing."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.registry import Registry
from mtls.errors import ConfigFault, Reason
from mtls.identity import DeviceId
from tests.support.gateway import Closed, Gateway, wait_until
from tests.support.pki import Pki

Maker = Callable[..., Gateway]

BY_SITE = """
version = 1
[[role]]
name = "north"
match = { id = "*", "attr.site" = "north" }
publish = ["sites/{attr.site}/{id}/#"]
subscribe = ["sites/{attr.site}/{id}/#"]
"""


def write(path: Path, **devices: dict[str, str]) -> Path:
    lines = ({"id": name.replace("_", "-"), "attributes": attributes} for name, attributes in devices.items())
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "devices.jsonl", dev_a={"site": "north"})


def test_a_device_that_is_not_registered_is_refused_when_it_must_be(make_gateway: Maker, pki: Pki, file: Path) -> None:
    """Its CA signed it and its role would let it in; no session, one audit line with the reason."""
    gateway = make_gateway(registry={"registry": str(file), "registry_required": True})
    assert gateway.client(pki.device("dev-a")).connect("dev-a") == (False, 0)

    with pytest.raises((OSError, ssl.SSLError, Closed)):
        gateway.client(pki.device("dev-b")).connect("dev-b")

    wait_until(lambda: [line["reason"] for line in gateway.audit("refused")] == ["not_registered"], "audit line")
    assert [name for name in gateway.sessions() if "dev-b" in str(name)] == []


def test_without_required_the_registry_only_knows(make_gateway: Maker, pki: Pki, file: Path) -> None:
    """The allow twin: an unknown device is let in by its role, and has no attributes."""
    gateway = make_gateway(registry={"registry": str(file)})
    assert gateway.client(pki.device("dev-b")).connect("dev-b") == (False, 0)


def test_an_attribute_is_matched_and_stands_in_topics(make_gateway: Maker, pki: Pki, file: Path) -> None:
    """The site is the registry's word: its own tree is granted, another's and a device without a site are not."""
    gateway = make_gateway(BY_SITE, registry={"registry": str(file)})
    client = gateway.client(pki.device("dev-a"))
    assert client.connect("dev-a") == (False, 0)
    assert client.subscribe(("sites/north/dev-a/#", 0), ("sites/south/dev-a/#", 0)) == [0, 0x80]
    assert gateway.client(pki.device("dev-b")).connect("dev-b")[1] == 5


def test_a_device_that_was_taken_out_is_disconnected_by_a_reload(make_gateway: Maker, pki: Pki, file: Path) -> None:
    """Live session closed, the other one stays."""
    write(file, dev_a={}, dev_b={})
    gateway = make_gateway(registry={"registry": str(file), "registry_required": True})
    gone, stays = gateway.client(pki.device("dev-a")), gateway.client(pki.device("dev-b"))
    gone.connect("dev-a")
    stays.connect("dev-b")

    write(file, dev_b={})
    report = gateway.reload()

    assert [(device, refusal.reason) for device, refusal in report.closed] == [("dev-a", Reason.NOT_REGISTERED)]
    gone.expect_closed()
    stays.ping()


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[]", '{"id": 7}', '{"id": ["a", "b"]}', '{"id": "a/b"}', '{"id": "dev-a", "admin": true}',
     '{"id": "dev-a"}\n{"id": "dev-a"}',
     '{"id": "dev-a", "attributes": {"Site": "x"}}', '{"id": "dev-a", "attributes": {"site": 7}}', "[" * 100_000],
    ids=["no json", "no object", "no text", "texts", "no id", "unknown key", "twice", "bad name", "no value", "deep"],
)  # fmt: skip
def test_a_broken_registry_is_a_fault_with_its_line(tmp_path: Path, line: str) -> None:
    """P6: it denies by staying away as a whole, and says where."""
    path = tmp_path / "devices.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigFault, match=r"devices\.jsonl: line \d") as caught:
        Registry.load(path, required=False)
    assert caught.value.hint


def test_required_without_a_file_is_a_fault() -> None:
    """An allow-list that nobody wrote would lock everybody out."""
    with pytest.raises(ConfigFault, match="registry_required"):
        Registry.load(None, required=True)


def test_an_empty_required_registry_lets_nobody_in(tmp_path: Path) -> None:
    """CVE-2018-12550 in another coat: an empty list is not everybody."""
    (tmp_path / "devices.jsonl").write_text("")
    registry = Registry.load(tmp_path / "devices.jsonl", required=True)
    refusal = registry.refusal(DeviceId("dev-a"))
    assert refusal is not None
    assert refusal.reason is Reason.NOT_REGISTERED
