"""Decisions on topics: grants add up, a deny wins, tokens fill levels; and the tries against a model by brute force."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import Action, Decision, Limits, Policy
from gateway.policy.decide import CACHED_DECISIONS, strictest_limits
from gateway.policy.globs import Token
from gateway.policy.load import Loaded
from gateway.policy.model import TOPIC_ACTIONS, Level, Role, Rule
from gateway.policy.policy import token_values
from gateway.policy.rules import Holder, RuleTrie
from gateway.policy.topics import covers
from mtls.errors import Reason
from tests.gateway.policy.strategies import filter_levels, topic_levels
from tests.gateway.policy.world import DEVICE, admitted, peer_of, policy_of, role

NO = Decision(False, Reason.NO_GRANT, "", "", 0, "")


def decide(text: str, action: str, topic: str, **facts: Any) -> Decision:
    attributes = facts.pop("attributes", {})
    client_id = facts.pop("client_id", None)
    return admitted(policy_of(text), peer_of(**facts), client_id, attributes).decide(Action(action), topic)


def test_a_grant_allows_and_says_where_it_stands() -> None:
    """Role, rule, line and the topic with its values."""
    assert decide(DEVICE, "publish", "devices/d1/x") == Decision(
        True, Reason.GRANTED, "device", "publish[0]", 5, "devices/d1/#"
    )
    assert decide(DEVICE, "publish", "devices/d2/x") == NO


def test_a_deny_wins_and_says_where_it_stands() -> None:
    """Also when it stands in another role, after the grant."""
    text = DEVICE + (
        '[[role]]\nname = "quiet"\nmatch = { id = "d*" }\n'
        'deny = [{ action = "publish", topic = "devices/{id}/raw/#" }]\n'
    )
    assert decide(text, "publish", "devices/d1/raw/x") == Decision(
        False, Reason.DENIED_BY_RULE, "quiet", "deny[0]", 9, "devices/d1/raw/#"
    )
    assert decide(text, "publish", "devices/d1/rawx").allowed
    assert decide(text, "publish", "devices/e1/raw/x", name="e1").allowed


@pytest.mark.parametrize("granted", TOPIC_ACTIONS, ids=str)
@pytest.mark.parametrize("asked", TOPIC_ACTIONS, ids=str)
def test_each_right_stands_alone(granted: Action, asked: Action) -> None:
    """Only subscribe brings another right with it: receive, when the role has no receive list."""
    allowed = asked is granted or (granted is Action.SUBSCRIBE and asked is Action.RECEIVE)
    assert decide(role(f'{granted} = ["x"]'), asked, "x").allowed is allowed


@pytest.mark.parametrize("denied", TOPIC_ACTIONS, ids=str)
@pytest.mark.parametrize("asked", TOPIC_ACTIONS, ids=str)
def test_each_deny_stands_alone(denied: Action, asked: Action) -> None:
    """A deny on subscribe is also a deny on receive, not the other way round."""
    lists = "\n".join(f'{action} = ["#"]' for action in TOPIC_ACTIONS)
    decision = decide(role(f'{lists}\ndeny = [{{ action = "{denied}", topic = "x" }}]'), asked, "x")
    blocked = asked is denied or (denied is Action.SUBSCRIBE and asked is Action.RECEIVE)
    assert decision.allowed is not blocked


def test_a_receive_list_replaces_the_default() -> None:
    """Subscribed but not received, and the empty list means nothing."""
    text = role('subscribe = ["a/#"]\nreceive = ["a/b"]')
    assert decide(text, "receive", "a/b").rule == "receive[0]"
    assert decide(text, "receive", "a/c") == NO
    assert decide(text, "subscribe", "a/c").allowed
    assert decide(role('subscribe = ["a/#"]\nreceive = []'), "receive", "a/b") == NO
    assert decide(role('subscribe = ["a/#"]'), "receive", "a/b").rule == "subscribe[0]"


def test_a_broader_granted_filter_delivers_nothing_denied() -> None:
    """A deny refuses the filter that it covers, lets the broader one through and stops each delivery."""
    text = role('subscribe = ["a/#"]\ndeny = [{ action = "subscribe", topic = "a/secret/#" }]')
    assert decide(text, "subscribe", "a/#").allowed
    assert decide(text, "subscribe", "a/+/x").allowed
    assert decide(text, "subscribe", "a/secret/+").reason is Reason.DENIED_BY_RULE
    assert decide(text, "subscribe", "a/secret").reason is Reason.DENIED_BY_RULE
    assert decide(text, "receive", "a/secret/x").reason is Reason.DENIED_BY_RULE
    assert decide(text, "receive", "a/x").allowed


def test_a_filter_needs_one_grant_that_covers_it() -> None:
    """The union of several grants is not enough."""
    text = role('subscribe = ["a", "a/+", "a/+/#"]')
    assert decide(text, "subscribe", "a/#") == NO
    for topic in ("a", "a/+", "a/+/#", "a/b/#", "a/b"):
        assert decide(text, "subscribe", topic).allowed


@pytest.mark.parametrize("topic", ["$share/g/a", "$share/g/#", "$share"])
def test_shared_subscriptions_are_refused(topic: str) -> None:
    """Whatever is granted; only the first level counts."""
    assert decide(role('subscribe = ["#", "a/$share/#"]'), "subscribe", topic) == Decision(
        False, Reason.SUBSCRIBE_DENIED, "", "$share", 0, ""
    )
    assert decide(role('subscribe = ["#", "a/$share/#"]'), "subscribe", "a/$share/g").allowed
    assert decide(role('publish = ["$shared/#"]'), "publish", "$shared/g").allowed


@pytest.mark.parametrize(
    ("grant", "topic", "facts"),
    [
        ("x/{id}", "x/d1", {}),
        ("x/{client_id}", "x/d1", {}),
        ("x/{issuer}", "x/Line A", {"issuer": "Line A"}),
        ("x/{ou}", "x/hall", {"ou": ("hall",)}),
        ("x/{attr.site}", "x/yard", {"attributes": {"site": "yard"}}),
        ("{id}/{id}", "d1/d1", {}),
    ],
)
def test_a_token_stands_for_one_fact(grant: str, topic: str, facts: dict[str, Any]) -> None:
    """For its value, whole and no other."""
    text = role(f'publish = ["{grant}"]')
    decision = decide(text, "publish", topic, **facts)
    assert decision.allowed
    assert decision.grant == topic
    for other in (topic + "x", topic[:-1], topic.swapcase(), topic + "/", "x/+", f"x/{grant}", grant):
        assert not decide(text, "publish", other, **facts).allowed


@pytest.mark.parametrize("value", ["", "a/b", "a+", "+", "#", "a#", "$SYS", "a$", "a\0", "/"])
def test_a_value_that_is_no_level_makes_its_grant_not_apply(value: str) -> None:
    """Never escaped, never substituted; the role's other grants go on."""
    text = role('publish = ["x/{attr.v}/#", "y/#"]\nsubscribe = ["x/{attr.v}/#"]')
    facts = {"attributes": {"v": value}}
    for topic in ("x/a/b", f"x/{value}/c", "x//c", "x/a", "x"):
        assert not decide(text, "publish", topic, **facts).allowed
    assert not decide(text, "subscribe", f"x/{value}/#", **facts).allowed
    assert not decide(text, "subscribe", "x/+/#", **facts).allowed
    assert decide(text, "publish", "y/1", **facts).allowed
    assert decide(text, "publish", "x/a/b", attributes={"v": "a"}).allowed


