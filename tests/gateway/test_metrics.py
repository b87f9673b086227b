"""/metrics: what Prometheus reads, fetched with curl and parsed by Prometheus' own client, and who does not get it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.bounded_http import MAX_LINE_BYTES
from gateway.metrics import MAX_CLIENTS, PREFIX, REQUEST_TIMEOUT_S, registry_of
from tests.gateway.site import Running, Site
from tests.integration.programs import attempt, free_port, run, wait_until
from tests.support.pki import Pki

NOW = datetime(2026, 1, 2, tzinfo=UTC)
STATUS: Mapping[str, Any] = {
    "version": "1.0",
    "policy_version": "abc",
    "time": NOW.isoformat(),
    "clock": {"state": "floor", "floor": "2026-01-01T00:00:00+00:00", "since": "2026-01-01T01:00:00+00:00"},
    **dict.fromkeys(("uptime_s", "connections", "sessions", "subscriptions", "queued", "retained", "crl_faults"), 0),
    **dict.fromkeys(("retained_bytes", "loop_lag_s", "messages_in", "messages_out", "denied"), 1.5),
    "handshakes": 9,
    "handshake_failures": {"issuer_unknown": 2},
    "counts": {
        "admitted": 3,
        "refused.no_role": 2,
        "refused.crl_stale": 1,
        "denied.publish_denied": 4,
        "disconnected.kicked": 1,
        "renewal_refused.csr_invalid": 1,
    },
    "crls": [
        {
            "issuer": 'a "b" \\ c\nd',
            "key": "00ff",
            "this_update": (NOW - timedelta(hours=1)).isoformat(),
            "next_update": None,
            "revoked": 7,
        }
    ],
    "certificates": [
        {"kind": "server", "subject": "", "key": "", "not_after": (NOW + timedelta(days=10)).isoformat()},
        {"kind": "root", "subject": "CA", "key": "01", "not_after": (NOW - timedelta(days=1)).isoformat()},
        {"kind": "root", "subject": "CA", "key": "02", "not_after": (NOW + timedelta(days=1)).isoformat()},
    ],
    "last_reload": {"ok": False},
    "audit_lines_lost": 0,
    "audit_lines_suppressed": 5,
    "store": {
        "accepting": False,
        "damaged": "page 7",
        "used_bytes": 1000,
        "free_bytes": 2000,
        "queued": 3,
        "queued_bytes": 400,
        "oldest_s": 12.5,
        "withheld": 1,
        "withheld_total": 4,
        "evicted": 2,
        "commits": 70,
        "commit_s": 0.5,
    },
    "uplink": {
        "state": "connected",
        "spool_messages": 7,
        "spool_bytes": 2000,
        "spool_max_bytes": 1 << 30,
        "oldest_s": 60.0,
        "acknowledged": {"live": 5, "backlog": 2},
        "dropped": {"spool_full": 3},
        "refused": 1,
        "commands": {"delivered": 4},
        "replay_per_s": 200.0,
        "replay_eta_s": 12.5,
    },
    "shadow": {
        "compared": 8,
        "faults": 1,
        "differences": [{"action": "publish", "kind": "would_deny", "count": 2}],
    },
}

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def figures(text: str) -> Figures:
    """Every sample by name without our prefix and labels; no series stands there twice."""
    found: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def rendered(status: Mapping[str, Any]) -> Figures:
    return figures(generate_latest(registry_of(lambda: status)).decode())


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, pki: Pki, port: int) -> Iterator[Running]:
    site = Site(tmp_path_factory.mktemp("metrics"), pki, console={"bind": f"127.0.0.1:{port}"})
    with Running(site) as gateway:
        yield gateway


def scrape(port: int) -> Figures:
    return figures(run("curl", "-sSf", f"http://127.0.0.1:{port}/metrics"))


def test_the_status_becomes_figures() -> None:
    """Counts by reason, ages and days from the status' own clock, labels as they were."""
    found = rendered(STATUS)
    assert found["info", (("policy_version", "abc"), ("version", "1.0"))] == 1
    assert found["refused_total", (("reason", "no_role"),)] == 2
    assert found["handshakes_total", ()] == 9
    assert found["handshake_failures_total", (("reason", "issuer_unknown"),)] == 2
    authority = (("issuer", 'a "b" \\ c\nd'), ("key", "00ff"))
    assert found["crl_age_seconds", authority] == 3600
    assert found["crl_next_update_timestamp_seconds", authority] == float("inf")
    assert found["crl_revoked", authority] == 7
    assert found["last_reload_ok", ()] == 0
    assert found["shadow_differences_total", (("action", "publish"), ("kind", "would_deny"))] == 2


