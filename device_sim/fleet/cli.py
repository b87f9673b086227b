"""`device-sim fleet` and `device-sim test-ca`: parse, call the library, print."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from device_sim.fleet.device import Group
from device_sim.fleet.faults import FAULTS, parse_fault_set
from device_sim.fleet.fleet import Fleet, Journal
from device_sim.fleet.identities import CertDir, Identities, SimulationCa, names_of
from device_sim.fleet.payloads import MODEL_NAMES, parse_model
from device_sim.fleet.processes import run_processes
from device_sim.fleet.run import Progress, journal_line, run_fleet
from device_sim.settings import parse_endpoint
from mtls.cli import defined, narrate
from mtls.errors import Fault

FAULT_LINES = defined((name + ("=" + kind.takes if kind.takes else ""), kind.effect) for name, kind in FAULTS.items())
PATH = click.Path(path_type=Path)


@click.command("fleet", epilog=f"\b\nFaults (every device of the fleet has them):\n{FAULT_LINES}")
@click.option("--broker", required=True, metavar="HOST[:PORT]", help="The gateway.  [default port: 8883]")
@click.option("--count", type=click.IntRange(1, 60000), default=100, show_default=True, help="How many devices.")
@click.option("--cert-dir", type=PATH, help="Certificates made elsewhere: ID.crt, ID.key and ca.crt.")
@click.option("--ca", type=PATH, help="A test CA of the simulator's own; made there if need be, devices included.")
@click.option("--prefix", default="sim-", show_default=True, help="With --ca: ids are PREFIX00001 and on.")
@click.option("--seconds", type=click.FloatRange(0.1, 604800), default=30.0, show_default=True, help="How long.")
@click.option("--interval", "interval_s", type=click.FloatRange(0.001), default=1.0, show_default=True, help="Seconds.")
@click.option("--jitter", type=click.FloatRange(0, 1), default=0.2, show_default=True, help="Share of the interval.")
@click.option("--ramp", "ramp_per_s", type=click.FloatRange(0), default=100.0, show_default=True, help="Connects/s.")
@click.option("--payload", default="temperature", show_default=True, help=f"Model: {', '.join(MODEL_NAMES)}.")
@click.option("--topic", default="devices/{id}/telemetry/sim", show_default=True, help="Topic per device.")
@click.option("--qos", type=click.IntRange(0, 2), default=1, show_default=True, help="QoS of the messages.")
@click.option("--will", default="devices/{id}/state", show_default=True, help="Topic of the will; empty: none.")
@click.option("--commands", default="", help="Filter of commands, which are answered; e.g. devices/{id}/commands/#")
@click.option("--keep-alive", "keep_alive_s", type=click.IntRange(1, 65535), default=60, show_default=True)
@click.option("--stored-session", is_flag=True, help="Clean session 0.")
@click.option("--observer", default="", metavar="ID", help="A service that listens, so that losses are counted.")
@click.option("--listen", default="devices/#", show_default=True, help="What the observer subscribes to.")
@click.option("--fault", "faults", multiple=True, metavar="NAME[=N]", help="Inject a fault; may be repeated.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Use so many cores.")
@click.option("--seed", default=0, show_default=True, help="The same seed: the same payloads in the same order.")
@click.option("--journal", type=PATH, help="Write every scheduled message there, a line of JSON each.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def fleet(
    broker: str,
    cert_dir: Path | None,
    ca: Path | None,
    seconds: float,
    observer: str,
    listen: str,
    journal: Path | None,
    processes: int,
    as_json: bool,
    **told: Any,
) -> None:
    """Thousands of devices, each with its own certificate, on one core or several.

    \b
      device-sim test-ca testca --server gateway/
      device-sim fleet --broker localhost:8883 --ca testca --count 2000 \\
          --seconds 60
      device-sim fleet --broker localhost:8883 --cert-dir issued \\
          --count 20 --payload "walk?start=20&step=0.1"
      device-sim fleet --broker localhost:8883 --ca testca --count 5 \\
          --fault expired

    Latency counts from the time at which a message was scheduled, so a gateway that stalls is charged for every
    message that waited. Exit code 0: every device was let in, and everything it said was acknowledged.
    """
    identities = identities_of(cert_dir, ca)
    group = group_of(identities, **told)
    hearing = service_of(identities, observer) if observer else None
    told_to = (group, parse_endpoint(broker), identities, seconds)
    if processes > 1:
        if journal is not None:
            raise click.UsageError("--journal goes with one process: without --processes the plan is the same")
        report = run_processes(*told_to, processes=processes, observer=hearing, listen=listen)
    else:
        with journal_at(journal, group) as write:
            work = run_fleet(*told_to, observer=hearing, listen=listen, journal=write, progress=progress_line())
            report = asyncio.run(work)
    click.echo(json.dumps(report.as_row()) if as_json else report.as_text())
    if not report.figures.admitted:
        narrate(f"hint: nobody was let in; what stands in the way of one: device-sim handshake {broker} --ca CA")
    click.get_current_context().exit(report.exit_code)


@click.command("test-ca")
@click.argument("folder", type=PATH)
@click.option("--server", type=PATH, help="Also make server.crt and server.key for localhost in this folder.")
@click.option("--service", "services", multiple=True, metavar="ID", help="Also make a certificate of a service.")
def test_ca(folder: Path, server: Path | None, services: tuple[str, ...]) -> None:
    """A CA for tests only: its keys lie unencrypted in FOLDER, and no ledger knows what it signs.

    \b
      device-sim test-ca testca --server gateway/ --service observer
    """
    ca = SimulationCa(folder)
    made = {"ca": ca.ca_file, "crl": ca.crl_file}
    if server is not None:
        files = ca.server(server)
        made |= {"server certificate": files.cert_file, "server key": files.key_file}
    made |= {f"service {name}": ca.new(name, ou="services").cert_file for name in services}
    click.echo("\n".join(f"{what}: {path}" for what, path in made.items()))


# --- out of what stands on the command line ---


def identities_of(cert_dir: Path | None, ca: Path | None) -> CertDir | SimulationCa:
    """Where the certificates come from."""
    if (cert_dir is None) == (ca is None):
        raise click.UsageError("give --cert-dir DIR or --ca DIR: every device has a certificate of its own")
    if cert_dir is not None:
        return CertDir(cert_dir)
    folder = ca or Path()
    is_new = not (folder / "ca.crt").exists()
    made = SimulationCa(folder)
    if is_new:
        narrate(f"made a test CA in {folder}: a gateway that does not trust {made.ca_file} refuses its devices")
    return made


def group_of(
    identities: CertDir | SimulationCa,
    *,
    count: int,
    prefix: str,
    payload: str,
    faults: tuple[str, ...],
    stored_session: bool,
    **settings: Any,
) -> Group:
    """The group that the options describe."""
    if settings["qos"] == 2 and stored_session:
        raise click.UsageError(
            "--qos 2 goes with clean sessions only: a device counts packet ids anew when it reconnects"
        )
    ids = tuple(names_of(prefix, count)) if isinstance(identities, SimulationCa) else tuple(identities.names()[:count])
    if len(ids) < count:
        raise Fault(f"{identities.folder} holds {len(ids)} certificates, not {count}", hint="give --count or make more")
    return Group(
        "fleet",
        ids,
        parse_model(payload),
        faults=parse_fault_set(faults),
        clean_session=not stored_session,
        **settings,
    )


def service_of(identities: Identities, name: str) -> Any:
    """The observer's certificate: a service's where the test CA makes it."""
    return identities.new(name, ou="services") if isinstance(identities, SimulationCa) else identities.of(name)


@contextlib.contextmanager
def journal_at(path: Path | None, group: Group) -> Iterator[Journal | None]:
    """What writes the journal, or None."""
    if path is None:
        yield None
        return
    with path.open("w", encoding="ascii") as file:
        yield lambda message: print(journal_line(group, message), file=file)


def progress_line() -> Progress | None:
    """Once a second, on a terminal only."""
    if not sys.stderr.isatty():
        return None

    def show(running: Fleet) -> None:
        figures = running.figures
        narrate(f"{running.connected} of {figures.devices} connected, {figures.acknowledged} acknowledged")

    return show
