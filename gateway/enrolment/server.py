"""EST over TLS: `/.well-known/est/cacerts` for everybody, `/simplereenroll` for who shows a certificate.

aiohttp does the HTTP. Bounded are: TCP connections taken a second and at a time, the handshake, the request as a
whole, its headers, its body. A handshake here runs on the loop that serves MQTT, so few are taken a second; the rest
waits in the kernel's queue. Every connection gets the TLS context in force, so a reload needs no new listener.

Not here: enrolment of who has no certificate, csrattrs, key generation (RFC 7030 sections 4.2.1, 4.4, 4.5).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from gateway.bounded_http import BoundedServer, HttpLimits, refusal
from gateway.enrolment.authority import Issued, Record
from gateway.enrolment.renewal import Attempts, RenewalRules, may_renew, renewed
from gateway.listening import listening_socket
from mtls.clock import Moment
from mtls.csr import MAX_CSR_BYTES
from mtls.errors import Reason, Refusal
from mtls.judgement import Peer
from mtls.profiles import certificate_serial_hex
from mtls.tls import explain_ssl_error

if TYPE_CHECKING:
    from gateway.audit import AuditLog
    from gateway.config import EnrolmentConfig
    from gateway.security import SecurityState

PREFIX: Final = "/.well-known/est/"
MAX_BODY_BYTES: Final = MAX_CSR_BYTES * 2  # base64 with a line break after every few characters
MAX_CLIENTS: Final = 64
REQUEST_TIMEOUT_S: Final = 10.0  # from the handshake to the last byte of the answer
HANDSHAKE_TIMEOUT_S: Final = 10.0
ACCEPTS_PER_S: Final = 20.0  # a fleet of 10,000 with certificates of a year renews 30 a day
BACKLOG: Final = 128
SHUTDOWN_TIMEOUT_S: Final = 1.0
RETRY_AFTER_S: Final = 600
CERTS_ONLY: Final = "application/pkcs7-mime; smime-type=certs-only"

# What an HTTP client is told; a reason that is not here means that the certificate was refused.
_STATUS: Final = {
    Reason.CLOCK_UNSYNCED: 503,
    Reason.TOO_MANY_RENEWALS: 429,
    Reason.REQUEST_MALFORMED: 400,
    Reason.REQUEST_TOO_LARGE: 413,
    Reason.CSR_INVALID: 400,
    Reason.CSR_NAMES_DIFFER: 400,
    Reason.KEY_REUSED: 400,
}

log = logging.getLogger("mqtt_gateway.enrolment")


class EnrolmentServer:
    """One EST server. `state` and `clock` are asked at every request."""

    def __init__(
        self,
        config: EnrolmentConfig,
        state: Callable[[], SecurityState],
        clock: Callable[[], Moment],
        audit: AuditLog,
        counts: Counter[str],
    ) -> None:
        self._config = config
        self._rules = RenewalRules(config.renew_window, config.same_key)
        self._state = state
        self._clock = clock
        self._audit = audit
        self._counts = counts
        self._attempts = Attempts()
        self._signing = asyncio.Lock()  # one signer, one writer of the record
        self._runner = web.ServerRunner(
            BoundedServer(self._answer, HttpLimits(MAX_CLIENTS, REQUEST_TIMEOUT_S)), shutdown_timeout=SHUTDOWN_TIMEOUT_S
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshaking = 0

    async def open(self) -> None:
        """Listen; Fault when the port is taken or the record cannot be written."""
        self._record = await asyncio.to_thread(Record, self._config.issuing_ca_dir, self._clock().at)
        self._socket = listening_socket(*self._config.bind, key="[enrolment] bind", backlog=BACKLOG)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        await self._runner.setup()
        self._spawn(self._accept())

    async def close(self) -> None:
        """Stop serving."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close()
        await self._runner.cleanup()

    # connections

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(self._socket)
            except OSError as error:  # out of descriptors: the rest waits in the kernel's queue
                log.warning("cannot accept: %s", error)
            else:
                if self._handshaking < MAX_CLIENTS:
                    self._spawn(self._handshake(sock, str(address[0])))
                else:
                    sock.close()
            await asyncio.sleep(1 / ACCEPTS_PER_S)

    async def _handshake(self, sock: socket.socket, address: str) -> None:
        """TLS, then the connection is aiohttp's. Who fails is refused and told of like the broker's."""
        self._handshaking += 1
        context = self._state().enrolment_context
        try:
            if context is None or self._runner.server is None:
                sock.close()
                return
            await asyncio.get_running_loop().connect_accepted_socket(
                self._runner.server, sock, ssl=context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
            )
        except (OSError, ssl.SSLError) as error:
            sock.close()
            reason, sentence, _ = explain_ssl_error(error)
            self._refused(None, Refusal(reason, sentence), address)
        finally:
            self._handshaking -= 1

    # requests

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        try:
            response = await self._respond(request)
        except Exception:
            log.exception("a request could not be answered")
            response = refusal(500)
        response.force_close()
        return response

    async def _respond(self, request: web.BaseRequest) -> web.Response:
        served = {"cacerts": ("GET", self._cacerts), "simplereenroll": ("POST", self._reenroll)}
        method, respond = served.get(request.raw_path.removeprefix(PREFIX), ("", None))
        if respond is None or not request.raw_path.startswith(PREFIX):
            return refusal(404)
        if request.method != method:
            return refusal(405, Allow=method)
        return await respond(request)

    async def _cacerts(self, request: web.BaseRequest) -> web.Response:
        trust = self._state().trust
        return _certificates((*trust.roots, *trust.issuing), "application/pkcs7-mime")

    async def _reenroll(self, request: web.BaseRequest) -> web.Response:
        address = _address_of(request)
        peer = may_renew(self._state(), _leaf_of(request), self._clock(), self._rules)
        if isinstance(peer, Refusal):
            return self._refused(None, peer, address)
        body = self._attempts.refusal(str(peer.id), time.monotonic()) or await _body_of(request)
        verdict = body if isinstance(body, Refusal) else await self._sign(peer, body)
        if isinstance(verdict, Refusal):
            return self._refused(peer, verdict, address)
        self._counts["renewed"] += 1
        self._audit.write(
            "renewed",
            peer=peer,
            address=address,
            new_certificate_serial=certificate_serial_hex(verdict),
            new_not_after=verdict.not_valid_after_utc.isoformat(),
        )
        return _certificates((verdict,), CERTS_ONLY)

    async def _sign(self, peer: Peer, csr_der: bytes) -> x509.Certificate | Refusal:
        """Sign and record; a certificate that is not on record does not leave. The disk is waited for off the loop."""
        async with self._signing:
            issuer, now = self._state().issuer, self._clock()
            if issuer is None:
                return Refusal(Reason.NOT_RENEWABLE, "there is no [enrolment] in the configuration any more")
            # The body may come seconds after the headers: who was revoked meanwhile must not outlive it by a new one.
            still = may_renew(self._state(), peer.leaf_der, now, self._rules)
            if isinstance(still, Refusal):
                return still
            new = renewed(peer, csr_der, issuer, self._rules, now.at, self._record.owner_of)
            if isinstance(new, x509.Certificate):
                await asyncio.to_thread(self._record.add, Issued.of(str(peer.id), new))
            return new

    def _refused(self, peer: Peer | None, why: Refusal, address: str) -> web.Response:
        self._counts[f"renewal_refused.{why.reason}"] += 1
        self._audit.write("renewal_refused", peer=peer, reason=why.reason, detail=why.detail, address=address)
        status = _STATUS.get(why.reason, 403)
        headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else {}
        return web.Response(status=status, text=f"{why.reason}\n", headers=headers)


