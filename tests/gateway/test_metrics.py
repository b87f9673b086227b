"""/metrics: what Prometheus reads, fetched with curl, and who does not get it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.metrics import MAX_REQUEST_BYTES, PREFIX, render
from tests.gateway.site import Running, Site
from tests.integration.programs import attempt, free_port, run, wait_until
from tests.support.pki import Pki

SAMPLE = re.compile(
    r"[a-z_]+(\{[a-z_]+=\"(?:[^\"\\\n]|\\[\\n\"])*\"(,[a-z_]+=\"(?:[^\"\\\n]|\\[\\n\"])*\")*\})? -?[0-9.e+-]+"
)
STATUS = {
    "version": "1.0",
    "policy_version": "abc",
    **dict.fromkeys(("uptime_s", "connections", "sessions", "subscriptions", "queued", "retained", "crl_faults"), 0),
    **dict.fromkeys(("retained_bytes", "loop_lag_s", "messages_in", "messages_out", "denied"), 1.5),
    "counts": {"admitted": 3, "refused.no_role": 2, "refused.crl_stale": 1, "denied.publish_denied": 4},
    "crls": [
        {"issuer": 'a "b" \\ c\nd', "this_update": "2026-01-01T00:00:00+00:00", "next_update": None, "revoked": 7}
    ],
    "server_certificate_not_after": "2027-01-01T00:00:00+00:00",
    "last_reload": {"ok": False},
    "audit_lines_lost": 0,
    "audit_lines_suppressed": 5,
}


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, pki: Pki, port: int) -> Iterator[Running]:
    site = Site(tmp_path_factory.mktemp("metrics"), pki, console={"bind": f"127.0.0.1:{port}"})
    with Running(site) as gateway:
        yield gateway


def test_every_line_is_in_the_text_format() -> None:
    """HELP and TYPE before the samples of each name, label values escaped, one sample per line."""
    lines = render(STATUS).splitlines()
    named: list[str] = []
    for line in lines:
        if line.startswith("# TYPE "):
            named.append(line.split()[2])
        elif not line.startswith("# HELP "):
            assert SAMPLE.fullmatch(line), line
            assert line.startswith(named[-1])
    assert len(named) == len(set(named))
    assert all(name.startswith(PREFIX) for name in named)
    assert f'{PREFIX}refused_total{{reason="no_role"}} 2' in lines
    assert f'{PREFIX}crl_revoked{{issuer="a \\"b\\" \\\\ c\\nd"}} 7' in lines
    assert f"{PREFIX}server_certificate_not_after_seconds 1798761600" in lines
    assert f"{PREFIX}last_reload_ok 0" in lines


def test_prometheus_own_parser_reads_it() -> None:
    """The independent judge, where it is installed."""
    parser = pytest.importorskip("prometheus_client.parser")
    families = {family.name: family for family in parser.text_string_to_metric_families(render(STATUS))}
    samples = families[f"{PREFIX}crl_revoked"].samples
    assert [(sample.labels["issuer"], sample.value) for sample in samples] == [('a "b" \\ c\nd', 7.0)]
    assert len(families) == render(STATUS).count("# TYPE ")


def test_curl_gets_the_figures_of_the_running_gateway(running: Running, port: int) -> None:
    """An admission and a refusal are counted by reason."""
    device = running.site.pki.device("dev-a")
    assert running.publish(device, "dev-a", "devices/dev-a/state").returncode == 0
    assert running.publish(device, "dev-b", "devices/dev-a/state").returncode != 0
    wait_until(lambda: running.site.audit("refused"), "the refusal")
    text = run("curl", "-sSf", f"http://127.0.0.1:{port}/metrics")
    assert f"{PREFIX}admitted_total 1\n" in text
    assert f'{PREFIX}refused_total{{reason="client_id_refused"}} 1\n' in text
    assert f'{PREFIX}crl_revoked{{issuer="test CA"}} 0\n' in text


@pytest.mark.parametrize(
    ("options", "path", "status"),
    [
        ([], "/metrics", "200"),
        ([], "/metrics?x=1", "200"),
        ([], "/", "404"),
        ([], "/metrics/../control.sock", "404"),
        (["-X", "POST"], "/metrics", "405"),
        (["-H", "Host: evil.example"], "/metrics", "421"),
        (["-H", "Host: localhost.evil.example:80"], "/metrics", "421"),
        (["-H", "Host:"], "/metrics", "400"),
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


@pytest.mark.parametrize(
    "sent", [b"", b"\x16\x03\x01\x02\x00", b"a" * (2 * MAX_REQUEST_BYTES)], ids=["nothing", "TLS", "no end"]
)
def test_what_is_no_request_is_closed_without_harm(running: Running, port: int, sent: bytes) -> None:
    """Whatever comes, the next scrape is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as channel:
        try:
            channel.sendall(sent)
            channel.shutdown(socket.SHUT_WR)
            assert channel.recv(1000) == b""
        except ConnectionError:
            pass
    assert "200" in attempt("curl", "-sS", "-i", f"http://127.0.0.1:{port}/metrics").stdout


def test_a_port_that_is_taken_keeps_the_gateway_from_starting(
    tmp_path: Path, pki: Pki, port: int, running: Running
) -> None:
    """Nobody believes to watch a gateway that is not watched."""
    done = Site(tmp_path, pki, console={"bind": f"127.0.0.1:{port}"}).command("run")
    assert (done.returncode, "[console] bind" in done.stderr) == (1, True)
