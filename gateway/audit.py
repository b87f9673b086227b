"""The audit log: one JSON line for every admission, refusal, denial, kick and reload.

A line is for machines and stays for years: event names and reasons are never renamed. Everything a peer can choose is
sanitised. Denials are limited per identity and event, and the next line says how many were suppressed; nothing else
is ever left out. A full disk must not stop the data plane: a line that cannot be written is counted, and the first of
a series is reported to the service log.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mtls.errors import ConfigFault, Reason
from mtls.judgement import Peer
from mtls.terminal import sanitise

EVENTS: Final = (
    "admitted",
    "refused",
    "disconnected",
    "denied",
    "kicked",
    "reload",
    "reload_failed",
    "started",
    "stopped",
)
LIMITED: Final = frozenset({"refused", "denied"})
LINES_PER_WINDOW: Final = 20
WINDOW_S: Final = 60.0
MAX_TRACKED: Final = 10_000  # (identity or address, event, reason) triples remembered for the limit

log = logging.getLogger("mqtt_gateway.audit")


class AuditLog:
    """Appends lines to a file, rotated by size, or to standard output when `path` is None."""

    def __init__(
        self,
        path: Path | None,
        *,
        max_bytes: int = 64 * 1024 * 1024,
        keep: int = 5,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._clock = clock
        self._monotonic = monotonic
        self._size = 0
        self._descriptor = -1
        self._tracked: dict[tuple[str, str, str], tuple[float, int, int]] = {}
        self.failed = 0
        self.suppressed = 0
        if path is not None:
            try:
                self._open(path)
            except OSError as error:
                raise ConfigFault(
                    f"cannot open audit log {path}: {error.strerror}", hint="make its folder, writable by the gateway"
                ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._descriptor).st_size

    def write(
        self,
        event: str,
        *,
        peer: Peer | None = None,
        client_id: str = "",
        reason: Reason | None = None,
        detail: str = "",
        rule: str = "",
        address: str = "",
        **extra: Any,
    ) -> None:
        """Write one line; never raises. `extra` values are strings, numbers, booleans or lists of strings."""
        suppressed = 0
        if event in LIMITED:
            who = str(peer.id) if peer is not None else address
            counted = self._pass(who, event, str(reason))
            if counted is None:
                self.suppressed += 1
                return
            suppressed = counted
        line: dict[str, Any] = {"time": self._clock().isoformat(timespec="milliseconds"), "event": event}
        if peer is not None:
            line["id"] = str(peer.id)
        if client_id:
            line["client_id"] = sanitise(client_id)
        if reason is not None:
            line["reason"] = str(reason)
        for key, text in (("detail", detail), ("rule", rule), ("address", address)):
            if text:
                line[key] = sanitise(text)
        if peer is not None:
            line["issuer"] = sanitise(peer.issuer_cn)
            line["certificate_serial"] = peer.certificate_serial
            line["fingerprint_sha256"] = peer.fingerprint_sha256
        for key, value in extra.items():
            line[key] = sanitise(value) if isinstance(value, str) else value
        if suppressed:
            line["suppressed"] = suppressed
        self._append(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n")

    def _pass(self, who: str, event: str, reason: str) -> int | None:
        """Lines suppressed before this one, or None when this one is to be suppressed as well."""
        now = self._monotonic()
        key = (who, event, reason)
        since, written, suppressed = self._tracked.get(key, (now, 0, 0))
        if now - since >= WINDOW_S:
            since, written = now, 0
        if written >= LINES_PER_WINDOW:
            self._tracked[key] = (since, written, suppressed + 1)
            return None
        if len(self._tracked) >= MAX_TRACKED and key not in self._tracked:
            self._tracked.pop(next(iter(self._tracked)))
        self._tracked[key] = (since, written + 1, 0)
        return suppressed

    def _append(self, line: bytes) -> None:
        try:
            if self._path is None:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
                return
            if self._size + len(line) > self._max_bytes:
                self._rotate(self._path)
            self._size += os.write(self._descriptor, line)
        except OSError as error:
            self.failed += 1
            if self.failed == 1:
                log.error("audit line lost: %s", error)  # noqa: TRY400 - no traceback into an operator's log

    def _rotate(self, path: Path) -> None:
        """audit.jsonl -> audit.jsonl.1 -> ... ; the oldest beyond `keep` goes."""
        self.close()
        try:
            for number in range(self._keep, 0, -1):
                older = path.with_name(f"{path.name}.{number}")
                newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
                if newer.exists():
                    newer.replace(older)
            if self._keep == 0:
                path.unlink(missing_ok=True)
        finally:
            self._open(path)
