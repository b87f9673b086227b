"""The uplink against a real mosquitto: what arrives there, in which order, and what a cut line changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.uplink.envelope import Envelope
from gateway.uplink.lanes import MAX_LIVE_MESSAGES
from gateway.uplink.topic_map import parse_publish, parse_subscribe
from mtls.profiles import common_name
from tests.gateway.uplink.conftest import Site
from tests.gateway.uplink.upstreams import Consumer, Line, Mosquitto, mosquitto
from tests.support.gateway import wait_until
from tests.support.pki import Credential, Pki

DEVICES = ("press-07", "press-08", "press-09")


@pytest.fixture(scope="module")
def upstream(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path_factory.mktemp("upstream"), pki) as running:
        yield running


@dataclass(frozen=True)
class Scene:
    """A gateway of one test's own, a line to the upstream, and who listens there to what this gateway sends."""

    folder: Path
    pki: Pki
    gateway: Credential
    listener: Credential
    upstream: Mosquitto
    line: Line

    @property
    def name(self) -> str:
        return common_name(self.gateway.certificate.subject)

    def site(self, **changes: Any) -> Site:
        return Site(self.folder, self.pki, self.gateway, self.line.port, **changes)

    def consumer(self, *, mqtt5: bool = False) -> Consumer:
        return Consumer(self.upstream.port, self.pki, self.listener, topic=f"site/{self.name}/#", mqtt5=mqtt5)


@pytest.fixture
def scene(
    tmp_path: Path, pki: Pki, consumer_identity: Credential, upstream: Mosquitto, request: pytest.FixtureRequest
) -> Iterator[Scene]:
    """The gateway has the test's name: what it leaves at the upstream is not another test's."""
    gateway = pki.device(request.node.name[:60].replace("[", "-").rstrip("]"))
    with Line(upstream.port) as line:
        yield Scene(tmp_path, pki, gateway, consumer_identity, upstream, line)


def batch(count: int, start: int = 0) -> list[tuple[str, bytes, str]]:
    """Messages of three devices in turn; the payload counts."""
    return [(f"devices/{DEVICES[n % 3]}/count", str(n).encode(), DEVICES[n % 3]) for n in range(start, start + count)]


def connected(site: Site) -> Site:
    wait_until(lambda: site.report()["state"] == "connected", "the uplink")
    return site


def in_order(envelopes: list[dict[str, Any]]) -> bool:
    """Whether each device's messages come in their order within each lane, first occurrences only."""
    newest: dict[tuple[str, bool], int] = {}
    seen: set[tuple[str, int]] = set()
    for each in envelopes:
        key = (each["device_id"], each["sequence"])
        if key in seen:
            continue
        seen.add(key)
        lane = (each["device_id"], each["replayed"])
        if each["sequence"] <= newest.get(lane, 0):
            return False
        newest[lane] = each["sequence"]
    return True


def test_a_message_arrives_in_its_envelope_and_leaves_the_spool(scene: Scene) -> None:
    """Named by the map, stamped with device, boot and sequence; deleted when the upstream has acknowledged it."""
    with scene.consumer() as consumer, scene.site() as site:
        connected(site).take(
            ("devices/press-07/state", b"21.5", "press-07"), ("devices/press-07/raw", b"\xff", "press-07")
        )
        wait_until(lambda: len(consumer.messages) == 2)
        first, second = consumer.envelopes
        assert consumer.messages[0].topic == f"site/{scene.name}/devices/press-07/state"
        assert (first["device_id"], first["sequence"], first["payload"]) == ("press-07", 1, "21.5")
        assert (second["sequence"], second["payload_base64"], second["replayed"]) == (2, "/w==", False)
        assert first["time_state"] == "synced"
        assert not any(message.retain for message in consumer.messages)
        wait_until(lambda: site.report()["spool_messages"] == 0)
        assert site.report()["acknowledged"] == {"live": 2, "backlog": 0}


