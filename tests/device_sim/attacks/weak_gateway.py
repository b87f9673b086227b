"""Our gateway with one check switched off, so that an attack that is always held can be seen to catch somebody.

A weakness replaces one function of the gateway in a process of its own, before that one serves. It is made for tests
and lives here: the product has no such switch. The processes are forked from one that has imported the gateway, so
that each costs a tenth of a second and not more than one.
"""

from __future__ import annotations

import multiprocessing
import ssl
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from device_sim.connection_faults import Endpoint
from device_sim.targets.brokers import Operator
from device_sim.targets.programs import free_port, wait_until
from device_sim.targets.site import Site
from gateway import control, security, service
from gateway.broker import entry, forwarding, live, plane
from gateway.broker.arrivals import Arrivals
from gateway.broker.packets import Connect
from gateway.broker.sessions import Message, Session
from gateway.policy import decide
from gateway.policy import policy as policies
from gateway.reload import Reloader
from mtls import judgement
from mtls.errors import Fault, Reason, Refusal
from mtls.identity import DeviceId
from mtls.judgement import Peer

OPEN_RULES = """version = 1
[[role]]
name = "everybody"
match = { id = "*" }
publish = ["#"]
subscribe = ["#"]
"""
NOBODY = Peer(
    *(DeviceId("nobody"), "", "", (), (), "", ""),
    *(datetime.now(UTC) - timedelta(days=1), datetime.now(UTC) + timedelta(days=1), b""),
)


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    setattr(owner, name, make(getattr(owner, name)))


def asks_nobody_for_a_certificate() -> None:
    """TLS as on a web server; who comes is who the client identifier says."""

    def context_of(real: Any) -> Any:
        def context(**settings: Any) -> ssl.SSLContext:
            made: ssl.SSLContext = real(**settings)
            made.verify_mode = ssl.CERT_NONE
            return made

        return context

    def admit_of(real: Any) -> Any:
        def admit(the_plane: Any, connection: Any, connect: Connect) -> Any:
            connection.peer = replace(NOBODY, id=DeviceId(connect.client_id))
            return real(the_plane, connection, connect)

        return admit

    _replace(security, "server_context", context_of)
    _replace(plane, "admit_certificate", lambda real: lambda *_: NOBODY)
    _replace(entry, "admit", admit_of)


def serves_old_tls() -> None:
    """TLS 1.1 with the ciphers and signatures of its time."""

    def context_of(real: Any) -> Any:
        def context(**settings: Any) -> ssl.SSLContext:
            made: ssl.SSLContext = real(**settings)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                made.minimum_version = ssl.TLSVersion.TLSv1_1
            made.set_ciphers("ALL:@SECLEVEL=0")
            return made

        return context

    _replace(security, "server_context", context_of)


def keeps_what_it_refused() -> None:
    """Every refused CONNECT stays in memory."""
    kept: list[Connect] = []

    def refuse_of(real: Any) -> Any:
        def refuse(the_plane: Any, connection: Any, connect: Connect, *rest: Any) -> None:
            kept.append(connect)
            real(the_plane, connection, connect, *rest)

        return refuse

    _replace(entry, "refuse", refuse_of)


def gives_idle_connections_every_place() -> None:
    """No share of the places for one identity before its CONNECT."""
    _replace(Arrivals, "are_full", lambda real: lambda *_: False)


def names_the_nameless() -> None:
    """A certificate without a name is given one."""

    def identity_of(real: Any) -> Any:
        def identity(certificate: Any, rule: Any) -> DeviceId | Refusal:
            found: DeviceId | Refusal = real(certificate, rule)
            missing = isinstance(found, Refusal) and found.reason is Reason.IDENTITY_MISSING
            return DeviceId("s5-no-name") if missing else found

        return identity

    _replace(judgement, "identity_of", identity_of)


def looks_at_no_date() -> None:
    """Neither OpenSSL nor our own code compares a certificate's dates with the clock."""
    _replace(security, "leave_dates", lambda real: lambda context, **_: real(context, own_dates=True))
    _replace(judgement, "_dates", lambda real: lambda *_: None)


def takes_shared_filters_for_others() -> None:
    """`$share/group/filter` is judged as the filter."""
    _replace(decide, "parse_filter", lambda real: lambda text: real(text.removeprefix("$share/g/")))


def delivers_at_the_granted_qos() -> None:
    """Whatever it was published with."""

    def distribute_of(real: Any) -> Any:
        def distribute(message: Message, *rest: Any) -> None:
            real(Message(message.topic, message.topic_raw, message.payload, 2), *rest)

        return distribute

    for module in (plane, forwarding):
        _replace(module, "distribute", distribute_of)


def keeps_its_first_rules() -> None:
    """A reload reads everything but the policy."""
    _replace(Reloader, "_load", lambda real: lambda self, old, now: replace(real(self, old, now), policy=old.policy))


def judges_no_subscription_again() -> None:
    """What was subscribed once is delivered for ever."""
    for module in (entry, live):
        _replace(module, "judge_subscriptions", lambda real: lambda *_: 0)
    _replace(Session, "may_receive", lambda real: lambda *_: True)


def takes_empty_rules_for_open_ones() -> None:
    """Without a rule everything is permitted."""
    _replace(policies, "load_text", lambda real: lambda text, file: real(text or OPEN_RULES, file))


WEAKNESSES: Mapping[str, Callable[[], None]] = MappingProxyType(
    {
        weakness.__name__: weakness
        for weakness in (
            *(asks_nobody_for_a_certificate, serves_old_tls, keeps_what_it_refused),
            *(gives_idle_connections_every_place, names_the_nameless, looks_at_no_date),
            *(takes_shared_filters_for_others, delivers_at_the_granted_qos, keeps_its_first_rules),
            *(judges_no_subscription_again, takes_empty_rules_for_open_ones),
        )
    }
)


def serve(config_file: Path, weakness: str) -> None:
    """What the process runs; "" is the gateway as it is."""
    if weakness:
        WEAKNESSES[weakness]()
    service.serve(config_file)


class WeakGateway(Operator):
    """A gateway in a process of its own, with other settings or a weakness."""

    def __init__(self, site: Site, tables: Mapping[str, Mapping[str, Any]], weakness: str = "") -> None:
        self.site = site
        self.endpoint = Endpoint("127.0.0.1", free_port(), str(site.ca.ca_file))
        site.write_gateway_config(self.endpoint.port, tables)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._process: BaseProcess = context.Process(target=serve, args=(site.config_file, weakness))

    def reload(self) -> bool:
        """Asked on its socket, and answered when the files are in force."""
        try:
            control.call(self.site.folder / "control.sock", "reload")
        except Fault:
            return False
        return True

    def process_id(self) -> int | None:
        """Of the gateway."""
        return self._process.pid

    def __enter__(self) -> Self:
        self._process.start()
        wait_until(lambda: bool(self.site.audit("started")) or not self._process.is_alive(), "a weak gateway")
        assert self._process.is_alive(), f"it ended {self._process.exitcode}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join(10)
        assert self._process.exitcode == 0
