"""Each message of a handshake in words: labelled facts, certificates, and notes on what it means.

Pure. A certificate is compared with the profile that our own tools would have issued it by; a difference is said and
is no fault, since other CAs have other profiles. Everything of the peer is sanitised and cut.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mtls.handshake import Handshake, Message
from mtls.handshake_alerts import About
from mtls.handshake_messages import (
    NOT_FATAL,
    Alert,
    CertificateRequest,
    CertificateVerify,
    Chain,
    ClientHello,
    KeyExchange,
    ServerHello,
    Unread,
    authority_text,
)
from mtls.handshake_names import GROUPS, SIGNATURES, VERSIONS, text_of
from mtls.identity import UNREADABLE, quiet_parser
from mtls.profiles import DEVICE_OPERATIONAL, GATEWAY_SERVER, ISSUING_CA, ROOT_CA, Profile, fingerprint_sha256
from mtls.terminal import sanitise
from mtls.trust import is_signed_by

MAX_LISTED = 12  # names in one line; a server may ask for a hundred CAs
MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class Card:
    """What a person wants to know of one certificate."""

    subject: str
    issuer: str
    names: str
    not_before: str
    not_after: str
    key: str
    fingerprint_sha256: str
    differs: tuple[str, ...]

    def facts(self) -> list[tuple[str, str]]:
        """For a terminal; the fingerprint is for machines."""
        shown = [("subject", self.subject), ("issuer", self.issuer)]
        shown += [("names", self.names)] if self.names else []
        shown += [("valid", f"{self.not_before} to {self.not_after}"), ("key", self.key)]
        return shown + [("differs", difference) for difference in self.differs]

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__} | {"differs": list(self.differs)}


@dataclass(frozen=True, slots=True)
class Shown:
    """What there is to say about a step."""

    facts: tuple[tuple[str, str], ...] = ()
    certificates: tuple[Card, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Words:
    """Puts the messages of one handshake into words; `ciphers` names the suites that we offer."""

    handshake: Handshake
    about: About
    ciphers: Mapping[int, str]

    def of(self, message: Message) -> Shown:
        """What a message says."""
        describe = _DESCRIBE.get(type(message.content))
        with quiet_parser():
            return describe(self, message, message.content) if describe is not None else Shown()

    def is_proved(self, message: Message) -> bool:
        """We went on after a message of the server: the TLS library found nothing wrong with it."""
        messages = self.handshake.messages
        later = messages[messages.index(message) + 1 :]
        return any(not isinstance(m.content, Alert) for m in later)


def _client_hello(words: Words, _: Message, hello: ClientHello) -> Shown:
    facts = [
        ("versions", _joined(hello.versions, lambda number: text_of(VERSIONS, number))),
        ("ciphers", _joined(hello.ciphers, lambda number: words.ciphers.get(number, _signal(number)))),
        ("groups", _joined(hello.groups, lambda number: text_of(GROUPS, number))),
        ("name", sanitise(hello.server_name) or "none: an address is never sent"),
    ]
    if hello.key_shares:
        facts.insert(3, ("key share", _joined(hello.key_shares, lambda number: text_of(GROUPS, number))))
    return Shown(tuple(facts))


def _signal(number: int) -> str:
    return "(no renegotiation)" if number == 0x00FF else f"0x{number:04x}"  # RFC 5746 section 3.3


def _server_hello(words: Words, _: Message, hello: ServerHello) -> Shown:
    facts = [("version", text_of(VERSIONS, hello.version)), ("cipher", words.ciphers.get(hello.cipher, "unknown"))]
    if hello.group:
        facts.append(("group", text_of(GROUPS, hello.group)))
    notes = ("it wants a key share of this group; the hello is repeated",) if hello.is_retry else ()
    return Shown(tuple(facts), notes=notes)


def _key_exchange(_: Words, __: Message, exchange: KeyExchange) -> Shown:
    return Shown(
        (("group", text_of(GROUPS, exchange.group)), ("signature", text_of(SIGNATURES, exchange.signature))),
        notes=("signed with the key of its certificate",),
    )


def _request(words: Words, _: Message, request: CertificateRequest) -> Shown:
    named = [sanitise(authority_text(der), 80) for der in request.authorities]
    facts = (
        ("of", _joined(named, str) if named else "any CA: it does not say which"),
        ("signatures", _joined(request.signatures, lambda number: text_of(SIGNATURES, number))),
    )
    notes = ["the server asks for a client certificate"]
    issuers = {cert.issuer.public_bytes() for cert in words.about.ours}
    if named and issuers and not issuers & set(request.authorities):
        notes.append("our certificate is of none of these CAs")
    return Shown(facts, notes=tuple(notes))


def _chain(words: Words, message: Message, chain: Chain) -> Shown:
    if not chain.certificates:
        given = " although one was given: it does not fit what the server asks for" if words.about.ours else ""
        return Shown(notes=(f"none is shown{given}" if message.is_ours else "the server shows none",))
    leaf = DEVICE_OPERATIONAL if message.is_ours else GATEWAY_SERVER
    cards = tuple(_card(der, leaf if number == 0 else None) for number, der in enumerate(chain.certificates))
    if message.is_ours:
        return Shown(certificates=cards, notes=_about_ours(words.about))
    by = sanitise(words.about.ca_file, 80) or "the system's CA store"
    name = sanitise(words.about.server_name, 80)
    if words.is_proved(message):
        return Shown(certificates=cards, notes=(f"verified by {by}, for the name {name}",))
    return Shown(certificates=cards, notes=(f"not verified by {by} for the name {name}: see below",))


def _about_ours(about: About) -> tuple[str, ...]:
    notes = [
        f"not valid by this machine's clock, {_time(about.now)}"
        for cert in about.ours[:1]
        if not cert.not_valid_before_utc <= about.now <= cert.not_valid_after_utc
    ]
    if any(not is_signed_by(lower, upper) for lower, upper in pairwise(about.ours)):
        notes.append("the file is no chain: each certificate must be signed by the next one")
    return tuple(notes)


def _verify(words: Words, message: Message, verify: CertificateVerify) -> Shown:
    whose = "we prove that we hold" if message.is_ours else "the server proves that it holds"
    note = f"{whose} the key of the certificate"
    if not message.is_ours and not words.is_proved(message):
        note = "the proof does not fit the certificate"
    return Shown((("signature", text_of(SIGNATURES, verify.signature)),), notes=(note,))


def _alert(_: Words, message: Message, alert: Alert) -> Shown:
    if alert.code in NOT_FATAL:
        return Shown((("alert", str(alert)),))
    whose = "the server's side is at fault, by our judgement" if message.is_ours else "our side, by the server's"
    return Shown((("alert", str(alert)),), notes=(f"it ends the connection: {whose}",))


def _unread(_: Words, __: Message, unread: Unread) -> Shown:
    return Shown(notes=(f"not shown: {unread.why}",) if unread.why else ())


_DESCRIBE: dict[type, Callable[[Words, Message, Any], Shown]] = {
    Alert: _alert,
    CertificateRequest: _request,
    CertificateVerify: _verify,
    Chain: _chain,
    ClientHello: _client_hello,
    KeyExchange: _key_exchange,
    ServerHello: _server_hello,
    Unread: _unread,
}


# --- certificates


def _card(der: bytes, profile: Profile | None) -> Card:
    """A CA is compared with the CA profile that it comes closest to."""
    try:
        cert = x509.load_der_x509_certificate(der)
        wanted = profile or (ROOT_CA if cert.subject == cert.issuer else ISSUING_CA)
        differs = tuple(sanitise(f"{wanted.name}: {mismatch}", MAX_TEXT) for mismatch in wanted.check(cert))
        return Card(
            subject=_name(cert.subject),
            issuer=_name(cert.issuer),
            names=_alternative_names(cert),
            not_before=_time(cert.not_valid_before_utc),
            not_after=_time(cert.not_valid_after_utc),
            key=_key(cert),
            fingerprint_sha256=fingerprint_sha256(cert),
            differs=differs,
        )
    except UNREADABLE:
        return Card("unreadable", "", "", "", "", "", "", ())


def _name(name: x509.Name) -> str:
    return sanitise(name.rfc4514_string(), MAX_TEXT) or "(empty)"


def _alternative_names(cert: x509.Certificate) -> str:
    try:
        found = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    return sanitise(_joined([str(name.value) for name in found], str), MAX_TEXT)


def _key(cert: x509.Certificate) -> str:
    key = cert.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "P-256" if isinstance(key.curve, ec.SECP256R1) else f"elliptic curve {key.curve.name}"
    return f"RSA {key.key_size}" if isinstance(key, rsa.RSAPublicKey) else type(key).__name__.lstrip("_")


def _time(moment: Any) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _joined(items: Sequence[Any], text: Callable[[Any], str]) -> str:
    shown = ", ".join(text(item) for item in items[:MAX_LISTED]) or "none"
    return shown if len(items) <= MAX_LISTED else f"{shown} and {len(items) - MAX_LISTED} more"
