"""EST on a running gateway, with curl and openssl as the client (RFC 7030, RFC 8951)."""

from __future__ import annotations

import base64
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mtls.keystore import write_public
from mtls.revocation import RevokedEntry, build_crl
from mtls.trust import to_pem
from tests.gateway.enrolment.est_site import EstSite, certificates_in, csr, due, in_lines
from tests.gateway.site import Running
from tests.integration.programs import attempt, run, wait_until
from tests.support.pki import Credential, Pki, now

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[EstSite]:
    """A running gateway for the tests that change nothing about it."""
    site = EstSite(tmp_path_factory.mktemp("est"), pki)
    with Running(site):
        yield site


def refused(site: EstSite, reason: str, device_id: str = "") -> None:
    """Exactly one audit line, and nothing on record."""
    wait_until(lambda: site.audit("renewal_refused", reason=reason), "the audit line")
    (line,) = site.audit("renewal_refused", reason=reason)
    assert line.get("id", "") == device_id
    assert [row for row in site.record() if row["id"] == device_id] == []


def test_the_cas_are_given_to_everybody(site: EstSite) -> None:
    """RFC 7030 section 4.1: the root is among them, and no client certificate is needed."""
    answer = site.curl("cacerts")
    assert (answer.status, answer.content_type) == (200, "application/pkcs7-mime")
    assert site.pki.root.certificate in certificates_in(answer.body)


@pytest.mark.parametrize("encode", [in_lines, base64.b64encode], ids=["in lines", "in one line"])
def test_a_certificate_is_renewed_and_serves_at_once(
    site: EstSite, tmp_path: Path, encode: Callable[[bytes], bytes]
) -> None:
    """The reply holds the new leaf and nothing else; openssl verifies it, and the broker admits it."""
    name = f"dev-{encode.__name__.replace('_', '-')}"
    old = due(site.pki, name)
    answer = site.renew(old, encode(csr(tmp_path, name)))
    assert (answer.status, answer.content_type) == (200, "application/pkcs7-mime; smime-type=certs-only")
    (new,) = certificates_in(answer.body)
    assert new.subject == old.certificate.subject
    assert new.not_valid_after_utc > old.certificate.not_valid_after_utc
    assert new.serial_number != old.certificate.serial_number
    new_file, above = tmp_path / "new.crt", tmp_path / "above.pem"
    new_file.write_bytes(to_pem([new, site.issuer.certificate]))
    above.write_bytes(to_pem([site.issuer.certificate]))
    run("openssl", "verify", "-x509_strict", "-CAfile", site.pki.root_file, "-untrusted", above, new_file)
    (line,) = site.audit("renewed", id=name)
    assert line["new_certificate_serial"] == f"{new.serial_number:032x}".removeprefix("00")
    assert [row["certificate_serial"] for row in site.record() if row["id"] == name] == [line["new_certificate_serial"]]
    renewed = Credential(new_file, tmp_path / f"{name}.new.key", new)
    renewed.key_file.chmod(0o600)
    published = run(
        *("mosquitto_pub", "-h", "localhost", "-p", str(port_of(site)), "-q", "1", "--cafile", str(site.pki.root_file)),
        *(
            "--cert",
            str(new_file),
            "--key",
            str(renewed.key_file),
            "-i",
            name,
            "-t",
            f"devices/{name}/state",
            "-m",
            "1",
        ),
    )
    assert published == ""
    assert len(site.audit("admitted", id=name)) == 1


def port_of(site: EstSite) -> int:
    """Where the broker listens."""
    (started,) = site.audit("started")
    return int(started["addresses"][0].rpartition(":")[2])


def test_nobody_renews_without_a_certificate(site: EstSite, tmp_path: Path) -> None:
    """/simplereenroll needs one; there is no enrolment of who has none."""
    file = tmp_path / "body"
    file.write_bytes(in_lines(csr(tmp_path, "dev-nobody")))
    answer = site.curl("simplereenroll", "-H", "Content-Type: application/pkcs10", "--data-binary", f"@{file}")
    assert (answer.status, answer.body) == (403, b"no_certificate\n")
    assert site.curl("simpleenroll", "--data-binary", f"@{file}").status == 404
    refused(site, "no_certificate")


