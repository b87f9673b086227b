"""The C reference of the device's side: compiled with every check of the compiler, and put beside the virtual device.

It is judged by the station itself, by the table of the specification, and by the same host that judges ours.
"""

import json
import os
import select
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_sim.simulated_board import new_flash
from provisioning.spp1.protocol import TRANSITIONS, State, Verb, refusal_code
from tests.device_sim.processes import Program, run_tool, running, wait_for
from tests.device_sim.spp1_host import SERIAL, Host, b64, chain_for, frame, led_to, messages
from tests.support.gateway import Gateway, wait_until
from tests.support.pki import Pki

SOURCE = Path(__file__).parents[2] / "examples/spp1-device-c"
ANSWER_S = 10.0
SILENCE_S = 0.3
SANITIZERS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference, which stops at the first access out of bounds and the first undefined operation."""
    folder = tmp_path_factory.mktemp("c")
    made = subprocess.run(
        ["make", "-C", SOURCE, f"OUT={folder}", f"CFLAGS={SANITIZERS}"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return folder / "spp1-device"


class CBoard:
    """What the host asks of a board: who it is."""

    def read_flash(self) -> Any:
        """The identity that the program was started with."""
        flash = new_flash(SERIAL)
        return type(flash)(hardware_serial=SERIAL, uid=SERIAL)


class CHost(Host):
    """The tests' host on a line to the C program."""

    def __init__(self, device: Program, link: Path) -> None:
        wait_for("link", link.is_symlink)
        self.process = device
        self.line = os.open(link, os.O_RDWR | os.O_NOCTTY)
        super().__init__(CBoard())

    def power_on(self) -> None:
        """The program's own business."""

    def send(self, data: bytes, within_s: float = ANSWER_S) -> list[dict[str, Any]]:
        """Give bytes to the device; the first reply, or none after `within_s`."""
        os.write(self.line, data)
        heard, end = b"", time.monotonic() + within_s
        while not messages(heard) and time.monotonic() < end:
            assert self.process.process.poll() is None, self.process.err.decode()
            if select.select([self.line], [], [], 0.05)[0]:
                heard += os.read(self.line, 65536)
        return messages(heard)

    def is_silent_on(self, data: bytes) -> bool:
        """Whether the device answers nothing, and is still there."""
        return self.send(data, SILENCE_S) == []


@pytest.fixture
def host(program: Path, tmp_path: Path) -> Iterator[CHost]:
    """A blank device and a host on its line."""
    link = tmp_path / "dev0"
    with running(program, "--link", link, "--state", tmp_path / "flash", "--serial", SERIAL) as device:
        host = CHost(device, link)
        yield host
        os.close(host.line)
        assert device.stop() == 0, device.err.decode()


def test_the_station_says_pass_to_the_c_reference_and_to_no_second_burn(program: Path, tmp_path: Path) -> None:
    """The whole burn of `mqtt-provision`, seal included; the sealed device is refused."""
    ca, link = tmp_path / "CA", tmp_path / "dev0"
    assert run_tool("mqtt-provision", "ca", "init", "--insecure-dev", "--dir", ca).returncode == 0
    with running(program, "--link", link, "--state", tmp_path / "flash", "--serial", "C-0001") as device:
        wait_for("link", link.is_symlink)
        first = run_tool("mqtt-provision", "burn", "--port", link, "--dir", ca, "--id", "press-c")
        assert (first.returncode, first.stdout.split()[0]) == (0, "PASS"), first.stdout + first.stderr
        second = run_tool("mqtt-provision", "burn", "--port", link, "--dir", ca, "--id", "press-d")
        assert (second.returncode, second.stdout.split()[0]) == (1, "FAIL")
        assert device.stop() == 0, device.err.decode()


