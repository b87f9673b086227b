"""The control socket: how `mqtt-gateway status` and its kin talk to the running gateway.

A Unix socket with mode 0600 in a folder that exists already; whoever may open it may do everything here, so the
folder's and the socket's permissions are the whole authorization. One JSON object per line asks
(`{"command": "kick", "id": "press-07"}`), one answers (`{"ok": true, "result": ...}`, or false with `error`, `hint` and
`exit_code`). Requests are bounded in size and time; no peer can make the gateway wait or hold memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gateway.config import GatewayConfig
from mtls.errors import ConfigFault, Fault

PACKAGED_SOCKET: Final = Path("/run/mqtt-gateway/control.sock")
MAX_REQUEST_BYTES: Final = 65536  # some hundreds of ids in one `deny add`
MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024  # `sessions` of a hundred thousand devices
MAX_CLIENTS: Final = 16
REQUEST_TIMEOUT_S: Final = 5.0
CALL_TIMEOUT_S: Final = 60.0  # a reload of a very large policy takes seconds

Request = Mapping[str, Any]
Handler = Callable[[Request], Awaitable[Any]]

log = logging.getLogger("mqtt_gateway.control")


class ControlServer:
    """Serves commands on a Unix socket. `handlers` are the commands."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Bind the socket; ConfigFault when its folder is missing or another gateway serves on it."""
        listening = _bind(self._path)
        self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=MAX_REQUEST_BYTES)

    async def close(self) -> None:
        """Stop serving and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        try:
            while line := await asyncio.wait_for(reader.readline(), REQUEST_TIMEOUT_S):
                writer.write(await self._answer(line))
                await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT_S)
        except (TimeoutError, OSError, ValueError):  # ValueError: a line beyond the limit
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        try:
            response = {"ok": True, "result": await self._run(line)}
        except Fault as fault:
            response = {"ok": False, "error": str(fault), "hint": fault.hint, "exit_code": fault.exit_code}
        except Exception as error:
            log.exception("a control command failed")
            response = {"ok": False, "error": f"the command failed: {type(error).__name__}", "hint": "", "exit_code": 1}
        return json.dumps(response, default=str).encode() + b"\n"

    async def _run(self, line: bytes) -> Any:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            raise Fault("the request is not JSON") from None
        handler = self._handlers.get(text(request, "command")) if isinstance(request, dict) else None
        if handler is None:
            raise Fault("unknown command", hint=f"known commands: {', '.join(sorted(self._handlers))}")
        return await handler(request)


def texts(request: Request, key: str) -> list[str]:
    """A list of strings out of a request; Fault for anything else."""
    value = request.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Fault(f"{key} is not a list of strings")
    return value


def text(request: Request, key: str) -> str:
    """A string out of a request; Fault for anything else."""
    value = request.get(key)
    if not isinstance(value, str):
        raise Fault(f"{key} is not a string")
    return value


def bounded(request: Request, key: str, low: float, high: float) -> float:
    """A number within bounds out of a request; Fault for anything else."""
    value = request.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Fault(f"{key} is not a number from {low:g} to {high:g}")
    return float(value)


def socket_path(socket_file: Path | None, config: Path | None) -> Path:
    """Where the running gateway answers: as said, as the configuration says, or where the packaged unit has it."""
    if socket_file is not None:
        return socket_file
    if config is None:
        return PACKAGED_SOCKET
    found = GatewayConfig.load(config).control.socket
    if found is None:
        raise ConfigFault(f"{config}: [control] socket is not set", hint="set it and restart the gateway")
    return found


def call(path: Path, command: str, **arguments: Any) -> Any:
    """Ask the running gateway and return its answer; Fault with what it said, or when nobody answers."""
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    if len(request) > MAX_REQUEST_BYTES:
        raise Fault("the request is too large", hint="give fewer ids at a time")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(CALL_TIMEOUT_S)
        try:
            with _short(path) as address:
                channel.connect(address)
            channel.sendall(request)
            answer = _read_line(channel)
        except (OSError, ValueError, RecursionError) as error:  # the last two: what answers is no gateway
            raise _unreachable(path, error) from error
    if not answer.get("ok"):
        kind = ConfigFault if answer.get("exit_code") == ConfigFault.exit_code else Fault
        raise kind(str(answer.get("error")), hint=str(answer.get("hint", "")))
    return answer.get("result")


def _read_line(channel: socket.socket) -> dict[str, Any]:
    received = bytearray()
    while not received.endswith(b"\n"):
        chunk = channel.recv(1024 * 1024)
        if not chunk or len(received) > MAX_RESPONSE_BYTES:
            raise ConnectionError("no whole answer")
        received += chunk
    answer = json.loads(received)
    return answer if isinstance(answer, dict) else {}


def _unreachable(path: Path, error: Exception) -> Fault:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return Fault(
            f"no gateway answers on {path}", hint="is it running? systemctl status mqtt-gateway; or give --config"
        )
    if isinstance(error, PermissionError):
        return Fault(f"{path} is not yours to open", hint="use the gateway's user: sudo -u mqtt-gateway ...")
    return Fault(f"the gateway on {path} gave no answer: {error}", hint="see its log: journalctl -u mqtt-gateway")


def _bind(path: Path) -> socket.socket:
    if not path.parent.is_dir():
        raise ConfigFault(
            f"[control] socket: the folder {path.parent} does not exist",
            hint="make it, or let systemd do it (RuntimeDirectory=)",
        )
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)  # the socket is never open to others, not for a moment
    try:
        with _short(path) as address:
            _remove_stale(path, address)
            listening.bind(address)
    except OSError as error:
        listening.close()
        raise ConfigFault(
            f"[control] socket {path} cannot be bound: {error.strerror or error}",
            hint="the gateway's user must be able to write to its folder",
        ) from error
    except ConfigFault:
        listening.close()
        raise
    finally:
        os.umask(mask)
    listening.setblocking(False)
    return listening


def _remove_stale(path: Path, address: str) -> None:
    """Remove the socket that a killed gateway left; never one on which somebody answers, never another file."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigFault(f"[control] socket {path} is a file of another kind", hint="name another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise ConfigFault(f"[control] socket {path}: another gateway serves on it", hint="stop it, or name another path")


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """An address for a socket at any depth: its own name in an open folder (sun_path holds 108 bytes)."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
