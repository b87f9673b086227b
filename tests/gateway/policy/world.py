"""Policies from a text and peers from a few facts, for the tests of the policy."""

from __future__ import annotations

from datetime import UTC, datetime
from textwrap import dedent

from gateway.policy import Grants, Policy
from gateway.policy.load import load_text
from mtls.errors import Refusal
from mtls.identity import DeviceId
from mtls.judgement import Peer

DAY = datetime(2030, 1, 1, tzinfo=UTC)
FILE = "site.toml"

DEVICE = """
version = 1
[[role]]
name = "device"
match = { id = "*" }
publish = ["devices/{id}/#"]
"""


def policy_of(text: str) -> Policy:
    """The policy of this text, as if it stood in a file called site.toml."""
    return Policy(load_text(dedent(text).lstrip("\n"), FILE), file=FILE, version="test")


def role(body: str, *, match: str = '{ id = "*" }', name: str = "r", head: str = "") -> str:
    """A policy of one role with these lines in it."""
    return f'version = 1\n{head}\n[[role]]\nname = "{name}"\nmatch = {match}\n{body}\n'


def peer_of(
    name: str = "d1",
    issuer: str = "CA",
    *,
    spki: str = "",
    ou: tuple[str, ...] = (),
    o: tuple[str, ...] = (),
) -> Peer:
    """A peer with these facts; dates and serials are not the policy's to judge."""
    return Peer(DeviceId(name), issuer, spki, ou, o, "01", "00", DAY, DAY, b"")


def admitted(
    policy: Policy, peer: Peer | None = None, client_id: str | None = None, attributes: dict[str, str] | None = None
) -> Grants:
    """The rights of a peer that must be admitted."""
    peer = peer if peer is not None else peer_of()
    verdict = policy.admit(peer, peer.id.value if client_id is None else client_id, attributes or {})
    assert isinstance(verdict, Grants), verdict
    return verdict


def refused(
    policy: Policy, peer: Peer | None = None, client_id: str | None = None, attributes: dict[str, str] | None = None
) -> Refusal:
    """The refusal of a peer that must be refused."""
    peer = peer if peer is not None else peer_of()
    verdict = policy.admit(peer, peer.id.value if client_id is None else client_id, attributes or {})
    assert isinstance(verdict, Refusal), verdict
    return verdict
