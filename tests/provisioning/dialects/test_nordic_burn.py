"""Burning a Nordic modem: PASS only after a reset and a fresh proof, WRITTEN only where it was accepted."""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from device_sim.nordic_modem import NordicModem
from mtls.profiles import fingerprint_sha256
from provisioning.burning import BURNING, NEEDS, OPENING, Step, UnitOrder, Verdict, burn
from provisioning.dialects import nordic_at as at
from provisioning.dialects.nordic import NORDIC_AT as DECLARED
from provisioning.dialects.nordic_at import CredentialType
from provisioning.dialects.table import NORDIC_AT
from provisioning.ledger import Outcome, UnitState
from provisioning.port import PortFault
from provisioning.recovery import Settlement, settle
from provisioning.unit_order import DEFAULT_SECURITY_TAG as TAG
from provisioning.unit_order import Gateway
from tests.device_sim.processes import run_tool
from tests.provisioning.dialects.books import Killed, assert_reconciled, valid_certificates
from tests.provisioning.dialects.test_nordic_at import on_a_terminal
from tests.provisioning.station_bench import Bench, open_bench

IMEI = "352656100000001"
WRITTEN = UnitOrder(accept_written=True)
LEFT_OUT = {Step.LABEL, Step.CONNECT}
STEPS = [
    step
    for step, _ in (*OPENING, *BURNING)
    if NEEDS.get(step, frozenset()) <= DECLARED.abilities and step not in LEFT_OUT
]
KEY, CERTIFICATE = (TAG, CredentialType.CLIENT_KEY), (TAG, CredentialType.CLIENT_CERTIFICATE)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A station with a CA of its own."""
    with open_bench(tmp_path) as bench:
        yield bench


@dataclass
class ModemPort:
    """A port to a simulated modem, with its own time; a cable that can be pulled."""

    modem: NordicModem
    name: str = "/dev/bench0"
    now: float = 0.0
    heard: bytes = b""
    pulled: bool = False

    def clock(self) -> float:
        return self.now

    def read(self, timeout_s: float) -> bytes:
        self._check()
        data, self.heard = self.heard, b""
        self.now += 0.0 if data else timeout_s
        return data

    def write(self, data: bytes) -> float:
        self._check()
        self.heard += self.modem.receive(data)
        return 0.0

    def reopen(self, timeout_s: float) -> None:
        self._check()

    def _check(self) -> None:
        if self.pulled:
            raise PortFault(f"{self.name} went away")


def burned(
    bench: Bench, port: ModemPort, order: UnitOrder | None = None, progress: Callable[[Step], None] | None = None
) -> Verdict:
    return burn(
        port, bench.ca, bench.ca.ledger,
        station="line-a", dialect=NORDIC_AT, order=order, progress=progress, clock=port.clock,
    )  # fmt: skip


@pytest.mark.parametrize("shell", [False, True], ids=["raw", "shell"])
def test_a_modem_that_resets_and_signs_passes(bench: Bench, shell: bool) -> None:
    """Its own key, our certificate beside it, digests compared twice, and a token over a nonce after the reset."""
    modem = NordicModem(shell=shell)
    verdict = burned(bench, ModemPort(modem))
    assert verdict.passed, verdict
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.RECORDED]
    leaf = x509.load_pem_x509_certificate(modem.credentials[CERTIFICATE])
    assert fingerprint_sha256(leaf) == verdict.fingerprint_sha256
    assert TAG in modem.made_here
    assert_reconciled(bench)


@pytest.mark.parametrize("lacking", ["signs", "resets"])
def test_a_modem_that_cannot_show_it_is_written_only_where_that_is_accepted(bench: Bench, lacking: str) -> None:
    """Without %JWT or #XRESET: FAIL and no valid certificate; with --accept-written WRITTEN, never PASS."""
    modem = NordicModem(**{lacking: False})
    refused = burned(bench, ModemPort(modem))
    assert (refused.word, refused.outcome, refused.exit_code) == ("FAIL", Outcome.FAILED, 1)
    assert "--accept-written" in refused.hint
    assert valid_certificates(bench, IMEI) == 0

    accepted = burned(bench, ModemPort(modem), WRITTEN)
    assert (accepted.word, accepted.passed, accepted.exit_code) == ("WRITTEN", False, 0), accepted
    assert accepted.outcome is Outcome.DELIVERED
    assert bench.ca.ledger.units()[-1].state is UnitState.DELIVERED
    assert valid_certificates(bench, IMEI) == 1
    assert_reconciled(bench)


