"""Commands that need no running gateway: check-config, explain, policy test and check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.cli import cli
from mtls.trust import to_pem
from tests.gateway.site import Site
from tests.support.pki import Pki


@pytest.fixture
def own_pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
def site(tmp_path: Path, own_pki: Pki) -> Site:
    return Site(tmp_path, own_pki)


def gateway(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="mqtt-gateway")


def explained(site: Site, *words: str | Path) -> Result:
    return gateway("explain", *words, "--config", site.config_file)


def test_check_config_shows_what_it_read(site: Site) -> None:
    """Result on standard output within 80 columns, warnings on standard error, and JSON with the same facts."""
    done = gateway("check-config", "--config", site.config_file)
    assert done.exit_code == 0
    assert "issuing CAs         test CA" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert "warning: " in done.stderr
    row = json.loads(gateway("check-config", "--config", site.config_file, "--json").stdout)
    assert (row["issuing_cas"], row["roles"], row["denied"]) == (["test CA"], ["device", "service"], 0)


def test_check_config_shows_where_messages_are_kept_and_go(site: Site) -> None:
    """Store and upstream are named when the configuration has them, and not otherwise."""
    without = gateway("check-config", "--config", site.config_file).stdout
    tables = f"""
[store]
path = "kept.db"
allow_volatile = true

