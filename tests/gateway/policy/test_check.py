"""Isolation: proved or shown with a topic, against brute force; and what in a policy does not do what it seems to."""

import json
from itertools import permutations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy import Action, Grants, Policy, isolation
from gateway.policy.check import CheckReport, check
from gateway.policy.globs import Token
from gateway.policy.isolation import equations
from tests.gateway.policy.strategies import TOPICS
from tests.gateway.policy.world import DEVICE, peer_of, policy_of, role


def checked(text: str, *example_ids: str) -> CheckReport:
    return check(policy_of(text), example_ids)


def crossings(report: CheckReport) -> set[tuple[str, str, str]]:
    return {(crossing.kind, crossing.left, crossing.right) for crossing in report.crossings}


def test_devices_with_their_own_tree_are_isolated() -> None:
    """Nothing crosses, and that is proved."""
    report = checked(role('publish = ["devices/{id}/#"]\nsubscribe = ["devices/{id}/#"]\nwill = ["devices/{id}/x"]'))
    assert (report.crossings, report.undecided) == ((), ())
    assert report.isolated
    assert report.exit_code == 0
    assert report.pairs == 3
    assert report.to_text().startswith("site.toml: isolated: 1 roles, 3 questions about pairs of them\n")


LEAKS = {
    "a wildcard for the id": ('publish = ["devices/{id}/x"]\nsubscribe = ["devices/+/x"]', "write-read"),
    "a short filter": ('publish = ["devices/{id}/x"]\nsubscribe = ["devices/#"]', "write-read"),
    "all": ('publish = ["#"]\nsubscribe = ["devices/{id}/x"]', "write-read"),
    "an id that is a name": ('publish = ["devices/{id}/#"]\nsubscribe = ["devices/b/x"]', "write-read"),
    "two tokens that cross": ('publish = ["x/{id}/+"]\nsubscribe = ["x/+/{id}"]', "write-read"),
    "a will": ('will = ["devices/+/x"]\nsubscribe = ["devices/{id}/#"]', "write-read"),
    "both write": ('publish = ["devices/{id}/x", "devices/+/x"]', "write-write"),
    "a will and a publish": ('publish = ["devices/{id}/x"]\nwill = ["devices/#"]', "write-write"),
    "both read": ('subscribe = ["devices/{id}/x", "devices/+/x"]', "read-read"),
    "receive wider than it seems": ('publish = ["d/{id}"]\nsubscribe = ["#"]\nreceive = ["d/+"]', "write-read"),
    "a deny with a hole": (
        'publish = ["d/{id}/#"]\nsubscribe = ["d/#"]\ndeny = [{ action = "subscribe", topic = "d/+/a" }]',
        "write-read",
    ),
    "an attribute shared": ('publish = ["{attr.site}/{id}"]\nsubscribe = ["{attr.site}/+"]', "write-read"),
    "an attribute that is an id": ('publish = ["x/{id}"]\nsubscribe = ["x/{attr.twin}"]', "write-read"),
    "an ou that is an id": ('publish = ["x/{id}"]\nsubscribe = ["x/{ou}"]', "write-read"),
}


@pytest.mark.parametrize(("body", "kind"), LEAKS.values(), ids=LEAKS.keys())
def test_a_leak_within_a_role_is_found(body: str, kind: str) -> None:
    """Another device's own topic is reached: the verdict is no, with a topic that the engine confirms."""
    policy = policy_of(role(body))
    report = check(policy)
    assert not report.isolated
    assert report.exit_code == 1
    leaks = [crossing for crossing in report.crossings if crossing.own and crossing.kind == kind]
    assert leaks
    assert leaks[0].left_id != leaks[0].right_id
    assert report.to_text().startswith(
        f"site.toml: not isolated: 1 roles, {report.pairs} questions about pairs of them\n"
    )
    own = next(crossing for crossing in report.crossings if crossing.own)
    assert report.to_text().splitlines()[1].startswith(f"  LEAK: {own.left_id} ")