@pytest.mark.parametrize("attributes", [{}, {"v": "a/b"}, {"v": ""}], ids=["missing", "unusable", "empty"])
def test_a_deny_without_a_value_denies_every_value(attributes: dict[str, str]) -> None:
    """What cannot be evaluated must not open anything; topics with another shape are untouched."""
    text = role(
        'publish = ["#", "$x/#"]\nsubscribe = ["#"]\n'
        'deny = [{ action = "publish", topic = "s/{attr.v}/raw" }, { action = "publish", topic = "{attr.v}" },'
        ' { action = "subscribe", topic = "s/{attr.v}/raw" }]'
    )
    decision = decide(text, "publish", "s/anything/raw", attributes=attributes)
    assert (decision.reason, decision.grant) == (Reason.DENIED_BY_RULE, "s/+/raw")
    assert decide(text, "subscribe", "s/+/raw", attributes=attributes).reason is Reason.DENIED_BY_RULE
    assert decide(text, "subscribe", "s/#", attributes=attributes).allowed
    assert decide(text, "publish", "s/anything/other", attributes=attributes).allowed
    assert decide(text, "publish", "one", attributes=attributes).reason is Reason.DENIED_BY_RULE
    assert decide(text, "publish", "$x", attributes=attributes).allowed
    usable = {"v": "hall"}
    assert decide(text, "publish", "s/anything/raw", attributes=usable).allowed
    assert not decide(text, "publish", "s/hall/raw", attributes=usable).allowed


