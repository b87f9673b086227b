"""Nordic's AT commands: ours against a simulated modem, and Nordic's own tool against the same modem."""

import hashlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from device_sim.nordic_modem import NordicModem
from device_sim.virtual_device import Terminal
from provisioning.dialects import nordic_at as at
from provisioning.dialects.nordic_at import Command, CredentialType, Lines, ModemFault
from tests.provisioning.dialects.judge import judge
from tests.support.pki import Pki

TAG = 16842753  # nRF Cloud's
# Nordic's tool lists ports that udev knows; a pseudo-terminal is none of them. What it says on the line is its own.
TOOL = """
import sys, types
from nrfcredstore import comms, cli
comms.select_device = lambda *_: (types.SimpleNamespace(device=sys.argv[1]), None)
cli.run(["nrfcredstore", sys.argv[1], "--rtscts-off", *sys.argv[2:]])
"""


def ask(modem: NordicModem, command: Command) -> list[str]:
    """The lines of one command's reply."""
    lines = Lines().feed(modem.receive(command.data(shell=modem.shell)))
    assert any(command.take(line) for line in lines), f"{command.name} got no answer"
    return command.lines


def refusal(modem: NordicModem, command: Command) -> int | None:
    with pytest.raises(ModemFault) as caught:
        ask(modem, command)
    return caught.value.cme


@pytest.fixture(params=[False, True], ids=["raw", "shell"])
def modem(request: pytest.FixtureRequest) -> NordicModem:
    """One that takes commands in the one form or the other."""
    made = NordicModem(shell=request.param)
    ask(made, at.error_codes())
    ask(made, at.go_offline())
    return made


def test_a_key_is_made_in_the_modem_and_its_request_is_signed_by_it(modem: NordicModem) -> None:
    """The CSR verifies; the key is listed and is in no reply."""
    request = x509.load_der_x509_csr(at.csr_der(ask(modem, at.keygen(TAG, "press-07"))))
    assert request.is_signature_valid
    assert list(at.digests(ask(modem, at.listing(TAG)))) == [CredentialType.CLIENT_KEY]


def test_an_occupied_tag_is_refused_until_it_is_deleted(modem: NordicModem) -> None:
    """CME 519; the key that is there stays."""
    ask(modem, at.keygen(TAG, "press-07"))
    before = dict(modem.credentials)
    assert refusal(modem, at.keygen(TAG, "press-08")) == at.OCCUPIED
    assert refusal(modem, at.write(TAG, CredentialType.CLIENT_KEY, "key")) == at.OCCUPIED
    assert modem.credentials == before
    ask(modem, at.delete(TAG, CredentialType.CLIENT_KEY))
    ask(modem, at.keygen(TAG, "press-08"))


def test_what_is_stored_is_listed_by_the_digest_of_its_exact_bytes(modem: NordicModem, pki: Pki) -> None:
    """A chain of many lines arrives with its line ends in both forms; white space at the end is not kept."""
    chain = pki.device("press-07").cert_file.read_text()
    ask(modem, at.write(TAG, CredentialType.CLIENT_CERTIFICATE, chain))
    stored = modem.credentials[TAG, CredentialType.CLIENT_CERTIFICATE]
    assert stored == chain.rstrip().encode()
    listed = at.digests(ask(modem, at.listing(TAG)))
    assert listed == {CredentialType.CLIENT_CERTIFICATE: at.digest_of(chain)}
    assert at.digest_of(chain) == hashlib.sha256(stored).hexdigest().upper()


@pytest.mark.parametrize("fault", ["forgets", "alters"])
def test_a_write_that_did_not_happen_shows_in_the_listing(fault: str) -> None:
    """The modem said OK; the digest says otherwise (F1)."""
    modem = NordicModem(**{fault: True})
    ask(modem, at.go_offline())
    ask(modem, at.write(TAG, CredentialType.ROOT_CA, "certificate"))
    assert at.digests(ask(modem, at.listing(TAG))).get(CredentialType.ROOT_CA) != at.digest_of("certificate")


