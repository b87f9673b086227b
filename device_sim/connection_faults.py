"""Why there is no connection to the gateway: every cause as one sentence, a hint, and whether trying again helps.

Pure: an exception or a code goes in, a `ConnectionFault` comes out. Which side's certificate is meant is said
each time: a verification error is about the gateway's, an alert about ours. `is_permanent` means that the same
attempt gives the same answer until somebody changes a file, a clock or a policy; a network is never permanent.
Sources: MQTT 3.1.1 §3.2.2.3 (return codes), RFC 8446 §6.2 (alerts).
"""

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mtls.bounded_socket import PacketTooLarge
from mtls.errors import Fault, Reason
from mtls.tls import explain_ssl_error

CONNECT_TIMEOUT_S = 5.0  # for TCP, and again for TLS


class ConnectionFault(Fault):
    """The connection could not be made, was refused, or was lost."""

    def __init__(self, reason: Reason, message: str, *, hint: str = "", is_permanent: bool = False) -> None:
        self.reason = reason
        self.is_permanent = is_permanent
        super().__init__(message, hint=hint)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the gateway is; `ca_file` is what it is judged by and is named in sentences only."""

    host: str
    port: int
    ca_file: str = ""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class _Refused:
    reason: Reason
    sentence: str
    hint: str
    is_permanent: bool


SPEAKS_NO_MQTT_311 = 132
# paho translates the return codes 1 to 5 of MQTT 3.1.1 §3.2.2.3 into MQTT 5's reason codes.
_CONNACK: Mapping[int, _Refused] = MappingProxyType(
    {
        SPEAKS_NO_MQTT_311: _Refused(Reason.PROTOCOL_LEVEL, "does not speak MQTT 3.1.1", "check --broker", True),
        133: _Refused(
            Reason.CLIENT_ID_REFUSED,
            "refused the client identifier (return code 2)",
            "--id must be the name in the certificate: mqtt-provision inspect CERT",
            True,
        ),
        136: _Refused(Reason.SHUTDOWN, "is not ready to serve (return code 3)", "", False),
        134: _Refused(
            Reason.NO_ROLE,
            "refused user name or password (return code 4)",
            "this agent has its certificate only: let the gateway take the identity from it",
            True,
        ),
        135: _Refused(
            Reason.NO_ROLE,
            "did not authorise this device (return code 5)",
            "the gateway's audit log has the reason; its policy must also grant the will on devices/ID/state",
            True,
        ),
    }
)
_OTHER_CONNACK = _Refused(Reason.PROTOCOL_ERROR, "answered CONNECT with an unknown return code", "", True)

# What is wrong with the gateway's certificate, as seen from here.
_GATEWAY: Mapping[Reason, tuple[str, str]] = MappingProxyType(
    {
        Reason.CERTIFICATE_EXPIRED: (
            "the certificate of the gateway {at} has expired",
            "renew it on the gateway, or set this machine's clock if that is the wrong one",
        ),
        Reason.CERTIFICATE_NOT_YET_VALID: (
            "the certificate of the gateway {at} is not yet valid",
            "set this machine's clock: timedatectl status",
        ),
        Reason.ISSUER_UNKNOWN: (
            "the certificate of the gateway {at} is not from a CA in {ca}",
            "give the ca.crt of the gateway's site with --ca",
        ),
        Reason.IDENTITY_CONFLICT: (
            "the certificate of the gateway {at} is for another name than {host}",
            "use a name that is in it: openssl x509 -in server.crt -noout -ext subjectAltName",
        ),
        Reason.CERTIFICATE_USAGE: (
            "the certificate of the gateway {at} is not a server's",
            "make one with: mqtt-provision server",
        ),
    }
)


def connack_fault(code: int, endpoint: Endpoint) -> ConnectionFault:
    """The sentence for a CONNACK that says no; `code` is MQTT 5's reason code for the return code."""
    refused = _CONNACK.get(code, _OTHER_CONNACK)
    return ConnectionFault(
        refused.reason,
        f"the gateway {endpoint} {refused.sentence}",
        hint=refused.hint,
        is_permanent=refused.is_permanent,
    )


def connect_fault(error: OSError, endpoint: Endpoint) -> ConnectionFault:
    """The sentence for a connection that was not made."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason, sentence, hint = explain_ssl_error(error, server_name=endpoint.host)
        words = _GATEWAY.get(reason, (f"the certificate of the gateway {{at}} is refused: {sentence}", hint))
        text = words[0].format(at=endpoint, ca=endpoint.ca_file or "the CA file", host=endpoint.host)
        return ConnectionFault(reason, text, hint=words[1], is_permanent=True)
    if isinstance(error, ssl.SSLError):
        return _tls_fault(error, endpoint)
    if isinstance(error, socket.gaierror):
        return ConnectionFault(
            Reason.PEER_CLOSED, f"cannot find the address of {endpoint.host}", hint="check --broker and the name server"
        )
    if isinstance(error, TimeoutError):
        text = f"{endpoint} did not answer in {CONNECT_TIMEOUT_S:g} s"
        return ConnectionFault(Reason.CONNECT_TIMEOUT, text, hint=f"is it there? device-sim handshake {endpoint}")
    text = f"cannot connect to {endpoint}: {(error.strerror or type(error).__name__).lower()}"
    return ConnectionFault(Reason.PEER_CLOSED, text, hint=f"is it there? device-sim handshake {endpoint}")


def lost_fault(failure: OSError | None, endpoint: Endpoint, *, was_accepted: bool) -> ConnectionFault:
    """The sentence for a connection that ended by itself."""
    if isinstance(failure, ssl.SSLError):
        fault = _tls_fault(failure, endpoint)
        if fault.is_permanent or not was_accepted:
            return fault
    if isinstance(failure, PacketTooLarge):
        return ConnectionFault(Reason.PACKET_TOO_LARGE, f"left the gateway {endpoint}: {failure.strerror}")
    if was_accepted:
        return ConnectionFault(Reason.PEER_CLOSED, f"the connection to {endpoint} was lost")
    return ConnectionFault(
        Reason.PEER_CLOSED,
        f"the gateway {endpoint} closed the connection without an answer",
        hint="its audit log has the reason",
    )


# Alerts about our certificate: nothing changes by sending it again.
_ABOUT_US = frozenset(
    {
        Reason.NO_CERTIFICATE,
        Reason.CERTIFICATE_EXPIRED,
        Reason.CERTIFICATE_REVOKED,
        Reason.CERTIFICATE_USAGE,
        Reason.ISSUER_UNKNOWN,
    }
)


def _tls_fault(error: ssl.SSLError, endpoint: Endpoint) -> ConnectionFault:
    reason, sentence, hint = explain_ssl_error(error, server_name=endpoint.host)
    name = (error.reason or "").upper()
    if "ALERT" in name and (reason in _ABOUT_US or "CERTIFICATE" in name):
        return ConnectionFault(
            reason,
            f"the gateway {endpoint} refused this device's certificate: {sentence}",
            hint=hint,
            is_permanent=True,
        )
    # A port that speaks no TLS, or no version of ours, stays as it is; an end of file may be a restart.
    is_permanent = reason is Reason.HANDSHAKE_FAILED and any(
        word in name for word in ("VERSION", "HTTP_REQUEST", "NO_SHARED_CIPHER")
    )
    return ConnectionFault(reason, f"no TLS with {endpoint}: {sentence}", hint=hint, is_permanent=is_permanent)