TIGHT = {
    "denied": 'publish = ["d/{id}/x"]\nsubscribe = ["d/#"]\ndeny = [{ action = "subscribe", topic = "d/+/x" }]',
    "denied to write": 'publish = ["d/+/x"]\nsubscribe = ["d/{id}/#"]\ndeny = [{ action = "publish", topic = "d/#" }]',
    "another depth": 'publish = ["d/{id}/x"]\nsubscribe = ["d/+", "d/+/x/y"]',
    "another name": 'publish = ["d/{id}/x"]\nsubscribe = ["e/#", "d/+/y"]',
    "subscribed, not received": 'publish = ["d/{id}"]\nsubscribe = ["#"]\nreceive = ["e/+"]',
    "received, not subscribed": 'publish = ["d/{id}"]\nsubscribe = ["e"]\nreceive = ["#"]',
    "a retain moves nothing": 'retain = ["#"]\nsubscribe = ["d/{id}"]',
    "the same id twice": 'publish = ["x/{id}"]\nsubscribe = ["x/{client_id}"]',
    "a hidden tree": 'publish = ["$d/{id}"]\nsubscribe = ["#", "+/+"]',
    "an id in two places": 'publish = ["{id}/{id}"]\nsubscribe = ["{id}/+"]',
    "an id that no pattern allows": 'publish = ["x/{id}"]\nsubscribe = ["x/ b"]',
}


@pytest.mark.parametrize("body", TIGHT.values(), ids=TIGHT.keys())
def test_what_does_not_cross_is_proved(body: str) -> None:
    """The twins of the leaks: nothing written is read by another."""
    report = checked(role(body))
    assert not [crossing for crossing in report.crossings if crossing.kind == "write-read"]
    assert report.undecided == ()


def test_client_ids_of_two_devices_can_meet() -> None:
    """A device called a:1 and a device called a with the client identifier a:1: the pattern allows both."""
    head = '[identity]\nclient_id = ["{id}:*"]'
    body = 'publish = ["x/{client_id}"]\nsubscribe = ["x/{id}"]'
    report = checked(role(body, head=head))
    (crossing,) = [crossing for crossing in report.crossings if crossing.kind == "write-read"]
    assert (crossing.left_id + ":1", crossing.topic) == (crossing.right_id, f"x/{crossing.right_id}")
    assert ("write-write", "r", "r") in crossings(report)
    narrow = head + '\npattern = "[a-z]+"'
    assert crossings(checked(role(body, head=narrow))) == set()


def test_any_client_id_can_be_another_device() -> None:
    """`*` lets a device take another's name on topics with {client_id}; the plain list does not."""
    body = 'publish = ["x/{client_id}"]\nsubscribe = ["x/{id}"]'
    report = checked(role(f'client_id = ["*"]\n{body}'))
    assert ("write-read", "r", "r") in crossings(report)
    assert 'role "r" allows any client identifier ("*")' in report.warnings
    assert crossings(checked(role(body))) == set()
    none = checked(role('client_id = ["", "{id}"]'))
    assert 'role "r" allows connections without a client identifier ("")' in none.warnings


HOLES = {
    "an attribute": ('publish = ["+"]\nsubscribe = ["{attr.v}"]', "{attr.v}", '["{id}"]'),
    "a client identifier": ('publish = ["x/{id}"]\nsubscribe = ["x/+"]', "x/{client_id}", '["*"]'),
    "an issuer": ('publish = ["+"]\nsubscribe = ["A"]', "{issuer}", '["{id}"]'),
    "a unit": ('publish = ["+"]\nsubscribe = ["{ou}"]', "{ou}", '["{id}"]'),
}


@pytest.mark.parametrize(("body", "denied", "client_ids"), HOLES.values(), ids=HOLES.keys())
def test_a_deny_of_ones_own_facts_does_not_isolate(body: str, denied: str, client_ids: str) -> None:
    """A device with another value of the fact writes there: the deny must not be taken for a proof."""
    head = "".join(f'[[issuer]]\nsubject_cn = "{name}"\nids = ["*"]\n' for name in "AB")
    deny = f'deny = [{{ action = "publish", topic = "{denied}" }}]'
    report = checked(role(f"client_id = {client_ids}\n{body}\n{deny}", head=head))
    assert ("write-read", "r", "r") in crossings(report)


