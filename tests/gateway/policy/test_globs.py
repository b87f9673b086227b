"""Globs: what they match, against an independent matcher, and what the index finds for them."""

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.globs import CharSet, FactIndex, Glob, Token, Wild, is_named, literally, parse_glob, sample

texts = st.text(alphabet="ab-c]", max_size=6)
patterns = st.lists(
    st.sampled_from(("a", "b", "-", "c", "*", "?", "[ab]", "[!a]", "[a-c]", "[]c]", "[!]b]", "[c-]")), max_size=6
).map("".join)


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("a-*", ["a-", "a-1", "a-1-2"], ["a", "b-1", "A-1", "xa-1", ""]),
        ("*-gw", ["-gw", "1-gw", "a-gw-gw"], ["gw", "1-gw ", "1-gwx"]),
        ("a?c", ["abc", "a?c"], ["ac", "abbc"]),
        ("[ab]-*", ["a-", "b-1"], ["c-1", "ab-1", "-1"]),
        ("[!ab]x", ["cx", "!x"], ["ax", "bx", "x"]),
        ("[a-c0-2]", ["a", "c", "1"], ["d", "3", "-"]),
        ("[a-]", ["a", "-"], ["b"]),
        ("[]]", ["]"], ["["]),
        ("*", ["", "x", "any thing"], []),
        ("*a*b*", ["ab", "xaxbx", "aab"], ["ba", "a", "b"]),
        ("exact", ["exact"], ["Exact", "exac", "exactx"]),
        ("", [""], ["x"]),
        ("**", ["", "x"], []),
        ("a.c", ["a.c"], ["abc"]),
        ("{id}", ["{id}"], ["id"]),
    ],
)
def test_a_glob_matches_whole_texts(pattern: str, fits: list[str], fits_not: list[str]) -> None:
    """Case matters, the whole text counts, and nothing but `* ? [` is special."""
    glob = parse_glob(pattern)
    assert [text for text in fits if not glob.matches(text)] == []
    assert [text for text in fits_not if glob.matches(text)] == []


@given(patterns, texts)
def test_a_glob_matches_as_the_standard_library_says(pattern: str, text: str) -> None:
    """The judge is fnmatch, which goes through regular expressions."""
    assert parse_glob(pattern).matches(text) is fnmatch.fnmatchcase(text, pattern)


@pytest.mark.parametrize("pattern", ["[", "a[", "[]", "[!]", "[!", "x[a-b"])
def test_an_open_set_is_refused(pattern: str) -> None:
    """A slip in a glob is no glob that matches something else."""
    with pytest.raises(ValueError, match="does not close"):
        parse_glob(pattern)


def test_an_empty_range_is_refused() -> None:
    """A range that is written backwards would match nothing; a range of one is one."""
    with pytest.raises(ValueError, match="'b-a'"):
        parse_glob("x[b-a]")
    assert parse_glob("[b-b]").matches("b")


def test_tokens_are_parts_of_a_client_identifier_glob() -> None:
    """`{id}` stands for the value's characters, wherever it is."""
    glob = parse_glob("{id}:*", ("id",))
    assert glob.elements == (Token("id"), ":", Wild.MANY)
    assert glob.tokens == ("id",)
    bound = glob.bind({"id": "a*"})
    assert bound is not None
    assert bound.matches("a*:x")
    assert not bound.matches("ab:x")
    assert not glob.matches("a*:x")
    assert not glob.matches("{id}:x")
    assert bound.text == "{id}:*"


def test_a_token_without_a_value_makes_no_glob() -> None:
    """A glob that cannot be filled in allows nothing."""
    assert parse_glob("{attr.site}", ("attr.",)).bind({"id": "a"}) is None
    assert parse_glob("x*").bind({}) == parse_glob("x*")


@pytest.mark.parametrize("pattern", ["{nope}", "{id", "id}", "{}", "{attr.}", "x{id", "}{id}", "{{id}}", "{ id}"])
def test_a_brace_that_is_no_token_is_refused(pattern: str) -> None:
    """A misspelled token is not taken literally."""
    with pytest.raises(ValueError, match="no known token"):
        parse_glob(pattern, ("id", "attr."))


def test_a_known_name_with_a_dot_at_its_end_is_open() -> None:
    """`attr.` allows every attribute but not the empty one, and no other name is open."""
    assert is_named("id", ("id", "attr."))
    assert is_named("attr.site", ("id", "attr."))
    assert not is_named("attr.", ("id", "attr."))
    assert not is_named("ids", ("id", "attr."))
    assert not is_named("attr", ("id", "attr."))


