"""A shadow policy: it is asked beside the active one, counted, and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.policy import Action, Decision, Grants, Policy
from gateway.policy.shadow import Difference, Kind, Shadow, ShadowedPolicy
from mtls.errors import Reason, Refusal
from mtls.judgement import Peer
from tests.gateway.policy.world import admitted, peer_of, policy_of, role
from tests.support.pki import Pki

ACTIVE = role('publish = ["a", "b"]\nwill = ["w"]\nretain = ["b"]\nsubscribe = ["s/#"]', match='{ id = "d*" }')
NEXT = role('publish = ["b", "c"]\nretain = ["b"]\nsubscribe = ["s/x"]', match='{ id = "d1" }')


class Watched:
    """An active policy with a shadow, and what was told."""

    def __init__(self, folder: Path, active: str = ACTIVE, shadow: str = NEXT) -> None:
        file = folder / "policy.toml"
        file.write_text(active)
        self.policy = ShadowedPolicy.load(file)
        self.shadow = self.policy.cast(policy_of(shadow))
        self.told: list[Difference] = []
        self.shadow.tell = self.told.append

    def admit(self, peer: Peer | None = None) -> Grants:
        return admitted(self.policy, peer)

    @property
    def counts(self) -> dict[tuple[Action, Kind], int]:
        return dict(self.shadow.differences)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_agreement_is_counted_as_compared_only(watched: Watched) -> None:
    """Both admit, both allow, both deny."""
    grants = watched.admit()
    assert grants.decide(Action.PUBLISH, "b").allowed
    assert not grants.decide(Action.PUBLISH, "x").allowed
    assert (watched.shadow.compared, watched.counts, watched.told) == (3, {}, [])


@pytest.mark.parametrize(
    ("action", "topic", "kind", "reason"),
    [
        (Action.PUBLISH, "a", "would_deny", Reason.NO_GRANT),
        (Action.PUBLISH, "c", "would_allow", Reason.GRANTED),
        (Action.WILL, "w", "would_deny", Reason.NO_GRANT),
        (Action.SUBSCRIBE, "s/#", "would_deny", Reason.NO_GRANT),
        (Action.RECEIVE, "s/y", "would_deny", Reason.NO_GRANT),
    ],
)
def test_a_difference_is_told_with_the_shadows_own_reason(
    watched: Watched, action: Action, topic: str, kind: str, reason: Reason
) -> None:
    """Every action is compared; the answer stays the active policy's."""
    decision = watched.admit().decide(action, topic)
    assert decision.allowed is (kind == "would_deny")
    [told] = watched.told
    assert (told.action, told.topic, told.kind, told.reason, told.client_id) == (action, topic, kind, reason, "d1")
    assert watched.counts == {(action, kind): 1}


def test_the_rule_of_the_shadow_is_told(watched: Watched) -> None:
    """Where to look in the shadow's file."""
    watched.admit().decide(Action.PUBLISH, "c")
    assert (watched.told[0].role, watched.told[0].rule, watched.told[0].line) == ("r", "publish[1]", 6)


def test_a_retained_publish_and_a_retained_will_compare_both_rights(tmp_path: Path) -> None:
    """The publish right agrees, the retain right does not."""
    watched = Watched(tmp_path, ACTIVE, role('publish = ["b"]\nwill = ["b"]'))
    assert watched.admit().decide_publish("b", retain=True).allowed
    assert watched.counts == {(Action.RETAIN, "would_deny"): 1}


def test_what_is_remembered_is_not_compared_again(watched: Watched) -> None:
    """A message costs what it costs without a shadow: the decision is made once, and so is the comparison."""
    grants = watched.admit()
    for _ in range(100):
        grants.decide(Action.PUBLISH, "a")
    assert (watched.shadow.compared, watched.counts) == (2, {(Action.PUBLISH, "would_deny"): 1})


def test_a_connection_that_the_shadow_refuses_is_one_difference(watched: Watched) -> None:
    """It is told at every admission, with the shadow's reason, and its topics are not compared."""
    for _ in range(2):
        grants = watched.admit(peer_of("d2"))
        assert grants.decide(Action.PUBLISH, "a").allowed
    assert watched.counts == {(Action.CONNECT, "would_deny"): 2}
    assert (watched.told[0].reason, watched.told[0].rule) == (Reason.NO_ROLE, "match")


def test_a_connection_that_only_the_shadow_admits_stays_refused(tmp_path: Path) -> None:
    """The twin."""
    watched = Watched(tmp_path, NEXT, ACTIVE)
    assert isinstance(watched.policy.admit(peer_of("d2"), "d2"), Refusal)
    assert watched.counts == {(Action.CONNECT, "would_allow"): 1}


