"""`/metrics` on the loopback: the gateway's figures for Prometheus.

The figures are the status mapping that the control socket gives, read when a scrape comes and never before, so that a
message costs nothing here. prometheus_client writes the format, aiohttp serves it on the gateway's own loop. Served is
GET /metrics on [console] bind and nothing else. There is no authentication, so it is bound to the loopback only, and
a request that names another host (a web page in a browser, by DNS rebinding) is refused. A connection gets one answer
within a time limit. What a peer chose appears in no label.

Imported only when [console] is on: both libraries together cost some 13 MiB and a third of a second.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.bounded_http import BoundedServer, HttpLimits, refusal
from gateway.listening import listening_socket
from mtls.clock import TimeState

PREFIX: Final = "mqtt_gateway_"
MAX_CLIENTS: Final = 8
BACKLOG: Final = 128
REQUEST_TIMEOUT_S: Final = 5.0  # from accepting to the last byte of the answer
SHUTDOWN_TIMEOUT_S: Final = 1.0
DAY_S: Final = 86400.0
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"  # what generate_latest writes

_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?", re.IGNORECASE)

Status = Mapping[str, Any]
Sample = tuple[tuple[str, ...], float]

log = logging.getLogger("mqtt_gateway.metrics")
_TAKEN: Final = "is another gateway running? choose another port, or remove [console]"
_LIMITS: Final = HttpLimits(MAX_CLIENTS, REQUEST_TIMEOUT_S)


class _Figure(NamedTuple):
    """One metric: what it is called, which labels it has, and what of the status it shows."""

    family: Callable[..., GaugeMetricFamily | CounterMetricFamily]
    name: str
    meaning: str
    labels: tuple[str, ...]
    samples: Callable[[Status], Iterable[Sample]]


def _key(name: str) -> Callable[[Status], Iterable[Sample]]:
    return lambda status: [((), status[name])]


def _count(name: str) -> Callable[[Status], Iterable[Sample]]:
    return lambda status: [((), status["counts"].get(name, 0))]


def _by_reason(event: str) -> Callable[[Status], Iterable[Sample]]:
    start = f"{event}."
    return lambda status: [
        ((name.removeprefix(start),), count)
        for name, count in sorted(status["counts"].items())
        if name.startswith(start)
    ]


def _handshake_failures(status: Status) -> Iterable[Sample]:
    return [((reason,), count) for reason, count in sorted(status["handshake_failures"].items())]


def _crls(value: Callable[[Status, Mapping[str, Any]], float]) -> Callable[[Status], Iterable[Sample]]:
    return lambda status: [((crl["issuer"], crl["key"]), value(status, crl)) for crl in status["crls"]]


def _age(status: Status, crl: Mapping[str, Any]) -> float:
    return _seconds(status["time"]) - _seconds(crl["this_update"])


def _next_update(_: Status, crl: Mapping[str, Any]) -> float:
    return _seconds(crl["next_update"]) if crl["next_update"] is not None else math.inf


def _revoked(_: Status, crl: Mapping[str, Any]) -> float:
    return float(crl["revoked"])


def _expiry(status: Status) -> Iterator[Sample]:
    now = _seconds(status["time"])
    for each in status["certificates"]:
        yield (each["kind"], each["subject"], each["key"]), (_seconds(each["not_after"]) - now) / DAY_S


def _time_states(status: Status) -> Iterator[Sample]:
    for state in TimeState:
        yield (state,), status["clock"]["state"] == state


def _last_reload_ok(status: Status) -> Iterable[Sample]:
    return [((), status["last_reload"] is None or status["last_reload"]["ok"])]


def _part(name: str, key: str) -> Callable[[Status], Iterable[Sample]]:
    """A figure of a part that a gateway may not have, and that may not be known."""
    return lambda status: [((), status[name][key])] if (status[name] or {}).get(key) is not None else []


_store, _shadow, _uplink = partial(_part, "store"), partial(_part, "shadow"), partial(_part, "uplink")


def _damaged(status: Status) -> Iterable[Sample]:
    return [((), bool(status["store"]["damaged"]))] if status["store"] is not None else []


def _differences(status: Status) -> Iterable[Sample]:
    shadow = status["shadow"]
    return [((each["action"], each["kind"]), each["count"]) for each in shadow["differences"]] if shadow else []


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _uplink_by(key: str) -> Callable[[Status], Iterable[Sample]]:
    return lambda status: [((name,), count) for name, count in sorted((status["uplink"] or {}).get(key, {}).items())]


def _uplink_connected(status: Status) -> Iterable[Sample]:
    return [((), status["uplink"]["state"] == "connected")] if status["uplink"] is not None else []


_REASON = ("reason",)
_AUTHORITY = ("issuer", "key")
_GAUGE, _COUNTER = GaugeMetricFamily, CounterMetricFamily
_FIGURES: Final = (
    _Figure(
        _GAUGE,
        "info",
        "Always 1; version of the program and of the policy in force.",
        ("version", "policy_version"),
        lambda status: [((status["version"], status["policy_version"]), 1)],
    ),
    _Figure(_GAUGE, "uptime_seconds", "Since the start.", (), _key("uptime_s")),
    _Figure(_GAUGE, "time_state", "1 for what is known of the time.", ("state",), _time_states),
    _Figure(
        _GAUGE,
        "time_state_since_timestamp_seconds",
        "When the state of the time changed last.",
        (),
        lambda status: [((), _seconds(status["clock"]["since"]))],
    ),
    _Figure(
        _GAUGE,
        "time_floor_timestamp_seconds",
        "What the time is not before.",
        (),
        lambda status: [((), _seconds(status["clock"]["floor"]))],
    ),
    _Figure(_GAUGE, "connections", "Open connections, handshakes included.", (), _key("connections")),
    _Figure(_COUNTER, "handshakes", "Finished TLS handshakes.", (), _key("handshakes")),
    _Figure(_COUNTER, "handshake_failures", "Failed TLS handshakes.", _REASON, _handshake_failures),
    _Figure(_COUNTER, "admitted", "Admitted connections.", (), _count("admitted")),
    _Figure(_COUNTER, "refused", "Connections not admitted, failed handshakes too.", _REASON, _by_reason("refused")),
    _Figure(_COUNTER, "disconnected", "Admitted connections ended.", _REASON, _by_reason("disconnected")),
    _Figure(_COUNTER, "renewed", "Certificates renewed by [enrolment].", (), _count("renewed")),
    _Figure(_COUNTER, "renewal_refused", "Renewals refused.", _REASON, _by_reason("renewal_refused")),
    _Figure(_GAUGE, "sessions", "Sessions, live and stored.", (), _key("sessions")),
    _Figure(_GAUGE, "subscriptions", "Subscriptions of all sessions.", (), _key("subscriptions")),
    _Figure(_COUNTER, "messages_in", "PUBLISH packets received.", (), _key("messages_in")),
    _Figure(_COUNTER, "messages_out", "Packets sent.", (), _key("messages_out")),
    _Figure(_COUNTER, "denied", "Publishes and subscriptions denied.", _REASON, _by_reason("denied")),
    _Figure(_GAUGE, "queued_messages", "Messages that wait for their clients.", (), _key("queued")),
    _Figure(_COUNTER, "dropped", "Messages that found no room.", (), _count("dropped")),
    _Figure(_GAUGE, "retained_messages", "Retained messages.", (), _key("retained")),
    _Figure(_GAUGE, "retained_bytes", "Bytes of retained messages.", (), _key("retained_bytes")),
    _Figure(_GAUGE, "store_accepting", "0 while the store withholds.", (), _store("accepting")),
    _Figure(_GAUGE, "store_damaged", "1 when the store's file was found damaged.", (), _damaged),
    _Figure(_GAUGE, "store_used_bytes", "Bytes of the store's file in use.", (), _store("used_bytes")),
    _Figure(_GAUGE, "store_free_bytes", "Bytes free on the store's disk.", (), _store("free_bytes")),
    _Figure(_GAUGE, "store_queued_messages", "Messages in stored sessions' queues.", (), _store("queued")),
    _Figure(_GAUGE, "store_queued_bytes", "What these messages are accounted with.", (), _store("queued_bytes")),
    _Figure(_GAUGE, "store_oldest_seconds", "The least that the oldest has waited.", (), _store("oldest_s")),
    _Figure(_GAUGE, "store_withheld_messages", "Messages that wait for room.", (), _store("withheld")),
    _Figure(_COUNTER, "store_withheld", "Messages that had to wait for room.", (), _store("withheld_total")),
    _Figure(_COUNTER, "store_evicted", "Messages of drop-oldest topics dropped.", (), _store("evicted")),
    _Figure(_COUNTER, "store_commits", "Commits, an fsync each.", (), _store("commits")),
    _Figure(_COUNTER, "store_commit_seconds", "Time spent in commits.", (), _store("commit_s")),
    _Figure(_GAUGE, "loop_lag_seconds", "How late the broker's clock ticked last.", (), _key("loop_lag_s")),
    _Figure(_GAUGE, "crl_age_seconds", "Since thisUpdate of a CRL in force.", _AUTHORITY, _crls(_age)),
    _Figure(
        _GAUGE, "crl_next_update_timestamp_seconds", "nextUpdate of a CRL in force.", _AUTHORITY, _crls(_next_update)
    ),
    _Figure(_GAUGE, "crl_revoked", "Certificates on a CRL in force.", _AUTHORITY, _crls(_revoked)),
    _Figure(_GAUGE, "crl_faults", "CRLs of the file that cannot be used.", (), _key("crl_faults")),
    _Figure(
        _GAUGE,
        "certificate_expiry_days",
        "Days until a certificate expires: the server's, and those of issuing CAs and roots.",
        ("kind", "subject", "key"),
        _expiry,
    ),
    _Figure(_GAUGE, "deny_list_entries", "Entries of the deny list.", (), _key("denied")),
    _Figure(_GAUGE, "last_reload_ok", "1 when the last reload put its files in force.", (), _last_reload_ok),
    _Figure(_COUNTER, "audit_lines_lost", "Audit lines not written.", (), _key("audit_lines_lost")),
    _Figure(_COUNTER, "audit_lines_suppressed", "Audit lines left out.", (), _key("audit_lines_suppressed")),
    _Figure(_COUNTER, "shadow_compared", "Decisions that the shadow policy was asked about.", (), _shadow("compared")),
    _Figure(
        _COUNTER,
        "shadow_differences",
        "Decisions that the shadow policy would have made otherwise.",
        ("action", "kind"),
        _differences,
    ),
    _Figure(_GAUGE, "uplink_connected", "1 while the upstream is connected.", (), _uplink_connected),
    _Figure(_GAUGE, "uplink_spool_messages", "Messages that wait for the upstream.", (), _uplink("spool_messages")),
    _Figure(_GAUGE, "uplink_spool_bytes", "Their bytes, as the bound counts them.", (), _uplink("spool_bytes")),
    _Figure(_GAUGE, "uplink_spool_max_bytes", "The bound.", (), _uplink("spool_max_bytes")),
    _Figure(_GAUGE, "uplink_spool_oldest_seconds", "Age of the oldest.", (), _uplink("oldest_s")),
    _Figure(_COUNTER, "uplink_acknowledged", "Messages acknowledged.", ("lane",), _uplink_by("acknowledged")),
    _Figure(_COUNTER, "uplink_dropped", "Messages that were lost here.", _REASON, _uplink_by("dropped")),
    _Figure(_COUNTER, "uplink_refused", "Refusals by the upstream.", (), _uplink("refused")),
    _Figure(_COUNTER, "uplink_commands", "Messages that came down.", ("result",), _uplink_by("commands")),
    _Figure(_GAUGE, "uplink_replay_per_second", "Messages of the backlog per second.", (), _uplink("replay_per_s")),
    _Figure(_GAUGE, "uplink_replay_eta_seconds", "Until the backlog is gone.", (), _uplink("replay_eta_s")),
    _Figure(_COUNTER, "shadow_faults", "Questions at which the shadow policy failed.", (), _shadow("faults")),
)


class StatusCollector(Collector):
    """The status mapping as metric families, made anew at every scrape."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """One family per figure, also when there is nothing to show yet."""
        status = self._status()
        for figure in _FIGURES:
            family = figure.family(PREFIX + figure.name, figure.meaning, labels=figure.labels)
            for labels, value in figure.samples(status):
                family.add_metric(labels, float(value))
            yield family


def registry_of(status: Callable[[], Status]) -> CollectorRegistry:
    """A registry of our own: the gateway's figures, and memory, CPU and descriptors of this process."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    ProcessCollector(registry=registry)
    return registry