def test_a_deny_that_names_a_level_is_walked_around() -> None:
    """A free fact is given a value that no rule names, where the role's glob allows one."""
    body = 'publish = ["+"]\nsubscribe = ["h"]\ndeny = [{ action = "publish", topic = "{attr.v}" }]'
    wide = checked(role(body, match='{ "attr.v" = "h*" }'))
    assert ("write-read", "r", "r") in crossings(wide)
    exact = checked(role(body, match='{ "attr.v" = "h" }'))
    assert ("write-read", "r", "r") not in crossings(exact)
    assert exact.undecided == ()


def sites(first: str, second: str) -> CheckReport:
    """Two roles of devices that share a tree per site."""
    return checked(
        "version = 1\n"
        + "".join(
            f'[[role]]\nname = "{name}"\nmatch = {{ attr.site = "{glob}" }}\n'
            'publish = ["sites/{attr.site}/up"]\nsubscribe = ["sites/{attr.site}/up"]\n'
            for name, glob in (("one", first), ("two", second))
        )
    )


def test_sites_that_differ_are_proved_apart() -> None:
    """No text is both; with globs that can be both, a crossing is found."""
    apart = sites("hall-1", "hall-2")
    assert not [crossing for crossing in apart.crossings if crossing.left != crossing.right]
    assert apart.undecided == ()
    assert sites("hall-*", "yard-*").undecided == ()
    both = sites("hall-*", "*-2")
    assert ("write-read", "one", "two") in crossings(both)
    assert "sites/hall-2/up" in {crossing.topic for crossing in both.crossings}


def test_what_no_example_was_found_for_is_undecided() -> None:
    """A set that says what a character is not: there may be a text, and none was found."""
    report = sites("[!ab1x:-]", "[!ab1x:-]")
    assert ("write-read", "one", "two") in report.undecided
    assert not report.isolated
    for publish in ('"sites/{attr.site}", "b"', '"b", "sites/{attr.site}"'):
        body = f'publish = [{publish}]\nsubscribe = ["sites/{{attr.site}}"]'
        text = role(body, match='{ attr.site = "[!ab1x:-]" }')
        text += text.partition("\n")[2].replace('name = "r"', 'name = "s"')
        assert ("write-read", "r", "s") in checked(text).undecided


def test_a_client_id_that_names_its_device_is_proved() -> None:
    """`{id}:*` where no id has a colon, and a client that sends none."""
    body = 'publish = ["x/{client_id}/#", "y/{id}"]\nsubscribe = ["x/{client_id}/+", "y/{client_id}"]'
    head = '[identity]\nclient_id = ["{id}:*", "{id}"]\npattern = "[a-z0-9.-]+"'
    proved = checked(role(body, head=head))
    assert (proved.crossings, proved.undecided) == ((), ())
    colon = checked(role(body, head=head.replace(".-", ".:-")))
    assert ("write-read", "r", "r") in crossings(colon)
    none = checked(role(f'client_id = [""]\n{body}'))
    assert (none.crossings, none.undecided) == ((), ())
    tail = checked(role(body, head='[identity]\nclient_id = ["{id}*"]\npattern = "[a-z]+"'))
    assert ("write-read", "r", "r") in crossings(tail)


TWO_ROLES = """
version = 1
[[role]]
name = "device"
match = { id = "a-*" }
publish = ["devices/{id}/t"]
subscribe = ["devices/{id}/c"]
[[role]]
name = "backend"
match = { id = "svc-*" }
subscribe = ["devices/+/t"]
publish = ["devices/+/c"]
"""


def test_crossings_between_roles_are_told_and_are_no_leak() -> None:
    """Who writes, who reads, on which topic, by which lines."""
    report = checked(TWO_ROLES)
    assert report.isolated
    assert crossings(report) == {
        ("write-read", "device", "backend"),
        ("write-read", "backend", "device"),
        ("write-write", "backend", "backend"),
        ("read-read", "backend", "backend"),
    }
    first = next(crossing for crossing in report.crossings if crossing.left == "device")
    assert (first.left_rule, first.left_line, first.right_rule, first.right_line) == (
        "publish[0]",
        5,
        "subscribe[0]",
        10,
    )
    assert first.topic == f"devices/{first.left_id}/t"
    assert first.left_id.startswith("a-")
    assert first.right_id.startswith("svc-")
    assert report.pairs == 10
    text = report.to_text()
    assert f"  crossing: {first.left_id} writes and {first.right_id} reads devices/{first.left_id}/t" in text
    assert "    device publish[0] line 5\n    backend subscribe[0] line 10\n" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert json.loads(report.to_json())["isolated"] is True
    assert report.to_json() == json.dumps(json.loads(report.to_json()), indent=2)


