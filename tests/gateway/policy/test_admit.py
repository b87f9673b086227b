"""Admission by policy: allow-list, issuer table, roles, denied connections, client identifiers."""

import re
from typing import Any, cast

import pytest

from gateway.policy import Grants
from gateway.policy.policy import MAX_CLIENT_ID
from mtls.errors import Reason, Refusal
from tests.gateway.policy.world import DEVICE, admitted, peer_of, policy_of, refused, role

ONE, TWO = "1" * 64, "2" * 64

ISSUERS = f"""
version = 1
[[issuer]]
subject_cn = "Line A CA"
spki_sha256 = "{ONE}"
ids = ["a-*", "x"]
[[issuer]]
subject_cn = "Line A CA"
spki_sha256 = "{TWO}"
ids = ["aa-*"]
[[issuer]]
subject_cn = "Line B CA"
ids = ["b-*"]
[[role]]
name = "device"
match = {{ id = "*" }}
"""


def test_a_device_with_a_role_is_admitted_under_its_id() -> None:
    """The twin of every refusal below."""
    grants = admitted(policy_of(DEVICE))
    assert grants.roles == ("device",)
    assert grants.client_id == "d1"


def test_a_policy_without_roles_admits_nobody() -> None:
    """No role, no connection."""
    refusal = refused(policy_of("version = 1"))
    assert refusal.reason is Reason.NO_ROLE
    assert refusal.detail == 'no role matches d1 of "CA"'


def test_an_id_outside_the_pattern_is_refused() -> None:
    """The whole id must fit, a part is not enough."""
    policy = policy_of(role("", head='[identity]\npattern = "a|ab"'))
    assert admitted(policy, peer_of("a")).roles == ("r",)
    assert admitted(policy, peer_of("ab")).roles == ("r",)
    refusal = refused(policy, peer_of("abc"))
    assert refusal == Refusal(Reason.IDENTITY_NOT_ALLOWED, '"abc" does not match identity.pattern')


def test_an_issuer_names_the_ids_of_its_table_only() -> None:
    """By name and, where the table has one, by key."""
    policy = policy_of(ISSUERS)
    admitted(policy, peer_of("a-1", "Line A CA", spki="1" * 64))
    admitted(policy, peer_of("x", "Line A CA", spki="1" * 64))
    admitted(policy, peer_of("aa-1", "Line A CA", spki="2" * 64))
    admitted(policy, peer_of("b-1", "Line B CA", spki="3" * 64))
    for peer, detail in (
        (peer_of("b-1", "Line A CA", spki="1" * 64), '"Line A CA" may not name b-1, line 2'),
        (peer_of("a-1", "Line A CA", spki="2" * 64), '"Line A CA" may not name a-1, line 6'),
        (peer_of("a-1", "Line A CA", spki="3" * 64), '"Line A CA" has another key than the policy says'),
        (peer_of("a-1", "Line A CA"), '"Line A CA" has another key than the policy says'),
        (peer_of("a-1", "Line C CA", spki="1" * 64), '"Line C CA" is not in the issuer table'),
        (peer_of("a-1", "line a ca", spki="1" * 64), '"line a ca" is not in the issuer table'),
    ):
        assert refused(policy, peer) == Refusal(Reason.ISSUER_NOT_ALLOWED, detail)
        assert policy.issuer_refusal(peer) == Refusal(Reason.ISSUER_NOT_ALLOWED, detail)
    assert policy.issuer_refusal(peer_of("a-1", "Line A CA", spki="1" * 64)) is None


def test_without_an_issuer_table_every_trusted_issuer_may_name_every_id() -> None:
    """That is what the warning at start is about."""
    assert policy_of(DEVICE).issuer_refusal(peer_of("x", "anyone")) is None


