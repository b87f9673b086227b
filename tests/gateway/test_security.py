"""The security set: read and verified as one, and never replaced by one that knows less of revocation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.admission import admit_certificate
from gateway.config import GatewayConfig
from gateway.reload import needs_restart, snapshot
from gateway.security import SecurityState, check_replacement, load_security
from mtls.clock import Moment
from mtls.errors import ConfigFault, Reason, Refusal
from mtls.keystore import new_key
from mtls.profiles import ISSUING_CA
from mtls.trust import to_pem
from tests.gateway.site import POLICY, Site
from tests.support.pki import Pki


@pytest.fixture
def own_pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
def site(tmp_path: Path, own_pki: Pki) -> Site:
    return Site(tmp_path, own_pki)


def load(site: Site) -> SecurityState:
    return load_security(GatewayConfig.load(site.config_file))


def test_a_whole_set_is_loaded(site: Site) -> None:
    """Roots, issuing CAs, both CRLs, the deny list, the policy and a context."""
    site.deny_file.write_text('ids = ["dev-x"]\n')
    state = load(site)
    assert (len(state.trust.roots), len(state.trust.issuing)) == (1, 1)
    assert state.crls is not None
    assert len(state.crls.entries) == 2
    assert state.deny.ids == {"dev-x"}
    assert state.server_not_after > datetime.now(UTC) + timedelta(days=1)
    assert [warning for warning in state.warnings if "[[issuer]]" not in warning] == []


@pytest.mark.parametrize("fault", ["absent", "junk", "foreign", "folder"])
def test_at_the_start_a_crl_that_cannot_be_used_is_part_of_the_set(site: Site, tmp_path: Path, fault: str) -> None:
    """It warns, and it refuses everybody of its CA: going on without it would be going on blindly."""
    site.crl_file.unlink()
    if fault == "junk":
        site.crl_file.write_text("junk")
    elif fault == "foreign":
        site.crl_file.write_bytes(Pki(tmp_path / "foreign").crl().read_bytes())
    elif fault == "folder":
        site.crl_file.mkdir()
    state = load(site)
    assert state.crls is not None
    leaf = site.pki.device("dev-a").certificate.public_bytes(Encoding.DER)
    refusal = admit_certificate(state, leaf, Moment(datetime.now(UTC)))
    assert isinstance(refusal, Refusal)
    assert refusal.reason in (Reason.CRL_MISSING, Reason.CRL_INVALID)
    assert any("CRL file cannot be used" in warning for warning in state.warnings)


def test_of_two_cas_of_one_name_the_newer_one_is_the_floor(site: Site, own_pki: Pki) -> None:
    """A CA is followed by one of the same name; what the newer one proves of the time must not be forgotten."""
    ahead = datetime.now(UTC) + timedelta(minutes=30)
    follower = ISSUING_CA.build(subject_cn="test CA", public_key=new_key().public_key(), issuer=own_pki.root, now=ahead)
    assert follower.not_valid_before_utc > own_pki.issuing.certificate.not_valid_before_utc
    own_pki.ca_file.write_bytes(to_pem([follower]) + own_pki.ca_file.read_bytes())
    assert load(site).floors["notBefore of 'test CA'"] == follower.not_valid_before_utc


def test_without_crl_file_it_is_said(site: Site) -> None:
    """No CRL by choice is a warning, not a refusal."""
    site.configure(listener={"crl_file": ""})
    state = load(site)
    assert state.crls is None
    assert any("no [listener] crl_file" in warning for warning in state.warnings)


def test_an_expired_server_certificate_is_said(tmp_path: Path, own_pki: Pki) -> None:
    """The clients will refuse it; the operator reads why."""
    site = Site(tmp_path, own_pki)
    site.server = own_pki.server(lifetime=timedelta(minutes=-30))
    site.configure()
    assert any("no client will trust it" in warning for warning in load(site).warnings)


def test_a_newer_crl_may_replace_an_older(site: Site, own_pki: Pki) -> None:
    """The allow twin of the refusals below."""
    old = load(site)
    site.revoke(own_pki.device("dev-a").certificate)
    check_replacement(old, load(site))


@pytest.mark.parametrize("content", ["", "-----BEGIN X509 CRL-----\nMIIB\n", None], ids=["empty", "half", "absent"])
def test_a_damaged_crl_does_not_replace_a_good_one(site: Site, content: str | None) -> None:
    """A copy that was cut off must not lock the fleet out; the older list stays in force."""
    old = load(site)
    if content is None:
        site.crl_file.unlink()
    else:
        site.crl_file.write_text(content)
    with pytest.raises(ConfigFault, match="holds no usable CRL of 'test"):
        check_replacement(old, load(site))


def test_a_file_with_one_crl_less_does_not_replace_it(site: Site, own_pki: Pki) -> None:
    """The root's CRL may not get lost on the way either."""
    old = load(site)
    issuing_only = own_pki.crl().read_bytes().split(b"-----END X509 CRL-----")[0] + b"-----END X509 CRL-----\n"
    site.crl_file.write_bytes(issuing_only)
    with pytest.raises(ConfigFault, match="Root CA"):
        check_replacement(old, load(site))


def test_taking_the_crl_out_of_the_configuration_is_a_choice(site: Site) -> None:
    """The operator's way out, written down in the file."""
    old = load(site)
    site.configure(listener={"crl_file": ""})
    check_replacement(old, load(site))


def test_a_set_without_crl_can_be_mended(site: Site) -> None:
    """From bad to good is always allowed."""
    good = site.crl_file.read_bytes()
    site.crl_file.unlink()
    old = load(site)
    site.crl_file.write_bytes(good)
    check_replacement(old, load(site))


def test_two_roots_want_issuers_by_key(site: Site, tmp_path: Path, own_pki: Pki) -> None:
    """S6: with two trusted roots a name is not enough, and the fault names the line."""
    other = Pki(tmp_path / "other", name="other")
    both = [own_pki.root.certificate, own_pki.issuing.certificate, other.root.certificate, other.issuing.certificate]
    (tmp_path / "both.pem").write_bytes(to_pem(both))
    site.configure(listener={"ca_file": "both.pem"})
    site.policy_file.write_text(POLICY + '\n[[issuer]]\nsubject_cn = "test CA"\nids = ["*"]\n')
    with pytest.raises(ConfigFault, match="spki_sha256"):
        load(site)


def test_what_is_bound_to_the_start_is_named(site: Site) -> None:
    """A reload that cannot do everything says what is left."""
    started = GatewayConfig.load(site.config_file)
    site.configure(
        listener={"bind": ["127.0.0.1:1"]}, limits={"max_connections": 9, "max_inflight": 3}, store={"path": "x.db"}
    )
    assert needs_restart(started, GatewayConfig.load(site.config_file)) == (
        "[listener] bind",
        "[store]",
        "[limits] max_connections",
    )
    assert needs_restart(started, started) == ()


def test_every_file_that_is_read_is_watched(site: Site) -> None:
    """Changing any of them changes the snapshot, in place or by rename, and so does its removal."""
    config = GatewayConfig.load(site.config_file)
    files = list(snapshot(config))
    assert {file.name for file in files} >= {"ca.crt", "crl.pem", "deny.toml", "policy.toml"}
    assert len(files) == 6
    before = snapshot(config)
    site.revoke()
    renamed = snapshot(config)
    assert renamed != before
    site.policy_file.write_text(POLICY + "\n")
    assert snapshot(config) != renamed
    site.deny_file.unlink()
    assert snapshot(config)[site.deny_file] is None
