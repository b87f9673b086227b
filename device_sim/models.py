"""Made-up measurements: seeded models that give the same readings for the same seed, anywhere, always.

A model is an endless iterator of readings without time, so that a run can be compared with another byte for
byte; who paces them adds the clock. Python's `random.Random` keeps its sequence between versions for the calls
used here (`random()` alone), which is what makes a recorded run worth keeping. Nothing here is a secret's source.
"""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Model:
    """What is measured, in which unit, and the values in order."""

    unit: str
    values: Callable[[random.Random], Iterator[float | int | bool]]


def _drifting(centre: float, swing: float, noise: float, low: float, high: float) -> Callable[..., Iterator[float]]:
    """A slow wave (one turn in 600 readings) with noise that remembers: neighbours are alike, as outdoors."""

    def values(rng: random.Random) -> Iterator[float]:
        phase, wander, step = rng.random() * math.tau, 0.0, 0
        while True:
            wander = 0.9 * wander + noise * (2 * rng.random() - 1)
            value = centre + swing * math.sin(phase + math.tau * step / 600) + wander
            yield round(min(max(value, low), high), 2)
            step += 1

    return values


def _counter(rng: random.Random) -> Iterator[int]:
    total = 0
    while True:
        total += int(rng.random() * 4)
        yield total


def _door(rng: random.Random) -> Iterator[bool]:
    is_open = False
    while True:
        is_open = is_open != (rng.random() < 0.1)
        yield is_open


MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "temperature": Model("celsius", _drifting(21.0, 4.0, 0.15, -40.0, 85.0)),
        "humidity": Model("percent", _drifting(45.0, 12.0, 0.6, 0.0, 100.0)),
        "pressure": Model("hectopascal", _drifting(1013.0, 6.0, 0.2, 870.0, 1085.0)),
        "counter": Model("pieces", _counter),
        "door": Model("open", _door),
    }
)


def readings(name: str, seed: int) -> Iterator[bytes]:
    """The payloads of the model `name`: compact JSON with sequence, value and unit. KeyError for no model."""
    model = MODELS[name]
    values = model.values(random.Random(f"{name}:{seed}"))  # noqa: S311 - reproducible on purpose
    for sequence, value in enumerate(values, 1):
        yield _compact({"sequence": sequence, "value": value, "unit": model.unit})


def telemetry(hardware_serial: str, seed: int) -> Iterator[bytes]:
    """The lines of a device with two sensors, without their newline."""
    temperature = MODELS["temperature"].values(random.Random(f"temperature:{seed}"))  # noqa: S311
    humidity = MODELS["humidity"].values(random.Random(f"humidity:{seed}"))  # noqa: S311
    for sequence, (degrees, percent) in enumerate(zip(temperature, humidity, strict=True), 1):
        measured = {"temperature_c": degrees, "humidity_percent": percent}
        yield _compact({"sn": hardware_serial, "sequence": sequence, **measured})


def _compact(reading: Mapping[str, object]) -> bytes:
    return json.dumps(reading, separators=(",", ":")).encode("ascii")
