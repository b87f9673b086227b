"""The brokers that are compared, each started on cores of its own with the same certificates.

mosquitto and the gateway get rules that grant the same. Stock amqtt runs as its own command with its own plug-in for
authentication, which lets everyone in, and no rules at all: it does less than the other two.
"""

import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pki import Pki
from device_sim.targets.programs import Program, answers, free_port

BIN = Path(sys.executable).parent
START_S = 120.0  # a policy of 100,000 roles takes some seconds to load, more on a Pi
POLICY = """version = 1
[[role]]
name = "device"
match = { id = "*" }
publish = ["devices/{id}/#"]
subscribe = ["devices/{id}/#", "broadcast/#"]
[[role]]
name = "backend"
match = { id = "backend" }
publish = ["devices/#", "broadcast/#"]
retain = ["devices/#"]
subscribe = ["devices/#"]
"""
ACL = """user backend
topic readwrite devices/#
topic readwrite broadcast/#
pattern readwrite devices/%u/#
pattern read broadcast/#
"""


def mosquitto_command(pki: Pki, folder: Path, port: int) -> list[str]:
    (folder / "acl").write_text(ACL, encoding="utf-8")
    user = "user root\n" if os.geteuid() == 0 else ""
    (folder / "mosquitto.conf").write_text(
        f"{user}listener {port} 127.0.0.1\ncafile {pki.ca_file}\ncertfile {pki.folder}/server.crt\n"
        f"keyfile {pki.folder}/server.key\nrequire_certificate true\nuse_identity_as_username true\n"
        f"acl_file {folder}/acl\npersistence false\nlog_type error\nmax_queued_messages 100000\n"
        "max_inflight_messages 1000\n",
        encoding="utf-8",
    )
    return [mosquitto() or "mosquitto", "-c", str(folder / "mosquitto.conf")]


def gateway_command(pki: Pki, folder: Path, port: int, *, policy: str = POLICY, limits: str = "") -> list[str]:
    (folder / "policy.toml").write_text(policy, encoding="utf-8")
    (folder / "gateway.toml").write_text(
        f'[listener]\nbind = ["127.0.0.1:{port}"]\ncert_file = "{pki.folder}/server.crt"\n'
        f'key_file = "{pki.folder}/server.key"\nca_file = "{pki.ca_file}"\n[limits]\n{limits}\n'
        f'[policy]\nfile = "policy.toml"\n[audit]\nfile = "audit.jsonl"\n[control]\nsocket = "control.sock"\n'
        f'[console]\nbind = "127.0.0.1:{free_port()}"\n',
        encoding="utf-8",
    )
    return [str(BIN / "mqtt-gateway"), "run", "--config", str(folder / "gateway.toml")]


def amqtt_command(pki: Pki, folder: Path, port: int) -> list[str]:
    (folder / "amqtt.yaml").write_text(
        f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{port}\n    max_connections: 10000\n    ssl: on\n"
        f"    cafile: {pki.ca_file}\n    certfile: {pki.folder}/server.crt\n    keyfile: {pki.folder}/server.key\n"
        "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n",
        encoding="utf-8",
    )
    return [str(BIN / "amqtt"), "-c", str(folder / "amqtt.yaml")]


@dataclass(frozen=True, slots=True)
class Broker:
    """A way to run a broker. `most` is a rate it will not exceed on a core, for what the generator prepares."""

    name: str
    command: Callable[[Pki, Path, int], list[str]]
    most: int


MOSQUITTO = Broker("mosquitto", mosquitto_command, 120_000)
GATEWAY = Broker("gateway", gateway_command, 150_000)
AMQTT = Broker("amqtt", amqtt_command, 6_000)


def installed() -> list[Broker]:
    """mosquitto first where it is installed, because the others are compared with it."""
    found = [MOSQUITTO] if mosquitto() else []
    return [*found, GATEWAY, *([AMQTT] if (BIN / "amqtt").exists() else [])]


def mosquitto() -> str | None:
    return shutil.which("mosquitto", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))


@dataclass(frozen=True, slots=True)
class Running:
    """A broker that serves: where, and as which process."""

    broker: Broker
    port: int
    pid: int

    @property
    def cpu_seconds(self) -> float:
        """User and system time of the process and all its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident_kib(self) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@contextmanager
def running(broker: Broker, pki: Pki, folder: Path, cores: Collection[int], port: int = 0) -> Iterator[Running]:
    """The broker on these cores until the block ends, on a free port or this one. Files and log are in the folder.

    Fault with what it said when it does not serve.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # inherited by the child; ours is set back below
    try:
        program = Program(broker.command(pki, folder, port), folder / "log")
    finally:
        os.sched_setaffinity(0, ours)
    with program:
        program.wait_until(lambda: answers(port), f"{broker.name} serving on port {port}", START_S)
        yield Running(broker, port, program.process.pid)
