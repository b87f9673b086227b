"""The agent renews its own certificate, by EST at two thirds of its life, and trusts it when it has proved itself.

Theory: two phases. A new key and certificate lie beside the old ones as `FILE.next`; the connection's thread ends its
connection in order and makes the next one with them. Only when the gateway has accepted that one do they take the
place of the old, the key first: a crash between the two renames leaves a new key, an old certificate, and the new
certificate's `.next`, which `settle` puts in place. A gateway that refuses the new identity costs nothing but the try.

A renewal that fails never ends the agent and never takes the old identity away; it is tried again, later each time.
Not verified here: who issued the new certificate. It names the same device, for the key that was made here, and the
gateway has accepted it. Spec: RFC 7030 section 4.2.2, RFC 8951.
"""

import base64
import contextlib
import http.client
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from device_sim.credentials import Files, leaf_of
from mtls.csr import names_of
from mtls.errors import Fault
from mtls.identity import UNREADABLE
from mtls.keystore import key_pem, load_key, new_key, write_private, write_public
from mtls.profiles import spki_sha256
from mtls.tls import client_context
from mtls.trust import to_pem

EST_PATH = "/.well-known/est"
RENEW_AFTER = 2 / 3  # of its life: a third is left for a site that is offline for weeks
SPREAD = 1 / 12  # of its life, drawn at random, so that a fleet burned in one week does not renew in one minute
TIMEOUT_S = 20.0  # for each step of the request
MAX_REPLY_BYTES = 64 * 1024  # one certificate is about 1 KiB
FIRST_RETRY_S = 60.0
LONGEST_RETRY_S = 6 * 3600.0
LOOK_S = 60.0  # how often the dates are looked at: the clock may be set, and the files replaced, by others


class RenewalFault(Fault):
    """No new certificate this time."""


@dataclass(frozen=True, slots=True)
class EstServer:
    """Where certificates are renewed."""

    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> "EstServer":
        """`https://HOST[:PORT]`, optionally with EST's own path; Fault for anything else."""
        try:
            parts = urlsplit(url)
            port = parts.port or 443
        except ValueError:
            parts, port = urlsplit(""), 0
        is_plain = parts.path.rstrip("/") in ("", EST_PATH) and not (parts.query or parts.fragment or parts.username)
        if parts.scheme != "https" or not parts.hostname or not is_plain or not url.isascii():
            raise Fault("the renewal URL is no https://HOST[:PORT]", hint="--renew-url https://gateway.local:8443")
        return cls(parts.hostname, port)


def next_to(file: Path) -> Path:
    """Where what follows a file waits."""
    return file.with_name(f"{file.name}.next")


def settle(files: Files) -> None:
    """Finish a swap that was cut short: the new key is in its place, the new certificate not yet."""
    cert, key = next_to(files.cert_file), next_to(files.key_file)
    if cert.exists() and not key.exists() and _belong_together(cert, files.key_file):
        cert.rename(files.cert_file)
    elif cert.exists() != key.exists():  # half of a pair that was never whole
        cert.unlink(missing_ok=True)
        key.unlink(missing_ok=True)


def _belong_together(cert_file: Path, key_file: Path) -> bool:
    try:
        return spki_sha256(leaf_of(cert_file)) == spki_sha256(load_key(key_file).public_key())
    except Fault:
        return False


