"""Explanations: the broker's own answer, the rule behind it, and the nearest misses."""

import json

import pytest

from gateway.policy import Action
from gateway.policy.explain import MAX_MISSES, Miss, explain
from mtls.terminal import sanitise
from tests.gateway.policy.world import DEVICE, peer_of, policy_of, role

SITE = """
version = 1
[[role]]
name = "device"
match = { id = "*" }
publish = ["devices/{id}/telemetry/#", "devices/{id}/state", "sites/{attr.site}/x"]
retain = ["devices/{id}/state"]
subscribe = ["devices/{id}/commands/#", "open/+"]
deny = [{ action = "publish", topic = "devices/{id}/telemetry/raw/#" }]
"""


def test_an_allowed_action_names_its_rule() -> None:
    """The place in the file, the topic as written and as it stands for this device."""
    told = explain(policy_of(SITE), peer_of(), Action.PUBLISH, "devices/d1/telemetry/t")
    assert (told.allowed, told.reason, told.exit_code) == (True, "granted", 0)
    assert (told.role, told.rule, told.file, told.line) == ("device", "publish[0]", "site.toml", 5)
    assert (told.grant, told.written) == ("devices/d1/telemetry/#", "devices/{id}/telemetry/#")
    assert (told.id, told.issuer, told.client_id, told.action, told.topic) == (
        *("d1", "CA", "d1", "publish"),
        "devices/d1/telemetry/t",
    )
    assert told.roles == ("device",)
    assert told.misses == ()
    assert told.detail == ""


def test_a_denied_action_names_the_deny() -> None:
    """And, as misses, only grants that do not cover the topic."""
    told = explain(policy_of(SITE), peer_of(), Action.PUBLISH, "devices/d1/telemetry/raw/x")
    assert (told.allowed, told.reason, told.rule, told.line, told.exit_code) == (
        False,
        "denied_by_rule",
        "deny[0]",
        8,
        1,
    )
    assert told.written == "devices/{id}/telemetry/raw/#"
    assert [miss.rule for miss in told.misses] == ["publish[1]", "publish[2]"]


MISSES = [
    ("publish", "devices/d2/state", "publish[1]", "level 2 is 'd2', the grant has 'd1'"),
    ("publish", "devices/d1", "publish[0]", "the topic ends before level 3 of the grant, 'telemetry'"),
    ("publish", "devices/d1/state/x", "publish[1]", "the topic goes on below the 3 levels of the grant"),
    ("publish", "devices/d1/other", "publish[0]", "level 3 is 'other', the grant has 'telemetry'"),
    ("publish", "sites/x/x", "publish[2]", "{attr.site} has no value that can fill a topic level"),
    ("subscribe", "devices/d1/#", "subscribe[0]", "# at level 3 asks for more than the grant's 'commands'"),
    ("subscribe", "devices/+/commands/#", "subscribe[0]", "+ at level 2 asks for more than the grant's 'd1'"),
    ("subscribe", "#", "subscribe[0]", "# at level 1 asks for more than the grant's 'devices'"),
    ("subscribe", "open/+/x", "subscribe[1]", "the topic goes on below the 2 levels of the grant"),
    ("subscribe", "open/x/x", "subscribe[1]", "the topic goes on below the 2 levels of the grant"),
    ("subscribe", "open/#", "subscribe[1]", "# at level 2 asks for more than the grant's '+'"),
    ("receive", "other", "subscribe[0]", "level 1 is 'other', the grant has 'devices'"),
]


@pytest.mark.parametrize(("action", "topic", "rule", "why"), MISSES, ids=[f"{row[0]} {row[1]}" for row in MISSES])
def test_a_miss_says_what_kept_it_from_applying(action: str, topic: str, rule: str, why: str) -> None:
    """The first level that does not fit, in words."""
    told = explain(policy_of(SITE), peer_of(), Action(action), topic)
    assert not told.allowed
    assert why in [miss.why for miss in told.misses if miss.rule == rule]


def test_the_nearest_miss_comes_first() -> None:
    """By levels that fit; a grant without a value comes last and is shown as written."""
    told = explain(policy_of(SITE), peer_of(), Action.PUBLISH, "devices/d1/stat")
    assert told.misses == (
        Miss("device", "publish[0]", 5, "devices/d1/telemetry/#", "level 3 is 'stat', the grant has 'telemetry'"),
        Miss("device", "publish[1]", 5, "devices/d1/state", "level 3 is 'stat', the grant has 'state'"),
        Miss(
            *("device", "publish[2]", 5), "sites/{attr.site}/x", "{attr.site} has no value that can fill a topic level"
        ),
    )
    many = role("publish = [" + ", ".join(f'"x/{n}"' for n in range(9)) + ', "d/e"]')
    told = explain(policy_of(many), peer_of(), Action.PUBLISH, "d/x")
    assert len(told.misses) == MAX_MISSES == 5
    assert told.misses[0].grant == "d/e"


