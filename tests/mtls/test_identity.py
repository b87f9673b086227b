"""Exactly one identity out of a certificate, or a reason why there is none (S5)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from mtls.errors import Reason, Refusal
from mtls.identity import DeviceId, IdentityRule, device_urn, identity_of, quiet_parser
from tests.support.pki import Pki

URI = x509.UniformResourceIdentifier
DNS = x509.DNSName
FREE = re.compile(r".*", re.DOTALL)  # a site pattern that allows everything: the type alone must hold


def judged(pki: Pki, rule: IdentityRule | None = None, **leaf: object) -> str:
    """The id, or the reason of the refusal."""
    with quiet_parser():
        verdict = identity_of(pki.raw_leaf(**leaf).certificate, rule or IdentityRule())  # type: ignore[arg-type]
    return verdict.reason if isinstance(verdict, Refusal) else f"id {verdict}"


@pytest.mark.parametrize("name", ["a", "press-07", "007", "A.b_c:d-e", "x" * 64, "Gerät"])
def test_a_name_that_can_stand_as_one_topic_level_is_a_device_id(name: str) -> None:
    """Leading zeros, punctuation and letters of any script are kept as they are."""
    assert str(DeviceId(name)) == name


@pytest.mark.parametrize(
    "name",
    ["", "x" * 65, "a/b", "a+", "#", "$SYS", "a b", " a", "a\t", "a\n", "a\0b", "\x7f", "\u00a0", "\u202ea", "\ud800"],
    ids=ascii,
)
def test_what_could_reach_into_another_topic_tree_is_no_device_id(name: str) -> None:
    """No configuration widens this."""
    with pytest.raises(ValueError, match=r"a device id"):
        DeviceId(name)


@given(st.text(max_size=70))
def test_a_device_id_never_holds_structure_of_topics_or_a_control_character(name: str) -> None:
    """The type's promise, over any text."""
    try:
        value = DeviceId(name).value
    except ValueError:
        return
    assert 1 <= len(value) <= 64
    assert not set(value) & set("/+#$\0")
    assert value.isprintable()
    assert not any(character.isspace() for character in value)


def test_one_common_name_is_the_identity(pki: Pki) -> None:
    """The allow beside all the refusals below."""
    assert judged(pki, cn="dev-a") == "id dev-a"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), Reason.IDENTITY_MISSING),
        (("dev-a", "dev-b"), Reason.IDENTITY_AMBIGUOUS),
        (("dev-a", "dev-a"), Reason.IDENTITY_AMBIGUOUS),
        (("",), Reason.IDENTITY_MALFORMED),
        (("dev-a\0.example.com",), Reason.IDENTITY_MALFORMED),
        (("dev-a/x",), Reason.IDENTITY_MALFORMED),
        (("+",), Reason.IDENTITY_MALFORMED),
        (("#",), Reason.IDENTITY_MALFORMED),
        (("$SYS",), Reason.IDENTITY_MALFORMED),
        (("dev a",), Reason.IDENTITY_MALFORMED),
        (("dev-a\n",), Reason.IDENTITY_MALFORMED),
        (("x" * 65,), Reason.IDENTITY_MALFORMED),
        (("-dev",), Reason.IDENTITY_NOT_ALLOWED),
        (("Gerät",), Reason.IDENTITY_NOT_ALLOWED),
    ],
    ids=[
        "none",
        "several",
        "same-twice",
        "empty",
        "nul",
        "slash",
        "plus",
        "hash",
        "dollar",
        "space",
        "newline",
        "long",
        "dash",
        "letters",
    ],
)
def test_any_other_common_name_is_refused_with_its_reason(pki: Pki, names: Sequence[str], reason: Reason) -> None:
    """Never escaped, never repaired, never the first of several."""
    assert judged(pki, cn=names) == reason


def test_a_pattern_that_allows_everything_does_not_widen_the_type(pki: Pki) -> None:
    """Site configuration narrows only."""
    rule = IdentityRule(pattern=FREE)
    assert judged(pki, rule, cn="Gerät") == "id Gerät"
    assert judged(pki, rule, cn="a/b") == Reason.IDENTITY_MALFORMED


def test_a_pattern_must_match_the_whole_name(pki: Pki) -> None:
    """`a-[0-9]` does not let `a-1-and-more` in."""
    rule = IdentityRule(pattern=re.compile("a-[0-9]"))
    assert judged(pki, rule, cn="a-1") == "id a-1"
    assert judged(pki, rule, cn="a-12") == Reason.IDENTITY_NOT_ALLOWED
    assert judged(pki, rule, cn="xa-1") == Reason.IDENTITY_NOT_ALLOWED


