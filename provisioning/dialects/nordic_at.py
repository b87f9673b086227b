"""Nordic modems (nRF91): credentials in security tags by AT commands, the key made in the modem.

Sans-io: a `Command` gives the bytes to send and takes the lines that come back until OK, ERROR or +CME ERROR. One line
has two forms: raw (`AT...`, where a line end inside quotes belongs to the value) and the shell's (`at 'AT...'`, where a
line end is the two characters \\n). What anyone else prints on the line in between is ignored, and bounded.

The modem lists each credential with the SHA-256 of its exact bytes; that is the read-back. `%KEYGEN` refuses a tag that
is occupied (CME 519), makes the key and answers with a CSR and a COSE signature of the modem over it. Not verified
here: that COSE signature, which is Nordic's attestation of the modem and needs their public keys. The key signs again
in `%JWT`: a token whose audience is our nonce is a fresh proof of possession (RFC 7519, ES256). A reset is no command
of the modem; applications that have one take `#XRESET`, and that it happened shows in +CMEE, which is back at 0.

Spec: nRF91x1 AT commands reference, %CMNG, %KEYGEN and %JWT; Serial Modem application, #XRESET.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from mtls.errors import Fault
from mtls.terminal import sanitise

MAX_LINE_BYTES = 4096  # a CSR with its COSE is about 900
MAX_LINES = 500  # of one reply: a modem with a hundred tags lists three lines each
MAX_CREDENTIAL_BYTES = 4096  # what one %CMNG write takes
MAX_TAG = 2147483647
NO_KEY = frozenset({513, 514, 525})  # CME ERROR of %JWT: a modem that knows it, and could not sign with the key
OCCUPIED = 519  # CME ERROR: the tag holds a credential of this type already
TIMEOUT_S = 5.0
KEYGEN_TIMEOUT_S = 60.0
_LISTED = re.compile(r'%CMNG: ?(\d{1,10}),(\d{1,2}),"([0-9A-Fa-f]{64})"')
_KEYGEN = re.compile(r'%KEYGEN: ?"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)"')
_JWT = re.compile(r'%JWT: ?"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)"')
_SIGNATURE_BYTES = 64  # r and s of ES256, RFC 7518 §3.4
_IMEI = re.compile(r"\d{15}")
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class CredentialType(IntEnum):
    """What a security tag can hold; %CMNG's numbers."""

    ROOT_CA = 0
    CLIENT_CERTIFICATE = 1
    CLIENT_KEY = 2


class ModemFault(Fault):
    """The modem refused a command or answered something that no modem answers."""

    def __init__(self, message: str, hint: str = "", *, cme: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.cme = cme


@dataclass(slots=True)
class Command:
    """One command in flight. `name` is what stands in faults: a command's text may hold a certificate."""

    name: str
    text: str = field(repr=False)
    timeout_s: float = TIMEOUT_S
    lines: list[str] = field(default_factory=list)

    def data(self, *, shell: bool) -> bytes:
        """The bytes to send."""
        if not self.text.isascii():
            raise ModemFault(f"{self.name}: the text holds characters that an AT command cannot carry")
        if shell:
            return f"at '{self.text}'".replace("\n", "\\n").encode() + b"\r\n"
        return self.text.encode() + b"\r\n"

    def take(self, line: str) -> bool:
        """One line of the modem; whether the command is over. ModemFault when it was refused."""
        if line == "OK":
            return True
        if line == "ERROR" or line.startswith("+CME ERROR"):
            raise _refused(self.name, line)
        if len(self.lines) >= MAX_LINES:
            raise ModemFault(f"{self.name}: the modem answers more than {MAX_LINES} lines")
        self.lines.append(line)
        return False


def _refused(name: str, line: str) -> ModemFault:
    number = re.search(r"\d{1,5}", line)
    cme = int(number.group()) if number else None
    if cme == OCCUPIED:
        return ModemFault(
            f"{name}: the tag is occupied (CME 519)",
            "a modem's key is never overwritten: delete the tag first, or name another",
            cme=cme,
        )
    code = f"CME {cme}" if cme is not None else "ERROR"
    return ModemFault(f"{name}: the modem refused it ({code})", cme=cme)


class Lines:
    """Cuts the modem's bytes into lines without colours, spaces at their ends and empty ones."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_over_long = False

    def feed(self, data: bytes) -> Iterator[str]:
        """The lines that `data` completes; one that is too long is dropped."""
        *finished, rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        for part in finished:
            text = _TERMINAL_CODES.sub("", part.decode("utf-8", "replace")).strip()
            if text and not self._is_over_long and len(part) <= MAX_LINE_BYTES:
                yield text
            self._is_over_long = False
        self._is_over_long = self._is_over_long or len(rest) > MAX_LINE_BYTES
        self._rest = rest[:MAX_LINE_BYTES]


# --- the commands ---


def go_offline() -> Command:
    """Credentials can be changed only while the radio is off."""
    return Command("AT+CFUN=4", "AT+CFUN=4")


def error_codes() -> Command:
    """Have refusals say why."""
    return Command("AT+CMEE=1", "AT+CMEE=1")


def identity(what: str) -> Command:
    """IMEI (`CGSN`), model (`CGMM`) or firmware (`CGMR`)."""
    return Command(f"AT+{what}", f"AT+{what}")


def write(tag: int, kind: CredentialType, content: str) -> Command:
    """Store a credential; one that is there is replaced, unless it is a key that the modem made."""
    text = stored_text(content)
    if '"' in text or len(text) > MAX_CREDENTIAL_BYTES:
        raise ModemFault(f"a credential of {len(text)} bytes, or with a quote in it, cannot be written by AT command")
    return Command(f"%CMNG write {_tag(tag)}/{kind.name}", f'AT%CMNG=0,{tag},{int(kind)},"{text}"')


def delete(tag: int, kind: CredentialType) -> Command:
    """Delete one credential."""
    return Command(f"%CMNG delete {_tag(tag)}/{kind.name}", f"AT%CMNG=3,{tag},{int(kind)}")


def listing(tag: int) -> Command:
    """What a tag holds, with digests."""
    return Command(f"%CMNG list {_tag(tag)}", f"AT%CMNG=1,{tag}")


def keygen(tag: int, common_name: str) -> Command:
    """Make a key in an empty tag; the name in the CSR is a wish that the station ignores."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._:-]{0,63}", common_name):
        raise ModemFault("the device id cannot stand in a %KEYGEN command")
    return Command(
        f"%KEYGEN {_tag(tag)}",
        f'AT%KEYGEN={tag},{int(CredentialType.CLIENT_KEY)},0,"CN={common_name}"',
        KEYGEN_TIMEOUT_S,
    )


