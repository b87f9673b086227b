"""kill -9 of the real program, as anybody can do it: what was acknowledged is there."""

from __future__ import annotations

import json
import random
import signal
import ssl
import sys
from pathlib import Path

from gateway.broker.packets import PacketType, Will, encode_ack
from tests.durability.test_restart import on_disk
from tests.gateway.site import Running, Site
from tests.integration.programs import attempt
from tests.support.gateway import OPEN_POLICY, RawClient, wait_until
from tests.support.pki import Credential, Pki

STORE = {"path": "gateway.db", "min_free_bytes": 0, "allow_volatile": True}


def site_of(folder: Path, pki: Pki, **tables: dict[str, object]) -> Site:
    return Site(folder, pki, OPEN_POLICY, **{"store": STORE, **tables})


def client(gateway: Running, who: Credential) -> RawClient:
    context = ssl.create_default_context(cafile=str(gateway.site.pki.ca_file))
    context.load_cert_chain(who.cert_file, who.key_file)
    made = RawClient(gateway.port, context)
    gateway.clients.append(made)
    return made


def kill(gateway: Running) -> None:
    gateway.process.send_signal(signal.SIGKILL)
    gateway.process.wait()


def test_d1_a_thousand_acknowledged_messages_survive_kill_9(tmp_path: Path, pki: Pki) -> None:
    """D1: 1,000 PUBACKs for an absent persistent subscriber, SIGKILL, and 1,000 are there in order."""
    site = site_of(tmp_path, pki)
    sub, pub = pki.device("sub"), pki.device("pub")
    with Running(site) as gateway:
        subscriber = client(gateway, sub)
        assert subscriber.connect("sub", clean=False) == (False, 0)
        subscriber.subscribe(("a/#", 1))
        subscriber.close()
        publisher = client(gateway, pub)
        publisher.connect("pub")
        for number in range(1, 1001):
            publisher.publish("a/b", b"%d" % number, 1, packet_id=number)
        for _ in range(1000):
            assert publisher.read()[0] >> 4 == PacketType.PUBACK
        kill(gateway)
    with Running(site) as gateway:
        subscriber = client(gateway, sub)
        assert subscriber.connect("sub", clean=False) == (True, 0)
        taken = []
        for _ in range(1000):
            message = subscriber.expect_publish()
            taken.append(message.payload)
            subscriber.send(encode_ack(PacketType.PUBACK, message.packet_id))
        assert taken == [b"%d" % number for number in range(1, 1001)]


def test_a_will_that_a_crash_left_due_fires_at_the_start(tmp_path: Path, pki: Pki) -> None:
    """The connection ended with the gateway: its will reaches a persistent subscriber, once, and is then gone."""
    site = site_of(tmp_path, pki)
    sub, dev = pki.device("sub"), pki.device("dev-a")
    with Running(site) as gateway:
        subscriber = client(gateway, sub)
        subscriber.connect("sub", clean=False)
        subscriber.subscribe(("wills/#", 1))
        subscriber.close()
        client(gateway, dev).connect("dev-a", will=Will("wills/a", b"gone", 1, True))
        wait_until(lambda: on_disk(tmp_path, "wills") == 1, "the will on disk")
        kill(gateway)
    for expected in ([b"gone"], []):
        with Running(site) as gateway:
            subscriber = client(gateway, sub)
            assert subscriber.connect("sub", clean=False) == (True, 0)
            for payload in expected:
                message = subscriber.expect_publish()
                assert message.payload == payload
                subscriber.send(encode_ack(PacketType.PUBACK, message.packet_id))
            subscriber.ping()
            wait_until(lambda: on_disk(tmp_path, "wills") == on_disk(tmp_path, "deliveries") == 0, "nothing due")
            kill(gateway)


def test_a_will_whose_right_is_gone_does_not_fire_after_a_crash(tmp_path: Path, pki: Pki) -> None:
    """The deny twin: the policy of the start decides, and the refusal is audited."""
    site = site_of(tmp_path, pki)
    with Running(site) as gateway:
        client(gateway, pki.device("dev-a")).connect("dev-a", will=Will("wills/a", b"gone", 1, True))
        wait_until(lambda: on_disk(tmp_path, "wills") == 1, "the will on disk")
        kill(gateway)
    site.policy_file.write_text(OPEN_POLICY.replace('will = ["#", "$test/#"]', ""))
    with Running(site):
        wait_until(lambda: on_disk(tmp_path, "wills") == 0, "the will is over")
        assert on_disk(tmp_path, "retained") == 0
        assert site.audit("denied", reason="will_refused")


