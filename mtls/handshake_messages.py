"""The messages of a TLS handshake, read as far as a person wants to know: offers, choices, certificates, alerts.

Pure, bytes in and facts out; the TLS library judges the handshake, this only describes it. A message that cannot be
read is `Unread`, never an exception, and lists are cut at named limits. Nothing secret is looked at: key shares,
randoms, signatures and verify data are passed over.

Sources: RFC 8446 sections 4 and 6 (TLS 1.3), RFC 5246 section 7.4 and RFC 8422 section 5.4 (TLS 1.2), RFC 6066
section 3 (server name).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from mtls.handshake_names import ALERTS, MESSAGES

MAX_MESSAGE_BYTES: Final = 131_072  # OpenSSL takes 100 KiB of certificates; the largest other message is far below
MAX_CERTIFICATES: Final = 16  # of one chain; two or three are usual
MAX_AUTHORITIES: Final = 64  # CA names in a certificate request
MAX_LISTED: Final = 64  # ciphers, groups, versions

NOT_FATAL: Final = frozenset({0, 90, 100})  # close_notify, user_canceled, no_renegotiation

TLS13: Final = 0x0304
_RETRY: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")  # RFC 8446, 4.1.3


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What the client offers."""

    versions: tuple[int, ...]
    ciphers: tuple[int, ...]
    groups: tuple[int, ...]
    key_shares: tuple[int, ...]
    server_name: str
    resumes: bool


@dataclass(frozen=True, slots=True)
class ServerHello:
    """What the server chose; `group` 0 where the message does not say (TLS 1.2 says it in the key exchange)."""

    version: int
    cipher: int
    group: int
    is_retry: bool


@dataclass(frozen=True, slots=True)
class Chain:
    """Certificates as DER, leaf first; none is an answer too."""

    certificates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """The server asks for a certificate; no `authorities` means that it does not say of whom."""

    authorities: tuple[bytes, ...]
    signatures: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeyExchange:
    """TLS 1.2: the group of the server's key share, and how it is signed with the certificate's key."""

    group: int
    signature: int


@dataclass(frozen=True, slots=True)
class CertificateVerify:
    """The proof that the sender holds the key of its certificate."""

    signature: int


@dataclass(frozen=True, slots=True)
class Alert:
    """One side ends the connection, and why."""

    code: int

    def __str__(self) -> str:
        return ALERTS.get(self.code, f"alert {self.code}")


@dataclass(frozen=True, slots=True)
class Unread:
    """A message that could not be read, or whose content is nobody's business."""

    why: str = ""


Content = ClientHello | ServerHello | Chain | CertificateRequest | KeyExchange | CertificateVerify | Alert | Unread


def read_message(data: bytes, version: int) -> tuple[str, Content]:
    """Name and content of one handshake message with its 4-byte header; `version` is the connection's so far."""
    if len(data) < 4:
        return "message", Unread("cut short")
    name = MESSAGES.get(data[0], f"message {data[0]}")
    parse = _PARSERS.get(data[0])
    if parse is None:
        return name, Unread()
    if len(data) > MAX_MESSAGE_BYTES:
        return name, Unread(f"{len(data)} bytes, limit {MAX_MESSAGE_BYTES}")
    try:
        content = parse(_Bytes(data[4:]), version)
    except _Cut:
        return name, Unread("cut short")
    if isinstance(content, ServerHello) and content.is_retry:
        name = "hello retry request"
    return name, content


def read_alert(data: bytes) -> Alert | Unread:
    """An alert record's two bytes."""
    return Alert(data[1]) if len(data) == 2 else Unread("cut short")


class _Cut(Exception):
    """The bytes ended before the message did."""


