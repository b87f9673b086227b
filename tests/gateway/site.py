"""A site on disk: certificates, policy, CRL, deny list and gateway.toml, and `mqtt-gateway run` as a process on it."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from cryptography import x509

from tests.integration.programs import POLICY, Program, attempt
from tests.support.gateway import RawClient
from tests.support.pki import Credential, Pki


class Site:
    """The files of one gateway. `listener`, `limits` and the like replace or add keys; None leaves a key out."""

    def __init__(self, folder: Path, pki: Pki, policy: str = POLICY, **tables: Mapping[str, Any]) -> None:
        self.folder = folder
        self.pki = pki
        self.policy_file = folder / "policy.toml"
        self.crl_file = folder / "crl.pem"
        self.deny_file = folder / "deny.toml"
        self.config_file = folder / "gateway.toml"
        self.audit_file = folder / "audit.jsonl"
        self.socket = folder / "control.sock"
        self.server = pki.server()
        self._tables = tables
        self.policy_file.write_text(policy)
        self.deny_file.write_text("")
        self.revoke()
        self.configure()

    def configure(self, **tables: Mapping[str, Any]) -> None:
        """Write gateway.toml."""
        given: dict[str, dict[str, Any]] = {
            "listener": {
                "bind": ["127.0.0.1:0"],
                "cert_file": str(self.server.cert_file),
                "key_file": str(self.server.key_file),
                "ca_file": str(self.pki.ca_file),
                "crl_file": "crl.pem",
                "deny_file": "deny.toml",
            },
            "policy": {"file": "policy.toml"},
            "audit": {"file": "audit.jsonl"},
            "control": {"socket": "control.sock"},
        }
        for overrides in (self._tables, tables):
            for name, table in overrides.items():
                given.setdefault(name, {}).update(table)
        self.config_file.write_text(
            "".join(
                f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items() if v is not None)
                for name, table in given.items()
            )
        )

    def revoke(self, *certificates: x509.Certificate, **crl: Any) -> None:
        """Publish a newer CRL that lists these certificates."""
        replacement = self.folder / "crl.new"
        shutil.copy(self.pki.crl(certificates, **crl), replacement)
        replacement.rename(self.crl_file)

    def audit(self, event: str | None = None, **wanted: str) -> list[dict[str, Any]]:
        """Audit lines so far whose fields have the wanted values."""
        text = self.audit_file.read_text() if self.audit_file.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        chosen = [line for line in lines if event in (None, line["event"])]
        return [line for line in chosen if all(line.get(key) == value for key, value in wanted.items())]

    def command(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `mqtt-gateway` with this site's configuration."""
        return attempt("mqtt-gateway", *words, "--config", self.config_file)


class Running(Program):
    """`mqtt-gateway run` on a site, ready when it has told the service manager so."""

    def __init__(self, site: Site, environment: Mapping[str, str] | None = None) -> None:
        self.site = site
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = f"\0mqtt-gateway-test-{site.folder}"[:100]
        self.manager.bind(address)
        self.manager.setblocking(False)
        self.notices: list[str] = []
        self.clients: list[RawClient] = []
        super().__init__(
            site.folder / "gateway.log",
            ["mqtt-gateway", "run", "--config", site.config_file],
            {"NOTIFY_SOCKET": "@" + address[1:], **(environment or {})},
        )
        try:
            self.wait_until(lambda: self.notified("READY=1"), "READY=1")
        except BaseException:
            self.__exit__()
            raise
        self.port = int(site.audit("started")[-1]["addresses"][0].rpartition(":")[2])

    def notified(self, start: str, times: int = 1) -> bool:
        """Whether the service manager was told a line that begins so, at least so often."""
        try:
            while True:
                self.notices += self.manager.recv(4096).decode().splitlines()
        except BlockingIOError:
            return sum(notice.startswith(start) for notice in self.notices) >= times

    def client(self, who: Credential, client_id: str) -> list[str | Path]:
        """The options of a mosquitto client."""
        identity = ["--cert", who.cert_file, "--key", who.key_file, "-i", client_id]
        return ["-h", "127.0.0.1", "-p", str(self.port), "--cafile", self.site.pki.ca_file, *identity]

    def connected(self, who: Credential, client_id: str) -> RawClient:
        """A connected device on the standard library's TLS."""
        context = ssl.create_default_context(cafile=str(self.site.pki.ca_file))
        context.load_cert_chain(who.cert_file, who.key_file)
        client = RawClient(self.port, context)
        self.clients.append(client)
        assert client.connect(client_id) == (False, 0)
        return client

    def publish(self, who: Credential, client_id: str, topic: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Publish one message with mosquitto_pub, QoS 1."""
        return attempt("mosquitto_pub", *self.client(who, client_id), "-t", topic, "-m", "21.5", "-q", "1", *options)

    def subscriber(self, who: Credential, client_id: str, topics: Sequence[str], log: Path) -> Program:
        """A mosquitto_sub that has its SUBACK and ends when its connection is cut."""
        words = [word for topic in topics for word in ("-t", topic)]
        program = Program(
            log, ["stdbuf", "-oL", "mosquitto_sub", *self.client(who, client_id), *words, "-q", "1", "-v", "-d"]
        )
        program.wait_until(lambda: "Subscribed (" in program.said(), "SUBACK")
        return program

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        self.end()
        self.manager.close()
