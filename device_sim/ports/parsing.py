"""Readings out of frames: JSON, CSV, NMEA 0183 and raw. Pure: a frame goes in, a `Reading` or None comes out.

A parser judges a frame whole: what does not fit is no reading, never half of one. The payload that is published is
the frame itself for JSON, NMEA and raw, and a JSON object for CSV. A reading may have a kind (a JSON field, a CSV
column, the NMEA sentence), which chooses its topic. A kind is a device's word and goes into a topic only if it is a
plain name: letters, digits, `-` and `_`, at most 32.
"""

import json
import re
from collections.abc import Callable
from csv import Error, reader
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MAX_NMEA_BYTES = 256  # NMEA 0183 says 82; receivers with many digits exceed it
_NMEA = re.compile(rb"[$!]([A-Z0-9]{3,10})(?:,([\x20-\x7e]*))?\*([0-9A-Fa-f]{2})")
_KIND = re.compile(r"[A-Za-z0-9_-]{1,32}")
_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?")


class Format(StrEnum):
    """What a port's frames are."""

    JSON = "json"
    CSV = "csv"
    NMEA = "nmea"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class Reading:
    """A payload to publish, and the kind that chooses its topic; "" when it has none."""

    payload: bytes
    kind: str = ""


Parser = Callable[[bytes], Reading | None]


def make_parser(form: Format, *, columns: tuple[str, ...] = (), kind: str = "") -> Parser:
    """The parser of a port; `columns` names CSV's fields, `kind` the field that holds a reading's kind."""
    if form is Format.JSON:
        return lambda frame: parse_json(frame, kind)
    if form is Format.CSV:
        return lambda frame: parse_csv(frame, columns, kind)
    return parse_nmea if form is Format.NMEA else parse_raw


def parse_raw(frame: bytes) -> Reading | None:
    """Any frame, byte for byte."""
    return Reading(frame) if frame else None


def parse_json(frame: bytes, kind: str = "") -> Reading | None:
    """A JSON object, published as it was written; RFC 8259 has no NaN and no Infinity."""
    try:
        value = json.loads(frame.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return _named(frame, value, kind) if isinstance(value, dict) else None


def parse_csv(frame: bytes, columns: tuple[str, ...], kind: str = "") -> Reading | None:
    """One record of exactly these columns (RFC 4180 quoting), as a JSON object; what looks like a number is one."""
    try:
        text = frame.decode("utf-8")
        rows = list(reader([text], strict=True)) if all(c == "\t" or c.isprintable() for c in text) else []
    except (UnicodeDecodeError, Error):
        return None
    if len(rows) != 1 or len(rows[0]) != len(columns):
        return None
    # The header that some devices print at each boot is no reading.
    if tuple(field.strip() for field in rows[0]) == columns:
        return None
    value = {name: _value(field.strip()) for name, field in zip(columns, rows[0], strict=True)}
    payload = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return _named(payload, value, kind)


def parse_nmea(frame: bytes) -> Reading | None:
    """A sentence with a right checksum; its kind is the formatter (`GGA` of `$GPGGA`), or a whole proprietary one.

    A sentence without a checksum is refused: the standard makes it optional for some, and noise has none.
    """
    found = _NMEA.fullmatch(frame) if len(frame) <= MAX_NMEA_BYTES else None
    if found is None:
        return None
    checksum = 0
    for byte in frame[1:-3]:
        checksum ^= byte
    if checksum != int(found[3], 16):
        return None
    address = found[1].decode("ascii")
    return Reading(frame, address if address.startswith("P") else address[-3:])


def _named(payload: bytes, value: dict[str, Any], kind: str) -> Reading | None:
    if not kind:
        return Reading(payload)
    name = value.get(kind)
    return Reading(payload, name) if isinstance(name, str) and _KIND.fullmatch(name) else None


def _value(field: str) -> str | int | float | None:
    number = _NUMBER.fullmatch(field)
    if number is None:
        return field or None
    return float(field) if number[2] else int(field)


def _refuse(constant: str) -> None:
    raise ValueError(constant)
