"""docs/scenarios.md is the whole format: every key, action and expectation there is, and no other."""

from __future__ import annotations

import re

from device_sim.scenarios.actions import ACTIONS
from device_sim.scenarios.expectations import EXPECTATIONS
from device_sim.scenarios.loading import _DEVICES, _PHASE, _TOP
from tests.docs.pages import REPOSITORY

PAGE = (REPOSITORY / "docs" / "scenarios.md").read_text(encoding="utf-8")


def rows_under(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its first two lines."""
    section = re.split(r"^#+ ", PAGE.split(f"\n{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names_in(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_page_has_every_key_of_the_file() -> None:
    """The three tables of keys against the loader's own."""
    for heading, keys in (("## The file", _TOP), ("### `[[devices]]`", _DEVICES), ("### `[[phases]]`", _PHASE)):
        assert names_in([row[0] for row in rows_under(heading)]) == set(keys), heading


def test_the_page_has_every_action_with_its_keys() -> None:
    """Names and arguments."""
    rows = rows_under("### Actions")
    assert names_in([row[0] for row in rows]) == set(ACTIONS)
    for row in rows:
        for name in names_in([row[0]]):
            assert names_in([row[1]]) == set(ACTIONS[name].keys), name


def test_the_page_has_every_expectation() -> None:
    """Names, and no other."""
    assert names_in([row[0] for row in rows_under("### Expectations")]) == set(EXPECTATIONS)


def test_the_page_has_every_example() -> None:
    """Each file in examples/scenarios, and no other."""
    files = {path.name for path in (REPOSITORY / "examples" / "scenarios").glob("*.toml")}
    assert names_in([row[0] for row in rows_under("## Examples")]) == files