def prove(tag: int, subject: str, nonce: str) -> Command:
    """A token signed with the tag's key, without dates: the modem may have no clock."""
    return Command(f"%JWT {_tag(tag)}", f'AT%JWT=0,0,"{subject}","{nonce}",{tag},{int(CredentialType.CLIENT_KEY)}')


def reset() -> Command:
    """Reset the application and the modem; only some applications have it."""
    return Command("#XRESET", "AT#XRESET")


def power_off() -> Command:
    """Power the modem's functions down, which stores what is to be stored."""
    return Command("AT+CFUN=0", "AT+CFUN=0")


def asked_codes() -> Command:
    """Whether refusals say why; 0 after a boot."""
    return Command("AT+CMEE?", "AT+CMEE?")


def _tag(tag: int) -> int:
    if not 0 <= tag <= MAX_TAG:
        raise ModemFault(f"security tag {tag} is not between 0 and {MAX_TAG}")
    return tag


# --- the answers ---


def imei(lines: list[str]) -> str:
    """The 15 digits, which are this dialect's hardware serial."""
    found = [line for line in lines if _IMEI.fullmatch(line)]
    if len(found) != 1:
        raise ModemFault("the modem gave no IMEI", "is this the modem's AT port, and is its firmware an AT client?")
    return found[0]


def text(lines: list[str], what: str) -> str:
    """The last line of a reply, safe to print."""
    if not lines:
        raise ModemFault(f"the modem gave no {what}")
    return sanitise(lines[-1], 64)


def digests(lines: list[str]) -> dict[CredentialType, str]:
    """Type -> upper-case hex SHA-256 of every credential listed; other types than ours are left out."""
    found = (_LISTED.fullmatch(line) for line in lines)
    known = {int(kind) for kind in CredentialType}
    return {CredentialType(int(m[2])): m[3].upper() for m in found if m is not None and int(m[2]) in known}


def csr_der(lines: list[str]) -> bytes:
    """The DER PKCS#10 request out of a %KEYGEN reply; its signature is the caller's to check."""
    found = [match for line in lines if (match := _KEYGEN.fullmatch(line))]
    if len(found) != 1:
        raise ModemFault("the modem's %KEYGEN reply holds no CSR")
    return _bytes_of(found[0][1], "the CSR in the modem's %KEYGEN reply")


def proof(lines: list[str], subject: str, nonce: str) -> tuple[bytes, bytes]:
    """What a %JWT reply signed, and its signature in DER, if it is a token about this subject and nonce."""
    found = [match for line in lines if (match := _JWT.fullmatch(line))]
    if len(found) != 1:
        raise ModemFault("the modem's %JWT reply holds no token")
    head, body, signature = found[0].groups()
    raw = _bytes_of(signature, "the signature of the modem's token")
    try:
        algorithm = json.loads(_bytes_of(head, "the head of the modem's token"))["alg"]
        claims = json.loads(_bytes_of(body, "the body of the modem's token"))
        said = (algorithm, claims["sub"], claims["aud"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModemFault("the modem's token cannot be read") from None
    if said != ("ES256", subject, nonce) or len(raw) != _SIGNATURE_BYTES:
        raise ModemFault("the modem's token is not the one that was asked for")
    half = _SIGNATURE_BYTES // 2
    return f"{head}.{body}".encode(), encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))


def has_codes(lines: list[str]) -> bool:
    """Whether +CMEE is on."""
    found = [line for line in lines if line.startswith("+CMEE:")]
    if len(found) != 1 or found[0][6:].strip() not in ("0", "1"):
        raise ModemFault("the modem does not say what +CMEE is")
    return found[0].endswith("1")


def _bytes_of(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ModemFault(f"{what} is not base64url") from None


def stored_text(content: str) -> str:
    """What the modem keeps of a PEM text: LF line ends, no white space at the end."""
    return content.replace("\r\n", "\n").rstrip()


def digest_of(content: str) -> str:
    """What the modem lists for a PEM text."""
    return hashlib.sha256(stored_text(content).encode()).hexdigest().upper()
