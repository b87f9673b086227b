"""What a replay costs live messages: how long from a device to an observer upstream, without a backlog and beside one.

    python -m benchmarks.replay                       two paces, about two minutes
    python -m benchmarks.replay --backlog 20000 --seconds 10 --json

A device publishes with QoS 1, an observer of another broker (mosquitto) hears what the gateway's uplink passes on.
First there is no backlog; then mosquitto is stopped, other devices leave a backlog in the gateway's spool, mosquitto
comes back, and the same device goes on publishing during the replay. Each message carries the time when it was sent,
by the one clock of this machine. The backlog goes at the pace of the defaults, then as fast as it can.
"""

import argparse
import json
import multiprocessing
import os
import socket
import ssl
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import brokers
from benchmarks.brokers import MOSQUITTO, Broker, Running, running
from benchmarks.durable import STORE, Target, batches_of, exactly
from benchmarks.pki import BACKEND, Pki, device_names
from device_sim.targets.programs import free_port
from gateway import control
from gateway.broker.packets import PINGREQ, PacketType, decode_publish, encode_publish, encode_subscribe, fixed_header

LIVE, *OTHERS = device_names(11)
PACES = {"200 messages/s, the default": "", "as fast as it goes": "backlog_rate = 1000000\nbacklog_burst = 1000000\n"}
UNBOUND_BYTES = "backlog_bytes_per_s = 1073741824\n"
RECONNECT_S = 90.0  # the gateway tries again within a minute
DRAIN_S = 1.0  # for what is still on its way when the sending ends
LOOK_S = 0.25
WINDOW = 50


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies of live messages at one pace, in milliseconds."""

    pace: str
    alone_ms: list[float]
    beside_ms: list[float]
    replayed_per_s: float

    def ratio(self, share: float) -> float:
        return quantile(self.beside_ms, share) / quantile(self.alone_ms, share)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def gateway_command(pki: Pki, folder: Path, port: int, *, upstream: int, pace: str) -> list[str]:
    command = brokers.gateway_command(pki, folder, port)
    config = folder / "gateway.toml"
    uplink = (
        f'[uplink]\nhost = "127.0.0.1"\nport = {upstream}\nca_file = "{pki.ca_file}"\n'
        f'cert_file = "{pki.folder}/{BACKEND}.crt"\nkey_file = "{pki.folder}/{BACKEND}.key"\n'
        f'publish = [{{ local = "devices/#", remote = "devices/#" }}]\n{pace}{UNBOUND_BYTES if pace else ""}'
    )
    config.write_text(config.read_text(encoding="utf-8") + STORE + uplink, encoding="utf-8")
    return command


class Observer:
    """Hears upstream what the live device said, and notes how long it took."""

    def __init__(self, target: Target) -> None:
        self.latencies_ms: list[float] = []
        self._link = target.connect(LIVE)
        self._link.sendall(encode_subscribe(1, ((f"devices/{LIVE}/#", 0),)))
        exactly(self._link, 5)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        data = b""
        while True:
            try:
                chunk = self._link.recv(65536)
            except OSError:
                return
            now = time.monotonic_ns()
            if not chunk:
                return
            data += chunk
            while (header := fixed_header(data, 0)) is not None and header[2] <= len(data):
                first, body, stop = header
                if first >> 4 == PacketType.PUBLISH:
                    sent = int(json.loads(decode_publish(first, data[body:stop]).payload)["payload"])
                    self.latencies_ms.append((now - sent) / 1e6)
                data = data[stop:]

    def close(self) -> None:
        self._link.shutdown(socket.SHUT_RDWR)  # closing alone does not wake a thread that reads
        self._thread.join()
        self._link.close()


class Uplink:
    """The gateway's own word about its uplink, looked at now and then in a thread."""

    def __init__(self, gateway: Running, folder: Path) -> None:
        self.gateway = gateway
        self._socket = folder / "control.sock"

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = control.call(self._socket, "status")["uplink"]
        return found

    def wait_until_connected(self) -> None:
        deadline = time.monotonic() + RECONNECT_S
        while self.report()["state"] != "connected":
            if time.monotonic() > deadline:
                raise TimeoutError("the uplink has not connected")
            time.sleep(0.01)