@pytest.mark.parametrize(
    ("match", "facts", "fits"),
    [
        ('{ id = "d*" }', {}, True),
        ('{ id = "e*" }', {}, False),
        ('{ issuer = "C?" }', {}, True),
        ('{ issuer = "X" }', {}, False),
        ('{ ou = "services" }', {"ou": ("services",)}, True),
        ('{ ou = "services" }', {"ou": ("other", "services")}, True),
        ('{ ou = "services" }', {"ou": ("Services",)}, False),
        ('{ ou = "services" }', {}, False),
        ('{ ou = "*" }', {}, False),
        ('{ o = "site" }', {"o": ("site",)}, True),
        ('{ o = "site" }', {"ou": ("site",)}, False),
        ('{ id = "d*", ou = "x" }', {"ou": ("x",)}, True),
        ('{ id = "d*", ou = "x" }', {}, False),
        ('{ id = "e*", ou = "x" }', {"ou": ("x",)}, False),
    ],
)
def test_a_role_matches_when_every_glob_fits_a_fact(match: str, facts: dict[str, Any], fits: bool) -> None:
    """All conditions of one role, any value of a fact with several."""
    verdict = policy_of(role("", match=match)).admit(peer_of(**facts), "d1")
    assert isinstance(verdict, Grants) is fits


def test_registry_attributes_are_facts() -> None:
    """`attr.site` in a match, quoted or dotted; without the attribute the role does not match."""
    for match in ('{ "attr.site" = "hall-*" }', '{ attr.site = "hall-*" }'):
        policy = policy_of(role('publish = ["s/{attr.site}/#"]', match=match))
        grants = admitted(policy, attributes={"site": "hall-1"})
        assert grants.decide("publish", "s/hall-1/x").allowed  # type: ignore[arg-type]
        assert refused(policy, attributes={"site": "yard"}).reason is Reason.NO_ROLE
        assert refused(policy).reason is Reason.NO_ROLE
        assert refused(policy, attributes={"sit": "hall-1"}).reason is Reason.NO_ROLE


def test_an_attribute_cannot_pose_as_another_fact() -> None:
    """The registry's `id` is `attr.id`, never `id`."""
    policy = policy_of(role("", match='{ id = "boss" }'))
    assert refused(policy, attributes={"id": "boss"}).reason is Reason.NO_ROLE


def test_all_matching_roles_come_in_the_order_of_the_file() -> None:
    """Not in the order in which the index finds them."""
    text = "version = 1\n" + "".join(
        f'[[role]]\nname = "{name}"\nmatch = {{ id = "{glob}" }}\n'
        for name, glob in (("any", "*"), ("exact", "d1"), ("other", "d2"), ("start", "d*"), ("end", "*1"))
    )
    assert admitted(policy_of(text)).roles == ("any", "exact", "start", "end")


def test_a_role_can_deny_the_connection() -> None:
    """Whatever other roles grant."""
    text = DEVICE + '[[role]]\nname = "blocked"\nmatch = { id = "bad-*" }\ndeny = [{ action = "connect" }]\n'
    assert refused(policy_of(text), peer_of("bad-1")) == Refusal(Reason.DENIED_BY_RULE, "blocked deny[0], line 9")
    admitted(policy_of(text), peer_of("good-1"))


@pytest.mark.parametrize(
    ("allowed", "sent", "fits"),
    [
        (["{id}"], "d1", True),
        (["{id}"], "D1", False),
        (["{id}"], "d11", False),
        (["{id}"], "d", False),
        (["{id}"], "", False),
        (["{id}"], "{id}", False),
        (["{id}:*"], "d1:x", True),
        (["{id}:*"], "d1:", True),
        (["{id}:*"], "d1", False),
        (["{id}:*"], "d2:x", False),
        (["{id}:*", "{id}"], "d1", True),
        (["*"], "anything at all", True),
        (["*"], "", False),
        ([""], "", True),
        ([""], "d1", False),
        (["", "{id}"], "d1", True),
        (["", "{id}"], "", True),
        (["{issuer}-{id}"], "CA-d1", True),
        (["{ou}"], "d1", False),
        (["{attr.name}"], "fan", True),
        (["fixed"], "fixed", True),
    ],
)
def test_a_client_id_is_bound_to_the_identity(allowed: list[str], sent: str, fits: bool) -> None:
    """By the list of the identity table, and in the same way by the list of a role."""
    quoted = ", ".join(f'"{text}"' for text in allowed)
    for policy in (
        policy_of(role("", head=f"[identity]\nclient_id = [{quoted}]")),
        policy_of(role(f"client_id = [{quoted}]", head='[identity]\nclient_id = ["nobody"]')),
    ):
        verdict = policy.admit(peer_of(), sent, {"name": "fan"})
        if fits:
            assert isinstance(verdict, Grants)
            assert verdict.client_id == sent
        else:
            assert verdict == Refusal(Reason.CLIENT_ID_REFUSED, f'"{sent}" is not bound to d1')


