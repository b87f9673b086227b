#!/usr/bin/env python3
"""The whole chain, from an empty folder to a revoked device, by the commands an operator types.

    make demo                   about half a minute; ends 0 when every step did what it should
    make demo KEEP=1            the gateway runs on, with commands to try by hand; Ctrl-C ends it
    make demo DIR=/tmp/mine     a folder of your choice, which must not exist yet

Nothing here is specific to the demo: the device is a program on a pseudo-terminal, all else is real. Each step is
one row of the table at the end, and every file that was made lies in one folder.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
DEADLINE_S = 20.0
TOPIC = "devices/press-07/telemetry/serial"

POLICY = """\
version = 1

[identity]
source = "cn"
client_id = ["{id}"]

[[role]]
name = "device"
match = { id = "press-*" }
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

CONFIGURATION = """\
[listener]
bind = ["127.0.0.1:{port}"]
cert_file = "../gateway-certificate/server.crt"
key_file = "../gateway-certificate/server.key"
ca_file = "../gateway-certificate/ca.crt"
crl_file = "crl.pem"
crl_stale = "deny"

[policy]
file = "policy.toml"

[audit]
file = "audit.jsonl"

[control]
socket = "control.sock"
"""


class StepFailed(Exception):
    """A step did not do what it should; the text says which and shows what was said."""


@dataclass(slots=True)
class Row:
    """One line of the table."""

    step: str
    result: str
    seconds: float


@dataclass(slots=True)
class Demo:
    """The folder, what runs in the background, and the rows so far."""

    folder: Path
    port: int
    rows: list[Row] = field(default_factory=list)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def step(self, title: str, work: Callable[[], str]) -> None:
        """Do one step and time it; how it went stands in the table."""
        start = time.monotonic()
        print(f"- {title}", file=sys.stderr, flush=True)
        self.rows.append(Row(title, work(), time.monotonic() - start))

    def run(self, *words: object, expect: int = 0) -> str:
        """Run a command to its end; its standard output. Its exit status must be as expected."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=self.folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        self.remember(words)
        if done.returncode != expect:
            raise StepFailed(f"{shown(words)} ended {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, name: str, *words: object) -> None:
        """Start a command in the background; what it says goes to NAME.log."""
        self.remember(words)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                [str(word) for word in words],
                cwd=self.folder,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def remember(self, words: tuple[object, ...]) -> None:
        """Keep the command in commands.txt, so that everything can be repeated by hand."""
        with (self.folder / "commands.txt").open("a", encoding="utf-8") as commands:
            commands.write(shown(words) + "\n")

    def wait_for(self, what: str, condition: Callable[[], Any], name: str = "") -> Any:
        """Poll until `condition` gives something true; StepFailed after the deadline, or when `name` ends early."""
        deadline = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            ended = name and self.running[name].poll() is not None
            if ended or time.monotonic() > deadline:
                problem = "ended before" if ended else "no"
                raise StepFailed(f"{name} {problem} {what}\n{self.said(name)[-2000:]}" if name else f"no {what}")
            time.sleep(0.02)
        return value

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def audit(self, **wanted: str) -> list[dict[str, Any]]:
        """The gateway's audit lines whose fields have the wanted values."""
        path = self.folder / "gateway/audit.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [line for line in found if all(line.get(key) == value for key, value in wanted.items())]

    def end(self, *names: str) -> None:
        """End what was started under these names, or everything, last first."""
        ending = [self.running[name] for name in reversed(names or list(self.running))]
        for process in ending:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in ending:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


ENVIRONMENT = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}


def shown(words: tuple[object, ...]) -> str:
    return shlex.join(str(word) for word in words)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


# --- the steps ---


