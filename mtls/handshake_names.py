"""The numbers of TLS in words: versions, groups, signature schemes, alerts and handshake messages.

Data only. A number that is not here is shown as a number (`text_of`).

Sources: the IANA registries of RFC 8446 section 11 and RFC 8422, as far as they are met in practice.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

VERSIONS: Final[Mapping[int, str]] = MappingProxyType(
    {0x0300: "SSL 3.0", 0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
)
GROUPS: Final[Mapping[int, str]] = MappingProxyType(
    {
        0x0017: "P-256",
        0x0018: "P-384",
        0x0019: "P-521",
        0x001D: "x25519",
        0x001E: "x448",
        0x0100: "ffdhe2048",
        0x0101: "ffdhe3072",
        0x0102: "ffdhe4096",
        0x0103: "ffdhe6144",
        0x0104: "ffdhe8192",
        0x11EB: "secp256r1mlkem768",
        0x11EC: "x25519mlkem768",
    }
)
SIGNATURES: Final[Mapping[int, str]] = MappingProxyType(
    {
        0x0403: "ecdsa_secp256r1_sha256",
        0x0503: "ecdsa_secp384r1_sha384",
        0x0603: "ecdsa_secp521r1_sha512",
        0x0804: "rsa_pss_rsae_sha256",
        0x0805: "rsa_pss_rsae_sha384",
        0x0806: "rsa_pss_rsae_sha512",
        0x0809: "rsa_pss_pss_sha256",
        0x080A: "rsa_pss_pss_sha384",
        0x080B: "rsa_pss_pss_sha512",
        0x0401: "rsa_pkcs1_sha256",
        0x0501: "rsa_pkcs1_sha384",
        0x0601: "rsa_pkcs1_sha512",
        0x0807: "ed25519",
        0x0808: "ed448",
        0x0201: "rsa_pkcs1_sha1",
        0x0203: "ecdsa_sha1",
    }
)
ALERTS: Final[Mapping[int, str]] = MappingProxyType(
    {
        0: "close_notify",
        10: "unexpected_message",
        20: "bad_record_mac",
        22: "record_overflow",
        40: "handshake_failure",
        42: "bad_certificate",
        43: "unsupported_certificate",
        44: "certificate_revoked",
        45: "certificate_expired",
        46: "certificate_unknown",
        47: "illegal_parameter",
        48: "unknown_ca",
        49: "access_denied",
        50: "decode_error",
        51: "decrypt_error",
        70: "protocol_version",
        71: "insufficient_security",
        80: "internal_error",
        86: "inappropriate_fallback",
        90: "user_canceled",
        100: "no_renegotiation",
        109: "missing_extension",
        110: "unsupported_extension",
        112: "unrecognized_name",
        113: "bad_certificate_status_response",
        115: "unknown_psk_identity",
        116: "certificate_required",
        120: "no_application_protocol",
    }
)
MESSAGES: Final[Mapping[int, str]] = MappingProxyType(
    {
        0: "hello request",
        1: "client hello",
        2: "server hello",
        4: "session ticket",
        8: "encrypted extensions",
        11: "certificate",
        12: "server key exchange",
        13: "certificate request",
        14: "server hello done",
        15: "certificate verify",
        16: "client key exchange",
        20: "finished",
        22: "certificate status",
        24: "key update",
    }
)


def text_of(table: Mapping[int, str], number: int) -> str:
    """The name of a number, or the number in hex."""
    return table.get(number, f"0x{number:04x}")
