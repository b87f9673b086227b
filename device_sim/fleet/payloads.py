"""Payload models: what a virtual device says, message by message, from a seed.

A model is written as a URL-like word on the command line (`number?low=0&high=100&step=0.5`) or as a table in a
scenario (`payload = { model = "number", low = 0, high = 100, step = 0.5 }`); both become a `PayloadModel`, once. A
model makes an endless iterator per device, seeded by (seed, device), so that the same seed says the same bytes,
whatever the order in which devices speak. The sensors of `device_sim/models.py` are models too.
"""

import ast
import csv
import json
import math
import operator
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

from device_sim.models import MODELS
from mtls.errors import Fault
from mtls.keystore import read_limited

MAX_CSV_BYTES = 64 * 1024 * 1024
MAX_RAW_BYTES = 256 * 1024  # the gateway's largest packet
MAX_EXPRESSION = 200  # characters
LARGEST_POWER = 64  # an exponent; 9**9**9 would never end

Values = Iterator[Any]
Make = Callable[[Mapping[str, Any], random.Random, int], Values]


@dataclass(frozen=True, slots=True)
class PayloadModel:
    """A checked model: its name and its settings."""

    name: str
    settings: Mapping[str, Any]

    def payloads(self, seed: int, device: int) -> Iterator[bytes]:
        """The payloads of device number `device`."""
        rng = random.Random(f"{self.name}:{seed}:{device}")  # noqa: S311 - reproducible on purpose
        values = _KINDS[self.name].make(self.settings, rng, device)
        if self.name == "raw":
            yield from values
            return
        for sequence, value in enumerate(values, 1):
            yield json.dumps({"sequence": sequence, "value": value}, separators=(",", ":")).encode()


def _number(settings: Mapping[str, Any], rng: random.Random, device: int) -> Values:
    low, high, step = settings["low"], settings["high"], settings["step"]
    steps = math.floor((high - low) / step)
    while True:
        yield round(low + step * math.floor(rng.random() * (steps + 1)), 9)


def _boolean(settings: Mapping[str, Any], rng: random.Random, device: int) -> Values:
    while True:
        yield rng.random() < settings["chance"]


def _enum(settings: Mapping[str, Any], rng: random.Random, device: int) -> Values:
    values = settings["values"]
    while True:
        yield values[math.floor(rng.random() * len(values))]


def _walk(settings: Mapping[str, Any], rng: random.Random, device: int) -> Values:
    value = settings["start"]
    while True:
        yield round(value, 6)
        value += settings["step"] * (2 * rng.random() - 1)
        value = min(max(value, settings["low"]), settings["high"])


def _expression(settings: Mapping[str, Any], rng: random.Random, device: int) -> Values:
    tree = parse_expression(settings["text"])
    sequence = 0
    while True:
        value = evaluate(tree, {"n": sequence, "device": device, "random": rng.random(), "pi": math.pi})
        yield round(value, 9) if isinstance(value, float) else value
        sequence += 1


def _csv(settings: Mapping[str, Any], rng: random.Random, device: int) -> Values:
    rows = settings["rows"]
    at = device % len(rows)  # devices begin at different rows
    while True:
        yield rows[at]
        at = (at + 1) % len(rows)


def _raw(settings: Mapping[str, Any], rng: random.Random, device: int) -> Values:
    text = settings["text"]
    payload = text.encode() if text else bytes(math.floor(rng.random() * 256) for _ in range(settings["size"]))
    while True:
        yield payload


def _sensor(name: str) -> Make:
    return lambda settings, rng, device: MODELS[name].values(rng)


@dataclass(frozen=True, slots=True)
class _Kind:
    make: Make
    defaults: Mapping[str, Any]  # a setting's default; its type is the setting's type


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "number": _Kind(_number, {"low": 0.0, "high": 100.0, "step": 1.0}),
        "boolean": _Kind(_boolean, {"chance": 0.5}),
        "enum": _Kind(_enum, {"values": ""}),
        "walk": _Kind(_walk, {"start": 20.0, "step": 0.5, "low": -1e9, "high": 1e9}),
        "expression": _Kind(_expression, {"text": "n"}),
        "csv": _Kind(_csv, {"file": "", "column": ""}),
        "raw": _Kind(_raw, {"text": "", "size": 100}),
        **{name: _Kind(_sensor(name), {}) for name in MODELS},
    }
)
MODEL_NAMES = tuple(_KINDS)


# --- parsing ---


def parse_model(text: str, folder: Path = Path()) -> PayloadModel:
    """A model from a command line: NAME or NAME?KEY=VALUE&...; Fault with what is wrong."""
    name, _, query = text.partition("?")
    try:
        settings = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise Fault(f"the payload model {name!a} has settings that are no KEY=VALUE", hint=_HINT) from None
    return model_of({"model": name, **settings}, folder)


