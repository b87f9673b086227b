"""What a server's alert says about us, held against what we know of our own certificate and clock.

An alert is one number, and OpenSSL gives several causes the same one: `certificate_expired` also for a CRL past its
nextUpdate, `bad_certificate` also for a certificate that is not yet valid, `unknown_ca` also for a missing CRL, and
before TLS 1.3 `handshake_failure` for a client without a certificate. So each alert is compared with our own files
first, and every cause that is left is named, the likeliest first.

Pure. Sources: RFC 8446 section 6.2, RFC 5246 section 7.2.2, OpenSSL's ssl_x509err2alert.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from mtls.errors import Reason
from mtls.handshake import Handshake
from mtls.handshake_messages import CertificateRequest, Chain, authority_text
from mtls.handshake_names import ALERTS
from mtls.identity import UNREADABLE
from mtls.terminal import sanitise
from mtls.tls import explain_ssl_error
from mtls.trust import is_signed_by

YOUNG: Final = timedelta(days=1)  # a certificate this young is refused by a server whose clock is a little behind


class Side(StrEnum):
    """What can be at fault."""

    OUR_CERTIFICATE = "our certificate"
    OUR_CLOCK = "our clock"
    OUR_CA_FILE = "our CA file"
    OUR_NAME = "the name we asked for"
    OUR_OFFER = "the versions and ciphers we offer"
    SERVER_CERTIFICATE = "the server's certificate"
    SERVER_CLOCK = "the server's clock"
    SERVER_CA = "the server's CA file or CRL"
    SERVER_RULES = "the server's own rules"
    SERVER = "the server"
    PORT = "the port or the network"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer: `at_fault` names what to look at, the likeliest first. Sentence and hint are safe to print."""

    is_ok: bool
    reason: Reason | None
    at_fault: tuple[Side, ...]
    sentence: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """What we know by ourselves. `ours` is our chain, leaf first; no `ca_file` means the system's CAs."""

    server_name: str
    ca_file: str
    authorities: tuple[x509.Certificate, ...]
    cert_file: str
    ours: tuple[x509.Certificate, ...]
    offered: str
    now: datetime


def refused(reason: Reason, at_fault: tuple[Side, ...], sentence: str, hint: str = "") -> Verdict:
    """A verdict that says no."""
    return Verdict(False, reason, at_fault, sentence, hint)


def at(moment: datetime) -> str:
    """A time as it stands in sentences."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def alert_code(handshake: Handshake) -> int | None:
    """The server's alert, also when no messages were watched: the library's error carries its name."""
    if handshake.alert is not None:
        return handshake.alert.code
    reason = handshake.error.reason or "" if isinstance(handshake.error, ssl.SSLError) else ""
    _, found, name = reason.partition("ALERT_")
    return next((code for code, known in ALERTS.items() if known.upper() == name), 0) if found else None


def alert_verdict(code: int, handshake: Handshake, about: About) -> Verdict:
    """What the alert is about."""
    if _wants_certificate(code, handshake, about):
        return _no_certificate(handshake, about)
    judge = _ALERTS.get(code)
    if judge is not None:
        return judge(handshake, about)
    reason, sentence, hint = explain_ssl_error(handshake.error or OSError())
    name = ALERTS.get(code, f"number {code}")
    if reason is Reason.HANDSHAKE_FAILED and sentence.startswith("the handshake failed"):
        sentence = f"the server ended the handshake with the alert {name}"
    return refused(reason, (Side.SERVER,), sentence, hint or "its log should say more")


def silent_verdict(handshake: Handshake, about: About, otherwise: Verdict) -> Verdict:
    """The server closed without an alert, as servers on Python's asyncio do: what is plainly wrong with our side."""
    request, shown = handshake.first(CertificateRequest), handshake.first(Chain, ours=True)
    if request is None or shown is None:
        return otherwise
    if not shown.certificates:
        return _no_certificate(handshake, about)
    leaf = about.ours[0] if about.ours else None
    if leaf is None:
        return otherwise
    issuers = {cert.issuer.public_bytes() for cert in about.ours}
    plain: tuple[tuple[bool, Callable[[Handshake, About], Verdict]], ...] = (
        (any(cert.not_valid_after_utc < about.now for cert in about.ours), _expired),
        (leaf.not_valid_before_utc > about.now, _bad),
        (not has_usage(leaf, ExtendedKeyUsageOID.CLIENT_AUTH), _usage),
        (bool(request.authorities) and not issuers & set(request.authorities), _unknown_ca),
    )
    return next((judge(handshake, about) for is_so, judge in plain if is_so), otherwise)