def test_client_ids_of_all_roles_add_up() -> None:
    """A role without a list brings the general one."""
    text = """
    version = 1
    [[role]]
    name = "one"
    match = { id = "d*" }
    [[role]]
    name = "many"
    match = { id = "d1" }
    client_id = ["{id}:*"]
    """
    policy = policy_of(text)
    admitted(policy, client_id="d1")
    admitted(policy, client_id="d1:2")
    assert refused(policy, peer_of("d2"), "d2:2").reason is Reason.CLIENT_ID_REFUSED
    only_own = policy_of(role('client_id = ["{id}:*"]'))
    assert refused(only_own, client_id="d1").reason is Reason.CLIENT_ID_REFUSED


def test_a_client_id_has_a_bound_even_where_any_is_allowed() -> None:
    """What two length bytes can say, whatever the list says; a long one is not remembered."""
    policy = policy_of(role("", head='[identity]\nclient_id = ["*"]'))
    admitted(policy, client_id="x" * MAX_CLIENT_ID)
    assert refused(policy, client_id="x" * (MAX_CLIENT_ID + 1)).reason is Reason.CLIENT_ID_REFUSED
    admitted(policy, client_id="x" * 257)
    assert len(policy._admitted) == 0
    assert admitted(policy, client_id="x" * 256) is admitted(policy, client_id="x" * 256)


def test_a_value_that_is_no_level_binds_no_client_id() -> None:
    """An issuer named `a/b` fills no token, so its pattern allows nothing."""
    policy = policy_of(role("", head='[identity]\nclient_id = ["{issuer}"]'))
    admitted(policy, peer_of(issuer="a-b"), "a-b")
    assert refused(policy, peer_of(issuer="a/b"), "a/b").reason is Reason.CLIENT_ID_REFUSED


def test_the_first_no_is_the_answer() -> None:
    """Pattern, issuer, role, client identifier: in this order."""
    head = '[identity]\npattern = "[a-d]1"\n[[issuer]]\nsubject_cn = "CA"\nids = ["a1", "b1"]'
    policy = policy_of(role("", match='{ id = "a1" }', head=head))
    assert refused(policy, peer_of("e1", "X"), "z").reason is Reason.IDENTITY_NOT_ALLOWED
    assert refused(policy, peer_of("c1"), "z").reason is Reason.ISSUER_NOT_ALLOWED
    assert refused(policy, peer_of("b1"), "z").reason is Reason.NO_ROLE
    assert refused(policy, peer_of("a1"), "z").reason is Reason.CLIENT_ID_REFUSED
    admitted(policy, peer_of("a1"))


def test_equal_connections_share_their_grants_and_others_do_not() -> None:
    """Every fact that a rule can read is in the key."""
    policy = policy_of(role('client_id = ["*"]'))
    grants = admitted(policy)
    assert admitted(policy) is grants
    for other in (
        admitted(policy, client_id="x"),
        admitted(policy, peer_of("d2"), "d1"),
        admitted(policy, peer_of(issuer="CB")),
        admitted(policy, peer_of(spki="1")),
        admitted(policy, peer_of(ou=("x",))),
        admitted(policy, peer_of(o=("x",))),
        admitted(policy, attributes={"site": "x"}),
    ):
        assert other is not grants


def test_facts_of_the_new_certificate_count_after_a_renewal() -> None:
    """S7: the same id with another ou has another role; nothing is remembered by id."""
    policy = policy_of(role("", match='{ ou = "services" }'))
    assert refused(policy).reason is Reason.NO_ROLE
    admitted(policy, peer_of(ou=("services",)))
    assert refused(policy).reason is Reason.NO_ROLE


def test_the_cache_of_connections_is_bounded() -> None:
    """A fleet of any size does not grow the policy without end."""
    policy = policy_of(role('client_id = ["*"]'))
    first = admitted(policy, client_id="0")
    for number in range(1, 9000):
        admitted(policy, client_id=str(number))
    assert len(policy._admitted) <= 8192
    assert admitted(policy, client_id="0") is not first


