"""The made-up devices of a policy: their ids, their facts, and the pairs of them that a proof looks at."""

from itertools import islice

import pytest

from gateway.policy import Policy, people
from gateway.policy.model import Role
from gateway.policy.people import ANY_CA, EXAMPLES, Group, Person, Population
from tests.gateway.policy.world import policy_of, role

ONE, TWO = "1" * 64, "2" * 64
ISSUERS = "".join(f'[[issuer]]\nsubject_cn = "{name}"\nids = ["*"]\n' for name in "AB")


def of(policy: Policy, *example_ids: str) -> tuple[Population, Role]:
    """The population of a policy and its only role."""
    return Population(policy, example_ids), policy.roles[0]


def person_of(body: str, *, match: str = '{ id = "*" }', head: str = "", side: people.Side = 0, **facts: str) -> Person:
    """The person with the id `d1` and these facts."""
    population, only = of(policy_of(role(body, match=match, head=head)))
    person = population.person(only, {"id": "d1", **facts}, side)
    assert person is not None
    return person


def pairs_of(
    body: str, groups: list[Group], *, head: str = "", match: str = '{ id = "*" }'
) -> list[tuple[Person, Person]]:
    """The first pairs of devices of one role that fit the groups; there is at least one."""
    population, only = of(policy_of(role(body, head=head, match=match)))
    found = list(islice(population.pairs((only, only), groups), 400))
    assert found
    assert all(first.peer.id != second.peer.id for first, second in found)
    return found


@pytest.mark.parametrize(
    ("levels", "first"),
    [("x", "site-1"), ("site-1", "site-1x"), ("site-1/site-1x", "site-1xx"), ("site-2", "site-1")],
)
def test_a_free_fact_is_no_level_of_any_rule(levels: str, first: str) -> None:
    """It names the fact and the side, and grows until it stands nowhere."""
    assert person_of(f'publish = ["{{attr.site}}/{levels}"]').values["attr.site"] == first
    assert person_of('publish = ["{attr.site}"]', side=1).values["attr.site"] == "site-2"


def test_names_are_made_up_only_where_a_rule_reads_them() -> None:
    """`ou` by its token, `o` by a match; nothing of a certificate is made up."""
    peer = person_of('publish = ["{ou}/x"]').peer
    assert (peer.ou, peer.o) == (("ou-1",), ())
    assert person_of("", match='{ o = "hall" }').peer.o == ("hall",)
    assert (peer.certificate_serial, peer.fingerprint_sha256, peer.leaf_der) == ("", "", b"")


def test_a_restricted_fact_avoids_the_levels_and_the_other_device() -> None:
    """A text of the role's glob that no rule names, another one for each side."""
    body, match = 'publish = ["{attr.site}/h", "ha"]', '{ "attr.site" = "h*" }'
    values = [person_of(body, match=match, side=side).values["attr.site"] for side in (0, 1)]
    assert all(value.startswith("h") for value in values)
    assert len({*values, "h", "ha"}) == 4
    assert person_of("", match='{ "attr.site" = "h*" }').roles


def test_the_issuer_is_one_that_the_policy_knows() -> None:
    """By name and key where there is a table, by the role's match where there is none."""
    assert (person_of("").peer.issuer_cn, person_of("").peer.issuer_spki_sha256) == (ANY_CA, "")
    assert person_of("", match='{ issuer = "Line A" }').peer.issuer_cn == "Line A"
    assert person_of("", head=ISSUERS).peer.issuer_cn == "A"
    assert person_of('publish = ["{issuer}"]', head=ISSUERS, issuer="B").peer.issuer_cn == "B"
    keys = "".join(
        f'[[issuer]]\nsubject_cn = "A"\nspki_sha256 = "{key}"\nids = ["{ids}"]\n'
        for key, ids in ((ONE, "x"), (TWO, "d*"))
    )
    assert person_of("", head=keys).peer.issuer_spki_sha256 == TWO


def test_nobody_is_made_up_that_the_policy_refuses() -> None:
    """Another role's id, a fact that fills no level, an id outside the pattern."""
    population, only = of(policy_of(role('publish = ["{ou}"]', match='{ id = "d*" }')))
    assert population.person(only, {"id": "d1"}) is not None
    assert population.person(only, {"id": "d1", "ou": "a/b"}) is None
    assert population.person(only, {"id": "e 1"}) is None
    two = policy_of(role("", match='{ id = "d*" }') + '[[role]]\nname = "e"\nmatch = { id = "e*" }\n')
    assert Population(two).person(two.roles[0], {"id": "e1"}) is None


def test_ids_are_gathered_from_every_issuer_until_there_are_enough() -> None:
    """One of each row at least, and no further row when the examples are many."""
    few, only = of(policy_of(role("", head='[[issuer]]\nsubject_cn = "A"\nids = ["one", "two"]')))
    assert few.ids(only) == ("one", "two")
    many, only = of(policy_of(role("", head='[[issuer]]\nsubject_cn = "A"\nids = ["q-*", "r-*"]')))
    assert len(many.ids(only)) == EXAMPLES
    assert all(text.startswith("q-") for text in many.ids(only))


