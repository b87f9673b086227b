"""`device-sim handshake`: what it prints of a gateway and of other servers, its exit codes, and the bench."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from device_sim.cli import main
from device_sim.connection_faults import Endpoint
from device_sim.handshake import Question, Report, examine, question_of
from device_sim.handshake_bench import CASES, ROUNDS, Comparison, compare
from mtls import handshake as watched
from mtls.errors import Reason
from mtls.handshake_alerts import Side
from tests.support.gateway import Gateway, running
from tests.support.pki import Credential, Pki
from tests.support.tls_servers import s_server, server_side, serving, tls_server

PROGRAM = Path(sys.executable).parent / "device-sim"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time in which a local server can send an alert, instead of that of a far one."""
    monkeypatch.setattr(watched, "SETTLE_MIN_S", 0.2)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Gateway]:
    """Our gateway, with a deny list and a CRL that name one device each."""
    folder = tmp_path_factory.mktemp("gateway")
    deny, crl = folder / "deny.toml", pki.crl([revoked(pki).certificate])
    deny.write_text('ids = ["dev-denied"]\n')
    with running(Gateway(folder, pki, listener={"deny_file": str(deny), "crl_file": str(crl)})) as gateway:
        yield gateway


_REVOKED: dict[Path, Credential] = {}


def revoked(pki: Pki) -> Credential:
    """The device on the CRL."""
    return _REVOKED.setdefault(pki.folder, pki.device("dev-revoked"))


def ask(port: int, ca: Path, given: Credential | None = None, name: str = "localhost", tls: str = "") -> Report:
    """A report on a local port."""
    cert, key = (given.cert_file, given.key_file) if given else (None, None)
    question = Question(Endpoint("127.0.0.1", port), name, cert, key, ca, tls, timeout_s=5.0)
    return examine(question, datetime.now(UTC))


def is_tidy(report: Report) -> bool:
    """At most 80 columns, nothing unprintable, and JSON that can be written."""
    json.dumps(report.as_row())
    return all(len(line) <= 80 and line.isprintable() for line in report.as_text().splitlines())


@pytest.mark.parametrize("tls", ["1.3", "1.2"])
def test_a_device_of_the_site_is_let_in_by_our_gateway(gateway: Gateway, pki: Pki, tls: str) -> None:
    """The report shows both chains, that each side was verified, and that no refusal followed."""
    device = pki.device("dev-a")
    report = ask(gateway.port, pki.ca_file, device, tls=tls)
    text, row = report.as_text(), report.as_row()
    assert report.exit_code == 0, text
    assert is_tidy(report)
    assert "ok: mutual TLS: each side has verified the other's certificate" in text
    for words in ("CN=dev-a", "CN=localhost", "asks for a client certificate", "we prove that we hold", f"TLS {tls}"):
        assert words in text
    assert row["end"] == "answered"
    steps: Any = row["steps"]
    shown = [cert["fingerprint_sha256"] for step in steps for cert in step.get("certificates", ())]
    assert x509_fingerprint(device.certificate) in shown


def x509_fingerprint(cert: x509.Certificate) -> str:
    from cryptography.hazmat.primitives import hashes

    return cert.fingerprint(hashes.SHA256()).hex()


@pytest.mark.parametrize("tls", ["1.3", "1.2"])
def test_our_gateway_refuses_whom_it_should(gateway: Gateway, pki: Pki, tls: str) -> None:
    """No certificate, a denied id, a revoked certificate, an unknown CA: never a yes, and never our server's fault."""
    foreign = Pki(gateway.folder / f"foreign{tls}", name="foreign")
    cases = {
        Reason.NO_CERTIFICATE: None,
        Reason.PEER_CLOSED: pki.device("dev-denied"),  # its deny list gives no alert
        Reason.CERTIFICATE_REVOKED: revoked(pki),
        Reason.ISSUER_UNKNOWN: foreign.device("dev-a"),
    }
    for reason, given in cases.items():
        report = ask(gateway.port, pki.ca_file, given, tls=tls)
        assert (report.exit_code, report.verdict.reason) == (1, reason), report.as_text()
        assert report.verdict.at_fault[0] is Side.OUR_CERTIFICATE
        assert is_tidy(report)
    assert ask(gateway.port, pki.ca_file, pki.device("dev-b"), tls=tls).exit_code == 0


