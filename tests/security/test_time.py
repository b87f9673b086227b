"""A gateway on a machine without a clock battery: from the boot to a synchronised clock (traps R5, R6, R7).

OpenSSL goes by this machine's true clock and the gateway by the one that the test sets. So a certificate that is not
yet valid today is refused by OpenSSL, unless the gateway has taken the dates from it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.timekeeping import Timekeeper, read_floor
from mtls.clock import EPOCH, Moment
from tests.support.gateway import Gateway, wait_until
from tests.support.machine import Machine
from tests.support.pki import Credential, Pki, now

HOUR, DAY, YEAR = timedelta(hours=1), timedelta(days=1), timedelta(days=365)
CUT_WITHIN_S = 3.0  # the clock is looked at once a second

Maker = Callable[..., Gateway]


def serving(make_gateway: Maker, keeper: Timekeeper, **settings: object) -> Gateway:
    """A gateway that goes by `keeper`, which has learned from its files as `mqtt-gateway run` does."""
    gateway = make_gateway(clock=keeper, **settings)
    gateway.call(lambda: keeper.learn(gateway.broker.state.floors))
    return gateway


def refusal(gateway: Gateway, credential: Credential) -> dict[str, str]:
    """The audit line of a connection that is refused, by whoever refuses it."""
    before = len(gateway.audit("refused"))
    with pytest.raises(OSError):  # noqa: PT012 - TLS 1.3 tells a client at its first read
        client = gateway.client(credential)
        client.expect_closed(CUT_WITHIN_S)
        raise ConnectionError
    line: dict[str, str] = wait_until(lambda: gateway.audit("refused")[before:], "the refusal")[0]
    return line


def admitted(gateway: Gateway, credential: Credential, device_id: str) -> None:
    client = gateway.client(credential)
    assert client.connect(device_id) == (False, 0)
    client.ping()


@pytest.mark.parametrize("wall", [EPOCH, datetime.now(UTC) - 2 * YEAR], ids=["boot in 1970", "boot 2 years behind"])
def test_r6_a_clock_behind_refuses_nobody_but_the_long_expired(
    make_gateway: Maker, tmp_path: Path, pki: Pki, wall: datetime
) -> None:
    """No refusal storm, although every certificate is of the clock's future, and no acceptance of the long expired."""
    machine = Machine(tmp_path, wall)
    machine.floor_file.write_text((now() - DAY).isoformat())
    gateway = serving(make_gateway, machine.keeper(), listener={"crl_file": str(pki.crl())})
    admitted(gateway, pki.device("dev-a"), "dev-a")
    admitted(gateway, pki.raw_leaf(cn="dev-b", not_before=now() + DAY, not_after=now() + 2 * DAY), "dev-b")
    admitted(gateway, pki.raw_leaf(cn="dev-c", not_after=now() - timedelta(minutes=30)), "dev-c")
    line = refusal(gateway, pki.raw_leaf(cn="dev-d", not_before=now() - YEAR, not_after=now() - YEAR / 2))
    assert line["reason"] == "certificate_expired"
    assert "a floor: the clock is not synchronised" in line["detail"]
    assert "notAfter=" in line["detail"]


def test_r6_when_the_clock_is_synchronised_everything_that_lives_is_judged_again(
    make_gateway: Maker, tmp_path: Path, pki: Pki
) -> None:
    """What the true time does not allow ends, the rest goes on, and OpenSSL checks the dates of handshakes again."""
    machine = Machine(tmp_path, EPOCH)
    gateway = serving(make_gateway, machine.keeper())
    early = pki.raw_leaf(cn="dev-early", not_before=now() + DAY, not_after=now() + 2 * DAY)
    late = pki.raw_leaf(cn="dev-late", not_after=now() - timedelta(minutes=30))
    clients = {name: gateway.client(leaf) for name, leaf in (("dev-early", early), ("dev-late", late))}
    for name, client in clients.items():
        assert client.connect(name) == (False, 0)
    good = gateway.connected("dev-good")
    machine.synchronise(now())
    for client in clients.values():
        assert client.expect_closed(CUT_WITHIN_S) == []
    good.ping()
    reasons = {line["id"]: line["reason"] for line in gateway.audit("disconnected")}
    assert reasons == {"dev-early": "certificate_not_yet_valid", "dev-late": "certificate_expired"}
    assert refusal(gateway, early)["reason"] == "certificate_not_yet_valid"
    assert gateway.broker.status_report()["handshake_failures"] == {"certificate_not_yet_valid": 1}
    admitted(gateway, pki.device("dev-new"), "dev-new")


def test_r6_a_crl_is_judged_by_the_floor_as_well(make_gateway: Maker, tmp_path: Path, pki: Pki) -> None:
    """A CRL that may still be good serves while nothing better is known; one that ended before the floor does not."""
    machine = Machine(tmp_path, EPOCH)
    gone = pki.device("dev-gone")
    recent = pki.crl([gone.certificate], now=now() - 2 * DAY, lifetime=2 * DAY - timedelta(minutes=30))
    gateway = serving(make_gateway, machine.keeper(), listener={"crl_file": str(recent)})
    admitted(gateway, pki.device("dev-a"), "dev-a")
    assert refusal(gateway, gone)["reason"] == "certificate_revoked"
    machine.floor_file.write_text(now().isoformat())
    later = serving(make_gateway, machine.keeper(), listener={"crl_file": str(recent)})
    assert refusal(later, pki.device("dev-a"))["reason"] == "crl_stale"