def test_a_leading_wildcard_is_a_miss_of_its_own() -> None:
    """The usual surprise with the broker's own tree."""
    told = explain(policy_of(role('subscribe = ["#", "+/x"]')), peer_of(), Action.SUBSCRIBE, "$SYS/x")
    assert {miss.why for miss in told.misses} == {"a leading wildcard does not reach topics that start with $"}
    told = explain(policy_of(role('subscribe = ["#", "+/x", "$x/y", "$SYS/y"]')), peer_of(), Action.SUBSCRIBE, "$SYS/x")
    assert [(miss.rule, miss.why) for miss in told.misses] == [
        ("subscribe[3]", "level 2 is 'x', the grant has 'y'"),
        ("subscribe[0]", "a leading wildcard does not reach topics that start with $"),
        ("subscribe[1]", "a leading wildcard does not reach topics that start with $"),
        ("subscribe[2]", "level 1 is '$SYS', the grant has '$x'"),
    ]


def test_values_are_cut_to_80_characters() -> None:
    """A level of the topic and a fact of the peer: 80 are shown whole, of more the end is cut."""
    policy = policy_of(role('publish = ["x"]'))
    (miss,) = explain(policy, peer_of(), Action.PUBLISH, "y" * 80).misses
    assert miss.why == f"level 1 is {'y' * 80!r}, the grant has 'x'"
    (miss,) = explain(policy, peer_of(), Action.PUBLISH, "y" * 90).misses
    assert miss.why == f"level 1 is {sanitise('y' * 90, 80)!r}, the grant has 'x'"
    units = policy_of(role("", match='{ ou = "x" }'))
    for unit in ("y" * 80, "y" * 90):
        (miss,) = explain(units, peer_of(ou=(unit,)), Action.CONNECT).misses
        assert miss.why == f"ou is {sanitise(unit, 80)!r}, not 'x'"


def test_a_grant_with_several_empty_tokens_names_them_all() -> None:
    """And those with a value are not among them; it comes after a grant of which a level fits."""
    lists = 'publish = ["s/{attr.a}/{id}/{attr.b}", "x/y", "s/z"]'
    told = explain(policy_of(role(lists)), peer_of(), Action.PUBLISH, "s/q")
    assert [(miss.rule, miss.why) for miss in told.misses] == [
        ("publish[2]", "level 2 is 'q', the grant has 'z'"),
        ("publish[0]", "{attr.a}, {attr.b} has no value that can fill a topic level"),
        ("publish[1]", "level 1 is 's', the grant has 'x'"),
    ]


def test_roles_of_a_connection_are_listed() -> None:
    """All that match, in the order of the file."""
    told = explain(
        policy_of(DEVICE + DEVICE.partition("1\n")[2].replace('"device"', '"more"')), peer_of(), Action.CONNECT
    )
    assert "roles      device, more" in told.to_text().splitlines()

    (miss,) = explain(policy_of(role('subscribe = ["+/x"]')), peer_of(), Action.SUBSCRIBE, "#").misses
    assert miss.why == "# at level 2 asks for more than the grant's 'x'"


def test_a_shared_subscription_is_explained() -> None:
    """It is no question of grants."""
    told = explain(policy_of(role('subscribe = ["#"]')), peer_of(), Action.SUBSCRIBE, "$share/g/x")
    assert told.detail == "shared subscriptions are no part of MQTT 3.1.1"
    assert told.reason == "subscribe_denied"


def test_what_is_no_topic_is_explained() -> None:
    """A wildcard in a topic to publish on."""
    told = explain(policy_of(DEVICE), peer_of(), Action.PUBLISH, "devices/d1/+")
    assert not told.allowed
    assert told.detail == "this is no topic that MQTT 3.1.1 allows here"


@pytest.mark.parametrize(
    ("lists", "detail"),
    [
        ('publish = ["x"]', "used together with publish"),
        ('will = ["x"]', "used together with will"),
        ('publish = ["x"]\nwill = ["x"]', "used together with publish or will"),
        ("", "of no use: neither publish nor will is granted there"),
    ],
)
def test_retain_says_what_it_needs_beside_it(lists: str, detail: str) -> None:
    """The retain right alone moves no message."""
    told = explain(policy_of(role(f'retain = ["x"]\n{lists}')), peer_of(), Action.RETAIN, "x")
    assert told.allowed
    assert told.detail == detail
    assert explain(policy_of(role('publish = ["x"]')), peer_of(), Action.RETAIN, "x").detail == ""


