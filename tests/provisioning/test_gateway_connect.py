"""`--gateway`: the unit itself makes a real mTLS connection to a real gateway and publishes, or it is not sealed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from device_sim.simulated_board import SimulatedBoard, new_flash
from mtls.errors import Fault
from provisioning.burning import BURNING, Step, UnitOrder, Verdict
from provisioning.ca import CertificateAuthority
from provisioning.delivery import deliver
from provisioning.ledger import CertificateState, Outcome
from provisioning.unit_order import Gateway as GatewayAddress
from tests.provisioning.station_bench import Bench, open_bench
from tests.support.gateway import Gateway, wait_until
from tests.support.pki import Pki


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path) as bench:
        yield bench


@pytest.fixture
def gateway(bench: Bench, tmp_path: Path, pki: Pki) -> Iterator[Gateway]:
    """A gateway that trusts the station's CA, with a certificate of it."""
    files = certified_server(bench.ca, tmp_path / "gw")
    (tmp_path / "site").mkdir()
    listener = {
        "cert_file": str(files / "server.crt"),
        "key_file": str(files / "server.key"),
        "ca_file": str(files / "ca.crt"),
    }
    gateway = Gateway(tmp_path / "site", pki, listener=listener).start()
    yield gateway
    gateway.stop()


def certified_server(ca: CertificateAuthority, folder: Path) -> Path:
    deliver(ca, folder, "server", lambda key: ca.issue_server(key, dns=["localhost"], ips=["127.0.0.1"]))
    return folder


def burn(bench: Bench, board: SimulatedBoard, address: GatewayAddress) -> Verdict:
    return bench.burn(bench.port(board), order=UnitOrder(device_id="press-07", gateway=address))


def test_the_unit_connects_and_publishes_before_it_is_sealed(bench: Bench, gateway: Gateway) -> None:
    """PASS, and the gateway's own audit log names the admission of this very certificate."""
    board = SimulatedBoard(new_flash("SN-0001"), network=True)
    seen: list[Step] = []

    verdict = bench.burn(
        bench.port(board),
        order=UnitOrder(device_id="press-07", gateway=GatewayAddress("127.0.0.1", gateway.port)),
        progress=seen.append,
    )

    assert verdict.passed, verdict
    assert seen.index(Step.CONNECT) < seen.index(Step.SEAL)
    admitted = wait_until(lambda: gateway.audit("admitted"), "admission")
    assert [line["fingerprint_sha256"] for line in admitted] == [verdict.fingerprint_sha256]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (lambda port: GatewayAddress("127.0.0.1", 1), "E_NET"),
        (lambda port: GatewayAddress("localhost.invalid", port), "E_NET"),
    ],
    ids=["nobody there", "no such name"],
)
def test_no_connection_is_a_failed_unit(bench: Bench, gateway: Gateway, address: object, words: str) -> None:
    """The deny twin: FAIL at connect, not sealed, certificate revoked."""
    board = SimulatedBoard(new_flash("SN-0001"), network=True)

    verdict = burn(bench, board, address(gateway.port))  # type: ignore[operator]

    assert (verdict.step, verdict.outcome) == (Step.CONNECT, Outcome.FAILED)
    assert words in verdict.reason
    assert board.read_flash().seal_policy is None
    assert bench.ca.ledger.certificates(subject="press-07", state=CertificateState.ISSUED) == []


def test_a_gateway_that_refuses_the_device_fails_the_unit(tmp_path: Path, bench: Bench, pki: Pki) -> None:
    """A policy without a role for it: the refusal arrives as the reason."""
    files = certified_server(bench.ca, tmp_path / "gw")
    (tmp_path / "site").mkdir()
    listener = {
        "cert_file": str(files / "server.crt"),
        "key_file": str(files / "server.key"),
        "ca_file": str(files / "ca.crt"),
    }
    policy = 'version = 1\n[[role]]\nname = "other"\nmatch = { id = "other" }\npublish = ["x"]\n'
    gateway = Gateway(tmp_path / "site", pki, policy, listener=listener).start()
    try:
        verdict = burn(
            bench, SimulatedBoard(new_flash("SN-0001"), network=True), GatewayAddress("127.0.0.1", gateway.port)
        )
    finally:
        gateway.stop()

    assert (verdict.step, verdict.outcome) == (Step.CONNECT, Outcome.FAILED), verdict
    assert "no_role" in verdict.reason


def test_a_device_without_a_network_is_refused(bench: Bench, gateway: Gateway) -> None:
    """It did not declare `net`: nothing is pretended on its behalf."""
    board = SimulatedBoard(new_flash("SN-0001"))

    verdict = burn(bench, board, GatewayAddress("127.0.0.1", gateway.port))

    assert (verdict.step, verdict.outcome) == (Step.CONNECT, Outcome.FAILED)
    assert "capability net" in verdict.reason
    assert gateway.audit("admitted") == []


def test_without_the_option_nobody_connects() -> None:
    """The step stands in the order, between the last proof and the seal, and is left out unless it is asked for."""
    names = [step for step, _ in BURNING]
    assert names.index(Step.PROVE_RESET) < names.index(Step.CONNECT) < names.index(Step.SEAL)


@pytest.mark.parametrize("text", ["", "gateway", "gateway:", ":8883", "gateway:99999", "a b:1", "g:x", "ü:1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """Before a device is touched."""
    with pytest.raises(Fault, match="HOST:PORT"):
        GatewayAddress.parse(text)
    assert GatewayAddress.parse("[::1]:8883") == GatewayAddress("::1", 8883)
