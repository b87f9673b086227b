"""What durable QoS 1 costs: 100 devices publish, a persistent subscriber is away and wants every message.

    python -m benchmarks.durable                                        three rounds, about a minute
    python -m benchmarks.durable --seconds 3,10,20                      what a growing backlog changes
    python -m benchmarks.durable --rounds 5 --devices 200 --window 50 --json

Three brokers in turn, on the same core and the same disk: the gateway with a store, the gateway without one (the
queue is in memory and bounded), and mosquitto with `autosave_on_changes true`, `autosave_interval 1`, which is the
only setting of its that has a message on disk soon after it came. It writes its whole database anew each time, so its
rate falls while messages wait for the subscriber, and a longer measurement shows more of that.

Counted are PUBACKs. Beside the rate stand the commits (one fsync each), the messages per commit, and what the disk
does by itself: 4 KiB appended and fdatasync.
"""

import argparse
import json
import multiprocessing
import os
import socket
import ssl
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks import brokers
from benchmarks.brokers import Broker, running
from benchmarks.pki import BACKEND, Pki, device_names
from gateway import control
from gateway.broker.packets import DISCONNECT, Connect, encode_connect, encode_publish, encode_subscribe
from mtls.tls import client_context

PAYLOAD_BYTES = 100
SYNC_S = 1.0
CONNECT_S = 20.0
STORE = '[store]\npath = "gateway.db"\nmin_free_bytes = 0\nallow_volatile = true\n'
DURABLE, MEMORY, MOSQUITTO = "gateway, store", "gateway, memory", "mosquitto, autosave"


@dataclass(frozen=True, slots=True)
class Measured:
    """One round of one broker."""

    broker: str
    acknowledged: int
    seconds: float
    cpu_seconds: float
    commits: int

    @property
    def per_second(self) -> float:
        return self.acknowledged / self.seconds


def disk_syncs_per_second(folder: Path) -> float:
    """How often this disk makes 4 KiB durable, one after the other."""
    path = folder / "sync.probe"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        count, began = 0, time.monotonic()
        while time.monotonic() - began < SYNC_S:
            os.pwrite(descriptor, bytes(4096), count * 4096)
            os.fdatasync(descriptor)
            count += 1
        return count / (time.monotonic() - began)
    finally:
        os.close(descriptor)
        path.unlink()


def gateway_command(pki: Pki, folder: Path, port: int, *, extra: str) -> list[str]:
    for leftover in folder.glob("gateway.db*"):
        leftover.unlink()
    command = brokers.gateway_command(pki, folder, port)
    config = folder / "gateway.toml"
    config.write_text(config.read_text(encoding="utf-8") + extra, encoding="utf-8")
    return command


def mosquitto_command(pki: Pki, folder: Path, port: int) -> list[str]:
    (folder / "mosquitto.db").unlink(missing_ok=True)
    command = brokers.mosquitto_command(pki, folder, port)
    config = folder / "mosquitto.conf"
    text = config.read_text(encoding="utf-8").replace("persistence false", "persistence true")
    text = text.replace("max_queued_messages 100000", "max_queued_messages 0")
    config.write_text(
        f"{text}persistence_location {folder}/\nautosave_on_changes true\nautosave_interval 1\n", encoding="utf-8"
    )
    return command


