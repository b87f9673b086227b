"""`mqtt-gateway crl fetch`: brings the newest CRLs to the gateway's crl_file, or leaves the file as it is.

What is fetched is believed for its signature alone, so plain HTTP will do (RFC 5280 section 8). The file is replaced
only when every fetched CRL was signed by a known CA, none is older than the one held, and one is newer by cRLNumber:
a CRL that is played back cannot bring a revoked certificate back. CRLs of other CAs in the file are kept.

Bounded in size and time. The running gateway sees the new file by itself, or by `mqtt-gateway reload`.
"""

from __future__ import annotations

import http.client
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.request import Request

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.config import GatewayConfig
from mtls.errors import ConfigFault, Fault
from mtls.keystore import read_limited, write_public
from mtls.revocation import MAX_CRL_BYTES, CrlEntry, CrlSet
from mtls.terminal import sanitise
from mtls.trust import TrustStore

CONNECT_TIMEOUT_S: Final = 15.0  # also the longest silence within an answer
FETCH_TIMEOUT_S: Final = 90.0  # for the whole answer: a dripping server does not hold the timer's unit for ever
CHUNK_BYTES: Final = 64 * 1024
_END: Final = b"-----END X509 CRL-----"

Fetch = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class Held:
    """One verified CRL with its PEM."""

    entry: CrlEntry
    pem: bytes


@dataclass(frozen=True, slots=True)
class FetchReport:
    """What came of it: whether the file was replaced, and the CRLs that it holds now."""

    replaced: bool
    file: Path
    crls: tuple[CrlEntry, ...]


def fetch_crl(config: GatewayConfig, fetch: Fetch | None = None) -> FetchReport:
    """Fetch [listener] crl_url into crl_file; ConfigFault without them, Fault when what came is not to be believed."""
    listener = config.listener
    if listener.crl_file is None or not listener.crl_url:
        missing = "crl_file" if listener.crl_file is None else "crl_url"
        raise ConfigFault(f"{config.path}: [listener] {missing} is not set", hint="set both to fetch a CRL")
    trust = TrustStore.from_pem(read_limited(listener.ca_file), str(listener.ca_file))
    fetched = _verified((fetch or download)(listener.crl_url), trust, listener.crl_url)
    held = _held(listener.crl_file, trust)
    if not _is_newer(fetched, held):
        return FetchReport(False, listener.crl_file, tuple(h.entry for h in held.values()))
    merged = {**held, **{key: new for key, new in fetched.items() if _number(new) > _number(held.get(key))}}
    write_public(listener.crl_file, b"".join(h.pem for h in merged.values()))
    return FetchReport(True, listener.crl_file, tuple(h.entry for h in merged.values()))


def _verified(data: bytes, trust: TrustStore, source: str) -> dict[str, Held]:
    """Every CRL in an answer by the SHA-256 of its CA's key; Fault when a single one cannot be used."""
    found: dict[str, Held] = {}
    for block in _blocks(data, source):
        crls = CrlSet.from_pem(block, trust, sanitise(source))
        if crls.faults:
            raise Fault(str(crls.faults[0]), hint="the CRLs held stay in force; check what the URL serves")
        ((key, entry),) = crls.entries.items()
        if entry.number is None:
            raise Fault(f"the CRL of {entry.issuer_cn!a} has no cRLNumber", hint="it could be an old one played back")
        if key in found:
            raise Fault(f"{sanitise(source)} holds two CRLs of {entry.issuer_cn!a}", hint="publish the newest only")
        found[key] = Held(entry, crls.pem)  # the CRL itself, without what stood around it
    return found


def _blocks(data: bytes, source: str) -> list[bytes]:
    """PEM blocks of an answer that is PEM, or one DER as CAs publish it (RFC 5280 section 4.2.1.13)."""
    if b"-----BEGIN" in data[:4096]:
        blocks = [block + _END + b"\n" for block in data.split(_END)[:-1]]
        if blocks:
            return blocks
    try:
        return [x509.load_der_x509_crl(data).public_bytes(Encoding.PEM)]
    except ValueError:
        raise Fault(f"{sanitise(source)} serves no CRL", hint="the CRLs held stay in force; check crl_url") from None


def _held(path: Path, trust: TrustStore) -> dict[str, Held]:
    """What the file holds and can be used; a missing or damaged file holds nothing."""
    try:
        data = read_limited(path, MAX_CRL_BYTES)
    except ConfigFault:
        return {}
    found: dict[str, Held] = {}
    for block in data.split(_END)[:-1]:
        pem = block + _END + b"\n"
        crls = CrlSet.from_pem(pem, trust, str(path))
        for key, entry in crls.entries.items():
            if key not in found or _number(Held(entry, crls.pem)) > _number(found[key]):
                found[key] = Held(entry, crls.pem)
    return found


def _is_newer(fetched: dict[str, Held], held: dict[str, Held]) -> bool:
    for key, new in fetched.items():
        if _number(new) < _number(held.get(key)):
            raise Fault(
                f"the fetched CRL of {new.entry.issuer_cn!a} has number {_number(new)},"
                f" the one held has {_number(held.get(key))}",
                hint="an older CRL is never taken; publish a new one",
            )
    return any(_number(new) > _number(held.get(key)) for key, new in fetched.items())


def _number(held: Held | None) -> int:
    return -1 if held is None or held.entry.number is None else held.entry.number


def download(url: str, *, timeout_s: float = FETCH_TIMEOUT_S) -> bytes:
    """The content behind an http, https or file URL within limits of size and time; Fault otherwise."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        return read_limited(Path(urllib.parse.unquote(parts.path)), MAX_CRL_BYTES)
    answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def fetch() -> None:
        try:
            answers.put(_fetched(url, min(CONNECT_TIMEOUT_S, timeout_s)))
        except Exception as error:
            answers.put(error)

    # On a thread, which is left to itself: a server that drips its headers would hold up any reading of them.
    threading.Thread(target=fetch, name="crl-fetch", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise Fault(f"{sanitise(url)} is too slow", hint="the CRLs held stay in force") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _fetched(url: str, silence_s: float) -> bytes:
    request = Request(url, headers={"User-Agent": "mqtt-mtls-gateway", "Accept": "application/pkix-crl, */*"})  # noqa: S310 - opener without file: and ftp:
    try:
        with _opener().open(request, timeout=silence_s) as answer:
            return _read(answer, url)
    except urllib.error.HTTPError as error:
        with error:
            raise Fault(f"{sanitise(url)} answers {error.code}", hint="check [listener] crl_url") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = sanitise(str(getattr(error, "reason", "") or error or type(error).__name__))
        raise Fault(f"cannot fetch {sanitise(url)}: {why}", hint="the CRLs held stay in force") from error


def _read(answer: http.client.HTTPResponse, url: str) -> bytes:
    received = bytearray()
    while chunk := answer.read1(CHUNK_BYTES):
        received += chunk
        if len(received) > MAX_CRL_BYTES:
            raise Fault(f"{sanitise(url)} serves more than {MAX_CRL_BYTES} bytes", hint="this is no CRL")
    return bytes(received)


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS only: a redirect must not reach a file or another protocol."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