def talk(
    device: ssl.SSLSocket, upstream: Target, uplink: Uplink, options: argparse.Namespace
) -> tuple[list[float], float]:
    """Live messages for a while, or until the replay that goes on is over; latencies, and the replay's rate."""
    observer = Observer(upstream)
    before, began, over = uplink.report(), time.monotonic(), threading.Event()
    newest, at = before, began

    def look() -> None:
        nonlocal newest, at
        while not over.wait(LOOK_S):
            newest, at = uplink.report(), time.monotonic()
            if before["backlog"] and not newest["backlog"]:
                over.set()

    looking = threading.Thread(target=look)
    looking.start()
    number = 0
    while not over.is_set() and time.monotonic() < began + options.seconds:
        number = number % 65535 + 1
        sent = str(time.monotonic_ns()).encode()
        device.sendall(encode_publish(f"devices/{LIVE}/t".encode(), sent, 1, False, False, number))
        time.sleep(1 / options.rate)
        exactly(device, 4)
    over.set()
    looking.join()
    time.sleep(DRAIN_S)
    observer.close()
    done = newest["acknowledged"]["backlog"] - before["acknowledged"]["backlog"]
    return observer.latencies_ms, done / max(1e-3, at - began)


def leave_backlog(target: Target, names: list[str], count: int) -> None:
    """QoS 1 messages from every name in turn, each window acknowledged before the next."""
    links = [target.connect(name) for name in names]
    packets = batches_of(names, WINDOW)
    for _ in range(-(-count // (WINDOW * len(names)))):
        for link, packet in zip(links, packets, strict=True):
            link.sendall(packet)
        for link in links:
            exactly(link, 4 * WINDOW)
    for link in links:
        link.close()


def measure(pki: Pki, pace: str, options: argparse.Namespace, cores: tuple[set[int], set[int]]) -> Measured:
    """One pace, on a gateway of its own."""
    folder, upstream = pki.folder / f"pace{list(PACES).index(pace)}", Target(free_port(), pki.folder)
    command = partial(gateway_command, upstream=upstream.port, pace=PACES[pace])
    mosquitto = partial(running, MOSQUITTO, pki, pki.folder / "upstream", cores[1], port=upstream.port)
    with ExitStack() as line:
        line.enter_context(mosquitto())  # before the gateway, which waits longer and longer for an upstream
        with running(Broker("gateway", command, 0), pki, folder, cores[0]) as gateway:
            local, uplink = Target(gateway.port, pki.folder), Uplink(gateway, folder)
            device = local.connect(LIVE)
            uplink.wait_until_connected()
            alone, _ = talk(device, upstream, uplink, options)
            line.close()
            with multiprocessing.get_context("fork").Pool(1) as pool:
                pool.apply(leave_backlog, (local, OTHERS, options.backlog))
            device.sendall(PINGREQ)  # it was quiet for a while
            exactly(device, 2)
            line.enter_context(mosquitto())
            uplink.wait_until_connected()
            beside, per_s = talk(device, upstream, uplink, options)
            device.close()
    return Measured(pace, alone, beside, per_s)


def table(rows: list[Measured]) -> str:
    lines = [f"{'pace of the backlog':30} {'':6} {'alone ms':>9} {'beside ms':>10} {'ratio':>6} {'replayed/s':>11}"]
    for row in rows:
        for name, share in (("median", 0.5), ("p95", 0.95)):
            times = f"{quantile(row.alone_ms, share):9.2f} {quantile(row.beside_ms, share):10.2f}"
            lines.append(f"{row.pace:30} {name:6} {times} {row.ratio(share):6.2f} {row.replayed_per_s:11,.0f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backlog", type=int, default=10_000, help="messages that wait when the line comes back")
    parser.add_argument("--rate", type=float, default=50.0, help="live messages per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of live messages, each time")
    parser.add_argument("--dir", type=Path, help="where the store lies; default: a folder in /var/tmp")
    parser.add_argument("--json", action="store_true", dest="json_")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    split = ({cores[0]}, set(cores[1:]) or {cores[0]})
    with tempfile.TemporaryDirectory(prefix="replay-", dir=options.dir or "/var/tmp") as name:  # noqa: S108 - a disk
        pki = Pki(Path(name))
        for client in (BACKEND, LIVE, *OTHERS):
            pki.credential(client)
        os.sched_setaffinity(0, split[1])
        rows = [measure(pki, pace, options, split) for pace in PACES]
    print(json.dumps([asdict(row) for row in rows], indent=2) if options.json_ else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