def test_r6_a_jump_of_ten_years_and_back_disturbs_nobody(make_gateway: Maker, tmp_path: Path, pki: Pki) -> None:
    """Sessions live on, new ones are admitted, and the jump is not kept as a floor."""
    machine = Machine(tmp_path, EPOCH)
    keeper = machine.keeper()
    gateway = serving(make_gateway, keeper)
    machine.synchronise(now())
    device = gateway.connected("dev-a")
    wait_until(lambda: gateway.call(keeper).synced, "the synchronised clock")
    machine.jump(10 * YEAR)
    wait_until(lambda: gateway.broker.plane.judged.state == "floor", "another judgement")
    device.ping()
    admitted(gateway, pki.device("dev-b"), "dev-b")
    machine.wait(HOUR)
    gateway.call(keeper.close)
    assert read_floor(machine.floor_file) is None
    machine.jump(-10 * YEAR)
    wait_until(lambda: gateway.broker.plane.judged.synced, "the clock that is back")
    device.ping()
    assert gateway.audit("refused") == []


def test_r6_a_jump_that_the_time_service_confirms_expires_and_going_back_revives_nobody(
    make_gateway: Maker, tmp_path: Path, pki: Pki
) -> None:
    """A clock that runs backwards never un-expires."""
    machine = Machine(tmp_path, EPOCH)
    gateway = serving(make_gateway, machine.keeper())
    machine.synchronise(now())
    device = gateway.connected("dev-a")
    machine.synchronise(now() + 10 * YEAR)
    assert device.expect_closed(CUT_WITHIN_S) == []
    machine.synchronise(now())
    assert refusal(gateway, pki.device("dev-a"))["reason"] == "certificate_expired"


def test_r7_sixty_days_offline_while_the_server_certificate_passes_its_renewal_date(
    make_gateway: Maker, tmp_path: Path, pki: Pki
) -> None:
    """The operator is warned, a new certificate is served without dropping anybody, and nothing needs a network."""
    machine = Machine(tmp_path, EPOCH)
    keeper = machine.keeper()
    first, second = pki.server(lifetime=90 * DAY), pki.server()
    cert, key = tmp_path / "server.crt", tmp_path / "server.key"
    shutil.copy(first.cert_file, cert)
    shutil.copy(first.key_file, key)
    gateway = serving(make_gateway, keeper, listener={"cert_file": str(cert), "key_file": str(key)})
    machine.synchronise(now())
    device = gateway.connected("dev-a")
    gateway.call(keeper)
    assert not [w for w in gateway.broker.state.warnings_at(gateway.call(keeper).at) if "renewed" in w]
    for _ in range(61):
        machine.wait(DAY)
        gateway.call(keeper)
    assert gateway.call(keeper).synced
    assert [w for w in gateway.broker.state.warnings_at(gateway.call(keeper).at) if "should be renewed" in w]
    device.ping()
    shutil.copy(second.cert_file, cert)
    shutil.copy(second.key_file, key)
    gateway.reload()
    device.ping()
    seen = gateway.client("dev-b").socket.getpeercert()
    assert seen is not None
    assert int(seen["serialNumber"], 16) == second.certificate.serial_number


@pytest.mark.parametrize(("stale", "cut"), [("deny", True), ("grace 48h", False)])
def test_r3_a_crl_that_goes_stale_ends_live_sessions_by_the_clock_alone(
    make_gateway: Maker, pki: Pki, stale: str, cut: bool
) -> None:
    """Nothing is reloaded; the session stays stored, and a grace that was allowed is kept."""
    ahead = [timedelta(0)]
    listener = {"crl_file": str(pki.crl(lifetime=7 * DAY)), "crl_stale": stale}
    gateway = make_gateway(clock=lambda: Moment(datetime.now(UTC) + ahead[0]), listener=listener)
    device = gateway.client("dev-a")
    assert device.connect("dev-a", clean=False) == (False, 0)
    ahead[0] = 8 * DAY
    if cut:
        assert device.expect_closed(CUT_WITHIN_S) == []
        assert [line["reason"] for line in gateway.audit("disconnected")] == ["crl_stale"]
        assert len(gateway.broker.plane.exchange.sessions) == 1
    else:
        ticks = gateway.broker.plane.tick
        wait_until(lambda: gateway.broker.plane.tick > ticks + 8, "two sweeps")
        device.ping()


def test_r5_an_issuing_ca_that_expires_ends_its_sessions(make_gateway: Maker, pki: Pki) -> None:
    """A leaf that outlives its CA does not outlive it here."""
    ahead = [timedelta(0)]
    gateway = make_gateway(clock=lambda: Moment(datetime.now(UTC) + ahead[0]))
    leaf = pki.raw_leaf(cn="dev-a", not_after=now() + 15 * YEAR)
    device = gateway.client(leaf)
    assert device.connect("dev-a") == (False, 0)
    ahead[0] = 9 * YEAR
    ticks = gateway.broker.plane.tick
    wait_until(lambda: gateway.broker.plane.tick > ticks + 8, "two sweeps")
    device.ping()
    ahead[0] = 11 * YEAR
    assert device.expect_closed(CUT_WITHIN_S) == []
    (line,) = gateway.audit("disconnected")
    assert line["detail"].startswith("CA certificate: clock=")