def test_the_state_of_the_time_is_one_of_three() -> None:
    """Exactly one is 1, and since when and from where on it holds."""
    found = rendered(STATUS)
    states = {labels[0][1]: value for (name, labels), value in found.items() if name == "time_state"}
    assert states == {"unknown": 0, "floor": 1, "synced": 0}
    assert found["time_floor_timestamp_seconds", ()] == 1767225600
    assert found["time_state_since_timestamp_seconds", ()] == 1767229200


def test_cas_of_one_name_are_told_apart_by_their_keys() -> None:
    """A CA that is being replaced has the same name, and one series twice would make the scrape fail."""
    found = rendered(STATUS)
    days = {labels: value for (name, labels), value in found.items() if name == "certificate_expiry_days"}
    assert sorted(days.values()) == [-1, 1, 10]


def test_without_a_shadow_policy_there_is_nothing_to_show_of_one() -> None:
    """The twin of the figures above."""
    assert not [name for name, _ in rendered({**STATUS, "shadow": None}) if name.startswith("shadow")]


def test_the_store_becomes_figures() -> None:
    """Whether it takes messages, how much waits, and what was withheld and dropped."""
    found = rendered(STATUS)
    names = ("accepting", "damaged", "queued_messages", "oldest_seconds", "withheld_total", "evicted_total")
    assert [found[f"store_{name}", ()] for name in names] == [0, 1, 3, 12.5, 4, 2]
    assert found["store_commits_total", ()] == 70


def test_without_a_store_there_is_nothing_to_show_of_one() -> None:
    """The twin."""
    assert not [name for name, _ in rendered({**STATUS, "store": None}) if name.startswith("store")]


def test_curl_gets_the_figures_of_the_running_gateway(running: Running, port: int) -> None:
    """An admission, a refusal and a failed handshake are counted, each once and by reason."""
    before = scrape(port)
    device = running.site.pki.device("dev-a")
    assert running.publish(device, "dev-a", "devices/dev-a/state").returncode == 0
    assert running.publish(device, "dev-a", "devices/dev-b/state").returncode == 0
    assert running.publish(device, "dev-b", "devices/dev-a/state").returncode != 0
    attempt("curl", "-sSk", f"https://127.0.0.1:{running.port}/")
    wait_until(lambda: len(running.site.audit("refused")) == 2, "the refusals")
    after = scrape(port)
    grown = {key: value - before.get(key, 0) for key, value in after.items() if key[0].endswith("_total")}
    counted = {key: value for key, value in grown.items() if value and not key[0].startswith("process_")}
    assert counted == {
        ("handshakes_total", ()): 3,
        ("handshake_failures_total", (("reason", "no_certificate"),)): 1,
        ("admitted_total", ()): 2,
        ("refused_total", (("reason", "client_id_refused"),)): 1,
        ("refused_total", (("reason", "no_certificate"),)): 1,
        ("denied_total", (("reason", "publish_denied"),)): 1,
        ("disconnected_total", (("reason", "peer_closed"),)): 2,
        ("messages_in_total", ()): 2,
        ("messages_out_total", ()): counted["messages_out_total", ()],
    }


def test_everything_that_an_operator_watches_is_there(running: Running, port: int) -> None:
    """Queue, loop, CRLs, certificates and the process, all in one scrape."""
    found = scrape(port)
    names = {name for name, _ in found}
    assert {"connections", "queued_messages", "loop_lag_seconds", "info", "crl_faults"} <= names
    assert {"process_resident_memory_bytes", "process_open_fds"} <= names
    ages = [value for (name, _), value in found.items() if name == "crl_age_seconds"]
    assert len(ages) == 2
    assert all(0 <= age < 2 * 86400 for age in ages)
    days = {dict(labels)["kind"]: v for (name, labels), v in found.items() if name == "certificate_expiry_days"}
    assert days.keys() == {"server", "root", "issuing"}
    assert all(value > 0 for value in days.values())


