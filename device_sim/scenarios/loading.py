"""From a TOML file to a `Scenario`: strict, bounded, and with a sentence for whatever does not fit.

A key that is not known, missing, of the wrong kind or out of its bounds is a Fault that names file, table, key and
value, and what would fit. Nothing is started here. Files that a payload names are relative to the scenario's folder.
"""

import re
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from device_sim.fleet.device import Group
from device_sim.fleet.faults import FaultSet, parse_fault_set
from device_sim.fleet.payloads import PayloadModel, model_of, parse_model
from device_sim.scenarios.actions import ACTIONS, Arguments
from device_sim.scenarios.expectations import EXPECTATIONS, Scope
from device_sim.scenarios.model import Devices, Phase, Scenario, Step, Wanted
from device_sim.toml_tables import Keys, document, values, wrong
from gateway.config_values import REQUIRED, Bad, one_of, seconds, text, topic_filters, truth, whole
from mtls.errors import ConfigFault

MAX_FILE_BYTES = 256 * 1024
MAX_GROUPS, MAX_PHASES, MAX_STEPS, MAX_WANTED = 64, 64, 64, 64
MAX_DEVICES = 20000  # of all groups: what one process can connect
MAX_SECONDS = 7 * 86400.0
MAX_TEXT = 2000
MAX_TOPIC_BYTES = 1024  # far above any sensible topic; MQTT's own limit is 65,535
EXAMPLE = "start from examples/scenarios/smoke.toml"
_values = partial(values, hint=EXAMPLE)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def load(path: Path) -> Scenario:
    """Read a scenario; ConfigFault naming what cannot be used."""
    top = _values(path, "the file", document(path, MAX_FILE_BYTES, EXAMPLE), _TOP)
    phases = tuple(
        _phase(path, f"[[phases]] number {number}", table)
        for number, table in enumerate(_list(path, "[[phases]]", top["phases"], MAX_PHASES, least=1), 1)
    )
    names = tuple(phase.name for phase in phases)
    _different(path, "[[phases]]", names)
    devices = tuple(
        _devices(path, f"[[devices]] number {number}", table, names)
        for number, table in enumerate(_list(path, "[[devices]]", top["devices"], MAX_GROUPS), 1)
    )
    scenario = Scenario(
        name=top["name"],
        description=top["description"],
        seed=top["seed"],
        listen=top["listen"],
        gateway=_gateway(path, top["gateway"]),
        devices=devices,
        phases=phases,
        wanted=_wanted(path, "[[expect]]", top["expect"], ""),
    )
    _check(path, scenario)
    return scenario


def _list(path: Path, where: str, tables: Any, most: int, *, least: int = 0) -> list[Any]:
    if not isinstance(tables, list) or not least <= len(tables) <= most:
        raise ConfigFault(f"{path}: there are not {least} to {most} {where} tables", hint=EXAMPLE)
    return tables


# --- tables ---


def _devices(path: Path, where: str, table: Any, names: tuple[str, ...]) -> Devices:
    found = _values(path, where, table, _DEVICES)
    chosen = found.pop("phases") or names
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise wrong(path, where, "phases", unknown[0], f"names of phases: {', '.join(names)}")
    places = sorted(names.index(name) for name in chosen)
    if any(later - earlier != 1 for earlier, later in pairwise(places)):
        raise wrong(
            path, where, "phases", list(chosen), "phases that follow one another: devices come once and go once"
        )
    if found["qos"] == 2 and found["stored_session"]:
        raise wrong(path, where, "qos", 2, "0 or 1 with stored_session: a new connection counts packet ids anew")
    count, at_least = found.pop("count"), found.pop("at_least")
    found["commands"] = "devices/{id}/commands/#" if found["commands"] else ""
    found["clean_session"] = not found.pop("stored_session")
    return Devices(count, min(count, at_least), tuple(names[place] for place in places), Group(ids=(), **found))


def _phase(path: Path, where: str, table: Any) -> Phase:
    found = _values(path, where, table, _PHASE)
    name, duration_s = found["name"], found["seconds"]
    steps = tuple(
        _step(path, f"{where} ({name}), action {number}", step, duration_s)
        for number, step in enumerate(_list(path, "[[phases.actions]]", found["actions"], MAX_STEPS), 1)
    )
    at_least_s = min(duration_s, found["at_least_s"])
    return Phase(name, duration_s, at_least_s, steps, _wanted(path, f"{where} ({name}), expect", found["expect"], name))


def _step(path: Path, where: str, table: Any, duration_s: float) -> Step:
    if not isinstance(table, dict):
        raise ConfigFault(f"{path}: {where} is no table", hint=EXAMPLE)
    found = _values(path, where, {key: table[key] for key in ("do", "at_s") if key in table}, _STEP)
    if found["at_s"] > duration_s:
        raise wrong(path, where, "at_s", found["at_s"], f"seconds within the phase's {duration_s:g}")
    action = ACTIONS[found["do"]]
    rest = {key: value for key, value in table.items() if key not in _STEP}
    arguments: Arguments = MappingProxyType(_values(path, f"{where} ({found['do']})", rest, action.keys))
    return Step(found["do"], found["at_s"], arguments)


def _wanted(path: Path, where: str, tables: Any, phase: str) -> tuple[Wanted, ...]:
    wanted = []
    keys: Keys = {
        "devices": (text, ""),
        **{key: (expectation.parse, None) for key, expectation in EXPECTATIONS.items()},
    }
    for number, table in enumerate(_list(path, where, tables, MAX_WANTED), 1):
        found = _values(path, f"{where} {number}", table, keys)
        for key in [key for key in table if key in EXPECTATIONS]:
            scope = EXPECTATIONS[key].scope
            if (scope is Scope.WHOLE and phase) or (scope is Scope.PHASE and not phase):
                raise ConfigFault(f"{path}: {where} {number} has the key {key}", hint=f"{key} stands {scope}")
            wanted.append(Wanted(key, found[key], found["devices"], phase))
    return tuple(wanted)


