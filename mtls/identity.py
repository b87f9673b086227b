"""Who a certificate says its holder is: exactly one identity, or a refusal that says why there is none.

Reads the subject's common name or one subject alternative name, and nothing else. It does not verify a signature, a
date or a usage (`judgement.py` does), and it never repairs a name: what does not fit is refused, never escaped.

Sources: RFC 5280 sections 4.1.2.6 (subject) and 4.2.1.6 (subjectAltName).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from mtls.errors import Reason, Refusal

URN_PREFIX = "urn:mtls-gateway:device:"
SPIFFE_DEVICE = re.compile(r"spiffe://[^/]+/device/([^/]*)", re.IGNORECASE)
DEFAULT_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")
MAX_ID_LENGTH = 64  # RFC 5280 ub-common-name
FORBIDDEN = frozenset("/+#$")  # structure of topics: separator, wildcards, the broker's own tree

# Everything that the X.509 library raises over bytes it does not like: it reads lazily, so any access may, and most of
# these are no ValueErrors. A peer's certificate must end as a refusal, whatever is in it.
UNREADABLE: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    OverflowError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    Warning,  # where warnings are errors
)

IdentitySource = Literal["cn", "san-uri", "san-dns"]


@contextmanager
def quiet_parser() -> Iterator[None]:
    """Read a peer's odd certificate without the parser's warnings: it is judged, it does not speak to our log.

    Python's warning filters belong to the process: use it in one thread only.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True, slots=True)
class DeviceId:
    """A name that can stand as one topic level: 1 to 64 characters, no control characters, white space or `/ + # $`.

    No configuration widens this; ValueError for anything else.
    """

    value: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.value) <= MAX_ID_LENGTH:
            raise ValueError(f"a device id has 1 to {MAX_ID_LENGTH} characters, this one has {len(self.value)}")
        for character in self.value:
            if character in FORBIDDEN or not character.isprintable() or character.isspace():
                raise ValueError(f"a device id cannot contain {character!a}")

    def __str__(self) -> str:
        return self.value


def device_urn(device_id: DeviceId) -> str:
    """The subject alternative name that certificates of ours carry."""
    return URN_PREFIX + device_id.value


@dataclass(frozen=True, slots=True)
class IdentityRule:
    """Where a site reads identities from, and which names it allows."""

    source: IdentitySource = "cn"
    pattern: re.Pattern[str] = field(default=DEFAULT_PATTERN)


def identity_of(cert: x509.Certificate, rule: IdentityRule) -> DeviceId | Refusal:
    """The one identity of a certificate under `rule`.

    Nothing about validity, issuer or usage is verified here. A certificate that cannot be parsed as far as its names
    is refused as unreadable. One that is odd makes the parser warn (`quiet_parser`).
    """
    try:
        names = _names(cert, rule.source)
        san_ids = _own_san_ids(cert)
    except UNREADABLE:
        return Refusal(Reason.CERTIFICATE_UNREADABLE, "subject or subjectAltName cannot be parsed")
    if not names:
        return Refusal(Reason.IDENTITY_MISSING, f"no {rule.source}")
    if len(names) > 1:
        return Refusal(Reason.IDENTITY_AMBIGUOUS, f"{len(names)} values of {rule.source}")
    try:
        device_id = DeviceId(names[0])
    except ValueError as error:
        return Refusal(Reason.IDENTITY_MALFORMED, str(error))
    if rule.source == "cn" and any(other != device_id.value for other in san_ids):
        return Refusal(Reason.IDENTITY_CONFLICT, "common name and subjectAltName name different devices")
    if rule.pattern.fullmatch(device_id.value) is None:
        return Refusal(Reason.IDENTITY_NOT_ALLOWED, f"{device_id.value!a} does not match identity.pattern")
    return device_id


def _names(cert: x509.Certificate, source: IdentitySource) -> list[str]:
    if source == "cn":
        values = [attribute.value for attribute in cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        return [value if isinstance(value, str) else value.decode("latin-1") for value in values]
    san = _san(cert)
    if san is None:
        return []
    if source == "san-dns":
        return san.get_values_for_type(x509.DNSName)
    uris = san.get_values_for_type(x509.UniformResourceIdentifier)
    foreign = [uri for uri in uris if _id_of_uri(uri) is None]
    return foreign + sorted(set(_own_san_ids(cert)))  # our two forms may name one device side by side


def _id_of_uri(uri: str) -> str | None:
    """The id that a URI of our two forms names, legal or not; None for a foreign URI.

    Scheme and namespace of a URN are the same in upper case (RFC 8141 section 3.1): a twin in capitals is not foreign.
    """
    if uri[: len(URN_PREFIX)].lower() == URN_PREFIX:
        return uri[len(URN_PREFIX) :]
    match = SPIFFE_DEVICE.fullmatch(uri)
    return match[1] if match else None


def _own_san_ids(cert: x509.Certificate) -> list[str]:
    """Ids named by subject alternative names of our two forms; foreign entries are ignored."""
    san = _san(cert)
    if san is None:
        return []
    ids = (_id_of_uri(uri) for uri in san.get_values_for_type(x509.UniformResourceIdentifier))
    return [device_id for device_id in ids if device_id is not None]


def _san(cert: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