def test_other_operations_and_methods_are_not_there(site: EstSite) -> None:
    """What is not served is said to be so."""
    assert [site.curl(name).status for name in ("csrattrs", "fullcmc", "cacerts/", "../cacerts")] == [404] * 4
    assert site.curl("simplereenroll").status == 405
    assert site.curl("cacerts", "-X", "POST").status == 405


@pytest.mark.parametrize(
    ("san", "subject"),
    [
        (None, "/CN=dev-other"),
        ("URI:urn:mtls-gateway:device:dev-other", None),
        ("", None),
        (None, "/OU=x/CN=dev-names"),
    ],
    ids=["another subject", "another SAN", "no SAN", "more in the subject"],
)
def test_a_request_for_another_name_is_400(own: EstSite, tmp_path: Path, san: str | None, subject: str | None) -> None:
    """RFC 7030 section 4.2.2: subject and SAN are identical to those of the certificate."""
    with Running(own):
        answer = own.renew(own.pki.device("dev-names"), in_lines(csr(tmp_path, "dev-names", san=san, subject=subject)))
        assert (answer.status, answer.body) == (400, b"csr_names_differ\n")
        refused(own, "csr_names_differ", "dev-names")


@pytest.fixture
def own(tmp_path: Path, pki: Pki) -> EstSite:
    """A site of the test's own."""
    (tmp_path / "own").mkdir()
    return EstSite(tmp_path / "own", pki)


def test_requests_that_cannot_be_used_are_400_or_413(own: EstSite, tmp_path: Path) -> None:
    """Damaged, unsigned, of another kind, too large: each is told by its reason, and nothing is issued."""
    device = due(own.pki, "dev-bad")
    good = csr(tmp_path, "dev-bad")
    tampered = good.replace(b"dev-bad", b"dev-bax")
    assert tampered != good
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + in_lines(good) + b"-----END CERTIFICATE REQUEST-----\n"
    rsa_key, rsa = tmp_path / "rsa.key", tmp_path / "rsa.der"
    run("openssl", "genrsa", "-out", rsa_key, "2048")
    run("openssl", "req", "-new", "-key", rsa_key, "-subj", "/CN=dev-bad", "-outform", "DER", "-out", rsa)
    cases = [
        (in_lines(tampered), 400, b"csr_invalid\n"),
        (in_lines(good[:-10]), 400, b"csr_invalid\n"),
        (in_lines(rsa.read_bytes()), 400, b"csr_invalid\n"),
        (b"", 400, b"csr_invalid\n"),
        (pem, 400, b"request_malformed\n"),
        (b"\xff\x00" * 50, 400, b"request_malformed\n"),
        (b"A" * 100_000, 413, b"request_too_large\n"),
    ]
    with Running(own):
        for body, status, says in cases:
            answer = own.renew(device, body)
            assert (answer.status, answer.body) == (status, says)
        assert own.renew(device, in_lines(good), content_type="text/plain").body == b"request_malformed\n"
        assert own.record() == []
        assert own.renew(device, in_lines(good)).status == 200


def test_the_key_that_a_certificate_has_is_certified_again_only_where_that_is_allowed(
    own: EstSite, tmp_path: Path, pki: Pki
) -> None:
    """A key in a secure element cannot be changed, so the site decides; never is it the key of another device."""
    device, other = due(own.pki, "dev-key"), due(own.pki, "dev-thief")
    same = in_lines(csr(tmp_path, "dev-key", key=device.key_file))
    with Running(own):
        assert own.renew(device, same).body == b"key_reused\n"
        refused(own, "key_reused", "dev-key")
        own.renew(device, in_lines(csr(tmp_path, "dev-key")))
        stolen = csr(tmp_path, "dev-thief", key=tmp_path / "dev-key.new.key")
        assert own.renew(other, in_lines(stolen)).body == b"key_reused\n"
    own.configure(enrolment={"same_key": True})
    with Running(own):
        assert own.renew(device, same).status == 200
        assert own.renew(other, in_lines(stolen)).body == b"key_reused\n"


