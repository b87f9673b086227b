"""TLS contexts, all of them: no other module makes an `ssl.SSLContext`.

Server: a client certificate is required, TLS 1.3 and 1.2 (ECDHE with AEAD only, many devices have no 1.3), no
tickets, no renegotiation, no compression; only self-signed roots are anchors, issuing CAs beside them complete the
chain of a device that sends only its leaf. With CRLs the whole chain is checked by OpenSSL at the handshake, and once
more by our own code afterwards (`judgement.py`), because a resumed session skips this one.

A context's store only grows, and a CRL with the same thisUpdate does not replace an older one in it: every reload
builds a new context (`server_context` is cheap).

Sources: RFC 8446, RFC 7525 / 9325 (cipher suites), OpenSSL 3.0 X509_VERIFY_PARAM_set_flags(3).
"""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path
from typing import Final

from mtls.context_switches import remember_no_sessions, search_no_chain
from mtls.errors import ConfigFault, Reason
from mtls.identity import UNREADABLE
from mtls.keystore import read_limited, read_private
from mtls.revocation import only_crls
from mtls.trust import TrustStore, to_pem

TLS12_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
ENCODING_DER: Final = 2  # what the ssl module's own C code calls it
NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: dates are judged by our own code
_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def server_context(
    *,
    cert_file: Path,
    key_file: Path,
    trust: TrustStore,
    crls_pem: bytes | None = None,
    own_dates: bool = False,
    optional_client: bool = False,
    min_tls: str = "1.2",
) -> ssl.SSLContext:
    """A context for a listener that serves mutual TLS; with `optional_client` a client may come without a certificate.

    `own_dates` leaves the dates of certificates and CRLs to our own judgement: OpenSSL knows no grace for a CRL past
    its nextUpdate, and no clock that is only a floor. ConfigFault when key and certificate do not match, or the key is
    loose.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context, min_tls)
    context.verify_mode = ssl.CERT_OPTIONAL if optional_client else ssl.CERT_REQUIRED
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    remember_no_sessions(context)
    if not trust.completes(_load_identity(context, cert_file, key_file)):
        search_no_chain(context)
    context.load_verify_locations(cadata=to_pem((*trust.roots, *trust.issuing)).decode("ascii"))
    if crls_pem is not None:
        _load_crls(context, crls_pem)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
    leave_dates(context, own_dates=own_dates)
    return context


def leave_dates(context: ssl.SSLContext, *, own_dates: bool) -> None:
    """Leave dates to our own judgement, or have OpenSSL check them as well; holds from the next handshake on."""
    flags = context.verify_flags
    wanted = flags | NO_CHECK_TIME if own_dates else flags & ~NO_CHECK_TIME
    if wanted != flags:
        context.verify_flags = wanted


def proven_issuer(tls: ssl.SSLObject | ssl.SSLSocket) -> bytes | None:
    """The DER of the certificate whose key verified the peer's in this connection's own handshake.

    None after a resumed session, where nothing was verified, and where this Python does not say: the verified chain is
    public from 3.13 on only. It is the second of the chain that OpenSSL built, from the CAs it trusts or from what the
    peer sent, so it says who signed the leaf and not whether that one is trusted by anybody else.
    """
    if tls.session_reused:
        return None
    try:
        chain = tls._sslobj.get_verified_chain()  # type: ignore[union-attr]
        der: bytes = chain[1].public_bytes(ENCODING_DER)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    return der


def measured_server_context(*, cert_file: Path, key_file: Path, tickets: bool) -> ssl.SSLContext:
    """Plain TLS, for measuring what mutual TLS costs beside it: it asks nobody for a certificate and serves nobody.

    With `tickets` sessions are resumed, which the gateway's own context never does.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context, "1.2")
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    if not tickets:
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
    _load_identity(context, cert_file, key_file)
    return context


