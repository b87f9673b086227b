"""The audit log: one JSON line for every admission, refusal, denial, kick and reload.

A line is for machines and stays for years: event names and reasons are never renamed. Everything a peer can choose is
sanitised. What a peer can repeat at will is limited per identity (or address), event and reason, so that one device
cannot rotate the history away; the next line of the kind, or a line of its own once the minute is over, says how many
were suppressed. Nothing else is ever left out.

A full disk must not stop the data plane: a line that cannot be written is counted, and the first of a series is
reported to the service log. Format and events: docs/gateway.md.
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

from gateway.listening import neighbourhood
from mtls.errors import ConfigFault, Reason
from mtls.judgement import Peer
from mtls.terminal import sanitise

EVENTS: Final = (
    "admitted",
    "refused",
    "disconnected",
    "denied",
    "dropped",
    "purged",
    "kicked",
    "renewed",
    "renewal_refused",
    "reload",
    "reload_failed",
    "shadow",
    "time",
    "started",
    "store_damaged",
    "stopped",
)
LINES_PER_WINDOW: Final = {  # of one identity (or neighbourhood), event and reason; who is not named has no limit
    "admitted": 60,  # an honest device on a bad link reconnects often
    "disconnected": 60,
    "refused": 10,
    "denied": 10,
    "dropped": 10,  # a full store evicts as fast as its publishers publish
    "shadow": 10,
    "renewal_refused": 10,
}
WINDOW_S: Final = 60.0
MAX_TRACKED: Final = 10_000  # kinds of line remembered for the limit; a flood of identities pushes out the oldest
FILE_MODE: Final = 0o640  # the group may be given to a log shipper; nobody else reads who was refused

_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str)  # made once, not per line

_Kind = tuple[str, str, str]  # identity or address, event, reason

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
        self._file = RotatedFile(path, max_bytes, keep) if path is not None else None
        self._clock = clock
        self._monotonic = monotonic
        self._tracked: dict[_Kind, tuple[float, int, int]] = {}  # (window began, lines written, suppressed)
        self._in_trouble = False
        self.failed = 0
        self.suppressed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is still to be said of suppressed lines and close the file."""
        self.sweep(everything=True)
        if self._file is not None:
            self._file.close()

    def reopen(self) -> None:
        """Open the file anew by its name, for a file that another program has moved away."""
        if self._file is not None:
            self._file.close()

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
        line: dict[str, Any] = {"time": self._now(), "event": event}
        suppressed = 0
        limit = LINES_PER_WINDOW.get(event)
        if limit is not None:
            who = str(peer.id) if peer is not None else neighbourhood(address)
            counted = self._pass(limit, (who, event, str(reason or "")))
            if counted is None:
                self.suppressed += 1
                return
            suppressed = counted
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
        self._append(line)

    def sweep(self, *, everything: bool = False) -> None:
        """Say of every kind whose minute is over how many lines were suppressed, and forget it."""
        now = self._monotonic()
        over = [kind for kind, (since, _, _) in self._tracked.items() if everything or now - since >= WINDOW_S]
        for kind in over:
            self._forget(kind)

    def _forget(self, kind: _Kind) -> None:
        _, _, suppressed = self._tracked.pop(kind)
        if not suppressed:
            return
        who, event, reason = kind
        line = {"time": self._now(), "event": event, "who": sanitise(who), "reason": reason, "suppressed": suppressed}
        self._append(line)

    def _pass(self, limit: int, kind: _Kind) -> int | None:
        """Lines suppressed before this one, or None when this one is to be suppressed as well."""
        now = self._monotonic()
        since, written, suppressed = self._tracked.get(kind, (now, 0, 0))
        if now - since >= WINDOW_S:
            since, written = now, 0
        if written >= limit:
            self._tracked[kind] = (since, written, suppressed + 1)
            return None
        if len(self._tracked) >= MAX_TRACKED and kind not in self._tracked:
            self._forget(next(iter(self._tracked)))
        self._tracked[kind] = (since, written + 1, 0)
        return suppressed

    def _now(self) -> str:
        return self._clock().isoformat(timespec="milliseconds")

    def _append(self, line: dict[str, Any]) -> None:
        try:
            encoded = _ENCODER.encode(line).encode("utf-8", "replace") + b"\n"
            if self._file is not None:
                self._file.append(encoded)
            else:
                sys.stdout.buffer.write(encoded)
                sys.stdout.buffer.flush()
            self._in_trouble = False
        except (OSError, ValueError) as error:
            self.failed += 1
            if not self._in_trouble:
                self._in_trouble = True
                log.error("audit lines are being lost: %s", error)  # noqa: TRY400 - an operator's log has no traceback


class RotatedFile:
    """A file that is only appended to; full, it becomes NAME.1, that one NAME.2, and so on up to `keep`."""

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._descriptor = -1
        self._size = 0
        self._torn = False  # a line was written in part: the next one must begin on a new line
        try:
            self._open()
        except OSError as error:
            raise ConfigFault(
                f"cannot open audit log {path}: {error.strerror}", hint="make its folder, writable by the gateway"
            ) from error

    def close(self) -> None:
        """Close the file; the next `append` opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def append(self, line: bytes) -> None:
        """Append a whole line; OSError when that failed, and the next line is whole all the same."""
        if self._descriptor < 0:
            self._open()
        if self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
        rest = b"\n" + line if self._torn else line
        try:
            while rest:
                written = os.write(self._descriptor, rest)
                self._size += written
                self._torn = not rest[:written].endswith(b"\n")
                rest = rest[written:]
        except OSError:
            self.close()
            raise

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        self.close()
        self._torn = False
        try:
            for number in range(self._keep, 0, -1):
                newer = self._path if number == 1 else self._path.with_name(f"{self._path.name}.{number - 1}")
                if newer.exists():
                    newer.replace(self._path.with_name(f"{self._path.name}.{number}"))
            if self._keep == 0:
                self._path.unlink(missing_ok=True)
        finally:
            self._open()