def test_a_refused_connection_is_explained() -> None:
    """With its reason and detail, whatever was asked."""
    for action in (Action.CONNECT, Action.PUBLISH):
        told = explain(policy_of(DEVICE), peer_of(), action, "devices/d1/x", "other")
        assert (told.allowed, told.reason) == (False, "client_id_refused")
        assert told.detail == '"other" is not bound to d1'
        assert (told.roles, told.misses, told.client_id) == (("device",), (), "other")
        assert (told.role, told.rule, told.line, told.grant, told.written) == ("", "", 0, "", "")
        assert told.to_text().splitlines()[:2] == [
            "decision   deny (client_id_refused)",
            'why        "other" is not bound to d1',
        ]
    assert explain(policy_of(DEVICE), peer_of(), Action.CONNECT).allowed


def test_without_a_role_the_nearest_roles_are_named() -> None:
    """Those of which the most conditions hold come first."""
    text = """
    version = 1
    [[role]]
    name = "far"
    match = { id = "x*", ou = "a" }
    [[role]]
    name = "near"
    match = { id = "d*", issuer = "CA", ou = "services" }
    """
    told = explain(policy_of(text), peer_of(ou=("a b", "c")), Action.CONNECT)
    assert told.reason == "no_role"
    assert told.misses == (
        Miss("near", "match", 5, "", "ou is 'a b', 'c', not 'services'"),
        Miss("far", "match", 2, "", "id is 'd1', not 'x*'; ou is 'a b', 'c', not 'a'"),
    )
    told = explain(policy_of(text), peer_of("y"), Action.CONNECT)
    assert told.misses[0].why == "id is 'y', not 'd*'; ou is not there, not 'services'"


def test_a_client_id_is_chosen_when_none_is_given() -> None:
    """One that the policy allows; the empty one is one that was given."""
    policy = policy_of(role('client_id = ["{id}:*"]'))
    assert explain(policy, peer_of(), Action.CONNECT).client_id == "d1:1"
    assert explain(policy, peer_of(), Action.CONNECT, client_id="").reason == "client_id_refused"


def test_attributes_count() -> None:
    """The registry's attributes fill tokens."""
    told = explain(policy_of(SITE), peer_of(), Action.PUBLISH, "sites/hall/x", attributes={"site": "hall"})
    assert told.grant == "sites/hall/x"


def test_the_json_form_holds_every_field() -> None:
    """For scripts."""
    told = json.loads(explain(policy_of(SITE), peer_of(), Action.PUBLISH, "devices/d2/x").to_json())
    assert told["allowed"] is False
    assert explain(policy_of(SITE), peer_of(), Action.PUBLISH, "devices/d2/x").to_json() == json.dumps(told, indent=2)
    assert told["misses"][0]["rule"] == "publish[0]"
    assert set(told) == {
        *("id", "issuer", "client_id", "action", "topic", "allowed", "reason", "detail", "roles", "role", "rule"),
        *("file", "line", "grant", "written", "misses"),
    }


def test_the_text_form_is_for_80_columns() -> None:
    """Labels in one column, empty rows left out, long ones wrapped."""
    text = explain(policy_of(SITE), peer_of(), Action.PUBLISH, "devices/d2/state").to_text()
    assert text.splitlines()[:8] == [
        "decision   deny (no_grant)",
        "who        d1 of CA",
        "client id  d1",
        "action     publish devices/d2/state",
        "roles      device",
        "missed     device publish[0] (line 5) devices/d1/telemetry/#",
        "             level 2 is 'd2', the grant has 'd1'",
        "           device publish[1] (line 5) devices/d1/state",
    ]
    allowed = explain(policy_of(SITE), peer_of(), Action.PUBLISH, "devices/d1/state").to_text()
    assert allowed.splitlines()[0] == "decision   allow (granted)"
    assert allowed.splitlines()[-4:] == [
        "rule       device publish[1]",
        "place      site.toml:5",
        "grant      devices/d1/state",
        "written    devices/{id}/state",
    ]
    long = explain(policy_of(SITE), peer_of(), Action.PUBLISH, "word " * 40 + "x" * 300).to_text()
    assert max(len(line) for line in long.splitlines()) <= 80
    first = next(n for n, line in enumerate(long.splitlines()) if line.startswith("action"))
    assert long.splitlines()[first + 1].startswith(" " * 11 + "word")


def test_a_text_of_the_peer_cannot_move_the_cursor() -> None:
    """Escape sequences and line breaks are shown, not sent."""
    told = explain(policy_of(SITE), peer_of(issuer="CA\x1b[2J\n"), Action.PUBLISH, "a\x1b[31m\u202e\nb", "x\ny")
    assert "\x1b" not in told.to_text()
    assert "\u202e" not in told.to_text()
    assert "\\x1b" in told.to_text()
    told = explain(policy_of(SITE), peer_of(), Action.PUBLISH, "a\x1b[31m\u202e\nb")
    assert "\x1b" not in told.to_text()
    assert "\u202e" not in told.to_text()
