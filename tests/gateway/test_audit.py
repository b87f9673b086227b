"""The audit log: whole lines, safe text, limited denials, rotation, and a full disk that stops nothing."""

from __future__ import annotations

import errno
import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from gateway import audit as audit_module
from gateway.audit import EVENTS, LINES_PER_WINDOW, WINDOW_S, AuditLog
from mtls.errors import ConfigFault, Reason
from mtls.identity import IdentityRule
from mtls.judgement import Peer, peer_of
from mtls.trust import TrustStore
from tests.support.pki import Pki

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
LIMIT = LINES_PER_WINDOW["denied"]


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def open_log(path: Path, clock: Clock | None = None, **settings: Any) -> AuditLog:
    return AuditLog(path, clock=lambda: NOON, monotonic=clock or Clock(), **settings)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def peer(pki: Pki) -> Peer:
    trust = TrustStore.from_pem(pki.ca_file.read_bytes(), "ca")
    found = peer_of(pki.device("dev-a").certificate.public_bytes(Encoding.DER), trust, IdentityRule())
    assert isinstance(found, Peer)
    return found


def test_a_line_says_who_and_why(tmp_path: Path, peer: Peer) -> None:
    """One JSON object per line with the certificate's facts; empty fields are left out."""
    path = tmp_path / "audit.jsonl"
    with open_log(path) as log:
        log.write("refused", peer=peer, client_id="x", reason=Reason.NO_ROLE, detail="none", address="10.0.0.1")
        log.write("started", version="1", addresses=["127.0.0.1:1"])
    first, second = lines(path)
    assert first == {
        "time": "2026-05-04T12:00:00.000+00:00",
        "event": "refused",
        "id": "dev-a",
        "client_id": "x",
        "reason": "no_role",
        "detail": "none",
        "address": "10.0.0.1",
        "issuer": "test CA",
        "certificate_serial": peer.certificate_serial,
        "fingerprint_sha256": peer.fingerprint_sha256,
    }
    assert second["addresses"] == ["127.0.0.1:1"]
    assert "reason" not in second


def test_text_of_a_peer_cannot_forge_a_line_or_steer_a_terminal(tmp_path: Path) -> None:
    """Line ends, escapes and direction marks arrive escaped; over-long text is cut."""
    path = tmp_path / "audit.jsonl"
    with open_log(path) as log:
        log.write("refused", client_id='a\n{"event":"admitted"}\x1b[2J\u202e', detail="d" * 5000, topic="t\x00\ud800")
    (line,) = lines(path)
    assert line["event"] == "refused"
    assert line["client_id"] == 'a\\n{"event":"admitted"}\\x1b[2J\\u202e'
    assert len(line["detail"]) <= 200
    assert line["topic"] == "t\\x00\\ud800"


def test_denials_of_one_identity_are_limited_and_counted(tmp_path: Path, peer: Peer) -> None:
    """Ten lines a minute; the first line after the minute says how many were suppressed."""
    path, clock = tmp_path / "audit.jsonl", Clock()
    log = open_log(path, clock)
    for _ in range(LIMIT + 25):
        log.write("denied", peer=peer, reason=Reason.PUBLISH_DENIED)
    assert (len(lines(path)), log.suppressed) == (LIMIT, 25)
    log.write("denied", peer=peer, reason=Reason.SUBSCRIBE_DENIED)
    log.write("denied", address="10.0.0.9", reason=Reason.PUBLISH_DENIED)
    assert len(lines(path)) == LIMIT + 2
    clock.now += WINDOW_S
    log.write("denied", peer=peer, reason=Reason.PUBLISH_DENIED)
    log.close()
    assert lines(path)[-1]["suppressed"] == 25


