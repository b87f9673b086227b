"""Policies of any size, and what they cost apart from any socket: loading, a first admission, decisions."""

import gc
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.pki import device_names
from gateway.policy import Action, Grants, Policy
from mtls.identity import DeviceId
from mtls.judgement import Peer

PROBES = 1_000
DAY = datetime(2030, 1, 1, tzinfo=UTC)
BACKEND_ROLE = (
    '[[role]]\nname = "backend"\nmatch = { id = "backend" }\npublish = ["devices/#"]\nsubscribe = ["devices/#"]\n'
)


def many_roles(size: int) -> str:
    """A role per device."""
    return f"version = 1\n{BACKEND_ROLE}" + "".join(
        f'[[role]]\nname = "{name}"\nmatch = {{ id = "{name}" }}\npublish = ["devices/{{id}}/#", "shared/{name}/+"]\n'
        for name in device_names(size)
    )


def many_grants(size: int) -> str:
    """One role with a grant per device."""
    topics = "".join(f'  "devices/{name}/#",\n' for name in device_names(size))
    return f'version = 1\n{BACKEND_ROLE}[[role]]\nname = "all"\nmatch = {{ id = "dev*" }}\npublish = [\n{topics}]\n'


@dataclass(frozen=True, slots=True)
class PolicyCosts:
    """Seconds to load, and microseconds of one admission, one first and one remembered decision."""

    load_s: float
    admission_us: float
    decision_us: float
    remembered_us: float


def costs_of(text: str, size: int, folder: Path) -> PolicyCosts:
    """Measured with devices spread over the policy."""
    path = folder / "measured.toml"
    path.write_text(text, encoding="utf-8")
    started = time.perf_counter()
    policy = Policy.load(path)
    load_s = time.perf_counter() - started
    everyone = [_peer(f"dev{probe * max(1, size // PROBES) % size:05}") for probe in range(PROBES)]
    gc.collect()  # what loading left over is not the cost of an admission
    started = time.perf_counter()
    rights = [_admitted(policy, peer) for peer in everyone]
    times = [time.perf_counter() - started]
    for _ in ("first", "remembered"):
        started = time.perf_counter()
        for peer, grants in zip(everyone, rights, strict=True):
            if not grants.decide(Action.PUBLISH, f"devices/{peer.id.value}/x").allowed:
                raise RuntimeError(f"{peer.id} is denied")
        times.append(time.perf_counter() - started)
    return PolicyCosts(load_s, *(seconds / PROBES * 1e6 for seconds in times))


def _peer(name: str) -> Peer:
    return Peer(DeviceId(name), "CA", "0", (), (), "01", "00", DAY, DAY, b"")


def _admitted(policy: Policy, peer: Peer) -> Grants:
    grants = policy.admit(peer, peer.id.value)
    if not isinstance(grants, Grants):
        raise TypeError(f"{peer.id} is refused: {grants}")
    return grants
