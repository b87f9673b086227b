"""Fleets against a real gateway and a real mosquitto, by the command and by the library."""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from device_sim.fleet.device import Group
from device_sim.fleet.faults import parse_fault_set
from device_sim.fleet.identities import CertDir, names_of
from device_sim.fleet.payloads import parse_model
from device_sim.fleet.processes import run_processes
from device_sim.fleet.run import FleetReport, run_fleet
from device_sim.targets.brokers import Mosquitto, OurGateway, ProcessBroker
from device_sim.targets.site import Site
from mtls.errors import Fault
from tests.integration.programs import attempt

LONG_S = 30.0  # of a run that must not last so long


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OurGateway]:
    """`mqtt-gateway run`."""
    with OurGateway(Site.make(tmp_path_factory.mktemp("gateway"))) as broker:
        yield broker


def ran(broker: ProcessBroker, *faults: str, count: int = 3, seconds: float = 1.0, **settings: Any) -> FleetReport:
    """A small quick fleet with an observer; its ids are this test's own."""
    prefix = "-".join([*(fault.partition("=")[0] for fault in faults), "x"])
    defaults: dict[str, Any] = {"interval_s": 0.1, "ramp_per_s": 0, "connect_timeout_s": 5}
    group = Group(
        "g",
        tuple(names_of(prefix, count)),
        parse_model("temperature"),
        faults=parse_fault_set(faults),
        **{**defaults, **settings},
    )
    work = run_fleet(group, broker.endpoint, broker.site.ca, seconds, observer=broker.site.observer())
    return asyncio.run(work)


def test_paho_still_makes_its_socket_where_we_put_ours() -> None:
    """The one private name of paho's that a fleet needs."""
    assert "self._sock = self._create_socket()" in inspect.getsource(paho.Client.reconnect)


def test_a_fleet_is_admitted_and_everything_arrives_once(gateway: OurGateway) -> None:
    """The allow twin of every fault."""
    report = ran(gateway, count=20)
    assert report.exit_code == 0
    assert len(report.figures.admitted) == 20
    assert report.figures.acknowledged == report.figures.scheduled > 150
    assert (report.lost, report.duplicates) == (0, 0)


def test_the_same_fleet_runs_against_mosquitto(tmp_path: Path) -> None:
    """The judge is not ours: 10 devices, each with its own certificate."""
    with Mosquitto(Site.make(tmp_path)) as broker:
        report = ran(broker, count=10)
    assert report.exit_code == 0, report.as_row()


@pytest.mark.parametrize("kind", [OurGateway, Mosquitto])
def test_after_a_reconnect_storm_all_are_back(tmp_path: Path, kind: type[ProcessBroker]) -> None:
    """Everybody is let in twice, and says all that was due."""
    with kind(Site.make(tmp_path)) as broker:
        report = ran(broker, "reconnect-storm=1", count=10, seconds=2.0)
    assert report.exit_code == 0, report.as_row()
    assert report.figures.admissions == 20
    assert report.figures.storm_s is not None
    assert "all were back" in report.as_text()


def test_a_storm_of_devices_that_may_not_return_has_no_end(gateway: OurGateway) -> None:
    """The twin: their certificates have ended meanwhile, and the report claims no recovery."""
    report = ran(gateway, "reconnect-storm=2", "short-lived=1", count=2, seconds=3.0)
    assert (report.exit_code, report.figures.storm_s) == (1, None)


def test_two_processes_do_what_one_does(gateway: OurGateway) -> None:
    """Each device connects once, all that is due is said and heard, and the report counts both."""
    group = Group("g", tuple(names_of("split-", 7)), parse_model("temperature"), interval_s=0.1, ramp_per_s=0)
    told = (group, gateway.endpoint, gateway.site.ca, 1.0)
    report = run_processes(*told, processes=2, observer=gateway.site.observer())
    assert report.exit_code == 0, report.as_row()
    assert (report.figures.devices, report.figures.admissions, report.load.processes) == (7, 7, 2)
    assert (report.lost, report.duplicates) == (0, 0)
    assert report.figures.scheduled == asyncio.run(run_fleet(*told)).figures.scheduled


@pytest.mark.parametrize("processes", [1, 2])
def test_a_device_without_a_certificate_ends_the_run_at_once(
    gateway: OurGateway, tmp_path: Path, processes: int
) -> None:
    """The twin: it is told when it is known, and neither the devices nor the process beside it are waited for."""
    files = CertDir(folder_of(tmp_path, gateway, "alone-1"))
    group = Group("g", ("alone-1", "nobody"), parse_model("temperature"), ramp_per_s=0)
    began = time.monotonic()

    def run() -> FleetReport:
        if processes > 1:
            return run_processes(group, gateway.endpoint, files, LONG_S, processes=processes)
        return asyncio.run(run_fleet(group, gateway.endpoint, files, LONG_S))

    with pytest.raises(Fault, match=r"nobody.crt does not exist"):
        run()
    assert time.monotonic() - began < LONG_S