def test_leaks_stand_above_crossings_and_are_looked_for_behind_them() -> None:
    """A crossing on a topic of nobody's does not end the search for one on a device's own."""
    report = checked(role('publish = ["x"]\nsubscribe = ["x", "y", "{id}"]'))
    (crossing,) = [crossing for crossing in report.crossings if crossing.kind == "write-read"]
    assert (crossing.own, crossing.right_rule, crossing.right_id) == (True, "subscribe[2]", "x")
    text = TWO_ROLES + 'will = ["devices/{id}/c"]\n'
    rows = [line.split(":")[0].strip() for line in checked(text).to_text().splitlines() if "and" in line]
    assert rows == sorted(rows)
    assert set(rows) >= {"LEAK", "crossing"}


def test_a_retain_right_is_no_way_to_write() -> None:
    """Nor does its token make a topic a device's own."""
    report = checked(role('publish = ["x"]\nretain = ["{id}"]\nsubscribe = ["x"]'))
    assert report.isolated
    assert {(crossing.left_rule, crossing.own) for crossing in report.crossings} == {
        ("publish[0]", False),
        ("subscribe[0]", False),
    }


def test_a_reader_is_named_by_its_receive_rule() -> None:
    """On both sides; a topic with a client identifier is a device's own as well."""
    report = checked(role('subscribe = ["#"]\nreceive = ["x"]'))
    (crossing,) = report.crossings
    assert (crossing.left_rule, crossing.left_line, crossing.right_rule, crossing.right_line) == (
        *("receive[0]", 7),
        *("receive[0]", 7),
    )
    own = checked(role('publish = ["x/{client_id}"]\nsubscribe = ["x/+"]'))
    assert {crossing.own for crossing in own.crossings if crossing.kind == "write-read"} == {True}


def test_a_long_row_is_wrapped_and_what_cannot_be_printed_is_shown() -> None:
    """Continued two columns further in."""
    policy = policy_of(role('publish = ["x\\u0007/#", "x\\u0007/' + "y" * 60 + '"]'))
    rows = check(policy).to_text().splitlines()
    at = next(n for n, row in enumerate(rows) if row.startswith('  warning: role "r" publish[1]'))
    assert rows[at + 1].startswith("    x\\x07/y")


def test_roles_whose_devices_an_issuer_cannot_name_do_not_count() -> None:
    """The issuer table says who exists; a role that nobody can have is told."""
    head = '[[issuer]]\nsubject_cn = "A"\nids = ["a-*"]'
    report = checked(role('publish = ["#"]\nsubscribe = ["#"]', match='{ id = "b-*" }', head=head))
    assert report.crossings == ()
    assert [warning for warning in report.warnings if warning.startswith('role "r" (line 5): no id was found')]
    named = checked(role('publish = ["#"]', match='{ issuer = "B" }', head=head))
    assert [warning for warning in named.warnings if "no id was found" in warning]
    fits = checked(role('publish = ["#"]', match='{ id = "a-1*", issuer = "A" }', head=head))
    assert [warning for warning in fits.warnings if "no id was found" in warning] == []
    assert crossings(fits) == {("write-write", "r", "r")}


def test_a_role_with_one_device_does_not_cross_itself() -> None:
    """Two different ids are needed."""
    assert checked(role('publish = ["#"]\nsubscribe = ["#"]', match='{ id = "only" }')).crossings == ()


def test_a_denied_connection_crosses_nothing() -> None:
    """A role that denies to connect has nobody."""
    report = checked(role('publish = ["#"]\nsubscribe = ["#"]\ndeny = [{ action = "connect" }]'))
    assert report.crossings == ()


def test_an_example_id_helps_where_none_can_be_made_up() -> None:
    """A pattern with a look-ahead; what does not fit it is not used."""
    head = "[identity]\npattern = '(?=dev-)dev-\\d{3}7'"
    text = role('publish = ["x"]', match='{ id = "dev-9*" }', head=head)
    assert [warning for warning in checked(text).warnings if "no id was found" in warning]
    assert [warning for warning in checked(text, "x", "dev-2007").warnings if "no id was found" in warning]
    report = checked(text, "dev-9007", "dev-9017")
    assert crossings(report) == {("write-write", "r", "r")}


