"""Attacks that have worked on other brokers, each by its public name, as far as the policy is what stops them."""

import pytest

from gateway.policy import Action, Policy
from mtls.errors import Reason
from mtls.identity import DeviceId
from tests.gateway.policy.world import DEVICE, admitted, peer_of, policy_of, refused, role


@pytest.mark.parametrize("name", ["+", "#", "a+", "d/1", "$SYS", "a#b"])
def test_cve_2017_7650_a_wildcard_as_a_name(name: str) -> None:
    """mosquitto put a client's name with `+` or `#` into its patterns; here it is no name, and no value of a token."""
    with pytest.raises(ValueError, match="cannot contain"):
        DeviceId(name)
    policy = policy_of(role('client_id = ["*"]\npublish = ["devices/{client_id}/#"]'))
    grants = admitted(policy, client_id=name)
    for topic in ("devices/other/x", f"devices/{name}/x", "devices/d1/x"):
        assert not grants.decide(Action.PUBLISH, topic).allowed
    assert admitted(policy, client_id="d1").decide(Action.PUBLISH, "devices/d1/x").allowed


def two_versions(before: str, after: str) -> tuple[Policy, Policy]:
    return policy_of(role(before)), policy_of(role(after))


def test_cve_2018_12546_a_retained_message_outlives_the_right() -> None:
    """Receive is judged again under the new policy, whatever was allowed when the message was retained."""
    before, after = two_versions('subscribe = ["site/#"]', 'subscribe = ["site/open/#"]')
    assert admitted(before).decide(Action.RECEIVE, "site/secret").allowed
    assert not admitted(after).decide(Action.RECEIVE, "site/secret").allowed
    assert admitted(after).decide(Action.RECEIVE, "site/open/x").allowed


def test_cve_2021_34434_a_subscription_outlives_the_right() -> None:
    """The subscription itself and each delivery are judged again under the new policy."""
    before, after = two_versions('subscribe = ["site/#"]', 'publish = ["site/#"]')
    assert admitted(before).decide(Action.SUBSCRIBE, "site/#").allowed
    for action, topic in ((Action.SUBSCRIBE, "site/#"), (Action.RECEIVE, "site/x")):
        assert admitted(after).decide(action, topic).reason is Reason.NO_GRANT


@pytest.mark.parametrize("name", ["a.c", "a.*", ".*", "a|b", "(a)", "[a]", "a?", "^a", "a\\c", "*", "{id}", "%s", "%c"])
def test_cve_2026_44838_a_name_is_never_a_pattern(name: str) -> None:
    """A name full of regular expression, glob and format characters reaches its own topics and no other."""
    policy = policy_of(role('publish = ["devices/{id}/x"]', head="[identity]\npattern = '.*'"))
    grants = admitted(policy, peer_of(name))
    assert grants.decide(Action.PUBLISH, f"devices/{name}/x").allowed
    for other in ("abc", "a", "b", "ac", "d1", "devices"):
        assert not grants.decide(Action.PUBLISH, f"devices/{other}/x").allowed
    bound = policy_of(role('client_id = ["{id}:*"]', head="[identity]\npattern = '.*'"))
    admitted(bound, peer_of(name), f"{name}:1")
    assert refused(bound, peer_of(name), "abc:1").reason is Reason.CLIENT_ID_REFUSED


def test_nats_2026_26_a_replay_is_a_delivery() -> None:
    """A right to ask for a subscription gives nothing retained that the session may not receive."""
    grants = admitted(policy_of(role('subscribe = ["a/#"]\nreceive = ["a/open/#"]')))
    assert grants.decide(Action.SUBSCRIBE, "a/#").allowed
    assert not grants.decide(Action.RECEIVE, "a/secret").allowed
    assert grants.decide(Action.RECEIVE, "a/open/x").allowed


@pytest.mark.parametrize("action", [Action.PUBLISH, Action.RECEIVE, Action.WILL, Action.RETAIN, Action.SUBSCRIBE])
def test_the_brokers_own_tree_needs_a_grant_that_names_it(action: Action) -> None:
    """`#` and `+` give nothing below `$`."""
    wide = admitted(policy_of(role(f'{action} = ["#", "+/#", "+/broker/uptime"]')))
    named = admitted(policy_of(role(f'{action} = ["$SYS/broker/#"]')))
    assert not wide.decide(action, "$SYS/broker/uptime").allowed
    assert named.decide(action, "$SYS/broker/uptime").allowed
    assert not named.decide(action, "$SYS/other").allowed


def test_a_prefix_is_no_identity() -> None:
    """d1 is not d10, and `..` is a level like any other."""
    grants = admitted(policy_of(DEVICE))
    for topic in ("devices/d10/x", "devices/d", "devices/D1/x", "/devices/d1/x", "devices//x", "devices"):
        assert not grants.decide(Action.PUBLISH, topic).allowed
    assert grants.decide(Action.PUBLISH, "devices/d1/../d2/x").grant == "devices/d1/#"
