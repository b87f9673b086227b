"""`[policy] shadow_file` on a running gateway: audited, counted, reloaded, and without any say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.site import POLICY, Running, Site
from tests.integration.programs import attempt, free_port, run, wait_until
from tests.support.pki import Pki

SHADOW = """
version = 1
[[role]]
name = "next"
match = { id = "dev-*" }
publish = ["devices/{id}/telemetry/#", "devices/{id}/more"]
subscribe = ["devices/{id}/commands/now"]
"""


class Shadowed(Site):
    """A site with a shadow policy and metrics."""

    def __init__(self, folder: Path, pki: Pki, shadow: str = SHADOW) -> None:
        self.port = free_port()
        self.shadow_file = folder / "next.toml"
        self.shadow_file.write_text(shadow)
        super().__init__(folder, pki, console={"bind": f"127.0.0.1:{self.port}"})

    def configure(self, **tables: Mapping[str, Any]) -> None:
        """Name the shadow in gateway.toml."""
        super().configure(policy={"shadow_file": "next.toml"}, **tables)

    def status(self) -> dict[str, Any]:
        """What `mqtt-gateway status` says of the shadow."""
        return dict(json.loads(self.command("status", "--json").stdout)["shadow"])

    def differences(self) -> dict[str, int]:
        """The same as one number per action and kind."""
        return {f"{each['action']} {each['kind']}": each["count"] for each in self.status()["differences"]}


@pytest.fixture
def site(tmp_path: Path, pki: Pki) -> Shadowed:
    return Shadowed(tmp_path, pki)


@pytest.fixture
def running(site: Shadowed) -> Iterator[Running]:
    with Running(site) as gateway:
        yield gateway


def test_every_verdict_is_the_active_policys(site: Shadowed, running: Running, tmp_path: Path) -> None:
    """What only the shadow denies is delivered, what only the shadow allows is denied; both are told with its rule."""
    device, other = site.pki.device("dev-a"), site.pki.device("svc", ou="services")
    with running.subscriber(other, "svc", ["devices/#"], tmp_path / "svc.log") as service:
        assert running.publish(device, "dev-a", "devices/dev-a/state", "-r").returncode == 0
        assert running.publish(device, "dev-a", "devices/dev-a/more").returncode == 0
        assert running.publish(device, "dev-a", "devices/dev-a/telemetry/t").returncode == 0
        service.wait_until(lambda: "telemetry/t" in service.said(), "the last message")
        assert "devices/dev-a/state 21.5" in service.said()
        assert "devices/dev-a/more" not in service.said()
    [denied] = site.audit("denied")
    assert denied["topic"] == "devices/dev-a/more"
    told = {(line["action"], line["topic"], line["verdict"], line["reason"]): line for line in site.audit("shadow")}
    assert told.keys() == {
        ("connect", "", "would_deny", "no_role"),
        ("publish", "devices/dev-a/state", "would_deny", "no_grant"),
        ("retain", "devices/dev-a/state", "would_deny", "no_grant"),
        ("publish", "devices/dev-a/more", "would_allow", "granted"),
    }
    allowed = told["publish", "devices/dev-a/more", "would_allow", "granted"]
    assert (allowed["id"], allowed["client_id"], allowed["rule"]) == ("dev-a", "dev-a", "next publish[1]")
    assert len(allowed["fingerprint_sha256"]) == 64
    assert told["connect", "", "would_deny", "no_role"]["id"] == "svc"


def test_wills_subscriptions_and_receiving_are_compared(site: Shadowed, running: Running, tmp_path: Path) -> None:
    """A will at CONNECT, a filter at SUBSCRIBE, a topic when it is routed."""
    device, other = site.pki.device("dev-a"), site.pki.device("svc", ou="services")
    commands, now = "devices/dev-a/commands/#", "devices/dev-a/commands/later"
    with running.subscriber(device, "dev-a", [commands], tmp_path / "dev.log") as subscriber:
        assert running.publish(other, "svc", now).returncode == 0
        subscriber.wait_until(lambda: now in subscriber.said(), "the command")
    will = ["--will-topic", "devices/dev-a/state", "--will-payload", "gone"]
    assert running.publish(device, "dev-a", "devices/dev-a/telemetry/t", *will).returncode == 0
    assert site.differences() == {
        "connect would_deny": 1,
        "receive would_deny": 1,
        "subscribe would_deny": 1,
        "will would_deny": 1,
    }
    assert {line["topic"] for line in site.audit("shadow", id="dev-a")} == {commands, now, "devices/dev-a/state"}


def test_differences_stand_in_status_and_metrics(site: Shadowed, running: Running) -> None:
    """The same figures in three places, and a repeated message is no second difference."""
    device = site.pki.device("dev-a")
    client = running.connected(device, "dev-a")
    for _ in range(50):
        client.publish("devices/dev-a/state", b"21.5")
    client.ping()
    assert site.differences() == {"publish would_deny": 1}
    assert (site.status()["faults"], site.status()["policy"]) == (0, str(site.shadow_file))
    assert "publish would deny" in site.command("status").stdout
    assert len(site.audit("shadow")) == 1
    text = run("curl", "-sSf", f"http://127.0.0.1:{site.port}/metrics")
    assert 'mqtt_gateway_shadow_differences_total{action="publish",kind="would_deny"} 1.0' in text


def test_lines_are_limited_per_identity_and_the_count_is_not(site: Shadowed, running: Running) -> None:
    """One device that differs in fifty topics writes ten lines; another one's are not lost for it."""
    loud, quiet = (running.connected(site.pki.device(name), name) for name in ("dev-a", "dev-b"))
    assert site.policy_file.write_text(POLICY.replace("telemetry/#", "#"))
    assert site.command("reload").returncode == 0
    for number in range(50):
        loud.publish(f"devices/dev-a/x/{number}", b"")
    quiet.publish("devices/dev-b/x/0", b"")
    loud.ping()
    quiet.ping()
    assert site.differences() == {"publish would_deny": 51}
    assert (len(site.audit("shadow", id="dev-a")), len(site.audit("shadow", id="dev-b"))) == (10, 1)


