"""A mosquitto with mutual TLS and a subscriber, for tests of the agent."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.device_sim.processes import Program, free_port, is_listening, wait_for
from tests.support.pki import Credential, Pki


@dataclass
class Broker:
    """A real mosquitto on a port of its own; it can be stopped and started again."""

    folder: Path
    pki: Pki
    server: Credential
    port: int
    settings: tuple[str, ...] = ()
    program: Program | None = None
    clients: list[Program] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    def start(self) -> None:
        lines = [
            f"listener {self.port} 127.0.0.1",
            *("allow_anonymous false", "require_certificate true", "use_identity_as_username true", "user root"),
            f"cafile {self.pki.ca_file}",
            f"certfile {self.server.cert_file}",
            f"keyfile {self.server.key_file}",
            *self.settings,
        ]
        path = self.folder / "mosquitto.conf"
        path.write_text("\n".join(lines) + "\n")
        self.program = Program("mosquitto", "-c", path)
        wait_for("mosquitto", lambda: is_listening(self.port))

    def stop(self) -> None:
        if self.program is not None:
            wait_for("mosquitto's end", self._has_ended)
            self.program.ends()
            self.program = None

    def _has_ended(self) -> bool:
        """Told again each time: mosquitto 2.0.11 forgets a SIGTERM of its first moments, before its loop begins."""
        assert self.program is not None
        if self.program.process.poll() is None:
            self.program.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.program.process.wait(0.5)
        return self.program.process.poll() is not None

    def subscribe(self, topic: str) -> Program:
        """mosquitto_sub, subscribed when this returns; `out` holds topic and payload per line."""
        who = self.pki.device("watcher")
        credentials = ("--cafile", self.pki.ca_file, "--cert", who.cert_file, "--key", who.key_file)
        where = ("-h", "localhost", "-p", self.port)
        options = ("-q", "1", "-d", "-F", "%r %t %p", "-t", topic)
        client = Program("stdbuf", "-oL", "mosquitto_sub", *where, *credentials, *options)
        self.clients.append(client)
        wait_for("SUBACK", lambda: b"Subscribed (" in client.out)
        return client


@pytest.fixture
def make_broker(pki: Pki, tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """A factory of running brokers; all are stopped at the end."""
    made: list[Broker] = []

    def make(server: Credential | None = None, *settings: str) -> Broker:
        folder = tmp_path / f"broker{len(made)}"
        folder.mkdir()
        broker = Broker(folder, pki, server or pki.server(), free_port(), settings)
        made.append(broker)
        broker.start()
        return broker

    yield make
    for broker in made:
        for client in broker.clients:
            client.stop()
        broker.stop()


@pytest.fixture
def broker(make_broker: Callable[..., Broker]) -> Broker:
    """A running broker with a good certificate."""
    return make_broker()


@pytest.fixture(scope="session")
def openssl() -> Callable[..., bytes]:
    """`openssl` with arguments; its output."""

    def run(*arguments: object) -> bytes:
        command = ["openssl", *(str(argument) for argument in arguments)]
        return subprocess.run(command, check=True, capture_output=True).stdout

    return run
