"""Starts the programs as an operator does, by their commands, and the software that judges them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
DEADLINE_S = 20.0
ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([str(BIN), os.environ["PATH"], "/usr/sbin", "/sbin"])}

POLICY = """
version = 1

[[role]]
name = "device"
match = { id = "*" }
publish = ["devices/{id}/telemetry/#", "devices/{id}/state"]
retain = ["devices/{id}/state"]
will = ["devices/{id}/state"]
subscribe = ["devices/{id}/commands/#"]

[[role]]
name = "service"
match = { ou = "services" }
publish = ["devices/+/commands/#"]
subscribe = ["devices/#"]
"""


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Poll until `condition` is true; AssertionError naming `what` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s} s"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def attempt(
    *command: str | Path, given: str | None = None, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it said."""
    return subprocess.run(
        [str(word) for word in command],
        env=ENVIRONMENT,
        input=given if given is not None else "",
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def run(*command: str | Path, given: str | None = None) -> str:
    """Run a command that must end 0; its standard output."""
    done = attempt(*command, given=given)
    assert done.returncode == 0, f"{command} ended {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


class Program:
    """A program in the background with its output in a file; ended, at the latest, when the block is left."""

    def __init__(self, log: Path, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                env={**ENVIRONMENT, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """As the function, and it fails at once when the program has ended."""

        def holds() -> bool:
            fulfilled = bool(condition())
            assert fulfilled or self.process.poll() is None, f"{what}: ended early\n{self.said()}"
            return fulfilled

        try:
            wait_until(holds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()}") from error

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end and return its exit status; killed when it does not."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Identity:
    """The files of one certificate, as `mqtt-provision issue` writes them."""

    name: str
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA made by `mqtt-provision`, with a server certificate for this machine."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        run("mqtt-provision", "ca", "init", "--dir", folder / "ca", "--name", folder.name, "--insecure-dev")
        authority = cls(folder)
        # Every leaf names a distribution point, our CRLs no issuing one: nginx, mosquitto and openssl must accept both.
        (folder / "ca/ca.toml").write_text('crl_url = "http://127.0.0.1/{issuer}.crl"\n', encoding="utf-8")
        names = ("--dns", "localhost", "--ip", "127.0.0.1")
        run("mqtt-provision", "server", "--dir", folder / "ca", *names, "--out", folder / "server")
        authority.write_crl()
        return authority

    @property
    def ca_file(self) -> Path:
        return self.folder / "server/ca.crt"

    @property
    def server(self) -> Identity:
        return Identity("server", self.folder / "server/server.crt", self.folder / "server/server.key")

    @property
    def crl_file(self) -> Path:
        return self.folder / "crl.pem"

    def issue(self, name: str, *options: str) -> Identity:
        out = self.folder / "issued"
        run("mqtt-provision", "issue", name, "--dir", self.folder / "ca", "--out", out, *options)
        return Identity(name, out / f"{name}.crt", out / f"{name}.key")

    def write_crl(self) -> None:
        run("mqtt-provision", "crl", "--dir", self.folder / "ca", "--out", self.crl_file)

    def revoke(self, name: str) -> None:
        run("mqtt-provision", "revoke", name, "--dir", self.folder / "ca")
        self.write_crl()


class Gateway(Program):
    """`mqtt-gateway run` on a free port, ready when it has told the service manager so."""

    def __init__(self, folder: Path, authority: Authority, policy: str = POLICY) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.audit_file = folder / "audit.jsonl"
        self.config = folder / "gateway.toml"
        (folder / "policy.toml").write_text(policy, encoding="utf-8")
        (folder / "crl.pem").write_bytes(authority.crl_file.read_bytes())
        self.crl_file = folder / "crl.pem"
        self.config.write_text(
            f"""
            [listener]
            bind = ["127.0.0.1:{self.port}"]
            cert_file = "{authority.server.cert}"
            key_file = "{authority.server.key}"
            ca_file = "{authority.ca_file}"
            crl_file = "crl.pem"
            [policy]
            file = "policy.toml"
            [audit]
            file = "{self.audit_file}"
            [control]
            socket = "{folder / "control.sock"}"
            """,
            encoding="utf-8",
        )
        # The service manager's side of Type=notify, played by the test. Its path must be short.
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / "n"))
        self.manager.setblocking(False)
        self.notices: list[str] = []
        super().__init__(
            folder / "gateway.log",
            ["mqtt-gateway", "run", "--config", self.config],
            {"NOTIFY_SOCKET": str(folder / "n")},
        )
        try:
            self.wait_until(lambda: self.notified("READY=1"), "the gateway's READY=1")
        except BaseException:
            self.__exit__()
            raise

    def notified(self, notice: str) -> bool:
        try:
            while True:
                self.notices += self.manager.recv(4096).decode().splitlines()
        except BlockingIOError:
            return notice in self.notices

    def audit(self, **wanted: str) -> list[dict[str, Any]]:
        """The audit lines whose fields have the wanted values."""
        text = self.audit_file.read_text(encoding="utf-8") if self.audit_file.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def __exit__(self, *_: object) -> None:
        self.end()
        self.manager.close()


def nginx(folder: Path, authority: Authority) -> tuple[Program, int]:
    """The shipped configuration, included by a main file that keeps everything below `folder`."""
    port = free_port()
    shipped = (REPOSITORY / "examples/nginx-mtls.conf").read_text(encoding="utf-8")
    (folder / "etc").mkdir(parents=True)
    for source in (authority.server.cert, authority.server.key, authority.ca_file, authority.crl_file):
        shutil.copy(source, folder / "etc")
    listen = shipped.replace("listen [::]:443 ssl;", "").replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    (folder / "site.conf").write_text(listen.replace("/etc/mqtt-gateway", str(folder / "etc")), encoding="utf-8")
    temporary = "".join(
        f"{kind}_temp_path {folder / kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder / 'nginx.pid'};\nerror_log {folder / 'error.log'};\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}include {folder / 'site.conf'};\n}}\n",
        encoding="utf-8",
    )
    command: list[str | Path] = ["nginx", "-p", folder, "-e", folder / "error.log", "-c", folder / "nginx.conf"]
    server = Program(folder / "nginx.log", command)
    server.wait_until(lambda: listens(port), "nginx listening")
    return server, port


def mosquitto(folder: Path, authority: Authority) -> tuple[Program, int]:
    """A mosquitto that requires a client certificate and takes the user's name from it."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    user = "user root\n" if os.geteuid() == 0 else ""
    (folder / "mosquitto.conf").write_text(
        f"{user}listener {port} 127.0.0.1\ncafile {authority.ca_file}\ncertfile {authority.server.cert}\n"
        f"keyfile {authority.server.key}\nrequire_certificate true\nuse_identity_as_username true\n"
        "allow_anonymous true\npersistence false\n",
        encoding="utf-8",
    )
    server = Program(folder / "mosquitto.log", ["mosquitto", "-c", folder / "mosquitto.conf"])
    server.wait_until(lambda: listens(port), "mosquitto listening")
    return server, port