def folder_of(folder: Path, gateway: OurGateway, *names: str) -> Path:
    """Certificates as `CertDir` takes them."""
    (folder / "ca.crt").write_bytes(gateway.site.ca.ca_file.read_bytes())
    for name in names:
        for suffix in (".crt", ".key"):
            shutil.copy(gateway.site.ca.of(name).key_file, folder / f"{name}{suffix}")
    return folder


@pytest.mark.parametrize("kind", [OurGateway, Mosquitto])
def test_messages_of_qos_2_arrive_once(tmp_path: Path, kind: type[ProcessBroker]) -> None:
    """Acknowledged is what a PUBCOMP came for: all of it, by our gateway and by one that is not ours."""
    with kind(Site.make(tmp_path)) as broker:
        report = ran(broker, count=5, qos=2)
    assert report.exit_code == 0, report.as_row()
    assert report.figures.acknowledged == report.figures.scheduled > 30
    assert (report.lost, report.duplicates) == (0, 0)


def test_denied_messages_of_qos_2_are_acknowledged_and_lost(gateway: OurGateway) -> None:
    """The deny twin: the observer hears none of them."""
    report = ran(gateway, "foreign-topic", count=2, qos=2)
    assert report.lost == report.figures.acknowledged > 0


def test_qos_2_with_stored_sessions_is_refused(tmp_path: Path) -> None:
    """A new connection would use packet ids that the gateway still holds for the old one."""
    options = ("--broker", "127.0.0.1:1", "--ca", tmp_path, "--qos", "2", "--stored-session")
    refused = attempt("device-sim", "fleet", *options)
    assert refused.returncode == 2
    assert "clean sessions" in refused.stderr


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("expired", "certificate_expired"),
        ("not-yet-valid", "certificate_not_yet_valid"),
        ("clock-skew=7200", "certificate_not_yet_valid"),
        ("wrong-ca", "issuer_unknown"),
        ("self-signed", "issuer_unknown"),
        ("wrong-usage", "certificate_usage"),
        ("wrong-name", "identity_malformed"),
        ("no-certificate", "no_certificate"),
        ("client-id-differs", "client_id_refused"),
        ("foreign-will", "will_refused"),
        ("slowloris", "connect_timeout"),
    ],
)
def test_a_fault_at_the_door_keeps_the_device_out(gateway: OurGateway, fault: str, reason: str) -> None:
    """No device is admitted, nothing is heard, and the audit log has the reason."""
    report = ran(gateway, fault, count=2)
    assert report.exit_code == 1
    assert report.figures.admitted == set()
    assert report.figures.acknowledged == 0
    assert gateway.site.audit("refused", reason=reason)


def test_a_small_clock_skew_is_forgiven(gateway: OurGateway) -> None:
    """The allow twin: certificates are back-dated by an hour."""
    assert ran(gateway, "clock-skew=1800", count=2).exit_code == 0


def test_a_revoked_device_is_kept_out(gateway: OurGateway) -> None:
    """On the CRL before it comes."""
    gateway.revoke(gateway.site.ca.of("revoked-x00001"))
    report = ran(gateway, "revoked", count=2)
    assert report.figures.admitted == {"revoked-x00002"}
    assert gateway.site.audit("refused", reason="certificate_revoked")


@pytest.mark.parametrize(
    ("fault", "event", "reason"),
    [
        ("foreign-topic", "denied", "publish_denied"),
        ("wildcard-subscribe", "denied", "subscribe_denied"),
        ("oversize-packet", "disconnected", "packet_too_large"),
        ("malformed-packet", "disconnected", "protocol_error"),
    ],
)
def test_a_fault_of_a_connected_device_is_answered(gateway: OurGateway, fault: str, event: str, reason: str) -> None:
    """Admitted, and then told no."""
    report = ran(gateway, fault, count=2)
    assert len(report.figures.admitted) == 2
    assert gateway.site.audit(event, reason=reason)
    if fault == "foreign-topic":
        assert report.lost == report.figures.acknowledged > 0  # acknowledged as MQTT wants it, and heard by nobody
    if fault == "wildcard-subscribe":
        assert report.figures.subacks == {0x80: 2}


def test_a_half_open_device_is_let_go_by_keep_alive(gateway: OurGateway) -> None:
    """Its socket stays open and says nothing."""
    report = ran(gateway, "half-open", count=2, keep_alive_s=1, seconds=3.0)
    assert len(report.figures.admitted) == 2
    assert report.figures.sent == 0
    assert len(gateway.site.audit("disconnected", reason="keep_alive_timeout")) >= 2


