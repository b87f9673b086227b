"""The broker under torture: its folder, its certificates, its start command, and how it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mtls.errors import Fault
from mtls.keystore import key_pem, new_key, write_private, write_public
from mtls.profiles import DEVICE_OPERATIONAL, GATEWAY_SERVER, ISSUING_CA, ROOT_CA, Issuer, Profile
from mtls.tls import client_context
from mtls.trust import to_pem

START_TIMEOUT_S: Final = 60.0
COMMIT_TIMEOUT_S: Final = 1.0  # to wait for the disk to be written to, before a kill in the middle of a commit

CONFIG: Final = """
[listener]
bind = ["127.0.0.1:{port}"]
cert_file = "server.crt"
key_file = "server.key"
ca_file = "ca.crt"
[policy]
file = "policy.toml"
[audit]
file = "audit.jsonl"
[store]
path = "gateway.db"
min_free_bytes = 0
allow_volatile = true
"""
POLICY: Final = """
version = 1
[[role]]
name = "device"
match = { id = "dev-*" }
publish = ["torture/{id}/data"]
[[role]]
name = "service"
match = { id = "sub-*" }
subscribe = ["torture/#"]
"""


@dataclass(frozen=True, slots=True)
class Kill:
    """When to kill: after so long, or at the first write to disk after that."""

    after_s: float
    in_commit: bool


class Subject:
    """One broker in a folder of its own. `command` None is this gateway; else a shell command that sees the variables
    PORT, DIR (the folder, kept between the rounds), CA, CERT and KEY."""

    def __init__(self, folder: Path, names: Sequence[str], command: str | None) -> None:
        self.folder = folder
        self.port = _free_port()
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        _write_certificates(folder, names)
        (folder / "gateway.toml").write_text(CONFIG.format(port=self.port), encoding="utf-8")
        (folder / "policy.toml").write_text(POLICY, encoding="utf-8")
        self._contexts = {
            name: client_context(
                ca_file=folder / "ca.crt", cert_file=folder / f"{name}.crt", key_file=folder / f"{name}.key"
            )
            for name in names
        }

    def context(self, name: str) -> ssl.SSLContext:
        """The TLS context of one client."""
        return self._contexts[name]

    async def start(self) -> float:
        """Start the broker; the seconds until it took a TLS connection."""
        began = time.monotonic()
        folder = self.folder
        with (folder / "broker.log").open("ab") as log:
            variables = {"PORT": str(self.port), "DIR": str(folder), "CA": "ca.crt", "CERT": "server.crt"}
            self._process = await asyncio.create_subprocess_exec(
                *self._words(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, **variables, "KEY": "server.key"},
                start_new_session=True,
            )
        while time.monotonic() - began < START_TIMEOUT_S:
            if self._process.returncode is not None:
                break
            with contextlib.suppress(OSError, ssl.SSLError):
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", self.port, ssl=next(iter(self._contexts.values())), server_hostname="localhost"
                )
                writer.transport.abort()
                return time.monotonic() - began
            await asyncio.sleep(0.02)
        await self.kill()
        log_end = (folder / "broker.log").read_text(errors="replace")[-400:]
        raise Fault(f"the broker did not start: {log_end!a}", hint=f"its output is in {folder / 'broker.log'}")

    def _words(self) -> list[str]:
        if self._command is not None:
            return ["/bin/sh", "-c", f"exec {self._command}"]
        program = Path(sys.executable).with_name("mqtt-gateway")
        return [str(program), "run", "--config", str(self.folder / "gateway.toml")]

    async def kill_at(self, moment: Kill) -> None:
        """Wait for the moment, then SIGKILL."""
        await asyncio.sleep(moment.after_s)
        if moment.in_commit:
            await asyncio.to_thread(self._wait_for_write)
        await self.kill()

    def _wait_for_write(self) -> None:
        """Until any file of the broker's is written to: a commit has begun, and its fsync has not returned."""
        before = self._written()
        deadline = time.monotonic() + COMMIT_TIMEOUT_S
        while self._written() == before and time.monotonic() < deadline:
            pass

    def _written(self) -> list[tuple[int, int]]:
        found = []
        for entry in os.scandir(self.folder):
            if ".db" in entry.name:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    found.append((status.st_size, status.st_mtime_ns))
        return found

    async def kill(self) -> None:
        """SIGKILL to the broker and everything it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def choose(rng: random.Random, rounds: int) -> list[Kill]:
    """When to kill in each round; every other time in the middle of a commit."""
    return [Kill(rng.uniform(0.05, 0.9), number % 2 == 1) for number in range(rounds)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_certificates(folder: Path, names: Sequence[str]) -> None:
    now = datetime.now(UTC)
    root_key, issuing_key = new_key(), new_key()
    root = Issuer(
        ROOT_CA.build(subject_cn="Torture Root", public_key=root_key.public_key(), issuer=None, key=root_key, now=now),
        root_key,
    )
    issuing = Issuer(
        ISSUING_CA.build(subject_cn="Torture CA", public_key=issuing_key.public_key(), issuer=root, now=now),
        issuing_key,
    )
    write_public(folder / "ca.crt", to_pem([root.certificate, issuing.certificate]))

    def write(name: str, cn: str, profile: Profile, dns: Sequence[str] = ()) -> None:
        key = new_key()
        leaf = profile.build(subject_cn=cn, public_key=key.public_key(), issuer=issuing, now=now, dns=dns)
        write_public(folder / f"{name}.crt", to_pem([leaf, issuing.certificate]))
        write_private(folder / f"{name}.key", key_pem(key))

    write("server", "localhost", GATEWAY_SERVER, ("localhost",))
    for name in names:
        write(name, name, DEVICE_OPERATIONAL)
