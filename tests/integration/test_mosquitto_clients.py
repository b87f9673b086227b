"""mosquitto_pub and mosquitto_sub, which we did not write, against our gateway."""

from pathlib import Path

import pytest

from tests.integration.programs import Authority, Gateway, Identity, Program, attempt, run


def options(gateway: Gateway, authority: Authority, who: Identity | None) -> list[str | Path]:
    shown: list[str | Path] = ["--cert", who.cert, "--key", who.key, "-i", who.name] if who else ["-i", "press-07"]
    return ["-h", "127.0.0.1", "-p", str(gateway.port), "--cafile", authority.ca_file, *shown]


def subscriber(gateway: Gateway, authority: Authority, who: Identity, log: Path, topic: str, qos: str) -> Program:
    """A mosquitto_sub that has its SUBACK: it prints one line per message, topic and payload."""
    command = ["stdbuf", "-oL", "mosquitto_sub", *options(gateway, authority, who), "-t", topic, "-q", qos, "-v", "-d"]
    program = Program(log, command)
    program.wait_until(lambda: "received SUBACK" in program.said() or "Subscribed (" in program.said(), "SUBACK")
    return program


@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_a_device_is_heard_by_the_service(
    gateway: Gateway, authority: Authority, device: Identity, service: Identity, tmp_path: Path, qos: str
) -> None:
    """What a device publishes below its own name arrives at who may read it, in every QoS."""
    topic = f"devices/press-07/telemetry/q{qos}"
    with subscriber(gateway, authority, service, tmp_path / "sub.log", "devices/#", qos) as heard:
        run("mosquitto_pub", *options(gateway, authority, device), "-t", topic, "-m", "21.5", "-q", qos)
        heard.wait_until(lambda: f"{topic} 21.5" in heard.said(), "the message")


def test_a_neighbour_is_not_heard_on_the_device_s_topic(
    gateway: Gateway,
    authority: Authority,
    device: Identity,
    neighbour: Identity,
    service: Identity,
    tmp_path: Path,
) -> None:
    """The deny twin: press-08 on press-07's topic is acknowledged, dropped and audited with the reason."""
    topic = "devices/press-07/telemetry/t"
    with subscriber(gateway, authority, service, tmp_path / "sub.log", "devices/#", "1") as heard:
        run("mosquitto_pub", *options(gateway, authority, neighbour), "-t", topic, "-m", "forged", "-q", "1")
        run("mosquitto_pub", *options(gateway, authority, device), "-t", topic, "-m", "genuine", "-q", "1")
        heard.wait_until(lambda: f"{topic} genuine" in heard.said(), "the genuine message")
        assert "forged" not in heard.said()
    denied = gateway.audit(event="denied", id="press-08")
    assert [(line["reason"], line["detail"]) for line in denied] == [("publish_denied", "no_grant")]


def test_a_service_commands_a_device(
    gateway: Gateway, authority: Authority, device: Identity, service: Identity, tmp_path: Path
) -> None:
    """Commands go down to the device they name."""
    topic = "devices/press-07/commands/start"
    with subscriber(gateway, authority, device, tmp_path / "sub.log", "devices/press-07/commands/#", "1") as heard:
        run("mosquitto_pub", *options(gateway, authority, service), "-t", topic, "-m", "now", "-q", "1")
        heard.wait_until(lambda: f"{topic} now" in heard.said(), "the command")


def test_a_device_cannot_listen_to_its_neighbour(gateway: Gateway, authority: Authority, neighbour: Identity) -> None:
    """The deny twin: a filter beyond the own tree gets SUBACK 0x80, and mosquitto_sub ends."""
    for topic in ("devices/press-07/commands/#", "devices/#", "#"):
        done = attempt("mosquitto_sub", *options(gateway, authority, neighbour), "-t", topic, "-W", "10", "-d")
        assert "All subscription requests were denied" in done.stdout + done.stderr


def test_who_is_not_certified_by_us_does_not_get_in(
    gateway: Gateway, authority: Authority, self_signed: Identity, foreign: Identity
) -> None:
    """No certificate, a self-signed one, a foreign CA's: no CONNACK, and nobody was admitted."""
    before = len(gateway.audit(event="admitted"))
    for who in (None, self_signed, foreign):
        done = attempt(
            "mosquitto_pub", *options(gateway, authority, who), "-t", "devices/press-07/telemetry/t", "-m", "x"
        )
        assert done.returncode != 0
    assert len(gateway.audit(event="admitted")) == before


def test_a_client_identifier_of_another_device_is_refused(
    gateway: Gateway, authority: Authority, device: Identity, neighbour: Identity
) -> None:
    """press-08 calling itself press-07 gets return code 2, identifier rejected."""
    impostor = Identity("press-07", neighbour.cert, neighbour.key)
    done = attempt("mosquitto_pub", *options(gateway, authority, impostor), "-t", "devices/press-08/state", "-m", "x")
    assert (done.returncode, "identifier rejected" in (done.stdout + done.stderr)) == (2, True)


def test_a_revoked_device_is_cut_off_and_stays_out(tmp_path: Path) -> None:
    """After revoke, crl and SIGHUP the live connection ends, the next one is refused, the neighbour stays."""
    authority = Authority.make(tmp_path / "site")
    gone, kept = authority.issue("press-01"), authority.issue("press-02")
    with Gateway(tmp_path / "gw", authority) as gateway:
        filters = {who.name: f"devices/{who.name}/commands/#" for who in (gone, kept)}
        cut = subscriber(gateway, authority, gone, tmp_path / "gone.log", filters["press-01"], "1")
        stays = subscriber(gateway, authority, kept, tmp_path / "kept.log", filters["press-02"], "1")
        with cut, stays:
            authority.revoke("press-01")
            gateway.crl_file.write_bytes(authority.crl_file.read_bytes())
            gateway.reload()
            gateway.wait_until(
                lambda: gateway.audit(event="disconnected", id="press-01", reason="certificate_revoked"), "the cut"
            )
            topic = ("-t", "devices/press-01/state", "-m", "x")
            assert attempt("mosquitto_pub", *options(gateway, authority, gone), *topic).returncode != 0
            assert stays.process.poll() is None
            assert not gateway.audit(event="disconnected", id="press-02")


def test_the_gateway_ends_in_order(authority: Authority, tmp_path: Path) -> None:
    """SIGTERM ends it with status 0, and the service manager was told both times."""
    gateway = Gateway(tmp_path / "gw", authority)
    with gateway:
        assert gateway.end() == 0
        assert gateway.notified("STOPPING=1")
        assert gateway.audit(event="stopped")
