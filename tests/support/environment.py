"""The environment for programs whose coverage is not asked for here."""

from __future__ import annotations

import os
from collections.abc import Mapping


def unmeasured(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environment` without what makes Python measure coverage in every program it starts.

    Measuring costs a program a quarter of a second before it begins, and slows whatever it does. It says nothing where
    a program is not ours, or where what it does is tested, and measured, by tests of its own.
    """
    return {key: value for key, value in environment.items() if not key.startswith("COVERAGE_")}