def test_the_replay_starts_by_itself_after_a_cut_and_loses_nothing(scene: Scene) -> None:
    """Messages taken while the line is cut arrive when it is mended, without new traffic, in order per device (D5)."""
    with scene.consumer() as consumer, scene.site() as site:
        connected(site).take(*batch(300))
        scene.line.cut()
        wait_until(lambda: site.report()["state"] != "connected")
        site.take(*batch(2000, 300))
        held = site.report()
        assert held["spool_messages"] >= 2000
        assert held["spool_bytes"] >= 2000 * 128
        wait_until(lambda: (site.report()["oldest_s"] or 0) > 0)
        scene.line.mend()
        wait_until(lambda: len(consumer.unique()) == 2300, timeout_s=30)
        wait_until(lambda: site.report()["spool_messages"] == 0)
        assert in_order(consumer.envelopes)
        assert {e["payload"] for e in consumer.envelopes} == {str(n) for n in range(2300)}
        report = site.report()
        assert report["spool_bytes"] == 0
        assert report["acknowledged"]["backlog"] >= 2000


def test_live_messages_go_before_the_backlog_and_the_backlog_keeps_its_pace(scene: Scene) -> None:
    """While 500 old messages go at 100 a second, new ones overtake them (mosquitto issue 1359)."""
    with scene.consumer() as consumer, scene.site(backlog_rate=100, backlog_burst=50) as site:
        scene.line.cut()
        site.take(*batch(500))
        scene.line.mend()
        connected(site)
        wait_until(lambda: len(consumer.messages) >= 50)
        site.take(*batch(50, 500))
        wait_until(lambda: sum(not e["replayed"] for e in consumer.envelopes) == 50)
        assert sum(e["replayed"] for e in consumer.envelopes) < 500
        assert site.report()["backlog"] > 0
        eta = site.report()["replay_eta_s"]
        assert eta is not None
        assert 0 < eta < 60
        wait_until(lambda: len(consumer.unique()) == 550, timeout_s=30)
        assert in_order(consumer.envelopes)


def test_a_spool_of_another_boot_is_sent_with_that_boots_stamps(scene: Scene) -> None:
    """A restart starts the replay by itself; both boots number from 1 and are told apart by the boot id."""
    scene.line.cut()
    with scene.site() as site:
        site.take(*batch(30))
        first_boot = site.uplink.intake.boot_id
    with scene.consumer() as consumer, scene.site() as site:
        assert site.report()["spool_messages"] == 30
        site.take(*batch(3, 30))
        scene.line.mend()
        wait_until(lambda: len(consumer.unique()) == 33)
        boots = {e["boot_id"]: e["sequence"] for e in consumer.envelopes if e["device_id"] == "press-07"}
        assert boots == {first_boot: 10, site.uplink.intake.boot_id: 1}


def test_user_properties_leave_the_payload_alone(scene: Scene) -> None:
    """With envelope = "mqtt5" the payload is the device's own, and the facts are user properties."""
    with scene.consumer(mqtt5=True) as consumer, scene.site(envelope=Envelope.MQTT5) as site:
        connected(site).take(("devices/press-07/raw", b"\x00\xff", "press-07"))
        wait_until(lambda: consumer.messages)
        assert consumer.messages[0].payload == b"\x00\xff"
        found = dict(consumer.messages[0].properties.UserProperty)
        assert found["device_id"] == "press-07"
        assert found["sequence"] == "1"
        assert found["boot_id"] == site.uplink.intake.boot_id
        assert found["replayed"] == "false"
        wait_until(lambda: site.report()["spool_messages"] == 0)


def test_without_an_envelope_the_payload_goes_as_it_is(scene: Scene) -> None:
    """With envelope = "none" nothing is added."""
    with scene.consumer() as consumer, scene.site(envelope=Envelope.NONE) as site:
        connected(site).take(("devices/press-07/raw", b"21.5", "press-07"))
        wait_until(lambda: consumer.messages)
        assert consumer.messages[0].payload == b"21.5"


