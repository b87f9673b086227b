"""`device-sim handshake --bench`: what mutual TLS costs against plain TLS on this machine.

Client and server shake hands in this process through two buffers, so no network and no scheduler is measured; the
CPU time of each side is read around each of its steps. The server's setting for mutual TLS is the gateway's own
context. Keys and certificates are made for the run: P-256, root and issuing CA, leaf and issuing CA on the wire.

Cases take turns in short rounds, and each figure is the median of its rounds: a machine that slows down for a while
slows all of them down. Not measured: the broker's own judgement of a certificate, and MQTT.
"""

import contextlib
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from cryptography.hazmat.primitives.serialization import Encoding

from mtls.keystore import key_pem, new_key, write_private, write_public
from mtls.profiles import DEVICE_OPERATIONAL, GATEWAY_SERVER, ISSUING_CA, ROOT_CA, Issuer, Profile
from mtls.revocation import build_crl
from mtls.tls import client_context, measured_server_context, server_context
from mtls.trust import TrustStore, to_pem

ROUNDS = 7  # per case; odd, so that the median is one of them
MIN_PER_ROUND = 3  # handshakes
NAME = "localhost"


@dataclass(frozen=True, slots=True)
class Case:
    """One way to shake hands. `resumes` means that a session of before is taken up."""

    name: str
    tls: str
    is_mutual: bool = False
    has_crl: bool = False
    has_tickets: bool = False
    resumes: bool = False


CASES: tuple[Case, ...] = tuple(
    Case(name, tls, **kind)
    for tls in ("1.3", "1.2")
    for name, kind in (
        ("plain", {}),
        ("plain, with tickets", {"has_tickets": True}),
        ("plain, resumed", {"has_tickets": True, "resumes": True}),
        ("mutual", {"is_mutual": True}),
        ("mutual, with CRL", {"is_mutual": True, "has_crl": True}),
    )
)
BASE = "plain"  # what the others of the same version are compared with


@dataclass(frozen=True, slots=True)
class Shake:
    """One handshake: CPU and wall time in seconds, bytes on the wire, and turns of the conversation."""

    server_s: float
    client_s: float
    wall_s: float
    to_server: int
    to_client: int
    flights: int


