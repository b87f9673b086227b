"""Traps R1, R3, R5-R8, S1, S6, S12: what a change of lists, files or time does to those who are connected."""

from __future__ import annotations

import shutil
import ssl
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.broker.packets import Will
from mtls.clock import Moment
from mtls.errors import ConfigFault
from mtls.tls import client_context
from tests.support.gateway import DEVICE_POLICY, Closed, Gateway, RawClient, wait_until
from tests.support.pki import Credential, Pki

Maker = Callable[..., Gateway]


def reasons(gateway: Gateway, event: str) -> list[str]:
    return [line["reason"] for line in gateway.audit(event)]


def refused(gateway: Gateway, credential: Credential, client_id: str = "dev-a") -> None:
    """A connection that gets no CONNACK and leaves no session."""
    before = set(gateway.sessions())
    with pytest.raises((OSError, ssl.SSLError, Closed)):
        gateway.client(credential).connect(client_id)
    assert set(gateway.sessions()) == before


@pytest.fixture
def lists(tmp_path: Path, pki: Pki) -> dict[str, Any]:
    """Listener settings with a CRL and a deny list of the test's own."""
    crl, deny = tmp_path / "crl.pem", tmp_path / "deny.toml"
    shutil.copy(pki.crl(), crl)
    deny.write_text("")
    return {"crl_file": str(crl), "deny_file": str(deny)}


