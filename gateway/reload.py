"""Reload: read all files, verify them together, swap the set at once; on any fault the old set stays in force.

Asked for by SIGHUP, by `mqtt-gateway reload`, by a change of the deny list, and by the watch over the files; one runs
at a time. Reading and verifying happen in a thread, so that a large policy does not hold up the data plane; the swap
and the judgement of everything that lives happen on the loop, in one go.

Settings that are bound to sockets and processes take effect at the next start, and the report says which.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.config import GatewayConfig
from gateway.security import SecurityState, check_replacement, load_security, watched_files
from mtls.clock import Moment
from mtls.errors import Fault

if TYPE_CHECKING:
    from gateway.audit import AuditLog
    from gateway.broker.runtime import GatewayBroker
    from gateway.notify import ServiceManager
    from gateway.timekeeping import Timekeeper

WATCH_INTERVAL_S: Final = 0.25  # a change must look the same twice, so a reload follows within about 0.5 s
MAX_REPORTED: Final = 100  # connections named in one audit line; all of them have a line of their own

log = logging.getLogger("mqtt_gateway.reload")

Snapshot = Mapping[Path, tuple[int, int, int] | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reload did. `fault` is set when the old set stayed in force."""

    cause: str
    fault: Fault | None = None
    row: Mapping[str, Any] | None = None


class Reloader:
    """Reloads one broker from one configuration file."""

    def __init__(
        self,
        config_path: Path,
        broker: GatewayBroker,
        audit: AuditLog,
        manager: ServiceManager,
        started: GatewayConfig,
        keeper: Timekeeper,
    ) -> None:
        self._config_path = config_path
        self._broker = broker
        self._audit = audit
        self._manager = manager
        self._started = started
        self._keeper = keeper
        self._lock = asyncio.Lock()
        self._seen = snapshot(started)
        self.last: Outcome | None = None

    async def reload(self, cause: str) -> Outcome:
        """Reload once; never raises but for cancellation."""
        async with self._lock:
            self._manager.reloading()
            self._seen = snapshot(self._broker.state.config)
            try:
                state = await asyncio.to_thread(self._load, self._broker.state, self._keeper())
                # Files of a new configuration may have other names; what happened since loading is seen by the watch.
                self._seen = {path: self._seen.get(path, mark) for path, mark in snapshot(state.config).items()}
                outcome = Outcome(cause, row=self._apply(state, cause))
            except Fault as fault:
                outcome = self._failed(cause, fault)
            except Exception as error:
                log.exception("reload failed")
                outcome = self._failed(cause, Fault(f"reload failed: {type(error).__name__}"))
            finally:
                self._manager.ready(f"policy {self._broker.state.policy.version}")
            self.last = outcome
            return outcome

    def _load(self, old: SecurityState, now: Moment) -> SecurityState:
        state = load_security(GatewayConfig.load(self._config_path), now, serving=True)
        check_replacement(old, state)
        return state

    def _apply(self, state: SecurityState, cause: str) -> Mapping[str, Any]:
        known = self._broker.state.warnings
        self._keeper.learn(state.floors)
        report = self._broker.apply(state)
        row: dict[str, Any] = {
            "cause": cause,
            "policy_version": state.policy.version,
            "closed": len(report.closed),
            "sessions_discarded": report.sessions_discarded,
            "subscriptions_removed": report.subscriptions_removed,
            "wills_removed": report.wills_removed,
            "needs_restart": list(needs_restart(self._started, state.config)),
        }
        self._audit.reopen()
        self._audit.write("reload", **row)
        for warning in state.warnings:
            if warning not in known:
                log.warning("%s", warning)
        named = [{"id": device, "reason": str(refusal.reason)} for device, refusal in report.closed[:MAX_REPORTED]]
        return {**row, "closed_connections": named, "warnings": list(state.warnings)}

    def _failed(self, cause: str, fault: Fault) -> Outcome:
        self._audit.write("reload_failed", detail=str(fault), cause=cause)
        log.error("reload failed, the old set stays in force: %s", fault)
        return Outcome(cause, fault=fault)

    async def watch(self) -> None:
        """Reload whenever a watched file has changed and looks the same for two looks in a row. Runs for ever."""
        pending: Snapshot | None = None
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            current = snapshot(self._broker.state.config)
            if current == self._seen:
                pending = None
            elif current == pending:
                pending = None
                await self.reload("files")
            else:
                pending = current


def snapshot(config: GatewayConfig) -> Snapshot:
    """What the watched files look like from outside: modification time, size and inode, or None when missing."""
    return {path: _mark(path) for path in watched_files(config)}


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def needs_restart(started: GatewayConfig, now: GatewayConfig) -> tuple[str, ...]:
    """Settings that differ from those of the start and are bound to it."""
    pairs = {
        "[listener] bind": (started.listener.bind, now.listener.bind),
        "[control] socket": (started.control, now.control),
        "[audit]": (started.audit, now.audit),
        "[console] bind": (started.console, now.console),
        "[time]": (started.time, now.time),
        "[store]": (started.store, now.store),
        "[enrolment]": (started.enrolment, now.enrolment),
        "[uplink]": (started.uplink, now.uplink),
        "[amqtt.plugins]": (dict(started.plugins), dict(now.plugins)),
        **{
            f"[limits] {key}": (getattr(started.limits, key), getattr(now.limits, key))
            for key in (
                "max_connections",
                "max_handshakes",
                "max_handshakes_per_address",
                "handshake_timeout_s",
                "max_topic_levels",
                "max_subscriptions_per_session",
                "retained_max_bytes",
            )
        },
    }
    return tuple(name for name, (before, after) in pairs.items() if before != after)
