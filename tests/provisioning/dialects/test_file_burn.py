"""Burning a device that exchanges files in a folder: WRITTEN at best, and nothing that is not ours is touched."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from device_sim.exchange_folder import boot
from mtls.csr import MAX_CSR_BYTES
from mtls.errors import Fault
from mtls.keystore import MAX_FILE_BYTES
from mtls.profiles import fingerprint_sha256
from provisioning.burning import BURNING, NEEDS, OPENING, Step, UnitOrder, Verdict, burn
from provisioning.dialects.file import FILE as DECLARED
from provisioning.dialects.table import FILE
from provisioning.folder import Folder
from provisioning.ledger import Outcome, UnitState
from provisioning.recovery import Settlement, settle
from provisioning.trace import Trace
from tests.device_sim.processes import run_tool
from tests.provisioning.dialects.books import Killed, assert_reconciled, valid_certificates
from tests.provisioning.judges import openssl_verify
from tests.provisioning.station_bench import Bench, open_bench

ID = "press-10"
WRITTEN = UnitOrder(device_id=ID, accept_written=True)
STEPS = [
    step
    for step, _ in (*OPENING, *BURNING)
    if NEEDS.get(step, frozenset()) <= DECLARED.abilities and step not in {Step.LABEL, Step.CONNECT}
]


@dataclass
class Stick:
    """A USB stick with a virtual device's files; while it is pulled out, its folder is gone."""

    path: Path
    key_file: Path

    def boot(self) -> str:
        return boot(self.path, self.key_file)

    def files(self) -> dict[str, bytes]:
        return {entry.name: entry.read_bytes() for entry in self.path.iterdir()} if self.path.is_dir() else {}

    def pull(self) -> None:
        for entry in self.path.iterdir():
            entry.unlink()
        self.path.rmdir()

    def plug(self, files: dict[str, bytes]) -> None:
        self.path.mkdir(exist_ok=True)
        for name, content in files.items():
            (self.path / name).write_bytes(content)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A station with a CA of its own."""
    with open_bench(tmp_path) as bench:
        yield bench


def new_stick(folder: Path, name: str = "stick") -> Stick:
    """A device that has laid its CSR into its folder."""
    stick = Stick(folder / name, folder / f"{name}.key")
    stick.path.mkdir()
    assert stick.boot().startswith("waits")
    return stick


@pytest.fixture
def stick(tmp_path: Path) -> Stick:
    """The device of this test."""
    return new_stick(tmp_path)


def burned(
    bench: Bench, stick: Stick, order: UnitOrder = WRITTEN, progress: Callable[[Step], None] | None = None
) -> Verdict:
    with Folder(str(stick.path)) as port:
        return burn(port, bench.ca, bench.ca.ledger, station="line-a", dialect=FILE, order=order, progress=progress)


def at_step(wanted: Step, action: Callable[[], object]) -> Callable[[Step], None]:
    """What happens in the folder while the station is at work."""

    def happens(step: Step) -> None:
        if step is wanted:
            action()

    return happens


# --- what is written


def test_a_device_in_a_folder_gets_its_certificate_and_is_written(bench: Bench, stick: Stick) -> None:
    """The judge is openssl; the verdict never says PASS, because nobody saw a reset or a signature of ours."""
    verdict = burned(bench, stick)
    assert (verdict.word, verdict.passed, verdict.exit_code) == ("WRITTEN", False, 0), verdict
    accepted, said = openssl_verify(stick.path / "device.crt", ca=stick.path / "ca.crt", purpose="sslclient")
    assert accepted, said
    assert stick.boot().startswith(f"{ID} has its certificate")
    leaf = x509.load_pem_x509_certificate(stick.files()["device.crt"])
    assert fingerprint_sha256(leaf) == verdict.fingerprint_sha256
    assert stick.files().keys() == {"device.csr", "device.crt", "ca.crt"}
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.DELIVERED]
    assert_reconciled(bench)


@pytest.mark.parametrize(
    ("order", "words"),
    [(UnitOrder(device_id=ID), "reset ("), (UnitOrder(accept_written=True), "does not say what it is called")],
    ids=["not-accepted", "no-id"],
)
def test_without_accept_written_or_an_id_nothing_is_begun(
    bench: Bench, stick: Stick, order: UnitOrder, words: str
) -> None:
    """The deny twin: no file, no attempt, no certificate."""
    before = stick.files()
    verdict = burned(bench, stick, order)
    assert (verdict.word, verdict.step, verdict.exit_code) == ("FAIL", Step.HELLO, 1)
    assert words in verdict.reason
    assert stick.files() == before
    assert bench.ca.ledger.attempts() == []
    assert valid_certificates(bench, ID) == 0


def rsa_csr() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM)


def tampered(pem: bytes) -> bytes:
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return bytes(der)


@pytest.mark.parametrize("kind", ["none", "empty", "half", "tampered", "rsa", "large", "link", "pipe", "folder"])
def test_what_is_no_csr_of_a_p256_key_is_refused_before_anything_is_begun(
    bench: Bench, stick: Stick, tmp_path: Path, kind: str
) -> None:
    """F2, and no link is followed: to a good CSR elsewhere as little as to a file that is none of ours."""
    csr = stick.path / "device.csr"
    good = csr.read_bytes()
    csr.unlink()
    if kind == "link":
        (tmp_path / "elsewhere.csr").write_bytes(good)
        csr.symlink_to(tmp_path / "elsewhere.csr")
    elif kind == "pipe":
        os.mkfifo(csr)
    elif kind == "folder":
        csr.mkdir()
    elif kind != "none":
        large = good + b"\n" * MAX_CSR_BYTES
        content = {"empty": b"", "half": good[:100], "tampered": tampered(good), "rsa": rsa_csr(), "large": large}
        csr.write_bytes(content[kind])
    verdict = burned(bench, stick)
    assert (verdict.word, verdict.step, verdict.outcome) == ("FAIL", Step.HELLO, None), verdict
    assert bench.ca.ledger.attempts() == []
    assert not (stick.path / "device.crt").exists()


# --- what lies there already


@pytest.mark.parametrize("name", ["device.crt", "ca.crt"])
@pytest.mark.parametrize("kind", ["foreign", "garbage", "large", "link", "dangling", "pipe"])
def test_what_stands_in_the_place_of_a_certificate_stays_and_is_reported(
    bench: Bench, stick: Stick, tmp_path: Path, kind: str, name: str
) -> None:
    """Another device's certificate, or a link that would have us write elsewhere; without it the CSR is burned."""
    place, outside = stick.path / name, tmp_path / "outside"
    foreign = new_stick(tmp_path, "foreign")
    assert burned(bench, foreign, UnitOrder(device_id="foreign", accept_written=True)).written
    outside.write_bytes(b"precious")
    if kind in ("link", "dangling"):
        place.symlink_to(outside if kind == "link" else tmp_path / "missing")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        content = {"foreign": foreign.files()["device.crt"], "garbage": b"\xff", "large": bytes(MAX_FILE_BYTES + 1)}
        place.write_bytes(content[kind])
    before = os.lstat(place)
    verdict = burned(bench, stick)
    assert (verdict.word, verdict.step, verdict.outcome) == ("FAIL", Step.KEYGEN, Outcome.FAILED), verdict
    assert name in verdict.reason
    assert ("a certificate for another key" in verdict.reason) == (kind == "foreign")
    assert (os.lstat(place).st_ino, os.lstat(place).st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert outside.read_bytes() == b"precious"
    assert not (tmp_path / "missing").exists()
    assert valid_certificates(bench, ID) == 0
    assert valid_certificates(bench, "foreign") == 1

    place.unlink()
    assert burned(bench, stick).written
    assert_reconciled(bench)


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize(("step", "name"), [(Step.WRITE_CHAIN, "device.crt"), (Step.WRITE_CA, "ca.crt")])
def test_what_appears_while_the_station_works_is_not_overwritten(
    bench: Bench, stick: Stick, tmp_path: Path, kind: str, step: Step, name: str
) -> None:
    """Somebody else writes into the folder: the unit fails and its certificate is revoked."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    place = stick.path / name

    def appear() -> None:
        place.symlink_to(outside) if kind == "link" else place.write_bytes(b"theirs")

    verdict = burned(bench, stick, progress=at_step(step, appear))
    assert (verdict.word, verdict.step, verdict.outcome) == ("FAIL", step, Outcome.FAILED), verdict
    assert outside.read_bytes() == b"precious"
    assert place.is_symlink() if kind == "link" else place.read_bytes() == b"theirs"
    assert valid_certificates(bench, ID) == 0
    assert_reconciled(bench)


@pytest.mark.parametrize("step", [Step.KEYGEN, Step.CSR, Step.WRITE_CHAIN, Step.WRITE_CA])
def test_a_csr_that_is_exchanged_on_the_way_gets_nothing(
    bench: Bench, stick: Stick, tmp_path: Path, step: Step
) -> None:
    """F7: another key in the folder is another device, and no certificate goes to it or stays valid."""
    other = new_stick(tmp_path, "other").files()
    verdict = burned(bench, stick, progress=at_step(step, lambda: stick.plug(other)))
    assert (verdict.word, verdict.step, verdict.outcome) == ("FAIL", step, Outcome.FAILED), verdict
    assert ("device.crt" in stick.files()) == (step is Step.WRITE_CA)
    assert valid_certificates(bench, ID) == 0
    assert_reconciled(bench)


@pytest.mark.parametrize("name", ["device.crt", "ca.crt"])
@pytest.mark.parametrize("how", ["alters", "loses"])
def test_what_does_not_read_back_as_it_was_written_fails(bench: Bench, stick: Stick, name: str, how: str) -> None:
    """F1: also where WRITTEN would be enough."""
    place = stick.path / name

    def spoil() -> None:
        place.write_bytes(place.read_bytes() + b"\n") if how == "alters" else place.unlink()

    verdict = burned(bench, stick, progress=at_step(Step.HASH, spoil))
    assert (verdict.word, verdict.step, verdict.outcome) == ("FAIL", Step.HASH, Outcome.FAILED), verdict
    assert valid_certificates(bench, ID) == 0


def test_a_key_is_certified_once_and_a_second_time_stops_the_line(bench: Bench, stick: Stick) -> None:
    """F3: a unit that came back brings a new key; with the old one it is refused, also without its certificate."""
    assert burned(bench, stick).written
    assert burned(bench, stick).step is Step.RESERVE
    bench.ca.ledger.retire(bench.ca.ledger.units()[0], "new owner")
    for name in ("device.crt", "ca.crt"):
        (stick.path / name).unlink()
    again = burned(bench, stick)
    assert (again.word, again.step, again.stop_line) == ("FAIL", Step.KEYGEN, True)

    stick.key_file.unlink()
    (stick.path / "device.csr").unlink()
    stick.boot()
    assert burned(bench, stick).written
    assert valid_certificates(bench, ID) == 1
    assert_reconciled(bench)


# --- a fault at every step


def cut_short(bench: Bench, stick: Stick, how: str, cut: Step) -> None:
    """Cut the burn at a step; a stick that loses power comes back without what the last step had written."""
    seen: list[dict[str, bytes]] = []

    def progress(step: Step) -> None:
        seen.append(stick.files())
        if step is cut:
            if how == "kill":
                raise Killed
            stick.pull()

    try:
        burned(bench, stick, progress=progress)
    except Killed:
        return
    if how == "power":
        stick.plug(seen[max(0, STEPS.index(cut) - 1)])
    elif how == "cable":
        stick.plug(seen[STEPS.index(cut)])


def resume(bench: Bench, stick: Stick, *, accept_written: bool = True) -> Settlement:
    order = UnitOrder(accept_written=accept_written)
    return settle(
        bench.ca.folder, bench.ca, bench.ca.ledger, [str(stick.path)], Folder,
        station="line-a", order=order, dialect=FILE,
    )  # fmt: skip


@pytest.mark.parametrize("cut", STEPS)
@pytest.mark.parametrize("how", ["kill", "cable", "power"])
def test_a_folder_cut_short_at_any_step_ends_written(bench: Bench, stick: Stick, how: str, cut: Step) -> None:
    """F8: one certificate, the one in the folder, and the books agree; before the reservation nothing was begun."""
    cut_short(bench, stick, how, cut)
    resume(bench, stick)
    assert_reconciled(bench)
    units = bench.ca.ledger.units()
    assert bool(units) == (cut not in STEPS[: 3 if how == "kill" else 2])
    if not units:
        assert stick.files().keys() == {"device.csr"}
        assert burned(bench, stick).written
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.DELIVERED]
    (row,) = bench.ca.ledger.certificates(subject=ID)
    leaf = x509.load_pem_x509_certificate(stick.files()["device.crt"])
    assert fingerprint_sha256(leaf) == row.fingerprint_sha256
    assert openssl_verify(stick.path / "device.crt", ca=stick.path / "ca.crt")[0]


@pytest.mark.parametrize("cut", STEPS[3:-1])
@pytest.mark.parametrize("how", ["pulled", "another", "lost"])
def test_a_folder_that_does_not_come_back_is_quarantined(
    bench: Bench, stick: Stick, tmp_path: Path, how: str, cut: Step
) -> None:
    """The deny twin: gone, with another device's CSR in it, or without any; no certificate stays valid."""
    cut_short(bench, stick, "pulled" if how == "pulled" else "kill", cut)
    if how != "pulled":
        stick.pull()
        stick.plug(new_stick(tmp_path, "other").files() if how == "another" else {})
    before = stick.files()
    assert resume(bench, stick).exit_code == 1
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.QUARANTINED]
    assert stick.files() == before
    assert valid_certificates(bench, ID) == 0
    assert_reconciled(bench)


