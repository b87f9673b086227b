"""The agent, against a broker that we did not write."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.programs import Authority, Identity, Program, attempt, mosquitto, run


@pytest.fixture(scope="module")
def broker(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    server, port = mosquitto(tmp_path_factory.mktemp("mosquitto"), authority)
    with server:
        yield port


def agent(port: int, authority: Authority, who: Identity) -> list[str | Path]:
    where = ("--ca", authority.ca_file, "--broker", f"localhost:{port}", "--source", "-")
    return ["device-sim", "run", "--id", who.name, "--cert", who.cert, "--key", who.key, *where]


def test_lines_reach_a_real_mosquitto(
    broker: int, authority: Authority, device: Identity, service: Identity, tmp_path: Path
) -> None:
    """What comes in on standard input is published over mutual TLS, line by line."""
    seen = Program(
        tmp_path / "sub.log",
        [
            *(
                "stdbuf",
                "-oL",
                "mosquitto_sub",
                "-h",
                "127.0.0.1",
                "-p",
                str(broker),
                "--cafile",
                authority.ca_file,
                "-v",
                "-d",
            ),
            *("--cert", service.cert, "--key", service.key, "-t", "devices/#", "-q", "1"),
        ],
    )
    with seen:
        seen.wait_until(lambda: "Subscribed (" in seen.said(), "SUBACK")
        run(*agent(broker, authority, device), given="21.5\n21.7\n")
        seen.wait_until(lambda: "21.5" in seen.said() and "21.7" in seen.said(), "both lines")
        assert "devices/press-07/" in seen.said()


def test_an_impostor_s_lines_do_not(
    broker: int, authority: Authority, self_signed: Identity, foreign: Identity
) -> None:
    """The deny twin: with a certificate that mosquitto refuses the agent ends with one clear sentence."""
    for who in (self_signed, foreign):
        done = attempt(*agent(broker, authority, who), given="21.5\n")
        assert done.returncode == 1
        assert "error: " in done.stderr
        assert "Traceback" not in done.stderr
