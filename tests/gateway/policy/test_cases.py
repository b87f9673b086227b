"""Golden cases: the ones that bind, and that a case file is read strictly and reported honestly."""

import json
from pathlib import Path

import pytest

from gateway.policy import Policy
from gateway.policy.cases import load_cases, run_case, run_cases
from mtls.errors import ConfigFault, Reason
from tests.gateway.policy.world import DEVICE, policy_of, role

CASES = Path(__file__).parents[2] / "cases"
FLEET = Policy.load(CASES / "fleet-policy.toml")


@pytest.mark.parametrize("case", load_cases(CASES / "fleet-cases.toml"), ids=lambda case: f"line{case.line}")
def test_the_golden_cases_bind(case) -> None:  # type: ignore[no-untyped-def]
    """Every case of the fleet."""
    result = run_case(FLEET, case)
    assert result.passed, str(result)


def test_all_golden_cases_are_asked() -> None:
    """None is lost on the way, and the report says so."""
    path = CASES / "fleet-cases.toml"
    report = run_cases(FLEET, path)
    assert len(report.results) == path.read_text(encoding="utf-8").count("{ who")
    assert report.exit_code == 0
    assert report.failed == ()
    assert report.to_text() == f"{path}: {len(report.results)} of {len(report.results)} cases as expected"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "cases.toml"
    path.write_text(text)
    return path


def test_a_difference_is_a_line_and_an_exit_code(tmp_path: Path) -> None:
    """Which case, what was expected, what came and by which rule."""
    path = written(
        tmp_path,
        'case = [\n{ who = ["d1", "CA"], action = "publish", topic = "devices/d1/x", expect = "deny", why = "try" },\n'
        '{ who = ["d1", "CA"], action = "publish", topic = "devices/d2/x", expect = "allow" },\n'
        '{ who = ["d1", "CA"], action = "connect", client_id = "d2", expect = "allow" },\n'
        '{ who = ["d1", "CA"], action = "publish", topic = "devices/d1/x", expect = "allow" },\n]',
    )
    report = run_cases(policy_of(DEVICE), path)
    assert report.exit_code == 1
    assert report.to_text().splitlines() == [
        f"{path}: line 2: d1 of CA: publish devices/d1/x: expected deny (try), got allow:"
        " granted device publish[0] line 5",
        f"{path}: line 3: d1 of CA: publish devices/d2/x: expected allow, got deny: no_grant",
        f"{path}: line 4: d1 of CA: connect client id 'd2': expected allow, got deny:"
        ' client_id_refused "d2" is not bound to d1',
        f"{path}: 1 of 4 cases as expected",
    ]
    told = json.loads(report.to_json())
    assert report.to_json() == json.dumps(told, indent=2)
    assert told["file"] == str(path)
    assert (told["results"][0]["case"]["client_id"], told["results"][2]["case"]["topic"]) == (None, "")
    assert told["passed"] is False
    assert [result["passed"] for result in told["results"]] == [False, False, False, True]
    assert told["results"][0]["case"]["topic"] == "devices/d1/x"


def test_a_case_can_give_every_fact(tmp_path: Path) -> None:
    """ou, o, registry attributes, the issuer's key, a client identifier for a topic."""
    path = written(
        tmp_path,
        """
[[case]]
who = ["d1", "CA"]
action = "publish"
topic = "x/hall/c"
client_id = "c"
ou = ["services"]
o = ["site"]
attr.site = "hall"
expect = "allow"
[[case]]
who = ["d1", "CA"]
action = "publish"
topic = "x/hall/c"
client_id = "c"
"attr.site" = "yard"
ou = ["services"]
o = ["site"]
expect = "deny"
""",
    )
    policy = policy_of(
        role('client_id = ["*"]\npublish = ["x/{attr.site}/{client_id}"]', match='{ ou = "services", o = "site" }')
    )
    assert run_cases(policy, path).exit_code == 0


def test_who_means_the_ca_of_the_policy(tmp_path: Path) -> None:
    """The key that the policy names for that CA is taken, unless the case names one."""
    head = f'[[issuer]]\nsubject_cn = "CA"\nspki_sha256 = "{"1" * 64}"\nids = ["*"]'
    who = '{ who = ["d1", "CA"], action = "connect", client_id = "d1", '
    path = written(
        tmp_path, f'case = [ {who} expect = "allow" }}, {who} spki_sha256 = "{"2" * 64}", expect = "deny" }} ]'
    )
    assert run_cases(policy_of(role("", head=head)), path).exit_code == 0
    two = head + "\n" + head.replace("1" * 64, "2" * 64)
    results = run_cases(policy_of(role("", head=two)), path).results
    assert [(result.got, result.reason) for result in results] == [
        ("deny", Reason.ISSUER_NOT_ALLOWED),
        ("allow", Reason.GRANTED),
    ]


