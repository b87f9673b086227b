"""Readings out of frames: each format takes its own, and refuses whole what does not fit."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.ports.parsing import Format, Reading, make_parser, parse_csv, parse_json, parse_nmea, parse_raw

GGA = b"$GPGGA,092750.000,5321.6802,N,00630.3372,W,1,8,1.03,61.7,M,55.2,M,,*76"  # of the gpsd project's examples
COLUMNS = ("t", "h", "room")


def test_json_is_published_as_it_was_written() -> None:
    """Byte for byte, with the kind from the field that was named."""
    frame = b'{ "type":"climate", "t":21.50 }'
    assert parse_json(frame) == Reading(frame)
    assert parse_json(frame, "type") == Reading(frame, "climate")


@pytest.mark.parametrize(
    "frame",
    [b"[1]", b"21.5", b'{"t":', b'{"t":NaN}', b'{"t":Infinity}', b'{"t":"\xff"}', b"", b"[" * 5000],
    ids=["list", "number", "half", "nan", "infinity", "latin1", "empty", "deep"],
)
def test_what_is_no_json_object_is_refused(frame: bytes) -> None:
    """The twin; NaN is no JSON either."""
    assert parse_json(frame) is None


@pytest.mark.parametrize("kind", ["a/b", "+", "#", "", "x" * 33, "$SYS", "{id}", 7, None])
def test_a_device_cannot_choose_its_topic_by_its_kind(kind: object) -> None:
    """A kind with anything but a plain name in it is no reading."""
    assert parse_json(json.dumps({"type": kind}).encode(), "type") is None
    assert parse_json(b"{}", "type") is None


def test_csv_becomes_an_object() -> None:
    """Numbers are numbers, an empty field is null, quotes are RFC 4180's, leading zeros and text stay text."""
    reading = parse_csv(b'-21.5, 007,"a ""b"", c"', COLUMNS)
    assert reading is not None
    assert json.loads(reading.payload) == {"t": -21.5, "h": "007", "room": 'a "b", c'}
    reading = parse_csv(b"3,,hall", COLUMNS, "room")
    assert reading == Reading(b'{"t":3,"h":null,"room":"hall"}', "hall")


@pytest.mark.parametrize("frame", [b"1,2", b"1,2,3,4", b"t,h,room", b'1,2,"x', b"1,2,\x00", b"1,2,\xff", b""])
def test_csv_of_another_shape_is_refused(frame: bytes) -> None:
    """Too few, too many, the header, an open quote, bytes that are no text."""
    assert parse_csv(frame, COLUMNS) is None


def test_nmea_with_a_right_checksum_is_taken() -> None:
    """The sentence as it was, its formatter as kind; a proprietary sentence is its whole address."""
    assert parse_nmea(GGA) == Reading(GGA, "GGA")
    assert parse_nmea(b"$PMTK001,604,3*32") == Reading(b"$PMTK001,604,3*32", "PMTK001")


def test_every_changed_character_of_nmea_is_refused() -> None:
    """The twin: the checksum finds each single change, and a sentence without one is none."""
    for at in range(len(GGA)):
        for other in (GGA[at] ^ 1, GGA[at] ^ 4, 0x0A):
            assert parse_nmea(GGA[:at] + bytes((other,)) + GGA[at + 1 :]) is None
    assert parse_nmea(GGA[:-3]) is None
    assert parse_nmea(b"$GPTXT," + b"x" * 300 + b"*00") is None


def test_raw_is_anything() -> None:
    """Byte for byte; nothing is no reading."""
    assert parse_raw(b"\0\xff") == Reading(b"\0\xff")
    assert parse_raw(b"") is None


@given(st.binary(max_size=200), st.sampled_from(Format))
def test_no_bytes_crash_a_parser(frame: bytes, form: Format) -> None:
    """A reading or None, whatever comes."""
    reading = make_parser(form, columns=COLUMNS, kind="room")(frame)
    assert reading is None or isinstance(reading, Reading)
