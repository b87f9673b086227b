"""The agent against a real mosquitto: readings arrive, losses are survived, and every certificate problem has its
sentence."""

import json
import signal
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.device_sim.conftest import Broker
from tests.device_sim.processes import Program, device_sim, free_port, wait_for
from tests.support.pki import Credential, Pki, now


def agent_arguments(broker: str, pki: Pki, device: Credential, *more: object, **options: Any) -> list[object]:
    device_id = options.get("device_id", "dev-a")
    source = options.get("source", "sim://counter?interval=0.05&seed=7")
    files = ("--cert", device.cert_file, "--key", device.key_file, "--ca", options.get("ca", pki.ca_file))
    return ["run", "--id", device_id, *files, "--broker", broker, "--source", source, *more]


def readings(client: Program, topic: str) -> list[str]:
    """The payloads that a subscriber saw on `topic`, in order."""
    lines = client.out.decode().splitlines()
    return [line.split(" ", 2)[2] for line in lines if line.startswith(("0 ", "1 ")) and line.split(" ")[1] == topic]


def states(client: Program) -> list[str]:
    return readings(client, "devices/dev-a/state")


def test_readings_arrive_and_the_agent_ends_when_all_are_acknowledged(broker: Broker, pki: Pki) -> None:
    """--count 3: three readings on the default topic, online before, offline after, exit 0."""
    client = broker.subscribe("devices/#")
    with device_sim(*agent_arguments(broker.address, pki, pki.device("dev-a"), "--count", 3, "--json")) as agent:
        assert agent.ends() == 0, agent.err.decode()
    assert json.loads(agent.out) == {"taken": 3, "acknowledged": 3, "dropped": 0}
    wait_for("offline", lambda: states(client) == ["online", "offline"])
    payloads = [json.loads(text) for text in readings(client, "devices/dev-a/telemetry/counter")]
    assert [payload["sequence"] for payload in payloads] == [1, 2, 3]