def test_a_full_stick_is_an_interruption_and_the_unit_goes_on_with_its_key(
    bench: Bench, stick: Stick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key is certified once, so a disk without room must not cost it: open, and continued after a tidy-up."""

    def full(path: Path, data: bytes) -> None:
        raise Fault(f"cannot write {path}") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("provisioning.folder.write_public", full)
        verdict = burned(bench, stick)
    assert (verdict.step, verdict.outcome) == (Step.WRITE_CHAIN, Outcome.OPEN)
    assert f"cannot write {stick.path}/device.crt: no space left on device" in verdict.reason
    assert burned(bench, stick).written
    assert len(bench.ca.ledger.certificates(subject=ID)) == 1
    assert_reconciled(bench)


def test_a_resume_that_forgot_to_accept_written_costs_no_unit(bench: Bench, stick: Stick) -> None:
    """It could continue nothing, so it does not quarantine either; with the option the unit is finished."""
    cut_short(bench, stick, "kill", Step.WRITE_CA)
    with pytest.raises(Fault, match="cannot do what is asked"):
        resume(bench, stick, accept_written=False)
    assert [unit.state for unit in bench.ca.ledger.units()] == [UnitState.ISSUED]
    assert valid_certificates(bench, ID) == 1
    assert resume(bench, stick).exit_code == 0
    assert_reconciled(bench)


def test_a_private_key_that_lies_in_the_folder_is_neither_taken_nor_told(
    bench: Bench, stick: Stick, tmp_path: Path
) -> None:
    """F9: trace, ledger and every other file of the station are searched for it."""
    key = stick.key_file.read_bytes()
    (stick.path / "device.key").write_bytes(key)
    with Trace.open(tmp_path / "trace") as trace, Folder(str(stick.path)) as port:
        burn(port, bench.ca, bench.ca.ledger, station="line-a", dialect=FILE, order=WRITTEN, trace=trace)
    secret = key.splitlines()[1]
    searched = [tmp_path / "trace", *(path for path in (tmp_path / "ca").rglob("*") if path.is_file())]
    assert [path for path in searched if secret in path.read_bytes()] == []
    assert b"device.crt" in (tmp_path / "trace").read_bytes()
    assert b"device.key" not in (tmp_path / "trace").read_bytes()


# --- the commands, as processes


def test_the_commands_burn_a_virtual_device_through_a_folder(tmp_path: Path) -> None:
    """FAIL without the option, WRITTEN with it; the device agrees; manifest, labels and registry know the unit."""
    ca, folder, key = tmp_path / "CA", tmp_path / "exchange", tmp_path / "device.key"
    folder.mkdir()
    assert run_tool("mqtt-provision", "ca", "init", "--insecure-dev", "--dir", ca).returncode == 0
    assert "waits for" in run_tool("device-sim", "virtual-folder", folder, "--key", key).stdout
    command = ("mqtt-provision", "burn", "--dialect", "file", "--port", folder, "--dir", ca, "--id", ID)
    failed = run_tool(*command)
    written = run_tool(*command, "--accept-written", "--json", "--trace", tmp_path / "trace")
    booted = run_tool("device-sim", "virtual-folder", folder, "--key", key)
    assert (failed.returncode, "--accept-written" in failed.stderr) == (1, True), failed.stdout
    assert (written.returncode, json.loads(written.stdout)["verdict"]) == (0, "WRITTEN"), written.stderr
    assert (booted.returncode, booted.stdout[: len(ID)]) == (0, ID), booted.stderr
    assert "device.crt" in (tmp_path / "trace").read_text()
    manifest, registry = tmp_path / "manifest.jsonl", tmp_path / "devices.jsonl"
    assert run_tool("mqtt-provision", "manifest", "--dir", ca, "--out", manifest).returncode == 0
    verified = run_tool("mqtt-provision", "ledger", "verify", "--dir", ca, "--manifest", manifest)
    assert verified.returncode == 0, verified.stdout
    assert run_tool("mqtt-provision", "registry", "--dir", ca, "--out", registry).returncode == 0
    assert [json.loads(line)["id"] for line in registry.read_text().splitlines()] == [ID]
    command = ("mqtt-provision", "resume", "--dialect", "file", "--port", folder, "--dir", ca)
    forgotten, settled = run_tool(*command), run_tool(*command, "--accept-written")
    assert (forgotten.returncode, "--accept-written" in forgotten.stderr) == (1, True)
    assert (settled.returncode, settled.stdout) == (0, "nothing was unfinished\n"), settled.stderr


@pytest.mark.parametrize("what", ["another-key", "another-ca", "no-certificate"])
def test_a_virtual_device_refuses_what_is_not_for_it(bench: Bench, stick: Stick, tmp_path: Path, what: str) -> None:
    """The deny twin of its `has its certificate`: exit 1, and nothing in the folder is changed."""
    other = new_stick(tmp_path, "other")
    (tmp_path / "elsewhere").mkdir()
    with open_bench(tmp_path / "elsewhere") as elsewhere:
        assert burned(elsewhere, other).written
    assert burned(bench, stick).written
    taken = {"another-key": ("device.crt", "device.crt"), "another-ca": ("ca.crt", "ca.crt")}
    name, source = taken.get(what, ("device.crt", "device.csr"))
    (stick.path / name).write_bytes(other.files()[source])
    before = stick.files()
    booted = run_tool("device-sim", "virtual-folder", stick.path, "--key", stick.key_file)
    assert (booted.returncode != 0, booted.stdout) == (True, ""), booted.stderr
    assert str(stick.path / name) in booted.stderr
    assert stick.files() == before


def test_a_work_order_for_folders_is_refused(tmp_path: Path) -> None:
    """A station waits for devices to come and go, which a folder does not show: exit 78 before a port is opened."""
    assert run_tool("mqtt-provision", "ca", "init", "--insecure-dev", "--dir", tmp_path / "CA").returncode == 0
    order = tmp_path / "wo.toml"
    order.write_text('version = 1\norder = "WO-1"\nquantity = 1\ndialect = "file"\naccept_written = true\n')
    command = ("mqtt-provision", "station", "run", "--work-order", order, "--dir", tmp_path / "CA")
    done = run_tool(*command, "--port", tmp_path / "none")
    assert (done.returncode, "watch (a station sees it come and go)" in done.stderr) == (78, True), done.stderr


def test_an_image_is_declared_as_one_and_is_no_dialect_to_burn_in(tmp_path: Path) -> None:
    """esp-secure-cert: `dialects` says so, and `burn` names the dialects that there are."""
    rows = json.loads(run_tool("mqtt-provision", "dialects", "--json").stdout)
    can_burn = {row["dialect"]: row["abilities"]["burn"] for row in rows}
    assert can_burn == {"spp1": True, "nordic-at": True, "file": True, "esp-secure-cert": False}
    command = ("mqtt-provision", "burn", "--dialect", "esp-secure-cert", "--port", tmp_path / "x", "--dir", tmp_path)
    refused = run_tool(*command)
    assert refused.returncode == 2
    assert all(name in refused.stderr for name in ("spp1", "nordic-at", "file"))
