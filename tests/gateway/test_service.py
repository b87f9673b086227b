"""`mqtt-gateway run` as a process, with real certificates and clients that we did not write."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from mtls.trust import to_pem
from tests.gateway.site import POLICY, Running, Site
from tests.integration.programs import Program, attempt, wait_until
from tests.support.pki import Pki

CUT_WITHIN_S = 2.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Site:
    return Site(tmp_path_factory.mktemp("site"), pki)


@pytest.fixture(scope="module")
def running(site: Site) -> Iterator[Running]:
    """A gateway for the tests that change nothing about it."""
    with Running(site) as gateway:
        yield gateway


@pytest.fixture
def own_site(tmp_path: Path, pki: Pki) -> Site:
    return Site(tmp_path, pki)


def test_a_device_is_admitted_and_heard(site: Site, running: Running, tmp_path: Path) -> None:
    """The allow twin of every refusal below."""
    backend = site.pki.device("backend", ou="services")
    with running.subscriber(backend, "backend", ["devices/#"], tmp_path / "sub.log") as heard:
        done = running.publish(site.pki.device("dev-heard"), "dev-heard", "devices/dev-heard/telemetry/t")
        assert done.returncode == 0, done.stderr
        heard.wait_until(lambda: "devices/dev-heard/telemetry/t 21.5" in heard.said(), "the message")
    (line,) = site.audit("admitted", id="dev-heard")
    assert line["roles"] == ["device"]


def test_a_certificate_of_another_ca_is_refused(site: Site, running: Running, tmp_path: Path) -> None:
    """The handshake fails; nobody of that name was admitted, and the log says why."""
    stranger = Pki(tmp_path / "foreign").device("dev-foreign")
    assert running.publish(stranger, "dev-foreign", "devices/dev-foreign/state").returncode != 0
    wait_until(lambda: site.audit("refused", reason="issuer_unknown"), "the audit line")
    assert site.audit("admitted", id="dev-foreign") == []


def test_a_client_identifier_of_another_device_is_refused(site: Site, running: Running) -> None:
    """Return code 2, and one audit line under the certificate's identity."""
    done = running.publish(site.pki.device("dev-b"), "dev-a", "devices/dev-b/state")
    assert "identifier rejected" in (done.stdout + done.stderr)
    assert [line["client_id"] for line in site.audit("refused", id="dev-b")] == ["dev-a"]


def test_a_foreign_topic_is_acknowledged_dropped_and_audited(site: Site, running: Running, tmp_path: Path) -> None:
    """The publisher learns nothing, the subscriber gets nothing, the operator sees it."""
    backend = site.pki.device("backend", ou="services")
    spy = site.pki.device("dev-spy")
    with running.subscriber(backend, "backend", ["devices/#"], tmp_path / "sub.log") as heard:
        assert running.publish(spy, "dev-spy", "devices/dev-x/telemetry/t").returncode == 0
        assert running.publish(spy, "dev-spy", "devices/dev-spy/telemetry/t").returncode == 0
        heard.wait_until(lambda: "devices/dev-spy/telemetry/t" in heard.said(), "the permitted message")
        assert "devices/dev-x/" not in heard.said()
    assert [line["topic"] for line in site.audit("denied", id="dev-spy")] == ["devices/dev-x/telemetry/t"]


def cut(program: Program) -> Callable[[], bool]:
    """Whether mosquitto_sub has lost its connection: it then connects again by itself."""
    return lambda: program.said().count("sending CONNECT") > 1 or program.process.poll() is not None


