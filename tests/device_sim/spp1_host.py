"""A host for tests, written from the specification alone: frames by hand, nothing from the code under test."""

import base64
import hashlib
import json
import re
import zlib
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from device_sim.simulated_board import SimulatedBoard, new_flash
from device_sim.spp1_device import Device, Restart, Send, Wake
from provisioning.spp1.protocol import State
from tests.support.pki import Pki

FRAME = re.compile(rb"^!P1 (.*) \*([0-9a-f]{8})$", re.MULTILINE)
SERIAL = "SN-0001"


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def frame(message: dict[str, Any]) -> bytes:
    body = json.dumps(message).encode()
    return b"\n!P1 " + body + b" *%08x\n" % zlib.crc32(body)


def messages(data: bytes) -> list[dict[str, Any]]:
    """The frames in `data` whose CRC is right; the others are noise, as for any host."""
    return [json.loads(body) for body, crc in FRAME.findall(data) if zlib.crc32(body) == int(crc, 16)]


class Host:
    """Talks to one board; `device` is its present boot."""

    def __init__(self, board: Any = None) -> None:
        self.board = board or SimulatedBoard(new_flash(SERIAL))
        self.sequence = 0
        self.sid = ""
        self.boot_id = ""
        self.boots = 0
        self.power_on()

    def power_on(self) -> None:
        """A new boot over the same board."""
        self.device = Device(self.board)
        self.sid = ""
        self.boots += 1

    def send(self, data: bytes) -> list[dict[str, Any]]:
        """Give bytes to the device; its replies. Resets and waits are carried out at once."""
        replies: list[dict[str, Any]] = []
        effects = self.device.receive(data)
        while effects:
            effect, *effects = effects
            if isinstance(effect, Send):
                replies += messages(effect.data)
            elif isinstance(effect, Restart):
                self.power_on()
            elif isinstance(effect, Wake):
                effects += self.device.wake()
        return replies

    def request(self, verb: str, **values: Any) -> bytes:
        """The bytes of the next request."""
        self.sequence += 1
        return frame({"s": self.sid, "i": self.sequence, "c": verb, **values})

    def ask(self, verb: str, **values: Any) -> dict[str, Any]:
        """One request, its one reply."""
        (reply,) = self.send(self.request(verb, **values))
        assert reply["i"] == self.sequence
        return reply

    def ok(self, verb: str, **values: Any) -> dict[str, Any]:
        reply = self.ask(verb, **values)
        assert reply["r"] == "ok", reply
        return reply

    def code(self, verb: str, **values: Any) -> str:
        """The error code of a request that is refused; "" when it is not."""
        reply = self.ask(verb, **values)
        return str(reply["e"]) if reply["r"] == "err" else ""

    def hello(self) -> dict[str, Any]:
        self.sequence += 1
        nonce = b64(self.sequence.to_bytes(16, "big"))
        (reply,) = self.send(
            frame({"s": "", "i": self.sequence, "c": "HELLO", "proto": [1], "station": "t", "nonce": nonce})
        )
        assert reply["r"] == "ok", reply
        self.sid, self.boot_id = reply["sid"], reply["boot_id"]
        return reply

    def keygen(self, **values: Any) -> bytes:
        return base64.b64decode(self.ok("KEYGEN", slot="id", alg="p256", **values)["spki"])

    def write(self, obj: str, content: bytes, txn: str = "t1") -> str:
        """BEGIN, DATA, COMMIT; the error code of COMMIT, or ""."""
        self.begin(obj, content, txn)
        for offset in range(0, len(content), 600):
            self.ok("DATA", off=offset, b64=b64(content[offset : offset + 600]))
        return self.code("COMMIT", txn=txn)

    def begin(self, obj: str, content: bytes, txn: str = "t1") -> None:
        self.ok("BEGIN", obj=obj, len=len(content), sha256=hashlib.sha256(content).hexdigest(), txn=txn)

    def prove(self, stage: int, nonce: bytes = b"n" * 32) -> str:
        return self.code("PROVE", slot="id", nonce=b64(nonce), stage=stage)

    def proves(self, stage: int, spki: bytes, nonce: bytes = b"n" * 32) -> bool:
        """Whether the signature verifies over the message as the specification spells it."""
        signature = base64.b64decode(self.ok("PROVE", slot="id", nonce=b64(nonce), stage=stage)["sig"])
        flash = self.board.read_flash()
        parts = [base64.b64decode(self.sid), nonce, base64.b64decode(self.boot_id), flash.uid.encode()]
        parts += [SERIAL.encode(), b"id", hashlib.sha256(spki).digest()]
        message = b"SPP1-PROVE-v1\0" + bytes([stage])
        message += b"".join(len(part).to_bytes(2, "big") + part for part in parts)
        key = load_der_public_key(spki)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        return True


def chain_for(pki: Pki, spki: bytes, device_id: str = "dev-1") -> bytes:
    """A chain that certifies `spki`, as the station would issue it."""
    from mtls.profiles import DEVICE_OPERATIONAL
    from mtls.trust import to_pem
    from tests.support.pki import now

    key = load_der_public_key(spki)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    leaf = DEVICE_OPERATIONAL.build(subject_cn=device_id, public_key=key, issuer=pki.issuing, now=now())
    return to_pem([leaf, pki.issuing.certificate])


def in_state(state: State, pki: Pki, policy: str = "final") -> Host:
    """A host with a session on a device that was led to `state` by the protocol itself."""
    return led_to(state, Host(), pki, policy)


def led_to(state: State, host: Host, pki: Pki, policy: str = "final") -> Host:
    """`host` with a session, once its blank device has been led to `state`."""
    host.hello()
    if state is State.BLANK:
        return host
    spki = host.keygen()
    if state is State.STAGED:
        host.begin("ca", b"x")
    if state in {State.KEYED, State.STAGED}:
        return host
    assert host.write("chain", chain_for(pki, spki)) == ""
    if state is State.CERTED:
        return host
    host.ok("RESET")
    host.hello()
    assert host.prove(2) == ""
    if state is State.SEALED:
        host.ok("SEAL", confirm=SERIAL, policy=policy)
    return host
