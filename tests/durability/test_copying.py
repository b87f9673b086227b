"""Backup while the gateway runs, restore while it does not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.broker.packets import PacketType
from gateway.cli import cli
from gateway.store.database import check, mark_damaged
from tests.durability.conftest import Start
from tests.durability.test_full import away, take
from tests.support.gateway import Gateway, RawClient


def command(verb: str, gateway: Gateway, copy: Path) -> Result:
    return CliRunner().invoke(cli, ["store", verb, "--config", str(gateway.config_file), str(copy)])


def publish(publisher: RawClient, *numbers: int) -> None:
    for number in numbers:
        publisher.publish("a/b", b"%d " % number, 1, packet_id=number)
        assert publisher.read()[0] >> 4 == PacketType.PUBACK


def test_a_backup_of_a_running_gateway_is_what_was_acknowledged(start: Start, tmp_path: Path) -> None:
    """It is private, sound, and a gateway that is given it serves the queue of that moment, and not what came later."""
    gateway = start()
    away(gateway, "sub")
    publisher = gateway.connected("pub")
    publish(publisher, *range(1, 101))
    copy = tmp_path / "backup.db"
    assert command("backup", gateway, copy).exit_code == 0
    publish(publisher, 101, 102)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert check(copy) == ""
    gateway.stop()
    done = command("restore", gateway, copy)
    assert done.exit_code == 0
    assert len(list(tmp_path.glob("gateway.db.replaced-*Z"))) == 1
    again = start()
    client = again.client("sub")
    assert client.connect("sub", clean=False) == (True, 0)
    assert take(client, 100) == list(range(1, 101))
    client.ping()


def test_what_is_restored_is_not_set_aside_for_the_damage_of_the_store_before(start: Start, tmp_path: Path) -> None:
    """The mark of a damaged store goes with it: the next start serves the backup."""
    gateway = start()
    away(gateway, "sub")
    publish(gateway.connected("pub"), 1)
    copy = tmp_path / "backup.db"
    assert command("backup", gateway, copy).exit_code == 0
    gateway.stop()
    mark_damaged(tmp_path / "gateway.db", "a page cannot be read")
    assert command("restore", gateway, copy).exit_code == 0
    client = start().client("sub")
    assert client.connect("sub", clean=False) == (True, 0)
    assert take(client, 1) == [1]
    assert not list(tmp_path.glob("*.corrupt-*"))


def test_a_restore_that_fails_leaves_nothing_of_the_copy(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a copy may be all that still fits on the disk; the store that was there stays in its place."""
    gateway = start()
    copy = tmp_path / "backup.db"
    assert command("backup", gateway, copy).exit_code == 0
    gateway.stop()
    before = (tmp_path / "gateway.db").read_bytes()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    refused = command("restore", gateway, copy)
    assert (refused.exit_code, refused.output) == (1, "error: the system says: Operation not permitted\n")
    assert (tmp_path / "gateway.db").read_bytes() == before
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_backup_replaces_nothing(start: Start, tmp_path: Path) -> None:
    """A file that is there already stays as it is."""
    gateway = start()
    copy = tmp_path / "backup.db"
    copy.write_text("mine")
    assert command("backup", gateway, copy).exit_code == 1
    assert copy.read_text() == "mine"


def test_nothing_is_restored_under_a_running_gateway(start: Start, tmp_path: Path) -> None:
    """The lock says no, and the running gateway's store stays its own."""
    gateway = start()
    away(gateway, "sub")
    copy = tmp_path / "backup.db"
    assert command("backup", gateway, copy).exit_code == 0
    refused = command("restore", gateway, copy)
    assert refused.exit_code == 1
    assert "is the gateway running already?" in refused.output
    assert not list(tmp_path.glob("*.replaced-*"))


def test_a_damaged_backup_is_refused_and_the_store_stays(start: Start, tmp_path: Path) -> None:
    """What cannot be read is not put in the place of what can."""
    gateway = start()
    away(gateway, "sub")
    gateway.stop()
    before = (tmp_path / "gateway.db").read_bytes()
    copy = tmp_path / "backup.db"
    for content in (b"no database at all" * 400, before[:4096] + bytes(len(before) - 4096)):
        copy.write_bytes(content)
        assert command("restore", gateway, copy).exit_code == 1
    assert (tmp_path / "gateway.db").read_bytes() == before
