"""A simulated Nordic modem: %CMNG, %KEYGEN, %JWT and #XRESET as raw AT lines or in the shell's form.

SIMULATION ONLY: its keys are readable in memory. It follows the AT commands reference where a provisioning station can
see it: the radio must be off for a change (CME 518), a key that was made here is never overwritten (CME 519), digests
are those of the exact bytes that were stored. The COSE part of a %KEYGEN reply is a placeholder without a meaning.

Sans-io: bytes in, bytes out. Commands and credentials are bounded; what is no command is answered ERROR.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import NameOID

MAX_COMMAND_BYTES = 8192
PLACEHOLDER_COSE = b"\xd2\x84\x43\xa1\x01\x26\xa0\x40\x40"  # an empty COSE_Sign1
KEY, ES256 = 2, 0
OFFLINE = "4"
NOT_ALLOWED, OCCUPIED, NOT_FOUND = 518, 519, 513

_SHELL = re.compile(rb"at (?:'(.*)'|(.*))", re.DOTALL)
_COMMAND = re.compile(r"AT([+%#][A-Z]+)?(?:(\?)|=(.*))?", re.DOTALL)
_ARGUMENT = re.compile(r'"([^"]*)"|([^",]*)')


class Refused(Exception):
    """A command that is answered with an error; its number, or none for a plain ERROR."""

    def __init__(self, cme: int | None = None) -> None:
        self.cme = cme


class NordicModem:
    """One modem. `forgets` and `alters` are faults: a write that is lost, or stored with one byte changed; one that
    `lies` signs with another key than it made.

    `shell` says which of the two forms its firmware takes, `signs` and `resets` whether it knows %JWT and #XRESET.
    """

    def __init__(
        self,
        imei: str = "352656100000001",
        *,
        shell: bool = False,
        forgets: bool = False,
        alters: bool = False,
        signs: bool = True,
        resets: bool = True,
        lies: bool = False,
    ) -> None:
        self.imei = imei
        self.credentials: dict[tuple[int, int], bytes] = {}
        self.made_here: set[int] = set()  # tags whose key this modem made
        self.shell = shell
        self.forgets = forgets
        self.alters = alters
        self.signs = signs
        self.resets = resets
        self.lies = lies
        self._is_online = True
        self._has_codes = False
        self._command = b""
        self._in_quotes = False

    def receive(self, data: bytes) -> bytes:
        """Take bytes as they come; what the modem says."""
        said = b""
        for byte in data:
            character = bytes([byte])
            is_end = character in b"\r\n" and not self._in_quotes
            if is_end and self._command:
                command, self._command = self._command, b""
                said += self._answer(command)
            elif not is_end and len(self._command) < MAX_COMMAND_BYTES:
                self._command += character
                if character == b'"':
                    self._in_quotes = not self._in_quotes
        return said

    def _answer(self, command: bytes) -> bytes:
        text, echo = command, b""
        if self.shell:
            typed = _SHELL.fullmatch(command)
            text = (typed[1] or typed[2]).replace(b"\\n", b"\n") if typed else b""
            echo = command + b"\r\n"
        try:
            lines = self._perform(text.decode("ascii", "replace"))
        except Refused as refused:
            if refused.cme is not None and self._has_codes:
                return echo + b"+CME ERROR: %d\r\n" % refused.cme
            return echo + b"ERROR\r\n"
        return echo + "".join(f"{line}\r\n" for line in [*lines, "OK"]).encode()

    def _perform(self, text: str) -> list[str]:
        parsed = _COMMAND.fullmatch(text)
        if parsed is None or (parsed[1] or "") not in _COMMANDS or len(text) >= MAX_COMMAND_BYTES:
            raise Refused
        try:
            return _COMMANDS[parsed[1] or ""](self, [parsed[2]] if parsed[2] else _arguments(parsed[3] or ""))
        except (ValueError, IndexError):
            raise Refused from None

    # --- commands

    def _attention(self, arguments: list[str]) -> list[str]:
        return []

    def _radio(self, arguments: list[str]) -> list[str]:
        self._is_online = arguments[0] != OFFLINE
        return []

    def _codes(self, arguments: list[str]) -> list[str]:
        if arguments[0] == "?":
            return [f"+CMEE: {int(self._has_codes)}"]
        self._has_codes = arguments[0] == "1"
        return []

    def _imei(self, arguments: list[str]) -> list[str]:
        return [self.imei]

    def _model(self, arguments: list[str]) -> list[str]:
        return ["nRF9161-SIM"]

    def _firmware(self, arguments: list[str]) -> list[str]:
        return ["mfw_nrf91x1_2.0.1-sim"]

    def _manage(self, arguments: list[str]) -> list[str]:
        operation, *rest = arguments
        return {"0": self._write, "1": self._list, "3": self._delete}[operation](rest) if operation in "013" else []

    def _list(self, arguments: list[str]) -> list[str]:
        wanted = [int(argument) for argument in arguments]
        return [
            f'%CMNG: {tag},{kind},"{hashlib.sha256(content).hexdigest().upper()}"'
            for (tag, kind), content in sorted(self.credentials.items())
            if wanted in ([], [tag], [tag, kind])
        ]

    def _write(self, arguments: list[str]) -> list[str]:
        tag, kind, content = int(arguments[0]), int(arguments[1]), arguments[2].encode()
        self._require_offline()
        if kind == KEY and tag in self.made_here:
            raise Refused(OCCUPIED)
        if not self.forgets:
            self.credentials[tag, kind] = content[:-1] + b"!" if self.alters else content
        return []

    def _delete(self, arguments: list[str]) -> list[str]:
        tag, kind = int(arguments[0]), int(arguments[1])
        self._require_offline()
        if self.credentials.pop((tag, kind), None) is None:
            raise Refused(NOT_FOUND)
        if kind == KEY:
            self.made_here.discard(tag)
        return []

    def _keygen(self, arguments: list[str]) -> list[str]:
        tag, kind = int(arguments[0]), int(arguments[1])
        self._require_offline()
        if kind != KEY:
            raise Refused
        if (tag, KEY) in self.credentials:
            raise Refused(OCCUPIED)
        name = arguments[3].removeprefix("CN=") if len(arguments) > 3 else self.imei
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        self.credentials[tag, KEY] = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        self.made_here.add(tag)
        return [f'%KEYGEN: "{_base64url(request.public_bytes(Encoding.DER))}.{_base64url(PLACEHOLDER_COSE)}"']

    def _token(self, arguments: list[str]) -> list[str]:
        algorithm, _, subject, audience, tag, kind = arguments
        if not self.signs or int(algorithm) != ES256:
            raise Refused
        stored = self.credentials.get((int(tag), int(kind)))
        if stored is None:
            raise Refused(NOT_FOUND)
        key = ec.generate_private_key(ec.SECP256R1()) if self.lies else load_der_private_key(stored, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Refused
        claims = {"iss": f"nRF9161.{self.imei}", "jti": "simulated", "sub": subject, "aud": audience}
        parts = [json.dumps(part).encode() for part in ({"typ": "JWT", "alg": "ES256"}, claims)]
        signed = ".".join(_base64url(part) for part in parts)
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return [f'%JWT: "{signed}.{_base64url(r.to_bytes(32) + s.to_bytes(32))}"']

    def _reset(self, arguments: list[str]) -> list[str]:
        if not self.resets:
            raise Refused
        self.boot()
        return []

    def boot(self) -> None:
        """Lose what is not stored, as at a loss of power."""
        self._is_online, self._has_codes = False, False
        self._command, self._in_quotes = b"", False

    def _require_offline(self) -> None:
        if self._is_online:
            raise Refused(NOT_ALLOWED)


def _arguments(text: str) -> list[str]:
    """Values separated by commas; a value in quotes may hold commas and line ends."""
    found, at = [], 0
    while at <= len(text):
        match = _ARGUMENT.match(text, at)
        if match is None or (match.end() < len(text) and text[match.end()] != ","):
            raise Refused
        found.append(match[1] if match[1] is not None else match[2])
        at = match.end() + 1
    return found


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


_COMMANDS: Mapping[str, Callable[[NordicModem, list[str]], list[str]]] = MappingProxyType(
    {
        "": NordicModem._attention,
        "+CFUN": NordicModem._radio,
        "+CMEE": NordicModem._codes,
        "+CGSN": NordicModem._imei,
        "+CGMM": NordicModem._model,
        "+CGMR": NordicModem._firmware,
        "%CMNG": NordicModem._manage,
        "%KEYGEN": NordicModem._keygen,
        "%JWT": NordicModem._token,
        "#XRESET": NordicModem._reset,
    }
)
