"""A shadow policy: it is asked beside the active one, counted, and changes nothing."""

from gateway.policy import Action, Grants
from gateway.policy.shadow import Difference, Shadow, ShadowGrants
from mtls.errors import Reason, Refusal
from tests.gateway.policy.world import admitted, peer_of, policy_of, role

ACTIVE = policy_of(role('publish = ["a", "b"]', match='{ id = "d*" }'))
SHADOW = policy_of(role('publish = ["b", "c"]', match='{ id = "d1" }'))


def test_agreement_is_counted_as_asked_only() -> None:
    """Both allow, both deny."""
    pair = Shadow(ACTIVE, SHADOW)
    grants, difference = pair.admit(peer_of(), "d1")
    assert difference is None
    ours = admitted(ACTIVE)
    for topic in ("b", "x"):
        assert pair.compare(ours.decide(Action.PUBLISH, topic), grants, Action.PUBLISH, topic) is None
    assert (pair.asked, pair.counts) == (3, {})


def test_a_difference_says_what_the_shadow_would_do() -> None:
    """With the shadow's own rule, and counted by action and kind."""
    pair = Shadow(ACTIVE, SHADOW)
    grants, _ = pair.admit(peer_of(), "d1")
    ours = admitted(ACTIVE)
    denied = pair.compare(ours.decide(Action.PUBLISH, "a"), grants, Action.PUBLISH, "a")
    assert denied == Difference(Action.PUBLISH, "a", "would_deny", Reason.NO_GRANT, "", "", 0)
    allowed = pair.compare(ours.decide(Action.PUBLISH, "c"), grants, Action.PUBLISH, "c")
    assert allowed == Difference(Action.PUBLISH, "c", "would_allow", Reason.GRANTED, "r", "publish[1]", 6)
    pair.compare(ours.decide(Action.PUBLISH, "c"), grants, Action.PUBLISH, "c")
    assert pair.counts == {(Action.PUBLISH, "would_deny"): 1, (Action.PUBLISH, "would_allow"): 2}
    assert pair.asked == 4


def test_a_connection_that_the_shadow_refuses_may_do_nothing_there() -> None:
    """The refusal is a difference, and so is everything that the active policy allows."""
    pair = Shadow(ACTIVE, SHADOW)
    grants, difference = pair.admit(peer_of("d2"), "d2")
    assert difference == Difference(Action.CONNECT, "", "would_deny", Reason.NO_ROLE, "", "", 0)
    ours = admitted(ACTIVE, peer_of("d2"))
    late = pair.compare(ours.decide(Action.PUBLISH, "b"), grants, Action.PUBLISH, "b")
    assert late == Difference(Action.PUBLISH, "b", "would_deny", Reason.NO_ROLE, "", "", 0)
    assert not grants.decide(Action.PUBLISH, "b").allowed


def test_a_connection_that_only_the_shadow_admits_is_a_difference() -> None:
    """The twin; the verdict of the active policy can be given instead of asked again."""
    pair = Shadow(SHADOW, ACTIVE)
    grants, difference = pair.admit(peer_of("d2"), "d2")
    assert difference == Difference(Action.CONNECT, "", "would_allow", Reason.GRANTED, "", "", 0)
    assert isinstance(grants.verdict, Grants)
    refusal = Refusal(Reason.NO_ROLE)
    assert pair.admit(peer_of("d1"), "d1", active=refusal)[1] is not None
    assert pair.admit(peer_of("d1"), "d1", active=admitted(SHADOW))[1] is None
    assert pair.counts == {(Action.CONNECT, "would_allow"): 2}


def test_the_shadow_sees_the_attributes() -> None:
    """The same facts go to both."""
    shadow = policy_of(role('publish = ["s/{attr.site}"]', match='{ "attr.site" = "*" }'))
    grants, difference = Shadow(ACTIVE, shadow).admit(peer_of(), "d1", {"site": "x"})
    assert difference is None
    assert grants.decide(Action.PUBLISH, "s/x").allowed


def test_a_fault_in_the_shadow_is_an_answer() -> None:
    """An exception in it denies there and is not raised here."""
    pair = Shadow(ACTIVE, SHADOW)
    broken = ShadowGrants(admitted(SHADOW))
    ours = admitted(ACTIVE).decide(Action.PUBLISH, "a")
    difference = pair.compare(ours, broken, Action.PUBLISH, "a\0")
    assert difference is not None
    assert difference.rule == "error:ValueError"