def _gateway(path: Path, table: Any) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(table, dict) or not all(isinstance(inner, dict) for inner in table.values()):
        raise ConfigFault(f"{path}: [gateway] holds no tables of gateway.toml", hint="for example [gateway.store]")
    return MappingProxyType(table)


def _check(path: Path, scenario: Scenario) -> None:
    """What one table cannot know of another."""
    groups = tuple(group.name for group in scenario.devices)
    _different(path, "[[devices]]", groups)
    if sum(group.count for group in scenario.devices) > MAX_DEVICES:
        raise ConfigFault(f"{path}: there are more than {MAX_DEVICES} devices", hint="lower a count")
    if scenario.listen and scenario.uses("attack"):
        raise ConfigFault(
            f"{path}: listen = {scenario.listen!a} and attacks would take the observer's session from one another",
            hint='write listen = "", or put the attacks into a scenario of their own',
        )
    every = [*scenario.wanted, *(wanted for phase in scenario.phases for wanted in phase.wanted)]
    if not every:
        raise ConfigFault(f"{path}: nothing is expected, so nothing can fail", hint="add an [[expect]] table")
    arguments = [step.arguments.get("devices", "") for phase in scenario.phases for step in phase.steps]
    for name in [*(wanted.devices for wanted in every), *arguments]:
        if name and name not in groups:
            raise ConfigFault(f"{path}: there are no devices {name!a}", hint=f"known are: {', '.join(groups)}")
    present = {group.name: group.phases for group in scenario.devices}
    for wanted in every:
        if wanted.devices and wanted.phase and wanted.phase not in present[wanted.devices]:
            raise ConfigFault(
                f"{path}: the devices {wanted.devices} are not there in the phase {wanted.phase}",
                hint="see the key phases of their table",
            )


def _different(path: Path, what: str, names: tuple[str, ...]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigFault(f"{path}: two {what} tables have the name {twice[0]}", hint="give each a name of its own")


# --- values ---


def _name(value: Any, folder: Path) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise Bad("1 to 32 of a-z, 0-9 and -")
    return value


def _prose(value: Any, folder: Path) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise Bad(f"up to {MAX_TEXT} characters")
    return value


def _names(value: Any, folder: Path) -> tuple[str, ...]:
    is_list = isinstance(value, list) and 0 < len(value) <= MAX_PHASES
    if not is_list or not all(isinstance(name, str) for name in value) or len({*value}) < len(value):
        raise Bad("a list of different names")
    return tuple(value)


def _faults(value: Any, folder: Path) -> FaultSet:
    if not isinstance(value, list) or not all(isinstance(fault, str) for fault in value):
        raise Bad('a list of faults, as ["expired"] or ["cut-after-puback=10"]')
    return parse_fault_set(value)


def _payload(value: Any, folder: Path) -> PayloadModel:
    if isinstance(value, dict):
        return model_of(value, folder)
    return parse_model(text(value, folder), folder)


def _topic(value: Any, folder: Path) -> str:
    if not isinstance(value, str) or {*"+#\0"} & {*value} or len(value.encode()) > MAX_TOPIC_BYTES:
        raise Bad(f"a topic without wildcards of up to {MAX_TOPIC_BYTES} bytes; {{id}} is the device's")
    return value


def _filter(value: Any, folder: Path) -> str:
    if value != "":
        topic_filters([value], folder)
    return str(value)


def _as_it_is(value: Any, folder: Path) -> Any:
    return value


_TOP: Keys = {
    "name": (_name, REQUIRED),
    "description": (_prose, ""),
    "seed": (whole(0, 2**31), 0),
    "listen": (_filter, "devices/#"),
    "gateway": (_as_it_is, {}),
    "devices": (_as_it_is, []),
    "phases": (_as_it_is, REQUIRED),
    "expect": (_as_it_is, []),
}
_DEVICES: Keys = {
    "name": (_name, REQUIRED),
    "count": (whole(1, MAX_DEVICES), REQUIRED),
    "at_least": (whole(1, MAX_DEVICES), 1),
    "phases": (_names, ()),
    "payload": (_payload, parse_model("temperature")),
    "topic": (_topic, "devices/{id}/telemetry/sim"),
    "interval_s": (seconds(0.001, 86400), 1.0),
    "jitter": (seconds(0, 1), 0.2),
    "qos": (whole(0, 2), 1),
    "ramp_per_s": (seconds(0, 100000), 100.0),
    "will": (_topic, "devices/{id}/state"),
    "commands": (truth, False),
    "keep_alive_s": (whole(1, 65535), 60),
    "stored_session": (truth, False),
    "at_once": (truth, False),
    "connect_timeout_s": (seconds(0.1, 600), 20.0),
    "faults": (_faults, parse_fault_set(())),
}
_PHASE: Keys = {
    "name": (_name, REQUIRED),
    "seconds": (seconds(0.1, MAX_SECONDS), REQUIRED),
    "at_least_s": (seconds(0.1, MAX_SECONDS), 1.0),
    "actions": (_as_it_is, []),
    "expect": (_as_it_is, []),
}
_STEP: Keys = {
    "do": (one_of(*ACTIONS), REQUIRED),
    "at_s": (seconds(0, MAX_SECONDS), 0.0),
}
