"""Lines of values in a TOML text: by a page with everything in it, and by texts made at random."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.toml_lines import Lines

PAGE = '''\
# a comment with [[role]] and = in it
version = 1

[identity]   # trailing
"quoted key" = 'it is "quoted"'
pattern = "a # no comment ] [ \\" = x"
other.deep.key = 3
  indented = true

[[role]]
name = """
[[role]]
name = "not a role"
"""
match = { id = "*", "attr.site" = "[x" }
publish = [
  "a/#",  # first
  # nothing here
  "b", "c",
  [
    "deep",
  ],
  { action = "x", topic = """two
lines""", last = 1 },
]
after = 1
[[role]]
# between
name = "second"
deny = [{ action = "publish", topic = "x" }, { action = "will" }]
deeper = [[[[["five levels"]]]]]
literal = \'\'\'
x = 1
\'\'\'
[role.limits]
rate = 20
[[ role . sub ]]
x = 1
[[role.sub]]
x = 2
[other."dotted.table"]
date = 2020-01-01T00:00:00Z
end = []
'''

EXPECTED = {
    ("version",): 2,
    ("identity",): 4,
    ("identity", "quoted key"): 5,
    ("identity", "pattern"): 6,
    ("identity", "other", "deep", "key"): 7,
    ("identity", "other"): 7,
    ("identity", "indented"): 8,
    ("role", 0): 10,
    ("role", 0, "name"): 11,
    ("role", 0, "match"): 15,
    ("role", 0, "match", "attr.site"): 15,
    ("role", 0, "publish"): 16,
    ("role", 0, "publish", 0): 17,
    ("role", 0, "publish", 1): 19,
    ("role", 0, "publish", 2): 19,
    ("role", 0, "publish", 3): 20,
    ("role", 0, "publish", 3, 0): 21,
    ("role", 0, "publish", 4): 23,
    ("role", 0, "publish", 4, "topic"): 23,
    ("role", 0, "publish", 4, "last"): 24,
    ("role", 0, "publish", 9): 16,
    ("role", 0, "after"): 26,
    ("role", 1): 27,
    ("role", 1, "name"): 29,
    ("role", 1, "deny"): 30,
    ("role", 1, "deny", 1, "action"): 30,
    ("role", 1, "deeper"): 31,
    ("role", 1, "literal"): 32,
    ("role", 1, "limits"): 35,
    ("role", 1, "limits", "rate"): 36,
    ("role", 1, "sub", 0): 37,
    ("role", 1, "sub", 0, "x"): 38,
    ("role", 1, "sub", 1): 39,
    ("role", 1, "sub", 1, "x"): 40,
    ("other", "dotted.table"): 41,
    ("other", "dotted.table", "date"): 42,
    ("other", "dotted.table", "end"): 43,
    ("nowhere",): 1,
    ("role", 7, "x"): 1,
}


@pytest.mark.parametrize("path", EXPECTED, ids=str)
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_every_value_has_its_line(path: tuple[str | int, ...], newline: str) -> None:
    """A page with comments, strings of all kinds, nested arrays and tables of all kinds."""
    tomllib.loads(PAGE)
    assert Lines(PAGE.replace("\n", newline)).of(path) == EXPECTED[path]


def test_a_text_without_a_last_line_end_is_read() -> None:
    """The last line counts like the others."""
    assert Lines("a = 1\nb = [1,\n2]").of(("b", 1)) == 3
    assert Lines("a = 1\n[t]").of(("t",)) == 2
    assert Lines("a = 1\nb = 2").of(("b",)) == 2
    assert Lines("").of(("a",)) == 1


@given(st.text(alphabet="a=[]{}\"'#\n., \\", max_size=30))
def test_no_text_breaks_the_scanner(text: str) -> None:
    """A text that is no TOML may give meaningless lines, but no exception and an end."""
    assert Lines(text).of(("a",)) >= 1


values = st.recursive(
    st.one_of(
        st.integers(0, 9).map(str),
        st.sampled_from(('"x"', "'#y'", '"]"', '"{"', '""', "''", "true", '"""a\nb"""', "'''\n[x]\n'''", '"\\""')),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(inner, max_size=3).map(lambda items: "[\n" + "".join(f"  {item}, # ]\n" for item in items) + "]"),
        inner.map(lambda item: f"{{ k = {item} }}"),
    ),
    max_leaves=5,
)


@given(st.lists(st.tuples(st.booleans(), values, st.sampled_from(("", "\n", "# c [\n", "   \n"))), max_size=8))
def test_a_value_stands_where_it_was_written(rows: list[tuple[bool, str, str]]) -> None:
    """Texts of tables and values of every shape: the line of each key is the line it was put on."""
    text, expected, role = "", {}, -1
    for number, (header, value, gap) in enumerate(rows):
        if header:
            role += 1
            expected["role", role] = text.count("\n") + 1
            text += "[[role]]\n"
        path: tuple[Any, ...] = ("role", role, f"k{number}") if role >= 0 else (f"k{number}",)
        text += gap
        expected[path] = text.count("\n") + 1
        text += f"k{number} = {value}\n"
    tomllib.loads(text)
    lines = Lines(text)
    assert {path: lines.of(path) for path in expected} == expected