def test_the_queue_of_a_device_revoked_while_the_gateway_was_down_is_purged(tmp_path: Path, pki: Pki) -> None:
    """R1 at the start: session and messages of the revoked device leave the disk; its neighbour's stay."""
    site = site_of(tmp_path, pki)
    bad, good, pub = (pki.device(name) for name in ("bad", "good", "pub"))
    with Running(site) as gateway:
        for name, who in (("bad", bad), ("good", good)):
            subscriber = client(gateway, who)
            subscriber.connect(name, clean=False)
            subscriber.subscribe(("a/#", 1))
            subscriber.close()
        publisher = client(gateway, pub)
        publisher.connect("pub")
        publisher.publish("a/b", b"x", 1)
        assert publisher.read()[0] >> 4 == PacketType.PUBACK
        kill(gateway)
    site.revoke(bad.certificate)
    with Running(site):
        wait_until(lambda: on_disk(tmp_path, "sessions") == on_disk(tmp_path, "deliveries") == 1, "one session")
        assert [line["id"] for line in site.audit("purged")] == ["bad"]


def write_registry(folder: Path, *names: str) -> None:
    (folder / "devices.jsonl").write_text("".join(f'{{"id": "{name}"}}\n' for name in names))


def test_what_a_device_left_that_is_no_longer_registered_does_not_act_after_kill_9(tmp_path: Path, pki: Pki) -> None:
    """Its will stays unsaid and its subscription takes nothing; its neighbour's go on, and nothing is deleted (D7)."""
    write_registry(tmp_path, "gone", "stays", "pub")
    site = site_of(tmp_path, pki)
    site.configure(policy={"registry": "devices.jsonl", "registry_required": True})
    gone, stays, pub = (pki.device(name) for name in ("gone", "stays", "pub"))

    def publish(gateway: Running, payload: bytes) -> None:
        publisher = client(gateway, pub)
        publisher.connect("pub")
        publisher.publish("a/b", payload, 1)
        assert publisher.read()[0] >> 4 == PacketType.PUBACK

    def waiting(gateway: Running, who: Credential, name: str, *payloads: bytes) -> None:
        subscriber = client(gateway, who)
        assert subscriber.connect(name, clean=False) == (True, 0)
        for payload in payloads:
            message = subscriber.expect_publish()
            assert message.payload == payload
            subscriber.send(encode_ack(PacketType.PUBACK, message.packet_id))
        subscriber.ping()

    with Running(site) as gateway:
        for name, who in (("gone", gone), ("stays", stays)):
            subscriber = client(gateway, who)
            subscriber.connect(name, clean=False)
            subscriber.subscribe(("a/#", 1))
            subscriber.close()
        publish(gateway, b"before")
        client(gateway, gone).connect("gone-2", clean=True, will=Will("wills/gone", b"gone", 1, True))
        wait_until(lambda: on_disk(tmp_path, "wills") == 1, "the will on disk")
        kill(gateway)
    write_registry(tmp_path, "stays", "pub")
    with Running(site) as gateway:
        wait_until(lambda: on_disk(tmp_path, "wills") == 0, "the will is over")
        assert on_disk(tmp_path, "retained") == 0
        publish(gateway, b"after")
        waiting(gateway, stays, "stays", b"before", b"after")
        wait_until(lambda: on_disk(tmp_path, "deliveries") == 1, "one delivery, of before, for the one that sleeps")
        kill(gateway)
    write_registry(tmp_path, "gone", "stays", "pub")
    with Running(site) as gateway:
        waiting(gateway, gone, "gone", b"before")


