"""A disk that is full or read-only: nothing is acknowledged that is not on it, and it goes on when the disk does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.durability.test_full import away, is_acknowledged, take
from tests.support.gateway import OPEN_POLICY, Gateway, running, wait_until
from tests.support.pki import Pki

Mount = Callable[[str], Path]


def mount(*arguments: str | Path) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB of its own, where this user may mount one."""
    point = tmp_path / "disk"
    point.mkdir()
    assert mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", point)
    yield point
    subprocess.run(["umount", "-l", point], check=False)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts; test_writer.py shows the same by SQLite")


def on(disk: Path, tmp_path: Path, pki: Pki, **store: Any) -> Gateway:
    settings = {"path": str(disk / "gateway.db"), "commit_interval_ms": 0, "full_grace_s": 60, **store}
    return Gateway(tmp_path, pki, OPEN_POLICY, store=settings, limits={"max_inflight": 200})


@needs_root
def test_a_full_disk_withholds_until_there_is_room(small_disk: Path, tmp_path: Path, pki: Pki) -> None:
    """ENOSPC: no PUBACK, PINGREQ answered; room is made, every message is acknowledged and there, in order."""
    (small_disk / "ballast").write_bytes(bytes(15_000_000))
    gateway = on(small_disk, tmp_path, pki).start()
    try:
        away(gateway, "sub")
        publisher = gateway.connected("pub")
        for number in range(1, 41):
            publisher.publish("a/b", b"%d " % number + bytes(50_000), 1, packet_id=number)
        wait_until(lambda: gateway.status()["store"]["trouble"] == "disk_full", "a full disk")
        wait_until(lambda: not gateway.status()["store"]["accepting"], "withholding")
        (small_disk / "ballast").unlink()
        acknowledged = [publisher.read() for _ in range(40)]
        assert acknowledged == [(0x40, number.to_bytes(2, "big")) for number in range(1, 41)]
        publisher.ping()
        assert gateway.status()["store"]["trouble"] == ""
        client = gateway.client("sub")
        client.connect("sub", clean=False)
        assert take(client, 40) == list(range(1, 41))
    finally:
        gateway.stop()


@needs_root
def test_a_disk_that_turns_read_only_acknowledges_nothing_more(tmp_path: Path, pki: Pki) -> None:
    """What ext4 does on an error: no PUBACK, PINGREQ answered, an orderly end; what was acknowledged is on the disk."""
    image, point = tmp_path / "image", tmp_path / "disk"
    point.mkdir()
    image.write_bytes(bytes(24 * 1024 * 1024))
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    assert mount("-o", "loop", image, point)
    try:
        with running(on(point, tmp_path, pki)) as gateway:
            away(gateway, "sub")
            publisher = gateway.connected("pub")
            publisher.publish("a/b", b"1 ", 1, packet_id=1)
            publisher.ping_after_acks(1)
            assert mount("-o", "remount,abort", point)
            publisher.publish("a/b", b"2 ", 1, packet_id=2)
            wait_until(lambda: gateway.status()["store"]["trouble"] != "", "trouble")
            publisher.ping()
        subprocess.run(["umount", point], check=True)
        subprocess.run(["fsck.ext4", "-p", image], check=False, capture_output=True)
        assert mount("-o", "loop", image, point)
        with running(on(point, tmp_path, pki)) as gateway:
            assert gateway.sessions()["sub"]["queued"] == 1
            client = gateway.client("sub")
            client.connect("sub", clean=False)
            assert take(client, 1) == [1]
    finally:
        subprocess.run(["umount", "-l", point], check=False)


@needs_root
def test_the_floor_of_free_bytes_is_kept(small_disk: Path, tmp_path: Path, pki: Pki) -> None:
    """Below min_free_bytes nothing more is stored, long before the disk is full."""
    gateway = on(small_disk, tmp_path, pki, min_free_bytes=14_000_000).start()
    try:
        away(gateway, "sub")
        publisher = gateway.connected("pub")
        acknowledged = 0
        for number in range(1, 100):
            publisher.publish("a/b", b"%d " % number + bytes(50_000), 1, packet_id=number)
            if not is_acknowledged(gateway, publisher):
                break
            acknowledged = number
        free = os.statvfs(small_disk)
        assert 5 < acknowledged < 50
        assert free.f_bavail * free.f_frsize > 13_500_000
        assert gateway.status()["store"]["trouble"] == ""
    finally:
        gateway.stop()