@pytest.mark.parametrize("examples", [(), ("dev-9007",)], ids=["no id", "one id"])
def test_nothing_is_proved_of_a_role_whose_ids_are_not_known(examples: tuple[str, ...]) -> None:
    """Two devices of it may exist and meet; without two ids nobody has looked."""
    head = "[identity]\npattern = '(?=dev-)dev-\\d{3}7'"
    report = checked(role('publish = ["x"]', match='{ id = "dev-9*" }', head=head), *examples)
    assert report.crossings == ()
    assert ("write-read", "r", "r") in report.undecided
    assert report.exit_code == 1
    assert report.to_text().startswith("site.toml: not proved to be isolated: 1 roles, ")
    hint = "  hint: two ids that such devices may have, given with --id, often decide it"
    assert hint in report.to_text().splitlines()


@pytest.mark.parametrize(
    ("match", "head"),
    [
        ('{ id = "only" }', ""),
        ('{ id = "ONLY" }', "[identity]\npattern = '(?=o)[a-z]+'"),
        ('{ id = "b-*" }', '[[issuer]]\nsubject_cn = "A"\nids = ["a-*"]'),
        ('{ issuer = "B" }', '[[issuer]]\nsubject_cn = "A"\nids = ["a-*"]'),
        ('{ id = "*" }', '[[issuer]]\nsubject_cn = "A"\nids = ["one"]'),
    ],
    ids=["one device", "outside the pattern", "outside the issuer's ids", "no such issuer", "one id to be named"],
)
def test_a_role_that_certainly_has_no_two_devices_is_proved(match: str, head: str) -> None:
    """The twin: what cannot exist cannot meet."""
    report = checked(role('publish = ["#"]\nsubscribe = ["#"]', match=match, head=head))
    assert (report.undecided, report.exit_code) == ((), 0)


