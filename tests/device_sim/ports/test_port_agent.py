"""`device-sim run --config` on pseudo-terminals and a real mosquitto: several ports, unplugs, kills, and commands."""

import json
import os
import select
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from device_sim.ports.framing import Kind, encode_frame
from tests.device_sim.conftest import Broker
from tests.device_sim.processes import Program, device_sim, wait_for
from tests.device_sim.test_agent import readings
from tests.device_sim.test_serial_source import Cable
from tests.support.pki import Pki

GGA = b"$GPGGA,092750.000,5321.6802,N,00630.3372,W,1,8,1.03,61.7,M,55.2,M,,*76"
READINGS_PER_DAY = 8640  # one in ten seconds


class Desk:
    """A folder with an agent.toml, cables and a broker."""

    def __init__(self, folder: Path, broker: Broker, pki: Pki) -> None:
        self.folder, self.broker, self.pki = folder, broker, pki
        self.cables: dict[str, Cable] = {}

    def write(self, agent: str = "", **ports: str) -> Path:
        """agent.toml with these ports; the body of each [[port]] table is TOML."""
        device = self.pki.device("dev-a")
        lines = [
            "[agent]",
            'id = "dev-a"',
            f'cert_file = "{device.cert_file}"',
            f'key_file = "{device.key_file}"',
            f'ca_file = "{self.pki.ca_file}"',
            f'broker = "{self.broker.address}"',
            'spool_file = "spool.db"',
            agent,
        ]
        for name, body in ports.items():
            self.cables[name] = Cable(self.folder / f"tty-{name}")
            lines += ["[[port]]", f'name = "{name}"', f'device = "{self.folder}/tty-{name}"', body]
        path = self.folder / "agent.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def run(self) -> AbstractContextManager[Program]:
        return device_sim("run", "--config", self.folder / "agent.toml", "--json")


@pytest.fixture
def desk(tmp_path: Path, broker: Broker, pki: Pki) -> Desk:
    folder = tmp_path / "desk"
    folder.mkdir()
    return Desk(folder, broker, pki)


class Line:
    """What the device sees on its side of a cable."""

    def __init__(self, cable: Cable) -> None:
        self.cable, self.heard = cable, bytearray()

    def hears(self, data: bytes) -> None:
        """Wait until these bytes were written to the device."""

        def is_there() -> bool:
            if select.select([self.cable.master], [], [], 0.05)[0]:
                self.heard += os.read(self.cable.master, 65536)
            return data in self.heard

        wait_for(f"{data!r} at the device", is_there)
        del self.heard[: self.heard.index(data) + len(data)]


def telemetry(client: Program, rest: str) -> list[str]:
    return readings(client, f"devices/dev-a/telemetry/{rest}")


def test_several_ports_in_one_agent(desk: Desk) -> None:
    """JSON lines, COBS with raw bytes, CSV and NMEA at once: each on its topic, and what does not fit on none."""
    desk.write(
        climate='parser = "json"\nkind = "type"\ntopic = "devices/{id}/telemetry/{kind}"',
        blob='parser = "raw"\nframing = "cobs"',
        scale='parser = "csv"\ncolumns = ["kg", "unit"]\nqos = 0',
        gps='parser = "nmea"\ntopics = { GGA = "devices/{id}/telemetry/position" }',
    )
    for cable in desk.cables.values():
        cable.plug_in()
    client = desk.broker.subscribe("devices/#")
    with desk.run() as agent:
        for name in desk.cables:
            agent.says(f"reading port {name}")
        desk.cables["climate"].write(b'\n{"type":"air","t":21.5}\n{"type":"a/b","t":1}\nboot ok\n')
        desk.cables["blob"].write(b"\0" + encode_frame(Kind.COBS, b"blob") + b"\x03junk\0")
        desk.cables["scale"].write(b"\nkg,unit\n7.25,kg\n")
        desk.cables["gps"].write(b"\n" + GGA + b"\n" + GGA.replace(b"61.7", b"61.8") + b"\n")
        wait_for("all four", lambda: all(telemetry(client, name) for name in ("air", "blob", "scale", "position")))
        assert agent.stop() == 0, agent.err.decode()
    assert telemetry(client, "air") == ['{"type":"air","t":21.5}']
    assert telemetry(client, "blob") == ["blob"]
    assert telemetry(client, "scale") == ['{"kg":7.25,"unit":"kg"}']
    assert telemetry(client, "position") == [GGA.decode()]
    counts = json.loads(agent.out)["ports"]
    assert counts["climate"]["unparsed"] == 2
    assert counts["blob"]["malformed"] + counts["blob"]["bad_crc"] == 1
    assert counts["gps"]["unparsed"] == 1