def make_authority(demo: Demo) -> str:
    demo.run("mqtt-provision", "ca", "init", "--dir", "ca", "--name", "Demo plant", "--insecure-dev")
    names = ("--dns", "localhost", "--ip", "127.0.0.1")
    demo.run("mqtt-provision", "server", "--dir", "ca", *names, "--out", "gateway-certificate")
    for name, *options in (["press-08"], ["line-view", "--profile", "service", "--ou", "services"]):
        demo.run("mqtt-provision", "issue", name, "--dir", "ca", "--out", "issued", *options)
    return "root CA, issuing CA; gateway, press-08 and the service line-view certified"


def start_device(demo: Demo) -> str:
    files = ("--link", "press-07.tty", "--state", "press-07.flash")
    demo.start("virtual-device", "device-sim", "virtual-device", *files, "--serial", "SN-0007", "--interval", "0.3")
    demo.wait_for("a serial port", (demo.folder / "press-07.tty").exists, "virtual-device")
    return f"press-07.tty -> {(demo.folder / 'press-07.tty').readlink()}"


def burn(demo: Demo) -> str:
    said = demo.run("mqtt-provision", "burn", "--port", "press-07.tty", "--dir", "ca", "--id", "press-07")
    verdict = next((line for line in said.splitlines() if "PASS" in line), "")
    if not verdict:
        raise StepFailed(f"burn ended 0 without PASS\n{said}")
    # A real device signs its own handshakes; the agent beside a virtual one gets the key out of the simulated flash.
    demo.run("device-sim", "virtual-device", "--state", "press-07.flash", "--export-credentials", "agent")
    return re.sub(r"([0-9a-f]{8})[0-9a-f]{24,}", r"\1...", verdict)


def start_gateway(demo: Demo) -> str:
    folder = demo.folder / "gateway"
    folder.mkdir()
    (folder / "policy.toml").write_text(POLICY, encoding="utf-8")
    (folder / "gateway.toml").write_text(CONFIGURATION.format(port=demo.port), encoding="utf-8")
    demo.run("mqtt-provision", "crl", "--dir", "ca", "--out", "gateway/crl.pem")
    demo.run("mqtt-gateway", "check-config", "--config", "gateway/gateway.toml")
    demo.start("gateway", "mqtt-gateway", "run", "--config", "gateway/gateway.toml")
    demo.wait_for("a listener", lambda: listens(demo.port), "gateway")
    return f"mutual TLS on 127.0.0.1:{demo.port}"


def client(demo: Demo, program: str, name: str, client_id: str = "") -> list[str]:
    """mosquitto_pub or mosquitto_sub with the certificate of `name`."""
    files = ["--cafile", "gateway-certificate/ca.crt", "--cert", f"issued/{name}.crt", "--key", f"issued/{name}.key"]
    return [program, "-h", "localhost", "-p", str(demo.port), *files, "-i", client_id or name]


def publish_lines(demo: Demo) -> str:
    demo.start(
        "subscriber", "stdbuf", "-oL", *client(demo, "mosquitto_sub", "line-view"), "-t", "devices/#", "-q", "1", "-v"
    )
    demo.wait_for("an admission", lambda: demo.audit(event="admitted", id="line-view"), "subscriber")
    demo.start(
        "agent",
        *("device-sim", "run", "--id", "press-07", "--broker", f"localhost:{demo.port}"),
        *("--cert", "agent/press-07.crt", "--key", "agent/press-07.key", "--ca", "agent/ca.crt"),
        *("--source", f"serial://{demo.folder / 'press-07.tty'}?baud=115200", "--topic", TOPIC),
    )
    lines = demo.wait_for("three lines", lambda: (got := received(demo, TOPIC))[2:] and got, "agent")
    return f"{len(lines)} lines at the subscriber, for example: {lines[-1]}"


def received(demo: Demo, topic: str) -> list[str]:
    return [line.removeprefix(topic).strip() for line in demo.said("subscriber").splitlines() if line.startswith(topic)]