class Renewal:
    """Renews the certificate in `files` when it is due. `run` is a thread's; the rest is the connection's."""

    def __init__(
        self,
        files: Files,
        server: EstServer,
        narrate: Callable[[str], None],
        *,
        first_retry_s: float = FIRST_RETRY_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._files = files
        self._server = server
        self._narrate = narrate
        self._clock = clock
        self._first_retry_s = first_retry_s
        # When a fleet renews is spread, and no secret.
        self._rng = random.Random()  # noqa: S311
        self._share = RENEW_AFTER + self._rng.uniform(0.0, SPREAD)
        self._failures = 0
        self._answered = threading.Event()  # the connection's thread has tried the candidate
        settle(files)

    @property
    def candidate(self) -> Files | None:
        """A new identity that waits for its proof."""
        cert, key = next_to(self._files.cert_file), next_to(self._files.key_file)
        return Files(cert, key, self._files.ca_file) if cert.exists() and key.exists() else None

    def proven(self) -> None:
        """The gateway has accepted the candidate: it takes the place of the old identity."""
        next_to(self._files.key_file).rename(self._files.key_file)
        next_to(self._files.cert_file).rename(self._files.cert_file)
        self._failures = 0
        self._answered.set()
        until = leaf_of(self._files.cert_file).not_valid_after_utc
        self._narrate(f"renewed: {self._files.cert_file} is valid until {until:%Y-%m-%d}")

    def refused(self, fault: Fault) -> None:
        """The gateway does not accept the candidate: the old identity stays, and the candidate goes."""
        next_to(self._files.cert_file).unlink(missing_ok=True)
        next_to(self._files.key_file).unlink(missing_ok=True)
        self._failures += 1
        self._answered.set()
        self._narrate(f"the renewed certificate is not accepted ({fault}); going on with the old one")

    def run(self, stop: threading.Event, ring: Callable[[], None]) -> None:
        """Until `stop`; `ring` wakes the connection's thread when there is a candidate."""
        while not stop.is_set():
            if self.candidate is None and self._is_due():
                self._attempt()
            if self.candidate is not None:
                self._answered.clear()
                ring()
                while not stop.is_set() and self.candidate is not None:
                    self._answered.wait(1.0)
            stop.wait(self._pause_s())

    def _is_due(self) -> bool:
        try:
            leaf = leaf_of(self._files.cert_file)
        except Fault:
            return False  # who connects with it says so
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        return leaf.not_valid_before_utc + life * self._share <= self._clock() < leaf.not_valid_after_utc

    def _pause_s(self) -> float:
        if self._failures == 0:
            return LOOK_S
        longest = min(LONGEST_RETRY_S, self._first_retry_s * 2 ** min(self._failures - 1, 16))
        return self._rng.uniform(longest / 2, longest)

    def _attempt(self) -> None:
        try:
            key, certificate = self._enrol()
            write_private(next_to(self._files.key_file), key_pem(key))
            write_public(next_to(self._files.cert_file), to_pem([certificate]))
        except (Fault, OSError, http.client.HTTPException) as error:
            self._failures += 1
            self._narrate(f"not renewed: {error or type(error).__name__}; the certificate in use stays")

    def _enrol(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        files, leaf, key = self._files, leaf_of(self._files.cert_file), new_key()
        context = client_context(ca_file=files.ca_file, cert_file=files.cert_file, key_file=files.key_file)
        connection = http.client.HTTPSConnection(
            self._server.host, self._server.port, timeout=TIMEOUT_S, context=context
        )
        with contextlib.closing(connection):
            body = base64.encodebytes(request_for(leaf, key))
            connection.request("POST", f"{EST_PATH}/simplereenroll", body, {"Content-Type": "application/pkcs10"})
            answer = connection.getresponse()
            content = answer.read(MAX_REPLY_BYTES + 1)
        if answer.status != http.client.OK:
            raise RenewalFault(f"the gateway answers {answer.status}")
        return key, certificate_in(content, leaf, key)


def request_for(leaf: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A PKCS#10 request with the names of `leaf`, DER."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(leaf.subject)
    with contextlib.suppress(x509.ExtensionNotFound):
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        builder = builder.add_extension(names.value, critical=names.critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def certificate_in(content: bytes, old: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """The certificate of an EST reply; RenewalFault unless it is one for this key and these names that lives longer."""
    if len(content) > MAX_REPLY_BYTES:
        raise RenewalFault(f"the reply is longer than {MAX_REPLY_BYTES} bytes")
    try:
        found = pkcs7.load_der_pkcs7_certificates(base64.b64decode(content))
        matching = [new for new in found if spki_sha256(new) == spki_sha256(key.public_key())]
    except UNREADABLE:  # binascii.Error is a ValueError
        raise RenewalFault("the reply holds no certificates") from None
    if len(matching) != 1 or names_of(matching[0]) != names_of(old):
        raise RenewalFault("the reply holds no certificate for this device's new key and names")
    if matching[0].not_valid_after_utc - old.not_valid_after_utc < timedelta(0):
        raise RenewalFault("the new certificate ends before the old one")
    return matching[0]