def client_context(
    *,
    ca_file: Path | None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
    check_hostname: bool = True,
    min_tls: str = "1.2",
    max_tls: str = "1.3",
) -> ssl.SSLContext:
    """A context for a client that verifies the server by `ca_file` and its name, and shows a certificate if given.

    `ca_file` None means the CAs that this machine's system trusts.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context, min_tls)
    context.maximum_version = _version("max_tls", max_tls)
    context.check_hostname = check_hostname
    try:
        if ca_file is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            context.load_verify_locations(cadata=read_limited(ca_file).decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigFault(f"{ca_file} holds no CA certificates", hint="name the ca.crt of the site") from error
    if cert_file is not None and key_file is not None:
        _load_identity(context, cert_file, key_file)
    elif cert_file is not None or key_file is not None:
        raise ConfigFault(
            f"{cert_file or key_file} is only one half of a pair", hint="give a certificate and its key, or neither"
        )
    return context


def _version(key: str, text: str) -> ssl.TLSVersion:
    if text not in _VERSIONS:
        raise ConfigFault(f"{key} = {text!a} is not one of 1.2, 1.3", hint=f'write {key} = "1.2"')
    return _VERSIONS[text]


def _harden(context: ssl.SSLContext, min_tls: str) -> None:
    minimum = _version("min_tls", min_tls)
    context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # an issuing CA alone is no anchor
    context.minimum_version = minimum
    context.set_ciphers(TLS12_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def _load_identity(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> bytes:
    """Have the context show this certificate; what was read of `cert_file`."""
    cert_pem = read_limited(cert_file)
    read_private(key_file)

    def no_passphrase() -> str:
        raise ConfigFault(
            f"{key_file} is encrypted", hint="a program that starts by itself needs a plain key, mode 0600"
        )

    try:
        context.load_cert_chain(cert_file, key_file, password=no_passphrase)
    except ssl.SSLError as error:
        if "KEY_VALUES_MISMATCH" in str(error):
            raise ConfigFault(
                f"{key_file} is not the key of {cert_file}", hint="name the pair that was issued together"
            ) from error
        raise ConfigFault(
            f"{cert_file} or {key_file} cannot be used: {error.reason}", hint="both must be PEM"
        ) from error
    except OSError as error:
        raise ConfigFault(
            f"{cert_file} or {key_file} cannot be read: {error.strerror}", hint="check their permissions"
        ) from error
    return cert_pem


def _load_crls(context: ssl.SSLContext, crls_pem: bytes) -> None:
    """OpenSSL takes CRLs from a file only, and would trust a CA certificate that stands in it: CRLs only, anew."""
    try:
        crls = only_crls(crls_pem)
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(crls)
            file.flush()
            context.load_verify_locations(cafile=file.name)
    except ssl.SSLError as error:
        raise ConfigFault("the CRL file holds no CRL", hint="publish one: mqtt-provision crl") from error
    except UNREADABLE as error:
        raise ConfigFault("the CRL file holds a CRL that cannot be parsed", hint="it must be PEM") from error
    except OSError as error:
        raise ConfigFault(
            f"cannot write a temporary file for the CRLs: {error.strerror}", hint="check the free space"
        ) from error


_UNTRUSTED_ROOT: Final = (
    Reason.ISSUER_UNKNOWN,
    "the certificate is self-signed or its root is not trusted",
    "use a certificate of a CA in ca_file",
)
_NO_COMMON_VERSION: Final = (
    Reason.HANDSHAKE_FAILED,
    "there is no TLS version that both sides allow",
    "use TLS 1.2 or 1.3",
)

# What OpenSSL says, what it means, and what to do. First match wins; alerts come from the other side.
_EXPLANATIONS: Final[tuple[tuple[str, Reason, str, str], ...]] = (
    (
        "PEER_DID_NOT_RETURN_A_CERTIFICATE",
        Reason.NO_CERTIFICATE,
        "the client sent no certificate",
        "give it a certificate and its key",
    ),
    ("CERTIFICATE_REQUIRED", Reason.NO_CERTIFICATE, "the server wants a client certificate", "give --cert and --key"),
    (
        "ALERT_CERTIFICATE_EXPIRED",
        Reason.CERTIFICATE_EXPIRED,
        "the other side says that our certificate has expired",
        "renew it; if it has not expired, the other side's clock is wrong or its CRL is past its nextUpdate",
    ),
    (
        "ALERT_CERTIFICATE_REVOKED",
        Reason.CERTIFICATE_REVOKED,
        "the other side says that our certificate is revoked",
        "provision the device again with a new key",
    ),
    (
        "ALERT_UNKNOWN_CA",
        Reason.ISSUER_UNKNOWN,
        "the other side does not know the CA of our certificate",
        "use a certificate of a CA in its ca_file; if it is one, its crl_file lacks that CA's CRL",
    ),
    (
        "ALERT_UNSUPPORTED_CERTIFICATE",
        Reason.CERTIFICATE_USAGE,
        "the other side does not accept the kind of our certificate",
        "a client certificate needs clientAuth: mqtt-provision inspect",
    ),
    (
        "ALERT_BAD_CERTIFICATE",
        Reason.HANDSHAKE_FAILED,
        "the other side does not accept our certificate",
        "it is not yet valid by the other side's clock, damaged, or for another name: mqtt-provision inspect",
    ),
    (
        "ALERT_DECRYPT_ERROR",
        Reason.HANDSHAKE_FAILED,
        "the other side cannot verify a signature of ours",
        "its CA of that name has another key: compare both sides' ca_file",
    ),
    (
        "ALERT_CERTIFICATE_UNKNOWN",
        Reason.HANDSHAKE_FAILED,
        "the other side does not accept our certificate",
        "check it with mqtt-provision inspect",
    ),
    (
        "CERTIFICATE HAS EXPIRED",
        Reason.CERTIFICATE_EXPIRED,
        "the certificate has expired",
        "renew it, or set the clock",
    ),
    (
        "CERTIFICATE IS NOT YET VALID",
        Reason.CERTIFICATE_NOT_YET_VALID,
        "the certificate is not yet valid",
        "set the clock: it is behind the certificate's notBefore",
    ),
    ("CERTIFICATE REVOKED", Reason.CERTIFICATE_REVOKED, "the certificate is revoked", "issue a new one"),
    ("CRL HAS EXPIRED", Reason.CRL_STALE, "the CRL is past its nextUpdate", "publish a new CRL: mqtt-provision crl"),
    ("CRL IS NOT YET VALID", Reason.CRL_NOT_YET_VALID, "the CRL is not yet valid", "set the clock"),
    ("UNABLE TO GET CERTIFICATE CRL", Reason.CRL_MISSING, "there is no CRL of the issuing CA", "add it to crl_file"),
    ("CRL SIGNATURE FAILURE", Reason.CRL_INVALID, "the CRL's signature is wrong", "publish a new CRL"),
    (
        "HOSTNAME MISMATCH",
        Reason.IDENTITY_CONFLICT,
        "the server's certificate is for another name",
        "use a name that is in it",
    ),
    (
        "IP ADDRESS MISMATCH",
        Reason.IDENTITY_CONFLICT,
        "the server's certificate is for another address",
        "use one that is in it",
    ),
    (
        "UNSUITABLE CERTIFICATE PURPOSE",
        Reason.CERTIFICATE_USAGE,
        "the certificate is not for this purpose",
        "clients need clientAuth, servers serverAuth",
    ),
    (
        "UNSUPPORTED CERTIFICATE PURPOSE",
        Reason.CERTIFICATE_USAGE,
        "the certificate is not for this purpose",
        "clients need clientAuth, servers serverAuth",
    ),
    ("INVALID CA CERTIFICATE", Reason.ISSUER_UNKNOWN, "a certificate above it is no CA", "check the chain"),
    ("SELF-SIGNED CERTIFICATE", *_UNTRUSTED_ROOT),
    ("SELF SIGNED CERTIFICATE", *_UNTRUSTED_ROOT),
    ("UNABLE TO GET", Reason.ISSUER_UNKNOWN, "no trusted CA signed the certificate", "check ca_file"),
    ("CERTIFICATE SIGNATURE FAILURE", Reason.ISSUER_UNKNOWN, "no trusted CA signed the certificate", "check ca_file"),
    ("UNSUPPORTED_PROTOCOL", *_NO_COMMON_VERSION),
    ("PROTOCOL_VERSION", *_NO_COMMON_VERSION),
    ("NO_SHARED_CIPHER", Reason.HANDSHAKE_FAILED, "there is no common cipher suite", "enable ECDHE with AES-GCM"),
    (
        "HANDSHAKE_FAILURE",
        Reason.HANDSHAKE_FAILED,
        "the other side broke the handshake off",
        "before TLS 1.3 that is also the answer to a client without a certificate or without ECDHE and AES-GCM",
    ),
    (
        "WRONG_VERSION_NUMBER",
        Reason.HANDSHAKE_FAILED,
        "the peer does not speak TLS on this port",
        "check host and port",
    ),
    ("HTTP_REQUEST", Reason.HANDSHAKE_FAILED, "the peer speaks HTTP on this port", "check host and port"),
    ("CERTIFICATE_VERIFY_FAILED", Reason.HANDSHAKE_FAILED, "the certificate does not verify", ""),
)


def explain_ssl_error(exc: BaseException, *, server_name: str = "") -> tuple[Reason, str, str]:
    """What a failed handshake means: reason, one sentence, and a hint (maybe empty)."""
    said = f"{getattr(exc, 'verify_message', '') or ''} {getattr(exc, 'reason', '') or ''} {exc}".upper()
    for key, reason, sentence, hint in _EXPLANATIONS:
        if key in said:
            name = f" ({server_name})" if server_name and reason is Reason.IDENTITY_CONFLICT else ""
            return reason, sentence + name, hint
    if isinstance(exc, TimeoutError):
        return Reason.HANDSHAKE_TIMEOUT, "the handshake took too long", ""
    if isinstance(exc, ssl.SSLEOFError | ConnectionError | EOFError) or "EOF OCCURRED" in said:
        return Reason.PEER_CLOSED, "the other side closed the connection during the handshake", ""
    return Reason.HANDSHAKE_FAILED, f"the handshake failed: {_code(exc)}", ""


def _code(exc: BaseException) -> str:
    """OpenSSL's name for an error, or the exception's: constants both, never text of the peer."""
    code = exc.reason if isinstance(exc, ssl.SSLError) else None
    return code or type(exc).__name__
