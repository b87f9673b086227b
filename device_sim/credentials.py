"""The agent's own certificate, judged before anybody is called: a clear sentence here beats an alert from afar.

Looked at: the files, the match of key and certificate, the key's permissions, and the dates. Not looked at: who
issued it and whether it is revoked, which is the gateway's to say. The files are read again for every connection,
so a renewed certificate is used at the next one; when the new files do not fit together (a renewal half done),
the pair that worked goes on being used, and that is said.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from mtls.errors import ConfigFault, Fault, Reason
from mtls.identity import DeviceId, IdentityRule, identity_of
from mtls.keystore import load_certificate
from mtls.tls import client_context


class CertificateFault(Fault):
    """A certificate that no retry makes good; `reason` is public."""

    def __init__(self, reason: Reason, message: str, *, hint: str) -> None:
        self.reason = reason
        super().__init__(message, hint=hint)


@dataclass(frozen=True, slots=True)
class Files:
    """The three files of a device."""

    cert_file: Path
    key_file: Path
    ca_file: Path


def leaf_of(cert_file: Path) -> x509.Certificate:
    """The first certificate of a PEM file; ConfigFault naming the file when there is none."""
    return load_certificate(cert_file, "name the ID.crt that was issued with the key")


def check_dates(cert_file: Path, leaf: x509.Certificate, now: datetime) -> None:
    """CertificateFault when the certificate is not valid at `now` by this machine's clock."""
    if now > leaf.not_valid_after_utc:
        raise CertificateFault(
            Reason.CERTIFICATE_EXPIRED,
            f"{cert_file} expired at {_time(leaf.not_valid_after_utc)} (clock={_time(now)})",
            hint="renew the certificate, or set this machine's clock if that is the wrong one",
        )
    if now < leaf.not_valid_before_utc:
        raise CertificateFault(
            Reason.CERTIFICATE_NOT_YET_VALID,
            f"{cert_file} is not valid before {_time(leaf.not_valid_before_utc)} (clock={_time(now)})",
            hint="set this machine's clock: timedatectl status",
        )


def other_name(leaf: x509.Certificate, device_id: str) -> str:
    """The device that the certificate names, when it is not `device_id`; "" when it is, or names none by its CN."""
    found = identity_of(leaf, IdentityRule())
    return found.value if isinstance(found, DeviceId) and found.value != device_id else ""


class Credentials:
    """A TLS context from the files as they are now, or from the last ones that were good."""

    def __init__(self, files: Files, narrate: Callable[[str], None]) -> None:
        self._files = files
        self._narrate = narrate
        self._good: ssl.SSLContext | None = None

    def context(self, now: datetime) -> ssl.SSLContext:
        """A client context; ConfigFault for files that never were good, CertificateFault for wrong dates."""
        try:
            leaf = leaf_of(self._files.cert_file)
            context = client_context(
                ca_file=self._files.ca_file, cert_file=self._files.cert_file, key_file=self._files.key_file
            )
        except ConfigFault as fault:
            if self._good is None:
                raise
            self._narrate(f"{fault}; going on with the certificate read before")
            return self._good
        check_dates(self._files.cert_file, leaf, now)
        self._good = context
        return context


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
