#!/usr/bin/env python3
"""The gateway beside mosquitto, on this machine, over mutual TLS, in one run.

    make bench                                  four kinds of work, two rounds each, about a minute
    make bench BENCH='--devices 200 --seconds 5 --rounds 3'
    make bench BENCH='--json' > bench.json

Both brokers get the same core, the same certificates and rules that grant the same; the rounds alternate, so
that a machine growing warm harms both alike. What is compared is work per second of the broker's own CPU time: it
does not change when the machine is busy elsewhere. The clients are Python processes on the other cores that send
prepared bytes. Where the broker had more than a fifth of its time left, they were the limit, and the table says so:
per-CPU figures still hold then, rates do not.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway.broker.packets import DISCONNECT, Connect, encode_connect, encode_publish, encode_subscribe

BIN = Path(sys.executable).parent
PAYLOAD_BYTES = 100
CONNECT_THREADS = 8  # in each process: handshakes wait for the network most of the time
SETTLE_S = 0.5
DRAINED_S = 0.3
BUSY = 0.8  # a broker that used less of its core than this was waiting for the clients
POLICY = """
version = 1
[[role]]
name = "device"
match = { id = "*" }
publish = ["devices/{id}/#"]
subscribe = ["devices/{id}/#"]
[[role]]
name = "backend"
match = { id = "backend" }
publish = ["devices/#"]
subscribe = ["devices/#"]
"""
ACL = "user backend\ntopic readwrite devices/#\npattern readwrite devices/%u/#\n"


@dataclass(frozen=True, slots=True)
class Work:
    """A kind of work: new connections, or messages of many devices to one subscriber, `batch` of them per write."""

    name: str
    qos: int = 0
    batch: int = 0  # 0: connections


WORK = (
    Work("connect"),
    Work("fan-in QoS 0", 0, 1),
    Work("fan-in QoS 0, bulk", 0, 100),  # a device with a backlog, or many devices behind one agent
    Work("fan-in QoS 1, bulk", 1, 100),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One round of one kind of work against one broker."""

    work: str
    broker: str
    done: int
    lost: int
    seconds: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        return self.done / self.seconds

    @property
    def per_cpu_second(self) -> float:
        return self.done / self.cpu_seconds if self.cpu_seconds else 0.0

    @property
    def busy(self) -> float:
        return self.cpu_seconds / self.seconds


# --- clients ---


