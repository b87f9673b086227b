"""agent.toml: one agent, its files, its gateway, and a [[port]] table per serial port.

Strict: a key that is not known, missing, or of the wrong kind is a ConfigFault (exit 78) naming file, table and key.
Paths are relative to the file's folder. Topics may hold {id}, {port} and {kind}; whether the gateway grants them is
the gateway's to say.
"""

import re
import tomllib
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
from gateway.config_values import Bad, Parse, file, one_of, text, whole
from mtls.errors import ConfigFault, Fault
from mtls.identity import DeviceId

MAX_PORTS = 64
MAX_CONFIG_BYTES = 256 * 1024
MAX_TOPIC_BYTES = 1024  # far above any sensible topic; MQTT's own limit is 65,535
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
    try:
        with path.open("rb") as opened:
            raw = opened.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigFault(
            f"cannot read {path}: {(error.strerror or '').lower()}", hint="start from examples/agent.toml"
        ) from error
    try:
        if len(raw) > MAX_CONFIG_BYTES:
            raise ConfigFault(f"{path} is larger than {MAX_CONFIG_BYTES} bytes")
        tables = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigFault(f"{path} is no TOML: {error}") from error
    unknown = tables.keys() - {"agent", "port"}
    if unknown:
        raise ConfigFault(f"{path}: no table [{min(unknown)!a}] is known", hint="known are [agent] and [[port]]")
    agent = _values(path, "[agent]", tables.get("agent", {}), _AGENT)
    ports = tables.get("port", [])
    if not isinstance(ports, list) or not 1 <= len(ports) <= MAX_PORTS:
        raise ConfigFault(f"{path}: there are not 1 to {MAX_PORTS} [[port]] tables", hint="see examples/agent.toml")
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
    values = _values(path, where, table, _PORT)
    form, kind, columns = Format(values["parser"]), values["kind"], values["columns"]
    has_kind = bool(kind) or form is Format.NMEA
    if kind and (form not in (Format.JSON, Format.CSV) or (form is Format.CSV and kind not in columns)):
        raise _bad(path, where, "kind", "the name of a JSON field or of a CSV column; NMEA has its kind by itself")
    if (form is Format.CSV) != bool(columns):
        raise _bad(path, where, "columns", 'a list of names with parser = "csv", and not there otherwise')
    if values["window_bytes"] and not values["commands"]:
        raise _bad(path, where, "window_bytes", "0 without commands = true")
    told = {"id": device_id, "port": values["name"]}
    topic = _topic(path, where, "topic", values["topic"] or "devices/{id}/telemetry/{port}", told, has_kind)
    topics = {
        name: _topic(path, where, f"topics.{name}", template, told, has_kind)
        for name, template in values["topics"].items()
    }
    if topics and not has_kind:
        raise _bad(path, where, "topics", "not there without a kind")
    try:
        device = DeviceName(values["device"], values["hello"])
    except ValueError as error:
        raise _bad(path, where, "device", str(error)) from None
    rest = ("name", "baud", "dtr", "rts", "max_frame_bytes", "qos", "announce", "commands", "window_bytes")
    return PortSettings(
        device=device,
        framing=Kind(values["framing"]),
        parser=form,
        columns=columns,
        kind=kind,
        topic=topic,
        topics=topics,
        **{name: values[name] for name in rest},
    )


def _topic(path: Path, where: str, key: str, template: str, told: Mapping[str, str], has_kind: bool) -> str:
    """A template with everything but {kind} filled in."""
    for name in _PLACE.findall(template):
        if name not in told and not (name == "kind" and has_kind):
            raise _bad(path, where, key, "a topic with no other places than {id}, {port} and, with a kind, {kind}")
    filled = _PLACE.sub(lambda found: told.get(found[1], found[0]), template)
    if set("+#\0") & set(filled) or not 1 <= len(filled.encode("utf-8", "replace")) <= MAX_TOPIC_BYTES:
        raise _bad(path, where, key, f"a topic of 1 to {MAX_TOPIC_BYTES} bytes without wildcards")
    return filled


# --- tables of keys: name -> (parser of the value, default); REQUIRED has none ---

REQUIRED = object()
Keys = Mapping[str, tuple[Parse, Any]]


def _values(path: Path, where: str, table: Any, keys: Keys) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigFault(f"{path}: {where} is no table", hint="see examples/agent.toml")
    for key in table:
        if key not in keys:
            raise ConfigFault(f"{path}: {where} has no key {key!a}", hint=f"known are: {', '.join(keys)}")
    values = {}
    for key, (parse, default) in keys.items():
        if key not in table and default is REQUIRED:
            raise ConfigFault(f"{path}: {where} lacks the key {key}", hint="see examples/agent.toml")
        try:
            values[key] = parse(table[key], path.parent) if key in table else default
        except Bad as error:
            raise _bad(path, where, key, str(error)) from None
    return values


def _bad(path: Path, where: str, key: str, words: str) -> ConfigFault:
    return ConfigFault(f"{path}: {where} {key} is not {words}", hint="see examples/agent.toml")


def _switch(value: Any, folder: Path) -> bool:
    if not isinstance(value, bool):
        raise Bad("true or false")
    return value


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
    "dtr": (_switch, True),
    "rts": (_switch, True),
    "framing": (one_of(*Kind), Kind.LINE),
    "max_frame_bytes": (whole(16, 65536), MAX_FRAME_BYTES),
    "parser": (one_of(*Format), REQUIRED),
    "columns": (_names, ()),
    "kind": (text, ""),
    "topic": (text, ""),
    "topics": (_templates, {}),
    "qos": (whole(0, 1), 1),
    "announce": (_switch, False),
    "commands": (_switch, False),
    "window_bytes": (whole(0, 65536), 0),
}