def test_what_was_not_compared_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound on the work never turns into a proof; just as much work as there is to do does."""
    monkeypatch.setattr(isolation, "MAX_COMPARISONS", 7)
    assert checked(role('publish = ["a/{id}", "b/{id}"]\nsubscribe = ["c"]')).undecided == ()
    monkeypatch.setattr(isolation, "MAX_COMPARISONS", 6)
    report = checked(role('publish = ["a/{id}", "b/{id}"]\nsubscribe = ["c"]'))
    assert report.undecided == (("read-read", "r", "r"),)
    monkeypatch.setattr(isolation, "MAX_COMPARISONS", 1)
    report = checked(role('publish = ["a/{id}", "b/{id}"]\nsubscribe = ["c"]'))
    assert report.undecided
    assert not report.isolated
    assert report.exit_code == 1
    assert "undecided: write-read between r and r" in report.to_text()


# --- brute force ---

parts = st.lists(st.sampled_from(("a", "b", "+", "{id}", "{client_id}", "{attr.v}")), min_size=1, max_size=3)
topics = st.tuples(parts, st.sampled_from(((), (), ("#",)))).map(lambda p: "/".join((*p[0], *p[1])))
lists = st.lists(topics, max_size=2)
denies = st.lists(st.tuples(st.sampled_from(("publish", "subscribe", "receive")), topics), max_size=2)


def worlds(policy: Policy) -> list[tuple[str, Grants]]:
    """Every admitted connection with these few ids, client identifiers and attributes."""
    found = []
    for name, client_id, value in product(("a", "b", "q"), ("a", "b", "q"), ("a", "b", "q")):
        grants = policy.admit(peer_of(name), client_id, {"v": value})
        if isinstance(grants, Grants):
            found.append((name, grants))
    return found


SMALL = ["/".join(levels) for levels in TOPICS if len(levels) < 5 and not {"$s", ""} & set(levels)]


@given(lists, lists, denies, st.sampled_from(('["{id}"]', '["*"]')))
@settings(max_examples=40, deadline=None)
def test_no_crossing_of_a_small_world_is_missed(
    publish: list[str], subscribe: list[str], denied: list[tuple[str, str]], client_ids: str
) -> None:
    """Whatever two connections can do to each other on any small topic is a crossing or at least undecided."""
    rows = ", ".join(f'{{ action = "{action}", topic = "{topic}" }}' for action, topic in denied)
    text = role(
        f"publish = {json.dumps(publish)}\nsubscribe = {json.dumps(subscribe)}\ndeny = [{rows}]",
        head=f"[identity]\nclient_id = {client_ids}",
    )
    policy = policy_of(text)
    told = check(policy)
    seen = {kind for kind, _, _ in crossings(told)} | {kind for kind, _, _ in told.undecided}
    for (one, left), (other, right) in permutations(worlds(policy), 2):
        if one == other:
            continue
        for topic in SMALL:
            writes = left.decide(Action.PUBLISH, topic).allowed
            reads = all(right.decide(a, topic).allowed for a in (Action.SUBSCRIBE, Action.RECEIVE))
            if writes and reads:
                assert "write-read" in seen, (text, one, other, topic)
            if writes and right.decide(Action.PUBLISH, topic).allowed:
                assert "write-write" in seen, (text, one, other, topic)
        if seen >= {"write-read", "write-write"}:
            break


def test_equations_name_the_facts_that_must_be_equal() -> None:
    """One group per place where a token stands, joined where a fact stands twice."""
    one, two = Token("id"), Token("ou")
    assert equations([(0, ("x", one)), (1, ("x", "+"))]) == [(None, frozenset({(0, "id")}))]
    assert equations([(0, ("x", one)), (1, ("x", "b"))]) == [("b", frozenset({(0, "id")}))]
    assert equations([(0, (one, one)), (1, ("a", "b"))]) is None
    assert equations([(0, (one, one)), (1, ("a", "a"))]) == [("a", frozenset({(0, "id")}))]
    assert equations([(0, (one, "x")), (1, (one, "x"))]) is None
    assert equations([(0, (one, "x")), (1, (two, "x"))]) == [(None, frozenset({(0, "id"), (1, "ou")}))]
    assert equations([(0, (one, two)), (1, (two, one))]) == [
        (None, frozenset({(0, "id"), (1, "ou")})),
        (None, frozenset({(0, "ou"), (1, "id")})),
    ]
    assert equations([(0, (one, one)), (1, (two, Token("id")))]) is None
    assert equations([(0, ("a", one, one)), (1, ("a", "b", "+"))]) == [("b", frozenset({(0, "id")}))]
    assert equations([(0, (one, one)), (1, ("+", "b"))]) == [("b", frozenset({(0, "id")}))]
    assert equations([(0, ("a", "b")), (1, ("a", "b"))]) == []
    assert equations([(0, ("a",)), (1, ("a", "b"))]) is None
    assert equations([(0, ("a", "#")), (1, ("a", "b", one))]) == [(None, frozenset({(1, "id")}))]
    assert equations([(0, ("a", "b", "#")), (1, ("a",))]) is None
    assert equations([(0, ("a", "b", "#")), (1, ("a", "b"))]) == []
    assert equations([(0, ("+", "b")), (1, ("$a", one))]) is None
    assert equations([(0, ("#",)), (1, ("$a", one))]) is None
    assert equations([(0, ("$a", one)), (1, ("$a", "x"))]) == [("x", frozenset({(0, "id")}))]
    assert equations([(0, ("a", "+")), (1, ("a", "$b"))]) == []
    assert equations([(0, (one, "#")), (1, (one, "#"))]) is None


# --- warnings ---


def warnings(body: str) -> list[str]:
    report = checked(role(body, head='[[issuer]]\nsubject_cn = "CA"\nids = ["*"]'))
    return list(report.warnings)


@pytest.mark.parametrize(
    ("body", "warning"),
    [
        ('publish = ["a/#", "a/b"]', 'role "r" publish[1] (line 8) a/b is unreachable: publish[0] covers it'),
        ('publish = ["a/b", "a/#"]', 'role "r" publish[0] (line 8) a/b is unreachable: publish[1] covers it'),
        ('publish = ["a", "a"]', 'role "r" publish[1] (line 8) a is unreachable: publish[0] covers it'),
        ('publish = ["+/{id}", "x/{id}"]', 'role "r" publish[1] (line 8) x/{id} is unreachable: publish[0] covers it'),
        (
            'subscribe = ["a"]\ndeny = [{ action = "subscribe", topic = "#" }]',
            'role "r" subscribe[0] (line 8) a is unreachable: deny[0] denies all of it',
        ),
        (
            'deny = [{ action = "will", topic = "a/#" }, { action = "will", topic = "a/+" }]',
            'role "r" deny[1] (line 8) a/+ is unreachable: deny[0] covers it',
        ),
        (
            'retain = ["a"]',
            'role "r" retain[0] (line 8) a cannot be used: no publish or will grant of the role meets it',
        ),
        (
            'retain = ["a"]\npublish = ["b", "a/b"]\nwill = ["b/#"]',
            'role "r" retain[0] (line 8) a cannot be used: no publish or will grant of the role meets it',
        ),
        (
            'retain = ["{id}/c"]\nwill = ["b/{id}"]',
            'role "r" retain[0] (line 8) {id}/c cannot be used: no publish or will grant of the role meets it',
        ),
        (
            'deny = [{ action = "subscribe", topic = "a" }, { action = "receive", topic = "b/#" },'
            ' { action = "receive", topic = "b/c" }]',
            'role "r" deny[2] (line 8) b/c is unreachable: deny[1] covers it',
        ),
        (
            'subscribe = ["a"]\nreceive = ["a", "b"]',
            'role "r" receive[1] (line 9) b cannot be used: no subscribe grant of the role meets it',
        ),
        (
            'subscribe = ["a", "b"]\nreceive = ["a"]',
            'role "r" subscribe[1] (line 8) b cannot be used: no receive grant of the role meets it',
        ),
    ],
)
def test_a_rule_that_does_nothing_is_told(body: str, warning: str) -> None:
    """Once, with its place and what it lacks."""
    assert warnings(body) == [warning]


@pytest.mark.parametrize(
    "body",
    [
        'publish = ["a/b", "a/+/c"]',
        'publish = ["{id}", "x"]',
        'publish = ["a"]\nwill = ["a"]\nretain = ["a"]',
        'retain = ["a/{id}"]\nwill = ["a/+"]',
        'retain = ["{id}/{client_id}"]\nwill = ["a/b"]',
        'retain = ["a/b"]\nwill = ["{id}/{client_id}"]',
        'deny = [{ action = "receive", topic = "a/#" }, { action = "subscribe", topic = "a/b" }]',
        'retain = ["a/{id}"]\npublish = ["a/b"]',
        'retain = ["a/{ou}"]\npublish = ["a/{id}"]',
        'subscribe = ["a/#"]\nreceive = ["a/b"]',
        'subscribe = ["a/#"]\ndeny = [{ action = "subscribe", topic = "a/b" }]',
        'publish = ["a"]\ndeny = [{ action = "will", topic = "a" }]',
    ],
)
def test_a_rule_that_works_is_not_told(body: str) -> None:
    """The twins: nothing is said about what can be used."""
    assert warnings(body) == []


def test_issuers_that_may_name_the_same_id_are_told() -> None:
    """With an id that both may name and the site's pattern allows."""
    text = """
    version = 1
    [[issuer]]
    subject_cn = "A"
    ids = ["x", "a-*"]
    [[issuer]]
    subject_cn = "B"
    ids = ["*-1"]
    [[issuer]]
    subject_cn = "C"
    ids = ["c"]
    """
    (warning,) = [warning for warning in checked(text).warnings if warning.startswith("issuers")]
    assert warning == 'issuers "A" (line 2) and "B" (line 5) may both name a-1'


def test_the_warnings_of_the_policy_come_first() -> None:
    """What a start warns of, check warns of."""
    policy = policy_of(DEVICE)
    assert check(policy).warnings[: len(policy.warnings)] == policy.warnings
    assert "  warning: site.toml: no [[issuer]]: every trusted issuer may name every id" in check(policy).to_text()


def test_the_report_names_file_and_version() -> None:
    """So that a report can be kept beside the policy that it is about."""
    told: dict[str, Any] = json.loads(checked(TWO_ROLES).to_json())
    assert (told["file"], told["version"], told["roles"], told["pairs"]) == ("site.toml", "test", 2, 10)
    assert told["crossings"][0]["kind"] == "write-read"