@pytest.mark.parametrize(("fault", "step"), [("forgets", Step.HASH), ("alters", Step.HASH), ("lies", Step.PROVE_KEYED)])
def test_a_modem_that_says_ok_and_does_otherwise_fails(bench: Bench, fault: str, step: Step) -> None:
    """F1: also where WRITTEN would be enough, and no certificate stays valid."""
    verdict = burned(bench, ModemPort(NordicModem(**{fault: True})), WRITTEN)
    assert (verdict.word, verdict.step, verdict.outcome) == ("FAIL", step, Outcome.FAILED), verdict
    assert valid_certificates(bench, IMEI) == 0
    assert_reconciled(bench)


def test_a_key_that_this_ledger_did_not_have_made_is_left_alone(bench: Bench) -> None:
    """The tag may be somebody else's identity: refused before it is touched, however often."""
    modem = NordicModem()
    for command in (at.go_offline(), at.keygen(TAG, "foreign")):
        modem.receive(command.data(shell=False))
    before = dict(modem.credentials)
    for _ in range(2):
        verdict = burned(bench, ModemPort(modem))
        assert (verdict.word, verdict.step) == ("FAIL", Step.KEYGEN)
        assert "knows nothing of" in verdict.reason
    assert modem.credentials == before
    assert burned(bench, ModemPort(modem), UnitOrder(security_tag=TAG + 1)).passed


def test_a_modem_that_came_back_gets_a_new_key_after_a_person_gave_it_free(bench: Bench) -> None:
    """Its old key is this ledger's own, so it is replaced; before that a second burn is refused."""
    modem = NordicModem()
    first = burned(bench, ModemPort(modem))
    refused = burned(bench, ModemPort(modem))
    bench.ca.ledger.retire(bench.ca.ledger.units()[0], "new owner")
    again = burned(bench, ModemPort(modem))
    assert (refused.word, refused.step) == ("FAIL", Step.RESERVE)
    assert again.passed, again
    assert again.spki_sha256 != first.spki_sha256
    assert valid_certificates(bench, IMEI) == 1


# --- a fault at every step


def cut_short(bench: Bench, port: ModemPort, how: str, at_step: Step, order: UnitOrder | None) -> Verdict | None:
    def cut(step: Step) -> None:
        if step is not at_step:
            return
        if how == "kill":
            raise Killed
        if how == "cable":
            port.pulled = True
        else:
            port.modem.boot()

    try:
        return burned(bench, port, order, cut)
    except Killed:
        return None


def resume(bench: Bench, modem: NordicModem | None, order: UnitOrder | None) -> Settlement:
    ports = {} if modem is None else {"0": ModemPort(modem)}
    return settle(
        bench.ca.folder, bench.ca, bench.ca.ledger, ports, lambda name: nullcontext(ports[name]),
        station="line-a", order=order or UnitOrder(), dialect=NORDIC_AT,
    )  # fmt: skip


@pytest.mark.parametrize("order", [None, WRITTEN], ids=["pass", "written"])
@pytest.mark.parametrize("at_step", STEPS)
@pytest.mark.parametrize("how", ["kill", "cable", "power"])
def test_a_modem_cut_short_at_any_step_ends_finished(
    bench: Bench, how: str, at_step: Step, order: UnitOrder | None
) -> None:
    """F8: one certificate at most that is valid, PASS only with a proof, and the books agree."""
    modem = NordicModem(signs=order is None)
    cut_short(bench, ModemPort(modem), how, at_step, order)
    resume(bench, modem, order)
    assert_reconciled(bench)
    units = bench.ca.ledger.units()
    if any(unit.state in (UnitState.RECORDED, UnitState.DELIVERED) for unit in units):
        wanted = UnitState.RECORDED if order is None else UnitState.DELIVERED
        assert [unit.state for unit in units] == [wanted]
        (row,) = bench.ca.ledger.certificates(subject=IMEI)
        leaf = x509.load_pem_x509_certificate(modem.credentials[CERTIFICATE])
        assert fingerprint_sha256(leaf) == row.fingerprint_sha256
    else:
        # Powered off, a modem forgets that its radio is to be off and refuses; that is a failed unit, and a new burn.
        assert how == "power" or at_step in STEPS[:3]
        assert valid_certificates(bench, IMEI) == 0
        assert burned(bench, ModemPort(modem), order).exit_code == 0


