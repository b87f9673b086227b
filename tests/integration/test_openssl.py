"""OpenSSL's own tools judge what we issue and what the gateway's listener does."""

from pathlib import Path

import pytest

from tests.integration.programs import Authority, Gateway, Identity, attempt, run


def verify(authority: Authority, leaf: Path, *options: str | Path) -> str:
    root = authority.folder / "ca/root.crt"
    issuing = authority.folder / "ca/issuing.crt"
    done = attempt("openssl", "verify", "-x509_strict", *options, "-CAfile", root, "-untrusted", issuing, leaf)
    return done.stdout + done.stderr


def s_client(gateway: Gateway, authority: Authority, *options: str | Path) -> str:
    done = attempt(
        *("openssl", "s_client", "-connect", f"127.0.0.1:{gateway.port}", "-CAfile", authority.ca_file),
        *("-verify_return_error", "-verify_hostname", "localhost", *options),
        given="",
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "purpose"), [("device", "sslclient"), ("service", "sslclient"), ("server", "sslserver")]
)
def test_what_we_issue_passes_the_strict_check(
    authority: Authority, device: Identity, service: Identity, name: str, purpose: str
) -> None:
    """`openssl verify -x509_strict` accepts every kind of leaf for its purpose, and not for the other one."""
    leaf = {"device": device.cert, "service": service.cert, "server": authority.server.cert}[name]
    other = "sslserver" if purpose == "sslclient" else "sslclient"
    assert verify(authority, leaf, "-purpose", purpose).endswith(": OK\n")
    assert "unsuitable certificate purpose" in verify(authority, leaf, "-purpose", other)


def test_a_leaf_without_its_root_does_not_verify(authority: Authority, foreign: Identity) -> None:
    """The twin: the same kind of leaf from another CA is not accepted under our root."""
    assert "unable to get local issuer" in verify(authority, foreign.cert)


def test_the_crl_covers_the_whole_chain(tmp_path: Path) -> None:
    """With `-crl_check_all` an unrevoked leaf verifies, and the revoked one beside it does not."""
    authority = Authority.make(tmp_path / "site")
    kept, gone = authority.issue("press-01"), authority.issue("press-02")
    authority.revoke("press-02")
    check = ("-crl_check_all", "-CRLfile", authority.crl_file)
    assert verify(authority, kept.cert, *check).endswith(": OK\n")
    assert "certificate revoked" in verify(authority, gone.cert, *check)


@pytest.mark.parametrize("version", ["-tls1_3", "-tls1_2"])
def test_the_listener_proves_itself_and_takes_our_certificate(
    gateway: Gateway, authority: Authority, device: Identity, version: str
) -> None:
    """Over both versions of TLS that are served the chain verifies and nothing is left to resume."""
    said = s_client(gateway, authority, version, "-cert", device.cert, "-key", device.key)
    assert "Verify return code: 0 (ok)" in said
    assert "New Session Ticket" not in said.replace("no New Session Ticket", "")


def refused_before_mqtt(gateway: Gateway, authority: Authority, *options: str | Path) -> str:
    """What s_client said of a handshake that must fail, with exactly one audit line and nobody admitted."""
    before = [len(gateway.audit(event=event)) for event in ("refused", "admitted")]
    said = s_client(gateway, authority, *options)
    gateway.wait_until(lambda: len(gateway.audit(event="refused")) > before[0], "a refusal in the audit log")
    assert [len(gateway.audit(event=event)) for event in ("refused", "admitted")] == [before[0] + 1, before[1]]
    assert "alert" in said
    return str(gateway.audit(event="refused")[-1]["reason"])


@pytest.mark.parametrize(
    "options",
    [
        ("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"),
        ("-tls1_2", "-cipher", "AES128-GCM-SHA256"),
        ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"),
    ],
    ids=["TLS 1.1", "no forward secrecy", "no AEAD"],
)
def test_old_tls_is_refused(gateway: Gateway, authority: Authority, device: Identity, options: tuple[str, ...]) -> None:
    """The deny twin: an old version or cipher ends the handshake, good certificate or not."""
    reason = refused_before_mqtt(gateway, authority, *options, "-cert", device.cert, "-key", device.key)
    assert reason == "handshake_failed"


def test_who_is_not_certified_by_us_ends_the_handshake(
    gateway: Gateway, authority: Authority, self_signed: Identity, foreign: Identity
) -> None:
    """No certificate, a self-signed one, a foreign CA's: over TLS 1.2, where the client waits for the verdict."""
    shown = [(), *(("-cert", who.cert, "-key", who.key) for who in (self_signed, foreign))]
    reasons = [refused_before_mqtt(gateway, authority, "-tls1_2", *options) for options in shown]
    assert reasons == ["no_certificate", "issuer_unknown", "issuer_unknown"]


def test_inspect_and_openssl_read_the_same(device: Identity) -> None:
    """`mqtt-provision inspect` names the fingerprint that openssl computes."""
    printed = run("openssl", "x509", "-in", device.cert, "-noout", "-fingerprint", "-sha256")
    fingerprint = printed.split("=")[1].strip().replace(":", "").lower()
    assert fingerprint in run("mqtt-provision", "inspect", device.cert)