def _wants_certificate(code: int, handshake: Handshake, about: About) -> bool:
    """A client that showed no certificate is refused: in TLS 1.3 by name, before by one of two other alerts."""
    if code == 116:
        return True
    if code not in (40, 42):
        return False
    if not handshake.is_watched:
        return not about.ours and handshake.version == "TLS 1.2"
    shown = handshake.first(Chain, ours=True)
    return handshake.first(CertificateRequest) is not None and shown is not None and not shown.certificates


def _no_certificate(handshake: Handshake, about: About) -> Verdict:
    if about.ours:
        return refused(
            Reason.NO_CERTIFICATE,
            (Side.OUR_CERTIFICATE, Side.SERVER),
            f"{about.cert_file} was not shown: the server asks for kinds of signatures that its key cannot make",
            "compare the key's kind with the signatures in the certificate request above",
        )
    return refused(
        Reason.NO_CERTIFICATE,
        (Side.OUR_CERTIFICATE,),
        "the server wants a client certificate, and none was given",
        "give --cert and --key",
    )


def _expired(_: Handshake, about: About) -> Verdict:
    for number, cert in enumerate(about.ours):
        if cert.not_valid_after_utc < about.now:
            whose = "our certificate" if number == 0 else "the CA certificate above ours"
            return refused(
                Reason.CERTIFICATE_EXPIRED,
                (Side.OUR_CERTIFICATE, Side.OUR_CLOCK),
                f"{whose} has expired: notAfter={at(cert.not_valid_after_utc)}, clock={at(about.now)}",
                "renew it",
            )
    until = f" until {at(about.ours[0].not_valid_after_utc)}" if about.ours else ""
    return refused(
        Reason.CERTIFICATE_EXPIRED,
        (Side.SERVER_CA, Side.SERVER_CLOCK, Side.OUR_CLOCK),
        f"the server says that our certificate has expired; by this machine's clock it is valid{until}",
        "a CRL of the server past its nextUpdate says the same; if not that, compare both clocks: timedatectl status",
    )


def _bad(_: Handshake, about: About) -> Verdict:
    ours = about.ours[0] if about.ours else None
    if ours is not None and ours.not_valid_before_utc > about.now:
        return refused(
            Reason.CERTIFICATE_NOT_YET_VALID,
            (Side.OUR_CLOCK, Side.OUR_CERTIFICATE),
            f"our certificate is not yet valid: notBefore={at(ours.not_valid_before_utc)}, clock={at(about.now)}",
            "set this machine's clock, or the clock of the machine that issued it: timedatectl status",
        )
    if ours is not None and ours.not_valid_before_utc > about.now - YOUNG:
        return refused(
            Reason.HANDSHAKE_FAILED,
            (Side.SERVER_CLOCK, Side.SERVER_CA, Side.OUR_CERTIFICATE),
            f"the server does not accept our certificate, which is young: notBefore={at(ours.not_valid_before_utc)}",
            "its clock may be behind, or its CRL is not yet valid; else the certificate is damaged",
        )
    return refused(
        Reason.HANDSHAKE_FAILED,
        (Side.OUR_CERTIFICATE, Side.SERVER_CA),
        "the server does not accept our certificate: damaged, or checked by a CRL that is not yet valid",
        "mqtt-provision inspect CERT; the server's log says more",
    )


def _usage(_: Handshake, about: About) -> Verdict:
    missing = bool(about.ours) and not has_usage(about.ours[0], ExtendedKeyUsageOID.CLIENT_AUTH)
    return refused(
        Reason.CERTIFICATE_USAGE,
        (Side.OUR_CERTIFICATE,),
        "our certificate is not a client's: " + ("it lacks clientAuth" if missing else "the server refuses its usage"),
        "issue one for a device or service: mqtt-provision issue",
    )


def has_usage(cert: x509.Certificate, usage: x509.ObjectIdentifier) -> bool:
    """The certificate may be used so; without the extension it may be used for anything."""
    try:
        return usage in cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except UNREADABLE:
        return False


def _revoked(_: Handshake, __: About) -> Verdict:
    return refused(
        Reason.CERTIFICATE_REVOKED,
        (Side.OUR_CERTIFICATE,),
        "our certificate, or the CA above it, is revoked by the server's CRL",
        "provision the device again with a new key",
    )