def test_suppressed_lines_are_told_of_even_when_no_line_follows(tmp_path: Path, peer: Peer) -> None:
    """A flood that stops is summed up by the sweep, once."""
    path, clock = tmp_path / "audit.jsonl", Clock()
    log = open_log(path, clock)
    for _ in range(LIMIT + 3):
        log.write("denied", peer=peer, reason=Reason.PUBLISH_DENIED)
    log.sweep()
    assert len(lines(path)) == LIMIT
    clock.now += WINDOW_S
    log.sweep()
    log.sweep()
    log.close()
    summed = lines(path)[LIMIT:]
    assert [(line["who"], line["reason"], line["suppressed"]) for line in summed] == [("dev-a", "publish_denied", 3)]


@pytest.mark.parametrize("event", ["admitted", "disconnected"])
def test_a_device_that_reconnects_without_end_cannot_rotate_the_history_away(
    tmp_path: Path, event: str, peer: Peer
) -> None:
    """A refusal of yesterday is still there after 20,000 reconnects, and the lines left out are counted."""
    path = tmp_path / "audit.jsonl"
    with open_log(path, max_bytes=64 * 1024, keep=0) as log:
        log.write("refused", address="10.0.0.1")
        for _ in range(20_000):
            log.write(event, peer=peer)
    first, *others, summed = lines(path)
    assert first["event"] == "refused"
    assert [line["event"] for line in others] == [event] * LINES_PER_WINDOW[event]
    assert (summed["event"], summed["who"]) == (event, "dev-a")
    assert summed["suppressed"] == 20_000 - LINES_PER_WINDOW[event]


def test_a_store_that_evicts_without_end_cannot_rotate_the_history_away(tmp_path: Path) -> None:
    """A publisher of a drop-oldest class makes the gateway write such lines, as fast as it publishes."""
    path = tmp_path / "audit.jsonl"
    with open_log(path, max_bytes=64 * 1024, keep=0) as log:
        log.write("refused", address="10.0.0.1")
        for _ in range(20_000):
            log.write("dropped", reason=Reason.STORE_FULL, detail="300 oldest of drop-oldest topics")
    first, *others, summed = lines(path)
    assert first["event"] == "refused"
    assert len(others) == LINES_PER_WINDOW["dropped"]
    assert (summed["event"], summed["suppressed"]) == ("dropped", 20_000 - len(others))


@pytest.mark.parametrize("event", ["admitted", "disconnected"])
def test_an_honest_device_that_reconnects_every_second_is_never_suppressed(
    tmp_path: Path, event: str, peer: Peer
) -> None:
    """The twin of the limit: 60 lines a minute are all there, minute after minute."""
    path, clock = tmp_path / "audit.jsonl", Clock()
    with open_log(path, clock) as log:
        for _ in range(180):
            log.write(event, peer=peer)
            clock.now += 1
    assert (len(lines(path)), log.suppressed) == (180, 0)


MAY_BE_SUPPRESSED = ("admitted", "denied", "disconnected", "dropped", "refused", "renewal_refused", "shadow")


@pytest.mark.parametrize("event", [event for event in EVENTS if event not in MAY_BE_SUPPRESSED])
def test_no_other_event_is_ever_suppressed(tmp_path: Path, event: str, peer: Peer) -> None:
    """The deny twin of the limit: kicks, renewals and reloads are all there."""
    path = tmp_path / "audit.jsonl"
    with open_log(path) as log:
        for _ in range(200):
            log.write(event, peer=peer)
    assert len(lines(path)) == 200


def test_addresses_of_one_ipv6_network_are_one_peer(tmp_path: Path) -> None:
    """A host may take any of its /64; one of another network has lines of its own."""
    path = tmp_path / "audit.jsonl"
    with open_log(path) as log:
        for number in range(LIMIT + 5):
            log.write("refused", address=f"2001:db8::{number:x}")
        log.write("refused", address="2001:db8:0:1::1")
        assert [line["address"] for line in lines(path)][LIMIT - 1 :] == ["2001:db8::9", "2001:db8:0:1::1"]
    assert lines(path)[-1]["suppressed"] == 5