@pytest.mark.parametrize("network", [(), ("--net",)], ids=["no network", "network"])
def test_the_c_reference_conforms(program: Path, tmp_path: Path, network: tuple[str, ...]) -> None:
    """Every check of `spp1 conformance` but one of the two for a network, `busy`, and the policy `final`."""
    link = tmp_path / "dev0"
    with running(program, "--link", link, "--state", tmp_path / "flash", "--serial", SERIAL, *network) as device:
        wait_for("link", link.is_symlink)
        judged = run_tool("mqtt-provision", "spp1", "conformance", "--port", link)
        assert (judged.returncode, "FAIL " in judged.stdout) == (0, False), judged.stdout + judged.stderr
        assert "178 PASS, 0 FAIL, 4 SKIPPED" in judged.stdout
        assert device.stop() == 0, device.err.decode()


@pytest.mark.parametrize("is_trusted", [True, False], ids=["its gateway", "another's gateway"])
def test_the_c_reference_connects_to_its_own_gateway_and_to_no_other(
    program: Path, tmp_path: Path, pki: Pki, is_trusted: bool
) -> None:
    """`burn --gateway`: the gateway's audit log names the certificate; a server that it does not trust is a FAIL."""
    ca, link, files = tmp_path / "CA", tmp_path / "dev0", tmp_path / "gw"
    assert run_tool("mqtt-provision", "ca", "init", "--insecure-dev", "--dir", ca).returncode == 0
    made = run_tool("mqtt-provision", "server", "--dir", ca, "--ip", "127.0.0.1", "--out", files)
    assert made.returncode == 0, made.stderr
    own = {"cert_file": files / "server.crt", "key_file": files / "server.key", "ca_file": files / "ca.crt"}
    (tmp_path / "site").mkdir()
    listener = {name: str(path) for name, path in own.items()} if is_trusted else {}
    gateway = Gateway(tmp_path / "site", pki, listener=listener).start()
    device = ("--link", link, "--state", tmp_path / "flash", "--serial", "C-0001", "--net")
    order = ("--dir", ca, "--id", "press-c", "--gateway", f"127.0.0.1:{gateway.port}", "--json")
    try:
        with running(program, *device) as unit:
            wait_for("link", link.is_symlink)
            verdict = json.loads(run_tool("mqtt-provision", "burn", "--port", link, *order).stdout)
            assert unit.stop() == 0, unit.err.decode()
        if is_trusted:
            assert verdict["verdict"] == "PASS", verdict
            admitted = wait_until(lambda: gateway.audit("admitted"), "admission")
            assert [line["fingerprint_sha256"] for line in admitted] == [verdict["fingerprint_sha256"]]
        else:
            assert (verdict["verdict"], verdict["step"]) == ("FAIL", "connect"), verdict
            assert "E_NET" in verdict["reason"]
            assert gateway.audit("admitted") == []
    finally:
        gateway.stop()


# A request of each verb that no other condition than the state refuses.
PLAIN: dict[Verb, dict[str, Any]] = {
    Verb.IDENT: {},
    Verb.STATUS: {},
    Verb.KEYGEN: {"slot": "id", "alg": "p256"},
    Verb.CSR: {"slot": "id", "cn": "dev-1"},
    Verb.PROVE: {"slot": "id", "nonce": b64(b"n" * 32), "stage": 1},
    Verb.BEGIN: {"obj": "conf", "len": 2, "sha256": "0" * 64, "txn": "t9"},
    Verb.DATA: {"off": 0, "b64": b64(b"x")},
    Verb.READ: {"obj": "ca", "off": 0, "n": 16},
    Verb.HASH: {"obj": "ca"},
    Verb.TIME: {"unix": 1, "src": "test"},
    Verb.SEAL: {"confirm": SERIAL, "policy": "final"},
}


