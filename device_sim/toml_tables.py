"""Tables of a strict TOML file: every key is known, every value is parsed, and whatever does not fit has its sentence.

For agent.toml and scenarios alike. A fault names file, table, key and value, and its hint says what would fit. No value
is converted and none is guessed; what one table cannot know of another is for the caller to check.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.config_values import REQUIRED, Bad, Parse
from mtls.errors import ConfigFault, Fault
from mtls.keystore import read_limited

MAX_VALUE_SHOWN = 60

Keys = Mapping[str, tuple[Parse, Any]]  # name -> (parser of the value, default); REQUIRED for none


def document(path: Path, max_bytes: int, hint: str) -> dict[str, Any]:
    """The tables of a file; ConfigFault when it cannot be read, is larger, or is no TOML."""
    try:
        return tomllib.loads(read_limited(path, max_bytes).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigFault(f"{path} is no TOML: {error}", hint=hint) from error


def values(path: Path, where: str, table: Any, keys: Keys, hint: str) -> dict[str, Any]:
    """The values of one table, each parsed, with the defaults of those that are not there."""
    if not isinstance(table, dict):
        raise ConfigFault(f"{path}: {where} is no table", hint=hint)
    for key in table:
        if key not in keys:
            raise ConfigFault(f"{path}: {where} has no key {key!a}", hint=f"known are: {', '.join(keys)}")
    found = {}
    for key, (parse, default) in keys.items():
        if key not in table and default is REQUIRED:
            raise ConfigFault(f"{path}: {where} lacks the key {key}", hint=hint)
        try:
            found[key] = parse(table[key], path.parent) if key in table else default
        except Bad as error:
            raise wrong(path, where, key, table[key], str(error)) from None
        except Fault as fault:
            raise ConfigFault(f"{path}: {where} {key}: {fault}", hint=fault.hint) from fault
    return found


def wrong(path: Path, where: str, key: str, value: Any, words: str) -> ConfigFault:
    """A value that does not fit; `words` say what would."""
    shown = ascii(value)
    shown = shown if len(shown) <= MAX_VALUE_SHOWN else f"{shown[:MAX_VALUE_SHOWN]}..."
    return ConfigFault(f"{path}: {where} {key} = {shown} is wrong", hint=f"{key} takes {words}")