def test_no_word_of_mqtt_is_said(gateway: Gateway, pki: Pki) -> None:
    """The gateway has no session and admits nobody because of it."""
    before = len(gateway.audit("admitted"))
    ask(gateway.port, pki.ca_file, pki.device("dev-quiet"))
    assert len(gateway.audit("admitted")) == before
    assert "dev-quiet" not in gateway.sessions()


def test_a_servers_name_cannot_write_on_the_terminal(pki: Pki) -> None:
    """Escape sequences, line breaks and direction marks in a certificate are shown as what they are."""
    nasty = pki.raw_leaf(
        cn="\x1b[31mroot\r\nok: fine\u202e",
        san=[x509.DNSName("localhost")],
        eku=(ExtendedKeyUsageOID.SERVER_AUTH,),
    )
    with tls_server(server_side(nasty)) as port:
        report = ask(port, pki.ca_file)
    assert report.exit_code == 0
    assert is_tidy(report)
    assert "\\x1b[31mroot" in report.as_text()


def test_differences_from_our_profiles_are_told_and_are_no_fault(pki: Pki) -> None:
    """A certificate as another CA makes it: let in, and what we would have made otherwise is named; ours has none."""
    other = pki.raw_leaf(san=[x509.DNSName("localhost")], eku=(ExtendedKeyUsageOID.SERVER_AUTH,))
    with tls_server(server_side(other)) as port:
        report = ask(port, pki.ca_file)
    with tls_server(server_side(pki.server())) as port:
        ours = ask(port, pki.ca_file)
    assert report.verdict.is_ok
    assert "gateway-server: subject key identifier" in " ".join(report.as_text().split())
    assert "differs" not in ours.as_text()


def test_the_names_that_a_server_asks_for_are_listed(pki: Pki, tmp_path: Path) -> None:
    """The CAs in its request, and that ours is none of them; one that is, is not remarked on."""
    foreign = Pki(tmp_path, name="foreign")
    for site, is_remarked in ((foreign, True), (pki, False)):
        with s_server(pki.server(), "-Verify", "2", "-verify_return_error", "-CAfile", pki.ca_file) as port:
            text = ask(port, pki.ca_file, site.device("dev-a")).as_text()
        assert "CN=test Root CA, CN=test CA" in text or "CN=test CA, CN=test Root CA" in text
        assert ("our certificate is of none of these CAs" in text) is is_remarked


def test_our_own_files_are_looked_at_too(pki: Pki) -> None:
    """A file whose second certificate did not sign the first is said to be no chain."""
    mixed = pki.device("dev-a")
    mixed.cert_file.write_bytes(mixed.cert_file.read_bytes() + pki.server().cert_file.read_bytes())
    with tls_server(server_side(pki.server(), ca_file=pki.ca_file)) as port:
        text = ask(port, pki.ca_file, mixed).as_text()
        straight = ask(port, pki.ca_file, pki.device("dev-a")).as_text()
    assert "the file is no chain" in text
    assert "no chain" not in straight


def test_a_port_without_a_server_is_a_report_too(pki: Pki) -> None:
    """Nobody there: no steps, the port is at fault, and JSON can still be read."""
    with serving(lambda sock: None) as port:
        pass
    report = ask(port, pki.ca_file)
    assert (report.exit_code, report.steps, report.verdict.at_fault) == (1, (), (Side.PORT,))
    assert is_tidy(report)