@pytest.mark.parametrize("state", list(State))
def test_every_verb_is_served_in_the_states_of_the_specification(state: State, host: CHost, pki: Pki) -> None:
    """Refused where the table has no entry, with its code; elsewhere not for the state's sake."""
    led_to(state, host, pki)
    assert host.ok("STATUS")["state"] == state
    for verb, values in PLAIN.items():
        now = State(host.ok("STATUS")["state"])
        code = host.code(verb, **(values | ({"stage": 3} if verb is Verb.PROVE and now is State.SEALED else {})))
        if now not in TRANSITIONS[verb]:
            assert (verb, code) == (verb, refusal_code(now))
        elif verb not in {Verb.READ, Verb.HASH}:  # of an object that is not there: E_STATE as well
            assert (verb, code) == (verb, "")
            assert State(host.ok("STATUS")["state"]) in TRANSITIONS[verb][now]


def test_objects_come_back_as_they_were_written_and_survive_a_reset(host: CHost, pki: Pki) -> None:
    """In pieces, by digest, and after a boot with another boot id; the key signs what the specification spells."""
    host.hello()
    spki = host.keygen()
    chain = chain_for(pki, spki)
    assert host.write("chain", chain) == ""
    assert host.proves(1, spki)
    assert host.prove(2) == "E_STATE"
    before = host.boot_id
    host.ok("RESET")
    host.hello()
    assert host.boot_id != before
    assert host.proves(2, spki)
    assert host.ok("READ", obj="chain", off=len(chain) - 5, n=600)["b64"] == b64(chain[-5:])
    assert host.ok("STATUS")["state"] == State.VERIFIED


def test_a_chain_for_another_key_is_refused_and_the_old_one_stays(host: CHost, pki: Pki) -> None:
    """So is one that is no certificate, or cut short."""
    host.hello()
    spki = host.keygen()
    good = chain_for(pki, spki)
    assert host.write("chain", good, "t1") == ""
    other = pki.device("dev-2").cert_file.read_bytes()
    for number, wrong in enumerate((other, b"no certificate", good[:200], b"-----BEGIN CERTIFICATE-----\nMIIB")):
        assert host.write("chain", wrong, f"w{number}") == "E_KEYMISMATCH"
    assert host.ok("READ", obj="chain", off=0, n=600)["b64"] == b64(good[:600])


@pytest.mark.parametrize(
    ("verb", "values", "code"),
    [
        ("NOTHING", {}, "E_UNSUPPORTED"),
        ("KEYGEN", {"slot": "id", "alg": "rsa"}, "E_UNSUPPORTED"),
        ("KEYGEN", {"slot": "other", "alg": "p256"}, "E_ARG"),
        ("KEYGEN", {"slot": "id", "alg": "p256", "seed": b64(b"s" * 33)}, "E_ARG"),
        ("KEYGEN", {"slot": "id", "alg": "p256", "if_spki": "A" * 64}, "E_ARG"),
        ("CSR", {"slot": "id", "cn": "é"}, "E_ARG"),
        ("CSR", {"slot": "id", "cn": "x" * 65}, "E_ARG"),
        ("PROVE", {"slot": "id", "nonce": b64(b"n" * 31), "stage": 1}, "E_ARG"),
        ("PROVE", {"slot": "id", "nonce": b64(b"n" * 32)[:-1] + "B", "stage": 1}, "E_ARG"),
        ("PROVE", {"slot": "id", "nonce": b64(b"n" * 32), "stage": 4}, "E_ARG"),
        ("PROVE", {"slot": "id", "nonce": b64(b"n" * 32), "stage": 1.0}, "E_ARG"),
        ("BEGIN", {"obj": "key", "len": 1, "sha256": "0" * 64, "txn": "t"}, "E_FORBIDDEN"),
        ("BEGIN", {"obj": "csr", "len": 1, "sha256": "0" * 64, "txn": "t"}, "E_ARG"),
        ("BEGIN", {"obj": "ca", "len": 0, "sha256": "0" * 64, "txn": "t"}, "E_LEN"),
        ("BEGIN", {"obj": "ca", "len": 2**31 - 1, "sha256": "0" * 64, "txn": "t"}, "E_NOSPACE"),
        ("BEGIN", {"obj": "ca", "len": 1, "sha256": "0" * 64, "txn": "t" * 33}, "E_ARG"),
        ("READ", {"obj": "key", "off": 0, "n": 1}, "E_FORBIDDEN"),
        ("HASH", {"obj": "key"}, "E_FORBIDDEN"),
        ("HASH", {"obj": "nothing"}, "E_ARG"),
        ("ERASE", {"confirm": "SN-0002"}, "E_ARG"),
        ("TIME", {"unix": 2**53, "src": "t"}, "E_ARG"),
    ],
)
def test_what_is_asked_wrongly_is_refused_like_by_the_virtual_device(
    verb: str, values: dict[str, Any], code: str, host: CHost, pki: Pki
) -> None:
    """One table for both."""
    ours = led_to(State.KEYED, Host(), pki)
    led_to(State.KEYED, host, pki)
    assert (host.code(verb, **values), ours.code(verb, **values)) == (code, code)


