"""The commands as an operator meets them: files and exit codes, results on stdout, one sentence when it goes wrong."""

import csv
import io
import json
import os
import pty
import resource
import select
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from mtls.keystore import load_key, new_key
from mtls.profiles import spki_sha256
from provisioning.ca import CertificateAuthority
from provisioning.cli import cli
from provisioning.ledger import Ledger, UnitState
from tests.provisioning.conftest import PASSPHRASE
from tests.provisioning.judges import handshake, openssl_verify

Run = Callable[..., Result]
PROGRAM = [sys.executable, "-c", "from provisioning.cli import main; main()"]


def run(*arguments: object) -> Result:
    """One command in this process; anything but a clean exit is a failure of the test."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def program(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    """One command as a process of its own, without a terminal; a traceback is a failure of the test."""
    usual = {"capture_output": True, "text": True, "timeout": 60, "stdin": subprocess.DEVNULL}
    command = [*PROGRAM, *(str(argument) for argument in arguments)]
    done: subprocess.CompletedProcess[str] = subprocess.run(command, check=False, **usual | settings)  # type: ignore[call-overload]
    assert "Traceback" not in (done.stderr or "")
    return done


def assert_one_sentence(stderr: str) -> None:
    """`error:` with one lower-case sentence without a period, then `hint:`."""
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    assert not errors[0].endswith(".")
    assert any(line.startswith("hint: ") for line in stderr.splitlines()), stderr


@pytest.fixture
def dev_ca(tmp_path: Path) -> Path:
    """An unencrypted CA made by the command."""
    folder = tmp_path / "CA"
    assert run("ca", "init", "--dir", folder, "--insecure-dev").exit_code == 0
    return folder


def typed(*arguments: object, lines: list[bytes]) -> tuple[int, bytes]:
    """One command on a pseudo-terminal, each prompt answered by the next line; (exit code, all it showed)."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *(str(argument) for argument in arguments)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,  # no controlling terminal: the prompt goes to stdin's, which is this one
    )
    os.close(terminal)
    seen, prompt = b"", b""
    deadline = time.monotonic() + 60
    while select.select([controller], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            chunk = os.read(controller, 4096)
        except OSError:  # the other side has closed the terminal
            break
        seen, prompt = seen + chunk, prompt + chunk
        if lines and prompt.endswith(b": "):
            os.write(controller, lines.pop(0) + b"\n")
            prompt = b""
    os.close(controller)
    return process.wait(timeout=10), seen


# --- the way things go


def test_from_init_to_a_mutual_tls_handshake(tmp_path: Path, passphrase_file: Path) -> None:
    """init, server, issue, crl: the files of the contract, and they work with the standard library's TLS."""
    common = ("--dir", tmp_path / "CA", "--passphrase-file", passphrase_file)
    assert run("ca", "init", *common, "--name", "Plant 7").exit_code == 0
    assert run("server", *common, "--dns", "gateway.test", "--ip", "127.0.0.1", "--out", tmp_path / "gw").exit_code == 0
    assert run("issue", "dev-1", *common, "--out", tmp_path / "dev").exit_code == 0
    assert run("crl", *common, "--out", tmp_path / "crl.pem").exit_code == 0
    assert {path.name for path in (tmp_path / "gw").iterdir()} == {"server.crt", "server.key", "ca.crt"}
    assert {path.name for path in (tmp_path / "dev").iterdir()} == {"dev-1.crt", "dev-1.key", "ca.crt"}
    assert stat.S_IMODE((tmp_path / "dev" / "dev-1.key").stat().st_mode) == 0o600
    leaf, ca = tmp_path / "dev" / "dev-1.crt", tmp_path / "dev" / "ca.crt"
    accepted, said = openssl_verify(leaf, ca=ca, crl=tmp_path / "crl.pem", purpose="sslclient")
    assert accepted, said
    server = (tmp_path / "gw" / "server.crt", tmp_path / "gw" / "server.key")
    assert handshake(server=server, client=(leaf, tmp_path / "dev" / "dev-1.key"), ca=ca) == "dev-1"


def test_issue_names_its_files_on_stdout_and_the_date_on_stderr(dev_ca: Path, tmp_path: Path) -> None:
    """Results can be piped, narration is for people."""
    result = run("issue", "dev-1", "--dir", dev_ca, "--out", tmp_path / "dev")
    out = tmp_path / "dev"
    assert result.stdout.split() == [str(out / "dev-1.crt"), str(out / "dev-1.key"), str(out / "ca.crt")]
    assert "certified until" in result.stderr


def test_two_devices_share_an_output_folder(dev_ca: Path, tmp_path: Path) -> None:
    """ca.crt is the same; each has its own certificate and key."""
    for name in ("dev-1", "dev-2"):
        assert run("issue", name, "--dir", dev_ca, "--out", tmp_path / "devs").exit_code == 0
    assert len(list((tmp_path / "devs").iterdir())) == 5


def test_a_service_carries_its_organizational_unit(dev_ca: Path, tmp_path: Path) -> None:
    """What a policy's `match = { ou = ... }` reads."""
    arguments = ("--dir", dev_ca, "--out", tmp_path / "svc", "--profile", "service", "--ou", "services")
    assert run("issue", "historian", *arguments).exit_code == 0
    cert = x509.load_pem_x509_certificate((tmp_path / "svc" / "historian.crt").read_bytes())
    assert "OU=services" in cert.subject.rfc4514_string()


def test_a_csr_is_certified_under_the_name_of_the_command(dev_ca: Path, tmp_path: Path) -> None:
    """F2: no key file is made, the CSR's own name does not count."""
    key = new_key()
    name = x509.Name.from_rfc4514_string("CN=admin")
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    (tmp_path / "dev.csr").write_bytes(csr.public_bytes(Encoding.PEM))
    result = run("issue", "dev-1", "--dir", dev_ca, "--out", tmp_path / "dev", "--csr", tmp_path / "dev.csr")
    assert result.exit_code == 0
    assert {path.name for path in (tmp_path / "dev").iterdir()} == {"dev-1.crt", "ca.crt"}
    cert = x509.load_pem_x509_certificate((tmp_path / "dev" / "dev-1.crt").read_bytes())
    assert cert.subject.rfc4514_string() == "CN=dev-1"
    assert spki_sha256(cert) == spki_sha256(key.public_key())


def test_a_tampered_csr_is_not_certified(dev_ca: Path, tmp_path: Path) -> None:
    """F2: exit 1, no file, no serial spent."""
    name = x509.Name.from_rfc4514_string("CN=wished")
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(new_key(), hashes.SHA256())
    (tmp_path / "dev.csr").write_bytes(csr.public_bytes(Encoding.DER).replace(b"wished", b"wisher"))
    result = run("issue", "dev-1", "--dir", dev_ca, "--out", tmp_path / "dev", "--csr", tmp_path / "dev.csr")
    assert result.exit_code == 1
    assert_one_sentence(result.stderr)
    assert not (tmp_path / "dev").exists()
    with Ledger.open(dev_ca / "ledger.db") as ledger:
        assert ledger.certificates(subject="dev-1") == []


def test_revoke_and_crl_make_openssl_refuse_the_device(dev_ca: Path, tmp_path: Path) -> None:
    """R1 at the source, by id and by serial in the form that people paste."""
    for name in ("dev-1", "dev-2", "dev-3"):
        run("issue", name, "--dir", dev_ca, "--out", tmp_path / "devs")
    shown = json.loads(run("ledger", "show", "dev-2", "--dir", dev_ca, "--json").stdout)
    serial = shown["certificates"][0]["certificate_serial"]
    pasted = ":".join(serial[i : i + 2] for i in range(0, len(serial), 2)).upper()
    assert run("revoke", "dev-1", "--dir", dev_ca, "--reason", "keyCompromise").exit_code == 0
    assert run("revoke", "--certificate-serial", pasted, "--dir", dev_ca).exit_code == 0
    assert run("crl", "--dir", dev_ca, "--out", tmp_path / "crl.pem").exit_code == 0
    verdicts = {
        name: openssl_verify(tmp_path / "devs" / f"{name}.crt", ca=dev_ca / "ca.crt", crl=tmp_path / "crl.pem")[0]
        for name in ("dev-1", "dev-2", "dev-3")
    }
    assert verdicts == {"dev-1": False, "dev-2": False, "dev-3": True}


def test_crl_days_set_the_next_update(dev_ca: Path, tmp_path: Path) -> None:
    """--days holds for the issuing CA's CRL; the root's is never shorter than a year."""
    result = run("crl", "--dir", dev_ca, "--out", tmp_path / "crl.pem", "--days", "30", "--json")
    assert result.exit_code == 0
    crls = [x509.load_pem_x509_crl(block) for block in _pem_blocks((tmp_path / "crl.pem").read_bytes())]
    root, issuing = ((crl.next_update_utc, crl.last_update_utc) for crl in crls)
    assert root[0] is not None
    assert issuing[0] is not None
    assert (root[0] - root[1]).days >= 365
    assert 30 <= (issuing[0] - issuing[1]).days <= 31
    assert [line["number"] for line in json.loads(result.stdout)["crls"]] == [2, 2]


def _pem_blocks(data: bytes) -> list[bytes]:
    end = b"-----END X509 CRL-----\n"
    return [block + end for block in data.split(end) if block.strip()]


def test_inspect_explains_and_its_exit_code_is_the_verdict(dev_ca: Path, tmp_path: Path) -> None:
    """0 for what is right, 1 for what is wrong, JSON when asked."""
    run("issue", "dev-1", "--dir", dev_ca, "--out", tmp_path / "dev")
    good = run("inspect", tmp_path / "dev" / "dev-1.crt", "--ca", dev_ca / "ca.crt")
    assert (good.exit_code, "nothing wrong found" in good.stdout) == (0, True)
    (tmp_path / "junk").write_text("junk")
    bad = run("inspect", tmp_path / "junk", "--json")
    assert (bad.exit_code, json.loads(bad.stdout)["ok"]) == (1, False)


@pytest.mark.parametrize("serial", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_a_serial_that_is_a_formula_is_text_in_the_exported_table(dev_ca: Path, serial: str) -> None:
    """The device chose it, and a spreadsheet would run it; in JSON it stands as it is."""
    with Ledger.open(dev_ca / "ledger.db") as ledger:
        ledger.reserve(serial, "uid-1", "press-07", "station-1")
    (row,) = csv.DictReader(io.StringIO(run("ledger", "export", "--dir", dev_ca).stdout))
    assert (row["hardware_serial"], row["device_id"]) == (f"'{serial}", "press-07")
    (unit,) = json.loads(run("ledger", "export", "--dir", dev_ca, "--json").stdout)["units"]
    assert unit["hardware_serial"] == serial


def test_the_ledger_is_listed_shown_and_exported(dev_ca: Path, tmp_path: Path) -> None:
    """Tables for people, JSON and CSV for programs, and the story of one unit with its history."""
    run("issue", "dev-1", "--dir", dev_ca, "--out", tmp_path / "dev")
    with Ledger.open(dev_ca / "ledger.db") as ledger:
        unit = ledger.reserve("SN-\x1b[31m1", "uid-1", "press-07", "station-1")
        ledger.fail(ledger.advance(unit, UnitState.KEYED, spki_sha256="a" * 64), "csr", "no answer")
    listed = run("ledger", "list", "--dir", dev_ca)
    assert "press-07" in listed.stdout
    assert "dev-1" in listed.stdout
    assert "\x1b" not in listed.stdout
    story = json.loads(run("ledger", "show", "press-07", "--dir", dev_ca, "--json").stdout)
    assert [event["kind"] for event in story["events"]] == ["unit_reserved", "unit_keyed", "unit_failed"]
    table = run("ledger", "export", "--dir", dev_ca).stdout
    assert table.splitlines()[0].startswith("id,hardware_serial,uid,device_id")
    assert set(json.loads(run("ledger", "export", "--dir", dev_ca, "--json").stdout)) == {
        "units",
        "certificates",
        "events",
    }


def test_an_insecure_ca_is_named_on_every_use(dev_ca: Path, tmp_path: Path) -> None:
    """In the file names and on stderr of every command that opens it."""
    for command in (
        ("issue", "dev-1", "--out", tmp_path / "dev"),
        ("server", "--dns", "a.test", "--out", tmp_path / "gw"),
        ("crl", "--out", tmp_path / "crl.pem"),
        ("revoke", "dev-1"),
        ("ledger", "list"),
    ):
        result = run(*command, "--dir", dev_ca)
        assert result.exit_code == 0
        assert "INSECURE-DEV" in result.stderr


# --- usage


@pytest.mark.parametrize(
    "command",
    ["", "ca", "ca init", "server", "issue", "revoke", "crl", "inspect", "burn", "ledger", "ledger list"],
)
def test_help_opens_with_real_examples(command: str) -> None:
    """An example stands above the options, in 80 columns."""
    result = run(*command.split(), "--help")
    above = result.output.split("Options:")[0]
    assert result.exit_code == 0
    assert f"  mqtt-provision {command}".rstrip() in above


@pytest.mark.parametrize(
    "arguments",
    [
        ["issue"],
        ["issue", "dev-1"],
        ["nonsense"],
        ["revoke", "--dir", "CA"],
        ["revoke", "dev-1", "--certificate-serial", "01", "--dir", "CA"],
        ["revoke", "dev-1", "--dir", "CA", "--reason", "boredom"],
        ["server", "--dir", "CA", "--out", "x"],
        ["issue", "dev-1", "--dir", "CA", "--out", "x", "--profile", "root-ca"],
        ["crl", "--dir", "CA", "--out", "x", "--days", "0"],
        ["ca", "init", "--dir", "CA", "--insecure-dev", "--passphrase-file", "F"],
        ["burn", "--dir", "CA"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    """Missing, contradicting and unknown arguments."""
    assert run(*arguments).exit_code == 2


def test_no_option_takes_a_passphrase_itself() -> None:
    """F9: nothing secret on the command line, where every process can read it."""
    assert run("issue", "dev-1", "--dir", "CA", "--out", "x", "--passphrase", "secret").exit_code == 2


# --- bad input: exit codes, one sentence, nothing half-written


@pytest.mark.parametrize("name", ["Dev-1", "a/b", "a+b", "#", "$sys", "a b", "", "x" * 65, "a\nb", "..", "\u202e"])
def test_an_id_that_cannot_be_issued_is_refused(dev_ca: Path, tmp_path: Path, name: str) -> None:
    """F11, S5: exit 1, a hint, no file and no serial."""
    result = run("issue", "--dir", dev_ca, "--out", tmp_path / "dev", "--", name)
    assert result.exit_code == 1
    assert_one_sentence(result.stderr)
    assert not (tmp_path / "dev").exists()


def test_a_nul_in_an_id_is_refused(dev_ca: Path, tmp_path: Path) -> None:
    """S5: a NUL would end the name for C programs."""
    result = run("issue", "dev\0admin", "--dir", dev_ca, "--out", tmp_path / "dev")
    assert result.exit_code == 1
    assert "\0" not in result.stderr


def test_upper_case_ids_are_answered_with_the_lower_case_one(dev_ca: Path, tmp_path: Path) -> None:
    """F11: the hint is the id to use."""
    assert "ids are lower-case: press-07" in run("issue", "PRESS-07", "--dir", dev_ca, "--out", tmp_path).stderr


def test_nothing_is_overwritten(dev_ca: Path, tmp_path: Path) -> None:
    """F4: neither a key found by name is used, nor a file replaced, nor a CA made again."""
    run("issue", "dev-1", "--dir", dev_ca, "--out", tmp_path / "dev")
    before = {path: path.read_bytes() for path in (tmp_path / "dev").iterdir()}
    again = run("issue", "dev-1", "--dir", dev_ca, "--out", tmp_path / "dev")
    assert again.exit_code == 1
    assert_one_sentence(again.stderr)
    assert {path: path.read_bytes() for path in (tmp_path / "dev").iterdir()} == before
    assert run("ca", "init", "--dir", dev_ca, "--insecure-dev").exit_code == 1


def test_a_key_lying_there_is_never_used(dev_ca: Path, tmp_path: Path) -> None:
    """F4: a key somebody put into the folder beforehand is refused, not certified."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "dev-1.key").write_text("planted")
    result = run("issue", "dev-1", "--dir", dev_ca, "--out", tmp_path / "dev")
    assert result.exit_code == 1
    assert [path.name for path in (tmp_path / "dev").iterdir()] == ["dev-1.key"]


def test_the_folder_of_another_ca_is_left_alone(dev_ca: Path, tmp_path: Path) -> None:
    """A ca.crt of other contents would make one of the two devices trust the wrong CA."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "ca.crt").write_text("other")
    result = run("issue", "dev-1", "--dir", dev_ca, "--out", tmp_path / "dev")
    assert result.exit_code == 1
    assert "belongs to another CA" in result.stderr
    assert (tmp_path / "dev" / "ca.crt").read_text() == "other"


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (PASSPHRASE, 0o644, "can be read by others"),
        (b"", 0o600, "exactly one line"),
        (b"two\nlines\n", 0o600, "exactly one line"),
        (b"wrong one", 0o600, "passphrase"),
        (b"x" * 5000, 0o600, "larger than"),
    ],
    ids=["loose", "empty", "two lines", "wrong", "huge"],
)
def test_a_bad_passphrase_file_exits_78(ca_folder: Path, tmp_path: Path, content: bytes, mode: int, said: str) -> None:
    """Configuration, not an answer: exit 78; nothing is written and no passphrase echoed."""
    path = tmp_path / "bad-passphrase"
    path.write_bytes(content)
    path.chmod(mode)
    result = run("issue", "dev-1", "--dir", ca_folder, "--out", tmp_path / "dev", "--passphrase-file", path)
    assert result.exit_code == 78
    assert said in result.stderr
    assert_one_sentence(result.stderr)
    assert not (tmp_path / "dev").exists()


def test_a_short_passphrase_makes_no_ca(tmp_path: Path) -> None:
    """Eight characters at least."""
    path = tmp_path / "p"
    path.touch(mode=0o600)
    path.write_text("short")
    result = run("ca", "init", "--dir", tmp_path / "CA", "--passphrase-file", path)
    assert result.exit_code == 78
    assert not (tmp_path / "CA").exists()


def test_without_a_terminal_and_a_file_there_is_no_passphrase(ca_folder: Path, tmp_path: Path) -> None:
    """A cron job gets a sentence, not a prompt that waits for ever; the environment does not count."""
    environment = os.environ | {"MQTT_PROVISION_PASSPHRASE": PASSPHRASE.decode(), "PASSPHRASE": PASSPHRASE.decode()}
    done = program("issue", "dev-1", "--dir", ca_folder, "--out", tmp_path / "dev", env=environment)
    assert done.returncode == 78
    assert "no terminal" in done.stderr
    assert_one_sentence(done.stderr)


def test_the_passphrase_is_typed_on_a_terminal(tmp_path: Path) -> None:
    """A real pseudo-terminal: asked twice for a new CA, once for signing, and never echoed."""
    folder = tmp_path / "CA"
    code, seen = typed("ca", "init", "--dir", folder, lines=[PASSPHRASE, PASSPHRASE])
    assert (code, PASSPHRASE in seen) == (0, False), seen
    assert load_key(folder / "issuing.key", PASSPHRASE)
    code, seen = typed("issue", "dev-1", "--dir", folder, "--out", tmp_path / "dev", lines=[PASSPHRASE])
    assert (code, PASSPHRASE in seen) == (0, False), seen
    code, seen = typed("ca", "init", "--dir", tmp_path / "other", lines=[PASSPHRASE, b"something else"])
    assert (code, b"differ" in seen) == (78, True), seen
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("damage", "code"),
    [("missing", 1), ("ledger", 1), ("certificate", 78), ("key", 78), ("loose key", 78), ("cut key", 78)],
)
def test_a_damaged_ca_is_one_sentence(dev_ca: Path, tmp_path: Path, damage: str, code: int) -> None:
    """Exit codes as documented, no traceback, no output folder left behind."""
    key = dev_ca / "issuing.INSECURE-DEV.key"
    actions: dict[str, Callable[[], object]] = {
        "missing": lambda: dev_ca.rename(tmp_path / "elsewhere"),
        "ledger": lambda: (dev_ca / "ledger.db").write_bytes(b"junk" * 5000),
        "certificate": lambda: (dev_ca / "issuing.crt").write_bytes(b"junk"),
        "key": key.unlink,
        "loose key": lambda: key.chmod(0o644),
        "cut key": lambda: key.write_bytes(key.read_bytes()[:100]),
    }
    actions[damage]()
    result = run("issue", "dev-1", "--dir", dev_ca, "--out", tmp_path / "dev")
    assert result.exit_code == code
    assert_one_sentence(result.stderr)
    assert not (tmp_path / "dev").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["revoke", "nobody"],
        ["revoke", "--certificate-serial", "00ff"],
        ["revoke", "--certificate-serial", "xyz"],
        ["ledger", "show", "nobody"],
    ],
    ids=" ".join,
)
def test_asking_for_what_is_not_there_exits_1(dev_ca: Path, arguments: list[str]) -> None:
    """The answer is no, with the command that shows what there is."""
    result = run(*arguments, "--dir", dev_ca)
    assert result.exit_code == 1
    assert_one_sentence(result.stderr)


