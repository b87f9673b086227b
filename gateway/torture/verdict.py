"""The verdict of a torture, as figures and as a table for people."""

from __future__ import annotations

from typing import Any, Final

from gateway.torture.harness import Plan
from gateway.torture.tally import Tally

EXCEPTIONS: Final = (
    "a publish that the policy denies is acknowledged and dropped",
    "topics of a drop-oldest class lose their oldest messages when the store is full",
    "the queue of a revoked or denied device is purged",
)


def verdict(plan: Plan, tally: Tally, subject: str) -> dict[str, Any]:
    """What the torture found. `lost` must be empty, `reordered` and `repeated` 0."""
    starts = sorted(each.start_s for each in tally.rounds) or [0.0]
    lost = {name: keys for name, keys in tally.lost().items() if keys}
    receivers = tally.receivers.values()
    return {
        "broker": subject,
        "rounds": plan.rounds,
        "seed": plan.seed,
        "publishers": plan.publishers,
        "subscribers": plan.subscribers,
        "published": tally.published,
        "resent": tally.resent,
        "acknowledged": len(tally.acknowledged),
        "lost": sum(len(keys) for keys in lost.values()),
        "lost_of": {name: [f"{device} {sequence}" for device, sequence in keys[:20]] for name, keys in lost.items()},
        "sessions_lost": tally.sessions_lost,
        "duplicated": sum(each.duplicated for each in receivers),
        "duplicated_flagged_dup": sum(each.flagged for each in receivers),
        "qos2_repeated": sum(each.repeated for each in receivers),
        "reordered": sum(each.reordered for each in receivers),
        "start_median_s": round(starts[len(starts) // 2], 3),
        "start_longest_s": round(starts[-1], 3),
        "backlog_largest": max((each.backlog for each in tally.rounds), default=0),
        "start_at_largest_backlog_s": round(
            max(tally.rounds, key=lambda each: each.backlog).start_s if tally.rounds else 0.0, 3
        ),
        "exceptions": list(EXCEPTIONS),
    }


def passed(row: dict[str, Any]) -> bool:
    """Whether the broker kept its word."""
    return not (row["lost"] or row["reordered"] or row["qos2_repeated"])


def as_text(row: dict[str, Any]) -> str:
    """The same as a table."""
    lines = [
        ("broker", row["broker"]),
        ("killed", f"{row['rounds']} times, seed {row['seed']}"),
        ("published", f"{row['published']} messages, {row['resent']} sent again"),
        ("acknowledged", row["acknowledged"]),
        ("acknowledged and lost", row["lost"]),
        ("sessions lost", row["sessions_lost"]),
        ("duplicated", f"{row['duplicated']}, of these {row['duplicated_flagged_dup']} flagged DUP"),
        ("QoS 2 more than once", row["qos2_repeated"]),
        ("reordered per device", row["reordered"]),
        ("start", f"{row['start_median_s']} s median, {row['start_longest_s']} s longest"),
        ("start at the largest backlog", f"{row['start_at_largest_backlog_s']} s, {row['backlog_largest']} deliveries"),
        ("verdict", "passed" if passed(row) else "FAILED"),
    ]
    lost = [f"  lost by {name}: {', '.join(keys)}" for name, keys in row["lost_of"].items()]
    not_counted = [f"  not counted: {each}" for each in row["exceptions"]]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join([f"{name:<{width}}{value}" for name, value in lines] + lost + not_counted)