@pytest.mark.parametrize("fault", ["cut-before-puback=3", "cut-after-puback=3", "renewal=2", "duplicate-client-id"])
def test_cuts_renewals_and_doubles_lose_nothing_that_was_acknowledged(gateway: OurGateway, fault: str) -> None:
    """Connections are lost, messages are repeated at most, and all of them arrive."""
    report = ran(gateway, fault, count=3, seconds=2.0)
    assert report.figures.admissions > 3
    assert report.figures.acknowledged == report.figures.scheduled
    assert report.lost == 0


def test_a_renewed_device_shows_its_new_certificate(gateway: OurGateway) -> None:
    """The gateway has seen two certificates of each device, and took over from the first."""
    ran(gateway, "renewal=2", count=1, seconds=1.0)
    serials = {line["certificate_serial"] for line in gateway.site.audit("admitted", id="renewal-x00001")}
    assert len(serials) >= 2


def test_commands_are_answered(gateway: OurGateway) -> None:
    """A command down is an answer up."""

    async def run() -> int:
        from device_sim.fleet.connection import Ears, FleetConnection, Wish
        from device_sim.fleet.fleet import Fleet
        from mtls.tls import client_context

        group = Group("g", ("cmd-1",), parse_model("door"), commands="devices/{id}/commands/#", interval_s=10)
        fleet = Fleet(group, gateway.endpoint, gateway.site.ca)
        fleet.start(5)
        service = gateway.site.observer()
        context = client_context(ca_file=service.ca_file, cert_file=service.cert_file, key_file=service.key_file)
        ears = Ears(lambda mid: None, lambda *_: None, lambda codes: None, lambda fault: None)
        connection = FleetConnection(gateway.endpoint, context, Wish("observer"), ears)
        await connection.open(20)
        async with asyncio.timeout(20):
            while fleet.figures.answered == 0:
                connection.publish("devices/cmd-1/commands/now", b"go", qos=1)
                await asyncio.sleep(0.1)
        connection.close()
        await fleet.stop()
        return fleet.figures.answered

    assert asyncio.run(run()) > 0


def test_a_flood_is_faster_than_the_interval(gateway: OurGateway) -> None:
    """A message every 2 ms instead of every 100."""
    assert ran(gateway, "flood=2", count=1).figures.scheduled > 300


def test_the_command_reports_and_repeats_byte_for_byte(gateway: OurGateway, tmp_path: Path) -> None:
    """Two runs with one seed write the same journal; the report has the figures and the exit code is 0."""
    journals = []
    for number in range(2):
        journal = tmp_path / f"{number}.jsonl"
        options = ("--ca", gateway.site.ca.folder, "--count", "3", "--seconds", "1", "--interval", "0.1")
        more = ("--seed", "7", "--journal", journal, "--observer", "observer", "--json")
        done = attempt("device-sim", "fleet", "--broker", str(gateway.endpoint), *options, *more)
        assert done.returncode == 0, done.stderr
        journals.append(journal.read_bytes())
        report = json.loads(done.stdout)
        assert report["acknowledged"] == report["scheduled"] == len(journals[-1].splitlines())
        assert report["acknowledged_lost"] == 0
        assert report["simulator"]["simulator_was_the_limit"] in (True, False)
    assert journals[0] == journals[1]


def test_the_command_says_no_when_nobody_was_let_in(gateway: OurGateway) -> None:
    """Exit code 1 and the reason; without certificates 2."""
    where = ("--broker", str(gateway.endpoint), "--seconds", "1", "--count", "2")
    done = attempt("device-sim", "fleet", *where, "--ca", gateway.site.ca.folder, "--fault", "expired")
    assert done.returncode == 1
    assert "certificate_expired" in done.stdout
    assert "hint: nobody was let in" in done.stderr
    assert attempt("device-sim", "fleet", *where).returncode == 2


def test_a_misspelt_test_ca_is_said_to_be_new(gateway: OurGateway, tmp_path: Path) -> None:
    """Its devices are refused, and the command says why that had to be; a CA that was there is not remarked upon."""
    where = ("--broker", str(gateway.endpoint), "--seconds", "0.5", "--count", "1", "--ca", tmp_path / "tesca")
    first, second = attempt("device-sim", "fleet", *where), attempt("device-sim", "fleet", *where)
    assert (first.returncode, second.returncode) == (1, 1)
    assert f"does not trust {tmp_path / 'tesca' / 'ca.crt'}" in first.stderr
    assert "made a test CA" not in second.stderr
