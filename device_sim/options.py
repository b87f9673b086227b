"""Options that several commands of `device-sim` share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def path_option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """An option that is a path; what it names is judged by the library."""
    return click.option(*names, type=click.Path(path_type=Path), **settings)