@pytest.mark.parametrize("how", ["deny add", "SIGHUP", "file change", "crl", "reload"])
def test_r1_a_live_connection_is_cut_within_two_seconds(own_site: Site, tmp_path: Path, how: str) -> None:
    """Whichever way the gateway learns of it; a neighbour stays connected, and the device stays out."""
    gone, kept = own_site.pki.device("dev-gone"), own_site.pki.device("dev-kept")
    with (
        Running(own_site) as gateway,
        gateway.subscriber(kept, "dev-kept", ["devices/dev-kept/commands/#"], tmp_path / "kept.log") as stays,
    ):
        lost = gateway.connected(gone, "dev-gone")
        lost.ping()
        if how == "deny add":
            assert own_site.command("deny", "add", "dev-gone").returncode == 0
        elif how == "crl":
            own_site.revoke(gone.certificate)
        else:
            own_site.deny_file.write_text('ids = ["dev-gone"]\n')
            if how == "SIGHUP":
                gateway.process.send_signal(signal.SIGHUP)
            elif how == "reload":
                assert own_site.command("reload").returncode == 0
        assert lost.expect_closed() == []
        reason = "certificate_revoked" if how == "crl" else "certificate_denied"
        (line,) = own_site.audit("disconnected", id="dev-gone", reason=reason)
        changed = own_site.crl_file if how == "crl" else own_site.deny_file
        # From the change of the file to the cut: how long a command takes to start is not the gateway's doing.
        assert datetime.fromisoformat(line["time"]).timestamp() - changed.stat().st_mtime < CUT_WITHIN_S
        assert gateway.publish(gone, "dev-gone", "devices/dev-gone/state").returncode != 0
        wait_until(lambda: own_site.audit("refused", reason=reason), "the refusal of the return")
        assert not cut(stays)()
        assert gateway.publish(own_site.pki.device("dev-new"), "dev-new", "devices/dev-new/state").returncode == 0
        assert own_site.audit("disconnected", id="dev-kept") == []


def test_a_device_taken_off_the_deny_list_is_admitted_again(own_site: Site) -> None:
    """The allow twin of `deny add`; removing what is not listed answers no."""
    device = own_site.pki.device("dev-a")
    with Running(own_site) as gateway:
        assert own_site.command("deny", "add", "dev-a", "dev-z").returncode == 0
        assert gateway.publish(device, "dev-a", "devices/dev-a/state").returncode != 0
        assert own_site.command("deny", "remove", "dev-a").returncode == 0
        assert gateway.publish(device, "dev-a", "devices/dev-a/state").returncode == 0
        again = own_site.command("deny", "remove", "dev-a")
        assert (again.returncode, "0 entries changed" in again.stdout) == (1, True)
        assert "dev-z" in own_site.command("deny", "list").stdout


def test_a_kicked_device_may_come_back(own_site: Site, tmp_path: Path) -> None:
    """`kick` ends connections, not rights; kicking nobody answers no."""
    device = own_site.pki.device("dev-a")
    with (
        Running(own_site) as gateway,
        gateway.subscriber(device, "dev-a", ["devices/dev-a/commands/#"], tmp_path / "sub.log"),
    ):
        assert own_site.command("kick", "dev-a").returncode == 0
        wait_until(lambda: len(own_site.audit("admitted", id="dev-a")) == 2, "the return of mosquitto_sub")
        assert [line["connections"] for line in own_site.audit("kicked")] == [1]
        assert own_site.command("kick", "dev-b").returncode == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("policy.toml", "version = 1\n[[role]]\nnam = 'x'\n"),
        ("policy.toml", ""),
        ("deny.toml", "idz = []\n"),
        ("crl.pem", "-----BEGIN X509 CRL-----\n"),
        ("crl.pem", None),
        ("gateway.toml", "[listener]\n"),
    ],
    ids=["unknown policy key", "empty policy", "unknown deny key", "half a crl", "no crl", "broken configuration"],
)
def test_r8_a_reload_with_a_broken_file_keeps_the_old_set(
    own_site: Site, tmp_path: Path, file: str, content: str | None
) -> None:
    """`reload` answers no with the place, the live session and the next connection are served as before."""
    device, revoked = own_site.pki.device("dev-a"), own_site.pki.device("dev-revoked")
    own_site.revoke(revoked.certificate)
    topics = ["devices/dev-a/commands/#"]
    with (
        Running(own_site) as gateway,
        gateway.subscriber(device, "dev-a", topics, tmp_path / "sub.log") as subscriber,
    ):
        if content is None:
            (own_site.folder / file).unlink()
        else:
            (own_site.folder / file).write_text(content)
        done = attempt("mqtt-gateway", "reload", "--socket", own_site.socket)
        assert done.returncode == 78
        assert done.stderr.startswith("nothing was reloaded: what was in force stays in force\nerror: ")
        assert file in done.stderr
        failed = own_site.audit("reload_failed", cause="command")
        assert len(failed) == 1
        assert file in failed[0]["detail"]
        status = attempt("mqtt-gateway", "status", "--socket", own_site.socket)
        assert file in status.stdout
        assert gateway.publish(own_site.pki.device("dev-b"), "dev-b", "devices/dev-b/state").returncode == 0
        assert gateway.publish(revoked, "dev-revoked", "devices/dev-revoked/state").returncode != 0
        assert not cut(subscriber)()