def test_a_port_that_is_no_device_is_one_sentence(dev_ca: Path, tmp_path: Path) -> None:
    """burn: a missing port and a plain file."""
    (tmp_path / "file").touch()
    for port in (tmp_path / "missing", tmp_path / "file"):
        result = run("burn", "--port", port, "--dir", dev_ca, "--id", "dev-1")
        assert result.exit_code == 1
        assert_one_sentence(result.stderr)
    assert json.loads(run("ledger", "list", "--dir", dev_ca, "--json").stdout)["units"] == []


def test_a_wrong_passphrase_shows_before_a_device_is_touched(ca_folder: Path, tmp_path: Path) -> None:
    """burn: the port is not even opened, no unit is reserved and failed."""
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("wrong one")
    result = run("burn", "--port", tmp_path / "missing", "--dir", ca_folder, "--passphrase-file", wrong)
    assert result.exit_code == 78
    assert "missing" not in result.stderr


def test_a_folder_that_cannot_be_made_is_one_sentence(dev_ca: Path, tmp_path: Path) -> None:
    """--out below a plain file."""
    (tmp_path / "file").touch()
    result = run("issue", "dev-1", "--dir", dev_ca, "--out", tmp_path / "file" / "dev")
    assert result.exit_code == 1
    assert_one_sentence(result.stderr)


