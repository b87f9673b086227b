"""What a handshake came to, and when it failed, what is at fault: whose certificate, clock, CA file or name.

Pure: the watched handshake, our own certificates and the time go in, a `Verdict` comes out. A verification error is
about the server's certificate, an alert about ours (`handshake_alerts.py`). Where the same sign has several causes
they are all named, the likeliest first: a clock is suspected before a certificate when our own files contradict it.

Not known here: what the server's log knows. A server that lets a client in and then sends it away by its own rules
(a deny list, a policy) gives no reason.
Source: OpenSSL X509_STORE_CTX_get_error(3).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from mtls.errors import Reason
from mtls.handshake import End, Handshake, TooMuch
from mtls.handshake_alerts import (
    About,
    Side,
    Verdict,
    alert_code,
    alert_verdict,
    at,
    has_usage,
    issuer_text,
    refused,
    silent_verdict,
    subject_text,
)
from mtls.handshake_messages import CertificateRequest, Chain
from mtls.identity import UNREADABLE, quiet_parser
from mtls.profiles import common_name
from mtls.terminal import sanitise
from mtls.tls import explain_ssl_error
from mtls.trust import is_signed_by

MAX_NAMES: Final = 6  # of a server's certificate, in a sentence


def judge(handshake: Handshake, about: About) -> Verdict:
    """The verdict on a handshake and on what followed it."""
    with quiet_parser():
        if handshake.end is not End.NOT_REACHED:
            return _after(handshake, about)
        if isinstance(handshake.error, ssl.SSLCertVerificationError):
            return _server_certificate(handshake.error, handshake, about)
        code = alert_code(handshake)
        if code is not None:
            return alert_verdict(code, handshake, about)
        return _broken(handshake, about)


def server_chain(handshake: Handshake) -> tuple[x509.Certificate, ...]:
    """The certificates that the server sent, leaf first, up to the first that cannot be read."""
    sent = handshake.first(Chain)
    ders = sent.certificates if sent is not None else (handshake.leaf,) if handshake.leaf else ()
    found = []
    for der in ders:
        try:
            found.append(x509.load_der_x509_certificate(der))
        except UNREADABLE:
            break
    return tuple(found)


# --- a handshake that was completed


def _after(handshake: Handshake, about: About) -> Verdict:
    if handshake.end is End.REFUSED:
        return alert_verdict(alert_code(handshake) or 0, handshake, about)
    if handshake.end is End.CLOSED:
        otherwise = refused(
            Reason.PEER_CLOSED,
            (Side.OUR_CERTIFICATE, Side.SERVER_RULES),
            "our side of the handshake was completed, then the server closed the connection without an alert",
            f"it refuses our certificate{_foreign(about)}, or its deny list or policy does: its log has the reason",
        )
        return silent_verdict(handshake, about, otherwise)
    if handshake.end is End.SILENT:
        return refused(
            Reason.HANDSHAKE_TIMEOUT,
            (Side.SERVER,),
            "no alert came, but the server did not answer our goodbye either: whether it let us in is not known",
            "it is stuck or overloaded, or leaves connections half open",
        )
    return _in(handshake, about)


def _foreign(about: About) -> str:
    """Words for a certificate of a CA that our own CA file does not hold: one site mostly has one CA."""
    names = {ca.subject for ca in about.authorities}
    if not about.ours or not names or any(cert.issuer in names for cert in about.ours):
        return ""
    return f", which is from {issuer_text(about.ours[0])} and of no CA in {sanitise(about.ca_file, 80)}"


def _in(handshake: Handshake, about: About) -> Verdict:
    asked, shown = handshake.first(CertificateRequest) is not None, handshake.first(Chain, ours=True)
    if not handshake.is_watched:
        return Verdict(True, None, (), "the handshake was completed and no refusal followed")
    if about.ours and not asked:
        return refused(
            Reason.NO_CERTIFICATE,
            (Side.SERVER,),
            "the server never asked for a certificate: this is plain TLS, and it does not know who we are",
            "mutual TLS must be switched on there",
        )
    if not asked:
        return Verdict(True, None, (), "plain TLS: the server is who it should be and asks for no certificate")
    if shown is None or not shown.certificates:
        sentence = "the server asks for a certificate but lets clients in without one"
        return Verdict(True, None, (), sentence)
    return Verdict(True, None, (), "mutual TLS: each side has verified the other's certificate")


# --- the server's certificate


def _server_certificate(error: ssl.SSLCertVerificationError, handshake: Handshake, about: About) -> Verdict:
    chain = server_chain(handshake)
    kind = _VERIFY.get(error.verify_code)
    if kind is not None:
        return kind(chain, about)
    reason, sentence, hint = explain_ssl_error(error, server_name=about.server_name)
    return refused(reason, (Side.SERVER_CERTIFICATE,), f"the server's certificate is refused: {sentence}", hint)


def _who(number: int, cert: x509.Certificate) -> str:
    if number == 0:
        return "the server's certificate"
    return f"the CA certificate {sanitise(common_name(cert.subject), 64)!a} above the server's"


def _past(chain: tuple[x509.Certificate, ...], about: About) -> Verdict:
    late = [(n, c) for n, c in enumerate((*chain, *about.authorities)) if c.not_valid_after_utc < about.now]
    doubt = bool(about.ours) and about.ours[0].not_valid_after_utc < about.now
    if not late:
        return refused(
            Reason.CERTIFICATE_EXPIRED,
            (Side.SERVER_CERTIFICATE, Side.OUR_CLOCK),
            f"a certificate of the server's chain has expired; clock={at(about.now)}",
            "renew it on the server",
        )
    number, cert = late[0]
    sentence = f"{_who(number, cert)} has expired: notAfter={at(cert.not_valid_after_utc)}, clock={at(about.now)}"
    if doubt:
        return refused(
            Reason.CERTIFICATE_EXPIRED,
            (Side.OUR_CLOCK, Side.SERVER_CERTIFICATE),
            f"{sentence}; our own certificate has expired by this clock, too",
            "this machine's clock is probably ahead: timedatectl status; if it is right, renew both",
        )
    return refused(
        Reason.CERTIFICATE_EXPIRED,
        (Side.SERVER_CERTIFICATE, Side.OUR_CLOCK),
        sentence,
        "renew it on the server; if it has not expired, this machine's clock is ahead: timedatectl status",
    )


def _future(chain: tuple[x509.Certificate, ...], about: About) -> Verdict:
    early = [(n, c) for n, c in enumerate((*chain, *about.authorities)) if c.not_valid_before_utc > about.now]
    known = (*about.ours, *about.authorities)  # files that were made before they came here
    behind = any(cert.not_valid_before_utc > about.now for cert in known)
    what = "a certificate of the server's chain is not yet valid: clock="
    if early:
        number, cert = early[0]
        what = f"{_who(number, cert)} is not yet valid: notBefore={at(cert.not_valid_before_utc)}, clock="
    if behind:
        return refused(
            Reason.CERTIFICATE_NOT_YET_VALID,
            (Side.OUR_CLOCK,),
            f"{what}{at(about.now)}; by this clock our own files are not valid yet, either",
            "set this machine's clock: it is behind: timedatectl status",
        )
    return refused(
        Reason.CERTIFICATE_NOT_YET_VALID,
        (Side.OUR_CLOCK, Side.SERVER_CERTIFICATE),
        f"{what}{at(about.now)}",
        "set this machine's clock: timedatectl status; if it is right, the clock of the issuing machine",
    )


def _issuer(chain: tuple[x509.Certificate, ...], about: About) -> Verdict:
    ca_file = sanitise(about.ca_file, 80) or "the system's CA store"
    by = issuer_text(chain[0]) if chain else "an unreadable name"
    named = [(cert, ca) for cert in chain for ca in about.authorities if ca.subject == cert.issuer]
    above = next((ca for cert, ca in named if is_signed_by(cert, ca)), None)
    top = chain[-1] if chain else None
    at_fault: tuple[Side, ...] = (Side.OUR_CA_FILE, Side.SERVER_CERTIFICATE)
    hint = "give the ca.crt of the server's site with --ca"
    if top is not None and len(chain) == 1 and top.subject == top.issuer:
        sentence = f"the server's certificate is self-signed, and {ca_file} does not hold it"
    elif above is not None and above.subject != above.issuer:
        sentence = f"{ca_file} holds {subject_text(above)}, but not the self-signed root above it"
        at_fault, hint = (Side.OUR_CA_FILE,), "put the root CA into it: roots are the only anchors"
    elif named and above is None:
        sentence = f"{ca_file} holds a CA of the same name as the server's, {by}, but with another key"
    else:
        sentence = f"the server's certificate is from {by}, which is not in {ca_file}"
        if len(chain) == 1:
            hint += "; the server sends no issuing CA: its cert_file should hold the leaf and then the issuing CA"
    return refused(Reason.ISSUER_UNKNOWN, at_fault, sentence, hint)


def _name(chain: tuple[x509.Certificate, ...], about: About) -> Verdict:
    wanted = sanitise(about.server_name, 80)
    names = ", ".join(server_names(chain[0])[:MAX_NAMES]) if chain else ""
    return refused(
        Reason.IDENTITY_CONFLICT,
        (Side.OUR_NAME, Side.SERVER_CERTIFICATE),
        f"the server's certificate is for {sanitise(names, 160) or 'no name'}, not for {wanted}",
        "use a name that is in it, or --server-name; or issue it for this one, too: mqtt-provision server",
    )


def server_names(cert: x509.Certificate) -> list[str]:
    """DNS names and addresses of a server's certificate, not sanitised; none when they cannot be read."""
    try:
        san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(name.value) for name in san if isinstance(name, x509.DNSName | x509.IPAddress)]
    except x509.ExtensionNotFound:
        return []
    except UNREADABLE:
        return []


