"""Lines out of bytes: any split gives the same, nothing but a newline ends one, and limits hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.lines import Accept, LineAssembler

STREAM = b'one\r\ntwo\n\n\n{"a":1}\n!P1 {} *00000000\n\xff\xfe\nx\x1b[0m\n\xc3\xa4\ttab\nlast'


def test_lines_are_cut_at_newlines_and_judged() -> None:
    """CR is dropped, empty lines too; frames, bytes and escape sequences are counted, not published."""
    lines = LineAssembler(Accept.TEXT)
    assert lines.feed(STREAM) == [b"one", b"two", b'{"a":1}', "ä\ttab".encode()]
    assert lines.counts.skipped == 3
    assert lines.end() == [b"last"]
    assert lines.end() == []


def test_json_accepts_objects_only() -> None:
    """accept=json: log text, numbers and broken objects are left out."""
    lines = LineAssembler(Accept.JSON)
    assert lines.feed(b'boot\n{"a":1}\n5\n[1]\n{"a":\n' + b"[" * 5000 + b"\n") == [b'{"a":1}']
    assert lines.counts.skipped == 5


@given(st.lists(st.binary(max_size=30), max_size=8))
def test_any_split_gives_the_same_lines(pieces: list[bytes]) -> None:
    """Bytes by the piece and bytes at once are the same stream."""
    whole, split = (LineAssembler(Accept.TEXT, max_line=10) for _ in range(2))
    expected = whole.feed(b"".join(pieces)) + whole.end()
    found = [line for piece in pieces for line in split.feed(piece)] + split.end()
    assert found == expected
    assert split.counts == whole.counts


def test_the_half_line_after_opening_is_dropped() -> None:
    """The second half of a number is a wrong number."""
    lines = LineAssembler(Accept.TEXT, is_mid_line=True)
    assert lines.feed(b"3.5\n23.5\n") == [b"23.5"]


def test_what_a_break_cut_in_two_never_meets() -> None:
    """Half a line before an unplug and half a line after it are both dropped."""
    lines = LineAssembler(Accept.TEXT)
    assert lines.feed(b"whole\n12") == [b"whole"]
    lines.lost()
    assert lines.feed(b"34\nnext\n") == [b"next"]


@pytest.mark.parametrize("length", [9, 10, 11, 1000])
def test_an_over_long_line_is_dropped_up_to_its_newline(length: int) -> None:
    """The limit itself is allowed; beyond it the line is counted once and the next one is whole."""
    lines = LineAssembler(Accept.TEXT, max_line=10)
    found = [line for byte in b"a" * length + b"\nnext\n" for line in lines.feed(bytes([byte]))]
    assert found == ([b"a" * length, b"next"] if length <= 10 else [b"next"])
    assert lines.counts.over_long == (length > 10)


def test_a_flood_without_a_newline_is_not_kept() -> None:
    """Memory stays at the limit, whatever comes."""
    lines = LineAssembler(Accept.TEXT, max_line=100)
    for _ in range(1000):
        lines.feed(b"x" * 1000)
    assert len(lines._line) <= 101
    assert lines.counts.over_long == 1
