"""`/metrics` on the loopback: the gateway's figures in the text format that Prometheus reads.

`render` is pure; the server around it answers GET /metrics on [console] bind and nothing else, within limits of size
and time. It has no authentication, so it is bound to the loopback only, and a request that names another host (a web
page in a browser, by DNS rebinding) is refused. What a peer chose appears in no label.

Spec: Prometheus text exposition format 0.0.4; RFC 9112 as far as one request per connection needs it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from mtls.errors import Fault

PREFIX: Final = "mqtt_gateway_"
MAX_REQUEST_BYTES: Final = 8192
MAX_CLIENTS: Final = 8
REQUEST_TIMEOUT_S: Final = 5.0
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_REQUEST_LINE = re.compile(rb"([A-Z]+) ([!-~]+) HTTP/1\.[01]")
_HOST = re.compile(rb"^host:[ \t]*(\S*)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_LOOPBACK = re.compile(rb"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?", re.IGNORECASE)

Status = Mapping[str, Any]
Sample = tuple[Mapping[str, str], float]

# name -> (type, help, what it is made of)
_METRICS: Final[tuple[tuple[str, str, str, Callable[[Status], Iterable[Sample]]], ...]] = (
    (
        "info",
        "gauge",
        "Version of the program and of the policy in force.",
        lambda s: [({"version": s["version"], "policy_version": s["policy_version"]}, 1)],
    ),
    ("uptime_seconds", "gauge", "Since the start.", lambda s: _one(s["uptime_s"])),
    ("connections", "gauge", "Open connections, handshakes included.", lambda s: _one(s["connections"])),
    ("sessions", "gauge", "Sessions, live and stored.", lambda s: _one(s["sessions"])),
    ("subscriptions", "gauge", "Subscriptions of all sessions.", lambda s: _one(s["subscriptions"])),
    ("queued_messages", "gauge", "Messages that wait for their clients.", lambda s: _one(s["queued"])),
    ("retained_messages", "gauge", "Retained messages.", lambda s: _one(s["retained"])),
    ("retained_bytes", "gauge", "Bytes of retained messages.", lambda s: _one(s["retained_bytes"])),
    ("loop_lag_seconds", "gauge", "How late the broker's clock ticked last.", lambda s: _one(s["loop_lag_s"])),
    ("messages_in_total", "counter", "PUBLISH packets received.", lambda s: _one(s["messages_in"])),
    ("messages_out_total", "counter", "Packets sent.", lambda s: _one(s["messages_out"])),
    ("admitted_total", "counter", "Admitted connections.", lambda s: _one(s["counts"].get("admitted", 0))),
    ("dropped_total", "counter", "Messages that found no room.", lambda s: _one(s["counts"].get("dropped", 0))),
    ("refused_total", "counter", "Connections not admitted, by reason.", lambda s: _by_reason(s, "refused")),
    ("denied_total", "counter", "Publishes and subscriptions denied, by reason.", lambda s: _by_reason(s, "denied")),
    ("disconnected_total", "counter", "Connections ended, by reason.", lambda s: _by_reason(s, "disconnected")),
    ("crl_this_update_seconds", "gauge", "thisUpdate of a CRL in force.", lambda s: _crls(s, "this_update")),
    ("crl_next_update_seconds", "gauge", "nextUpdate of a CRL in force.", lambda s: _crls(s, "next_update")),
    ("crl_revoked", "gauge", "Certificates on a CRL in force.", lambda s: _crls(s, "revoked")),
    ("crl_faults", "gauge", "CRLs of the file that cannot be used.", lambda s: _one(s["crl_faults"])),
    (
        "server_certificate_not_after_seconds",
        "gauge",
        "End of the server certificate.",
        lambda s: _one(_seconds(s["server_certificate_not_after"])),
    ),
    ("deny_list_entries", "gauge", "Entries of the deny list.", lambda s: _one(s["denied"])),
    (
        "last_reload_ok",
        "gauge",
        "1 when the last reload put its files in force.",
        lambda s: _one(s["last_reload"] is None or s["last_reload"]["ok"]),
    ),
    ("audit_lines_lost_total", "counter", "Audit lines not written.", lambda s: _one(s["audit_lines_lost"])),
    (
        "audit_lines_suppressed_total",
        "counter",
        "Audit lines left out by the limit.",
        lambda s: _one(s["audit_lines_suppressed"]),
    ),
)


def render(status: Status) -> str:
    """The figures of `status`, as the control socket gives them, in Prometheus' text format."""
    lines: list[str] = []
    for name, kind, meaning, samples in _METRICS:
        lines += [f"# HELP {PREFIX}{name} {meaning}", f"# TYPE {PREFIX}{name} {kind}"]
        lines += [f"{PREFIX}{name}{_labels(labels)} {_number(value)}" for labels, value in samples(status)]
    return "\n".join(lines) + "\n"


def _one(value: float) -> list[Sample]:
    return [({}, value)]


def _by_reason(status: Status, event: str) -> list[Sample]:
    counts = sorted(status["counts"].items())
    return [({"reason": name.partition(".")[2]}, count) for name, count in counts if name.startswith(f"{event}.")]


def _crls(status: Status, key: str) -> list[Sample]:
    found = [(crl["issuer"], crl[key]) for crl in status["crls"] if crl[key] is not None]
    return [({"issuer": name}, _seconds(value) if isinstance(value, str) else value) for name, value in found]


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class MetricsServer:
    """Answers GET /metrics on one loopback address. `status` is asked at every request."""

    def __init__(self, bind: tuple[str, int], status: Callable[[], Status]) -> None:
        self._bind = bind
        self._status = status
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[Any]] = set()

    @property
    def port(self) -> int:
        """The bound port; port 0 is resolved."""
        assert self._server is not None  # noqa: S101 - asked after `open` only
        return int(self._server.sockets[0].getsockname()[1])

    async def open(self) -> None:
        """Listen; Fault when the port is taken."""
        host, port = self._bind
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_REQUEST_BYTES)
        except OSError as error:
            raise Fault(
                f"cannot listen on [console] bind {host}:{port}: {error.strerror or error}",
                hint="is another gateway running? choose another port, or remove [console]",
            ) from error

    async def close(self) -> None:
        """Stop serving."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_TIMEOUT_S)
            writer.write(self._answer(head))
            await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT_S)
        except (TimeoutError, OSError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        request = _REQUEST_LINE.match(head)
        host = _HOST.findall(head)
        if request is None or len(host) != 1:
            return _response("400 Bad Request")
        if not _LOOPBACK.fullmatch(host[0]):
            return _response("421 Misdirected Request")
        if request[2].partition(b"?")[0] != b"/metrics":
            return _response("404 Not Found")
        if request[1] != b"GET":
            return _response("405 Method Not Allowed", headers="Allow: GET\r\n")
        return _response("200 OK", render(self._status()))


def _response(status: str, body: str = "", headers: str = "") -> bytes:
    payload = (body or f"{status}\n").encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(payload)}\r\n"
        f"X-Content-Type-Options: nosniff\r\nConnection: close\r\n{headers}\r\n"
    )
    return head.encode() + payload
