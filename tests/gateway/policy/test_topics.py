"""The algebra of topics: by the examples that bind, by brute force over a small world, and by properties."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given

from gateway.policy.topics import MAX_TOPIC_BYTES, covers, matches, overlap, parse_filter, parse_topic
from tests.gateway.policy.strategies import (
    FILTERS,
    TOPICS,
    filter_levels,
    matches_by_definition,
    topic_levels,
)

CASES = tomllib.loads((Path(__file__).parents[2] / "cases" / "filters.toml").read_text(encoding="utf-8"))

# How each filter divides the small world, as a bit per topic.
WORLD = {f: sum(matches_by_definition(f, t) << n for n, t in enumerate(TOPICS)) for f in FILTERS}


@pytest.mark.parametrize(("text", "topic", "expected"), CASES["matches"])
def test_a_filter_matches_as_in_the_examples(text: str, topic: str, expected: bool) -> None:
    """Every example of section 4.7 and of the case file."""
    assert matches(parse_filter(text), parse_topic(topic)) is expected


@pytest.mark.parametrize(("grant", "request_text", "expected"), CASES["covers"])
def test_a_grant_covers_as_in_the_examples(grant: str, request_text: str, expected: bool) -> None:
    """Every example of the case file."""
    assert covers(parse_filter(grant), parse_filter(request_text)) is expected


@pytest.mark.parametrize("text", CASES["invalid_filters"])
def test_what_is_no_filter_is_refused(text: str) -> None:
    """Wildcards that do not fill their level, `#` before the end, U+0000, nothing."""
    with pytest.raises(ValueError, match=r"\[MQTT-[\d., -]+\]$"):
        parse_filter(text)


@pytest.mark.parametrize("text", CASES["invalid_topic_names"])
def test_what_is_no_topic_name_is_refused(text: str) -> None:
    """Wildcards, U+0000, nothing."""
    with pytest.raises(ValueError, match=r"\[MQTT-[\d., -]+\]$"):
        parse_topic(text)


@pytest.mark.parametrize("parse", [parse_filter, parse_topic])
def test_a_topic_is_as_long_as_two_length_bytes_can_say(parse) -> None:  # type: ignore[no-untyped-def]
    """65,535 bytes of UTF-8 are a topic, one more is not, however few characters they are."""
    assert parse("a" * MAX_TOPIC_BYTES) == ("a" * 65_535,)
    assert parse("é" * 32_767) == ("é" * 32_767,)
    with pytest.raises(ValueError, match="65536 bytes, more than 65535"):
        parse("a" * 65_536)
    with pytest.raises(ValueError, match="65536 bytes"):
        parse("é" * 32_768)


@pytest.mark.parametrize("parse", [parse_filter, parse_topic])
def test_a_surrogate_is_refused_with_our_own_sentence(parse) -> None:  # type: ignore[no-untyped-def]
    """A text that UTF-8 cannot hold is no topic [MQTT-1.5.3-1]."""
    with pytest.raises(ValueError, match="surrogate"):
        parse("a/\ud800")


def test_levels_are_cut_at_every_slash() -> None:
    """Leading, trailing and doubled slashes make empty levels."""
    assert parse_topic("/a//b/") == ("", "a", "", "b", "")
    assert parse_filter("/+//#") == ("", "+", "", "#")


def test_matches_is_the_standard_on_the_whole_small_world() -> None:
    """Every filter against every topic."""
    for f in FILTERS:
        for t in TOPICS:
            assert matches(f, t) is matches_by_definition(f, t), (f, t)


def test_covers_is_exact_on_the_whole_small_world() -> None:
    """For every pair of filters: covered exactly when no topic of the request is outside the grant."""
    for g in FILTERS:
        for r in FILTERS:
            assert covers(g, r) is (WORLD[r] & ~WORLD[g] == 0), (g, r)


def test_overlap_is_exact_on_the_whole_small_world() -> None:
    """For every pair of filters: a witness that both match, or none because there is no common topic."""
    for a in FILTERS:
        for b in FILTERS:
            witness = overlap(a, b)
            if witness is None:
                assert WORLD[a] & WORLD[b] == 0, (a, b)
            else:
                assert parse_topic("/".join(witness)) == witness
                assert matches_by_definition(a, witness), (a, b, witness)
                assert matches_by_definition(b, witness), (a, b, witness)


@given(filter_levels, filter_levels, topic_levels)
def test_what_a_covered_filter_matches_its_cover_matches(
    g: tuple[str, ...], f: tuple[str, ...], t: tuple[str, ...]
) -> None:
    """covers(g, f) and matches(f, t) implies matches(g, t)."""
    if covers(g, f) and matches(f, t):
        assert matches(g, t)


@given(filter_levels, filter_levels, filter_levels)
def test_covering_is_an_order(a: tuple[str, ...], b: tuple[str, ...], c: tuple[str, ...]) -> None:
    """Every filter covers itself, and a cover of a cover is a cover."""
    assert covers(a, a)
    if covers(a, b) and covers(b, c):
        assert covers(a, c)


@given(filter_levels, filter_levels)
def test_overlap_does_not_depend_on_the_order(a: tuple[str, ...], b: tuple[str, ...]) -> None:
    """The same answer from both sides, and a covered filter overlaps its cover."""
    assert overlap(a, b) == overlap(b, a)
    if covers(a, b):
        assert overlap(a, b) is not None


def test_a_witness_names_its_free_levels() -> None:
    """A reader sees which levels may be anything, and only as many levels as are needed."""
    assert overlap(("devices", "+", "#"), ("devices", "+", "state")) == ("devices", "any", "state")
    assert overlap(("#",), ("#",)) == ("any",)
    assert overlap(("a", "#"), ("a", "#")) == ("a",)
    assert overlap(("", "#"), ("", "#")) == ("", "any")