@pytest.mark.parametrize("how", ["kill", "cable"])
@pytest.mark.parametrize("at_step", STEPS[3:-1])
def test_a_modem_that_does_not_come_back_is_quarantined(bench: Bench, how: str, at_step: Step) -> None:
    """The deny twin: nobody at the ports, the row is closed, and no certificate stays valid."""
    cut_short(bench, ModemPort(NordicModem()), how, at_step, None)
    assert resume(bench, None, None).exit_code == 1
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.QUARANTINED]
    assert valid_certificates(bench, IMEI) == 0
    assert_reconciled(bench)


def test_a_modem_whose_key_was_replaced_meanwhile_is_quarantined(bench: Bench) -> None:
    """Ledger and listing tell two stories: no second certificate, the first one revoked."""
    modem = NordicModem()
    cut_short(bench, ModemPort(modem), "kill", Step.HASH, None)
    for command in (at.delete(TAG, CredentialType.CLIENT_KEY), at.keygen(TAG, "foreign")):
        modem.receive(command.data(shell=False))
    (verdict,) = resume(bench, modem, None).verdicts
    assert (verdict.word, verdict.step, verdict.outcome) == ("FAIL", Step.RECOVER, Outcome.QUARANTINED)
    assert valid_certificates(bench, IMEI) == 0


# --- the commands, as processes


def test_the_command_burns_a_modem_on_a_real_terminal(tmp_path: Path) -> None:
    """PASS and exit 0 for the one that proves itself; WRITTEN only with the option; the manifest reconciles."""
    ca, link = tmp_path / "CA", tmp_path / "modem"
    assert run_tool("mqtt-provision", "ca", "init", "--insecure-dev", "--dir", ca).returncode == 0
    command = ("mqtt-provision", "burn", "--dialect", "nordic-at", "--port", link, "--dir", ca)
    with on_a_terminal(NordicModem(), link):
        passed = run_tool(*command, "--id", "press-07", "--trace", tmp_path / "trace")
    in_a_shell = NordicModem("352656100000002", shell=True, signs=False)  # noqa: S604 - no process, a form of the line
    with on_a_terminal(in_a_shell, link):
        failed = run_tool(*command, "--id", "press-08")
        written = run_tool(*command, "--id", "press-08", "--accept-written", "--json")
    assert (passed.returncode, passed.stdout.split(":")[0]) == (0, "PASS press-07"), passed.stdout + passed.stderr
    assert (failed.returncode, failed.stdout.split(":")[0]) == (1, "FAIL press-08 at prove-keyed")
    assert (written.returncode, json.loads(written.stdout)["verdict"]) == (0, "WRITTEN"), written.stderr
    assert "AT%KEYGEN" in (tmp_path / "trace").read_text()
    manifest = tmp_path / "manifest.jsonl"
    assert run_tool("mqtt-provision", "manifest", "--dir", ca, "--out", manifest).returncode == 0
    head, *rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert head["counts"] == {
        "started": 3, "open": 0, "passed": 1, "delivered": 1, "failed": 1, "quarantined": 0,
    }  # fmt: skip
    assert [row["outcome"] for row in rows] == ["passed", "failed", "delivered"]
    verified = run_tool("mqtt-provision", "ledger", "verify", "--dir", ca, "--manifest", manifest)
    assert verified.returncode == 0, verified.stdout
    registry = tmp_path / "devices.jsonl"
    assert run_tool("mqtt-provision", "registry", "--dir", ca, "--out", registry).returncode == 0
    assert [json.loads(line)["id"] for line in registry.read_text().splitlines()] == ["press-07", "press-08"]


