"""docs/mqtt-conformance.md is complete: it has every statement of MQTT 3.1.1, and each test that it names is real."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "mqtt-conformance.md"
STATUSES = ("shown", "deviation", "not applicable")
TEST_NAME = re.compile(r"`(tests/[\w/]+\.py::test_\w+)`")
DEVIATIONS = {"MQTT-3.1.3-5", "MQTT-3.1.2-8", "MQTT-3.1.2-5", "MQTT-4.5.0-1"}
ASSERTING_CALLS = {"raises", "expect_closed", "expect_publish", "ping", "closed_without_answer", "wait_until"}

# The identifiers of the specification without "MQTT-"; one is spelled with a hyphen, one with three dots.
IDENTIFIERS = """
1.5.3-1 1.5.3-2 1.5.3-3 2.2.2-1 2.2.2-2 2.3.1-1 2.3.1-2 2.3.1-3 2.3.1-4 2.3.1-5 2.3.1-6 2.3.1-7
3.1.0-1 3.1.0-2 3.1.2-1 3.1.2-2 3.1.2-3 3.1.2-4 3.1.2-5 3.1.2-6 3.1.2-8 3.1.2-9 3.1.2-10 3.1.2-11
3.1.2-12 3.1.2-13 3.1.2-14 3.1.2-15 3.1.2-16 3.1.2-17 3.1.2-18 3.1.2-19 3.1.2-20 3.1.2-21 3.1.2-22
3.1.2-23 3.1.2-24 3.1.2.7 3.1.3-1 3.1.3-2 3.1.3-3 3.1.3-4 3.1.3-5 3.1.3-6 3.1.3-7 3.1.3-8 3.1.3-9
3.1.3-10 3.1.3-11 3.1.4-1 3.1.4-2 3.1.4-3 3.1.4-4 3.1.4-5 3.2.0-1 3.2.2-1 3.2.2-2 3.2.2-3 3.2.2-4
3.2.2-5 3.2.2-6 3.3.1-1 3.3.1-2 3.3.1-3 3.3.1-4 3.3.1-5 3.3.1-6 3.3.1-7 3.3.1-8 3.3.1-9 3.3.1-10
3.3.1-11 3.3.1-12 3.3.2-1 3.3.2-2 3.3.2-3 3.3.4-1 3.3.5-1 3.3.5-2 3.6.1-1 3.8.1-1 3.8.3-1 3.8.3-2
3.8.3-3 3.8.4-1 3.8.4-2 3.8.4-3 3.8.4-4 3.8.4-5 3.8.4-6 3.9.3-1 3.9.3-2 3.10.1-1 3.10.3-1 3.10.3-2
3.10.4-1 3.10.4-2 3.10.4-3 3.10.4-4 3.10.4-5 3.10.4-6 3.12.4-1 3.14.1-1 3.14.4-1 3.14.4-2 3.14.4-3
4.1.0-1 4.1.0-2 4.3.1-1 4.3.2-1 4.3.2-2 4.3.3-1 4.3.3-2 4.4.0-1 4.5.0-1 4.5.0-2 4.6.0-1 4.6.0-2
4.6.0-3 4.6.0-4 4.6.0-5 4.6.0-6 4.7.1-1 4.7.1-2 4.7.1-3 4.7.2-1 4.7.3-1 4.7.3-2 4.7.3-3 4.7.3-4
4.8.0-1 4.8.0-2 6.0.0-1 6.0.0-2 6.0.0-3 6.0.0-4 7.0.0-1 7.0.0-2 7.1.1-1 7.1.2-1
3-8.3-4
"""
STATEMENTS = IDENTIFIERS.split()


class Row(NamedTuple):
    """One row of the table of statements."""

    statement: str
    asks: str
    status: str
    last: str

    @property
    def tests(self) -> list[str]:
        """The tests that the row names, as path::function."""
        return TEST_NAME.findall(self.last)


def rows_of(page: str) -> list[Row]:
    """The rows of the page's table of statements."""
    lines = [line for line in page.splitlines() if line.startswith("| MQTT-")]
    return [Row(*(cell.strip() for cell in line.strip("|").split(" | "))) for line in lines]


ROWS = rows_of(PAGE.read_text(encoding="utf-8"))


@cache
def functions_of(path: str) -> dict[str, ast.FunctionDef]:
    """The functions at the top of a test file."""
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def asserts(function: ast.FunctionDef) -> bool:
    """Whether a test says what must be: an assert, or a call that fails when it is not so."""
    return any(
        isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ASSERTING_CALLS)
        for node in ast.walk(function)
    )


def faults_of(row: Row) -> list[str]:
    """What is wrong with one row."""
    faults = []
    if row.status not in STATUSES:
        faults.append(f"no status {row.status!r}")
    if not row.asks or not row.last:
        faults.append("an empty cell")
    if (row.status == "not applicable") == bool(row.tests):
        faults.append("a test is missing, or named where nothing applies")
    for name in row.tests:
        path, _, function = name.partition("::")
        if not (REPOSITORY / path).is_file() or function not in functions_of(path):
            faults.append(f"no test {name}")
        elif not asserts(functions_of(path)[function]):
            faults.append(f"no assertion in {name}")
    return faults


def test_every_statement_has_one_row() -> None:
    """141 identifiers in the text of MQTT 3.1.1, none left out, none twice."""
    assert len(STATEMENTS) == len(set(STATEMENTS)) == 141
    assert sorted(row.statement for row in ROWS) == sorted(f"MQTT-{statement}" for statement in STATEMENTS)


@pytest.mark.parametrize("row", ROWS, ids=[row.statement for row in ROWS])
def test_every_row_is_shown_by_tests_that_exist_and_assert(row: Row) -> None:
    """Or says why it does not apply."""
    assert faults_of(row) == []


def test_the_declared_deviations_are_those_and_no_more() -> None:
    """Each stands in the prose as well, where an operator reads it."""
    assert {row.statement for row in ROWS if row.status == "deviation"} == DEVIATIONS
    assert all(f"- `{statement}`: " in PAGE.read_text(encoding="utf-8") for statement in DEVIATIONS)


@pytest.mark.parametrize(
    "row",
    [
        Row("MQTT-1", "asks", "planned", "`tests/conformance/test_table.py::test_a_faulty_row_is_found`"),
        Row("MQTT-1", "asks", "shown", "some day"),
        Row("MQTT-1", "asks", "shown", "`tests/conformance/test_table.py::test_that_is_not_there`"),
        Row("MQTT-1", "asks", "shown", "`tests/conformance/test_nowhere.py::test_x`"),
        Row("MQTT-1", "asks", "not applicable", ""),
    ],
)
def test_a_faulty_row_is_found(row: Row) -> None:
    """The twin: an unknown status, no test, a test that is not there, no reason."""
    assert faults_of(row) != []


def test_a_test_without_an_assertion_is_found() -> None:
    """The twin of the search for assertions."""
    bodies = {
        "pass": False,
        "print(1)": False,
        "assert x": True,
        "with pytest.raises(E):\n  f()": True,
        "c.ping()": True,
    }
    for body, expected in bodies.items():
        source = "def test():\n " + body.replace("\n", "\n ")
        function = ast.parse(source).body[0]
        assert isinstance(function, ast.FunctionDef)
        assert asserts(function) is expected