@pytest.mark.parametrize(
    ("options", "path", "status"),
    [
        ([], "/metrics", "200"),
        ([], "/metrics?x=1", "200"),
        (["-H", "Host: LOCALHOST:1"], "/metrics", "200"),
        (["-H", "Host: [::1]:1"], "/metrics", "200"),
        ([], "/", "404"),
        ([], "/metrics/", "404"),
        ([], "/metrics/../control.sock", "404"),
        ([], "//metrics", "404"),
        (["--request-target", "http://evil.example/metrics"], "/", "404"),
        (["-X", "POST"], "/metrics", "405"),
        (["-X", "POST", "--data-binary", "x" * 100_000], "/metrics", "405"),
        (["-H", "Host: evil.example"], "/metrics", "421"),
        (["-H", "Host: localhost.evil.example:80"], "/metrics", "421"),
        (["-H", "Host: 127.evil.example"], "/metrics", "421"),
        (["-0", "-H", "Host:"], "/metrics", "400"),
        (["-H", "X: " + "a" * 2 * MAX_LINE_BYTES], "/metrics", "400"),
    ],
)
def test_nothing_but_get_metrics_of_this_machine_is_answered(
    running: Running, port: int, options: list[str], path: str, status: str, tmp_path: Path
) -> None:
    """A web page that reaches the port through a browser names another host and gets nothing."""
    shown = attempt(
        *("curl", "-sS", "--path-as-is", "-o", tmp_path / "body", "-w", "%{http_code}"),
        *options,
        f"http://127.0.0.1:{port}{path}",
    )
    assert shown.stdout == status
    assert (PREFIX in (tmp_path / "body").read_text()) == (status == "200")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x16\x03\x01\x02\x00",
        b"a" * (4 * MAX_LINE_BYTES),
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    ],
    ids=["nothing", "TLS", "no end", "two hosts"],
)
def test_what_is_no_request_gets_nothing_and_does_no_harm(running: Running, port: int, sent: bytes) -> None:
    """Whatever comes, the next scrape is answered and the log has no traceback."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as channel:
        got = b""
        with contextlib.suppress(ConnectionError):
            channel.sendall(sent)
            channel.shutdown(socket.SHUT_WR)
            while data := channel.recv(65536):
                got += data
    assert PREFIX.encode() not in got
    assert scrape(port)
    assert "Traceback" not in running.said()


def test_slow_clients_are_cut_and_do_not_keep_others_out(running: Running, port: int) -> None:
    """As many as are served at a time hold their connections open: one more gets nothing, until their time is over."""
    slow = [socket.create_connection(("127.0.0.1", port), timeout=3 * REQUEST_TIMEOUT_S) for _ in range(MAX_CLIENTS)]
    try:
        for channel in slow:
            channel.sendall(b"GET /metrics HTTP/1.1\r\n")
        began = time.monotonic()
        assert attempt("curl", "-sS", f"http://127.0.0.1:{port}/metrics").returncode != 0
        for channel in slow:
            with contextlib.suppress(ConnectionResetError):
                assert channel.recv(1) == b""
        assert time.monotonic() - began < 2 * REQUEST_TIMEOUT_S
    finally:
        for channel in slow:
            channel.close()
    assert scrape(port)


def test_a_port_that_is_taken_keeps_the_gateway_from_starting(
    tmp_path: Path, pki: Pki, port: int, running: Running
) -> None:
    """Nobody believes to watch a gateway that is not watched."""
    done = Site(tmp_path, pki, console={"bind": f"127.0.0.1:{port}"}).command("run")
    assert done.returncode == 1
    assert f"cannot listen on [console] bind 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "remove [console]" in done.stderr


def test_without_a_console_no_web_server_is_loaded(running: Running, tmp_path: Path, pki: Pki) -> None:
    """What is off costs no memory: its compiled parts are mapped into the gateway with a console only."""

    def maps_aiohttp(gateway: Running) -> bool:
        return any("aiohttp" in mapped.path for mapped in psutil.Process(gateway.process.pid).memory_maps())

    with Running(Site(tmp_path, pki)) as plain:
        assert (maps_aiohttp(plain), maps_aiohttp(running)) == (False, True)


def test_the_uplink_is_there_when_there_is_one() -> None:
    """Depth, losses by reason and the time that the replay will take; nothing at all without an uplink."""
    found = dict(rendered(STATUS))
    assert found["uplink_connected", ()] == 1
    assert found["uplink_spool_messages", ()] == 7
    assert found["uplink_dropped_total", (("reason", "spool_full"),)] == 3
    assert found["uplink_replay_eta_seconds", ()] == 12.5
    assert found["uplink_spool_oldest_seconds", ()] == 60
    assert not [name for name, _ in rendered({**STATUS, "uplink": None}) if name.startswith("uplink")]