[uplink]
host = "mqtt.example.com"
ca_file = "{site.pki.ca_file}"
cert_file = "{site.server.cert_file}"
key_file = "{site.server.key_file}"
publish = [{{ local = "devices/#", remote = "site/#" }}]
"""
    site.config_file.write_text(site.config_file.read_text() + tables)
    done = gateway("check-config", "--config", site.config_file)
    assert done.exit_code == 0, done.stderr
    shown = done.stdout
    assert "store               " in shown
    assert "upstream            mqtt.example.com:8883\n" in shown
    assert "upstream" not in without


def test_check_config_of_what_cannot_be_used_is_78(site: Site) -> None:
    """The twin: one sentence, a hint, nothing on standard output."""
    site.policy_file.write_text("version = 2\n")
    done = gateway("check-config", "--config", site.config_file)
    assert (done.exit_code, done.stdout) == (78, "")
    assert done.stderr.startswith("error: ")
    assert "policy.toml" in done.stderr
    assert "hint: " in done.stderr


@pytest.mark.parametrize(
    ("action", "topic", "allowed"),
    [
        ("publish", "devices/dev-a/state", True),
        ("publish", "devices/dev-b/state", False),
        ("retain", "devices/dev-a/state", True),
        ("will", "devices/dev-a/telemetry/t", False),
        ("subscribe", "devices/dev-a/commands/#", True),
        ("subscribe", "devices/#", False),
        ("receive", "devices/dev-a/commands/go", True),
        ("connect", "", True),
    ],
)
def test_explain_answers_for_the_holder_of_a_certificate(
    site: Site, own_pki: Pki, action: str, topic: str, allowed: bool
) -> None:
    """Exit 0 allows, 1 denies; the text fits 80 columns and says the same as the JSON."""
    cert = own_pki.device("dev-a").cert_file
    words = ["--cert", cert, "--action", action, *(["--topic", topic] if topic else [])]
    text, as_json = explained(site, *words), explained(site, *words, "--json")
    assert text.exit_code == as_json.exit_code == (0 if allowed else 1)
    assert json.loads(as_json.stdout)["allowed"] is allowed
    assert ("allow" if allowed else "deny") in text.stdout.splitlines()[0]
    assert max(len(line) for line in text.stdout.splitlines()) <= 80


def test_explain_needs_no_key_of_the_server(site: Site, own_pki: Pki) -> None:
    """An operator without root asks the same policy."""
    site.configure(listener={"key_file": "absent.key"})
    cert = own_pki.device("dev-a").cert_file
    assert explained(site, "--cert", cert, "--action", "publish", "--topic", "devices/dev-a/state").exit_code == 0


def certificate(site: Site, pki: Pki, tmp_path: Path, fault: str) -> tuple[Path, str]:
    if fault == "revoked":
        device = pki.device("dev-a")
        site.revoke(device.certificate)
        return device.cert_file, "certificate_revoked"
    if fault == "denied":
        site.deny_file.write_text('ids = ["dev-a"]\n')
        return pki.device("dev-a").cert_file, "certificate_denied"
    if fault == "foreign":
        return Pki(tmp_path / "foreign").device("dev-a").cert_file, "issuer_unknown"
    if fault == "no clientAuth":
        return pki.raw_leaf(eku=None).cert_file, "certificate_usage"
    site.policy_file.write_text(site.policy_file.read_text() + '\n[[issuer]]\nsubject_cn = "test CA"\nids = ["x-*"]\n')
    return pki.device("dev-a").cert_file, "issuer_not_allowed"


@pytest.mark.parametrize("fault", ["revoked", "denied", "foreign", "no clientAuth", "not its issuer's to name"])
def test_explain_judges_the_certificate_as_the_listener_would(
    site: Site, own_pki: Pki, tmp_path: Path, fault: str
) -> None:
    """A topic that the policy grants does not help who is not admitted."""
    path, reason = certificate(site, own_pki, tmp_path, fault)
    words = ["--cert", path, "--action", "publish", "--topic", "devices/dev-a/state"]
    text = explained(site, *words)
    assert (text.exit_code, reason in text.stdout) == (1, True)
    found = json.loads(explained(site, *words, "--json").stdout)
    assert (found["allowed"], found["reason"]) == (False, reason)


def test_explain_takes_der_and_a_policy_alone(site: Site, own_pki: Pki, tmp_path: Path) -> None:
    """Without a configuration there are no CAs to verify by, and the names are taken as they stand."""
    path = tmp_path / "dev-a.der"
    path.write_bytes(own_pki.device("dev-a", ou="services").certificate.public_bytes(Encoding.DER))
    words = ["explain", "--cert", path, "--action", "subscribe", "--topic", "devices/#", "--policy", site.policy_file]
    assert gateway(*words).exit_code == 0
    words[2] = own_pki.device("dev-a").cert_file
    assert gateway(*words).exit_code == 1


def test_explain_of_a_certificate_that_cannot_be_parsed_is_no_traceback(
    site: Site, own_pki: Pki, tmp_path: Path
) -> None:
    """It is refused in words, with a configuration and with a policy alone."""
    whole = own_pki.device("dev-a").certificate.public_bytes(Encoding.DER)
    path = tmp_path / "dev-a.der"
    path.write_bytes(whole.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020103")))  # version 4
    words = ["explain", "--cert", path, "--action", "connect"]
    for rules in (["--policy", site.policy_file], ["--config", site.config_file]):
        done = gateway(*words, *rules)
        assert (done.exit_code, "dev-a.der holds no readable certificate" in done.stderr) == (78, True)
    path.write_bytes(whole.replace(bytes.fromhex("0c07") + b"test CA", bytes.fromhex("0c07") + b"test \xff\xff"))
    done = gateway(*words, "--policy", site.policy_file)
    assert (done.exit_code, "certificate_unreadable" in done.stdout) == (1, True)


def test_explain_asks_for_a_device_that_does_not_exist_yet(site: Site, tmp_path: Path, own_pki: Pki) -> None:
    """By id; with several issuing CAs it must be said which."""
    words: list[Any] = ["--id", "dev-new", "--action", "publish", "--topic", "devices/dev-new/state"]
    assert explained(site, *words).exit_code == 0
    assert explained(site, *words, "--client-id", "other").exit_code == 1
    assert explained(site, "--id", "dev/new", *words[2:]).exit_code == 1
    backend = ["--id", "svc", "--ou", "services", "--action", "subscribe", "--topic", "devices/#"]
    assert explained(site, *backend).exit_code == 0
    other = Pki(tmp_path / "other", name="other")
    pems = [own_pki.root.certificate, own_pki.issuing.certificate, other.root.certificate, other.issuing.certificate]
    (tmp_path / "both.pem").write_bytes(to_pem(pems))
    site.configure(listener={"ca_file": "both.pem"})
    unsaid = explained(site, *words)
    assert (unsaid.exit_code, "name one with --issuer: other CA, test CA" in unsaid.stderr) == (1, True)
    assert explained(site, *words, "--issuer", "other CA").exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--action", "publish", "--topic", "t"],
        ["--cert", "x", "--id", "y", "--action", "publish", "--topic", "t"],
        ["--id", "y", "--action", "publish"],
        ["--id", "y", "--action", "connect", "--topic", "t"],
        ["--id", "y", "--action", "erase", "--topic", "t"],
        ["--id", "y"],
    ],
)
def test_explain_typed_wrong_is_a_usage_error(site: Site, words: list[str]) -> None:
    """Exit 2, before any file is read."""
    assert explained(site, *words).exit_code == 2


def test_explain_without_policy_or_certificate_is_a_fault(site: Site, tmp_path: Path) -> None:
    """What is missing is named."""
    nothing = gateway("explain", "--id", "a", "--action", "connect")
    assert (nothing.exit_code, "give --config or --policy" in nothing.stderr) == (1, True)
    (tmp_path / "junk").write_text("junk")
    junk = explained(site, "--cert", tmp_path / "junk", "--action", "connect")
    assert (junk.exit_code, "holds no readable certificate" in junk.stderr) == (78, True)


def test_policy_test_answers_no_when_a_case_differs(site: Site, tmp_path: Path) -> None:
    """Exit 0 and 1; a broken case file is 78."""
    cases = tmp_path / "cases.toml"
    case = (
        '[[case]]\nwho = ["dev-a", "test CA"]\naction = "publish"\ntopic = "devices/dev-{}/state"\nexpect = "allow"\n'
    )
    cases.write_text(case.format("a"))
    assert gateway("policy", "test", cases, "--policy", site.policy_file).exit_code == 0
    cases.write_text(case.format("a") + case.format("b"))
    differs = gateway("policy", "test", cases, "--policy", site.policy_file)
    assert (differs.exit_code, "1 of 2 cases as expected" in differs.stdout) == (1, True)
    assert (
        json.loads(gateway("policy", "test", cases, "--policy", site.policy_file, "--json").stdout)["passed"] is False
    )
    cases.write_text("[[cases]]\n")
    assert gateway("policy", "test", cases, "--policy", site.policy_file).exit_code == 78


def test_policy_check_proves_isolation_or_shows_the_topic(site: Site) -> None:
    """Exit 0 for a tree per device, 1 with a witness when devices share one."""
    assert gateway("policy", "check", "--policy", site.policy_file).exit_code == 0
    shared = site.policy_file.read_text().replace('"devices/{id}/commands/#"', '"devices/+/commands/#", "devices/#"')
    site.policy_file.write_text(shared)
    found = gateway("policy", "check", "--policy", site.policy_file)
    assert (found.exit_code, "not isolated" in " ".join(found.stdout.split())) == (1, True)
    assert json.loads(gateway("policy", "check", "--policy", site.policy_file, "--json").stdout)["isolated"] is False


MUDDLED = """
version = 1
[identity]
client_id = ["*", ""]
[[issuer]]
subject_cn = "A"
ids = ["a-*", "x-*"]
[[issuer]]
subject_cn = "B"
ids = ["b-*", "x-1"]
[[role]]
name = "device"
match = { id = "*" }
publish = ["d/{id}/#", "d/{id}/raw", "d/+/open"]
retain = ["other/{id}"]
will = ["w/{id}"]
subscribe = ["d/+/open"]
deny = [{ action = "will", topic = "w/#" }]
[[role]]
name = "nobody"
match = { id = "z-*" }
"""


@pytest.mark.parametrize(
    "told",
    [
        "LEAK: ",
        "reads d/",
        'role "device" allows any client identifier ("*")',
        'role "device" allows connections without a client identifier ("")',
        'issuers "A" (line 4) and "B" (line 7) may both name x-1',
        'role "nobody" (line 18): no id was found',
        "publish[1] (line 13) d/{id}/raw is unreachable: publish[0] covers it",
        "will[0] (line 15) w/{id} is unreachable: deny[0] denies all of it",
        "retain[0] (line 14) other/{id} cannot be used: no publish or will grant of the role meets it",
    ],
)
def test_policy_check_tells_what_does_not_do_what_it_seems_to(tmp_path: Path, told: str) -> None:
    """Leaks with a witness, client identifiers that bind nobody, issuers that overlap, rules that never apply."""
    file = tmp_path / "policy.toml"
    file.write_text(MUDDLED.lstrip())
    found = gateway("policy", "check", "--policy", file)
    assert (found.exit_code, told in " ".join(found.stdout.split())) == (1, True)


def test_policy_check_claims_no_proof_without_two_devices(tmp_path: Path) -> None:
    """A pattern that hides its ids: no, until `--id` names two."""
    file = tmp_path / "policy.toml"
    role = '[[role]]\nname = "r"\nmatch = { id = "*" }\npublish = ["d/{id}"]\n'
    file.write_text(f"version = 1\n[identity]\npattern = '(?=x)[a-z]+(?<=y)'\n{role}")
    for words, code in ((), 1), (("--id", "xay"), 1), (("--id", "xay", "--id", "xby"), 0):
        assert gateway("policy", "check", "--policy", file, *words).exit_code == code