def test_matching_is_not_slowed_down_by_many_stars() -> None:
    """A glob that makes backtracking matchers explode is answered at once (the test would not end)."""
    assert not parse_glob("*a" * 40 + "b").matches("a" * 1024)
    assert parse_glob("*a" * 40).matches("a" * 1024)
    assert not parse_glob("*" + "a" * 64 + "b").matches("a" * 65_535)


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("a-1", [(("=", "a-1"),)]),
        ("a-*", [(("^", "a-"),)]),
        ("*-gw", [(("$", "-gw"),)]),
        ("a*z", [(("^", "a"),), (("$", "z"),)]),
        ("[ab]-*", [(("^", "a-"), ("^", "b-"))]),
        ("[ab]1", [(("=", "a1"), ("=", "b1"))]),
        ("[aa]", [(("=", "a"),)]),
        ("*", []),
        ("?x?", []),
        ("[!a]x", [(("$", "x"),)]),
        ("x[0-9a-z]y", [(("^", "x"),), (("$", "y"),)]),
        ("", [(("=", ""),)]),
        ("*[ab]", []),
    ],
)
def test_the_literal_parts_of_a_glob(pattern: str, parts: list[tuple[tuple[str, str], ...]]) -> None:
    """Where the index can file it; an empty list where only trying helps."""
    assert list(parse_glob(pattern).literal_parts()) == parts


def test_sets_are_spelled_out_up_to_a_bound() -> None:
    """16 characters in a set and 64 texts in all; what goes beyond ends the literal part."""
    assert len(next(parse_glob("[a-p]*").literal_parts())) == 16
    assert list(parse_glob("[a-q]*").literal_parts()) == []
    assert len(next(parse_glob("[a-h][a-h]*").literal_parts())) == 64
    assert len(next(parse_glob("[a-h][a-h][ab]*").literal_parts())) == 64
    assert CharSet((("a", "p"),)).members() == tuple("abcdefghijklmnop")
    assert CharSet((("a", "b"),), negated=True).members() is None


@given(patterns, texts)
def test_what_a_glob_matches_has_its_literal_parts(pattern: str, text: str) -> None:
    """Each way of filing keeps the promise: one of its parts is there."""
    glob = parse_glob(pattern)
    if glob.matches(text):
        for way in glob.literal_parts():
            assert any(
                {"=": text == part, "^": text.startswith(part), "$": text.endswith(part)}[kind] for kind, part in way
            )


@given(
    st.lists(st.dictionaries(st.sampled_from(("id", "ou")), patterns, min_size=1), max_size=8), texts, st.lists(texts)
)
def test_the_index_misses_no_entry(rows: list[dict[str, str]], name: str, units: list[str]) -> None:
    """Whatever matches by trying all is among the candidates, in the same order, once."""
    entries = [({fact: parse_glob(text) for fact, text in row.items()}, number) for number, row in enumerate(rows)]
    facts = {"id": (name,), "ou": tuple(units)}
    found = FactIndex(entries).candidates(facts)
    assert found == sorted(set(found))
    expected = [
        number
        for globs, number in entries
        if all(any(glob.matches(value) for value in facts[fact]) for fact, glob in globs.items())
    ]
    assert [number for number in expected if number not in found] == []


def index_of(*rows: dict[str, str]) -> FactIndex[int]:
    return FactIndex(({fact: parse_glob(text) for fact, text in row.items()}, n) for n, row in enumerate(rows))


def test_the_index_files_under_the_least_crowded_part() -> None:
    """A part that all share is no way to tell them apart; which part that is depends on the policy."""
    by_id = index_of(*({"issuer": "CA", "id": f"d{n}"} for n in range(1000)))
    assert by_id.candidates({"id": ("d7",), "issuer": ("CA",)}) == [7]
    by_issuer = index_of(*({"issuer": f"CA {n}", "id": "d*"} for n in range(1000)))
    assert by_issuer.candidates({"id": ("d7",), "issuer": ("CA 5",)}) == [5]
    by_prefix = index_of(*({"id": f"line{n}-*"} for n in range(1000)))
    assert by_prefix.candidates({"id": ("line12-7",)}) == [12]
    by_suffix = index_of(*({"id": f"*-{n}"} for n in range(1000)))
    assert by_suffix.candidates({"id": ("x-12",)}) == [12]


def test_short_values_have_no_long_parts() -> None:
    """A value shorter than the parts of the index is looked up without harm."""
    index = index_of({"id": "longer-*"}, {"id": "*-longer"}, {"id": "*"})
    assert index.candidates({"id": ("l",)}) == [2]
    assert index.candidates({"id": ("longer-",)}) == [0, 2]
    assert index.candidates({"id": ("-longer",)}) == [1, 2]
    assert index.candidates({}) == [2]


@given(patterns)
def test_a_sample_is_matched(pattern: str) -> None:
    """A made-up text for a glob is one that it matches."""
    assert parse_glob(pattern).matches(sample(parse_glob(pattern)))


def test_a_literal_glob_matches_its_text_only() -> None:
    """Nothing in the text is special."""
    glob: Glob = literally("a*[?]")
    assert glob.matches("a*[?]")
    assert not glob.matches("ab[?]")
    assert re.escape(glob.text) != glob.text