def _purpose(chain: tuple[x509.Certificate, ...], _: About) -> Verdict:
    is_client = bool(chain) and has_usage(chain[0], ExtendedKeyUsageOID.CLIENT_AUTH)
    what = "a client's (it lacks serverAuth)" if is_client else "not a server's (it lacks serverAuth)"
    return refused(
        Reason.CERTIFICATE_USAGE,
        (Side.SERVER_CERTIFICATE,),
        f"the server's certificate is {what}",
        "issue it as a server's: mqtt-provision server",
    )


_VERIFY: Final[Mapping[int, Callable[[tuple[x509.Certificate, ...], About], Verdict]]] = MappingProxyType(
    {
        **dict.fromkeys((2, 7, 18, 19, 20, 21), _issuer),  # no issuer found, or one whose key does not fit
        9: _future,
        10: _past,
        26: _purpose,
        62: _name,
        64: _name,  # an address
    }
)


# --- a handshake that broke


def _broken(handshake: Handshake, about: About) -> Verdict:
    error = handshake.error
    if isinstance(error, TooMuch):
        return refused(
            Reason.HANDSHAKE_FAILED, (Side.SERVER, Side.PORT), "the server sent more than any handshake needs"
        )
    if not handshake.first_bytes:
        return _mute(handshake)
    if not handshake.is_tls:
        return refused(
            Reason.HANDSHAKE_FAILED,
            (Side.PORT,),
            f"the port does not speak TLS: {_speaks(handshake.first_bytes)}",
            "check host and port; MQTT over TLS is usually 8883",
        )
    reason, sentence, hint = explain_ssl_error(error or OSError(), server_name=about.server_name)
    if reason in (Reason.PEER_CLOSED, Reason.HANDSHAKE_TIMEOUT):
        last = f" after {handshake.messages[-1].name}" if handshake.messages else ""
        how = "fell silent" if reason is Reason.HANDSHAKE_TIMEOUT else "closed the connection"
        sentence = f"the server {how} in the middle of the handshake{last}"
        otherwise = refused(reason, (Side.SERVER, Side.PORT), sentence, "its log should say why")
        return otherwise if reason is Reason.HANDSHAKE_TIMEOUT else silent_verdict(handshake, about, otherwise)
    if "SIGNATURE" in _library_reason(error):
        return refused(
            Reason.HANDSHAKE_FAILED,
            (Side.SERVER_CERTIFICATE, Side.PORT),
            "the server cannot prove that it holds the key of its certificate",
            "its key_file is not the key of its cert_file, or something in between alters the connection",
        )
    side = Side.OUR_OFFER if "PROTOCOL" in _library_reason(error) else Side.SERVER
    return refused(reason, (side,), sentence, hint)


def _library_reason(error: Exception | None) -> str:
    return (error.reason or "") if isinstance(error, ssl.SSLError) else ""


def _mute(handshake: Handshake) -> Verdict:
    if isinstance(handshake.error, TimeoutError):
        return refused(
            Reason.HANDSHAKE_TIMEOUT,
            (Side.PORT, Side.SERVER),
            f"the port takes connections but said nothing for {handshake.handshake_ms / 1000:.0f} s",
            "it waits for something other than TLS, is stuck, or too busy to accept",
        )
    return refused(
        Reason.PEER_CLOSED,
        (Side.PORT, Side.SERVER),
        "the server closed the connection without a word",
        "a port without TLS does that, and a server that has too many connections",
    )


_OTHERS: Final = ((b"HTTP/", "it answers in HTTP"), (b"SSH-", "it is an SSH server"), (b"220", "it is a mail server"))
_MQTT_CONNACK: Final = b"\x20\x02"


def _speaks(first: bytes) -> str:
    if first.startswith(_MQTT_CONNACK):
        return "it answers in MQTT without TLS"
    return next((what for start, what in _OTHERS if first.startswith(start)), f"it begins with {first[:4].hex(' ')}")
