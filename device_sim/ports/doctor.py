"""`device-sim doctor`: what a field engineer runs beside a serial device, before or instead of reading logs.

Every check is a line of `CHECKS`, looked through in the order in which things are mended: clock, files, spool, ports,
gateway. Nothing is changed. A port is opened only when listening was asked for, because opening resets many boards:
who else has it open is read from /proc, as far as this user may see. The gateway is asked for real: TCP, the TLS
handshake, then CONNECT as the device itself, which takes a running agent's connection over; where the spool's lock
shows that an agent runs, CONNECT is left out.
"""

import grp
import os
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from cryptography import x509

from device_sim.connection_faults import Endpoint
from device_sim.credentials import Files, check_dates, leaf_of, other_name
from device_sim.handshake import examine as shake_hands
from device_sim.handshake import question_of
from device_sim.mqtt_client import Connection, State
from device_sim.ports.config import AgentConfig, PortSettings
from device_sim.ports.framing import FrameCounts, FrameReader
from device_sim.serial_port import AgentPort, PortLost
from gateway.store.database import locked
from gateway.timekeeping import build_date
from mtls import checkup
from mtls.checkup import Check, Level, disk, looked, modem_manager, synchronised
from mtls.errors import Fault
from mtls.identity import DeviceId, IdentityRule, identity_of
from mtls.keystore import read_limited
from mtls.terminal import sanitise
from mtls.tls import client_context
from mtls.trust import TrustStore, is_signed_by

WIDTH = 80
NAME_WIDTH = 14
LITTLE_LIFE = 0.1  # of a certificate's life: by then a renewal should have happened
NO_DISK_BYTES = 10 * 1024**2  # below it SQLite's WAL may not find room for one burst
LISTEN_SLICE_S = 0.2
MAX_PLACES = 16  # ports looked at for one pattern


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at: an agent.toml, or the files and the gateway of one device."""

    files: Files
    endpoint: Endpoint
    device_id: str = ""  # "": the certificate's
    ports: tuple[PortSettings, ...] = ()
    spool_file: Path | None = None
    spool_bytes: int = 0
    listen_s: float = 0.0

    @classmethod
    def of(cls, config: AgentConfig, listen_s: float) -> "Subject":
        """Everything that an agent.toml names."""
        return cls(
            files=config.files,
            endpoint=config.endpoint,
            device_id=config.device_id,
            ports=config.ports,
            spool_file=config.spool_file,
            spool_bytes=config.spool_bytes,
            listen_s=listen_s,
        )

    @property
    def is_served(self) -> bool:
        """Whether an agent runs with this spool."""
        if self.spool_file is None or not Path(f"{self.spool_file}.lock").exists():
            return False
        try:
            locked(self.spool_file).close()
        except Fault:
            return True
        return False


def diagnose(subject: Subject, now: datetime) -> list[Check]:
    """Every check, in order."""
    return [line for name, look in CHECKS for line in looked(name, partial(look, subject, now))]


def as_text(checks: Iterable[Check]) -> str:
    """A table of 80 columns; what is not well says on the next line what to do."""
    lines = []
    for check in checks:
        head = f"{check.level:5}{check.name:<{NAME_WIDTH}} "
        lines += _wrapped(head, check.detail)
        lines += _wrapped(" " * 5 + "-> ", check.hint) if check.hint else []
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> list[str]:
    indent = " " * min(len(head), NAME_WIDTH + 6)
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)


# --- clock and files ---


def _clock(subject: Subject, now: datetime) -> Iterator[Check]:
    """Behind what has certainly passed it is wrong; that it runs ahead, nothing on this machine can see."""
    leaf = leaf_of(subject.files.cert_file)
    floors = {"the certificate's notBefore": leaf.not_valid_before_utc, "this program's installation": build_date()}
    source, floor = max(floors.items(), key=lambda item: item[1])
    if now < floor:
        detail = f"it shows {now:%Y-%m-%d %H:%M}, which is before {source}, {floor:%Y-%m-%d %H:%M}"
        yield Check("clock", Level.FAIL, detail, "set it: timedatectl status")
    else:
        yield synchronised("certificates are judged by this clock")


def _certificate(subject: Subject, now: datetime) -> Iterator[Check]:
    leaf = leaf_of(subject.files.cert_file)
    check_dates(subject.files.cert_file, leaf, now)
    named = identity_of(leaf, IdentityRule())
    other = other_name(leaf, subject.device_id) if subject.device_id else ""
    ends = leaf.not_valid_after_utc
    if not isinstance(named, DeviceId) or other:
        says = f"names {sanitise(other)}, not {subject.device_id}" if other else f"names no device: {named}"
        yield Check("certificate", Level.FAIL, says, "mqtt-provision inspect CERT; id and certificate belong together")
    elif ends - now < (ends - leaf.not_valid_before_utc) * LITTLE_LIFE:
        yield Check("certificate", Level.WARN, f"of {named}, valid until {ends:%Y-%m-%d %H:%M} only", "renew it")
    else:
        yield Check("certificate", Level.OK, f"of {named}, valid until {ends:%Y-%m-%d}")


def _key(subject: Subject, now: datetime) -> Iterator[Check]:
    """As the agent would load it: private to its owner, and the certificate's."""
    client_context(ca_file=None, cert_file=subject.files.cert_file, key_file=subject.files.key_file)
    yield Check("key", Level.OK, "private to its owner, and the certificate's")


