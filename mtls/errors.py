"""Faults and refusals: the two ways in which something does not happen.

A `Fault` is an exception: something is broken (a file, a key, a port) and somebody has to act. Its text is one
lower-case sentence that names the file, key and value, and its hint is the next thing to do.
A `Refusal` is a value: the answer is no. Its `Reason` is public, documented and never renamed: audit lines, metrics
and scenarios are compared by it.

Neither ever holds key material or raw text of a peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Fault(Exception):
    """Something is broken; `str()` says what, `hint` says what to do next, `exit_code` is the program's."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigFault(Fault):
    """A configuration that cannot be used (EX_CONFIG of sysexits.h): systemd does not restart on it."""

    exit_code: ClassVar[int] = 78


class NoVerdict(Fault):
    """What was to be judged could not be tried to its end, so the answer is neither yes nor no."""

    exit_code: ClassVar[int] = 2


class Reason(StrEnum):
    """Why something was refused, denied or ended. One list for the whole product."""

    # identity
    NO_CERTIFICATE = "no_certificate"
    IDENTITY_MISSING = "identity_missing"
    IDENTITY_AMBIGUOUS = "identity_ambiguous"
    IDENTITY_MALFORMED = "identity_malformed"
    IDENTITY_CONFLICT = "identity_conflict"
    IDENTITY_NOT_ALLOWED = "identity_not_allowed"
    # certificate
    CERTIFICATE_UNREADABLE = "certificate_unreadable"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_NOT_YET_VALID = "certificate_not_yet_valid"
    CERTIFICATE_IS_CA = "certificate_is_ca"
    CERTIFICATE_USAGE = "certificate_usage"
    ISSUER_UNKNOWN = "issuer_unknown"
    ISSUER_NOT_ALLOWED = "issuer_not_allowed"
    NOT_REGISTERED = "not_registered"
    CERTIFICATE_REVOKED = "certificate_revoked"
    CERTIFICATE_DENIED = "certificate_denied"
    CRL_MISSING = "crl_missing"
    CRL_STALE = "crl_stale"
    CRL_INVALID = "crl_invalid"
    CRL_NOT_YET_VALID = "crl_not_yet_valid"
    # connection
    HANDSHAKE_FAILED = "handshake_failed"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_TOO_LARGE = "connect_too_large"
    CONNECT_MALFORMED = "connect_malformed"
    PROTOCOL_LEVEL = "protocol_level"
    CLIENT_ID_REFUSED = "client_id_refused"
    NO_ROLE = "no_role"
    WILL_REFUSED = "will_refused"
    PLUGIN_REFUSED = "plugin_refused"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    TOO_MANY_HANDSHAKES = "too_many_handshakes"
    TOO_MANY_SESSIONS = "too_many_sessions"
    # topics
    GRANTED = "granted"
    NO_GRANT = "no_grant"
    DENIED_BY_RULE = "denied_by_rule"
    PUBLISH_DENIED = "publish_denied"
    RETAIN_DENIED = "retain_denied"
    SUBSCRIBE_DENIED = "subscribe_denied"
    RECEIVE_DENIED = "receive_denied"
    # renewal
    CLOCK_UNSYNCED = "clock_unsynced"
    RENEWAL_TOO_EARLY = "renewal_too_early"
    TOO_MANY_RENEWALS = "too_many_renewals"
    REQUEST_MALFORMED = "request_malformed"
    REQUEST_TOO_LARGE = "request_too_large"
    CSR_INVALID = "csr_invalid"
    CSR_NAMES_DIFFER = "csr_names_differ"
    KEY_REUSED = "key_reused"
    NOT_RENEWABLE = "not_renewable"
    # live
    PACKET_TOO_LARGE = "packet_too_large"
    PROTOCOL_ERROR = "protocol_error"
    KEEP_ALIVE_TIMEOUT = "keep_alive_timeout"
    TAKEN_OVER = "taken_over"
    KICKED = "kicked"
    QUEUE_FULL = "queue_full"
    STORE_FULL = "store_full"
    SHUTDOWN = "shutdown"
    PEER_CLOSED = "peer_closed"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer is no: a public reason and, for people, what was compared with what."""

    reason: Reason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)