def test_a_new_policy_takes_rights_away_without_a_restart(own_site: Site, tmp_path: Path) -> None:
    """CVE-2021-34434: a subscription does not outlive its right."""
    device, backend = own_site.pki.device("dev-a"), own_site.pki.device("backend", ou="services")
    topic = "devices/dev-a/commands/go"
    with (
        Running(own_site) as gateway,
        gateway.subscriber(device, "dev-a", ["devices/dev-a/commands/#"], tmp_path / "sub.log") as subscriber,
    ):
        assert gateway.publish(backend, "backend", topic).returncode == 0
        subscriber.wait_until(lambda: topic in subscriber.said(), "the command")
        own_site.policy_file.write_text(POLICY.replace('subscribe = ["devices/{id}/commands/#"]', ""))
        wait_until(lambda: own_site.audit("reload", cause="files"), "the reload")
        assert own_site.audit("reload")[0]["subscriptions_removed"] == 1
        assert gateway.publish(backend, "backend", topic).returncode == 0
        own_site.policy_file.write_text(POLICY)
        wait_until(lambda: len(own_site.audit("reload")) == 2, "the second reload")
        assert subscriber.said().count("PUBLISH") == 1


def test_a_new_server_certificate_is_served_and_sessions_stay(own_site: Site, tmp_path: Path) -> None:
    """R7: key and certificate are swapped together, without dropping anybody."""
    device = own_site.pki.device("dev-a")
    old, new = own_site.server, own_site.pki.server()
    with (
        Running(own_site) as gateway,
        gateway.subscriber(device, "dev-a", ["devices/dev-a/commands/#"], tmp_path / "sub.log") as subscriber,
    ):
        old.cert_file.write_bytes(new.cert_file.read_bytes())
        done = own_site.command("reload")
        assert (done.returncode, "is not the key of" in done.stderr) == (78, True)
        old.key_file.write_bytes(new.key_file.read_bytes())
        assert own_site.command("reload").returncode == 0
        shown = attempt("openssl", "s_client", "-connect", f"127.0.0.1:{gateway.port}", "-showcerts", timeout_s=10)
        assert new.cert_file.read_text().splitlines()[5] in shown.stdout
        assert not cut(subscriber)()


def test_what_needs_a_restart_is_said(own_site: Site) -> None:
    """A changed listener is not silently ignored."""
    with Running(own_site):
        own_site.configure(limits={"max_connections": 7, "connect_timeout_s": 3})
        done = own_site.command("reload")
        assert done.returncode == 0
        assert "in force after a restart only: [limits] max_connections" in done.stderr


def test_status_and_sessions_report_in_80_columns_and_in_json(own_site: Site, tmp_path: Path) -> None:
    """What people and programs read of a running gateway."""
    device = own_site.pki.device("dev-a")
    with (
        Running(own_site) as gateway,
        gateway.subscriber(device, "dev-a", ["devices/dev-a/commands/#"], tmp_path / "sub.log"),
    ):
        status = json.loads(own_site.command("status", "--json").stdout)
        assert (status["sessions"], status["pid"]) == (1, gateway.process.pid)
        assert [crl["issuer"] for crl in status["crls"]] == ["test CA", "test Root CA"]
        sessions = json.loads(own_site.command("sessions", "--json").stdout)
        assert [(each["id"], each["connected"], each["roles"]) for each in sessions] == [("dev-a", True, ["device"])]
        for words in (["status"], ["sessions"]):
            shown = own_site.command(*words).stdout
            assert "dev-a" in shown or "test CA" in shown
            assert max(len(line) for line in shown.splitlines()) <= 80