def test_two_ou_are_no_value() -> None:
    """A rule must not choose between two values of one fact."""
    text = role('publish = ["x/{ou}/#"]')
    assert decide(text, "publish", "x/a/b", ou=("a",)).allowed
    for units in ((), ("a", "b"), ("a", "a")):
        assert not decide(text, "publish", "x/a/b", ou=units).allowed


def test_no_client_id_is_no_value() -> None:
    """A client that sent none has no topics of its client identifier; nor has one with `/` in it."""
    text = role('client_id = ["", "*"]\npublish = ["x/{client_id}/#"]')
    assert decide(text, "publish", "x/c/b", client_id="c").allowed
    assert not decide(text, "publish", "x//b", client_id="").allowed
    assert not decide(text, "publish", "x/c/d/b", client_id="c/d").allowed
    assert not decide(text, "publish", "x/c/b", client_id="#").allowed


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a/#", "a\0", "\ud800", "x" * 65_536])
def test_what_is_no_topic_name_is_denied(topic: str) -> None:
    """The codec refuses it before; if it comes all the same, nothing matches it."""
    text = role("\n".join(f'{action} = ["#", "a/#", "+", "a/+"]' for action in TOPIC_ACTIONS))
    for action in (Action.PUBLISH, Action.RETAIN, Action.WILL, Action.RECEIVE):
        decision = decide(text, action, topic)
        assert (decision.allowed, decision.rule) == (False, "error:ValueError")
    for topic_filter in ("", "a/#/b", "a+"):
        assert decide(text, "subscribe", topic_filter).rule == "error:ValueError"


@pytest.mark.parametrize("question", [(None, "a"), ("publish", None), ("write", "a"), ("publish", 7), ([], "a")])
def test_an_exception_in_a_check_denies(question: tuple[Any, Any]) -> None:
    """P6: a question that makes no sense is answered with no."""
    decision = admitted(policy_of(role('publish = ["#"]'))).decide(*question)
    assert (decision.allowed, decision.reason) == (False, Reason.NO_GRANT)
    assert decision.rule.startswith("error:")
    assert (decision.role, decision.line, decision.grant) == ("", 0, "")


def test_connect_is_granted_to_the_admitted() -> None:
    """Grants exist only for connections that were admitted."""
    assert decide(DEVICE, "connect", "") == Decision(True, Reason.GRANTED, "device", "match", 0, "")


RIGHTS = {
    "publish": (True, False, False, False),
    "publish, retain": (True, True, False, False),
    "will": (False, False, True, False),
    "will, retain": (False, False, True, True),
    "retain": (False, False, False, False),
    "publish, will, retain": (True, True, True, True),
}