def test_the_status_says_how_the_store_is_doing(tmp_path: Path, pki: Pki) -> None:
    """Depth, bytes, commits and whether it takes more, for people and as JSON."""
    site = site_of(tmp_path, pki)
    with Running(site) as gateway:
        subscriber = client(gateway, pki.device("sub"))
        subscriber.connect("sub", clean=False)
        subscriber.subscribe(("a/#", 1))
        subscriber.close()
        publisher = client(gateway, pki.device("pub"))
        publisher.connect("pub")
        publisher.publish("a/b", b"x", 1)
        publisher.ping_after_acks(1)
        text = " ".join(site.command("status").stdout.split())  # long values are wrapped
        assert ", accepting size " in text
        assert "1 messages, 132 bytes, oldest 0 s" in text
        store = json.loads(site.command("status", "--json").stdout)["store"]
        assert store["commits"] > 1
        assert store["queued"] == 1


def test_d4_a_store_on_tmpfs_ends_the_start_with_78(tmp_path: Path, pki: Pki) -> None:
    """Refused as a configuration that cannot be used, by `run` and by `check-config`, naming the place."""
    site = site_of(tmp_path, pki, store={"path": "/dev/shm/mqtt-gateway-test.db"})
    for verb in ("check-config", "run"):
        done = site.command(verb)
        assert done.returncode == 78
        assert "lies on tmpfs" in done.stderr
    assert not Path("/dev/shm/mqtt-gateway-test.db").exists()


def test_without_a_store_the_operator_is_told_what_is_not_promised(tmp_path: Path, pki: Pki) -> None:
    """At every start, in the status and in the audit log."""
    site = Site(tmp_path, pki, OPEN_POLICY)
    with Running(site) as gateway:
        assert "acknowledged messages live in memory" in gateway.said()
        assert "acknowledged messages live in memory" in site.command("status", "--json").stdout
        assert site.audit("started")[0]["store"] == "memory"


def test_d6_a_damaged_store_never_stops_the_start(tmp_path: Path, pki: Pki) -> None:
    """Bytes flipped over the whole file, in the real program: it serves, and what it set aside is named."""
    site = site_of(tmp_path, pki)
    path = tmp_path / "gateway.db"
    with Running(site) as gateway:
        subscriber = client(gateway, pki.device("sub"))
        subscriber.connect("sub", clean=False)
        subscriber.subscribe(("a/#", 1))
        publisher = client(gateway, pki.device("pub"))
        publisher.connect("pub")
        for number in range(1, 41):
            publisher.publish("a/b", bytes(500), 1, retain=True, packet_id=number)
        publisher.ping_after_acks(40)
    whole = path.read_bytes()
    chosen = random.Random(3)  # noqa: S311 - a sample
    for _ in range(3):
        damaged = bytearray(whole)
        for _ in range(len(whole) // 20):
            damaged[chosen.randrange(len(whole))] ^= 255
        for leftover in tmp_path.glob("gateway.db*"):
            leftover.unlink()
        path.write_bytes(damaged)
        with Running(site) as gateway:
            aside = site.audit("started")[-1]["store_set_aside"]
            assert Path(aside).read_bytes() == bytes(damaged)
            assert "set aside" in gateway.said()
            assert client(gateway, pki.device("dev")).connect("dev", clean=False) == (False, 0)


TORTURE = ("--rounds", "3", "--seed", "7", "--publishers", "2", "--subscribers", "2", "--json")


def test_the_torture_finds_nothing_lost_here(tmp_path: Path) -> None:
    """The short form of `mqtt-gateway torture`: nothing acknowledged is lost, nothing reordered, QoS 2 once."""
    done = attempt("mqtt-gateway", "torture", *TORTURE, "--dir", tmp_path)
    verdict = json.loads(done.stdout)
    assert done.returncode == 0, verdict
    assert (verdict["lost"], verdict["reordered"], verdict["qos2_repeated"], verdict["sessions_lost"]) == (0, 0, 0, 0)
    assert verdict["acknowledged"] > 100


def test_the_torture_finds_what_a_broker_without_a_store_loses(tmp_path: Path) -> None:
    """The twin: the same gateway with its store taken away, by its start command, fails with exit code 1."""
    script = tmp_path / "start.sh"
    script.write_text(
        "sed -i '/^.store/,$d' $DIR/gateway.toml\n"
        f"exec {sys.executable} -m gateway.cli run --config $DIR/gateway.toml\n"
    )
    done = attempt("mqtt-gateway", "torture", *TORTURE, "--command", f"sh {script}", "--dir", tmp_path)
    verdict = json.loads(done.stdout)
    assert done.returncode == 1
    assert verdict["lost"] > 0
    assert verdict["sessions_lost"] > 0
