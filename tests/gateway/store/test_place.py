"""D4: a store that the next boot wipes is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.store.place import check_place, mount_of, read_mounts
from mtls.errors import ConfigFault

DISK = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw"
TMPFS = "22 21 0:25 / /run rw,nosuid shared:2 - tmpfs tmpfs rw,size=1024k"
UPPER = "23 21 0:26 / /media/root-rw rw - tmpfs tmpfs rw"
OVERLAY = "24 1 0:27 / / rw - overlay overlayroot rw,lowerdir=/media/root-ro,upperdir=/media/root-rw/up,workdir=/x"
CONTAINER = "25 1 0:28 / / rw - overlay overlay rw,lowerdir=/a:/b,upperdir=/var/lib/docker/9/diff,workdir=/w"
SPACED = r"26 21 0:29 / /mnt/my\040disk rw - tmpfs tmpfs rw"
NFS = "27 21 0:30 / /srv rw - nfs4 host:/x rw"

PLACES = {
    "disk": ([DISK, TMPFS], "/var/lib/x/gateway.db", "", ""),
    "tmpfs": ([DISK, TMPFS], "/run/x/gateway.db", "tmpfs", ""),
    "tmpfs with a space": ([DISK, SPACED], "/mnt/my disk/gateway.db", "tmpfs", ""),
    "beside a tmpfs": ([DISK, TMPFS], "/running/gateway.db", "", ""),
    "read-only root": ([OVERLAY, UPPER], "/var/lib/gateway.db", "overlay whose upper layer is tmpfs", ""),
    "container": ([CONTAINER, TMPFS], "/var/lib/gateway.db", "", "cannot be seen"),
    "network": ([DISK, NFS], "/srv/gateway.db", "", "local disk"),
    "nothing known": ([], "/var/lib/gateway.db", "", "cannot tell"),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_volatile_place_is_refused_and_a_disk_is_not(tmp_path: Path, case: str) -> None:
    """The answer names what it lies on; what cannot be known is a warning."""
    lines, path, refused, warned = PLACES[case]
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text("\n".join(lines) + "\n")
    if refused:
        with pytest.raises(ConfigFault, match=refused):
            check_place(Path(path), allow_volatile=False, mountinfo=mountinfo)
        assert "does not survive" in check_place(Path(path), allow_volatile=True, mountinfo=mountinfo)[0]
    else:
        warnings = check_place(Path(path), allow_volatile=False, mountinfo=mountinfo)
        assert bool(warnings) == bool(warned)
        assert warned in "".join(warnings)


def test_the_mounts_of_this_machine_are_understood() -> None:
    """The judge is the kernel: /proc is what it is on every Linux."""
    mount = mount_of("/proc/self", read_mounts())
    assert mount is not None
    assert mount.fstype == "proc"


def test_a_store_in_shared_memory_is_refused() -> None:
    """/dev/shm is tmpfs on every machine that has it."""
    with pytest.raises(ConfigFault, match="tmpfs"):
        check_place(Path("/dev/shm/gateway.db"), allow_volatile=False)
