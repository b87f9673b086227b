"""Faults, refusals and the public list of reasons."""

from __future__ import annotations

from mtls.errors import ConfigFault, Fault, Reason, Refusal

# Audit lines, metrics and scenarios are compared by these: one may be added, none renamed or removed.
PUBLISHED = [
    "no_certificate",
    "identity_missing",
    "identity_ambiguous",
    "identity_malformed",
    "identity_conflict",
    "identity_not_allowed",
    "certificate_unreadable",
    "certificate_expired",
    "certificate_not_yet_valid",
    "certificate_is_ca",
    "certificate_usage",
    "issuer_unknown",
    "issuer_not_allowed",
    "certificate_revoked",
    "certificate_denied",
    "crl_missing",
    "crl_stale",
    "crl_invalid",
    "crl_not_yet_valid",
    "handshake_failed",
    "handshake_timeout",
    "connect_timeout",
    "connect_too_large",
    "connect_malformed",
    "protocol_level",
    "client_id_refused",
    "no_role",
    "will_refused",
    "plugin_refused",
    "too_many_connections",
    "too_many_handshakes",
    "too_many_sessions",
    "granted",
    "no_grant",
    "denied_by_rule",
    "publish_denied",
    "retain_denied",
    "subscribe_denied",
    "receive_denied",
    "packet_too_large",
    "protocol_error",
    "keep_alive_timeout",
    "taken_over",
    "kicked",
    "queue_full",
    "shutdown",
    "peer_closed",
]


def test_no_published_reason_disappears() -> None:
    """Whoever compares with a published reason goes on working."""
    assert set(PUBLISHED) <= {str(reason) for reason in Reason}


def test_a_reason_is_its_name_in_lower_case() -> None:
    """Name and value never drift apart."""
    assert [reason.value for reason in Reason] == [reason.name.lower() for reason in Reason]


def test_a_fault_carries_its_hint_and_exit_code() -> None:
    """A configuration fault is the one that systemd does not restart on."""
    fault, config = Fault("a is broken", hint="mend a"), ConfigFault("b is broken")
    assert (str(fault), fault.hint, fault.exit_code) == ("a is broken", "mend a", 1)
    assert (str(config), config.hint, config.exit_code) == ("b is broken", "", 78)


def test_a_refusal_reads_as_reason_and_detail() -> None:
    """What an operator sees; without a detail there is no colon."""
    assert str(Refusal(Reason.NO_CERTIFICATE)) == "no_certificate"
    assert str(Refusal(Reason.CERTIFICATE_EXPIRED, "clock=1")) == "certificate_expired: clock=1"