def test_the_service_manager_hears_of_every_state(own_site: Site) -> None:
    """READY, RELOADING with the monotonic time, READY again, WATCHDOG from progress, STOPPING; status 0."""
    with Running(own_site, {"WATCHDOG_USEC": "300000"}) as gateway:
        wait_until(lambda: gateway.notified("WATCHDOG=1", 3), "three feedings")
        gateway.process.send_signal(signal.SIGHUP)
        wait_until(lambda: gateway.notified("READY=1", 2), "READY after the reload")
        assert gateway.notified("RELOADING=1")
        assert gateway.notified("MONOTONIC_USEC=")
        assert gateway.end(signal.SIGTERM) == 0
        assert gateway.notified("STOPPING=1")
    assert [line["event"] for line in own_site.audit()][-1] == "stopped"
    assert not own_site.socket.exists()


def test_ctrl_c_ends_it_in_order_and_tells_the_clients(own_site: Site) -> None:
    """SIGINT closes connections; nothing is left of the socket, and no traceback is printed."""
    device = own_site.pki.device("dev-a")
    with Running(own_site) as gateway:
        client = gateway.connected(device, "dev-a")
        assert gateway.end(signal.SIGINT) == 0
        assert client.expect_closed() == []
        assert "Traceback" not in gateway.said()
    assert own_site.audit("disconnected", id="dev-a")[0]["reason"] == "shutdown"


def test_a_second_gateway_on_the_same_files_does_not_start(own_site: Site) -> None:
    """It finds the control socket answered and leaves the first alone."""
    with Running(own_site) as gateway:
        done = attempt("mqtt-gateway", "run", "--config", own_site.config_file, timeout_s=20)
        assert (done.returncode, "another gateway serves on it" in done.stderr) == (78, True)
        assert own_site.command("status").returncode == 0
        assert gateway.process.poll() is None


def test_a_killed_gateway_leaves_nothing_that_hinders_the_next(own_site: Site) -> None:
    """kill -9 leaves the socket's file; the next start takes its place."""
    with Running(own_site) as gateway:
        gateway.end(signal.SIGKILL)
    assert own_site.socket.exists()
    with Running(own_site):
        assert own_site.command("status").returncode == 0