def test_a_full_standard_output_is_no_traceback(dev_ca: Path) -> None:
    """`ledger list > /dev/full`: an error and a non-zero exit."""
    with Path("/dev/full").open("w") as full:
        done = program("ledger", "list", "--dir", dev_ca, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode != 0


# --- a full disk


def limited(file_bytes: int) -> Callable[[], None]:
    """Let no file grow beyond this: what a full disk looks like to a program, at a byte of our choice."""

    def limit() -> None:
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # what is measured in the program would not fit either
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return limit


@pytest.mark.parametrize("file_bytes", [0, 100, 300, 700, 4096, 20_000, 60_000])
def test_init_on_a_full_disk_leaves_nothing(tmp_path: Path, file_bytes: int) -> None:
    """Whichever file it is that does not fit."""
    (tmp_path / "at").mkdir()
    folder = tmp_path / "at" / "CA"
    done = program("ca", "init", "--dir", folder, "--insecure-dev", preexec_fn=limited(file_bytes))
    assert done.returncode == 1
    assert_one_sentence(done.stderr)
    assert list((tmp_path / "at").iterdir()) == []


@pytest.mark.parametrize("file_bytes", [0, 100, 300, 1200])
def test_issue_on_a_full_disk_leaves_no_files(dev_ca: Path, tmp_path: Path, file_bytes: int) -> None:
    """Key, certificate and folder are taken back; afterwards the same command works."""
    arguments = ("issue", "dev-1", "--dir", dev_ca, "--out", tmp_path / "dev")
    done = program(*arguments, preexec_fn=limited(file_bytes))
    assert done.returncode == 1
    assert_one_sentence(done.stderr)
    assert not (tmp_path / "dev").exists()
    assert program(*arguments).returncode == 0
    assert openssl_verify(tmp_path / "dev" / "dev-1.crt", ca=dev_ca / "ca.crt")[0]


def test_a_certificate_that_could_not_be_written_is_revoked(dev_ca: Path, tmp_path: Path) -> None:
    """F8: signed, then the disk was full: the next CRL lists it and no file of it exists."""
    out = tmp_path / "dev"
    out.mkdir()
    (out / ".blocker").touch()
    script = (
        "from provisioning import delivery\n"
        "from mtls.errors import Fault\n"
        "def full(path, data):\n"
        "    raise Fault(f'cannot write {path}: No space left on device', hint='free space')\n"
        "delivery.write_public = full\n"
        "from provisioning.cli import main; main()\n"
    )
    command = [sys.executable, "-c", script, "issue", "dev-1", "--dir", str(dev_ca), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert [path.name for path in out.iterdir()] == [".blocker"]
    with Ledger.open(dev_ca / "ledger.db") as ledger:
        assert [row.state for row in ledger.certificates(subject="dev-1")] == ["revoked"]


def test_crl_on_a_full_disk_keeps_the_old_one(dev_ca: Path, tmp_path: Path) -> None:
    """What a gateway fetches is never half a CRL."""
    out = tmp_path / "crl.pem"
    run("crl", "--dir", dev_ca, "--out", out)
    before = out.read_bytes()
    done = program("crl", "--dir", dev_ca, "--out", out, preexec_fn=limited(100))
    assert done.returncode == 1
    assert out.read_bytes() == before


# --- secrets


def test_no_secret_is_written_or_printed_anywhere(tmp_path: Path, passphrase_file: Path) -> None:
    """F9: every file, stdout and stderr is searched for key bytes, PEM bodies and the passphrase."""
    folder = tmp_path / "CA"
    common = ("--dir", folder, "--passphrase-file", passphrase_file)
    runs = [
        run("ca", "init", *common),
        run("issue", "dev-1", *common, "--out", tmp_path / "dev", "--json"),
        run("server", *common, "--dns", "gateway.test", "--out", tmp_path / "gw"),
        run("revoke", "dev-1", "--dir", folder),
        run("crl", *common, "--out", tmp_path / "crl.pem"),
        run("inspect", tmp_path / "dev" / "dev-1.key"),
        run("inspect", folder / "issuing.key"),
        run("ledger", "export", "--dir", folder, "--json"),
        run("issue", "dev-1", *common, "--out", tmp_path / "dev"),
        run("issue", "dev-2", "--dir", folder, "--passphrase-file", tmp_path / "dev" / "dev-1.key", "--out", tmp_path),
    ]
    printed = b"".join(result.stdout_bytes + result.stderr_bytes for result in runs)
    keys = {
        tmp_path / "dev" / "dev-1.key": None,
        tmp_path / "gw" / "server.key": None,
        folder / "root.key": PASSPHRASE,
        folder / "issuing.key": PASSPHRASE,
    }
    secrets: list[tuple[Path, bytes]] = [(passphrase_file, PASSPHRASE)]
    for path, passphrase in keys.items():
        number = load_key(path, passphrase).private_numbers().private_value
        raw = number.to_bytes(32, "big")
        body = [line for line in path.read_bytes().splitlines() if b"-----" not in line]
        if passphrase is None:
            body = body[:2]  # the private number stands in the first 96 bytes; the rest is the public key
        secrets += [(path, form) for form in (raw, raw.hex().encode(), str(number).encode(), *body)]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 15
    for home, secret in secrets:
        assert secret not in printed
        assert [path for path in files if path != home and secret in path.read_bytes()] == []
    for path in (*keys, passphrase_file, folder / "ledger.db"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_foreign_ca_of_the_same_name_is_no_trust(dev_ca: Path, tmp_path: Path) -> None:
    """The deny twin of the handshake: same commands, another folder, refused."""
    run("ca", "init", "--dir", tmp_path / "other", "--insecure-dev")
    run("server", "--dir", dev_ca, "--dns", "gateway.test", "--out", tmp_path / "gw")
    run("issue", "dev-1", "--dir", tmp_path / "other", "--out", tmp_path / "dev")
    client = (tmp_path / "dev" / "dev-1.crt", tmp_path / "dev" / "dev-1.key")
    with pytest.raises(ssl.SSLError, match=r"(?i)certificate verify failed"):
        handshake(
            server=(tmp_path / "gw" / "server.crt", tmp_path / "gw" / "server.key"), client=client, ca=dev_ca / "ca.crt"
        )


def test_the_ca_of_the_commands_opens_in_the_library(dev_ca: Path) -> None:
    """One folder, two ways in."""
    with CertificateAuthority.open(dev_ca, lambda: b"") as ca:
        assert [row.profile for row in ca.ledger.certificates()] == ["root-ca", "issuing-ca"]