def test_the_same_seed_publishes_the_same_bytes(broker: Broker, pki: Pki) -> None:
    """Two runs with one seed are equal byte for byte, a third is not."""
    client = broker.subscribe("runs/#")
    device = pki.device("dev-a")
    for run, seed in enumerate((7, 7, 8)):
        source = f"sim://temperature?interval=0.001&seed={seed}"
        arguments = agent_arguments(broker.address, pki, device, "--count", 5, "--topic", f"runs/{run}", source=source)
        with device_sim(*arguments) as agent:
            assert agent.ends() == 0, agent.err.decode()
    wait_for("all runs", lambda: len(readings(client, "runs/2")) == 5)
    runs = [readings(client, f"runs/{run}") for run in range(3)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_the_state_is_retained(broker: Broker, pki: Pki) -> None:
    """Who subscribes later still learns that the device is online, and then that it went."""
    with device_sim(*agent_arguments(broker.address, pki, pki.device("dev-a"))) as agent:
        agent.says("connected to")
        late = broker.subscribe("devices/dev-a/state")
        wait_for("retained online", lambda: states(late) == ["online"])
        assert late.out.decode().splitlines()[-1].startswith("1 ")
        assert agent.stop() == 0
        wait_for("offline", lambda: states(late)[-1] == "offline")


def test_the_will_fires_when_the_agent_is_killed(broker: Broker, pki: Pki) -> None:
    """kill -9: nobody says goodbye, and the broker says offline, retained."""
    client = broker.subscribe("devices/dev-a/state")
    with device_sim(*agent_arguments(broker.address, pki, pki.device("dev-a"))) as agent:
        wait_for("online", lambda: states(client) == ["online"])
        agent.stop(signal.SIGKILL)
    wait_for("the will", lambda: states(client) == ["online", "offline"])
    late = broker.subscribe("devices/dev-a/state")
    wait_for("the retained will", lambda: states(late) == ["offline"])


def test_nothing_is_lost_while_the_broker_restarts(broker: Broker, pki: Pki) -> None:
    """The agent waits with jitter, comes back by itself, and the readings made meanwhile arrive in order."""
    arguments = agent_arguments(broker.address, pki, pki.device("dev-a"), "--count", 60)
    with device_sim(*arguments) as agent:
        agent.says("connected to")
        before = broker.subscribe("devices/dev-a/telemetry/counter")
        wait_for("readings", lambda: len(readings(before, "devices/dev-a/telemetry/counter")) >= 3)
        broker.stop()
        agent.says("trying again in")
        broker.start()
        after = broker.subscribe("devices/dev-a/telemetry/counter")
        assert agent.ends() == 0, agent.err.decode()
    assert b"60 acknowledged" in agent.out
    seen = [json.loads(text)["sequence"] for text in readings(after, "devices/dev-a/telemetry/counter")]
    assert seen == sorted(seen)
    assert seen[-1] == 60


def test_an_agent_may_start_before_its_broker(make_broker: Callable[..., Broker], pki: Pki) -> None:
    """Network faults are never permanent: it waits, and publishes what it has once somebody listens."""
    broker = make_broker()
    broker.stop()
    with device_sim(*agent_arguments(broker.address, pki, pki.device("dev-a"), "--count", 2)) as agent:
        agent.says("connection refused; trying again")
        wait_for("a second try", lambda: agent.err.count(b"trying again") >= 2)
        broker.start()
        assert agent.ends() == 0, agent.err.decode()
    assert agent.err.count(b"hint: is it there? device-sim handshake") == 1  # and not at every try


def test_standard_input_ends_at_its_end(broker: Broker, pki: Pki) -> None:
    """Every line is acknowledged, the last one needs no newline, and the exit code is 0."""
    client = broker.subscribe("devices/dev-a/telemetry/stdin")
    arguments = agent_arguments(broker.address, pki, pki.device("dev-a"), source="-")
    with device_sim(*arguments, stdin=subprocess.PIPE) as agent:
        assert agent.process.stdin is not None
        agent.process.stdin.write(b"".join(b"line %d\n" % number for number in range(500)) + b"\xff\xfe\nlast")
        agent.process.stdin.close()
        assert agent.ends() == 0, agent.err.decode()
    wait_for("all lines", lambda: len(readings(client, "devices/dev-a/telemetry/stdin")) == 501)
    seen = readings(client, "devices/dev-a/telemetry/stdin")
    assert seen == [*(f"line {number}" for number in range(500)), "last"]
    assert b"1 that are no text" in agent.err


def test_standard_input_waits_when_the_buffer_is_full(broker: Broker, pki: Pki) -> None:
    """A file can wait: with a buffer of 1 KiB and a broker that comes late not one of 2000 lines is dropped."""
    broker.stop()
    arguments = agent_arguments(broker.address, pki, pki.device("dev-a"), "--buffer", 1024, "--json", source="-")
    with device_sim(*arguments, stdin=subprocess.PIPE) as agent:
        assert agent.process.stdin is not None
        agent.says("trying again")
        broker.start()
        agent.process.stdin.write(b"".join(b"line %d\n" % number for number in range(2000)))
        agent.process.stdin.close()
        assert agent.ends(60) == 0, agent.err.decode()
    assert json.loads(agent.out) == {"taken": 2000, "acknowledged": 2000, "dropped": 0}


def test_a_sensor_drops_its_oldest_readings_and_counts_them(broker: Broker, pki: Pki) -> None:
    """A sensor cannot wait: offline with a small buffer the newest are kept, and the numbers add up."""
    broker.stop()
    source = "sim://counter?interval=0.001"
    more = ("--buffer", 2048, "--count", 500, "--json")
    with device_sim(*agent_arguments(broker.address, pki, pki.device("dev-a"), *more, source=source)) as agent:
        agent.says("trying again in")
        agent.says("trying again in")
        wait_for("a second try", lambda: agent.err.count(b"trying again") >= 2)
        broker.start()
        assert agent.ends() == 0, agent.err.decode()
    numbers = json.loads(agent.out)
    assert numbers["taken"] == 500
    assert numbers["dropped"] > 0
    assert numbers["acknowledged"] + numbers["dropped"] == 500


def test_a_renewed_certificate_is_used_at_the_next_connection(broker: Broker, pki: Pki) -> None:
    """The files are read again; a half-done renewal keeps the old pair and says so."""
    old, new = pki.device("dev-a"), pki.device("dev-a")
    good_key = old.key_file.read_bytes()
    with device_sim(*agent_arguments(broker.address, pki, old)) as agent:
        agent.says("connected to")
        old.key_file.write_bytes(new.key_file.read_bytes())
        broker.stop()
        agent.says("trying again in")
        broker.start()
        agent.says("going on with the certificate read before")
        wait_for("a second connection", lambda: agent.err.count(b"connected to") == 2)
        old.key_file.write_bytes(good_key)
        assert agent.stop() == 0


# --- each certificate problem ---


def refused(*arguments: object, code: int = 1) -> str:
    """The error output of an agent that must end by itself with `code`, without a traceback."""
    with device_sim(*arguments) as agent:
        assert agent.ends() == code, agent.err.decode()
    text = agent.err.decode()
    assert "Traceback" not in text
    assert text.count("error: ") == 1
    assert "hint: " in text
    return text


def test_an_expired_certificate_is_told_before_connecting(pki: Pki) -> None:
    """With the date, the clock, and no connection attempt: nobody listens on that port."""
    device = pki.raw_leaf(not_before=now() - timedelta(days=2), not_after=now() - timedelta(days=1))
    text = refused(*agent_arguments(f"localhost:{free_port()}", pki, device))
    assert f"{device.cert_file} expired at" in text
    assert "clock=" in text


def test_a_certificate_of_the_future_is_told_before_connecting(pki: Pki) -> None:
    """Not yet valid: the hint is the clock."""
    device = pki.raw_leaf(not_before=now() + timedelta(days=1), not_after=now() + timedelta(days=2))
    text = refused(*agent_arguments(f"localhost:{free_port()}", pki, device))
    assert f"{device.cert_file} is not valid before" in text
    assert "clock" in text


def test_a_key_of_another_certificate_is_told(pki: Pki) -> None:
    """Both files are named; a configuration fault."""
    one, other = pki.device("dev-a"), pki.device("dev-a")
    mixed = Credential(one.cert_file, other.key_file, one.certificate)
    text = refused(*agent_arguments("localhost:1", pki, mixed), code=78)
    assert f"{other.key_file} is not the key of {one.cert_file}" in text


def test_a_key_that_others_can_read_is_refused(pki: Pki) -> None:
    """The mode is named; a configuration fault."""
    device = pki.device("dev-a")
    device.key_file.chmod(0o644)
    text = refused(*agent_arguments("localhost:1", pki, device), code=78)
    assert f"{device.key_file} can be read by others (mode 0644)" in text


@pytest.mark.parametrize("which", ["cert", "key", "ca"])
@pytest.mark.parametrize("content", [None, b"", b"junk\n"])
def test_a_file_that_cannot_be_used_is_named(which: str, content: bytes | None, pki: Pki, tmp_path: Path) -> None:
    """Missing, empty or junk: exit 78, the file is named."""
    bad = tmp_path / "bad.pem"
    if content is not None:
        bad.write_bytes(content)
        bad.chmod(0o600)
    device = pki.device("dev-a")
    files = {"cert": device.cert_file, "key": device.key_file, "ca": pki.ca_file, which: bad}
    arguments = agent_arguments("localhost:1", pki, device)
    for name, path in files.items():
        arguments[arguments.index(f"--{name}") + 1] = path
    assert str(bad) in refused(*arguments, code=78)


def test_a_gateway_of_another_ca_is_refused(broker: Broker, pki: Pki, tmp_path: Path) -> None:
    """The agent trusts only its own CA file, and names it."""
    other = Pki(tmp_path / "other", "other")
    text = refused(*agent_arguments(broker.address, pki, pki.device("dev-a"), ca=other.ca_file))
    assert f"the certificate of the gateway {broker.address} is not from a CA in {other.ca_file}" in text


def test_a_gateway_of_another_name_is_refused(make_broker: Callable[..., Broker], pki: Pki) -> None:
    """A certificate for gateway.example does not serve localhost."""
    broker = make_broker(pki.server(dns=("gateway.example",), ips=()))
    text = refused(*agent_arguments(broker.address, pki, pki.device("dev-a")))
    assert "is for another name than localhost" in text


def test_an_expired_gateway_is_refused(make_broker: Callable[..., Broker], pki: Pki) -> None:
    """The gateway's certificate, not ours: the sentence says whose."""
    from cryptography.x509.oid import ExtendedKeyUsageOID

    server = pki.raw_leaf(
        cn="localhost",
        eku=(ExtendedKeyUsageOID.SERVER_AUTH,),
        not_before=now() - timedelta(days=2),
        not_after=now() - timedelta(days=1),
    )
    broker = make_broker(server)
    text = refused(*agent_arguments(broker.address, pki, pki.device("dev-a")))
    assert f"the certificate of the gateway {broker.address} has expired" in text


def test_a_device_of_another_ca_is_refused_by_the_gateway(broker: Broker, pki: Pki, tmp_path: Path) -> None:
    """The alert that TLS 1.3 sends after the handshake is understood."""
    other = Pki(tmp_path / "other", "other")
    text = refused(*agent_arguments(broker.address, pki, other.device("dev-a")))
    assert f"the gateway {broker.address} refused this device's certificate" in text


def test_a_revoked_device_is_told_so(make_broker: Callable[..., Broker], pki: Pki) -> None:
    """The alert certificate_revoked, as mosquitto sends it with a CRL."""
    device = pki.device("dev-a")
    broker = make_broker(None, f"crlfile {pki.crl([device.certificate])}")
    text = refused(*agent_arguments(broker.address, pki, device))
    assert "refused this device's certificate: the other side says that our certificate is revoked" in text


def test_a_connack_that_says_no_is_told(make_broker: Callable[..., Broker], pki: Pki) -> None:
    """A certificate without a name: mosquitto answers CONNECT with a return code, and the agent names it."""
    from cryptography.x509.oid import NameOID

    device = pki.raw_leaf(cn=[], extra_names=[(NameOID.ORGANIZATION_NAME, "nobody")])
    text = refused(*agent_arguments(make_broker().address, pki, device))
    assert "(return code " in text


def test_retry_forever_goes_on_after_a_refusal(broker: Broker, pki: Pki, tmp_path: Path) -> None:
    """The same refusal with --retry-forever: it keeps trying, and ends in order when told to."""
    other = Pki(tmp_path / "other", "other")
    arguments = agent_arguments(broker.address, pki, other.device("dev-a"), "--retry-forever")
    with device_sim(*arguments) as agent:
        wait_for("two tries", lambda: agent.err.count(b"trying again") >= 2)
        assert agent.stop() == 0
    assert b"refused this device's certificate" in agent.err


def test_a_certificate_of_another_device_is_warned_about(broker: Broker, pki: Pki) -> None:
    """--id and certificate differ: said before the gateway has to."""
    arguments = agent_arguments(broker.address, pki, pki.device("dev-b"), "--count", 1)
    with device_sim(*arguments) as agent:
        agent.ends()
    assert b"is the certificate of dev-b, not of dev-a" in agent.err


def test_a_port_without_tls_is_told(pki: Pki) -> None:
    """Plain MQTT, or anything else, on the port: one sentence, no retry."""
    import socket
    import threading

    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        peer, _ = listener.accept()
        peer.recv(100)
        peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        peer.close()

    thread = threading.Thread(target=answer)
    thread.start()
    text = refused(*agent_arguments(f"localhost:{listener.getsockname()[1]}", pki, pki.device("dev-a")))
    thread.join()
    listener.close()
    assert "no TLS with" in text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--id", "a/b"),
        ("--id", ""),
        ("--broker", "host:99999"),
        ("--broker", "a b:1"),
        ("--broker", ":1"),
        ("--source", "sim://nothing"),
        ("--source", "sim://temperature?interval=0"),
        ("--source", "sim://temperature?speed=1"),
        ("--source", "serial://host/dev"),
        ("--source", "serial:///dev/x?baud=fast"),
        ("--source", "serial:///dev/x?accept=xml"),
        ("--source", "ftp://x"),
        ("--topic", "devices/+/x"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_with_a_hint(option: str, value: str, pki: Pki) -> None:
    """One sentence, one hint, before anything is opened; 78, which systemd does not try again."""
    arguments = agent_arguments("localhost:1", pki, pki.device("dev-a"), "--topic", "t")
    arguments[arguments.index(option) + 1] = value
    refused(*arguments, code=78)


def test_no_secret_is_printed(broker: Broker, pki: Pki) -> None:
    """Neither output holds a line of the key, whether it ends well or not."""
    device = pki.device("dev-a")
    secrets = [line for line in device.key_file.read_bytes().splitlines() if not line.startswith(b"---")]
    with device_sim(*agent_arguments(broker.address, pki, device, "--count", 1)) as agent:
        agent.ends()
    assert not any(secret in agent.err + agent.out for secret in secrets)