def test_a_qos_0_message_is_passed_on_and_never_spooled(scene: Scene) -> None:
    """It arrives while there is a line; without one it is lost and counted, and its number is missing."""
    with scene.consumer() as consumer, scene.site() as site:
        connected(site).take(("devices/press-07/fast", b"1", "press-07"), qos=0)
        wait_until(lambda: len(consumer.messages) == 1)
        scene.line.cut()
        wait_until(lambda: site.report()["state"] != "connected")
        site.take(("devices/press-07/fast", b"2", "press-07"), qos=0)
        report = site.report()
        assert report["dropped"] == {"qos0_no_line": 1}
        assert report["spool_messages"] == 0
        scene.line.mend()
        connected(site).take(("devices/press-07/fast", b"3", "press-07"), qos=0)
        wait_until(lambda: len(consumer.messages) == 2)
        assert [e["sequence"] for e in consumer.envelopes] == [1, 3]


def test_an_entry_with_qos_0_spools_nothing(scene: Scene) -> None:
    """The lower of the message's and the entry's QoS decides."""
    topics = parse_publish([{"local": "devices/#", "remote": "x/#", "qos": 0}])
    with scene.site(publish=topics) as site:
        scene.line.cut()
        site.take(*batch(5), qos=1)
        assert site.report()["spool_messages"] == 0


def test_a_topic_outside_of_the_map_does_not_go_up(scene: Scene) -> None:
    """The deny twin: what no entry names stays on the site."""
    with scene.site() as site:
        scene.line.cut()
        site.take(("machines/press-07/state", b"x", "press-07"))
        assert site.report()["spool_messages"] == 0
        assert site.uplink.intake.wants("machines/press-07/state") is None
        assert site.uplink.intake.wants("devices/press-07/state") == 1


def test_a_full_spool_says_so_and_takes_again_when_there_is_room(scene: Scene) -> None:
    """Bounded in bytes, with `withhold`: full is full, nothing that was acknowledged goes, and it drains (D3)."""
    with scene.consumer() as consumer, scene.site(spool_max_bytes=65536) as site:
        scene.line.cut()
        taken = site.take_while_there_is_room(*batch(600))
        held = site.report()
        assert held["spool_full"]
        assert held["spool_messages"] == taken < 600
        assert 65536 <= held["spool_bytes"] < 65536 + 256
        assert held["dropped"] == {}
        scene.line.mend()
        wait_until(lambda: len(consumer.unique()) == held["spool_messages"])
        wait_until(lambda: not site.report()["spool_full"])


def test_drop_oldest_keeps_the_newest_within_the_bound_and_counts(scene: Scene) -> None:
    """The stated exception of D0: the oldest go, by the byte, and every one of them is counted."""
    with scene.consumer() as consumer, scene.site(spool_max_bytes=65536, spool_full="drop-oldest") as site:
        scene.line.cut()
        for start in range(0, 1000, 10):
            site.take(*batch(10, start))
        held = site.report()
        assert held["spool_bytes"] <= 65536 + 10 * 256
        assert held["dropped"]["spool_full"] + held["spool_messages"] == 1000
        scene.line.mend()
        wait_until(lambda: len(consumer.unique()) == held["spool_messages"])
        assert {e["payload"] for e in consumer.envelopes} == {
            str(n) for n in range(1000 - held["spool_messages"], 1000)
        }


def test_a_burst_larger_than_the_live_lane_arrives_whole(scene: Scene) -> None:
    """What memory does not hold is found on disk, while the connection stands."""
    count = MAX_LIVE_MESSAGES * 3
    with scene.consumer() as consumer, scene.site() as site:
        connected(site).take(*batch(count))
        wait_until(lambda: len(consumer.unique()) == count, timeout_s=30)
        assert in_order(consumer.envelopes)
        assert site.report()["connections"] == 1


def test_a_line_that_is_half_open_is_left_and_nothing_is_lost(scene: Scene) -> None:
    """A peer that swallows everything without a word is noticed by the missing acknowledgement."""
    with scene.consumer() as consumer, scene.site(ack_timeout_s=0.5) as site:
        connected(site)
        scene.line.deaden()
        site.take(*batch(20))
        wait_until(lambda: "acknowledged" in site.report()["last_fault"])
        scene.line.cut()
        scene.line.mend()
        wait_until(lambda: len(consumer.unique()) == 20)
        assert all(e["replayed"] for e in consumer.envelopes)