@dataclass(frozen=True, slots=True)
class Target:
    """Where the clients go and with which certificates."""

    port: int
    folder: Path

    def connect(self, name: str, *, clean: bool = True) -> ssl.SSLSocket:
        """Handshake, CONNECT and CONNACK; ConnectionError when the broker refuses."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.folder / "server/ca.crt")
        context.load_cert_chain(self.folder / f"issued/{name}.crt", self.folder / f"issued/{name}.key")
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = context.wrap_socket(raw, server_hostname="localhost")
        link.sendall(encode_connect(Connect(name, clean, 0, None, None, None)))
        if exactly(link, 4)[3] != 0:
            raise ConnectionError(f"{name} was refused")
        return link


def exactly(link: ssl.SSLSocket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = link.recv(count - len(data))
        if not chunk:
            raise ConnectionError("closed by the broker")
        data += chunk
    return data


@dataclass(frozen=True, slots=True)
class Window:
    """When the counting begins and ends, by the monotonic clock that all processes share."""

    start: float
    end: float


def publish(target: Target, names: list[str], work: Work, window: Window) -> int:
    """Batches from every name in turn until the window ends; how many messages were sent in all."""
    links = [target.connect(name) for name in names]
    batches = [
        b"".join(
            encode_publish(f"devices/{name}/t".encode(), bytes(PAYLOAD_BYTES), work.qos, False, False, packet_id)
            for packet_id in (range(1, work.batch + 1) if work.qos else [0] * work.batch)
        )
        for name in names
    ]
    sent = 0
    while time.monotonic() < window.end:
        for link, batch in zip(links, batches, strict=True):
            link.sendall(batch)
        sent += work.batch * len(links)
        for link in links if work.qos else ():
            exactly(link, 4 * work.batch)  # PUBACKs: the next batch may use the packet identifiers again
    for link in links:
        link.sendall(DISCONNECT)
        link.close()
    return sent


def connect_again(target: Target, names: list[str], _work: Work, window: Window) -> int:
    """Full handshakes with CONNECT, on a few threads; how many were done within the window."""

    def again(thread: int) -> int:
        done = 0
        while (now := time.monotonic()) < window.end:
            target.connect(names[(thread + done) % len(names)]).close()
            done += now >= window.start
        return done

    with ThreadPoolExecutor(CONNECT_THREADS) as threads:
        return sum(threads.map(again, range(CONNECT_THREADS)))


class Subscriber:
    """One backend that reads every device, in a thread: it counts bytes, because all messages are of one size."""

    def __init__(self, target: Target, name_length: int) -> None:
        self.link = target.connect("backend")
        self.link.sendall(encode_subscribe(1, (("devices/#", 0),)))
        exactly(self.link, 5)
        message = encode_publish(b"devices/" + b"n" * name_length + b"/t", bytes(PAYLOAD_BYTES), 0, False, False, 0)
        self.message_bytes = len(message)
        self.received_bytes = 0
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        buffer = bytearray(1 << 18)
        try:
            while count := self.link.recv_into(buffer):
                self.received_bytes += count
        except (OSError, ValueError):
            return

    @property
    def received(self) -> int:
        return self.received_bytes // self.message_bytes

    def drain(self) -> int:
        """Wait until nothing more arrives, close, and say how many messages came in all."""
        seen = -1
        while self.received_bytes != seen:
            seen = self.received_bytes
            time.sleep(DRAINED_S)
        self.link.shutdown(socket.SHUT_RDWR)
        self.thread.join(timeout=5)
        self.link.close()
        return self.received


# --- brokers ---


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def mosquitto_command(folder: Path, port: int) -> list[str]:
    (folder / "acl").write_text(ACL, encoding="utf-8")
    user = "user root\n" if os.geteuid() == 0 else ""
    (folder / "mosquitto.conf").write_text(
        f"{user}listener {port} 127.0.0.1\ncafile {folder}/server/ca.crt\ncertfile {folder}/server/server.crt\n"
        f"keyfile {folder}/server/server.key\nrequire_certificate true\nuse_identity_as_username true\n"
        f"acl_file {folder}/acl\npersistence false\nlog_type error\nmax_queued_messages 100000\n"
        "max_inflight_messages 1000\n",
        encoding="utf-8",
    )
    return [shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", str(folder / "mosquitto.conf")]


def gateway_command(folder: Path, port: int) -> list[str]:
    (folder / "policy.toml").write_text(POLICY, encoding="utf-8")
    (folder / "gateway.toml").write_text(
        f'[listener]\nbind = ["127.0.0.1:{port}"]\ncert_file = "server/server.crt"\nkey_file = "server/server.key"\n'
        f'ca_file = "server/ca.crt"\n[policy]\nfile = "policy.toml"\n[audit]\nfile = "audit.jsonl"\n'
        f'[control]\nsocket = "control.sock"\n',
        encoding="utf-8",
    )
    return [str(BIN / "mqtt-gateway"), "run", "--config", str(folder / "gateway.toml")]


BROKERS: dict[str, Callable[[Path, int], list[str]]] = {"mosquitto": mosquitto_command, "gateway": gateway_command}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(name: str, folder: Path, cores: tuple[set[int], set[int]]) -> Iterator[tuple[Target, int]]:
    """A broker on its own core; its target and process id."""
    port = free_port()
    command = BROKERS[name](folder, port)
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        os.sched_setaffinity(0, cores[0])  # inherited by the child; ours is set back below
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        finally:
            os.sched_setaffinity(0, cores[1])
    try:
        wait_for(port, process, log)
        yield Target(port, folder), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-2000:]
                raise SystemExit(f"error: {process.args!s} did not start\n{said}") from None
            time.sleep(0.05)
        else:
            return


# --- a run ---


def measure(work: Work, broker: str, target: Target, pid: int, options: argparse.Namespace) -> Measured:
    """One round: the clients in processes of their own, the count taken where the messages arrive."""
    names = [f"dev{number:05}" for number in range(options.devices)]
    parts = [part for number in range(options.processes) if (part := names[number :: options.processes])]
    with multiprocessing.get_context("fork").Pool(len(parts)) as pool:
        subscriber = Subscriber(target, len(names[0])) if work.batch else None
        start = time.monotonic() + SETTLE_S + 0.02 * options.devices  # time to connect and to reach full speed
        window = Window(start, start + options.seconds)
        running = pool.starmap_async(
            publish if work.batch else connect_again, [(target, part, work, window) for part in parts]
        )
        time.sleep(max(0.0, window.start - time.monotonic()))
        received, cpu, begun = subscriber.received if subscriber else 0, cpu_seconds(pid), time.monotonic()
        time.sleep(max(0.0, window.end - time.monotonic()))
        cpu, seconds = cpu_seconds(pid) - cpu, time.monotonic() - begun
        done = subscriber.received - received if subscriber else 0
        counted = sum(running.get(timeout=60))
        if subscriber is None:
            return Measured(work.name, broker, counted, 0, seconds, cpu)
        lost = counted - subscriber.drain()
    return Measured(work.name, broker, done, lost, seconds, cpu)


def make_certificates(folder: Path, devices: int) -> None:
    def provision(*words: str) -> None:
        command = [str(BIN / "mqtt-provision"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)

    ca, issued = str(folder / "ca"), str(folder / "issued")
    provision("ca", "init", "--dir", ca, "--name", "bench", "--insecure-dev")
    provision("server", "--dir", ca, "--dns", "localhost", "--ip", "127.0.0.1", "--out", str(folder / "server"))
    for name in ["backend", *(f"dev{number:05}" for number in range(devices))]:
        provision("issue", name, "--dir", ca, "--out", issued)


def table(rows: list[Measured]) -> str:
    """Medians per kind of work, and the gateway as a multiple of mosquitto."""
    lines = [
        f"{'work':18} {'broker':10} {'per second':>11} {'per CPU second':>15} {'core used':>10}  {'ratio':5}  lost"
    ]
    limited = False
    for work in (kind.name for kind in WORK):
        base = None
        for broker in BROKERS:
            of = [row for row in rows if (row.work, row.broker) == (work, broker)]
            rate, score, busy = (
                statistics.median(getattr(row, key) for row in of) for key in ("per_second", "per_cpu_second", "busy")
            )
            base = base or score
            mark = "*" if busy < BUSY else " "
            limited |= mark == "*"
            lost = sum(row.lost for row in of)
            figures = f"{rate:11,.0f} {score:15,.0f} {busy:9.0%}{mark}  {score / base:5.2f}  {lost}"
            lines.append(f"{work:18} {broker:10} {figures}")
    if limited:
        lines.append("* the clients were the limit: more clients or cores would raise the rate; per CPU second holds")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="the gateway beside mosquitto over mutual TLS")
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=max(1, min(4, (os.cpu_count() or 2) - 1)))
    parser.add_argument("--json", action="store_true", help="every measurement instead of the table")
    options = parser.parse_args()
    available = sorted(os.sched_getaffinity(0))
    cores = ({available[0]}, set(available[1:]) or {available[0]})
    rows = []
    with tempfile.TemporaryDirectory(prefix="mqtt-bench-") as name:
        folder = Path(name)
        print(f"making {options.devices + 1} certificates", file=sys.stderr)
        make_certificates(folder, options.devices)
        for number in range(options.rounds):
            for broker in BROKERS:
                print(f"round {number + 1} of {options.rounds}: {broker}", file=sys.stderr)
                with running(broker, folder, cores) as (target, pid):
                    rows += [measure(work, broker, target, pid, options) for work in WORK]
    print(json.dumps([asdict(row) for row in rows], indent=1) if options.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