def test_what_is_no_modem_is_said_in_one_sentence(bench: Bench) -> None:
    """A port on which nobody answers AT: nothing is begun."""

    class Silent(NordicModem):
        def receive(self, data: bytes) -> bytes:
            return b"booting...\r\n"

    verdict = burned(bench, ModemPort(Silent()))
    assert (verdict.word, verdict.step, verdict.outcome) == ("FAIL", Step.HELLO, None)
    assert "answers AT" in verdict.reason
    assert bench.ca.ledger.attempts() == []


def test_the_table_of_dialects_fits_a_terminal_and_is_the_one_that_burns_ask(tmp_path: Path) -> None:
    """80 columns; the JSON says the same; what no modem can do is refused before it is touched."""
    text = run_tool("mqtt-provision", "dialects")
    rows = json.loads(run_tool("mqtt-provision", "dialects", "--json").stdout)
    assert max(len(line) for line in text.stdout.splitlines()) <= 80
    assert {row["dialect"] for row in rows} >= {"spp1", "nordic-at", "esp-secure-cert"}
    modem = next(row for row in rows if row["dialect"] == "nordic-at")
    assert modem["abilities"]["proof"] == "firmware with %JWT"
    assert modem["abilities"]["seal"] is False


def test_a_modem_is_not_asked_to_connect(bench: Bench) -> None:
    """`--gateway` needs an ability that the dialect does not declare: refused at HELLO, with its name."""
    modem = NordicModem()
    verdict = burned(bench, ModemPort(modem), UnitOrder(gateway=Gateway("localhost", 8883)))
    assert (verdict.word, verdict.step) == ("FAIL", Step.HELLO)
    assert "connect" in verdict.reason
    assert modem.credentials == {}


# --- the station


def work_order(folder: Path, *lines: str) -> Path:
    path = folder / "wo.toml"
    path.write_text("\n".join(('version = 1\norder = "WO-1"\nquantity = 1\ndialect = "nordic-at"', *lines)) + "\n")
    return path


@pytest.mark.parametrize(
    ("modem", "lines", "word"),
    [(NordicModem(), (), "PASS"), (NordicModem(signs=False), ("accept_written = true",), "WRITTEN")],
    ids=["pass", "written"],
)
def test_a_station_burns_modems_after_a_work_order(
    tmp_path: Path, modem: NordicModem, lines: tuple[str, ...], word: str
) -> None:
    """It sees the modem, burns it, and has what the order wants; a WRITTEN unit counts where it is accepted."""
    assert run_tool("mqtt-provision", "ca", "init", "--insecure-dev", "--dir", tmp_path / "CA").returncode == 0
    link, order = tmp_path / "modem", work_order(tmp_path, *lines)
    with on_a_terminal(modem, link):
        command = ("mqtt-provision", "station", "run", "--work-order", order, "--dir", tmp_path / "CA", "--port", link)
        done = run_tool(*command)
    assert (done.returncode, done.stdout.split()[1]) == (0, word), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("lines", "more", "words"),
    [(('seal = "final"',), (), "seal (it can be sealed)"), (('[conf]', 'a = "b"'), (), "conf ("),
     ((), ("--gateway", "localhost:8883"), "connect (")],
    ids=["seal", "conf", "gateway"],
)  # fmt: skip
def test_a_work_order_that_wants_what_no_modem_can_is_refused(
    tmp_path: Path, lines: tuple[str, ...], more: tuple[str, ...], words: str
) -> None:
    """Exit 78 with the name of what is missing, before a port is opened."""
    assert run_tool("mqtt-provision", "ca", "init", "--insecure-dev", "--dir", tmp_path / "CA").returncode == 0
    order = work_order(tmp_path, *lines)
    command = ("mqtt-provision", "station", "run", "--work-order", order, "--dir", tmp_path / "CA", "--port", "/dev/x")
    done = run_tool(*command, *more)
    assert (done.returncode, words in done.stderr) == (78, True), done.stderr
