"""The gateway's configuration file: strict TOML, every key known, every value in range.

An unknown table or key is an error that names file, table, key and the nearest known one. Relative paths are relative
to the file's own folder. The tables below are the whole format: type, default and range of every key.

Not judged here: whether the files exist and fit together (`security.py` does).
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gateway.config_values import (
    REQUIRED,
    Bad,
    Parse,
    address,
    audit_file,
    binds,
    file,
    loopback,
    one_of,
    optional_file,
    part,
    private_file,
    seconds,
    stale,
    time_source,
    topic_filters,
    truth,
    url,
    whole,
)
from gateway.uplink.settings import UPLINK_KEYS, UplinkConfig
from mtls.errors import ConfigFault
from mtls.keystore import read_limited
from mtls.revocation import StaleRule

EXAMPLE_HINT = "see examples/gateway.toml for every key"


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """[listener]: where mutual TLS is served, and with which files."""

    bind: tuple[tuple[str, int], ...]
    cert_file: Path
    key_file: Path
    ca_file: Path
    min_tls: str
    crl_file: Path | None
    crl_stale: StaleRule
    crl_url: str
    deny_file: Path | None


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """[limits]: bounds on everything a peer can make the gateway hold."""

    max_connections: int
    max_handshakes: int
    max_handshakes_per_address: int
    handshake_timeout_s: float
    connect_timeout_s: float
    connect_max_bytes: int
    max_packet_bytes: int
    max_topic_levels: int
    max_subscriptions_per_session: int
    max_inflight: int
    session_expiry_s: int
    retained_max_bytes: int


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """[policy]: the policy in force, one that is only asked what it would have decided, and the device registry.

    None: there is none.
    """

    file: Path
    shadow_file: Path | None
    registry: Path | None
    registry_required: bool


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """[store]: where acknowledged messages are kept, within which bounds, and what happens when there is no room."""

    path: Path
    max_bytes: int
    min_free_bytes: int
    commit_interval_ms: int
    full: str
    drop_oldest_topics: tuple[str, ...]
    full_grace_s: float
    allow_volatile: bool


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """[control]: the Unix socket of the live commands; None: off."""

    socket: Path | None


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """[audit]: the audit log; None: standard output."""

    file: Path | None
    max_bytes: int
    keep: int


@dataclass(frozen=True, slots=True)
class ConsoleConfig:
    """[console]: where metrics are served, a loopback address; None: off."""

    bind: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class TimeConfig:
    """[time]: where the last good time is kept (None: nowhere), and who vouches for the clock.

    `source` is "auto", "clock", or the path of a file, relative to `folder`, that is there once the clock is right.
    """

    floor_file: Path | None
    source: str
    folder: Path = Path()


@dataclass(frozen=True, slots=True)
class EnrolmentConfig:
    """[enrolment]: where devices renew their certificates, and who signs; `renew_window` is the last part of a life."""

    bind: tuple[str, int]
    issuing_ca_dir: Path
    renew_window: float
    same_key: bool


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """A whole configuration file."""

    path: Path
    listener: ListenerConfig
    limits: LimitsConfig
    policy: PolicyConfig
    control: ControlConfig
    audit: AuditConfig
    console: ConsoleConfig
    time: TimeConfig
    store: StoreConfig | None = None  # None: sessions and queues live in memory
    enrolment: EnrolmentConfig | None = None  # None: certificates are renewed elsewhere
    uplink: UplinkConfig | None = None  # None: the site's messages stay on the site
    plugins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> GatewayConfig:
        """Read a configuration file; ConfigFault names the file, the table, the key and the value."""
        try:
            document = tomllib.loads(read_limited(path).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigFault(f"{path}: {error}", hint="the configuration is TOML") from error
        _known(path, "", document, (*_TABLES, "amqtt"))
        present = [name for name in _TABLES if name in document or name not in _OFF_WHEN_ABSENT]
        tables = {name: _table(path, name, document.get(name, {})) for name in present}
        return cls(
            path=path,
            listener=ListenerConfig(**tables["listener"]),
            limits=LimitsConfig(**tables["limits"]),
            policy=PolicyConfig(**tables["policy"]),
            control=ControlConfig(**tables["control"]),
            audit=AuditConfig(**tables["audit"]),
            console=ConsoleConfig(**tables["console"]),
            enrolment=EnrolmentConfig(**tables["enrolment"]) if "enrolment" in tables else None,
            time=TimeConfig(**tables["time"], folder=path.parent),
            store=StoreConfig(**tables["store"]) if "store" in tables else None,
            uplink=UplinkConfig(**tables["uplink"]) if "uplink" in tables else None,
            plugins=_plugins(path, document.get("amqtt", {})),
        )


_OFF_WHEN_ABSENT = frozenset({"store", "enrolment", "uplink"})  # tables that switch something on
_MANY = 2**40

# table -> key -> (parser, default)
_TABLES: Mapping[str, Mapping[str, tuple[Parse, Any]]] = {
    "listener": {
        "bind": (binds, ["0.0.0.0:8883", "[::]:8883"]),
        "cert_file": (file, REQUIRED),
        "key_file": (private_file, REQUIRED),
        "ca_file": (file, REQUIRED),
        "min_tls": (one_of("1.2", "1.3"), "1.2"),
        "crl_file": (optional_file, ""),
        "crl_stale": (stale, "deny"),
        "crl_url": (url, ""),
        "deny_file": (optional_file, ""),
    },
    "limits": {
        "max_connections": (whole(1, 1_000_000), 5000),
        "max_handshakes": (whole(1, 100_000), 64),
        "max_handshakes_per_address": (whole(1, 100_000), 16),
        "handshake_timeout_s": (seconds(0.1, 600), 10),
        "connect_timeout_s": (seconds(0.1, 600), 5),
        "connect_max_bytes": (whole(64, 327_695), 65536),
        "max_packet_bytes": (whole(64, 268_435_455), 262144),
        "max_topic_levels": (whole(1, 65535), 128),
        "max_subscriptions_per_session": (whole(1, 1_000_000), 100),
        "max_inflight": (whole(1, 10_000), 20),
        "session_expiry_s": (whole(1, 10 * 366 * 86400), 604800),
        "retained_max_bytes": (whole(0, _MANY), 67108864),
    },
    "policy": {
        "file": (file, REQUIRED),
        "shadow_file": (optional_file, ""),
        "registry": (optional_file, ""),
        "registry_required": (truth, False),
    },
    "store": {
        "path": (file, "/var/lib/mqtt-gateway/gateway.db"),
        "max_bytes": (whole(1_048_576, 2**50), 4294967296),
        "min_free_bytes": (whole(0, 2**50), 268435456),
        "commit_interval_ms": (whole(0, 10_000), 5),
        "full": (one_of("withhold", "drop-oldest"), "withhold"),
        "drop_oldest_topics": (topic_filters, []),
        "full_grace_s": (seconds(0, 3600), 30),
        "allow_volatile": (truth, False),
    },
    "control": {"socket": (optional_file, "")},
    "audit": {
        "file": (audit_file, "-"),
        "max_bytes": (whole(4096, _MANY), 67108864),
        "keep": (whole(0, 1000), 5),
    },
    "console": {"bind": (loopback, "")},
    "enrolment": {
        "bind": (address, "0.0.0.0:8443"),
        "issuing_ca_dir": (file, REQUIRED),
        "renew_window": (part, 0.33),
        "same_key": (truth, False),
    },
    "uplink": UPLINK_KEYS,
    "time": {"floor_file": (optional_file, ""), "source": (time_source, "auto")},
}


def _known(path: Path, table: str, found: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in found:
        if key in known:
            continue
        where = f"{path}: [{table}]" if table else f"{path}"
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!a}?" if near else EXAMPLE_HINT
        raise ConfigFault(f"{where}: unknown {'key' if table else 'table'} {key!a}", hint=hint)


def _table(path: Path, name: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ConfigFault(f"{path}: [{name}] is not a table", hint=EXAMPLE_HINT)
    keys = _TABLES[name]
    _known(path, name, found, tuple(keys))
    values: dict[str, Any] = {}
    for key, (parse, default) in keys.items():
        value = found.get(key, default)
        if value is REQUIRED:
            raise ConfigFault(f"{path}: [{name}] {key} is missing", hint=EXAMPLE_HINT)
        try:
            values[key] = parse(value, path.parent)
        except Bad as bad:
            raise ConfigFault(f"{path}: [{name}] {key} = {value!a} is not {bad}", hint=EXAMPLE_HINT) from None
    return values


def _plugins(path: Path, found: Any) -> Mapping[str, Mapping[str, Any]]:
    """[amqtt.plugins."dotted.path"] tables; what is in them is the plugin's own business."""
    if not isinstance(found, dict):
        raise ConfigFault(f"{path}: [amqtt] is not a table", hint=EXAMPLE_HINT)
    _known(path, "amqtt", found, ("plugins",))
    plugins = found.get("plugins", {})
    if not isinstance(plugins, dict) or not all(isinstance(value, dict) for value in plugins.values()):
        raise ConfigFault(f"{path}: [amqtt.plugins] holds something that is no table", hint=EXAMPLE_HINT)
    return MappingProxyType(dict(plugins))