def refuse_neighbour(demo: Demo) -> str:
    demo.run(*client(demo, "mosquitto_pub", "press-08"), "-t", TOPIC, "-m", "forged by press-08", "-q", "1")
    line = demo.wait_for("a refusal in audit.jsonl", lambda: demo.audit(event="denied", id="press-08"))[0]
    seen = len(received(demo, TOPIC))
    demo.wait_for("the next line of press-07", lambda: len(received(demo, TOPIC)) > seen, "agent")
    if "forged" in demo.said("subscriber"):
        raise StepFailed("what press-08 forged arrived at the subscriber")
    return f"press-08 on press-07's topic: {line['reason']}, {line['detail']}; nothing arrived"


def revoke(demo: Demo) -> str:
    demo.run("mqtt-provision", "revoke", "press-07", "--dir", "ca", "--reason", "keyCompromise")
    demo.run("mqtt-provision", "crl", "--dir", "ca", "--out", "gateway/crl.pem")  # the gateway watches this file
    published = (demo.folder / "gateway/crl.pem").stat().st_mtime
    cut = partial(demo.audit, event="disconnected", id="press-07", reason="certificate_revoked")
    line = demo.wait_for("the end of press-07's connection", cut, "gateway")[0]
    took = datetime.fromisoformat(line["time"]).timestamp() - published
    demo.wait_for("a refused return", partial(demo.audit, event="refused", reason="certificate_revoked"))
    return f"cut {took * 1000:.0f} ms after the CRL was published: {line['reason']}; its return was refused"


STEPS: tuple[tuple[str, Callable[[Demo], str]], ...] = (
    ("make a certificate authority", make_authority),
    ("start a device on a serial port", start_device),
    ("burn its certificate", burn),
    ("start the gateway", start_gateway),
    ("hear the device over MQTT", publish_lines),
    ("refuse its neighbour", refuse_neighbour),
    ("revoke the device", revoke),
)


def table(rows: list[Row]) -> str:
    """80 columns; a long result goes on below itself."""
    lines = [f"{'step':31} seconds  result"]
    for row in rows:
        head = f"{row.step:31} {row.seconds:7.1f}  "
        lines += textwrap.wrap(
            row.result, 80, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
        )
    return "\n".join(lines)


def keep_running(demo: Demo) -> None:
    """Print commands to try by hand, and wait until the gateway ends or Ctrl-C is pressed."""
    tries = [("mosquitto_sub", "line-view", ["-t", "devices/#", "-v"])]
    tries += [("mosquitto_pub", "press-08", ["-t", "devices/press-08/telemetry/hand", "-m", "21.5"])]
    tries += [("mosquitto_pub", "press-08", ["-t", TOPIC, "-m", "forged", "-q", "1"])]
    demo.end("subscriber", "agent")  # their names are yours now
    print(f"\nthe gateway runs on; in other terminals, after `cd {demo.folder}`:\n")
    for program, name, words in tries:
        print(f"  {shown((*client(demo, program, name), *words))}")
    print("  tail -f gateway/audit.jsonl\n\nCtrl-C ends it", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        demo.running["gateway"].wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="the whole chain, from an empty folder to a revoked device")
    parser.add_argument("--dir", type=Path, help="folder for everything that is made; must not exist")
    parser.add_argument("--keep", action="store_true", help="leave the gateway running and say what to try")
    options = parser.parse_args()
    folder = (options.dir or Path("demo-run") / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")).resolve()
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        print(f"error: {folder} exists already\nhint: name another folder, or none", file=sys.stderr)
        return 2
    demo = Demo(folder, free_port())
    try:
        return show(demo, keep=options.keep)
    except (StepFailed, subprocess.TimeoutExpired) as problem:
        print(f"error: {problem}\nhint: everything that was made and said is in {folder}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        demo.end()


def show(demo: Demo, *, keep: bool) -> int:
    """Every step, the table, and with `keep` a gateway to play with."""
    for title, work in STEPS:
        demo.step(title, partial(work, demo))
    print(f"\n{table(demo.rows)}\n\neverything that was made and said is in {demo.folder}", flush=True)
    if keep:
        keep_running(demo)
    return 0


if __name__ == "__main__":
    sys.exit(main())
