"""Text of peers made safe, faults as people read them."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtls.errors import ConfigFault, Fault
from mtls.terminal import print_fault, sanitise


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("press-07", "press-07"),
        ("Grüße", "Grüße"),
        ("a\nerror: fake", "a\\nerror: fake"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\x00", "\\x00"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("\u200b\ufeff", "\\u200b\\ufeff"),
        ("\x85\u2028", "\\x85\\u2028"),
        ("\ud800", "\\ud800"),
        ("back\\n", "back\\\\n"),
    ],
    ids=["plain", "umlauts", "newline", "escape", "nul", "bidi", "invisible", "separators", "surrogate", "backslash"],
)
def test_what_steers_a_terminal_is_escaped(text: str, safe: str) -> None:
    """Control characters, direction marks and invisible ones show as what they are; letters stay."""
    assert sanitise(text) == safe


def test_long_text_is_cut_with_a_mark() -> None:
    """A peer's megabyte does not fill a log."""
    assert sanitise("x" * 5, 5) == "xxxxx"
    assert sanitise("x" * 1_000_000, 5) == "xxxx…"
    assert sanitise("\x00" * 3, 5) == "\\x00…"


@given(st.text(), st.integers(2, 50))
def test_any_text_becomes_one_printable_line_within_the_limit(text: str, limit: int) -> None:
    """Whatever a peer sends, one line of at most `limit` printable characters comes out."""
    safe = sanitise(text, limit)
    assert len(safe) <= limit
    assert safe.isprintable()


def test_a_fault_prints_error_and_hint_and_gives_its_exit_code() -> None:
    """The one form in which every program reports a fault."""
    out = io.StringIO()
    assert print_fault(ConfigFault("x.toml: unknown key", hint="remove it"), out) == 78
    assert out.getvalue() == "error: x.toml: unknown key\nhint: remove it\n"


def test_a_fault_without_hint_prints_no_empty_one(capsys: pytest.CaptureFixture[str]) -> None:
    """And the place is standard error."""
    assert print_fault(Fault("broken")) == 1
    assert capsys.readouterr() == ("", "error: broken\n")