def test_a_modem_that_is_online_takes_no_credential() -> None:
    """So the station turns the radio off first."""
    modem = NordicModem()
    assert refusal(modem, at.write(TAG, CredentialType.ROOT_CA, "x")) is None  # no codes asked for: a plain ERROR
    ask(modem, at.error_codes())
    assert refusal(modem, at.keygen(TAG, "press-07")) == 518


def test_the_modem_says_who_it_is(modem: NordicModem) -> None:
    """The IMEI is the hardware serial."""
    assert at.imei(ask(modem, at.identity("CGSN"))) == modem.imei
    assert at.text(ask(modem, at.identity("CGMR")), "firmware").startswith("mfw_nrf91")


@pytest.mark.parametrize(
    "broken",
    [
        lambda: at.imei(["12345"]),
        lambda: at.imei(["352656100000001", "352656100000002"]),
        lambda: at.text([], "model"),
        lambda: at.csr_der([]),
        lambda: at.csr_der(['%KEYGEN: "A.BC"']),
        lambda: at.csr_der(['%KEYGEN: "AAAA.BBBB"'] * 2),
        lambda: at.keygen(TAG, 'x",0,"y'),
        lambda: at.keygen(-1, "x"),
        lambda: at.write(TAG, CredentialType.ROOT_CA, 'a"b'),
        lambda: at.write(TAG, CredentialType.ROOT_CA, "x" * 5000),
        lambda: at.write(TAG, CredentialType.ROOT_CA, "é").data(shell=False),
        lambda: [Command("x", "x").take("ERROR")],
        lambda: [(c := Command("x", "x")), [c.take("y") for _ in range(501)]],
    ],
)
def test_what_no_modem_answers_and_no_command_carries_is_refused(broken: Callable[[], object]) -> None:
    """As a fault with a sentence, before anything is sent or believed."""
    with pytest.raises(ModemFault):
        broken()


def test_lines_are_cut_and_bounded() -> None:
    """Colours and echoes of a shell, a line without an end, one that is too long."""
    lines = Lines()
    assert list(lines.feed(b"\x1b[1;32muart:~$ \x1b[0mOK\r\n\r\n+CME")) == ["uart:~$ OK"]
    assert list(lines.feed(b" ERROR: 5\r" + b"x" * 9000)) == ["+CME ERROR: 5"]
    assert list(lines.feed(b"x\nOK\n")) == ["OK"]


@contextmanager
def on_a_terminal(modem: NordicModem, link: Path) -> Iterator[None]:
    """The modem behind a pseudo-terminal, until the block ends."""
    ended = threading.Event()
    wake, stop = os.pipe()
    terminal = Terminal(link)
    terminal.plug_in()

    def serve() -> None:
        while not ended.is_set():
            _, data = terminal.wait(wake, 1.0)
            if data:
                terminal.write(modem.receive(data))
        terminal.unplug()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        os.write(stop, b"x")
        thread.join(20)
        os.close(wake)
        os.close(stop)
        assert not thread.is_alive()


@pytest.mark.parametrize("shell", [False, True], ids=["raw", "shell"])
def test_nordics_own_tool_works_with_the_simulated_modem(shell: bool, tmp_path: Path, pki: Pki) -> None:
    """It finds the form by itself, makes a key, writes a chain and lists the digests that we expect."""
    python, link = judge("nrfcredstore==2.1.0"), tmp_path / "modem"
    chain = pki.device("press-07").cert_file
    modem = NordicModem(shell=shell)

    def tool(*arguments: object) -> str:
        command = [str(part) for part in (python, "-c", TOOL, link.resolve(), *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with on_a_terminal(modem, link):
        tool("generate", TAG, tmp_path / "csr.der")
        tool("write", TAG, "CLIENT_CERT", chain)
        listed = tool("list", "--tag", TAG)
    assert x509.load_der_x509_csr((tmp_path / "csr.der").read_bytes()).is_signature_valid
    assert at.digest_of(chain.read_text()) in listed
    assert "CLIENT_KEY" in listed
