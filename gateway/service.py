"""The gateway as a service: load, serve, reload, stop in order.

`serve` is what `mqtt-gateway run` does. It tells the service manager when it is ready (Type=notify), feeds the
watchdog as long as both the event loop and the broker's clock make progress, reloads on SIGHUP and when a file
changes, answers the control socket, and ends on SIGTERM or SIGINT: no new connections, connections closed, plugins
ended, one last audit line.

A configuration that cannot be used is a ConfigFault before anything listens.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway import denying, report
from gateway.audit import AuditLog
from gateway.config import GatewayConfig
from gateway.control import ControlServer, Request, bounded, text, texts
from gateway.keeping import Kept, open_kept, warnings_of
from gateway.listening import address_text
from gateway.notify import ServiceManager
from gateway.reload import Outcome, Reloader
from gateway.security import SecurityState, load_security
from gateway.timekeeping import Timekeeper, utc_now
from gateway.uplink import shown
from mtls.errors import ConfigFault, Fault
from mtls.revocation import DENY_KINDS, DenyList

if TYPE_CHECKING:
    from datetime import datetime

    from gateway.enrolment.server import EnrolmentServer
    from gateway.metrics import MetricsServer
    from gateway.store.store import Store
    from gateway.uplink.uplink import Uplink

STORE_LOOK_S: Final = 0.5  # how often the store is asked whether its file is sound
HOUSEKEEPING_S: Final = 10.0  # how often suppressed audit lines are looked through
YOUNG_OBJECTS: Final = 20_000  # before the cyclic collector looks; a burst of messages on their way is no garbage
STOP_TIMEOUT_S: Final = 20.0  # the unit kills after 30

log = logging.getLogger("mqtt_gateway")


def product_version() -> str:
    """The installed version."""
    try:
        return version("mqtt-mtls-gateway")
    except PackageNotFoundError:
        return "unknown"


def log_to_stderr(verbose: bool) -> None:
    """The service log: ours from INFO on, others' from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    logging.getLogger("mqtt_gateway").setLevel(logging.INFO)


def serve(config_path: Path, wall: Callable[[], datetime] = utc_now) -> None:
    """Serve until SIGTERM or SIGINT, by the clock `wall`; Fault when it cannot start or its heart stops."""
    config = GatewayConfig.load(config_path)
    keeper = Timekeeper(config.time, wall=wall)
    state = load_security(config, keeper())
    keeper.learn(state.floors)
    with (
        AuditLog(config.audit.file, max_bytes=config.audit.max_bytes, keep=config.audit.keep) as audit,
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
    ):
        runner.run(Service(config_path, state, audit, keeper, open_kept(config, wall())).run())