@pytest.mark.parametrize("attributes", [{"site": 1}, {"site": None}, {"site": ["x"]}, None, {1: "x", "a": "y"}])
def test_an_exception_in_a_check_denies(attributes: Any) -> None:
    """P6: facts of the wrong type are no facts that allow."""
    policy = policy_of(role("", match='{ "attr.site" = "*" }'))
    refusal = policy.admit(peer_of(), "d1", cast("dict[str, str]", attributes))
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.NO_ROLE
    assert re.fullmatch(r"the policy could not be evaluated: (Type|Attribute)Error", refusal.detail)


def test_texts_of_the_peer_are_escaped_in_a_refusal() -> None:
    """A detail goes to the audit log."""
    refusal = refused(policy_of(DEVICE), client_id="x\n\x1b[31m")
    assert refusal.detail == '"x\\n\\x1b[31m" is not bound to d1'
    refusal = refused(policy_of(ISSUERS), peer_of("a-1", "CA\n"))
    assert refusal.detail == '"CA\\n" is not in the issuer table'


def test_a_usual_client_id_is_one_that_is_allowed() -> None:
    """The id where it may be used, else one made after the list; the id when nothing helps."""
    for allowed, expected in (
        ('["{id}"]', "d1"),
        ('["x", "{id}"]', "d1"),
        ('["{id}:*"]', "d1:1"),
        ('["gw-[ab]?"]', "gw-a1"),
        ('[""]', ""),
        ('["{attr.x}"]', "d1"),
        ('["{attr.x}", "y"]', "y"),
        ('["*"]', "d1"),
    ):
        policy = policy_of(role(f"client_id = {allowed}"))
        assert policy.usual_client_id(peer_of()) == expected
    assert policy_of("version = 1").usual_client_id(peer_of()) == "d1"


def test_with_several_roots_a_ca_is_its_key() -> None:
    """An issuer without spki_sha256 is a fault as soon as a second root is trusted, not before."""
    policy = policy_of(ISSUERS)
    assert policy.check_trust(1).faults == ()
    (fault,) = policy.check_trust(2).faults
    assert str(fault) == 'site.toml:10: [[issuer]] "Line B CA" has no spki_sha256, and 2 roots are trusted'
    assert fault.hint == "write the CA's spki_sha256; `mqtt-provision inspect` prints it"
    assert fault.exit_code == 78
    pinned = ISSUERS.replace('subject_cn = "Line B CA"', f'subject_cn = "Line B CA"\nspki_sha256 = "{ONE}"')
    assert policy_of(pinned).check_trust(2).faults == ()


def test_with_several_roots_a_role_cannot_trust_a_name() -> None:
    """A role that matches an issuer needs the issuer table, which knows the key."""
    named = role("", match='{ issuer = "CA" }')
    (fault,) = policy_of(named).check_trust(2).faults
    assert str(fault) == 'site.toml:3: [[role]] "r" trusts an issuer by its name alone, and 2 roots are trusted'
    assert fault.hint == "add an [[issuer]] table with spki_sha256 for every CA"
    assert policy_of(named).check_trust(1).faults == ()
    assert policy_of(DEVICE).check_trust(2).faults == ()
    table = f'[[issuer]]\nsubject_cn = "CA"\nspki_sha256 = "{ONE}"\nids = ["*"]'
    assert policy_of(role("", match='{ issuer = "CA" }', head=table)).check_trust(2).faults == ()


def test_an_issuer_that_is_no_trusted_ca_is_warned_about() -> None:
    """By name, and by key where the table has one."""
    policy = policy_of(ISSUERS)
    assert policy.check_trust(1).warnings == ()
    trusted = [("Line A CA", ONE), ("Line B CA", "9" * 64)]
    assert policy.check_trust(1, trusted).warnings == ('line 6: [[issuer]] "Line A CA" is no trusted CA',)
    trusted = [("Line A CA", ONE), ("Line A CA", TWO)]
    assert policy.check_trust(1, trusted).warnings == ('line 10: [[issuer]] "Line B CA" is no trusted CA',)
