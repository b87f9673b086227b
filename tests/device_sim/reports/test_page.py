"""A page stands alone and is nobody else's: escaped throughout, no script, nothing fetched, bounded."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.reports.junit import Case, Suite, document
from device_sim.reports.markup import LONGEST_TEXT, element, join, text
from device_sim.reports.page import MAX_ROWS, Row, page, table
from tests.device_sim.reports.judge import judged

HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</style><b>",
    "&lt;",
    "a\x00b\x1b[2J",
    "\u202e",
)


@pytest.mark.parametrize("words", HOSTILE)
def test_what_came_from_outside_is_text(words: str) -> None:
    """In the title, in an element, in an attribute and in a table: the tags are those of the page alone."""
    table_of = table([words], [Row((words,), is_bad=True)])
    judge = judged(page(words, element("p", words, title=words), words, table_of))
    expected = judged(page("x", element("p", "x", title="x"), "x", table(["x"], [Row(("x",), is_bad=True)])))
    assert judge.tags == expected.tags
    assert judge.faults == []


@given(st.text(max_size=600))
def test_any_text_makes_a_page_that_parses(words: str) -> None:
    """Whatever the characters, HTML and XML stay whole, and a text is cut at its limit."""
    assert len(ET.fromstring(element("p", words, title=words)).text or "") <= LONGEST_TEXT  # noqa: S314
    ET.fromstring(document([Suite(words, (Case(words, words, words, words),))]).encode())  # noqa: S314


def test_markup_goes_in_as_it_is_and_only_markup() -> None:
    """The twin of escaping: elements nest."""
    assert element("p", element("b", "<"), "&") == "<p><b>&lt;</b>&amp;</p>"
    assert join("<", element("i", 1.5)) == "&lt;<i>1.5</i>"
    assert text(text("<")) == "&lt;"


def test_the_policy_allows_this_style_and_nothing_else() -> None:
    """The hash in the policy is that of the style sheet in the page; everything else is forbidden."""
    whole = page("x")
    style = re.search(r"<style>(.*?)</style>", whole, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert judged(whole).policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_a_long_table_is_cut_and_says_so() -> None:
    """A page stays small, whatever a run was."""
    rows = [Row((str(number),)) for number in range(MAX_ROWS + 7)]
    judge = judged(page("x", table(["n"], rows)))
    assert judge.tags.count("tr") == MAX_ROWS + 1
    assert "and 7 more that are not shown" in judge.text
    assert "not shown" not in judged(page("x", table(["n"], rows[:MAX_ROWS]))).text


def test_one_suite_is_the_root_and_several_stand_in_one() -> None:
    """As CI servers read it: counts of tests and failures, what was wanted and what was seen."""
    good, bad = Case("c", "good"), Case("c", "bad", wanted="0", seen="7")
    one = ET.fromstring(document([Suite("a", (good, bad), 1.5)]).encode())  # noqa: S314
    assert (one.tag, one.get("tests"), one.get("failures"), one.get("time")) == ("testsuite", "2", "1", "1.500")
    assert [(f.get("message"), f.text) for f in one.iter("failure")] == [("7", "must: 0")]
    two = ET.fromstring(document([Suite("a", (good, bad)), Suite("b", (good,))]).encode())  # noqa: S314
    assert (two.tag, two.get("tests"), two.get("failures")) == ("testsuites", "3", "1")
    assert [suite.get("name") for suite in two] == ["a", "b"]