def test_a_clock_that_runs_backwards_changes_times_and_nothing_else(scene: Scene) -> None:
    """The stamps say what the clock said; order, age and delivery do not depend on it."""
    with scene.consumer() as consumer, scene.site() as site:
        scene.line.cut()
        site.take(*batch(3))
        site.time = lambda: (datetime.now(UTC) - timedelta(days=20_000), "floor")
        site.take(*batch(3, 3))
        wait_until(lambda: site.report()["oldest_s"] == 0.0)
        scene.line.mend()
        wait_until(lambda: len(consumer.unique()) == 6)
        assert [e["sequence"] for e in consumer.envelopes] == [1, 1, 1, 2, 2, 2]
        assert [e["time_state"] for e in consumer.envelopes] == ["synced"] * 3 + ["floor"] * 3
        assert consumer.envelopes[5]["time"] < "1990"


def test_a_command_comes_down_where_its_entry_allows_and_is_acknowledged(scene: Scene) -> None:
    """Mapped and emitted once; while the gateway was away the upstream kept it."""
    topics = parse_subscribe([{"remote": "orders/{gateway}/#", "local": "devices/#"}])
    name = scene.name
    with scene.consumer() as console:
        with scene.site(subscribe=topics) as site:
            connected(site)
            wait_until(lambda: site.report()["subscriptions"] == {f"orders/{name}/#": "granted"})
            console.publish(f"orders/{name}/press-07/commands/go", "1")
            wait_until(lambda: site.commands)
            assert site.commands[0] == ("devices/press-07/commands/go", b"1", 1)
        console.publish(f"orders/{name}/press-07/commands/go", "later")
        with scene.site(subscribe=topics) as site:
            wait_until(lambda: [c for c in site.commands if c[1] == b"later"])
            assert [c[1] for c in site.commands].count(b"later") == 1


def test_a_command_that_was_retained_or_maps_nowhere_is_acknowledged_and_goes_nowhere(scene: Scene) -> None:
    """The deny twin: it is counted, is not delivered, and does not come again."""
    name = scene.name
    topics = parse_subscribe([{"remote": "orders/{gateway}/#", "local": "#"}])
    with scene.consumer() as console:
        console.publish(f"orders/{name}/devices/press-07/commands/go", "old", retain=True)
        with scene.site(subscribe=topics) as site:
            wait_until(lambda: site.report()["commands"].get("retained") == 1)
            console.publish(f"orders/{name}/$SYS/uptime", "forged")
            wait_until(lambda: site.report()["commands"].get("unmapped") == 1)
            console.publish(f"orders/{name}/devices/press-07/commands/go", "new")
            wait_until(lambda: site.commands)
            assert site.commands == [("devices/press-07/commands/go", b"new", 1)]
        console.publish(f"orders/{name}/devices/press-07/commands/go", "", retain=True)


def test_what_came_down_does_not_go_up_again(scene: Scene) -> None:
    """A command matches the publish map as well; it is no news for the upstream."""
    with scene.site() as site:
        scene.line.cut()
        site.take(("devices/press-07/commands/go", b"x", "$uplink"))
        assert site.report()["spool_messages"] == 0


def test_the_spool_is_what_the_store_holds(scene: Scene) -> None:
    """Judged with SQLite itself: figures and rows agree, before and after the replay."""

    def rows() -> tuple[int, int]:
        with closing(sqlite3.connect(scene.folder / "gateway.db")) as db:
            found: tuple[int, int] = db.execute("SELECT count(*), ifnull(sum(size), 0) FROM uplink").fetchone()
            return found

    with scene.site() as site:
        scene.line.cut()
        site.take(*batch(700))
        assert rows() == (site.report()["spool_messages"], site.report()["spool_bytes"])
        scene.line.mend()
        wait_until(lambda: site.report()["spool_messages"] == 0)
        assert rows() == (0, 0)
