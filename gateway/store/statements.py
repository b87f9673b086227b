"""Many rows in one statement.

Python's executemany gives the interpreter up and wins it back for every row, and a busy event loop keeps it for
milliseconds each time. One statement with many rows is bound once and then runs without the interpreter.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

MAX_VALUES: Final = 8192  # bound in one statement; SQLite itself allows 32766
_SIZES: Final = (1024, 128, 16, 1)  # rows per statement: few shapes, so that SQLite's prepared ones are used again


@cache
def _statement(table: str, columns: int, rows: int) -> str:
    row = "(" + ", ".join("?" * columns) + ")"
    return f"INSERT OR REPLACE INTO {table} VALUES " + ", ".join([row] * rows)  # noqa: S608 - names of our own


def insert_rows(db: sqlite3.Connection, table: str, columns: int, values: Sequence[Any]) -> None:
    """Insert or replace rows given as one flat sequence, `columns` values each, in the order of the table's columns."""
    position, left = 0, len(values) // columns
    while left:
        rows = next(size for size in _SIZES if size <= left and size * columns <= MAX_VALUES)
        width = rows * columns
        db.execute(_statement(table, columns, rows), values[position : position + width])
        position += width
        left -= rows


def as_list(numbers: Iterable[int]) -> str:
    """Whole numbers as one value, for `IN (SELECT value FROM json_each(?))`."""
    return json.dumps(list(numbers))
