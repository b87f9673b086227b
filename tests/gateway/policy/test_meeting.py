"""Where rules meet: exact for topics, by example for texts and ids."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.globs import parse_glob
from gateway.policy.meeting import (
    MAX_TEXT,
    MAX_VISITS,
    common_texts,
    common_topic,
    have_no_common_text,
    may_contain,
    pattern_examples,
)
from gateway.policy.topics import parse_topic
from mtls.identity import DeviceId
from tests.gateway.policy.strategies import TOPICS, filter_levels, matches_by_definition
from tests.gateway.policy.test_globs import patterns


@given(st.lists(filter_levels, min_size=1, max_size=3), st.lists(filter_levels, max_size=3))
def test_a_common_topic_is_one_and_is_found_when_there_is_one(
    required: list[tuple[str, ...]], forbidden: list[tuple[str, ...]]
) -> None:
    """Judged by the definition of matching, over a world with a level that stands in no filter."""

    def fits(topic: tuple[str, ...]) -> bool:
        return all(matches_by_definition(f, topic) for f in required) and not any(
            matches_by_definition(f, topic) for f in forbidden
        )

    topic = common_topic(required, forbidden)
    if topic is not None:
        assert parse_topic("/".join(topic)) == topic
        assert fits(topic)
    else:
        assert [topic for topic in TOPICS if fits(topic)] == []


def test_a_common_topic_goes_deeper_than_every_deny() -> None:
    """The spare level stands in no filter, and more levels are tried than any filter has."""
    assert common_topic([("a", "#")], [("a",), ("a", "+"), ("a", "+", "+")]) == ("a", "any", "any", "any")
    assert common_topic([("+",)], [("any",), ("any0",)]) == ("any1",)
    assert common_topic([("any",)], []) == ("any",)
    assert common_topic([("a", "#")], [("a", "#")]) is None
    assert common_topic([("", "#")], []) == ("", "any")
    assert common_topic([("a", "+"), ("+", "b")], []) == ("a", "b")


def test_common_texts_match_all_globs() -> None:
    """Short ones first, no more than asked for, only those that are allowed."""
    globs = [parse_glob("a*"), parse_glob("*z")]
    assert common_texts(globs, lambda _: True, 1) == ["az"]
    assert len(common_texts(globs, lambda _: True, 3)) == 3
    assert "b" not in common_texts([parse_glob("?")], lambda text: text != "b", 9)
    assert common_texts([parse_glob("a"), parse_glob("b")], lambda _: True, 1) == []
    assert common_texts([parse_glob("[0-9]*"), parse_glob("[5-7]")], lambda _: True, 1) == ["5"]
    assert common_texts([parse_glob("")], lambda _: True, 1) == []
    assert common_texts([parse_glob("*")], lambda _: False, 1) == []
    assert common_texts([parse_glob("x" * MAX_TEXT)], lambda _: True, 1) == ["x" * MAX_TEXT]
    assert common_texts([parse_glob("x" * (MAX_TEXT + 1))], lambda _: True, 1) == []
    longest = "x" * (MAX_TEXT - 1)
    assert common_texts([parse_glob(longest + "?")], lambda text: text.endswith("b"), 1) == [longest + "b"]


def test_the_texts_tried_are_as_long_as_an_id_and_a_bounded_number() -> None:
    """The longest id is within reach, and texts that no glob tells apart are tried so often and no more."""
    assert DeviceId("x" * MAX_TEXT).value
    with pytest.raises(ValueError, match="64"):
        DeviceId("x" * (MAX_TEXT + 1))
    assert len(common_texts([parse_glob("*")], lambda _: True, 99)) == MAX_VISITS - 1


@given(st.lists(patterns, min_size=1, max_size=3), st.text(alphabet="ab-c]", min_size=1, max_size=4))
def test_common_texts_are_found_when_there_are_some(rows: list[str], text: str) -> None:
    """A text of the small alphabet that all match means that some text is found, and what is found matches all."""
    globs = [parse_glob(row) for row in rows]
    found = common_texts(globs, lambda _: True, 2)
    assert all(glob.matches(each) for glob in globs for each in found)
    if all(glob.matches(text) for glob in globs):
        assert found


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$",
        r"^dev-[0-9]{6}$",
        r"(sensor|gw)-\d+",
        r"line[a-c]-\w{2,4}",
        r"a.c",
        r"(?:x|y)[^z]z?",
        r"[ab]*?c+",
        r"a|b|c",
        r"[ab]*+c",
    ],
)
def test_a_pattern_has_examples(pattern: str) -> None:
    """Texts that the pattern itself accepts, and several of them."""
    found = pattern_examples(re.compile(pattern), 4)
    assert len(found) >= 2
    assert all(re.fullmatch(pattern, text) for text in found)
    assert len(found) <= 4


@pytest.mark.parametrize(
    ("pattern", "count", "expected"),
    [
        (r"[a-fX]", 5, ["a", "b", "c", "d", "X"]),
        (r"[a-b][xyz]", 4, ["ax", "by", "az", "bx"]),
        (r"[\dX]", 4, ["0", "1", "X"]),
        (r"\w", 4, ["a", "b", "1"]),
        (r"[\Sa]", 4, ["a"]),
        (r"\S+", 4, []),
        (r"a{2,3}", 4, ["aa"]),
        (r"a*", 4, ["", "a"]),
        (r"a*+", 4, ["", "a"]),
        (r"(?x) a b  # c", 4, ["ab"]),
        (r"(?=p)[abcdefghijklmnopq]", 4, ["p"]),
        (r"(?=q)[abcdefghijklmnopq]", 4, []),
    ],
)
def test_examples_take_every_choice_in_turn(pattern: str, count: int, expected: list[str]) -> None:
    """Four characters of a range, two of the digits; repeats once or not at all; four tries for a text asked for."""
    assert pattern_examples(re.compile(pattern), count) == expected


def test_the_flags_of_a_pattern_count() -> None:
    """A pattern compiled as verbose is read as verbose."""
    spaced = re.compile("a b", re.VERBOSE)
    assert pattern_examples(spaced, 4) == ["ab"]
    assert not may_contain(spaced, " ")


def test_a_pattern_without_examples_has_none() -> None:
    """Look-arounds and back-references are not made up; what does not match is not offered."""
    assert pattern_examples(re.compile(r"(?=x)y"), 4) == []
    assert pattern_examples(re.compile(r"(?!)"), 4) == []


@pytest.mark.parametrize(
    ("pattern", "can"),
    [
        (r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$", True),
        (r"^[a-z0-9][a-z0-9._-]{0,63}$", False),
        (r"[a-z]+:[0-9]", True),
        (r"a|(b|c:)", True),
        (r"a|(b|c)", False),
        (r"(?:ab)*?x\d\w", False),
        (r"a.", True),
        (r"[^a]", True),
        (r"[^:]", True),
        (r"\W", True),
        (r"\S", True),
        (r"[0-;]", True),
        (r"[:-Z]", True),
        (r"[0-:]", True),
        (r"[^ab]", True),
        (r"[\s]", False),
        (r"[\W]", True),
        (r"[a-c]*+", False),
        (r"[0-9]", False),
        (r"(a)\1", False),
        (r"(?i)a", True),
        (r"(?=:)a", True),
    ],
)
def test_a_pattern_tells_which_characters_it_never_takes(pattern: str, can: bool) -> None:
    """When in doubt it may."""
    assert may_contain(re.compile(pattern), ":") is can


@pytest.mark.parametrize(("pattern", "character"), [(r"\d", "5"), (r"\w", "x"), (r"\s", " ")])
def test_a_class_holds_its_own_characters_only(pattern: str, character: str) -> None:
    """Each shorthand may hold a character of its kind, and never a dash."""
    assert may_contain(re.compile(pattern), character)
    assert not may_contain(re.compile(pattern), "-")


def test_no_common_text_is_said_only_when_it_is_sure() -> None:
    """Globs that exclude each other; sets that are negated or texts too long to search leave a doubt."""

    def sure(*texts: str) -> bool:
        return have_no_common_text([parse_glob(text) for text in texts])

    assert sure("a", "b")
    assert sure("a*", "b*")
    assert sure("[a-c]", "[d-f]")
    assert not sure("[a-d]", "[d-f]")
    assert not sure("a*", "*b")
    assert not sure("[!a]", "a")
    assert not sure("x" * 40 + "a", "x" * 40 + "b")
    assert sure("x" * 31 + "a", "x" * 31 + "b")


@given(st.lists(patterns, min_size=1, max_size=3), st.text(alphabet="ab-c]", min_size=1, max_size=5))
def test_what_has_a_common_text_is_never_said_to_have_none(rows: list[str], text: str) -> None:
    """Any text that all match refutes it."""
    globs = [parse_glob(row) for row in rows]
    if all(glob.matches(text) for glob in globs):
        assert not have_no_common_text(globs)
