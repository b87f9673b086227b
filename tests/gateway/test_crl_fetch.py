"""`crl fetch`: the newest CRL of a known CA arrives, and nothing else ever replaces the file."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway import crl_fetch
from gateway.config import GatewayConfig
from gateway.crl_fetch import download, fetch_crl
from mtls.errors import ConfigFault, Fault
from tests.gateway.site import Site
from tests.support.pki import Pki

Answer = tuple[int, dict[str, str], bytes]


class Web:
    """An HTTP server that answers what the test says; `write` sends a body piece by piece."""

    def __init__(self) -> None:
        self.answer: Answer = (200, {}, b"")
        self.write: Callable[[Any], None] | None = None
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, headers, body = web.answer
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(body)
                    if web.write is not None:
                        web.write(self.wfile)
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/crl"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.close()


@pytest.fixture
def own_pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
def site(tmp_path: Path, own_pki: Pki, web: Web) -> Site:
    return Site(tmp_path, own_pki, listener={"crl_url": web.url})


def fetched(site: Site) -> crl_fetch.FetchReport:
    return fetch_crl(GatewayConfig.load(site.config_file))


def numbers(path: Path) -> dict[str, int]:
    """CRL number by issuer, read by cryptography alone."""
    blocks = [block + b"-----END X509 CRL-----\n" for block in path.read_bytes().split(b"-----END X509 CRL-----")[:-1]]
    found = {}
    for crl in map(x509.load_pem_x509_crl, blocks):
        (name,) = crl.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        found[str(name.value)] = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    return found


def test_a_newer_crl_replaces_the_file(site: Site, web: Web, own_pki: Pki) -> None:
    """Numbers grow, the revoked certificate is listed; fetching again changes nothing."""
    revoked = own_pki.device("dev-a").certificate
    newer = own_pki.crl([revoked])
    web.answer = (200, {}, newer.read_bytes())
    assert fetched(site).replaced
    assert numbers(site.crl_file) == numbers(newer)
    before = site.crl_file.stat().st_mtime_ns
    assert not fetched(site).replaced
    assert site.crl_file.stat().st_mtime_ns == before


def test_the_first_crl_is_taken(site: Site, web: Web, own_pki: Pki) -> None:
    """A new gateway has none yet, or a damaged one."""
    for content in (None, b"junk"):
        site.crl_file.unlink(missing_ok=True)
        if content is not None:
            site.crl_file.write_bytes(content)
        web.answer = (200, {}, own_pki.crl().read_bytes())
        assert fetched(site).replaced
        assert set(numbers(site.crl_file)) == {"test CA", "test Root CA"}


def test_der_is_taken_and_the_other_cas_crl_is_kept(site: Site, web: Web, own_pki: Pki) -> None:
    """CAs publish DER, one CRL per URL; the root's stays in the file."""
    before = numbers(site.crl_file)
    newer = own_pki.crl().read_bytes()
    issuing = x509.load_pem_x509_crl(newer)
    web.answer = (200, {}, issuing.public_bytes(Encoding.DER))
    assert fetched(site).replaced
    after = numbers(site.crl_file)
    assert after["test Root CA"] == before["test Root CA"]
    assert after["test CA"] > before["test CA"]


def older(site: Site, pki: Pki, tmp_path: Path) -> tuple[bytes, str]:
    old = pki.crl().read_bytes()
    site.revoke(pki.device("dev-a").certificate)
    return old, "has number"


def foreign(site: Site, pki: Pki, tmp_path: Path) -> tuple[bytes, str]:
    return Pki(tmp_path / "foreign").crl().read_bytes(), "no known CA signed"