def test_a_changed_shadow_file_is_swapped_and_counts_anew(site: Shadowed, running: Running) -> None:
    """The watch sees it; a reload of something else keeps the figures."""
    device = site.pki.device("dev-a")
    assert running.publish(device, "dev-a", "devices/dev-a/state").returncode == 0
    version = site.status()["policy_version"]
    assert site.command("deny", "add", "dev-z").returncode == 0
    assert site.differences() == {"publish would_deny": 1}
    site.shadow_file.write_text(POLICY)
    wait_until(lambda: site.status()["policy_version"] != version, "the new shadow")
    assert running.publish(device, "dev-a", "devices/dev-a/state").returncode == 0
    assert site.differences() == {}


def test_a_broken_shadow_fails_a_reload_and_the_old_one_stays(site: Shadowed, running: Running) -> None:
    """Like the policy: file and line are named."""
    before = site.status()
    site.shadow_file.write_text("version = 1\n[[role]]\nnam = 'x'\n")
    wait_until(lambda: site.audit("reload_failed"), "the failed reload")
    assert "next.toml" in site.audit("reload_failed")[-1]["detail"]
    assert site.status()["policy_version"] == before["policy_version"]


@pytest.mark.parametrize("content", ["version = 1\n[[role]]\nnam = 'x'\n", None], ids=["broken", "missing"])
def test_a_shadow_that_cannot_be_used_keeps_the_gateway_from_starting(site: Shadowed, content: str | None) -> None:
    """Exit 78, and check-config says so before."""
    if content is None:
        site.shadow_file.unlink()
    else:
        site.shadow_file.write_text(content)
    for command in ("check-config", "run"):
        done = site.command(command)
        assert (done.returncode, "next.toml" in done.stderr) == (78, True)


def test_check_config_names_the_shadow_and_its_warnings(tmp_path: Path, pki: Pki) -> None:
    """An operator sees that there is one."""
    site = Shadowed(
        tmp_path, pki, SHADOW.replace("version = 1", 'version = 1\n[[issuer]]\nsubject_cn = "Else"\nids = ["*"]')
    )
    done = attempt("mqtt-gateway", "check-config", "--config", site.config_file)
    assert done.returncode == 0
    assert "shadow policy" in done.stdout
    assert "warning: shadow policy: " in done.stderr


def test_without_a_shadow_status_says_so(tmp_path: Path, pki: Pki) -> None:
    """The twin."""
    site = Site(tmp_path, pki)
    with Running(site):
        status = json.loads(site.command("status", "--json").stdout)
        assert status["shadow"] is None
        assert "shadow policy" not in site.command("status").stdout