def _spare_collector() -> None:
    """Keep the cyclic collector from what stands since the start and from messages that only wait for a commit."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed; plain asyncio elsewhere (armv7)."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return uvloop.new_event_loop


class Service:
    """One running gateway."""

    def __init__(
        self,
        config_path: Path,
        state: SecurityState,
        audit: AuditLog,
        keeper: Timekeeper,
        kept: Kept | None = None,
    ) -> None:
        self._config_path = config_path
        self._state = state
        self._audit = audit
        self._keeper = keeper
        self._kept = kept
        self._manager = ServiceManager()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Serve until told to stop."""
        from gateway.broker.framework import build_broker  # noqa: PLC0415 - nobody but `run` waits for amqtt

        self.broker = build_broker(self._state, self._audit, self._keeper, self._kept)
        self.reloader = Reloader(
            self._config_path, self.broker, self._audit, self._manager, self._state.config, self._keeper
        )
        self.uplink = self._uplink()
        self._listen_to_signals()
        async with AsyncExitStack() as open_:
            for server in (self._control(), self._console(), self._enrolment()):
                if server is not None:
                    await server.open()
                    open_.push_async_callback(server.close)
            await self.broker.start()
            try:
                self._started()
                await self._until_stopped()
            finally:
                self._manager.stopping()
                await self._end()

    def _started(self) -> None:
        _spare_collector()
        for warning in self._warnings():
            log.warning("%s", warning)
        where = ", ".join(address_text(host, port) for host, port in self.broker.addresses)
        self._audit.write(
            "started",
            version=product_version(),
            policy_version=self._state.policy.version,
            addresses=[address_text(host, port) for host, port in self.broker.addresses],
            store=str(self._kept.config.path) if self._kept is not None else "memory",
            store_set_aside=str(self._kept.store.set_aside or "") if self._kept is not None else "",
        )
        log.info("serving mutual TLS on %s, policy %s", where, self._state.policy.version)
        self._manager.ready(f"serving on {where}, policy {self._state.policy.version}")

    def _uplink(self) -> Uplink | None:
        if self._state.config.uplink is None:
            return None
        from gateway.broker.upward import build_uplink  # noqa: PLC0415 - whoever has none pays for no client

        return build_uplink(self.broker.plane, self._state.config.uplink, self._kept, self._stamp)

    def _stamp(self) -> tuple[datetime, str]:
        """The time and what is known of it, for messages that go up."""
        moment = self._keeper()
        return moment.at, str(moment.state)

    def _warnings(self) -> list[str]:
        return [*self._state.warnings, *warnings_of(self._kept)]

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self.reloader.reload("signal")))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _until_stopped(self) -> None:
        """Wait for the end; Fault when a part that must run for ever ended by itself."""
        stop = self._spawn(self._stop.wait())
        parts = {stop, self._spawn(self.reloader.watch()), self._spawn(self._sweep_audit())}
        parts.add(self._spawn(self._keeper.watch(self._time_changed)))
        if self._kept is not None:
            parts.add(self._spawn(self._watch_store(self._kept.store)))
        if self.uplink is not None:
            parts.add(self._spawn(self.uplink.run()))
        if self._manager.watchdog_s is not None:
            parts.add(self._spawn(self._feed_watchdog(self._manager.watchdog_s / 3)))
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        if stop not in done:
            log.error("a part of the gateway has ended", exc_info=done.pop().exception())
            raise Fault("a part of the gateway has ended", hint="see the log above; the service manager restarts it")

    async def _watch_store(self, store: Store) -> None:
        """End when the store is found damaged: the next start sets it aside and goes on with what can be read."""
        while not store.damaged:  # noqa: ASYNC110 - the store has no loop when it is opened
            await asyncio.sleep(STORE_LOOK_S)
        self._audit.write("store_damaged", detail=store.damaged)
        raise Fault(f"the store {store.limits.path} is damaged: {store.damaged}")

    async def _sweep_audit(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            self._audit.sweep()

    def _time_changed(self) -> None:
        """One audit line: from here on certificates are judged by another kind of time."""
        row = self._keeper.row()
        self._audit.write("time", detail=row["doubt"], **{key: row[key] for key in ("state", "floor", "floor_from")})

    async def _feed_watchdog(self, interval_s: float) -> None:
        """Feed only when the broker's clock has ticked since: a hung loop or a dead ticker starves the watchdog."""
        fed_at = -1
        while True:
            tick = self.broker.plane.tick
            if tick != fed_at and (self._kept is None or self._kept.store.writer.progresses):
                fed_at = tick
                self._manager.alive()
            await asyncio.sleep(interval_s)

    async def _end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await asyncio.wait_for(self.broker.shutdown(), STOP_TIMEOUT_S)
        except TimeoutError:
            log.error("the shutdown took longer than %s s", STOP_TIMEOUT_S)  # noqa: TRY400 - nothing to trace
        await asyncio.to_thread(self._keeper.close)
        self._audit.write("stopped")

    # the commands of the control socket

    def _control(self) -> ControlServer | None:
        path = self._state.config.control.socket
        if path is None:
            return None
        return ControlServer(
            path,
            {
                "status": self._status,
                "sessions": self._sessions,
                "kick": self._kick,
                "reload": self._reload,
                "deny_add": self._deny_add,
                "deny_remove": self._deny_remove,
                "deny_list": self._deny_list,
                "spool_estimate": self._spool_estimate,
            },
        )

    def _console(self) -> MetricsServer | None:
        bind = self._state.config.console.bind
        if bind is None:
            return None
        from gateway.metrics import MetricsServer  # noqa: PLC0415 - whoever has no console pays for no web server

        return MetricsServer(bind, self._report)

    def _enrolment(self) -> EnrolmentServer | None:
        config = self._state.config.enrolment
        if config is None:
            return None
        from gateway.enrolment.server import EnrolmentServer  # noqa: PLC0415 - aiohttp, as above

        return EnrolmentServer(config, lambda: self.broker.state, self._keeper, self._audit, self.broker.plane.counts)

    async def _status(self, _: Request) -> dict[str, Any]:
        return self._report()

    def _report(self) -> dict[str, Any]:
        state, last, clock = self.broker.state, self.reloader.last, self._keeper.row()
        now = self._keeper().at
        return {
            "version": product_version(),
            "time": clock["at"],
            "clock": clock,
            "pid": os.getpid(),
            "config": str(self._config_path.absolute()),
            "addresses": [address_text(host, port) for host, port in self.broker.addresses],
            "policy": state.policy.file,
            **self.broker.status_report(),
            "queued": sum(session.queued for session in self.broker.plane.exchange.sessions),
            "loaded_at": state.loaded_at.isoformat(timespec="seconds"),
            "last_reload": _outcome(last),
            "server_certificate_not_after": state.server_not_after.isoformat(),
            "certificates": report.certificate_rows(state),
            "crls": report.crl_rows(state, now),
            "crl_faults": len(state.crls.faults) if state.crls is not None else 0,
            "denied": len(state.deny),
            "shadow": state.shadow.row() if state.shadow is not None else None,
            "uplink": self.uplink.report() if self.uplink is not None else None,
            "audit_lines_lost": self._audit.failed,
            "audit_lines_suppressed": self._audit.suppressed,
            "warnings": [*state.warnings_at(now), *warnings_of(self._kept)],
        }

    async def _spool_estimate(self, request: Request) -> dict[str, Any]:
        if self.uplink is None:
            raise Fault("there is no [uplink]", hint="nothing is spooled without one")
        return self.uplink.estimate(bounded(request, "hours", 0.0, shown.MAX_HOURS))

    async def _sessions(self, _: Request) -> list[dict[str, Any]]:
        return self.broker.sessions_report()

    async def _kick(self, request: Request) -> dict[str, Any]:
        device = text(request, "id")
        closed = self.broker.kick(device)
        if closed:
            self._audit.write("kicked", id=device, connections=closed)
        return {"id": device, "closed": closed}

    async def _reload(self, _: Request) -> Any:
        return _answer(await self.reloader.reload("command"))

    async def _deny_add(self, request: Request) -> Any:
        return await self._change_deny_list(request, denying.add)

    async def _deny_remove(self, request: Request) -> Any:
        return await self._change_deny_list(request, denying.remove)

    async def _change_deny_list(self, request: Request, change: Callable[[Path, DenyList], int]) -> Any:
        """Change the file, then reload: the answer comes when the change is in force."""
        path = self._deny_file()
        entries = denying.parse(*(texts(request, kind) for kind in DENY_KINDS))
        changed = await asyncio.to_thread(change, path, entries)
        return {"changed": changed, "file": str(path), "reload": _answer(await self.reloader.reload("deny list"))}

    async def _deny_list(self, _: Request) -> Any:
        path = self._deny_file()
        return {"file": str(path), **DenyList.from_file(path).row()}

    def _deny_file(self) -> Path:
        path = self.broker.state.config.listener.deny_file
        if path is None:
            raise ConfigFault("[listener] deny_file is not set", hint="set it to a file that the gateway may write")
        return path


def _answer(outcome: Outcome) -> Any:
    if outcome.fault is not None:
        raise outcome.fault
    return outcome.row


def _outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {"cause": outcome.cause, "ok": outcome.fault is None, "error": str(outcome.fault or "")}