class MetricsServer:
    """Answers GET /metrics on one loopback address. `status` is asked at every request."""

    def __init__(self, bind: tuple[str, int], status: Callable[[], Status]) -> None:
        self._bind = bind
        self._registry = registry_of(status)
        self._runner: web.ServerRunner | None = None

    async def open(self) -> None:
        """Listen; Fault when the port is taken."""
        sock = listening_socket(*self._bind, key="[console] bind", backlog=BACKLOG, hint=_TAKEN)
        self._runner = web.ServerRunner(BoundedServer(self._answer, _LIMITS), shutdown_timeout=SHUTDOWN_TIMEOUT_S)
        await self._runner.setup()
        await web.SockSite(self._runner, sock, backlog=BACKLOG).start()

    async def close(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        response = self._respond(request)
        response.force_close()
        return response

    def _respond(self, request: web.BaseRequest) -> web.Response:
        host = request.headers.getall("Host", [])
        if len(host) != 1 or not host[0]:
            return refusal(400)
        if not _LOOPBACK.fullmatch(host[0]):
            return refusal(421)
        if request.raw_path.partition("?")[0] != "/metrics":
            return refusal(404)
        if request.method != "GET":
            return refusal(405, Allow="GET")
        try:
            body = generate_latest(self._registry)
        except Exception:
            log.exception("the figures could not be read")
            return refusal(500)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})
