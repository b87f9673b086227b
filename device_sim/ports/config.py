"""agent.toml: one agent, its files, its gateway, and a [[port]] table per serial port.

Strict: a key that is not known, missing, or of the wrong kind is a ConfigFault (exit 78) naming file, table and key.
Paths are relative to the file's folder. Topics may hold {id}, {port} and {kind}; whether the gateway grants them is
the gateway's to say.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_sim.connection_faults import Endpoint
from device_sim.credentials import Files
from device_sim.ports.finding import DeviceName
from device_sim.ports.framing import MAX_FRAME_BYTES, Kind
from device_sim.ports.parsing import Format
from device_sim.ports.spool import WhenFull
from device_sim.renewal import EstServer
from device_sim.settings import parse_endpoint
from device_sim.toml_tables import Keys, document, values, wrong
from gateway.config_values import REQUIRED, Bad, file, one_of, text, truth, whole
from mtls.errors import ConfigFault, Fault
from mtls.identity import DeviceId

MAX_PORTS = 64
MAX_CONFIG_BYTES = 256 * 1024
MAX_TOPIC_BYTES = 1024  # far above any sensible topic; MQTT's own limit is 65,535
_HINT = "see examples/agent.toml"
_NAME = re.compile(r"[a-z0-9_-]{1,32}")
_PLACE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class PortSettings:
    """One [[port]] table."""

    name: str
    device: DeviceName
    baud: int
    dtr: bool
    rts: bool
    framing: Kind
    max_frame_bytes: int
    parser: Format
    columns: tuple[str, ...]
    kind: str
    topic: str  # {kind} is still in it
    topics: Mapping[str, str]
    qos: int
    announce: bool
    commands: bool
    window_bytes: int

    def topic_of(self, kind: str) -> str:
        """The topic of a reading of this kind."""
        return self.topics.get(kind, self.topic).replace("{kind}", kind)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """A whole agent.toml."""

    device_id: str
    files: Files
    endpoint: Endpoint
    renew_at: EstServer | None
    spool_file: Path
    spool_bytes: int
    when_full: WhenFull
    ports: tuple[PortSettings, ...]


def load(path: Path) -> AgentConfig:
    """Read an agent.toml; ConfigFault naming what cannot be used."""
    tables = document(path, MAX_CONFIG_BYTES, "start from examples/agent.toml")
    unknown = tables.keys() - {"agent", "port"}
    if unknown:
        raise ConfigFault(f"{path}: no table [{min(unknown)!a}] is known", hint="known are [agent] and [[port]]")
    agent = values(path, "[agent]", tables.get("agent", {}), _AGENT, _HINT)
    ports = tables.get("port", [])
    if not isinstance(ports, list) or not 1 <= len(ports) <= MAX_PORTS:
        raise ConfigFault(f"{path}: there are not 1 to {MAX_PORTS} [[port]] tables", hint=_HINT)
    read = tuple(_port(path, number, table, agent["id"]) for number, table in enumerate(ports, 1))
    names = [port.name for port in read]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigFault(f"{path}: two [[port]] tables have the name {twice[0]}", hint="names are topic levels")
    return AgentConfig(
        device_id=agent["id"],
        files=Files(agent["cert_file"], agent["key_file"], agent["ca_file"]),
        endpoint=Endpoint(agent["broker"].host, agent["broker"].port, str(agent["ca_file"])),
        renew_at=agent["renew_url"],
        spool_file=agent["spool_file"],
        spool_bytes=agent["spool_bytes"],
        when_full=WhenFull(agent["when_full"]),
        ports=read,
    )


def _port(path: Path, number: int, table: Any, device_id: str) -> PortSettings:
    where = f"[[port]] number {number}"
    found = values(path, where, table, _PORT, _HINT)
    form, kind, columns = Format(found["parser"]), found["kind"], found["columns"]
    has_kind = bool(kind) or form is Format.NMEA
    if kind and (form not in (Format.JSON, Format.CSV) or (form is Format.CSV and kind not in columns)):
        raise wrong(
            path, where, "kind", kind, "the name of a JSON field or of a CSV column; NMEA has its kind by itself"
        )
    if (form is Format.CSV) != bool(columns):
        raise wrong(path, where, "columns", columns, 'a list of names with parser = "csv", and nothing otherwise')
    if found["window_bytes"] and not found["commands"]:
        raise wrong(path, where, "window_bytes", found["window_bytes"], "0 without commands = true")
    told = {"id": device_id, "port": found["name"]}
    topic = _topic(path, where, "topic", found["topic"] or "devices/{id}/telemetry/{port}", told, has_kind)
    topics = {
        name: _topic(path, where, f"topics.{name}", template, told, has_kind)
        for name, template in found["topics"].items()
    }
    if topics and not has_kind:
        raise wrong(path, where, "topics", topics, "a topic per kind, so the port must have a kind")
    try:
        device = DeviceName(found["device"], found["hello"])
    except ValueError as error:
        raise wrong(path, where, "device", found["device"], str(error)) from None
    rest = ("name", "baud", "dtr", "rts", "max_frame_bytes", "qos", "announce", "commands", "window_bytes")
    return PortSettings(
        device=device,
        framing=Kind(found["framing"]),
        parser=form,
        columns=columns,
        kind=kind,
        topic=topic,
        topics=topics,
        **{name: found[name] for name in rest},
    )


def _topic(path: Path, where: str, key: str, template: str, told: Mapping[str, str], has_kind: bool) -> str:
    """A template with everything but {kind} filled in."""
    for name in _PLACE.findall(template):
        if name not in told and not (name == "kind" and has_kind):
            raise wrong(
                path, where, key, template, "a topic with no other places than {id}, {port} and, with a kind, {kind}"
            )
    filled = _PLACE.sub(lambda found: told.get(found[1], found[0]), template)
    if set("+#\0") & set(filled) or not 1 <= len(filled.encode("utf-8", "replace")) <= MAX_TOPIC_BYTES:
        raise wrong(path, where, key, template, f"a topic of 1 to {MAX_TOPIC_BYTES} bytes without wildcards")
    return filled


# --- values ---


def _device_id(value: Any, folder: Path) -> str:
    try:
        return DeviceId(text(value, folder)).value
    except ValueError:
        raise Bad("a device id: 1 to 64 characters without spaces and / + # $") from None


def _broker(value: Any, folder: Path) -> Endpoint:
    try:
        return parse_endpoint(text(value, folder))
    except Fault:
        raise Bad("HOST or HOST:PORT") from None


def _est_server(value: Any, folder: Path) -> EstServer | None:
    try:
        return EstServer.parse(text(value, folder)) if value != "" else None
    except Fault:
        raise Bad("https://HOST or https://HOST:PORT") from None


def _name(value: Any, folder: Path) -> str:
    if not _NAME.fullmatch(text(value, folder)):
        raise Bad("1 to 32 of a-z, 0-9, - and _")
    return str(value)


def _names(value: Any, folder: Path) -> tuple[str, ...]:
    is_list = isinstance(value, list) and 0 < len(value) <= 256
    if not is_list or not all(isinstance(name, str) and name for name in value) or len({*value}) < len(value):
        raise Bad("a list of different names")
    return tuple(value)


def _templates(value: Any, folder: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(topic, str) for topic in value.values()):
        raise Bad("a table of kind = topic")
    return dict(value)


_AGENT: Keys = {
    "id": (_device_id, REQUIRED),
    "cert_file": (file, REQUIRED),
    "key_file": (file, REQUIRED),
    "ca_file": (file, REQUIRED),
    "broker": (_broker, REQUIRED),
    "renew_url": (_est_server, ""),
    "spool_file": (file, REQUIRED),
    "spool_bytes": (whole(65536, 2**40), 64 * 1024 * 1024),
    "when_full": (one_of(*WhenFull), WhenFull.DROP_OLDEST),
}
_PORT: Keys = {
    "name": (_name, REQUIRED),
    "device": (text, REQUIRED),
    "hello": (text, ""),
    "baud": (whole(50, 4_000_000), 115200),
    "dtr": (truth, True),
    "rts": (truth, True),
    "framing": (one_of(*Kind), Kind.LINE),
    "max_frame_bytes": (whole(16, 65536), MAX_FRAME_BYTES),
    "parser": (one_of(*Format), REQUIRED),
    "columns": (_names, ()),
    "kind": (text, ""),
    "topic": (text, ""),
    "topics": (_templates, {}),
    "qos": (whole(0, 1), 1),
    "announce": (truth, False),
    "commands": (truth, False),
    "window_bytes": (whole(0, 65536), 0),
}
