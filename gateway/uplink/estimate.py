"""Questions to the spool: how long will the replay take, and what would a cut of some hours cost.

Pure arithmetic over what the running gateway has measured. An estimate is for planning: it takes the traffic of
now, or of the average since the start where that was more, and assumes that it goes on like this.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traffic:
    """What comes in for the uplink, per second; bytes as the spool accounts them."""

    messages_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Room:
    """What the spool holds, what it may hold, and how fast the backlog may go."""

    messages: int
    bytes: int
    max_bytes: int
    disk_bytes: int  # that the file system has above the free-disk floor
    backlog_messages_per_s: float
    backlog_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a cut of `hours` would cost. `full_after_h` is None when nothing comes in."""

    hours: float
    messages: int
    bytes: int
    fits: bool
    full_after_h: float | None
    replay_h: float


def replay_s(messages: int, size: int, *, messages_per_s: float, bytes_per_s: float) -> float:
    """How long the paced backlog lane needs for so many messages of `size` bytes together."""
    return max(messages / messages_per_s, size / bytes_per_s)


def estimate(hours: float, traffic: Traffic, room: Room) -> Estimate:
    """What a cut of `hours`, beginning now, adds to the spool, and whether there is room for it."""
    seconds = hours * 3600
    messages = room.messages + round(traffic.messages_per_s * seconds)
    size = room.bytes + round(traffic.bytes_per_s * seconds)
    free = max(0, min(room.max_bytes - room.bytes, room.disk_bytes))
    replay = replay_s(messages, size, messages_per_s=room.backlog_messages_per_s, bytes_per_s=room.backlog_bytes_per_s)
    return Estimate(
        hours=hours,
        messages=messages,
        bytes=size,
        fits=size - room.bytes <= free,
        full_after_h=free / traffic.bytes_per_s / 3600 if traffic.bytes_per_s > 0 else None,
        replay_h=replay / 3600,
    )