def test_a_python_without_the_callback_says_so(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is there, the steps are not, and the report says why."""
    monkeypatch.setattr(watched, "_watch", lambda *_: False)
    with tls_server(server_side(pki.server(), ca_file=pki.ca_file)) as port:
        report = ask(port, pki.ca_file, pki.device("dev-a"))
    assert report.exit_code == 0
    assert "this Python does not show the messages" in report.as_text()


# --- the command


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(main, ["handshake", *map(str, words)])


def test_the_command_ends_0_1_and_78(gateway: Gateway, pki: Pki) -> None:
    """Fine, a no, and files that do not fit together; the JSON says the same as the exit code."""
    device, other = pki.device("dev-a"), pki.device("dev-b")
    where, site = f"localhost:{gateway.port}", ("--ca", pki.ca_file)
    pair = ("--cert", device.cert_file, "--key", device.key_file)
    fine = run(where, *site, *pair, "--json")
    assert (fine.exit_code, json.loads(fine.stdout)["ok"]) == (0, True)
    refused = run(where, *site, *pair, "--server-name", "gateway.local", "--json")
    assert (refused.exit_code, json.loads(refused.stdout)["reason"]) == (1, "identity_conflict")
    assert json.loads(refused.stdout)["at_fault"] == ["the name we asked for", "the server's certificate"]
    broken = run(where, *site, "--cert", device.cert_file, "--key", other.key_file)
    assert broken.exit_code == 78
    assert "is not the key of" in broken.stderr
    older = run(where, *site, *pair, "--tls", "1.2")
    assert older.exit_code == 0
    assert "TLS 1.2, ECDHE" in older.stdout


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("gw:8883", "--bench"),
        ("gw:99999",),
        ("gw:8883", "--cert", "a.crt"),
        ("gw:8883", "--key", "a.key"),
        ("gw:8883", "--server-name", "a..b"),
        ("gw:8883", "--server-name", "a" * 64),
        ("gw:8883", "--tls", "1.1"),
        ("--bench", "--seconds", "0"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_a_usage_error(words: tuple[str, ...]) -> None:
    """Exit code 2 and no connection."""
    done = run(*words)
    assert done.exit_code == 2
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["gateway.local", "192.0.2.7", "2001:db8::7", "a" * 63 + ".example"])
def test_names_and_addresses_that_can_be_asked_for(name: str) -> None:
    """The twin: what the TLS library takes is not refused."""
    question = question_of("gw:8883", server_name=name, cert=None, key=None, ca=None, tls="")
    assert question.server_name == name


# --- the bench


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """The least that can be measured."""
    return compare(0.1)


def test_every_case_is_measured(comparison: Comparison) -> None:
    """Each case has its handshakes, its rates and its times in order."""
    assert [figures.case for figures in comparison.figures] == list(CASES)
    for figures in comparison.figures:
        assert figures.count >= 3 * ROUNDS
        assert figures.server_per_s > 0
        assert figures.client_per_s > 0
        assert 0 < figures.p50_ms <= figures.p95_ms <= figures.p99_ms


def test_the_bytes_are_those_of_the_certificates(comparison: Comparison) -> None:
    """Mutual TLS sends a chain up, a ticket comes down, and a resumed session sends neither chain."""
    for tls in ("1.3", "1.2"):
        of = {figures.case.name: figures for figures in comparison.figures if figures.case.tls == tls}
        assert of["mutual"].to_server_bytes > of["plain"].to_server_bytes + 700
        assert of["plain, with tickets"].to_client_bytes > of["plain"].to_client_bytes + 100
        assert of["plain, resumed"].to_client_bytes < of["plain"].to_client_bytes - 500
        assert (of["plain"].flights, of["mutual"].flights) == ((3, 3) if tls == "1.3" else (4, 4))


def test_the_table_fits_and_says_the_same_as_the_json(comparison: Comparison) -> None:
    """80 columns; the cost of plain TLS is 1 by definition."""
    text, row = comparison.as_text(), comparison.as_row()
    assert all(len(line) <= 80 for line in text.splitlines())
    cases: Any = json.loads(json.dumps(row))["cases"]
    assert len(cases) == len(CASES)
    for case in cases:
        line = next(
            x for x in text.splitlines() if x.startswith(f"  {case['case']:22}") and f"{case['to_server_bytes']:7}" in x
        )
        assert f"{case['server_cost']:.2f}x" in line
    assert [case["server_cost"] for case in cases if case["case"] == "plain"] == [1.0, 1.0]


def test_progress_goes_from_nothing_to_all() -> None:
    """Who watches is told parts that only grow, up to 1."""
    parts: list[float] = []
    compare(0.01, parts.append, CASES[:1])
    assert parts == sorted(parts)
    assert parts[-1] == 1.0


def test_no_key_of_the_bench_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys live in a folder that goes with the run."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    compare(0.01, cases=CASES[:1])
    assert list(tmp_path.iterdir()) == []


def test_the_progress_bar_is_for_terminals_only() -> None:
    """With standard error on a terminal there is a bar; without one the error stream stays empty."""
    command = [str(PROGRAM), "handshake", "--bench", "--seconds", "0.1", "--json"]
    quiet = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert quiet.stderr == b""
    assert len(json.loads(quiet.stdout)["cases"]) == len(CASES)
    near, far = pty.openpty()
    try:
        watched_run = subprocess.run(command, stdout=subprocess.PIPE, stderr=far, check=True, timeout=60)
        assert b"shaking hands" in os.read(near, 65536)
    finally:
        os.close(near)
        os.close(far)
    assert json.loads(watched_run.stdout)