def test_what_was_announced_as_safe_survives_a_kill(desk: Desk) -> None:
    """Offline, announced to the device, killed with -9: the next run delivers every reading that was announced."""
    desk.write(scale='parser = "raw"\nannounce = true')
    desk.cables["scale"].plug_in()
    desk.broker.stop()
    device = Line(desk.cables["scale"])
    with desk.run() as agent:
        agent.says("reading port scale")
        desk.cables["scale"].write(b"\n" + b"".join(b"%d\n" % number for number in range(500)))
        device.hears(b"!S 500\n")
        agent.stop(signal.SIGKILL)
    desk.broker.start()
    client = desk.broker.subscribe("devices/#")
    with desk.run() as agent:
        wait_for("all of them", lambda: len(telemetry(client, "scale")) >= 500)
        assert agent.stop() == 0, agent.err.decode()
    assert telemetry(client, "scale") == [str(number) for number in range(500)]


def test_a_kill_between_sending_and_acknowledgement_loses_nothing(desk: Desk) -> None:
    """kill -9 in the middle of a delivery: after the next run every announced number was seen, at least once."""
    desk.write(scale='parser = "raw"\nannounce = true')
    desk.cables["scale"].plug_in()
    client = desk.broker.subscribe("devices/#")
    device = Line(desk.cables["scale"])
    with desk.run() as agent:
        agent.says("reading port scale")
        desk.cables["scale"].write(b"\n" + b"".join(b"%d\n" % number for number in range(700)))
        device.hears(b"!S 700\n")
        wait_for("some", lambda: len(telemetry(client, "scale")) > 50)
        agent.stop(signal.SIGKILL)
    with desk.run() as agent:
        wait_for("every number", lambda: {*telemetry(client, "scale")} >= {str(number) for number in range(700)})
        assert agent.stop() == 0, agent.err.decode()


def test_unplug_and_replug_of_one_port_leaves_the_other_alone(desk: Desk) -> None:
    """The half frame before the unplug never meets the half frame after it; the other port reads on."""
    desk.write(one='parser = "raw"', two='parser = "raw"')
    for cable in desk.cables.values():
        cable.plug_in()
    one, two = desk.cables["one"], desk.cables["two"]
    client = desk.broker.subscribe("devices/#")
    with desk.run() as agent:
        agent.says("reading port one")
        agent.says("reading port two")
        one.write(b"\nfirst\nha")
        wait_for("first", lambda: telemetry(client, "one") == ["first"])
        one.pull()
        agent.says("port one went away")
        two.write(b"\nmeanwhile\n")
        wait_for("the other", lambda: telemetry(client, "two") == ["meanwhile"])
        before = agent.err.count(b"reading port one")
        one.plug_in()
        wait_for("the port again", lambda: agent.err.count(b"reading port one") > before)
        one.write(b"lf\nsecond\n")
        wait_for("second", lambda: telemetry(client, "one") == ["first", "second"])
        assert agent.stop() == 0, agent.err.decode()


def test_a_day_of_device_time(desk: Desk) -> None:
    """A reading in ten seconds for 24 h, replayed at once: each one arrives once and in order."""
    desk.write(scale='parser = "json"\nannounce = true')
    cable = desk.cables["scale"]
    cable.plug_in()
    client = desk.broker.subscribe("devices/dev-a/telemetry/scale")
    device = Line(cable)
    with desk.run() as agent:
        agent.says("reading port scale")
        cable.write(b"\n")
        for start in range(0, READINGS_PER_DAY, 40):
            cable.write(b"".join(b'{"s":%d}\n' % (10 * number) for number in range(start, start + 40)))
            device.hears(b"!S %d\n" % (start + 40))
        wait_for("the day", lambda: client.out.count(b"{") == READINGS_PER_DAY, 60)
        assert agent.stop() == 0, agent.err.decode()
    seen = [json.loads(text)["s"] for text in telemetry(client, "scale")]
    assert seen == [10 * number for number in range(READINGS_PER_DAY)]
    assert json.loads(agent.out)["dropped"] == 0