@pytest.mark.parametrize(("lists", "expected"), RIGHTS.items(), ids=RIGHTS.keys())
def test_retain_is_a_right_beside_publish_or_will(lists: str, expected: tuple[bool, bool, bool, bool]) -> None:
    """Publish, retained publish, will, retained will."""
    grants = admitted(policy_of(role("\n".join(f'{name} = ["x"]' for name in lists.split(", ")))))
    assert (
        grants.decide_publish("x", retain=False).allowed,
        grants.decide_publish("x", retain=True).allowed,
        grants.decide_will("x", retain=False).allowed,
        grants.decide_will("x", retain=True).allowed,
    ) == expected
    assert not grants.decide_publish("y", retain=False).allowed
    assert not grants.decide_will("y", retain=True).allowed


def test_the_answer_names_the_right_that_is_missing() -> None:
    """A retained publish without the retain right is denied by retain, not by publish."""
    grants = admitted(policy_of(role('publish = ["x"]\ndeny = [{ action = "retain", topic = "x" }]')))
    assert grants.decide_publish("x", retain=True).rule == "deny[0]"
    assert grants.decide_publish("x", retain=False).rule == "publish[0]"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], Limits(queue_full="drop-oldest")),
        ([Limits()], Limits(queue_full="drop-oldest")),
        ([Limits(5.0, 10, 2, 7, "drop-oldest")], Limits(5.0, 10, 2, 7, "drop-oldest")),
        ([Limits(5.0, 10, 2, 7), Limits(4.0, 11, 1, 8)], Limits(4.0, 10, 1, 7, "drop-oldest")),
        ([Limits(max_sessions=3), Limits(), Limits(5.0)], Limits(5.0, None, 3, None, "drop-oldest")),
        ([Limits(queue_full="drop-newest"), Limits(queue_full="drop-oldest")], Limits(queue_full="drop-newest")),
        ([Limits(queue_full="drop-oldest"), Limits(queue_full="drop-newest")], Limits(queue_full="drop-newest")),
    ],
)
def test_the_strictest_limit_of_all_roles_holds(said: list[Limits], expected: Limits) -> None:
    """Of each limit by itself; what no role says is not limited."""
    assert strictest_limits(said) == expected


def test_the_strictest_reaction_of_all_roles_holds() -> None:
    """Disconnect beats drop for a denied publish, drop beats fire for a will; a role that says nothing has no say."""
    text = "version = 1\n" + "".join(
        f'[[role]]\nname = "{name}"\nmatch = {{ id = "*{name}*" }}\n{body}\n'
        for name, body in (
            ("a", 'on_denied_publish = "drop"\nwill_on_revoke = "fire"'),
            ("b", 'on_denied_publish = "disconnect"\nwill_on_revoke = "drop"'),
            ("c", "limits = { max_sessions = 3 }"),
        )
    )

    def reactions(name: str) -> tuple[str, str]:
        grants = admitted(policy_of(text), peer_of(name))
        return grants.on_denied_publish, grants.will_on_revoke

    assert reactions("a") == ("drop", "fire")
    assert reactions("ac") == ("drop", "fire")
    assert reactions("b") == ("disconnect", "drop")
    assert reactions("ab") == ("disconnect", "drop")
    assert reactions("c") == ("drop", "drop")
    assert admitted(policy_of(text), peer_of("ac")).limits.max_sessions == 3


def test_a_decision_is_made_once() -> None:
    """The same question gets the same object, per action and topic."""
    grants = admitted(policy_of(DEVICE))
    first = grants.decide(Action.PUBLISH, "devices/d1/x")
    assert grants.decide(Action.PUBLISH, "devices/d1/x") is first
    assert not grants.decide(Action.RECEIVE, "devices/d1/x").allowed
    assert not grants.decide(Action.PUBLISH, "devices/d2/x").allowed


