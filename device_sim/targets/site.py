"""A site on disk for a broker under test: test CA, server certificate, CRL, and rules in the broker's own language.

The rules are the same for every broker, so that reports can be compared: a device has its own tree, a service
named `observer` (organizational unit `services`) hears every device and sends commands. `narrow` is the same
without the right to `broadcast`; a test of what outlives a right needs both.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_sim.fleet.identities import Identity, SimulationCa

OBSERVER = "observer"

POLICY = """version = 1

[[role]]
name = "device"
match = { id = "*" }
publish = ["devices/{id}/telemetry/#", "devices/{id}/state"]
retain = ["devices/{id}/state"]
will = ["devices/{id}/state"]
subscribe = ["devices/{id}/commands/#", "broadcast/#"]

[[role]]
name = "service"
match = { ou = "services" }
publish = ["devices/+/commands/#", "broadcast/#"]
retain = ["broadcast/#"]
subscribe = ["devices/#", "broadcast/#"]
"""
NARROW_POLICY = POLICY.replace(', "broadcast/#"]\n\n[[role]]', "]\n\n[[role]]")

MOSQUITTO_ACL = """pattern write devices/%u/telemetry/#
pattern write devices/%u/state
pattern read devices/%u/commands/#
pattern read broadcast/#

user observer
topic write devices/+/commands/#
topic readwrite broadcast/#
topic read devices/#
"""
NARROW_MOSQUITTO_ACL = MOSQUITTO_ACL.replace("pattern read broadcast/#\n", "")

MAX_CONNECTIONS = 300  # low enough to be reached by a test, above what the attacks hold open at once
LIMITS: Mapping[str, Any] = {
    "max_connections": MAX_CONNECTIONS,
    "handshake_timeout_s": 2,
    "connect_timeout_s": 2,
    "max_handshakes": 512,
    "max_handshakes_per_address": 512,
}


@dataclass(frozen=True, slots=True)
class Site:
    """The files of one broker under test."""

    folder: Path
    ca: SimulationCa
    server: Identity

    @classmethod
    def make(cls, folder: Path, ca: SimulationCa | None = None) -> "Site":
        """Write what every broker needs."""
        folder.mkdir(parents=True, exist_ok=True)
        ca = ca if ca is not None else SimulationCa(folder / "ca")
        site = cls(folder, ca, ca.server(folder))
        ca.publish_crl(site.crl_file)
        site.deny_file.write_text("")
        site.write_policy(POLICY)
        return site

    @property
    def crl_file(self) -> Path:
        return self.folder / "crl.pem"

    @property
    def deny_file(self) -> Path:
        return self.folder / "deny.toml"

    @property
    def policy_file(self) -> Path:
        return self.folder / "policy.toml"

    @property
    def audit_file(self) -> Path:
        return self.folder / "audit.jsonl"

    @property
    def config_file(self) -> Path:
        return self.folder / "gateway.toml"

    def write_policy(self, text: str) -> None:
        """Replace the policy whole."""
        draft = self.policy_file.with_suffix(".new")
        draft.write_text(text, encoding="utf-8")
        draft.rename(self.policy_file)

    def observer(self) -> Identity:
        """A certificate of the service that hears every device."""
        return self.ca.new(OBSERVER, ou="services")

    def write_gateway_config(self, port: int, tables: Mapping[str, Mapping[str, Any]] = {}) -> None:
        """gateway.toml for a gateway on this port (0: any); `tables` adds keys or replaces them."""
        given: dict[str, dict[str, Any]] = {
            "listener": {
                "bind": [f"127.0.0.1:{port}"],
                "cert_file": str(self.server.cert_file.absolute()),
                "key_file": str(self.server.key_file.absolute()),
                "ca_file": str(self.ca.ca_file.absolute()),
                "crl_file": "crl.pem",
                "deny_file": "deny.toml",
            },
            "policy": {"file": "policy.toml"},
            "audit": {"file": "audit.jsonl"},
            "control": {"socket": "control.sock"},
            "limits": dict(LIMITS),
            "time": {"source": "clock"},  # a machine for tests vouches for its own clock
        }
        for name, table in tables.items():
            given.setdefault(name, {}).update(table)
        text = "".join(
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
            for name, table in given.items()
        )
        self.config_file.write_text(text, encoding="utf-8")

    def audit(self, event: str | None = None, **wanted: str) -> list[dict[str, Any]]:
        """Whole audit lines so far, of one event or all, whose fields have the wanted values."""
        text = self.audit_file.read_text(encoding="utf-8") if self.audit_file.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        chosen = [line for line in lines if event in (None, line["event"])]
        return [line for line in chosen if all(line.get(key) == value for key, value in wanted.items())]