def test_a_connection_that_both_refuse_is_no_difference(watched: Watched) -> None:
    """Whatever their reasons."""
    assert isinstance(watched.policy.admit(peer_of("x1"), "x1"), Refusal)
    assert (watched.shadow.compared, watched.counts) == (1, {})


@pytest.mark.parametrize(("issuer", "counts"), [("CA", {}), ("Other", {(Action.CONNECT, "would_allow"): 1})])
def test_a_refused_issuer_is_compared_once(tmp_path: Path, issuer: str, counts: dict[object, int]) -> None:
    """Before CONNECT and, should a reload come between, after it."""
    issuers = '[[issuer]]\nsubject_cn = "{}"\nids = ["*"]'
    watched = Watched(tmp_path, role("", head=issuers.format("Mine")), role("", head=issuers.format(issuer)))
    peer = peer_of("d1", "Other")
    assert isinstance(watched.policy.issuer_refusal(peer), Refusal)
    assert watched.counts == counts


def test_another_source_of_identity_is_read_from_the_certificate(tmp_path: Path, pki: Pki) -> None:
    """A fleet moves from common names to URIs: the shadow sees who the certificate says the device is there."""
    mine = role('publish = ["d/{id}"]')
    watched = Watched(tmp_path, mine, role('publish = ["d/{id}"]', head='[identity]\nsource = "san-dns"'))
    der = pki.device("d1").certificate.public_bytes(Encoding.DER)
    watched.admit(replace(peer_of(), leaf_der=der))
    assert [told.reason for told in watched.told] == [Reason.IDENTITY_MISSING]


def test_the_shadow_sees_the_attributes(tmp_path: Path) -> None:
    """The same facts go to both."""
    watched = Watched(tmp_path, ACTIVE, role('publish = ["s/{attr.site}"]', match='{ "attr.site" = "*" }'))
    grants = admitted(watched.policy, attributes={"site": "x"})
    grants.decide(Action.PUBLISH, "s/x")
    assert watched.counts == {(Action.PUBLISH, "would_allow"): 1}


def test_the_newest_certificate_of_equal_connections_is_told(watched: Watched) -> None:
    """A renewed certificate has the rights of the old one, and not its serial number."""
    first = watched.admit()
    second = watched.admit(replace(peer_of(), certificate_serial="02"))
    assert first is second
    second.decide(Action.PUBLISH, "a")
    assert watched.told[0].peer.certificate_serial == "02"


def raising(*_: object, **__: object) -> Any:
    raise RuntimeError("broken")


def test_an_exception_in_the_shadow_is_counted_and_changes_nothing(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it decides, while it admits, and while a difference is told."""
    watched.shadow.tell = raising
    assert watched.admit().decide(Action.PUBLISH, "a").allowed
    assert (watched.shadow.faults, watched.counts) == (1, {(Action.PUBLISH, "would_deny"): 1})
    theirs = admitted(watched.shadow.policy)
    monkeypatch.setattr(Grants, "decide", raising)
    watched.shadow.decided(peer_of(), theirs, Action.PUBLISH, "b", Decision(True, Reason.GRANTED, "", "", 0, ""))
    assert watched.shadow.faults == 2
    monkeypatch.undo()
    monkeypatch.setattr(watched.shadow, "policy", None)
    assert watched.admit().decide(Action.PUBLISH, "b").allowed
    assert watched.shadow.faults == 3


def test_an_answer_that_is_an_exception_is_a_fault_and_no_difference(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy answers no to its own exceptions; that no says nothing about its rules."""
    monkeypatch.setattr(Policy, "_may_use", raising)
    assert isinstance(watched.policy.admit(peer_of(), "d1"), Refusal)
    assert (watched.shadow.faults, watched.counts) == (1, {})


def test_figures_survive_a_reload_of_the_same_two_files_only(tmp_path: Path) -> None:
    """A new CRL every hour does not reset a week's count; another policy does."""
    watched = Watched(tmp_path)
    watched.admit().decide(Action.PUBLISH, "a")
    same, other = Watched(tmp_path), Watched(tmp_path, ACTIVE + "\n")
    for again in (same, other):
        again.shadow.resume(watched.shadow)
    assert (same.shadow.row(), other.shadow.compared) == (watched.shadow.row(), 0)
    assert watched.shadow.row()["differences"] == [{"action": "publish", "kind": "would_deny", "count": 1}]


def test_without_a_shadow_nothing_is_compared_and_rights_are_plain() -> None:
    """What is not configured is not there."""
    assert type(admitted(policy_of(ACTIVE))) is Grants
    assert Shadow(policy_of(ACTIVE), policy_of(NEXT)).compared == 0