def test_two_ids_stand_for_all_and_one_does_not() -> None:
    """Unless there certainly is just one; that is told within the bound of rows only."""
    hidden = role("", match='{ id = "dev-9*" }', head="[identity]\npattern = '(?=dev-)dev-\\d{3}7'")
    for examples, stands in ((("dev-9007",), False), (("dev-9007", "dev-9017"), True)):
        population, only = of(policy_of(hidden), *examples)
        assert population.ids(only) == examples
        assert population.stands_for_all(only) is stands


@pytest.mark.parametrize(("bound", "stands"), [(0, False), (1, True)])
def test_more_rows_than_are_looked_at_prove_nothing(monkeypatch: pytest.MonkeyPatch, bound: int, stands: bool) -> None:
    """A role of one device is one row."""
    monkeypatch.setattr(people, "MAX_ROWS", bound)
    population, only = of(policy_of(role("", match='{ id = "only" }')))
    assert population.stands_for_all(only) is stands


@pytest.mark.parametrize(
    ("client_ids", "is_id", "names_id"),
    [
        (["{id}"], True, True),
        (["{id}", "{id}:*"], False, True),
        (["{id}:"], False, True),
        (["{id}", ""], False, True),
        (["{id}*"], False, False),
        (["{id}x"], False, False),
        (["x{id}"], False, False),
        (["{id}", "*"], False, False),
    ],
)
def test_client_identifiers_tell_devices_apart(client_ids: list[str], is_id: bool, names_id: bool) -> None:
    """When each is an id, or an id and then a character that no id has."""
    quoted = ", ".join(f'"{text}"' for text in client_ids)
    population, _ = of(policy_of(role("", head=f"[identity]\nclient_id = [{quoted}]\npattern = '[a-z0-9]+'")))
    assert population.client_id_is_id is is_id
    assert population.client_id_names_id is names_id


def test_a_pair_has_free_facts_of_its_own_on_each_side() -> None:
    """And one connection for each device, where no deny tells more of them apart."""
    found = pairs_of('client_id = ["*"]\npublish = ["{attr.site}/{issuer}"]', [], head=ISSUERS)
    assert {(first.values["attr.site"], second.values["attr.site"]) for first, second in found} == {
        ("site-1", "site-2")
    }
    ids = [(first.peer.id, second.peer.id) for first, second in found]
    assert len(ids) == len(set(ids))


def test_a_group_with_a_literal_gives_its_facts_that_value() -> None:
    """An id, a client identifier, an issuer: also where a deny would have other values tried."""
    body = (
        'client_id = ["*"]\npublish = ["{client_id}/{issuer}"]\n'
        'deny = [{ action = "publish", topic = "{client_id}/x" }, { action = "publish", topic = "{issuer}/x" }]'
    )
    for name, value in (("id", "zz"), ("client_id", "zz"), ("issuer", "B")):
        found = pairs_of(body, [(value, frozenset({(0, name)}))], head=ISSUERS)
        assert {first.values[name] for first, _ in found} == {value}


def test_a_deny_has_every_client_identifier_and_issuer_tried() -> None:
    """Each that the policy allows, beside the same id."""
    body = 'client_id = ["{id}:*"]\npublish = ["+"]\ndeny = [{ action = "publish", topic = "{client_id}/{issuer}" }]'
    found = pairs_of(body, [("d1", frozenset({(0, "id")}))], head=ISSUERS)
    assert {first.peer.issuer_cn for first, _ in found} == {"A", "B"}
    assert len({first.grants.client_id for first, _ in found}) > 1


def test_a_group_makes_facts_of_both_devices_equal() -> None:
    """An attribute that is the other's id; an issuer of the table that both have."""
    body = 'publish = ["{attr.twin}"]'
    for first, second in pairs_of(body, [(None, frozenset({(0, "id"), (1, "attr.twin")}))]):
        assert second.values["attr.twin"] == first.peer.id.value
    both: list[Group] = [(None, frozenset({(0, "issuer"), (1, "issuer")}))]
    found = pairs_of('publish = ["{issuer}"]', both, head=ISSUERS)
    assert {(first.peer.issuer_cn, second.peer.issuer_cn) for first, second in found} == {("A", "A"), ("B", "B")}


SITE, BOTH = frozenset({(0, "attr.v")}), frozenset({(0, "attr.v"), (1, "attr.v")})


@pytest.mark.parametrize(
    ("groups", "match", "exact"),
    [
        ([], '{ id = "*" }', True),
        ([(None, SITE)], '{ id = "*" }', True),
        ([(None, BOTH)], '{ id = "*" }', False),
        ([("x", BOTH)], '{ id = "*" }', True),
        ([("x", BOTH), (None, BOTH)], '{ id = "*" }', False),
        ([("x", BOTH), (None, BOTH)], '{ "attr.v" = "y" }', True),
    ],
)
def test_no_pair_is_a_proof_only_where_all_was_tried(groups: list[Group], match: str, exact: bool) -> None:
    """A value that two devices must share is an example only, unless their globs exclude it."""
    population, only = of(policy_of(role("", match=match)))
    assert population.is_exact((only, only), groups) is exact