def test_a_repeated_request_is_answered_again_and_carried_out_once(host: CHost) -> None:
    """The same bytes give the same reply; other bytes under the number are refused; an older number gets silence."""
    host.hello()
    request = host.request("KEYGEN", slot="id", alg="p256")
    first, again = host.send(request), host.send(request)
    assert (first, first[0]["existing"]) == (again, False)
    other = frame({"s": host.sid, "i": host.sequence, "c": "STATUS"})
    assert host.send(other)[0]["e"] == "E_ARG"
    assert host.send(request) == first
    assert host.is_silent_on(frame({"s": host.sid, "i": host.sequence - 1, "c": "STATUS"}))
    assert host.send(frame({"s": b64(b"x" * 16), "i": 99, "c": "STATUS"}))[0]["e"] == "E_SESSION"


NEST = b'{"a":' * 31 + b"1" + b',"b":1}' * 31
HOSTILE = [
    b'\n!P1 {"s":"","i":1,"c":"STATUS"} *00000000\n',
    b"\n!P1 " + b"x" * 5000 + b"\n",
    b"\n!P1 \n!P1\n *12345678\n",
    *(
        b"\n!P1 " + body + b" *%08x\n" % zlib.crc32(body)
        for body in (
            NEST,
            b"",
            b"[]",
            b"{",
            b'{"a"',
            b'{"a":"\\',
            b'{"a":"\\u12',
            b'{"a":[1,]}',
            b'{"a":-}',
            b'{"a":1e}',
            b'{"a":1,"a":2}',
            b'{"a":1,"\\u0061":2}',
            b'{"a":"\xff"}',
            b'{"a":"\xed\xa0\x80"}',
            b'{"s":"","i":0,"c":"HELLO"}',
            b'{"s":"","i":1,"c":' + b"[" * 64 + b"]" * 64 + b"}",
            b'{"s":"' + b'\\"' * 64 + b'","i":1,"c":"HELLO","proto":[1]}',
        )
    ),
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_line_is_answered_by_silence_and_harms_nothing(line: bytes, host: CHost) -> None:
    """No valid frame, or one addressed to nobody: the next request is served as if nothing had been."""
    assert host.is_silent_on(line)
    host.hello()
    assert host.is_silent_on(line)
    assert host.ok("STATUS")["state"] == State.BLANK


def test_frames_survive_any_split_of_their_bytes(host: CHost) -> None:
    """Byte by byte, with CRs and log lines in between."""
    host.hello()
    host.sequence += 1
    data = b"boot log without an end" + frame({"s": host.sid, "i": host.sequence, "c": "STATUS"}).replace(b"!", b"!\r")
    for position in range(len(data) - 1):
        os.write(host.line, data[position : position + 1])
    assert host.send(data[-1:])[0]["state"] == State.BLANK
