"""Values of gateway.toml: one parser per kind, from what TOML gives to what the gateway works with.

A parser takes the value and the configuration's folder, which relative paths are relative to, and raises `Bad` with the
words for what would fit. No parser converts: a true is no 1, a 1 is no path.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.policy.topics import parse_filter
from mtls.keystore import credential
from mtls.revocation import StaleRule

REQUIRED = object()  # stands for the default of a key that has none


class Bad(Exception):
    """A value that does not fit; the message says what would."""


Parse = Callable[[Any, Path], Any]


def text(value: Any, folder: Path) -> str:
    """A string."""
    if not isinstance(value, str):
        raise Bad("a string")
    return value


def file(value: Any, folder: Path) -> Path:
    """A path."""
    if not isinstance(value, str) or not value:
        raise Bad("a path")
    return folder / value


def optional_file(value: Any, folder: Path) -> Path | None:
    """A path, or nothing for an empty string."""
    return None if value == "" else file(value, folder)


def private_file(value: Any, folder: Path) -> Path:
    """The path of a private key; in a unit that was given a credential of the file's name, the credential's."""
    return credential(file(value, folder))


def audit_file(value: Any, folder: Path) -> Path | None:
    """A path, or nothing for `-`: standard output."""
    return None if value == "-" else file(value, folder)


def whole(low: int, high: int) -> Parse:
    """A whole number within a range."""

    def parse(value: Any, folder: Path) -> int:
        if type(value) is not int or not low <= value <= high:
            raise Bad(f"a whole number from {low} to {high}")
        return value

    return parse


def seconds(low: float, high: float) -> Parse:
    """Seconds, whole or not, within a range."""

    def parse(value: Any, folder: Path) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise Bad(f"seconds from {low:g} to {high:g}")
        return float(value)

    return parse


def truth(value: Any, folder: Path) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise Bad("true or false")
    return value


def one_of(*choices: str) -> Parse:
    """One of some words."""

    def parse(value: Any, folder: Path) -> str:
        if value not in choices:
            raise Bad("one of " + ", ".join(choices))
        return str(value)

    return parse


def stale(value: Any, folder: Path) -> StaleRule:
    """What a CRL past its nextUpdate means."""
    try:
        return StaleRule.parse(text(value, folder))
    except ValueError as error:
        raise Bad('"deny" or "grace <hours>h"') from error


def url(value: Any, folder: Path) -> str:
    """A URL that CRLs are fetched from, or an empty string."""
    found = text(value, folder)
    if found and not found.startswith(("http://", "https://", "file://")):
        raise Bad("an http://, https:// or file:// URL")
    return found


def binds(value: Any, folder: Path) -> tuple[tuple[str, int], ...]:
    """Addresses to listen on."""
    if not isinstance(value, list) or not value:
        raise Bad('a list of "address:port"')
    try:
        return tuple(address(item, folder) for item in value)
    except Bad as bad:
        raise Bad(f"a list of {bad}") from None


_BIND = re.compile(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})")


def address(value: Any, folder: Path) -> tuple[str, int]:
    """One address to listen on."""
    match = _BIND.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[3]) > 65535:
        raise Bad('"address:port", as in "0.0.0.0:8883" or "[::]:8883"')
    if match[1] is not None:
        try:
            ipaddress.IPv6Address(match[1])
        except ValueError:
            raise Bad('"[address]:port" with an IPv6 address between the brackets') from None
    return match[1] or match[2], int(match[3])


def loopback(value: Any, folder: Path) -> tuple[str, int] | None:
    """An address of this machine alone, or nothing for an empty string."""
    if value == "":
        return None
    host, port = address(value, folder)
    try:
        inside = ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise Bad("a loopback address, as in 127.0.0.1:9883 (there is no authentication)")
    return host, port


def time_source(value: Any, folder: Path) -> str:
    """Who vouches for the clock."""
    found = text(value, folder)
    if found not in ("auto", "clock") and "/" not in found:
        raise Bad('"auto", "clock" or the path of a file (with a slash)')
    return found


def topic_filters(value: Any, folder: Path) -> tuple[str, ...]:
    """Topic filters, each one well-formed."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Bad("a list of topic filters")
    for item in value:
        try:
            parse_filter(item)
        except ValueError as error:
            raise Bad(f"a list of topic filters: in {item!a} {error}") from None
    return tuple(value)


def part(value: Any, folder: Path) -> float:
    """A part of a whole."""
    if type(value) not in (int, float) or not 0.01 <= value <= 1:
        raise Bad("a part from 0.01 to 1")
    return float(value)