def test_the_limit_forgets_the_oldest_when_identities_flood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, and what was suppressed of the forgotten one is told."""
    monkeypatch.setattr(audit_module, "MAX_TRACKED", 3)
    path = tmp_path / "audit.jsonl"
    log = open_log(path)
    for _ in range(LIMIT + 5):
        log.write("refused", address="10.0.0.1")
    for number in range(2, 6):
        log.write("refused", address=f"10.0.0.{number}")
    assert len(log._tracked) == 3
    assert [line["suppressed"] for line in lines(path) if line.get("who") == "10.0.0.1"] == [5]
    log.close()


def test_the_file_is_rotated_by_size(tmp_path: Path) -> None:
    """The newest lines stand in the file, older ones in .1 and .2, and no more than `keep` old files."""
    path = tmp_path / "audit.jsonl"
    with open_log(path, max_bytes=400, keep=2) as log:
        for number in range(40):
            log.write("started", number=number, padding="p" * 60)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    kept = [line["number"] for name in (".2", ".1", "") for line in lines(Path(f"{path}{name}"))]
    assert kept == list(range(kept[0], 40))
    assert all(Path(f"{path}{name}").stat().st_size <= 400 for name in ("", ".1", ".2"))


def test_keep_0_keeps_only_the_file(tmp_path: Path) -> None:
    """The smallest configuration of rotation."""
    path = tmp_path / "audit.jsonl"
    with open_log(path, max_bytes=200, keep=0) as log:
        for number in range(10):
            log.write("started", number=number)
    assert [file.name for file in tmp_path.iterdir()] == ["audit.jsonl"]
    assert lines(path)[-1]["number"] == 9


def test_others_cannot_read_it(tmp_path: Path) -> None:
    """Mode 0640 at most, whatever the umask."""
    mask = os.umask(0)
    try:
        open_log(tmp_path / "audit.jsonl").close()
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o640


def test_a_full_disk_is_counted_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No exception, one line in the service log for the whole trouble, and whole lines afterwards."""
    path = tmp_path / "audit.jsonl"
    log = open_log(path)
    real, room = os.write, [7]

    def write(descriptor: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real(descriptor, bytes(data[: room[0]]))
        room[0] -= taken
        return taken

    monkeypatch.setattr(audit_module.os, "write", write)
    for _ in range(5):
        log.write("started")
    assert log.failed == 5
    assert len(caplog.records) == 1
    monkeypatch.setattr(audit_module.os, "write", real)
    log.write("stopped")
    log.close()
    torn, whole = path.read_text().splitlines()
    assert len(torn) == 7
    assert json.loads(whole)["event"] == "stopped"


def test_a_real_full_device_is_counted(tmp_path: Path) -> None:
    """/dev/full says ENOSPC to every write, as a full disk does."""
    path = tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    with open_log(path) as log:
        log.write("started")
        log.write("stopped")
        assert log.failed == 2


def test_a_file_moved_away_is_opened_anew(tmp_path: Path) -> None:
    """`reopen`, called at every reload, serves logrotate."""
    path = tmp_path / "audit.jsonl"
    log = open_log(path)
    log.write("started")
    path.rename(tmp_path / "moved")
    log.reopen()
    log.write("stopped")
    log.close()
    assert [line["event"] for line in lines(path)] == ["stopped"]


def test_a_log_that_cannot_be_opened_is_a_configuration_fault(tmp_path: Path) -> None:
    """Serving without an audit log is not an option that anybody chose."""
    with pytest.raises(ConfigFault, match="cannot open audit log"):
        AuditLog(tmp_path / "absent" / "audit.jsonl")


def test_without_a_file_lines_go_to_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """`file = "-"`: the journal takes them."""
    with AuditLog(None, clock=lambda: NOON) as log:
        log.write("started")
    assert json.loads(capfdbinary.readouterr().out)["event"] == "started"
