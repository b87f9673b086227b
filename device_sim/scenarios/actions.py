"""What can be done in a phase, by name: one table of what an operator, a network or an attacker does.

An action gets the `Ground`: the broker and its operator, the network in front of it, the devices. What an operator does
blocks (a subprocess, a file, a signal), so it runs in a thread while devices talk on. `Doer` says whom an action needs:
an operator's actions are refused before the run when the broker is somebody else's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from device_sim.attacks.report import ATTACKS, Line, attack
from device_sim.fleet.fleet import Fleet
from device_sim.fleet.identities import SimulationCa
from device_sim.network.fault_proxy import PERFECT, FaultProxy, Network
from device_sim.targets.brokers import ProcessBroker
from device_sim.toml_tables import Keys
from gateway.config_values import REQUIRED, Bad, seconds, text, truth, whole
from mtls.errors import Fault

DAY_S = 86400
Arguments = Mapping[str, Any]


class Doer(StrEnum):
    """Whose action it is."""

    OPERATOR = "operator"
    NETWORK = "network"
    DEVICES = "devices"


@dataclass(slots=True)
class Ground:
    """Where a scenario takes place."""

    ca: SimulationCa
    broker: ProcessBroker | None  # None: it runs already, and its operator is somebody else
    proxy: FaultProxy | None  # None: no action touches the network
    ids: Mapping[str, tuple[str, ...]]  # group -> its devices
    patience_s: float
    fleets: dict[str, Fleet] = field(default_factory=dict)  # groups that are there now
    attacked: list[Line] = field(default_factory=list)
    is_over: bool = False  # the run has ended, perhaps early: a thread that is still at work stops


@dataclass(frozen=True, slots=True)
class Action:
    """One line of the table; `keys` are its arguments."""

    doer: Doer
    effect: str
    keys: Keys
    run: Callable[[Ground, Arguments], Awaitable[object]]


# --- an operator ---


def _operator(
    effect: str, work: Callable[[ProcessBroker, Ground, Arguments], object], keys: Keys = MappingProxyType({})
) -> Action:
    async def run(ground: Ground, arguments: Arguments) -> object:
        if ground.broker is None:
            raise Fault("the broker was not started here, so nobody can operate it")
        return await asyncio.to_thread(work, ground.broker, ground, arguments)

    return Action(Doer.OPERATOR, effect, keys, run)


def _revoke(broker: ProcessBroker, ground: Ground, arguments: Arguments) -> None:
    broker.revoke(*(ground.ca.of(device_id) for device_id in ground.ids[arguments["devices"]]))


def _attack(broker: ProcessBroker, ground: Ground, arguments: Arguments) -> None:
    traps = arguments["traps"]
    chosen = [one for one in ATTACKS if not traps or one.trap in traps]
    for one in chosen:
        if ground.is_over:
            return
        ground.attacked.extend(attack(broker, broker.name, attacks=[one], patience_s=ground.patience_s).lines)


def _traps(value: Any, folder: Path) -> tuple[str, ...]:
    known = dict.fromkeys(one.trap for one in ATTACKS)
    if not isinstance(value, list) or not all(isinstance(trap, str) and trap in known for trap in value):
        raise Bad(f"a list of traps: {', '.join(known)}")
    return tuple(value)


# --- devices ---


async def _renew(ground: Ground, arguments: Arguments) -> None:
    fleet = ground.fleets.get(arguments["devices"])
    for device in fleet.devices if fleet is not None else ():
        device.service()


# --- the network ---


def _network(effect: str, change: Callable[[FaultProxy, Arguments], None], keys: Keys = MappingProxyType({})) -> Action:
    async def run(ground: Ground, arguments: Arguments) -> None:
        if ground.proxy is not None:
            change(ground.proxy, arguments)

    return Action(Doer.NETWORK, effect, keys, run)


def _set_network(proxy: FaultProxy, arguments: Arguments) -> None:
    proxy.network = Network(**arguments)


def _cut(proxy: FaultProxy, arguments: Arguments) -> None:
    proxy.network = Network(is_down=True)
    proxy.cut()


def _heal(proxy: FaultProxy, arguments: Arguments) -> None:
    proxy.network = PERFECT


_NETWORK_KEYS: Keys = {
    "latency_s": (seconds(0, 60), 0.0),
    "jitter_s": (seconds(0, 60), 0.0),
    "reset_rate": (seconds(0, 1), 0.0),
    "bytes_per_s": (seconds(0, 10**9), 0.0),
    "cut_at_byte": (whole(0, 10**9), 0),
    "is_half_open": (truth, False),
}

ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "revoke": _operator(
            "put the group's certificates on the CRL, and have it taken", _revoke, {"devices": (text, REQUIRED)}
        ),
        "reload": _operator("have the broker read its files again", lambda broker, *_: broker.reload()),
        "stop": _operator("end the broker in order", lambda broker, *_: broker.stop()),
        "kill": _operator("end the broker with kill -9", lambda broker, *_: broker.stop(is_killed=True)),
        "start": _operator("start the broker, and wait until it serves", lambda broker, *_: broker.start()),
        "renew-server": _operator("a new server certificate with a new key", lambda broker, *_: broker.renew_server()),
        "spoil-server": _operator(
            "an unreadable server certificate, and a reload", lambda broker, *_: broker.spoil_server(True)
        ),
        "mend-server": _operator(
            "a good server certificate again, and a reload", lambda broker, *_: broker.spoil_server(False)
        ),
        "publish-crl": _operator(
            "a new CRL; with days_old it is so old, and it is valid for seven days",
            lambda broker, ground, arguments: broker.publish_crl(age=timedelta(seconds=arguments["days_old"] * DAY_S)),
            {"days_old": (whole(0, 3650), 0)},
        ),
        "narrow-rules": _operator(
            "take the right to broadcast from devices", lambda broker, *_: broker.narrow_rules(True)
        ),
        "restore-rules": _operator("the rules as they were", lambda broker, *_: broker.narrow_rules(False)),
        "empty-rules": _operator("an empty file of rules", lambda broker, *_: broker.empty_rules()),
        "attack": _operator("carry out these attacks, or all of them", _attack, {"traps": (_traps, ())}),
        "renew": Action(
            Doer.DEVICES,
            "give right certificates to the group's short-lived devices; who is away tries at once",
            {"devices": (text, REQUIRED)},
            _renew,
        ),
        "network": _network("a line with these figures; what is not named is perfect", _set_network, _NETWORK_KEYS),
        "cut": _network("end every connection, and let none through", _cut),
        "heal": _network("a perfect line again", _heal),
    }
)