@dataclass(frozen=True, slots=True)
class Figures:
    """A case in numbers; rates are full handshakes per second of CPU of that side."""

    case: Case
    count: int
    server_per_s: float
    client_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    to_server_bytes: int
    to_client_bytes: int
    flights: int
    server_rounds: tuple[float, ...]  # the server's rate, round by round

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        rates = {"server_per_cpu_s": round(self.server_per_s, 1), "client_per_cpu_s": round(self.client_per_s, 1)}
        times = {f"p{part}_ms": round(getattr(self, f"p{part}_ms"), 3) for part in (50, 95, 99)}
        return {
            "case": self.case.name,
            "tls": self.case.tls,
            "handshakes": self.count,
            **rates,
            **times,
            "to_server_bytes": self.to_server_bytes,
            "to_client_bytes": self.to_client_bytes,
            "flights": self.flights,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cases, in order."""

    figures: tuple[Figures, ...]
    exit_code: ClassVar[int] = 0

    def as_row(self) -> dict[str, object]:
        """For JSON; `server_cost` is CPU time against plain TLS of the same version."""
        rows = [row.as_row() | {"server_cost": round(self.cost(row), 2)} for row in self.figures]
        return {"openssl": ssl.OPENSSL_VERSION, "cases": rows}

    def cost(self, figures: Figures) -> float:
        """The server's CPU time as a multiple of plain TLS of the same version: the median over the rounds."""
        base = next(f for f in self.figures if f.case.tls == figures.case.tls and f.case.name == BASE)
        pairs = zip(base.server_rounds, figures.server_rounds, strict=True)
        return statistics.median(plain / this for plain, this in pairs)

    def as_text(self) -> str:
        """A table for people, in 80 columns."""
        head = f"{'':24}{'server':>9}{'client':>9}{'server':>8}{'p50':>7}{'p99':>7}{'bytes':>7}{'bytes':>7}"
        units = f"{'':24}{'per CPU s':>9}{'/ CPU s':>9}{'cost':>8}{'ms':>7}{'ms':>7}{'up':>7}{'down':>7}"
        lines = [ssl.OPENSSL_VERSION, "", head, units]
        for tls in dict.fromkeys(row.case.tls for row in self.figures):
            lines.append(f"TLS {tls}")
            lines += [self._line(row) for row in self.figures if row.case.tls == tls]
        return "\n".join([*lines, "", *_LEGEND])

    def _line(self, row: Figures) -> str:
        rates = f"{row.server_per_s:9.0f}{row.client_per_s:9.0f}{self.cost(row):7.2f}x"
        times = f"{row.p50_ms:7.2f}{row.p99_ms:7.2f}"
        return f"  {row.case.name:22}{rates}{times}{row.to_server_bytes:7}{row.to_client_bytes:7}"


_LEGEND = (
    "handshakes per second of CPU of that side; cost: CPU time of the server against",
    "plain TLS of the same version; ms: both sides on one core, without a network.",
    "On a network each full handshake takes one round trip with TLS 1.3 and two with",
    "1.2 (resumed: one), and one more for TCP.",
)


def compare(
    seconds: float, progress: Callable[[float], None] = lambda _: None, cases: Sequence[Case] = CASES
) -> Comparison:
    """Measure all cases for about `seconds` in all; `progress` is told the part that is done, 0 to 1."""
    with tempfile.TemporaryDirectory(prefix="handshake-bench-") as folder:
        site = _Site.make(Path(folder))
        pairs = [_Pair(site, case) for case in cases]
        slice_s = seconds / (ROUNDS * len(pairs))
        rounds: list[list[list[Shake]]] = [[] for _ in pairs]
        for pair in pairs:
            pair.shake()  # warm: the first one fills caches, and gives the session to resume
        for number in range(ROUNDS):
            for position, pair in enumerate(pairs):
                rounds[position].append(_round(pair, slice_s))
                progress((number * len(pairs) + position + 1) / (ROUNDS * len(pairs)))
    return Comparison(tuple(_figures(case, of_case) for case, of_case in zip(cases, rounds, strict=True)))


def _round(pair: "_Pair", seconds: float) -> list[Shake]:
    until = time.monotonic() + seconds
    shakes: list[Shake] = []
    while len(shakes) < MIN_PER_ROUND or time.monotonic() < until:
        shakes.append(pair.shake())
    return shakes


def _figures(case: Case, rounds: Sequence[Sequence[Shake]]) -> Figures:
    walls = sorted(shake.wall_s * 1000 for of_round in rounds for shake in of_round)
    last = rounds[-1][-1]
    server_rounds = tuple(len(r) / sum(shake.server_s for shake in r) for r in rounds)
    return Figures(
        case=case,
        count=len(walls),
        server_per_s=statistics.median(server_rounds),
        client_per_s=statistics.median(len(r) / sum(shake.client_s for shake in r) for r in rounds),
        p50_ms=_percentile(walls, 50),
        p95_ms=_percentile(walls, 95),
        p99_ms=_percentile(walls, 99),
        to_server_bytes=last.to_server,
        to_client_bytes=last.to_client,
        flights=last.flights,
        server_rounds=server_rounds,
    )


def _percentile(ordered: Sequence[float], part: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * part // 100)]


# --- one case


class _Pair:
    """The two contexts of a case, and handshakes between them."""

    def __init__(self, site: "_Site", case: Case) -> None:
        self._resumes = case.resumes
        self._session: ssl.SSLSession | None = None
        cert_file, key_file = site.server
        if case.is_mutual:
            crls = site.crls if case.has_crl else None
            self._server = server_context(cert_file=cert_file, key_file=key_file, trust=site.trust, crls_pem=crls)
        else:
            self._server = measured_server_context(cert_file=cert_file, key_file=key_file, tickets=case.has_tickets)
        self._client = client_context(
            ca_file=site.ca_file,
            cert_file=site.device[0] if case.is_mutual else None,
            key_file=site.device[1] if case.is_mutual else None,
            min_tls=case.tls,
            max_tls=case.tls,
        )

    def shake(self) -> Shake:
        """One handshake from nothing to acceptance, the tickets read."""
        up, down = _Meter(), _Meter()
        session = self._session if self._resumes else None
        client = _Half(self._client.wrap_bio(down.bio, up.bio, server_hostname=NAME, session=session))
        server = _Half(self._server.wrap_bio(up.bio, down.bio, server_side=True))
        started, flights = time.perf_counter(), 0
        while not (client.is_done and server.is_done):
            client.step()
            flights += up.note()
            server.step()
            flights += down.note()
        client.read()  # tickets of TLS 1.3 come after the handshake
        wall_s = time.perf_counter() - started
        if session is None:
            self._session = client.tls.session
        elif not client.tls.session_reused:
            raise RuntimeError("the session was not resumed")
        return Shake(server.cpu_s, client.cpu_s, wall_s, up.total, down.total, flights)


class _Meter:
    """A buffer between the two, and how much went through it."""

    def __init__(self) -> None:
        self.bio = ssl.MemoryBIO()
        self.total = 0

    def note(self) -> bool:
        """Count what was just written, which the other side has not read yet; whether there was any."""
        self.total += self.bio.pending
        return self.bio.pending > 0


class _Half:
    """One side, with the CPU time that it took."""

    def __init__(self, tls: ssl.SSLObject) -> None:
        self.tls = tls
        self.cpu_s = 0.0
        self.is_done = False

    def step(self) -> None:
        """Go on as far as the bytes carry."""
        if self.is_done:
            return
        started = time.thread_time()
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
            self.is_done = True
        self.cpu_s += time.thread_time() - started

    def read(self) -> None:
        """Take in what came after the handshake."""
        started = time.thread_time()
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.read(1)
        self.cpu_s += time.thread_time() - started


@dataclass(frozen=True, slots=True)
class _Site:
    """Keys and certificates of one run, in a folder that goes with it."""

    ca_file: Path
    trust: TrustStore
    crls: bytes
    server: tuple[Path, Path]
    device: tuple[Path, Path]

    @classmethod
    def make(cls, folder: Path) -> "_Site":
        now = datetime.now(UTC)
        root_key, issuing_key = new_key(), new_key()
        root = Issuer(
            ROOT_CA.build(
                subject_cn="Bench Root CA", public_key=root_key.public_key(), issuer=None, key=root_key, now=now
            ),
            root_key,
        )
        issuing_cert = ISSUING_CA.build(
            subject_cn="Bench CA", public_key=issuing_key.public_key(), issuer=root, now=now
        )
        issuing = Issuer(issuing_cert, issuing_key)
        pem = to_pem([root.certificate, issuing_cert])
        ca_file = folder / "ca.crt"
        write_public(ca_file, pem)
        return cls(
            ca_file=ca_file,
            trust=TrustStore.from_pem(pem, "ca.crt"),
            crls=b"".join(_empty_crl(issuer, now) for issuer in (root, issuing)),
            server=_leaf(folder / "server", GATEWAY_SERVER, issuing, now, subject_cn=NAME, dns=[NAME]),
            device=_leaf(folder / "device", DEVICE_OPERATIONAL, issuing, now, subject_cn="device"),
        )


def _leaf(stem: Path, profile: Profile, issuer: Issuer, now: datetime, **subject: Any) -> tuple[Path, Path]:
    key = new_key()
    cert = profile.build(public_key=key.public_key(), issuer=issuer, now=now, **subject)
    cert_file, key_file = stem.with_suffix(".crt"), stem.with_suffix(".key")
    write_public(cert_file, to_pem([cert, issuer.certificate]))
    write_private(key_file, key_pem(key))
    return cert_file, key_file


def _empty_crl(issuer: Issuer, now: datetime) -> bytes:
    return build_crl(issuer, [], now=now, number=1, lifetime=timedelta(days=7)).public_bytes(Encoding.PEM)