def test_the_memory_of_decisions_is_bounded() -> None:
    """A peer that invents topics, short or long, does not grow the gateway."""
    grants = admitted(policy_of(DEVICE))
    for number in range(3 * CACHED_DECISIONS):
        grants.decide(Action.PUBLISH, f"devices/d1/{number}")
    assert len(grants._decided) <= 2 * CACHED_DECISIONS
    longest = "devices/d1/".ljust(256, "x")
    assert grants.decide(Action.PUBLISH, longest) is grants.decide(Action.PUBLISH, longest)
    held = len(grants._decided)
    assert grants.decide(Action.PUBLISH, longest + "x").allowed
    assert len(grants._decided) == held


# --- the tries against a model ---

ID, SITE = Token("id"), Token("attr.site")
levels = filter_levels.flatmap(
    lambda row: st.tuples(
        *(st.sampled_from((level, level, ID, SITE) if level not in ("+", "#") else (level,)) for level in row)
    )
)
rules = st.lists(st.tuples(st.integers(0, 3), levels, st.booleans()), max_size=8).map(
    lambda rows: sorted(rows, key=lambda row: row[0])
)
values = st.dictionaries(st.sampled_from(("id", "attr.site")), st.sampled_from(("a", "b", "q")))
held = st.sets(st.integers(0, 3), min_size=1).map(lambda numbers: tuple(sorted(numbers)))


def as_rules(rows: list[tuple[int, tuple[Level, ...], bool]]) -> list[Rule]:
    return [
        Rule(number, of, f"publish[{number}]", (Action.PUBLISH,), number + 1, "", row, denies=denies)
        for number, (of, row, denies) in enumerate(rows)
    ]


@given(rules, st.one_of(topic_levels, filter_levels), values, held, st.booleans())
def test_a_trie_finds_what_trying_all_rules_finds(
    rows: list[Any], request: tuple[str, ...], known: dict[str, str], roles: tuple[int, ...], denies: bool
) -> None:
    """The first rule, in the order of the file, of one of the roles whose filter covers the request."""
    made = [Rule(r.number, r.role, r.name, r.actions, r.line, "", r.levels, denies) for r in as_rules(rows)]
    trie = RuleTrie(denies=denies)
    for rule in made:
        trie.add(rule)
    first = next(
        (r for r in made if r.role in roles and (b := r.bound(known)) is not None and covers(b, request)), None
    )
    assert trie.find(request, Holder(roles, known)).rule == first


@given(rules, topic_levels, values)
def test_the_engine_decides_what_the_model_decides(
    rows: list[Any], topic: tuple[str, ...], known: dict[str, str]
) -> None:
    """A whole policy of four roles that all match: a deny that matches, else a grant that matches, else no."""
    made = as_rules(rows)
    roles = tuple(
        Role(n, f"r{n}", n, {}, tuple(r for r in made if r.role == n), None, None, Limits(), None, None)
        for n in range(4)
    )
    attributes = {"site": known["attr.site"]} if "attr.site" in known else {}
    usual = policy_of(DEVICE)
    loaded = Loaded(usual.identity, usual.client_ids_of(usual.roles), (), roles)
    policy = Policy(loaded, file="f", version="v")
    peer = peer_of(known.get("id", "z"))
    bound = token_values(peer, attributes)
    hits = [rule for rule in made if (b := rule.bound(bound)) is not None and covers(b, topic)]
    denied = next((rule for rule in hits if rule.denies), None)
    granted = next((rule for rule in hits if not rule.denies), None)
    decision = admitted(policy, peer, attributes=attributes).decide(Action.PUBLISH, "/".join(topic))
    assert decision.allowed is (denied is None and granted is not None)
    decisive = denied or granted
    assert decision.rule == (decisive.name if decisive is not None else "")
    assert decision.role == (f"r{decisive.role}" if decisive is not None else "")