def test_revoked_denied_expired_and_early_are_refused_before_the_request_is_looked_at(
    own: EstSite, tmp_path: Path
) -> None:
    """The same judgement as the broker's: the body here is not even base64."""
    pki = own.pki
    revoked, denied, early = (pki.device(f"dev-{name}") for name in ("revoked", "denied", "early"))
    expired = pki.raw_leaf(cn="dev-expired", not_after=now() - timedelta(minutes=1))
    own.revoke(revoked.certificate)
    own.deny_file.write_text('ids = ["dev-denied"]\n')
    own.configure(enrolment={"renew_window": 0.33})
    with Running(own):
        assert own.renew(revoked, b"?").status == 0  # TLS says so already
        assert own.renew(expired, b"?").status == 0
        assert (own.renew(denied, b"?").status, own.renew(denied, b"?").body) == (403, b"certificate_denied\n")
        assert own.renew(early, b"?").body == b"renewal_too_early\n"
        wait_until(lambda: own.audit("renewal_refused", reason="certificate_revoked"), "the audit line")
        assert own.audit("renewal_refused", reason="certificate_expired")
        assert own.record() == []
        assert own.renew(due(pki, "dev-due"), in_lines(csr(tmp_path, "dev-due"))).status == 200


def test_who_is_revoked_in_the_middle_of_a_request_gets_no_certificate(own: EstSite, tmp_path: Path) -> None:
    """Headers before the revocation, the CSR after it: a new certificate would outlive the revocation by its life."""
    device, body = due(own.pki, "dev-slow"), in_lines(csr(tmp_path, "dev-slow"))
    context = ssl.create_default_context(cafile=own.pki.root_file)
    context.load_cert_chain(device.cert_file, device.key_file)
    head = (
        "POST /.well-known/est/simplereenroll HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/pkcs10\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with Running(own):
        plain = socket.create_connection(("127.0.0.1", own.port), timeout=30)
        with context.wrap_socket(plain, server_hostname="localhost") as slow:
            slow.sendall(head.encode() + body[:1])
            assert own.curl("cacerts").status == 200  # the headers have been judged by now
            done = own.command("deny", "add", "dev-slow")
            assert done.returncode == 0, done.stderr
            slow.sendall(body[1:])
            answer = slow.recv(4096)
        assert answer.startswith(b"HTTP/1.1 403"), answer
        refused(own, "certificate_denied", "dev-slow")


def test_no_certificate_is_issued_while_the_clock_is_not_synchronised(own: EstSite, tmp_path: Path) -> None:
    """503 with a time to come back; when the clock is right the same request is served."""
    own.configure(time={"source": "./synchronized"})
    device, body = due(own.pki, "dev-time"), in_lines(csr(tmp_path, "dev-time"))
    with Running(own):
        answer = own.renew(device, body)
        assert (answer.status, answer.body) == (503, b"clock_unsynced\n")
        refused(own, "clock_unsynced")
        assert own.curl("cacerts").status == 200
        (own.folder / "synchronized").touch()
        wait_until(lambda: own.renew(device, body).status == 200, "the renewal")


def test_a_device_that_asks_too_often_is_told_to_wait(own: EstSite) -> None:
    """Its neighbour is served."""
    busy, quiet = own.pki.device("dev-busy"), own.pki.device("dev-quiet")
    with Running(own):
        assert [own.renew(busy, b"?").status for _ in range(11)] == [400] * 10 + [429]
        assert own.renew(quiet, b"?").status == 400


def test_who_is_slow_is_cut(site: EstSite) -> None:
    """A client that sends no handshake, and one that sends half a request."""
    silent = socket.create_connection(("127.0.0.1", site.port), timeout=30)
    context = ssl.create_default_context(cafile=site.pki.root_file)
    half = context.wrap_socket(
        socket.create_connection(("127.0.0.1", site.port), timeout=30), server_hostname="localhost"
    )
    half.sendall(b"POST /.well-known/est/simplereenroll HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n1")
    began = time.monotonic()
    with silent, half:
        assert site.curl("cacerts").status == 200  # meanwhile others are served
        assert silent.recv(1) == b""
        answer = half.recv(100)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 403")
    assert time.monotonic() - began < 20


def test_r7_a_new_server_certificate_is_served_here_too(own: EstSite, tmp_path: Path) -> None:
    """After a reload every new connection gets it."""
    second = own.pki.server()
    cert, key = own.folder / "server.crt", own.folder / "server.key"
    shutil.copy(own.server.cert_file, cert)
    shutil.copy(own.server.key_file, key)
    own.configure(listener={"cert_file": "server.crt", "key_file": "server.key"})

    def served() -> x509.Certificate:
        return x509.load_pem_x509_certificate(ssl.get_server_certificate(("localhost", own.port)).encode())

    with Running(own):
        assert served() == own.server.certificate
        shutil.copy(second.cert_file, cert)
        shutil.copy(second.key_file, key)
        wait_until(lambda: served() == second.certificate, "the new certificate")


def test_a_certificate_of_another_ca_s_profile_is_not_renewed_here(own: EstSite, tmp_path: Path) -> None:
    """Its subject could not be kept, so it is refused rather than renamed."""
    foreign = own.pki.raw_leaf(cn="dev-foreign", san=[x509.DNSName("dev-foreign.example")])
    body = in_lines(csr(tmp_path, "dev-foreign", san="DNS:dev-foreign.example"))
    with Running(own):
        answer = own.renew(foreign, body)
        assert (answer.status, answer.body) == (403, b"not_renewable\n")
        refused(own, "not_renewable", "dev-foreign")


def test_a_renewed_certificate_can_be_revoked_by_its_serial(own: EstSite, tmp_path: Path) -> None:
    """The record names it, the deny list shuts it out."""
    with Running(own):
        body = own.renew(due(own.pki, "dev-lost"), in_lines(csr(tmp_path, "dev-lost"))).body
        (row,) = own.record()
        done = own.command("deny", "add", "--certificate-serial", row["certificate_serial"])
        assert done.returncode == 0, done.stderr
        new = tmp_path / "new.crt"
        new.write_bytes(to_pem([*certificates_in(body), own.issuer.certificate]))
        (tmp_path / "dev-lost.new.key").chmod(0o600)
        lost = Credential(new, tmp_path / "dev-lost.new.key", certificates_in(body)[0])
        assert own.renew(lost, b"?").body == b"certificate_denied\n"


def test_the_crl_of_the_gateway_s_own_ca_is_in_force_as_soon_as_it_is_published(own: EstSite) -> None:
    """R1: nobody has to ask for a reload; the live session of a renewed certificate ends, and only that one."""
    gone, stays = (own.pki.device(name, issuer=own.issuer) for name in ("dev-gone", "dev-stays"))
    with Running(own) as gateway:
        lost, kept = gateway.connected(gone, "dev-gone"), gateway.connected(stays, "dev-stays")
        revoked = [RevokedEntry(gone.certificate.serial_number, now())]
        crl = build_crl(own.issuer, revoked, now=now(), number=2, lifetime=DAY)
        write_public(own.ca_folder / "issuing.crl", crl.public_bytes(Encoding.PEM))
        assert lost.expect_closed() == []
        assert [line["reason"] for line in own.audit("disconnected", id="dev-gone")] == ["certificate_revoked"]
        kept.ping()


def test_explain_knows_the_gateway_s_own_ca(own: EstSite, tmp_path: Path) -> None:
    """Its CRL lies beside its key, so a renewed certificate is not taken for one without a CRL."""
    leaf = own.pki.device("dev-a", issuer=own.issuer)
    pem = tmp_path / "leaf.crt"
    pem.write_bytes(leaf.certificate.public_bytes(Encoding.PEM))
    done = attempt(
        *("mqtt-gateway", "explain", "--config", own.config_file, "--cert", pem),
        *("--action", "publish", "--topic", "devices/dev-a/state"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