def test_a_topic_case_without_client_id_takes_one_that_is_allowed(tmp_path: Path) -> None:
    """So that a list without the plain id does not fail every case."""
    path = written(
        tmp_path, 'case = [{ who = ["d1", "CA"], action = "publish", topic = "devices/d1/x", expect = "allow" }]'
    )
    assert run_cases(policy_of(DEVICE + 'client_id = ["{id}:*"]'), path).exit_code == 0


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a/b"])
def test_who_that_is_no_device_id_is_denied(tmp_path: Path, name: str) -> None:
    """An id that cannot exist is refused as the certificate would be."""
    path = written(
        tmp_path, f'case = [{{ who = ["{name}", "CA"], action = "connect", client_id = "x", expect = "deny" }}]'
    )
    (result,) = run_cases(policy_of(DEVICE), path).results
    assert (result.got, result.reason) == ("deny", Reason.IDENTITY_MALFORMED)
    assert result.detail.startswith("a device id")


GOOD = {"who": '["d1", "CA"]', "action": '"publish"', "topic": '"x"', "expect": '"allow"'}


def case_with(**changes: str | None) -> str:
    keys = {**GOOD, **changes}
    return "case = [\n{ " + ", ".join(f"{key} = {value}" for key, value in keys.items() if value) + " }]"


SLIPS = {
    "unknown key": (case_with(topics='"x"'), 'cases.toml:2: unknown key "topics" in case number 1, the nearest'),
    "unknown root key": ("cases = []", 'unknown key "cases" in the case file, the nearest known key is "case"'),
    "no case": ("case = []", "cases.toml:1: there is no case"),
    "nothing": ("", "cases.toml:1: there is no case"),
    "no TOML": ("case = [", "cases.toml: not valid TOML"),
    "no who": (case_with(who=None), "cases.toml:2: who of case number 1 is not [id, common name of the issuing CA]"),
    "who is one": (case_with(who='["d1"]'), "who of case number 1 is not [id"),
    "who is three": (case_with(who='["d1", "CA", "x"]'), "who of case number 1 is not [id"),
    "who is a number": (case_with(who='["d1", 1]'), "who[1] in case number 1 is a number, not a text"),
    "no action": (case_with(action=None), "case number 1 has no action"),
    "no expect": (case_with(expect=None), "case number 1 has no expect"),
    "unknown expect": (case_with(expect='"yes"'), 'is "yes", not one of "allow", "deny"'),
    "unknown action": (case_with(action='"write"'), 'is "write", not one of "connect"'),
    "no topic": (case_with(topic=None), 'case number 1 has no "topic"'),
    "connect with topic": (
        case_with(action='"connect"', client_id='"x"'),
        "case number 1: connect is asked with a client_id and without a topic",
    ),
    "connect without id": (case_with(action='"connect"', topic=None), "connect is asked with a client_id and without"),
    "client id is a number": (case_with(client_id="1"), "client_id in case number 1 is a number, not a text"),
    "attribute is a number": (case_with(attr="{ site = 1 }"), "attr.site in case number 1 is a number, not a text"),
    "attribute without name": (case_with(attr='"x"'), "attr in case number 1: an attribute has a name"),
    "who on its own line": (case_with().replace("{ who", "{}, { who"), "cases.toml:2: who of case number 1"),
    "ou is a text": (case_with(ou='"x"'), "ou in case number 1 is a text, not a list of texts"),
}


@pytest.mark.parametrize(("text", "message"), SLIPS.values(), ids=SLIPS.keys())
def test_a_slip_in_a_case_file_is_a_fault(tmp_path: Path, text: str, message: str) -> None:
    """A case that is skipped silently would prove nothing."""
    with pytest.raises(ConfigFault) as caught:
        load_cases(written(tmp_path, text))
    assert message in str(caught.value)
    assert caught.value.hint


def test_a_case_without_a_slip_is_read(tmp_path: Path) -> None:
    """The twin of the slips."""
    (case,) = load_cases(written(tmp_path, case_with()))
    assert (case.id, case.issuer, case.topic, case.client_id, case.line) == ("d1", "CA", "x", None, 2)


def test_a_missing_case_file_is_a_fault(tmp_path: Path) -> None:
    """And bytes that are no text."""
    with pytest.raises(ConfigFault, match="does not exist"):
        load_cases(tmp_path / "none.toml")
    path = tmp_path / "cases.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigFault, match="not valid TOML") as caught:
        load_cases(path)
    assert caught.value.hint == "a case file is TOML in UTF-8"
    path.write_bytes(b"")
    with pytest.raises(ConfigFault) as caught:
        load_cases(path)
    assert caught.value.hint == "a file without cases would prove nothing"


def test_texts_of_a_case_are_escaped_in_the_report(tmp_path: Path) -> None:
    """What is printed cannot move the cursor."""
    path = written(tmp_path, case_with(topic='"x\\u001b[31m"'))
    assert "\x1b" not in run_cases(policy_of(DEVICE), path).to_text()