def _unknown_ca(handshake: Handshake, about: About) -> Verdict:
    issuer = issuer_text(about.ours[0]) if about.ours else "?"
    request = handshake.first(CertificateRequest)
    wanted = request.authorities if request is not None else ()
    names = {cert.issuer.public_bytes() for cert in about.ours}
    hint = "use a certificate of a CA in the server's ca_file"
    if wanted and not names & set(wanted):
        asked = sanitise(", ".join(authority_text(der) for der in wanted[:3]), 120)
        sentence = f"our certificate is from {issuer}, the server asks for {asked}"
        return refused(Reason.ISSUER_UNKNOWN, (Side.OUR_CERTIFICATE, Side.SERVER_CA), sentence, hint)
    if _is_namesake(about):
        return _signature(handshake, about)
    if len(about.ours) == 1:
        hint += "; if it holds only the root, our file must carry the issuing CA after the leaf"
    return refused(
        Reason.ISSUER_UNKNOWN,
        (Side.OUR_CERTIFICATE, Side.SERVER_CA),
        f"the server does not know the CA of our certificate, {issuer}",
        f"{hint}; if it is one of these, its crl_file lacks that CA's CRL",
    )


def issuer_text(cert: x509.Certificate) -> str:
    """The issuer's name, safe to print."""
    return sanitise(authority_text(cert.issuer.public_bytes()), 80)


def subject_text(cert: x509.Certificate) -> str:
    """The subject's name, safe to print."""
    return sanitise(authority_text(cert.subject.public_bytes()), 80)


def _is_namesake(about: About) -> bool:
    """Our own CA file holds CAs with the names of our chain's issuers, and none of them signed it."""
    named = [(cert, ca) for cert in about.ours for ca in about.authorities if ca.subject == cert.issuer]
    return bool(named) and not any(is_signed_by(cert, ca) for cert, ca in named)


def _signature(_: Handshake, about: About) -> Verdict:
    issuer = issuer_text(about.ours[0]) if about.ours else "?"
    return refused(
        Reason.ISSUER_UNKNOWN,
        (Side.OUR_CERTIFICATE, Side.SERVER_CA),
        f"the CA {issuer} that the server knows did not sign our certificate: same name, another key",
        "compare both sides' CA files: mqtt-provision inspect ca.crt",
    )


def _unknown(_: Handshake, __: About) -> Verdict:
    return refused(
        Reason.HANDSHAKE_FAILED,
        (Side.OUR_CERTIFICATE, Side.SERVER_RULES),
        "the server does not accept our certificate and gives no reason",
        "mqtt-provision inspect CERT; the server's log says more",
    )


def _failure(handshake: Handshake, about: About) -> Verdict:
    if handshake.first(Chain, ours=True) is not None:
        return refused(
            Reason.HANDSHAKE_FAILED,
            (Side.OUR_CERTIFICATE, Side.SERVER_RULES),
            "the server broke the handshake off after it had seen our certificate",
            "the server's log says more",
        )
    return refused(
        Reason.HANDSHAKE_FAILED,
        (Side.OUR_OFFER, Side.SERVER),
        "the server takes none of the cipher suites, groups or signatures that we offer",
        "enable ECDHE with AES-GCM on it, and a P-256 or RSA certificate",
    )


def _version(_: Handshake, about: About) -> Verdict:
    return refused(
        Reason.HANDSHAKE_FAILED,
        (Side.OUR_OFFER, Side.SERVER),
        f"there is no TLS version that both sides allow; we offer {about.offered}",
        "leave --tls out, or enable TLS 1.2 or 1.3 on the server",
    )


def _server_name(_: Handshake, about: About) -> Verdict:
    return refused(
        Reason.IDENTITY_CONFLICT,
        (Side.OUR_NAME, Side.SERVER),
        f"the server does not know the name {sanitise(about.server_name, 80)}",
        "give its name with --server-name",
    )


_ALERTS: Final[Mapping[int, Callable[[Handshake, About], Verdict]]] = MappingProxyType(
    {
        40: _failure,
        42: _bad,
        43: _usage,
        44: _revoked,
        45: _expired,
        46: _unknown,
        48: _unknown_ca,
        51: _signature,
        70: _version,
        112: _server_name,
    }
)