def test_a_port_that_is_taken_is_a_fault_that_systemd_retries(own_site: Site) -> None:
    """Exit 1, not 78: the port may be free again soon."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        own_site.configure(listener={"bind": [f"127.0.0.1:{other.getsockname()[1]}"]})
        done = own_site.command("run")
    assert (done.returncode, "cannot listen on [listener] bind 127.0.0.1" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def loose_key(site: Site) -> str:
    site.server.key_file.chmod(0o644)
    return "can be read by others"


def other_key(site: Site) -> str:
    site.configure(listener={"key_file": str(site.pki.server().key_file)})
    return "is not the key of"


def no_key(site: Site) -> str:
    site.configure(listener={"key_file": "absent.key"})
    return "absent.key does not exist"


def foreign_ca(site: Site) -> str:
    (site.folder / "leaf.pem").write_bytes(site.pki.device("dev-a").cert_file.read_bytes())
    site.configure(listener={"ca_file": "leaf.pem"})
    return "is no CA certificate"


def no_root(site: Site) -> str:
    (site.folder / "issuing.pem").write_bytes(to_pem([site.pki.issuing.certificate]))
    site.configure(listener={"ca_file": "issuing.pem"})
    return "no self-signed root CA"


def unknown_key(site: Site) -> str:
    site.configure(listener={"plaintext": True})
    return "unknown key 'plaintext'"


def no_policy(site: Site) -> str:
    site.policy_file.unlink()
    return "policy.toml does not exist"


def no_deny_file(site: Site) -> str:
    site.deny_file.unlink()
    return "deny.toml does not exist"


def no_folder_for_the_socket(site: Site) -> str:
    site.configure(control={"socket": "absent/control.sock"})
    return "does not exist"


def no_folder_for_the_audit_log(site: Site) -> str:
    site.configure(audit={"file": "absent/audit.jsonl"})
    return "cannot open audit log"


def unknown_plugin(site: Site) -> str:
    with site.config_file.open("a") as config:
        config.write('[amqtt.plugins."no.such.Plugin"]\n')
    return "no.such.Plugin"


def anonymous_plugin(site: Site) -> str:
    with site.config_file.open("a") as config:
        config.write('[amqtt.plugins."amqtt.plugins.authentication.AnonymousAuthPlugin"]\n')
    return "admits anonymous clients"


@pytest.mark.parametrize(
    "breaks",
    [
        loose_key,
        other_key,
        no_key,
        foreign_ca,
        no_root,
        unknown_key,
        no_policy,
        no_deny_file,
        no_folder_for_the_socket,
        no_folder_for_the_audit_log,
        unknown_plugin,
        anonymous_plugin,
    ],
    ids=lambda function: function.__name__.replace("_", " "),
)
def test_a_configuration_that_cannot_be_used_ends_with_78(own_site: Site, breaks: Callable[[Site], str]) -> None:
    """One sentence with its hint, no traceback, nothing listening."""
    says = breaks(own_site)
    done = own_site.command("run")
    assert done.returncode == 78, done.stderr
    assert "Traceback" not in done.stderr
    error, *_ = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert says in error
    assert "hint: " in done.stderr
    assert own_site.audit("started") == []


@pytest.mark.parametrize("when", ["at the start", "after the start"])
def test_r3_a_missing_crl_is_never_silently_ignored(own_site: Site, when: str) -> None:
    """At the start everybody is refused and it is said; a CRL that arrives mends it without a restart."""
    crl = own_site.crl_file.read_bytes()
    device = own_site.pki.device("dev-a")
    if when == "at the start":
        own_site.crl_file.unlink()
    with Running(own_site) as gateway:
        if when == "at the start":
            assert "CRL file cannot be used" in gateway.said()
            assert gateway.publish(device, "dev-a", "devices/dev-a/state").returncode != 0
            wait_until(lambda: own_site.audit("refused", reason="crl_missing"), "the audit line")
            own_site.crl_file.write_bytes(crl)
            wait_until(lambda: own_site.audit("reload", cause="files"), "the reload")
        assert gateway.publish(device, "dev-a", "devices/dev-a/state").returncode == 0


def test_it_runs_as_any_user_from_any_folder(own_site: Site) -> None:
    """Paths do not depend on the working directory."""
    folder = Path.cwd()
    os.chdir("/")
    try:
        with Running(own_site) as gateway:
            assert gateway.publish(own_site.pki.device("dev-a"), "dev-a", "devices/dev-a/state").returncode == 0
    finally:
        os.chdir(folder)


def test_r6_a_gateway_on_a_machine_that_has_no_time_yet_serves_and_says_so(tmp_path: Path, pki: Pki) -> None:
    """From the first second it serves by the floor; when the time service's file appears it judges by the clock."""
    site = Site(tmp_path, pki, time={"source": "./synchronized", "floor_file": "time-floor"})
    with Running(site) as gateway:
        assert gateway.publish(pki.device("dev-a"), "dev-a", "devices/dev-a/state").returncode == 0
        wait_until(lambda: site.audit("time", state="floor"), "the audit line")
        assert re.search(r"^time +floor since 2", site.command("status").stdout, re.MULTILINE)
        (tmp_path / "synchronized").touch()
        wait_until(lambda: site.audit("time", state="synced"), "the audit line")
        status = json.loads(site.command("status", "--json").stdout)
        assert status["clock"]["state"] == "synced"
        assert status["clock"]["floor"] < status["clock"]["at"]
        assert gateway.publish(pki.device("dev-b"), "dev-b", "devices/dev-b/state").returncode == 0
