"""What an admission and a decision cost, in roles tried and nodes visited: the same with 10 and with 100,000."""

from pathlib import Path

import pytest

from gateway.policy import Policy
from gateway.policy.model import Action, Rule
from gateway.policy.rules import Holder, RuleTrie
from mtls.judgement import Peer
from tests.gateway.policy.world import admitted, peer_of, policy_of

SIZES = (10, 2_000)


def roles(count: int, match: str) -> Policy:
    """A policy of roles whose match table has the number of the role in it."""
    return policy_of(
        "version = 1\n"
        + "".join(
            f'[[role]]\nname = "r{n}"\nmatch = {match.replace("N", str(n))}\npublish = ["t/r{n}/#"]\n'
            for n in range(count)
        )
    )


@pytest.mark.parametrize(
    ("match", "peer"),
    [
        ('{ id = "dN" }', peer_of("d7")),
        ('{ id = "lineN-*" }', peer_of("line7-x")),
        ('{ id = "*-lineN" }', peer_of("x-line7")),
        ('{ id = "[ab]N-*" }', peer_of("a7-x")),
        ('{ id = "d*", issuer = "CA N" }', peer_of("d7", "CA 7")),
        ('{ id = "*", ou = "unit N" }', peer_of(ou=("unit 7",))),
        ('{ issuer = "CA", ou = "unit N-*" }', peer_of(ou=("unit 7-x",))),
        ('{ o = "site", "attr.site" = "sN" }', peer_of(o=("site",))),
    ],
)
def test_an_admission_tries_a_few_roles(match: str, peer: Peer) -> None:
    """Whatever fact tells the roles apart: exactly one is tried, and it is the right one."""
    for size in SIZES:
        policy = roles(size, match)
        assert policy.roles_tried(peer, {"site": "s7"}) == 1
        assert [role.name for role in policy.matching_roles(peer, {"site": "s7"})] == ["r7"]


def test_a_decision_visits_the_levels_of_its_topic() -> None:
    """With 10 and with 100,000 grants in one trie: at most one node per level and wildcard."""
    visited = []
    for size in (10, 100_000):
        trie = RuleTrie(denies=False)
        for n in range(size):
            levels = ("devices", f"d{n}", "telemetry", "#")
            trie.add(Rule(n, 0, f"publish[{n}]", (Action.PUBLISH,), n, "", levels))
        found = trie.find(("devices", "d7", "telemetry", "t"), Holder((0,), {}))
        assert found.rule is not None
        assert found.rule.number == 7
        visited.append(found.visited)
        assert trie.find(("devices", "x", "telemetry"), Holder((0,), {})) == type(found)(None, 2)
    assert visited == [4, 4]


def test_a_decision_does_not_walk_the_roles_of_others() -> None:
    """The same grant in 2,000 roles: the holder of one of them is answered from its own."""
    for size in SIZES:
        trie = RuleTrie(denies=False)
        for n in range(size):
            trie.add(Rule(n, n, "publish[0]", (Action.PUBLISH,), n, "", ("a", "+")))
        found = trie.find(("a", "b"), Holder((7,), {}))
        assert found.rule is not None
        assert (found.rule.role, found.visited) == (7, 3)
        assert trie.find(("a", "b"), Holder((size,), {})).rule is None


def test_a_holder_of_very_many_roles_is_answered_by_the_first_rule() -> None:
    """More roles than rules: the rules are walked and the roles searched."""
    trie = RuleTrie(denies=False)
    for n in (3, 6, 9):
        trie.add(Rule(n, n, "publish[0]", (Action.PUBLISH,), n, "", ("a",)))
    for held, expected in (
        (range(20), 3),
        (range(4, 20), 6),
        (range(10, 20), None),
        ((0, 1, 2, 9), 9),
        ((0, 1, 2, 4), None),
    ):
        rule = trie.find(("a",), Holder(tuple(held), {})).rule
        assert (rule.role if rule is not None else None) == expected


def test_a_topic_of_very_many_levels_visits_as_many_nodes_as_the_policy_is_deep() -> None:
    """GHSA-2hjf-7455-w946: a topic made to be slow costs no more than a plain one."""
    trie = RuleTrie(denies=False)
    for n, levels in enumerate((("+", "+", "#"), ("a", "+", "a", "+", "b"), ("+", "a", "+", "a", "b"))):
        trie.add(Rule(n, 0, f"publish[{n}]", (Action.PUBLISH,), n, "", levels))
    assert trie.find(("a",) * 30_000, Holder((0,), {})).visited <= 11


def test_a_policy_of_many_roles_loads_and_decides(tmp_path: Path) -> None:
    """5,000 roles from a file: each device has its own, and lines are right to the last."""
    path = tmp_path / "policy.toml"
    text = "version = 1\n" + "".join(
        f'[[role]]\nname = "r{n}"\nmatch = {{ id = "d{n}" }}\npublish = ["devices/{{id}}/#"]\n' for n in range(5_000)
    )
    path.write_text(text)
    policy = Policy.load(path)
    decision = admitted(policy, peer_of("d4999")).decide(Action.PUBLISH, "devices/d4999/x")
    assert (decision.role, decision.line) == ("r4999", 5 + 4 * 4999)
    assert not admitted(policy, peer_of("d4999")).decide(Action.PUBLISH, "devices/d4998/x").allowed
