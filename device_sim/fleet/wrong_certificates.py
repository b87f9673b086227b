"""Device certificates with one thing wrong, by name: everything else is as the station would issue it.

Each is made from the right certificate, so that a gateway that refuses it refuses it for what its name says. A
dangerous name (`dev/x`, `+`) is set without the checks that our own profiles make.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mtls.keystore import new_key
from mtls.profiles import DEVICE_OPERATIONAL, ISSUING_CA, Issuer, common_name

Make = Callable[[str, EllipticCurvePrivateKey, Issuer], x509.Certificate]

MONTH, HOUR = timedelta(days=30), timedelta(hours=1)
FOR_SERVERS = replace(DEVICE_OPERATIONAL, extended_key_usage=(ExtendedKeyUsageOID.SERVER_AUTH,))
FOR_A_CA = replace(DEVICE_OPERATIONAL, is_ca=True)


@dataclass(frozen=True, slots=True)
class Wrong:
    """One kind of wrong certificate: what is wrong, and how it is made of a device id, a key and the right issuer."""

    effect: str
    make: Make


def _built(**changed: Any) -> Make:
    """The right certificate, built with other settings."""

    def make(device_id: str, key: EllipticCurvePrivateKey, issuer: Issuer) -> x509.Certificate:
        profile = changed.get("profile", DEVICE_OPERATIONAL)
        now = datetime.now(UTC) + changed.get("ahead", timedelta(0))
        certificate: x509.Certificate = profile.build(
            subject_cn=device_id, public_key=key.public_key(), issuer=issuer, now=now
        )
        return certificate

    return make


def _self_signed(device_id: str, key: EllipticCurvePrivateKey, issuer: Issuer) -> x509.Certificate:
    return DEVICE_OPERATIONAL.build(
        subject_cn=device_id, public_key=key.public_key(), issuer=None, key=key, now=datetime.now(UTC)
    )


def _of_another_ca(device_id: str, key: EllipticCurvePrivateKey, issuer: Issuer) -> x509.Certificate:
    """A CA that calls itself as ours does and has another key."""
    other, name = new_key(), common_name(issuer.certificate.subject)
    twin = ISSUING_CA.build(
        subject_cn=name, public_key=other.public_key(), issuer=None, key=other, now=datetime.now(UTC)
    )
    return _built()(device_id, key, Issuer(twin, other))


def _resigned(
    right: x509.Certificate, issuer: Issuer, *, subject: x509.Name | None = None, validity: tuple[datetime, datetime]
) -> x509.Certificate:
    """The right certificate with another subject or other dates, unchecked."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject if subject is not None else right.subject)
        .issuer_name(right.issuer)
        .public_key(right.public_key())
        .serial_number(right.serial_number)
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
    )
    for extension in right.extensions:
        if subject is None or not isinstance(extension.value, x509.SubjectAlternativeName):
            builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(issuer.key, hashes.SHA256())


def _expired(device_id: str, key: EllipticCurvePrivateKey, issuer: Issuer) -> x509.Certificate:
    """A month that ended an hour ago; the test CA may be younger than that, so the dates are set by hand."""
    now = datetime.now(UTC)
    return _resigned(_built()(device_id, key, issuer), issuer, validity=(now - MONTH, now - HOUR))


def _named(*names: str) -> Make:
    """Common names as they stand here, `{id}` for the device's, and no other name beside them."""

    def make(device_id: str, key: EllipticCurvePrivateKey, issuer: Issuer) -> x509.Certificate:
        right = _built()(device_id, key, issuer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names that are wrong on purpose
            texts = [name.replace("{id}", device_id) for name in names]
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text, _validate=False) for text in texts])
        return _resigned(
            right, issuer, subject=subject, validity=(right.not_valid_before_utc, right.not_valid_after_utc)
        )

    return make


WRONG: Mapping[str, Wrong] = MappingProxyType(
    {
        "expired": Wrong("its notAfter has passed", _expired),
        "not-yet-valid": Wrong("its notBefore is a month ahead", _built(ahead=MONTH)),
        "wrong-ca": Wrong("another CA of the same name signed it", _of_another_ca),
        "self-signed": Wrong("the device signed it itself", _self_signed),
        "wrong-usage": Wrong("it is for servers", _built(profile=FOR_SERVERS)),
        "is-a-ca": Wrong("it is a CA's", _built(profile=FOR_A_CA)),
        "two-names": Wrong("it has two common names, the device's first", _named("{id}", "{id}-b")),
        "no-name": Wrong("it has no name", _named()),
        "wrong-name": Wrong("its common name reaches into a tree: ID/x", _named("{id}/x")),
        "wildcard-name": Wrong("its common name is +", _named("+")),
    }
)
