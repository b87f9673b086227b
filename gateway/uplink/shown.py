"""The uplink in words: the rows that `spool status`, `spool estimate` and `status` print.

Whoever prints them makes text of the upstream or of a peer safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MAX_HOURS: Final = 10 * 366 * 24.0  # that an estimate looks ahead
UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")

Row = Mapping[str, Any]
Rows = list[tuple[str, object]]


def size_text(size: float) -> str:
    """Bytes in the largest unit that leaves a whole number before the point."""
    for unit in UNITS:
        if size < 1024 or unit == UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == UNITS[0] else f"{size:.1f} {unit}"


def time_text(seconds: float | None) -> str:
    """A duration as people say it."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def lines(row: Row) -> Rows:
    """The few lines that `status` shows."""
    state = f"{row['state']} for {time_text(row['state_s'])}"
    if row["last_fault"] and row["state"] != "connected":
        state += f"; last: {row['last_fault']}"
    spool = f"{row['spool_messages']} messages, {size_text(row['spool_bytes'])} of {size_text(row['spool_max_bytes'])}"
    if row["spool_full"]:
        spool += ", FULL"
    if row["oldest_s"] is not None:
        spool += f", oldest {time_text(row['oldest_s'])} old"
    return [("upstream", f"{row['upstream']} as {row['gateway']}, {state}"), ("spool", spool)]


def status_rows(row: Row) -> Rows:
    """Everything about the uplink."""
    done, dropped = row["acknowledged"], row["dropped"]
    refused = f"{row['refused']}, {row['set_aside']} set aside; last: {row['last_refusal']}"
    return [
        *lines(row),
        ("now", f"{row['in_flight']} in flight, {row['live']} live, {row['backlog']} backlog"),
        ("replay", f"{row['replay_per_s']:.0f} messages/s, done in {time_text(row['replay_eta_s'])}"),
        ("acknowledged", f"{done['live']} live, {done['backlog']} from the backlog"),
        ("coming in", f"{row['messages_in_per_s']:.1f} messages/s, {size_text(row['bytes_in_per_s'])}/s"),
        *((f"dropped, {reason}", number) for reason, number in sorted(dropped.items())),
        *([("refused", refused)] if row["refused"] else []),
        *((f"subscription {topic}", answer) for topic, answer in sorted(row["subscriptions"].items())),
        *((f"commands, {what}", number) for what, number in sorted(row["commands"].items())),
    ]


def estimate_rows(row: Row) -> Rows:
    """What a cut would cost."""
    full = "never" if row["full_after_h"] is None else f"after {time_text(row['full_after_h'] * 3600)}"
    return [
        ("coming in", f"{row['messages_per_s']:.1f} messages/s, {size_text(row['bytes_per_s'])}/s"),
        (f"after {row['hours']:g} h", f"{row['messages']} messages, {size_text(row['bytes'])}"),
        ("fits", "yes" if row["fits"] else "NO"),
        ("full", full),
        ("replay", f"{time_text(row['replay_h'] * 3600)} at the pace of backlog_rate and backlog_bytes_per_s"),
    ]
