"""Admission as a pure judgement: the order of its steps, its return codes, and what a will may be."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.admission import Admitted, ConnectRefused, admit_certificate, admit_connect, assigned_client_id
from gateway.broker.packets import Connect, Will
from gateway.config import GatewayConfig
from gateway.security import SecurityState, load_security
from mtls.clock import Moment
from mtls.errors import Reason, Refusal
from mtls.judgement import Peer
from mtls.revocation import DenyList
from mtls.trust import TrustStore
from tests.gateway.site import Site
from tests.support.pki import Credential, Pki

NOW = datetime.now(UTC)
EXPIRED: dict[str, Any] = {"not_before": NOW - timedelta(days=2), "not_after": NOW - timedelta(days=1)}
FUTURE: dict[str, Any] = {"not_before": NOW + timedelta(days=1), "not_after": NOW + timedelta(days=2)}

POLICY = """
version = 1
[[role]]
name = "device"
match = { id = "dev-*" }
publish = ["devices/{id}/#"]
retain = ["devices/{id}/state"]
will = ["devices/{id}/#"]
limits = { max_packet_bytes = 1000 }

[[role]]
name = "anonymous"
match = { id = "kiosk-*" }
client_id = ["{id}", ""]
publish = ["kiosks/{id}"]
"""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> SecurityState:
    site = Site(tmp_path_factory.mktemp("admission"), pki, POLICY)
    return load_security(GatewayConfig.load(site.config_file))


def der(credential: Credential) -> bytes:
    return credential.certificate.public_bytes(Encoding.DER)


def peer(state: SecurityState, pki: Pki, device_id: str) -> Peer:
    found = admit_certificate(state, der(pki.device(device_id)), Moment(NOW))
    assert isinstance(found, Peer)
    return found


def connect(client_id: str, *, clean: bool = True, will: Will | None = None) -> Connect:
    return Connect(client_id, clean, 60, will, None, None)


def test_a_certificate_of_the_site_is_admitted(state: SecurityState, pki: Pki) -> None:
    """The allow twin: who it is comes from the certificate."""
    assert str(peer(state, pki, "dev-a").id) == "dev-a"


def test_no_certificate_is_refused(state: SecurityState) -> None:
    """None never means anybody."""
    assert admit_certificate(state, None, Moment(NOW)) == Refusal(Reason.NO_CERTIFICATE)


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        ({"cn": ["dev-a", "dev-b"]}, Reason.IDENTITY_AMBIGUOUS),
        ({"cn": []}, Reason.IDENTITY_MISSING),
        ({"cn": "dev/a"}, Reason.IDENTITY_MALFORMED),
        ({"eku": None}, Reason.CERTIFICATE_USAGE),
        ({"ca": True}, Reason.CERTIFICATE_IS_CA),
        ({"self_signed": True}, Reason.ISSUER_UNKNOWN),
        (
            {"not_before": NOW - timedelta(days=2), "not_after": NOW - timedelta(days=1)},
            Reason.CERTIFICATE_EXPIRED,
        ),
        (
            {"not_before": NOW + timedelta(days=1), "not_after": NOW + timedelta(days=2)},
            Reason.CERTIFICATE_NOT_YET_VALID,
        ),
    ],
)
def test_a_certificate_that_is_wrong_is_refused_with_the_reason(
    state: SecurityState, pki: Pki, leaf: dict[str, Any], reason: Reason
) -> None:
    """One reason each, from the leaf alone, as on a resumed TLS session."""
    refused = admit_certificate(state, der(pki.raw_leaf(**leaf)), Moment(NOW))
    assert isinstance(refused, Refusal)
    assert refused.reason is reason


def test_identity_is_judged_before_dates_and_lists(state: SecurityState, pki: Pki) -> None:
    """The order of judgement: what has no identity is not looked up on any list, and is called what it is."""
    nobody = pki.raw_leaf(cn=["dev-a", "dev-b"], eku=None, **EXPIRED)
    refused = admit_certificate(state, der(nobody), Moment(NOW))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.IDENTITY_AMBIGUOUS
    denied = replace(state, deny=DenyList(ids=frozenset({"dev-a"})))
    gone = admit_certificate(denied, der(pki.raw_leaf(cn="dev-a", **EXPIRED)), Moment(NOW))
    assert isinstance(gone, Refusal)
    assert gone.reason is Reason.CERTIFICATE_EXPIRED
    listed = admit_certificate(denied, der(pki.device("dev-a")), Moment(NOW))
    assert isinstance(listed, Refusal)
    assert listed.reason is Reason.CERTIFICATE_DENIED


def test_a_revoked_certificate_is_refused_from_its_leaf_alone(tmp_path: Path) -> None:
    """S12: what OpenSSL checked, or skipped, at a handshake does not matter."""
    own = Pki(tmp_path / "pki")
    site, gone = Site(tmp_path, own, POLICY), own.device("dev-a")
    site.revoke(gone.certificate)
    refused = admit_certificate(load_security(GatewayConfig.load(site.config_file)), der(gone), Moment(NOW))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.CERTIFICATE_REVOKED


def test_a_known_certificate_is_judged_by_dates_and_lists_each_time(state: SecurityState, pki: Pki) -> None:
    """S12: remembered is who it is, never that it was in good standing."""
    device = pki.device("dev-a")
    first = admit_certificate(state, der(device), Moment(NOW))
    assert isinstance(first, Peer)
    assert admit_certificate(state, der(device), Moment(NOW)) is first
    late = admit_certificate(state, der(device), Moment(first.not_after + timedelta(seconds=1)))
    assert isinstance(late, Refusal)
    assert late.reason is Reason.CERTIFICATE_EXPIRED


def test_a_new_set_knows_nobody(state: SecurityState, pki: Pki, tmp_path: Path) -> None:
    """What was found under one trust store and one rule is gone with them, whichever way a set is made."""
    device = der(pki.device("dev-a"))
    admit_certificate(state, device, Moment(NOW))
    strangers = TrustStore.from_pem(Pki(tmp_path).ca_file.read_bytes(), "ca.crt")
    refused = admit_certificate(replace(state, trust=strangers), device, Moment(NOW))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.ISSUER_UNKNOWN


@pytest.mark.parametrize(
    ("device", "asked", "code", "reason"),
    [
        ("dev-a", connect("dev-a"), None, None),
        ("dev-a", connect("dev-a", clean=False), None, None),
        ("dev-a", connect("dev-b"), 2, Reason.CLIENT_ID_REFUSED),
        ("dev-a", connect(""), 2, Reason.CLIENT_ID_REFUSED),
        ("dev-a", connect("", clean=False), 2, Reason.CLIENT_ID_REFUSED),
        ("kiosk-1", connect(""), None, None),
        ("kiosk-1", connect("", clean=False), 2, Reason.CLIENT_ID_REFUSED),
        ("stranger", connect("stranger"), 5, Reason.NO_ROLE),
        ("dev-a", connect("dev-a", will=Will("devices/dev-a/gone", b"x", 1, False)), None, None),
        ("dev-a", connect("dev-a", will=Will("devices/dev-a/state", b"x", 1, True)), None, None),
        ("dev-a", connect("dev-a", will=Will("devices/dev-a/gone", b"x", 1, True)), 5, Reason.WILL_REFUSED),
        ("dev-a", connect("dev-a", will=Will("devices/dev-b/gone", b"x", 0, False)), 5, Reason.WILL_REFUSED),
        ("kiosk-1", connect("kiosk-1", will=Will("kiosks/kiosk-1", b"x", 0, False)), 5, Reason.WILL_REFUSED),
        ("dev-a", connect("dev-a", will=Will("devices/dev-a/x", b"x" * 985, 0, False)), None, None),
        ("dev-a", connect("dev-a", will=Will("devices/dev-a/x", b"x" * 986, 0, False)), 5, Reason.WILL_REFUSED),
        ("dev-a", connect("dev-a", will=Will("devices/dev-a" + "/x" * 126, b"", 0, False)), None, None),
        ("dev-a", connect("dev-a", will=Will("devices/dev-a" + "/x" * 127, b"", 0, False)), 5, Reason.WILL_REFUSED),
        ("dev-a", connect("dev-b", will=Will("devices/dev-b/x", b"", 0, False)), 2, Reason.CLIENT_ID_REFUSED),
    ],
)
def test_connect_is_admitted_or_refused_with_its_code(
    state: SecurityState, pki: Pki, device: str, asked: Connect, code: int | None, reason: Reason | None
) -> None:
    """Identity and will refused 5, client identifier refused 2 [MQTT-3.1.3-8, 3.1.3-9]; the first no decides."""
    verdict = admit_connect(state, peer(state, pki, device), asked)
    if code is None:
        assert isinstance(verdict, Admitted)
        assert verdict.grants.roles
    else:
        assert isinstance(verdict, ConnectRefused)
        assert (int(verdict.code), verdict.refusal.reason) == (code, reason)


def test_an_assigned_client_identifier_is_new_every_time() -> None:
    """Nobody can resume, or guess, what another was assigned."""
    names = {assigned_client_id() for _ in range(100)}
    assert len(names) == 100
    assert min(len(name) for name in names) > 20


@pytest.mark.parametrize(("levels", "detail"), [(128, None), (129, "129 topic levels, limit 128")])
def test_a_will_may_be_as_deep_as_a_publish(state: SecurityState, pki: Pki, levels: int, detail: str | None) -> None:
    """Exactly the configured number of levels passes, one more is refused and counted right."""
    topic = "/".join(["devices", "dev-a", *(["x"] * (levels - 2))])
    connect = Connect("dev-a", True, 60, Will(topic, b"", 0, False), None, None)
    found = admit_connect(state, peer(state, pki, "dev-a"), connect)
    assert (found.refusal.detail if isinstance(found, ConnectRefused) else None) == detail


def test_an_assigned_client_identifier_cannot_be_guessed() -> None:
    """96 random bits behind a mark that tells an operator where it comes from."""
    mark, _, token = assigned_client_id().partition("-")
    assert (mark, len(bytes.fromhex(token))) == ("auto", 12)


def test_verdicts_cannot_be_changed_afterwards(state: SecurityState, pki: Pki) -> None:
    """What was judged stays judged, and carries nothing else."""
    found = admit_connect(state, peer(state, pki, "dev-a"), Connect("dev-a", True, 60, None, None, None))
    refused = admit_connect(state, peer(state, pki, "dev-a"), Connect("dev-b", True, 60, None, None, None))
    for verdict, field in ((found, "grants"), (refused, "code")):
        with pytest.raises(FrozenInstanceError):
            setattr(verdict, field, None)
        assert not hasattr(verdict, "__dict__")