def _certificates(certificates: Iterable[x509.Certificate], content_type: str) -> web.Response:
    """Certificates in a degenerate PKCS#7, base64 in lines (RFC 8951 section 3)."""
    der = pkcs7.serialize_certificates(list(certificates), Encoding.DER)
    return web.Response(body=base64.encodebytes(der), headers={"Content-Type": content_type})


async def _body_of(request: web.BaseRequest) -> bytes | Refusal:
    """The CSR's DER out of a request: base64, line breaks or not, nothing else (RFC 8951 section 3)."""
    if request.content_type != "application/pkcs10":
        return Refusal(Reason.REQUEST_MALFORMED, "the content type is not application/pkcs10")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        return Refusal(Reason.REQUEST_TOO_LARGE, f"limit {MAX_BODY_BYTES} bytes")
    body = b""
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return Refusal(Reason.REQUEST_TOO_LARGE, f"limit {MAX_BODY_BYTES} bytes")
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error:
        return Refusal(Reason.REQUEST_MALFORMED, "the body is not base64")


def _leaf_of(request: web.BaseRequest) -> bytes | None:
    """The certificate that this connection showed."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    leaf: bytes | None = tls.getpeercert(binary_form=True) if tls is not None else None
    return leaf


def _address_of(request: web.BaseRequest) -> str:
    name = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(name[0]) if name else ""