def _chain(subject: Subject, now: datetime) -> Iterator[Check]:
    """Up to a root in the CA file, over what the certificate's own file brings along."""
    ca_file, cert_file = subject.files.ca_file, subject.files.cert_file
    roots = read_limited(ca_file)
    trust = TrustStore.from_pem(roots, str(ca_file))
    leaf, *between = x509.load_pem_x509_certificates(read_limited(cert_file))
    found = trust.issuer_of(leaf)
    is_carried = any(trust.issuer_of(ca) is not None and is_signed_by(leaf, ca) for ca in between)
    if found is None and not is_carried:
        detail = f"no CA in {ca_file} stands above the certificate"
        hint = "the ca.crt of the same CA; if the gateway's CA is another one, only the gateway can tell"
        yield Check("chain", Level.WARN, detail, hint)
        return
    ends = min(ca.not_valid_after_utc for ca in (*trust.roots, *trust.issuing))
    if ends <= now:
        yield Check("chain", Level.FAIL, f"a CA in {ca_file} expired at {ends:%Y-%m-%d}", "get the site's new ca.crt")
    else:
        yield Check("chain", Level.OK, f"ends at a root in {ca_file.name}")


# --- the machine ---


def _spool(subject: Subject, now: datetime) -> Iterator[Check]:
    path = subject.spool_file
    if path is None:
        return
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        hint = f"install -d -m 0700 {path.parent}, owned by the agent's user"
        yield Check("spool", Level.FAIL, f"{path.parent} is no folder that this user may write", hint)
        return
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        yield Check("spool", Level.FAIL, f"this user may not write {path}", "run the agent and this as one user")
        return
    size = path.stat().st_size if path.exists() else 0
    served = ", an agent has it open" if subject.is_served else ""
    room = max(NO_DISK_BYTES, subject.spool_bytes - size)
    yield Check("spool", Level.OK, f"{size / 1e6:.1f} of {subject.spool_bytes / 1e6:.1f} MB used{served}")
    yield disk(path.parent, "the spool", little_bytes=room, none_bytes=NO_DISK_BYTES)


def _modem_manager(subject: Subject, now: datetime) -> Iterator[Check]:
    if subject.ports:
        yield modem_manager()


def _ports(subject: Subject, now: datetime) -> Iterator[Check]:
    for port in subject.ports:
        try:
            places = port.device.candidates()
        except PortLost as lost:
            yield Check(f"port {port.name}", Level.FAIL, f"{port.device.text}: {lost}", "ls -l /dev/serial/by-path")
            continue
        for place in places[:MAX_PLACES]:
            line = _place(f"port {port.name}", place)
            yield line
            if line.level is Level.OK and subject.listen_s:
                yield _listened(port, place, subject.listen_s)


def _place(name: str, place: str) -> Check:
    path = Path(place)
    if not path.exists():
        return Check(
            name, Level.FAIL, f"{place} is not there", "plug it in; ls -l /dev/serial/by-path /dev/serial/by-id"
        )
    if not path.is_char_device():
        return Check(name, Level.FAIL, f"{place} is no serial port", "ls -l /dev/serial/by-path")
    if not os.access(path, os.R_OK | os.W_OK):
        return Check(
            name, Level.FAIL, f"{place}: permission denied", f"usermod -aG {_group(path)} USER, then log in again"
        )
    holder = _holder(path)
    if holder:
        return Check(name, Level.FAIL, f"{place} is open in {holder}", "end that program, or have it use another port")
    return Check(name, Level.OK, f"{place} is there, free, and may be opened")