_HINT = "for example: number?low=0&high=100&step=0.5"


def model_of(table: Mapping[str, Any], folder: Path) -> PayloadModel:
    """A model from a table with the key `model`; files are relative to `folder`."""
    settings = dict(table)
    name = settings.pop("model", None)
    if name not in _KINDS:
        raise Fault(f"there is no payload model {name!a}", hint=f"one of: {', '.join(MODEL_NAMES)}")
    defaults = _KINDS[name].defaults
    for key in settings:
        if key not in defaults:
            known = ", ".join(defaults) or "none"
            raise Fault(f"the payload model {name} has no setting {key!a}", hint=f"its settings: {known}")
    typed = {key: _typed(name, key, settings.get(key, default), default) for key, default in defaults.items()}
    return PayloadModel(name, MappingProxyType(_CHECKS.get(name, _as_it_is)(typed, folder)))


def _typed(name: str, key: str, value: Any, default: Any) -> Any:
    if isinstance(default, str):
        return value
    try:
        number = type(default)(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise Fault(f"the payload model {name} has a {key} that is no number", hint=f"write {key}={default:g}")
    return number


def _as_it_is(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    return settings


def _checked_number(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    if settings["step"] <= 0 or settings["high"] < settings["low"]:
        raise Fault("the payload model number needs low <= high and a step above 0", hint=_HINT)
    return settings


def _checked_enum(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    values = settings["values"]
    values = [part for part in values.split("|") if part] if isinstance(values, str) else values
    if not isinstance(values, list) or not values:
        raise Fault("the payload model enum has no values", hint="for example: enum?values=idle|running|fault")
    return {"values": tuple(values)}


def _checked_expression(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    evaluate(parse_expression(settings["text"]), {"n": 0, "device": 0, "random": 0.5, "pi": math.pi})
    return settings


def _checked_csv(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    text = read_limited(folder / settings["file"], MAX_CSV_BYTES).decode("utf-8", "replace")
    rows = list(csv.DictReader(text.splitlines()))
    column = settings["column"]
    if not rows or column not in rows[0]:
        raise Fault(f"{settings['file']} has no column {column!a}", hint="its first line names the columns")
    return {"rows": tuple(_cell(row[column] or "") for row in rows)}


def _cell(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _checked_raw(settings: dict[str, Any], _: Path) -> dict[str, Any]:
    if not 0 <= settings["size"] <= MAX_RAW_BYTES:
        raise Fault(f"the payload model raw takes a size up to {MAX_RAW_BYTES}", hint="for example: raw?size=100")
    return settings


_CHECKS: Mapping[str, Callable[[dict[str, Any], Path], dict[str, Any]]] = MappingProxyType(
    {
        "number": _checked_number,
        "enum": _checked_enum,
        "expression": _checked_expression,
        "csv": _checked_csv,
        "raw": _checked_raw,
    }
)


# --- expressions: arithmetic over n, device, random and pi; no names, attributes or calls beyond these tables ---

_OPERATORS: Mapping[type, Callable[..., Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.Pow: lambda base, power: math.pow(base, min(power, LARGEST_POWER)),
        ast.USub: operator.neg,
        ast.UAdd: operator.pos,
    }
)
_FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"sin": math.sin, "cos": math.cos, "sqrt": math.sqrt, "abs": abs, "min": min, "max": max, "floor": math.floor}
)


def parse_expression(text: str) -> ast.expr:
    """The tree of an expression such as `20 + 5*sin(n/60)`; Fault when it is none."""
    try:
        return ast.parse(text if len(text) <= MAX_EXPRESSION else "too long", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Fault(f"the expression {text[:40]!a} cannot be read", hint=_EXPRESSION_HINT) from None


_EXPRESSION_HINT = f"numbers, n, device, random, pi, + - * / // % **, {', '.join(_FUNCTIONS)}"


def evaluate(tree: ast.expr, names: Mapping[str, float]) -> Any:
    """The value of an expression; Fault for anything that is not in the tables above."""
    match tree:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](evaluate(operand, names))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            values = evaluate(left, names), evaluate(right, names)
            try:
                return _OPERATORS[type(op)](*values)
            except (ArithmeticError, ValueError):
                return 0.0
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as args, keywords=[]) if name in _FUNCTIONS:
            try:
                return _FUNCTIONS[name](*(evaluate(argument, names) for argument in args))
            except (ArithmeticError, ValueError, TypeError):
                return 0.0
    raise Fault(f"the expression uses {ast.unparse(tree)[:40]!a}", hint=_EXPRESSION_HINT)
