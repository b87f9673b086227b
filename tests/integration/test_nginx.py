"""The certificates serve HTTPS as well: real nginx with the shipped configuration, curl and Python's ssl."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.programs import REPOSITORY, Authority, Identity, attempt, nginx


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA of this module's own, with press-02 revoked before nginx starts."""
    authority = Authority.make(tmp_path_factory.mktemp("nginx-site"))
    authority.issue("press-01")
    authority.issue("press-02")
    authority.revoke("press-02")
    return authority


@pytest.fixture(scope="module")
def port(site: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    server, port = nginx(tmp_path_factory.mktemp("nginx") / "run", site)
    with server:
        yield port


def issued(site: Authority, name: str) -> Identity:
    return Identity(name, site.folder / f"issued/{name}.crt", site.folder / f"issued/{name}.key")


def curl(site: Authority, port: int, who: Identity | None = None) -> tuple[str, str]:
    """HTTP status and body; nginx finishes the handshake even with those it will refuse."""
    shown = ("--cert", who.cert, "--key", who.key) if who else ()
    where = f"https://localhost:{port}/"
    done = attempt("curl", "-sS", "--max-time", "20", "--cacert", site.ca_file, *shown, "-w", "\n%{http_code}", where)
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    return status, body


def test_a_device_is_let_in_by_name(site: Authority, port: int) -> None:
    """curl with a certificate of ours gets 200, and nginx knows who it is."""
    status, body = curl(site, port, issued(site, "press-01"))
    assert (status, "CN=press-01" in body) == ("200", True)


def test_no_certificate_no_answer(site: Authority, port: int) -> None:
    """The deny twin: without a certificate nginx answers 400 and says which one is missing."""
    status, body = curl(site, port)
    assert (status, "No required SSL certificate was sent" in body) == ("400", True)


def test_an_impostor_gets_no_answer(site: Authority, port: int, self_signed: Identity, foreign: Identity) -> None:
    """A self-signed certificate and one of a foreign CA, both naming press-07, get 400."""
    for impostor in (self_signed, foreign):
        status, body = curl(site, port, impostor)
        assert (status, "SSL certificate error" in body) == ("400", True)


def test_a_revoked_device_gets_no_answer(site: Authority, port: int) -> None:
    """Our CRL is understood: the device that was revoked gets 400, its neighbour is served."""
    assert curl(site, port, issued(site, "press-02"))[0] == "400"
    assert curl(site, port, issued(site, "press-01"))[0] == "200"


def test_curl_refuses_a_server_it_does_not_know(port: int, foreign: Identity) -> None:
    """The server's side of the proof: with another CA in hand curl does not talk to our server."""
    other_ca = foreign.cert.parent.parent / "server/ca.crt"
    done = attempt("curl", "-sS", "--cacert", other_ca, f"https://localhost:{port}/")
    assert done.returncode == 60, done.stderr


def python_client(site: Authority, port: int, *options: str | Path) -> tuple[int, str]:
    client = REPOSITORY / "examples/mtls_client.py"
    done = attempt(sys.executable, "-W", "error", client, "localhost", str(port), "--ca", site.ca_file, *options)
    return done.returncode, done.stdout + done.stderr


def test_the_python_example_speaks_mutual_tls(site: Authority, port: int) -> None:
    """The documented client gets 200 with a certificate and 400 over plain TLS."""
    who = issued(site, "press-01")
    status, said = python_client(site, port, "--cert", who.cert, "--key", who.key)
    assert (status, said.split()[0]) == (0, "200")
    status, said = python_client(site, port)
    assert (status, said.split()[0]) == (1, "400")


def test_the_python_example_checks_the_server(site: Authority, port: int, foreign: Identity) -> None:
    """The deny twin: trusting another CA, or asked for another name, it sends nothing."""
    other = Authority(foreign.cert.parent.parent)
    status, said = python_client(other, port)
    assert (status, "the server's certificate was refused" in said) == (1, True)
