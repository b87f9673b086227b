"""What the policy costs with 10 and with 100,000 roles or grants: load, admission, decision.

    python benchmarks/policy_scaling.py [SIZE ...]

Prints one row per size: seconds to load, microseconds per first admission, per first decision and per remembered one.
The figures of admission and decision should not grow with the size.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from gateway.policy import Action, Grants, Policy
from mtls.identity import DeviceId
from mtls.judgement import Peer

SIZES = (10, 1_000, 100_000)
PROBES = 1_000
DAY = datetime(2030, 1, 1, tzinfo=UTC)


def many_roles(size: int) -> str:
    """A role per device."""
    return "version = 1\n" + "".join(
        f'[[role]]\nname = "r{n}"\nmatch = {{ id = "d{n}" }}\npublish = ["devices/{{id}}/#", "shared/{n}/+"]\n'
        for n in range(size)
    )


def many_grants(size: int) -> str:
    """One role with a grant per device."""
    topics = "".join(f'  "devices/d{n}/#",\n' for n in range(size))
    return f'version = 1\n[[role]]\nname = "all"\nmatch = {{ id = "d*" }}\npublish = [\n{topics}]\n'


def peers(size: int) -> Iterator[Peer]:
    """Devices spread over the policy."""
    for probe in range(PROBES):
        name = DeviceId(f"d{probe * max(1, size // PROBES) % size}")
        yield Peer(name, "CA", str(probe), (), (), "01", "00", DAY, DAY, b"")


def admitted(policy: Policy, peer: Peer) -> Grants:
    grants = policy.admit(peer, peer.id.value)
    if not isinstance(grants, Grants):
        raise SystemExit(f"{peer.id} is refused: {grants}")
    return grants


def row(name: str, size: int, text: str, path: Path) -> str:
    path.write_text(text)
    started = time.perf_counter()
    policy = Policy.load(path)
    load_s = time.perf_counter() - started
    everyone = list(peers(size))
    gc.collect()  # what loading left over is not the cost of an admission
    started = time.perf_counter()
    rights = [admitted(policy, peer) for peer in everyone]
    admission_us = (time.perf_counter() - started) / PROBES * 1e6
    times = []
    for _ in ("first", "remembered"):
        started = time.perf_counter()
        for peer, grants in zip(everyone, rights, strict=True):
            if not grants.decide(Action.PUBLISH, f"devices/{peer.id.value}/x").allowed:
                raise SystemExit(f"{peer.id} is denied")
        times.append((time.perf_counter() - started) / PROBES * 1e6)
    return f"{name:8} {size:>8} {load_s:>8.2f} {admission_us:>14.1f} {times[0]:>14.1f} {times[1]:>14.1f}"


def main(sizes: tuple[int, ...]) -> None:
    kinds: tuple[tuple[str, Callable[[int], str]], ...] = (("roles", many_roles), ("grants", many_grants))
    print(f"{'policy':8} {'size':>8} {'load s':>8} {'admission us':>14} {'decision us':>14} {'remembered us':>14}")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in kinds:
            for size in sizes:
                print(row(name, size, make(size), Path(folder) / "policy.toml"), flush=True)


if __name__ == "__main__":
    main(tuple(int(argument) for argument in sys.argv[1:]) or SIZES)