def tampered(site: Site, pki: Pki, tmp_path: Path) -> tuple[bytes, str]:
    der = bytearray(x509.load_pem_x509_crl(pki.crl().read_bytes()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return bytes(der), ""


def one_good_one_foreign(site: Site, pki: Pki, tmp_path: Path) -> tuple[bytes, str]:
    return pki.crl().read_bytes() + Pki(tmp_path / "foreign").crl().read_bytes(), "no known CA signed"


def truncated(site: Site, pki: Pki, tmp_path: Path) -> tuple[bytes, str]:
    return pki.crl().read_bytes()[:200], "serves no CRL"


def web_page(site: Site, pki: Pki, tmp_path: Path) -> tuple[bytes, str]:
    return b"<html>log in to the hotel's network</html>", "serves no CRL"


def nothing(site: Site, pki: Pki, tmp_path: Path) -> tuple[bytes, str]:
    return b"", "serves no CRL"


@pytest.mark.parametrize(
    "serve",
    [older, foreign, tampered, one_good_one_foreign, truncated, web_page, nothing],
    ids=lambda function: function.__name__.replace("_", " "),
)
def test_what_is_not_to_be_believed_leaves_the_file_as_it_is(
    site: Site, web: Web, own_pki: Pki, tmp_path: Path, serve: Callable[[Site, Pki, Path], tuple[bytes, str]]
) -> None:
    """The deny twins: one sentence, exit code 1, the CRLs held stay byte for byte."""
    body, says = serve(site, own_pki, tmp_path)
    web.answer = (200, {}, body)
    held = site.crl_file.read_bytes()
    done = site.command("crl", "fetch")
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr
    assert site.crl_file.read_bytes() == held


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((404, {}, b""), "answers 404"),
        ((500, {}, b""), "answers 500"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "answers 302"),
        ((302, {"Location": "ftp://127.0.0.1/crl"}, b""), "cannot fetch"),
    ],
)
def test_an_answer_that_is_none_is_a_fault(web: Web, answer: Answer, says: str) -> None:
    """Neither an error page nor a redirect to another protocol becomes a CRL."""
    web.answer = answer
    with pytest.raises(Fault, match=says):
        download(web.url)


def test_too_many_bytes_are_not_read(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds whatever the server says of its length."""
    monkeypatch.setattr(crl_fetch, "MAX_CRL_BYTES", 100_000)
    web.answer = (200, {}, b"a" * 200_000)
    with pytest.raises(Fault, match="more than 100000 bytes"):
        download(web.url)


def test_a_dripping_server_is_left(web: Web) -> None:
    """The time limit is for the whole answer, not for the next byte."""
    stop = threading.Event()

    def drip(file: Any) -> None:
        while not stop.wait(0.05):
            file.write(b"a")
            file.flush()

    web.write = drip
    began = time.monotonic()
    try:
        with pytest.raises(Fault, match="too slow"):
            download(web.url, timeout_s=0.5)
    finally:
        stop.set()
    assert time.monotonic() - began < 5


def test_a_server_that_drips_its_headers_is_left() -> None:
    """The twin: there is no answer to be read from yet, and each byte comes in time."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            peer, _ = listening.accept()
            with peer, contextlib.suppress(OSError):
                peer.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not stop.wait(0.05):
                    peer.sendall(b"a")

        server = threading.Thread(target=drip)
        server.start()
        began = time.monotonic()
        try:
            with pytest.raises(Fault, match="too slow"):
                download(f"http://127.0.0.1:{listening.getsockname()[1]}/crl", timeout_s=0.5)
        finally:
            stop.set()
            server.join()
    assert time.monotonic() - began < 5


def test_nobody_there_is_a_fault(site: Site) -> None:
    """No server, exit 1: the timer tries again in an hour."""
    site.configure(listener={"crl_url": "http://127.0.0.1:9/crl"})
    done = site.command("crl", "fetch")
    assert (done.returncode, "cannot fetch" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_a_file_url_is_read(site: Site, own_pki: Pki, tmp_path: Path) -> None:
    """A mounted share or a stick is a publisher too."""
    published = tmp_path / "published crl.pem"
    published.write_bytes(own_pki.crl().read_bytes())
    site.configure(listener={"crl_url": f"file://{str(published).replace(' ', '%20')}"})
    done = site.command("crl", "fetch", "--json")
    assert done.returncode == 0, done.stderr
    assert '"replaced": true' in done.stdout
    assert numbers(site.crl_file) == numbers(published)


@pytest.mark.parametrize("missing", ["crl_url", "crl_file"])
def test_without_both_settings_it_is_a_configuration_fault(site: Site, missing: str) -> None:
    """Exit 78, which the timer's unit does not retry."""
    site.configure(listener={missing: ""})
    with pytest.raises(ConfigFault, match=f"{missing} is not set"):
        fetched(site)
    assert site.command("crl", "fetch").returncode == 78