class _Bytes:
    """Bytes with a position; every read is within them or raises _Cut."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise _Cut
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def next(self) -> int:
        """The next byte, left where it is; -1 at the end."""
        return self._data[self._at] if self else -1

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> _Bytes:
        """What stands behind a length of `width` bytes."""
        return _Bytes(self.take(self.number(width)))

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def numbers(self, width: int = 2) -> tuple[int, ...]:
        """All the rest as numbers, cut at the limit."""
        found: list[int] = []
        while self and len(found) < MAX_LISTED:
            found.append(self.number(width))
        return tuple(found)


def _extensions(body: _Bytes) -> dict[int, _Bytes]:
    """By number, the first of each; none where the message ends before them."""
    found: dict[int, _Bytes] = {}
    if not body:
        return found
    block = body.vector(2)
    while block:
        number = block.number(2)
        found.setdefault(number, block.vector(2))
    return found


_SERVER_NAME, _GROUPS, _SIGNATURES, _TICKET, _PSK, _VERSIONS, _AUTHORITIES, _KEY_SHARE = 0, 10, 13, 35, 41, 43, 47, 51


def _client_hello(body: _Bytes, _: int) -> ClientHello:
    version = body.number(2)
    body.take(32)
    body.vector(1)  # session id: TLS 1.3 fills it for middleboxes, so it proves no resumption
    ciphers = body.vector(2).numbers()
    body.vector(1)
    extensions = _extensions(body)
    ticket = extensions.get(_TICKET)
    return ClientHello(
        versions=extensions[_VERSIONS].vector(1).numbers() if _VERSIONS in extensions else (version,),
        ciphers=ciphers,
        groups=extensions[_GROUPS].vector(2).numbers() if _GROUPS in extensions else (),
        key_shares=tuple(_shares(extensions[_KEY_SHARE].vector(2))) if _KEY_SHARE in extensions else (),
        server_name=_host_name(extensions[_SERVER_NAME]) if _SERVER_NAME in extensions else "",
        resumes=_PSK in extensions or bool(ticket),
    )


def _shares(block: _Bytes) -> Iterator[int]:
    while block:
        yield block.number(2)
        block.vector(2)


def _host_name(extension: _Bytes) -> str:
    names = extension.vector(2)
    return names.vector(2).rest().decode("ascii", "replace") if names.number(1) == 0 else ""


def _server_hello(body: _Bytes, _: int) -> ServerHello:
    version = body.number(2)
    random = body.take(32)
    body.vector(1)
    cipher = body.number(2)
    body.take(1)
    extensions = _extensions(body)
    chosen, share = extensions.get(_VERSIONS), extensions.get(_KEY_SHARE)
    return ServerHello(
        version=chosen.number(2) if chosen else version,
        cipher=cipher,
        group=share.number(2) if share else 0,
        is_retry=random == _RETRY,
    )


def _chain(body: _Bytes, version: int) -> Chain:
    if version >= TLS13:
        body.vector(1)
    entries = body.vector(3)
    found: list[bytes] = []
    while entries and len(found) < MAX_CERTIFICATES:
        found.append(entries.vector(3).rest())
        if version >= TLS13:
            entries.vector(2)
    return Chain(tuple(found))


def _certificate_request(body: _Bytes, version: int) -> CertificateRequest:
    if version >= TLS13:
        body.vector(1)
        extensions = _extensions(body)
        named, signed = extensions.get(_AUTHORITIES), extensions.get(_SIGNATURES)
        return CertificateRequest(
            authorities=_authorities(named.vector(2)) if named else (),
            signatures=signed.vector(2).numbers() if signed else (),
        )
    body.vector(1)
    signatures = body.vector(2).numbers()
    return CertificateRequest(_authorities(body.vector(2)), signatures)


def _authorities(block: _Bytes) -> tuple[bytes, ...]:
    found: list[bytes] = []
    while block and len(found) < MAX_AUTHORITIES:
        found.append(block.vector(2).rest())
    return tuple(found)


def _key_exchange(body: _Bytes, _: int) -> KeyExchange | Unread:
    if body.number(1) != 3:  # RFC 8422: named_curve; anything else is no ECDHE as we offer it
        return Unread("no named group")
    group = body.number(2)
    body.vector(1)
    return KeyExchange(group, body.number(2))


def _certificate_verify(body: _Bytes, _: int) -> CertificateVerify:
    return CertificateVerify(body.number(2))


_PARSERS: Final[Mapping[int, Callable[[_Bytes, int], Content]]] = MappingProxyType(
    {
        1: _client_hello,
        2: _server_hello,
        11: _chain,
        12: _key_exchange,
        13: _certificate_request,
        15: _certificate_verify,
    }
)


# --- names of CAs, which a certificate request carries as bare DER

_ATTRIBUTES: Final = {b"\x55\x04\x03": "CN", b"\x55\x04\x0a": "O", b"\x55\x04\x0b": "OU", b"\x55\x04\x06": "C"}
MAX_ATTRIBUTES: Final = 8


def authority_text(der: bytes) -> str:
    """A distinguished name as `CN=...,O=...`; unknown attributes are left out. Not sanitised."""
    try:
        return ",".join(_attributes(der)) or "a name without common name"
    except _Cut:
        return "an unreadable name"


def _attributes(der: bytes) -> Iterator[str]:
    relative = _element(_Bytes(der))
    for _ in range(MAX_ATTRIBUTES):
        if not relative:
            return
        pair = _element(_element(relative))
        label = _ATTRIBUTES.get(_element(pair).rest())
        encoding = "utf-16-be" if pair.next() == 0x1E else "utf-8"  # BMPString
        value = _element(pair).rest().decode(encoding, "replace")
        if label:
            yield f"{label}={value}"


def _element(body: _Bytes) -> _Bytes:
    """The content of the next DER element, whatever its tag."""
    body.take(1)
    length = body.number(1)
    return _Bytes(body.take(length if length < 0x80 else body.number(min(length & 0x7F, 4))))
