"""Where the store may lie: on a file system that outlives a power cut, with room left on it.

A store on tmpfs, or on an overlay whose upper layer is tmpfs (a Raspberry Pi with a read-only root), is gone at the
next boot, and every acknowledgement with it. Both are found in /proc/self/mountinfo (proc(5)). An overlay whose upper
layer is mounted where we cannot see it, as in a container, is accepted with a warning. Not judged: what a mounted
device really is, and whether it tells the truth when it says that data is on it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mtls.errors import ConfigFault

MOUNTINFO: Final = Path("/proc/self/mountinfo")
VOLATILE: Final = frozenset({"tmpfs", "ramfs", "devtmpfs", "rootfs"})
NETWORKED: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"})
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo: where, which file system, and the options of the file system itself."""

    point: str
    fstype: str
    options: str


def read_mounts(mountinfo: Path = MOUNTINFO) -> list[Mount]:
    """Every mount that this process sees, the last one on top of a point winning."""
    mounts = []
    for line in mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, separator, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if separator and len(fields) > 4 and len(rest) > 2:
            mounts.append(Mount(_unescaped(fields[4]), rest[0], rest[2]))
    return mounts


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)


def mount_of(path: str, mounts: list[Mount]) -> Mount | None:
    """The mount that holds an absolute path."""
    holding = [mount for mount in mounts if _is_below(path, mount.point)]
    return max(reversed(holding), key=lambda mount: len(mount.point), default=None)


def _is_below(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def check_place(path: Path, *, allow_volatile: bool, mountinfo: Path = MOUNTINFO) -> list[str]:
    """Refuse a place that does not outlive a power cut, as ConfigFault; the warnings about one that may not."""
    folder = os.path.realpath(path.parent)
    try:
        mounts = read_mounts(mountinfo)
    except OSError as error:
        return [f"cannot tell what {folder} is mounted on: {error.strerror}"]
    mount = mount_of(folder, mounts)
    if mount is None:
        return [f"cannot tell what {folder} is mounted on"]
    volatile, warning = _volatile(mount, mounts)
    if volatile and not allow_volatile:
        raise ConfigFault(
            f"[store] path = {str(path)!a} lies on {volatile}, mounted at {mount.point}: gone at the next boot",
            hint="choose a path on a disk, or set allow_volatile = true if nothing needs to survive",
        )
    if volatile:
        return [f"[store] lies on {volatile}: what is acknowledged does not survive a restart of the machine"]
    if mount.fstype in NETWORKED:
        warning = f"[store] lies on {mount.fstype}: SQLite needs a local disk; locks and fsync may not hold there"
    return [warning] if warning else []


def _volatile(mount: Mount, mounts: list[Mount]) -> tuple[str, str]:
    """What volatile thing a mount is, or nothing; and what is to be warned of."""
    if mount.fstype in VOLATILE:
        return mount.fstype, ""
    if mount.fstype != "overlay":
        return "", ""
    upper = next((o.removeprefix("upperdir=") for o in mount.options.split(",") if o.startswith("upperdir=")), "")
    below = mount_of(_unescaped(upper), [m for m in mounts if m is not mount and m.fstype != "overlay"])
    if below is not None and below.fstype in VOLATILE:
        return f"an overlay whose upper layer is {below.fstype}", ""
    return "", "[store] lies on an overlay; whether its upper layer is on a disk cannot be seen from here"


def free_bytes(folder: Path) -> int:
    """What an unprivileged program may still write on the file system of a folder."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
