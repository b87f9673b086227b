"""What a person reads: faults as `error:` and `hint:`, and text of peers made safe to print.

Every string that came from outside passes `sanitise` before it reaches a log, an audit line or a terminal: escape
sequences, line breaks and direction marks of a peer must not rewrite what an operator sees.
"""

from __future__ import annotations

import sys
from typing import TextIO

from mtls.errors import Fault


def sanitise(text: str, limit: int = 200) -> str:
    """`text` with everything unprintable escaped, cut at `limit` characters with a mark."""
    if len(text) <= limit and text.isprintable() and "\\" not in text:
        return text  # nearly always
    cut = text[: limit + 1]
    safe = "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in cut)
    return safe if len(safe) <= limit and len(text) <= limit else safe[: limit - 1] + "…"


def print_fault(fault: Fault, stream: TextIO | None = None) -> int:
    """Print a fault and what to do about it; its exit code."""
    out = stream if stream is not None else sys.stderr
    out.write(f"error: {fault}\n")
    if fault.hint:
        out.write(f"hint: {fault.hint}\n")
    return fault.exit_code