def _group(path: Path) -> str:
    number = path.stat().st_gid
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _holder(path: Path) -> str:
    """The program that has it open, by the descriptors that this user may see; "" when there is none."""
    real = str(path.resolve())
    for process in checkup.PROCESSES.glob("[0-9]*"):
        try:
            if any(str(link.readlink()) == real for link in (process / "fd").iterdir()):
                return f"{sanitise((process / 'comm').read_text().strip())} (process {process.name})"
        except OSError:
            continue  # another user's, or ended meanwhile
    return ""


def _listened(port: PortSettings, place: str, listen_s: float) -> Check:
    """Open it and count frames; what comes before the first delimiter is a part of one."""
    name, counts = f"data {port.name}", FrameCounts()
    reader, received, deadline_s = (
        FrameReader(port.framing, counts, port.max_frame_bytes),
        0,
        time.monotonic() + listen_s,
    )
    try:
        opened = AgentPort(place, baud=port.baud, dtr=port.dtr, rts=port.rts)
        try:
            while not counts.frames and time.monotonic() < deadline_s:
                data = opened.read(LISTEN_SLICE_S)
                received += len(data)
                reader.feed(data)
        finally:
            opened.close()
    except PortLost as lost:
        return Check(name, Level.FAIL, f"{place}: {lost}", "end the program that has it open, or plug it in again")
    if counts.frames:
        return Check(name, Level.OK, f"a whole frame ({port.framing}) at {port.baud} baud")
    if received:
        hint = "compare baud, framing and max_frame_bytes with the device's"
        return Check(
            name, Level.FAIL, f"{received} bytes at {port.baud} baud, and no whole frame ({port.framing})", hint
        )
    return Check(
        name, Level.WARN, f"silent for {listen_s:g} s", "is it powered, does it speak by itself, is the cable whole"
    )


# --- the gateway ---


def _gateway(subject: Subject, now: datetime) -> Iterator[Check]:
    files, endpoint = subject.files, subject.endpoint
    question = question_of(
        str(endpoint), server_name="", cert=files.cert_file, key=files.key_file, ca=files.ca_file, tls=""
    )
    report = shake_hands(question, now)
    verdict = report.verdict
    if report.handshake is None:
        yield Check("gateway", Level.FAIL, verdict.sentence, verdict.hint)
        return
    yield Check("gateway", Level.OK, f"{endpoint} answers, after {report.connect_ms:.1f} ms")
    if not verdict.is_ok:
        yield Check(
            "handshake", Level.FAIL, verdict.sentence, verdict.hint or f"device-sim handshake {endpoint} says more"
        )
        return
    made = report.handshake
    yield Check("handshake", Level.OK, f"{made.version}, {made.handshake_ms:.1f} ms, both sides satisfied")
    yield from looked("connect", partial(_connect, subject))


def _connect(subject: Subject) -> Iterator[Check]:
    """CONNECT with the agent's own will, session and subscriptions, so that nothing the gateway keeps is changed."""
    if subject.is_served:
        yield Check("connect", Level.OK, "not tried: the agent that runs would be thrown off its connection")
        return
    files, device_id = (
        subject.files,
        subject.device_id or str(identity_of(leaf_of(subject.files.cert_file), IdentityRule())),
    )
    context = client_context(ca_file=files.ca_file, cert_file=files.cert_file, key_file=files.key_file)
    filters = [f"devices/{device_id}/commands/{port.name}/+" for port in subject.ports if port.commands]
    connection = Connection(subject.endpoint, context, device_id, State(f"devices/{device_id}/state"), filters)
    connection.close()
    yield Check("connect", Level.OK, f"the gateway has let {device_id} in")


Look = Callable[[Subject, datetime], Iterable[Check]]
CHECKS: tuple[tuple[str, Look], ...] = (
    ("clock", _clock),
    ("certificate", _certificate),
    ("key", _key),
    ("chain", _chain),
    ("spool", _spool),
    ("modem manager", _modem_manager),
    ("port", _ports),
    ("gateway", _gateway),
)