COMPARED = (
    Broker(DURABLE, partial(gateway_command, extra=STORE), 0),
    Broker(MEMORY, partial(gateway_command, extra=""), 0),
    Broker(MOSQUITTO, mosquitto_command, 0),
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where the clients go and with which certificates."""

    port: int
    folder: Path

    def connect(self, name: str, *, clean: bool = True) -> ssl.SSLSocket:
        """Handshake, CONNECT and CONNACK; ConnectionError when the broker refuses."""
        cert_file, key_file = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        context = client_context(ca_file=self.folder / "ca.crt", cert_file=cert_file, key_file=key_file)
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=CONNECT_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = context.wrap_socket(raw, server_hostname="localhost")
        link.sendall(encode_connect(Connect(name, clean, 0, None, None, None)))
        if exactly(link, 4)[3] != 0:
            raise ConnectionError(f"{name} was refused")
        return link


@dataclass(frozen=True, slots=True)
class Window:
    """When the counting begins and ends, by the monotonic clock that all processes share."""

    start: float
    end: float


def exactly(link: ssl.SSLSocket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = link.recv(count - len(data))
        if not chunk:
            raise ConnectionError("closed by the broker")
        data += chunk
    return data


def leave_subscription(target: Target) -> None:
    """A persistent session of the backend that wants everything, and is gone."""
    link = target.connect(BACKEND, clean=False)
    link.sendall(encode_subscribe(1, (("devices/#", 1),)))
    exactly(link, 5)
    link.sendall(DISCONNECT)
    link.close()


def batches_of(names: list[str], size: int) -> list[bytes]:
    """For every name so many QoS 1 messages in one piece."""
    return [
        b"".join(
            encode_publish(f"devices/{name}/t".encode(), bytes(PAYLOAD_BYTES), 1, False, False, packet_id)
            for packet_id in range(1, size + 1)
        )
        for name in names
    ]


def publish(target: Target, names: list[str], window_size: int, window: Window) -> int:
    """Windows of QoS 1 messages from every name in turn; how many were acknowledged within the window of time."""
    links = [target.connect(name) for name in names]
    batches = batches_of(names, window_size)
    counted = 0
    for link, batch in zip(links, batches, strict=True):
        link.sendall(batch)
    while time.monotonic() < window.end:
        for link, batch in zip(links, batches, strict=True):
            exactly(link, 4 * window_size)
            now = time.monotonic()
            if window.start <= now < window.end:
                counted += window_size
            link.sendall(batch)
    for link in links:
        link.close()
    return counted


def commits(broker: str, folder: Path) -> int:
    """Commits so far, of a gateway with a store."""
    if broker != DURABLE:
        return 0
    return int(control.call(folder / "control.sock", "status")["store"]["commits"])


def measure(
    broker: Broker, pki: Pki, options: argparse.Namespace, seconds: float, cores: tuple[set[int], set[int]]
) -> Measured:
    """One round of one broker, started for it."""
    names, folder = device_names(options.devices), pki.folder / broker.name
    parts = [part for number in range(options.processes) if (part := names[number :: options.processes])]
    with running(broker, pki, folder, cores[0]) as it:
        target = Target(it.port, pki.folder)
        leave_subscription(target)
        with multiprocessing.get_context("fork").Pool(len(parts)) as pool:
            start = time.monotonic() + 1.0 + 0.02 * options.devices
            window = Window(start, start + seconds)
            published = pool.starmap_async(publish, [(target, part, options.window, window) for part in parts])
            time.sleep(max(0.0, window.start - time.monotonic()))
            cpu, before = it.cpu_seconds, commits(broker.name, folder)
            time.sleep(max(0.0, window.end - time.monotonic()))
            cpu, after = it.cpu_seconds - cpu, commits(broker.name, folder)
            acknowledged = sum(published.get(timeout=120))
    return Measured(broker.name, acknowledged, seconds, cpu, after - before)


def table(rows: list[Measured]) -> str:
    """Medians of one length, each as a part of the gateway without a store and as a multiple of mosquitto."""
    rate = {b: statistics.median(r.per_second for r in rows if r.broker == b) for b in (DURABLE, MEMORY, MOSQUITTO)}
    lines = [
        f"{'broker':20} {'PUBACKs/s':>10} {'of memory':>10} {'x mosquitto':>12} {'commits/s':>10} {'per commit':>11}"
    ]
    for broker, per_second in rate.items():
        of = [row for row in rows if row.broker == broker]
        per = statistics.median(row.commits / row.seconds for row in of)
        each = f"{per_second / per:11.0f}" if per else f"{'':11}"
        shares = f"{per_second / rate[MEMORY]:10.2f} {per_second / max(1.0, rate[MOSQUITTO]):12.1f}"
        lines.append(f"{broker:20} {per_second:10,.0f} {shares} {per:10.0f} {each}")
    return "\n".join((f"in {rows[0].seconds:g} s", *lines))


def _lengths(text: str) -> list[float]:
    lengths = [float(part) for part in text.split(",")]
    if min(lengths) <= 0:
        raise argparse.ArgumentTypeError(f"{text}: seconds are more than 0")
    return lengths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--window", type=int, default=20, help="messages in flight per device")
    parser.add_argument("--seconds", type=_lengths, default=[3.0], help="3, or several lengths: 3,10,20")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--dir", type=Path, help="where the stores lie; default: a folder in /var/tmp")
    parser.add_argument("--json", action="store_true", dest="json_")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    split = ({cores[0]}, set(cores[1:]) or {cores[0]})
    with tempfile.TemporaryDirectory(prefix="durable-", dir=options.dir or "/var/tmp") as name:  # noqa: S108 - a disk
        pki = Pki(Path(name))
        for client in (BACKEND, *device_names(options.devices)):
            pki.credential(client)
        syncs = disk_syncs_per_second(pki.folder)
        os.sched_setaffinity(0, split[1])
        rows = [
            measure(broker, pki, options, seconds, split)
            for seconds in options.seconds
            for _ in range(options.rounds)
            for broker in COMPARED
        ]
    if options.json_:
        print(json.dumps({"disk_syncs_per_second": syncs, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        for seconds in options.seconds:
            print(table([row for row in rows if row.seconds == seconds]))
        print(f"the disk by itself: {syncs:.0f} fdatasync/s of 4 KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