@pytest.mark.parametrize(
    "uri",
    [
        "urn:mtls-gateway:device:dev-b",
        "URN:MTLS-Gateway:Device:dev-b",
        "urn:mtls-gateway:device:",
        "urn:mtls-gateway:device:DEV-A",
        "spiffe://factory.example/device/dev-b",
        "SPIFFE://factory.example/device/dev-b",
        "spiffe://factory.example/device/",
    ],
)
def test_a_san_of_our_forms_that_names_another_device_is_a_conflict(pki: Pki, uri: str) -> None:
    """Common name of one device, alternative name of another: it is neither."""
    assert judged(pki, cn="dev-a", san=[URI(uri)]) == Reason.IDENTITY_CONFLICT
    both = [URI(device_urn(DeviceId("dev-a"))), URI(uri)]
    assert judged(pki, cn="dev-a", san=both) == Reason.IDENTITY_CONFLICT


@pytest.mark.parametrize(
    "san",
    [
        [URI("urn:mtls-gateway:device:dev-a")],
        [URI("spiffe://factory.example/device/dev-a"), URI("urn:mtls-gateway:device:dev-a")],
        [URI("urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66")],
        [URI("spiffe://factory.example/workload/dev-b")],
        [URI("spiffe://factory.example/device/dev-b/agent")],
        [DNS("dev-b"), x509.RFC822Name("b@example.com")],
        [x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dev-b")]))],
    ],
    ids=["ours", "both-ours", "uuid", "other-spiffe", "deeper-spiffe", "dns-and-mail", "directory"],
)
def test_a_san_that_agrees_or_is_foreign_changes_nothing(pki: Pki, san: list[x509.GeneralName]) -> None:
    """Other CAs put what they like beside the name."""
    assert judged(pki, cn="dev-a", san=san) == "id dev-a"


@pytest.mark.parametrize(
    ("san", "verdict"),
    [
        ([URI("urn:mtls-gateway:device:dev-b")], "id dev-b"),
        ([URI("spiffe://factory.example/device/dev-b")], "id dev-b"),
        ([URI("urn:mtls-gateway:device:dev-b"), URI("spiffe://f/device/dev-b")], "id dev-b"),
        ([URI("urn:dev:mac:0024befffe804ff1")], "id urn:dev:mac:0024befffe804ff1"),
        ([], Reason.IDENTITY_MISSING),
        ([DNS("dev-b")], Reason.IDENTITY_MISSING),
        ([URI("urn:mtls-gateway:device:dev-b"), URI("spiffe://f/device/dev-c")], Reason.IDENTITY_AMBIGUOUS),
        ([URI("urn:mtls-gateway:device:dev-b"), URI("urn:dev:mac:00")], Reason.IDENTITY_AMBIGUOUS),
        ([URI("https://example.com/dev-b")], Reason.IDENTITY_MALFORMED),
        ([URI("urn:mtls-gateway:device:a/b")], Reason.IDENTITY_MALFORMED),
    ],
    ids=["urn", "spiffe", "both", "foreign", "none", "dns-only", "two-devices", "ours-and-foreign", "url", "slash"],
)
def test_a_uri_can_be_the_identity_if_there_is_exactly_one(pki: Pki, san: list[x509.GeneralName], verdict: str) -> None:
    """Source san-uri: the common name plays no part; our two forms may name one device side by side."""
    assert judged(pki, IdentityRule("san-uri"), cn="other", san=san) == verdict


@pytest.mark.parametrize(
    ("san", "verdict"),
    [
        ([DNS("dev-b.example.com")], "id dev-b.example.com"),
        ([DNS("a"), DNS("b")], Reason.IDENTITY_AMBIGUOUS),
        ([URI("urn:mtls-gateway:device:dev-b")], Reason.IDENTITY_MISSING),
        ([DNS("*.example.com")], Reason.IDENTITY_NOT_ALLOWED),
        ([DNS("a b")], Reason.IDENTITY_MALFORMED),
    ],
    ids=["one", "several", "none", "wildcard", "space"],
)
def test_a_dns_name_can_be_the_identity_if_there_is_exactly_one(
    pki: Pki, san: list[x509.GeneralName], verdict: str
) -> None:
    """Source san-dns."""
    assert judged(pki, IdentityRule("san-dns"), cn="other", san=san) == verdict


def test_other_parts_of_the_subject_are_no_identity(pki: Pki) -> None:
    """A serial number or a unit in the subject names nobody."""
    names = [(NameOID.SERIAL_NUMBER, "dev-a"), (NameOID.ORGANIZATIONAL_UNIT_NAME, "dev-a")]
    assert judged(pki, cn=(), extra_names=names) == Reason.IDENTITY_MISSING


def test_a_refusal_never_repeats_control_characters_of_the_peer(pki: Pki) -> None:
    """A detail may be printed as it is."""
    verdict = identity_of(pki.raw_leaf(cn="\x1b[2J\u202e").certificate, IdentityRule())
    assert isinstance(verdict, Refusal)
    assert verdict.detail.isprintable()