def test_s1_without_a_client_certificate_the_handshake_fails(gateway: Gateway) -> None:
    """No byte of MQTT is read; a TLS 1.3 client sees the alert at its first read."""
    client = RawClient(gateway.port, gateway.context(None))
    with pytest.raises(Closed, match=r"(?i)certificate.required"):
        client.read()
    client.close()
    wait_until(lambda: reasons(gateway, "refused") == ["no_certificate"], "audit line")
    assert gateway.sessions() == {}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize(
    ("leaf", "alert"),
    [
        ({"self_signed": True}, r"unknown.ca"),
        ({"not_after": datetime.now(UTC) - timedelta(minutes=1)}, r"certificate.expired"),
        ({"eku": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "unsupported.certificate"),
    ],
    ids=["stranger", "expired", "a server's"],
)
def test_s1_a_refused_client_reads_why_even_when_it_has_sent_already(
    gateway: Gateway, leaf: dict[str, Any], alert: str, version: ssl.TLSVersion
) -> None:
    """OpenSSL's alert reaches the client also over bytes that the gateway never read."""
    context = gateway.context(gateway.pki.raw_leaf(**leaf))
    context.minimum_version = context.maximum_version = version
    with pytest.raises((ssl.SSLError, Closed), match=rf"(?i){alert}"):
        _connect_eagerly(gateway, context)


def _connect_eagerly(gateway: Gateway, context: ssl.SSLContext) -> None:
    client = RawClient(gateway.port, context)
    client.send(b"x" * 1000)
    try:
        client.read()
    finally:
        client.close()


def test_s1_a_version_below_tls_1_2_is_refused(gateway: Gateway, pki: Pki) -> None:
    """TLS 1.1 finds nobody to talk to."""
    context = gateway.context(pki.device("dev-a"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.options &= ~ssl.OP_NO_TLSv1_1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((OSError, ssl.SSLError)):
        RawClient(gateway.port, context)


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        ({"cn": []}, "identity_missing"),
        ({"cn": ["dev-a", "dev-b"]}, "identity_ambiguous"),
        ({"cn": "a/b"}, "identity_malformed"),
        ({"cn": "a b"}, "identity_malformed"),
        ({"cn": "a\0b"}, "identity_malformed"),
        ({"cn": "x" * 65}, "identity_malformed"),
        ({"cn": "ä"}, "identity_not_allowed"),
        ({"digital_signature": False}, "certificate_usage"),
        ({"eku": None}, "certificate_usage"),
    ],
)
def test_s5_s6_a_certificate_without_exactly_one_usable_identity_is_refused(
    gateway: Gateway, leaf: dict[str, Any], reason: str
) -> None:
    """Refused with its reason, one audit line, no session."""
    refused(gateway, gateway.pki.raw_leaf(**leaf))
    wait_until(lambda: reasons(gateway, "refused") == [reason], f"audit line {reasons(gateway, 'refused')}")


@pytest.mark.parametrize(
    "leaf", [{"eku": (ExtendedKeyUsageOID.SERVER_AUTH,)}, {"self_signed": True}, {"ca": True}], ids=str
)
def test_s6_a_server_a_stranger_and_a_ca_are_no_devices(gateway: Gateway, leaf: dict[str, Any]) -> None:
    """Refused at the handshake or right after it."""
    refused(gateway, gateway.pki.raw_leaf(**leaf))


def test_s6_a_plain_certificate_of_another_make_is_admitted(gateway: Gateway) -> None:
    """The allow twin: no key usage, no SAN, no key identifiers; admission asks no more than it needs."""
    client = gateway.client(gateway.pki.raw_leaf(cn="dev-a", digital_signature=None))
    assert client.connect("dev-a") == (False, 0)


def test_s6_two_trusted_cas_and_one_name_the_issuer_table_decides_by_key(make_gateway: Maker, tmp_path: Path) -> None:
    """Line B's CA, trusted and even of the same name, may not name line A's devices."""
    a, b = Pki(tmp_path / "a", "line"), Pki(tmp_path / "b", "line")
    both = tmp_path / "both.crt"
    both.write_bytes(a.ca_file.read_bytes() + b.ca_file.read_bytes())
    from mtls.profiles import spki_sha256

    table = "".join(
        f'[[issuer]]\nsubject_cn = "line CA"\nspki_sha256 = "{spki_sha256(pki.issuing.certificate)}"\nids = ["{ids}"]\n'
        for pki, ids in ((a, "dev-a*"), (b, "dev-b*"))
    )
    gateway = make_gateway(DEVICE_POLICY + table, pki=a, listener={"ca_file": str(both)})
    refused(gateway, b.device("dev-a"))
    wait_until(lambda: reasons(gateway, "refused") == ["issuer_not_allowed"], "audit line")
    assert gateway.client(a.device("dev-a")).connect("dev-a") == (False, 0)


@pytest.mark.parametrize("how", ["crl", "id", "certificate serial", "fingerprint"])
def test_r1_a_revoked_or_denied_live_session_is_closed_and_stays_out(
    make_gateway: Maker, lists: dict[str, Any], pki: Pki, how: str
) -> None:
    """Closed within 2 s of the reload, its will dropped, its queue purged; a new handshake is refused; others live."""
    from mtls.profiles import certificate_serial_hex, fingerprint_sha256

    gateway = make_gateway(listener=lists)
    credential = pki.device("dev-a")
    backend, bystander = gateway.connected("backend"), gateway.connected("dev-b")
    assert backend.subscribe(("devices/#", 0)) == [0]
    victim = gateway.client(credential)
    assert victim.connect("dev-a", clean=False, will=Will("devices/dev-a/state", b"boo", 0, True)) == (False, 0)
    entries = {
        "id": 'ids = ["dev-a"]',
        "certificate serial": f'certificate_serials = ["{certificate_serial_hex(credential.certificate)}"]',
        "fingerprint": f'fingerprints = ["{fingerprint_sha256(credential.certificate)}"]',
    }
    if how == "crl":
        shutil.copy(pki.crl([credential.certificate]), lists["crl_file"])
    else:
        Path(lists["deny_file"]).write_text(entries[how])
    started = time.monotonic()
    report = gateway.reload()
    assert victim.expect_closed(2) == []
    assert time.monotonic() - started < 2
    assert [identity for identity, _ in report.closed] == ["dev-a"]
    backend.ping()
    bystander.ping()
    assert set(gateway.sessions()) == {"backend", "dev-b"}
    assert gateway.status()["retained"] == 0
    reason = "certificate_revoked" if how == "crl" else "certificate_denied"
    assert reasons(gateway, "disconnected") == [reason]
    refused(gateway, credential)


def test_r1_the_stored_session_of_a_revoked_device_is_purged(
    make_gateway: Maker, lists: dict[str, Any], pki: Pki
) -> None:
    """Also when it is offline at the time."""
    gateway = make_gateway(listener=lists)
    credential = pki.device("dev-a")
    device = gateway.client(credential)
    assert device.connect("dev-a", clean=False)[1] == 0
    device.disconnect()
    wait_until(lambda: not gateway.sessions()["dev-a"]["connected"], "session stored")
    shutil.copy(pki.crl([credential.certificate]), lists["crl_file"])
    assert gateway.reload().sessions_discarded == 1
    assert gateway.sessions() == {}


def test_r1_a_will_fires_on_revocation_where_the_role_says_so(
    make_gateway: Maker, lists: dict[str, Any], pki: Pki
) -> None:
    """`will_on_revoke = "fire"`: others learn that the device is gone."""
    policy = DEVICE_POLICY.replace("limits = {", 'will_on_revoke = "fire"\nlimits = {')
    gateway = make_gateway(policy, listener=lists)
    backend = gateway.connected("backend")
    assert backend.subscribe(("devices/#", 0)) == [0]
    gateway.connected("dev-a", will=Will("devices/dev-a/state", b"gone", 0, False))
    Path(lists["deny_file"]).write_text('ids = ["dev-a"]')
    gateway.reload()
    assert backend.expect_publish().payload == b"gone"


def test_r2_a_newer_crl_of_the_same_second_takes_effect(make_gateway: Maker, lists: dict[str, Any], pki: Pki) -> None:
    """OpenSSL takes two CRLs of one thisUpdate for the same one; every reload builds a new context."""
    credential, moment = pki.device("dev-a"), datetime.now(UTC)
    shutil.copy(pki.crl(now=moment), lists["crl_file"])
    gateway = make_gateway(listener=lists)
    before = gateway.broker.state.ssl_context
    device = gateway.client(credential)
    assert device.connect("dev-a") == (False, 0)
    shutil.copy(pki.crl([credential.certificate], now=moment), lists["crl_file"])
    gateway.reload()
    assert gateway.broker.state.ssl_context is not before
    assert device.expect_closed(2) == []
    refused(gateway, credential)


@pytest.mark.parametrize("state", ["missing", "damaged", "stale", "foreign"])
def test_r3_a_crl_that_cannot_be_used_refuses_everybody(
    make_gateway: Maker, lists: dict[str, Any], pki: Pki, tmp_path: Path, state: str
) -> None:
    """Never silently ignored and never a crash."""
    crl = Path(lists["crl_file"])
    if state == "missing":
        crl.unlink()
    elif state == "damaged":
        crl.write_bytes(crl.read_bytes()[:200])
    elif state == "stale":
        shutil.copy(pki.crl(now=datetime.now(UTC) - timedelta(days=9)), crl)
    else:
        shutil.copy(Pki(tmp_path / "foreign").crl(), crl)
    gateway = make_gateway(listener=lists)
    refused(gateway, pki.device("dev-a"))
    shutil.copy(pki.crl(), crl)
    gateway.reload()
    gateway.connected("dev-b").ping()


def test_r3_a_stale_crl_within_its_grace_still_serves_and_still_revokes(
    make_gateway: Maker, lists: dict[str, Any], pki: Pki
) -> None:
    """`crl_stale = "grace 72h"`: two days past nextUpdate; beyond the grace it refuses."""
    revoked, good = pki.device("dev-a"), pki.device("dev-b")
    shutil.copy(pki.crl([revoked.certificate], now=datetime.now(UTC) - timedelta(days=9)), lists["crl_file"])
    gateway = make_gateway(listener={**lists, "crl_stale": "grace 72h"})
    assert gateway.client(good).connect("dev-b") == (False, 0)
    refused(gateway, revoked)
    beyond = make_gateway(listener={**lists, "crl_stale": "grace 24h"})
    refused(beyond, good, "dev-b")


def test_r4_a_revoked_issuing_ca_takes_its_devices_with_it(make_gateway: Maker, tmp_path: Path) -> None:
    """The root's CRL is judged too."""
    pki = Pki(tmp_path / "own")
    crl = tmp_path / "crl.pem"
    shutil.copy(pki.crl(), crl)
    gateway = make_gateway(pki=pki, listener={"crl_file": str(crl)})
    device = gateway.connected("dev-a")
    shutil.copy(pki.crl(issuer_revoked=[pki.issuing.certificate]), crl)
    gateway.reload()
    assert device.expect_closed(2) == []
    refused(gateway, pki.device("dev-b"), "dev-b")


def test_r5_a_session_ends_when_its_certificate_expires(make_gateway: Maker, pki: Pki) -> None:
    """The clock passes the notAfter of a live connection; one with a longer certificate goes on."""
    ahead = [timedelta(0)]
    gateway = make_gateway(clock=lambda: Moment(datetime.now(UTC) + ahead[0]))
    short = gateway.client(pki.device("dev-a", lifetime=timedelta(days=30)))
    assert short.connect("dev-a") == (False, 0)
    long = gateway.connected("dev-b")
    ahead[0] = timedelta(days=31)
    assert short.expect_closed(4) == []
    assert reasons(gateway, "disconnected") == ["certificate_expired"]
    long.ping()


def test_r6_the_refusal_of_a_future_certificate_names_clock_and_not_before(make_gateway: Maker, pki: Pki) -> None:
    """The line that an operator of a machine with a wrong clock needs."""
    behind = datetime.now(UTC) - timedelta(days=400)
    gateway = make_gateway(clock=lambda: Moment(behind))
    refused(gateway, pki.device("dev-a"))
    (line,) = gateway.audit("refused")
    assert line["reason"] == "certificate_not_yet_valid"
    assert "clock=" in line["detail"]
    assert "notBefore=" in line["detail"]


def test_r7_a_new_server_certificate_is_served_without_dropping_sessions(
    make_gateway: Maker, tmp_path: Path, pki: Pki
) -> None:
    """Old connections go on, new handshakes see the new certificate; a mismatched pair is refused before the swap."""
    cert, key = tmp_path / "server.crt", tmp_path / "server.key"
    first, second = pki.server(), pki.server()

    def install(pair: Credential, key_of: Credential | None = None) -> None:
        shutil.copy(pair.cert_file, cert)
        shutil.copy((key_of or pair).key_file, key)

    install(first)
    gateway = make_gateway(listener={"cert_file": str(cert), "key_file": str(key)})
    device = gateway.connected("dev-a")
    install(second)
    gateway.reload()
    device.ping()
    seen = gateway.client("dev-b").socket.getpeercert()
    assert seen is not None
    assert int(str(seen["serialNumber"]), 16) == second.certificate.serial_number
    install(first, key_of=second)
    with pytest.raises(ConfigFault, match="not the key of"):
        gateway.reload()
    device.ping()
    gateway.connected("dev-c").ping()


@pytest.mark.parametrize("broken", ["policy", "ca", "deny"])
def test_r8_a_reload_with_a_broken_file_keeps_the_old_set(
    make_gateway: Maker, lists: dict[str, Any], tmp_path: Path, pki: Pki, broken: str
) -> None:
    """The fault names the file; connections live and new ones are admitted as before."""
    ca = tmp_path / "ca.crt"
    shutil.copy(pki.ca_file, ca)
    gateway = make_gateway(listener={**lists, "ca_file": str(ca)})
    device = gateway.connected("dev-a")
    files = {"policy": gateway.policy_file, "ca": ca, "deny": Path(lists["deny_file"])}
    files[broken].write_text("not [valid")
    with pytest.raises(ConfigFault, match=files[broken].name):
        gateway.reload()
    device.ping()
    gateway.connected("dev-b").ping()


def test_a_ca_taken_from_the_ca_file_ends_its_sessions(make_gateway: Maker, tmp_path: Path) -> None:
    """Trust is judged again in full when the CA file changes."""
    old, new = Pki(tmp_path / "old", "old"), Pki(tmp_path / "new", "new")
    ca = tmp_path / "ca.crt"
    ca.write_bytes(old.ca_file.read_bytes() + new.ca_file.read_bytes())
    gateway = make_gateway(pki=old, listener={"ca_file": str(ca)})
    device = gateway.connected("dev-a")
    ca.write_bytes(new.ca_file.read_bytes())
    gateway.reload()
    assert device.expect_closed(2) == []
    assert reasons(gateway, "disconnected") == ["issuer_unknown"]


def test_s12_a_resumed_tls_1_2_session_gains_nothing(make_gateway: Maker, lists: dict[str, Any], pki: Pki) -> None:
    """Orderly close, revoke, reconnect with the old TLS session: the leaf is judged again and refused."""
    gateway = make_gateway(listener=lists)
    credential = pki.device("dev-a")
    context = client_context(ca_file=pki.ca_file, cert_file=credential.cert_file, key_file=credential.key_file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    first = RawClient(gateway.port, context)
    assert first.connect("dev-a") == (False, 0)
    session = first.socket.session
    assert session is not None
    assert not session.has_ticket
    first.disconnect()
    shutil.copy(pki.crl([credential.certificate]), lists["crl_file"])
    gateway.reload()
    with pytest.raises((OSError, ssl.SSLError, Closed)):
        RawClient(gateway.port, context, session=session).connect("dev-a")
    assert gateway.sessions() == {}
    wait_until(lambda: reasons(gateway, "refused") == ["certificate_revoked"], "audit line")