def send(desk: Desk, topic: str, payload: str) -> None:
    """mosquitto_pub, QoS 1."""
    who = desk.pki.device("operator")
    credentials = ("--cafile", desk.pki.ca_file, "--cert", who.cert_file, "--key", who.key_file)
    where = ("-h", "localhost", "-p", desk.broker.port)
    client = Program("mosquitto_pub", *where, *credentials, "-q", "1", "-t", topic, "-m", payload)
    assert client.ends() == 0, client.err.decode()


def test_a_command_goes_down_and_its_result_comes_back(desk: Desk) -> None:
    """Done and refused by the device itself; a reading between them stays a reading."""
    desk.write(valve='parser = "raw"\ncommands = true\nwindow_bytes = 64')
    desk.cables["valve"].plug_in()
    client, device = desk.broker.subscribe("devices/dev-a/#"), Line(desk.cables["valve"])
    with desk.run() as agent:
        agent.says("reading port valve")
        wait_for("online", lambda: readings(client, "devices/dev-a/state") == ["online"])
        desk.cables["valve"].write(b"\n")
        send(desk, "devices/dev-a/commands/valve/job-1", "open 7")
        device.hears(b"!C 1 open 7\n")
        assert readings(client, "devices/dev-a/results/valve/job-1") == []
        desk.cables["valve"].write(b"21.5\n!A 1\n!W 64\n")
        wait_for("done", lambda: readings(client, "devices/dev-a/results/valve/job-1") == ['{"result":"done"}'])
        send(desk, "devices/dev-a/commands/valve/job-2", "open 9")
        device.hears(b"!C 2 open 9\n")
        desk.cables["valve"].write(b"!E 2\n")
        wait_for("refused", lambda: readings(client, "devices/dev-a/results/valve/job-2") == ['{"result":"refused"}'])
        assert agent.stop() == 0, agent.err.decode()
    assert telemetry(client, "valve") == ["21.5"]


def test_a_command_for_an_absent_device_waits_at_the_gateway(desk: Desk) -> None:
    """Not acknowledged while the device is away: after kill -9 of the agent the command comes again and is done."""
    desk.write(valve='parser = "raw"\ncommands = true')
    client, device = desk.broker.subscribe("devices/dev-a/#"), Line(desk.cables["valve"])
    with desk.run() as agent:
        agent.says("port valve is not there")
        wait_for("online", lambda: readings(client, "devices/dev-a/state") == ["online"])
        send(desk, "devices/dev-a/commands/valve/job-1", "open 7")
        agent.stop(signal.SIGKILL)
    desk.cables["valve"].plug_in()
    with desk.run() as agent:
        agent.says("reading port valve")
        device.hears(b"!C 1 open 7\n")
        desk.cables["valve"].write(b"\n!A 1\n")
        wait_for("done", lambda: readings(client, "devices/dev-a/results/valve/job-1") == ['{"result":"done"}'])
        assert agent.stop() == 0, agent.err.decode()


def test_without_commands_nothing_is_written_to_a_device(desk: Desk) -> None:
    """The twin: a port that takes no commands is only read, whatever is published."""
    desk.write(valve='parser = "raw"')
    desk.cables["valve"].plug_in()
    client, device = desk.broker.subscribe("devices/dev-a/#"), Line(desk.cables["valve"])
    with desk.run() as agent:
        agent.says("reading port valve")
        send(desk, "devices/dev-a/commands/valve/job-1", "open 7")
        desk.cables["valve"].write(b"\n!A 1\n")
        wait_for("a reading", lambda: telemetry(client, "valve") == ["!A 1"])
        assert not select.select([desk.cables["valve"].master], [], [], 0)[0]
        assert device.heard == b""
        assert agent.stop() == 0, agent.err.decode()
