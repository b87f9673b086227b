"""A policy in force: who is admitted, with which roles, and so with which rights.

`admit` asks, in this order: is the id on the site's allow-list, may its issuer name it, does a role match, does a role
deny the connection, is the client identifier bound to the identity. The first no is the answer; an exception is a no.
Not judged here: certificate, dates, revocation (`mtls.judgement`), will and topics (`Grants.decide`).

A policy never changes. What it remembers is bounded and dies with it on a reload. Spec: docs/policy.md.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from gateway.policy.cache import BoundedCache
from gateway.policy.decide import Grants
from gateway.policy.globs import FactIndex, Glob, sample
from gateway.policy.load import Loaded, load_text
from gateway.policy.model import IssuerRule, Role, is_usable
from gateway.policy.rules import RuleBook
from mtls.errors import ConfigFault, Reason, Refusal
from mtls.identity import IdentityRule
from mtls.judgement import Peer
from mtls.keystore import read_limited
from mtls.terminal import sanitise

MAX_POLICY_BYTES: Final = 64 * 1024 * 1024  # some 400,000 roles
MAX_CLIENT_ID: Final = 65_535  # what two length bytes can say; the policy's own lists are the narrower bound
CACHED_CLIENT_ID: Final = 256  # characters; a longer one is judged anew, so that `*` lets nobody fill the memory
CACHED_CONNECTIONS: Final = 4096  # per generation; the gateway's own default is 5,000 connections

UNEVALUATED: Final = "the policy could not be evaluated"  # how the detail of an exception's refusal begins
NO_ATTRIBUTES: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TrustCheck:
    """What the policy makes of the CAs that the gateway trusts."""

    faults: tuple[ConfigFault, ...]
    warnings: tuple[str, ...]


class Policy:
    """One version of the policy file, indexed."""

    __slots__ = (
        "_admitted",
        "_book",
        "_client_ids",
        "_ids",
        "_index",
        "_issuers",
        "file",
        "identity",
        "issuers",
        "roles",
        "version",
        "warnings",
    )

    def __init__(self, loaded: Loaded, *, file: str, version: str) -> None:
        self.file = file
        self.version = version
        self.identity: IdentityRule = loaded.identity
        self.issuers: tuple[IssuerRule, ...] = loaded.issuers
        self.roles: tuple[Role, ...] = loaded.roles
        self.warnings: tuple[str, ...] = _warnings(loaded, file)
        self._client_ids = loaded.client_ids
        self._issuers: dict[str, list[IssuerRule]] = {}
        for issuer in loaded.issuers:
            self._issuers.setdefault(issuer.subject_cn, []).append(issuer)
        self._ids = {
            (issuer.subject_cn, issuer.spki_sha256): FactIndex(({"id": glob}, glob) for glob in issuer.ids)
            for issuer in loaded.issuers
        }
        self._index: FactIndex[Role] = FactIndex((role.match, role) for role in loaded.roles)
        self._book = RuleBook.of(loaded.roles)
        self._admitted: BoundedCache[tuple[object, ...], Grants] = BoundedCache(CACHED_CONNECTIONS)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a policy file; ConfigFault with file, line, table and key when it cannot be used."""
        data = read_limited(path, MAX_POLICY_BYTES)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ConfigFault(f"{path}: byte {error.start} is not UTF-8", hint="a policy is TOML in UTF-8") from None
        version = hashlib.sha256(data).hexdigest()[:12]
        with _collector_paused():
            return cls(load_text(text, str(path)), file=str(path), version=version)

    def admit(self, peer: Peer, client_id: str, attributes: Mapping[str, str] = NO_ATTRIBUTES) -> Grants | Refusal:
        """The rights of this peer under this client identifier, or why it has none.

        `attributes` come from the device registry. An empty `client_id` means that the client sent none.
        """
        try:
            key = (
                *(peer.id.value, peer.issuer_cn, peer.issuer_spki_sha256, peer.ou, peer.o),
                *(client_id, tuple(sorted(attributes.items()))),
            )
            grants = self._admitted.get(key)
            if grants is not None:
                return grants
            verdict = self._admit(peer, client_id, attributes)
        except Exception as fault:  # whatever it was, it must not open anything
            return Refusal(Reason.NO_ROLE, f"{UNEVALUATED}: {type(fault).__name__}")
        if isinstance(verdict, Grants) and len(client_id) <= CACHED_CLIENT_ID:
            self._admitted.put(key, verdict)
        return verdict

    def _admit(self, peer: Peer, client_id: str, attributes: Mapping[str, str]) -> Grants | Refusal:
        refusal = self._id_refusal(peer) or self.issuer_refusal(peer)
        if refusal is not None:
            return refusal
        roles = self.matching_roles(peer, attributes)
        if not roles:
            return Refusal(Reason.NO_ROLE, f"no role matches {sanitise(peer.id.value)} of {_named(peer.issuer_cn)}")
        for role in roles:
            if role.denies_connect is not None:
                rule = role.denies_connect
                return Refusal(Reason.DENIED_BY_RULE, f"{sanitise(role.name)} {rule.name}, line {rule.line}")
        values = token_values(peer, attributes)
        if not self._may_use(client_id, roles, values):
            return Refusal(Reason.CLIENT_ID_REFUSED, f"{_named(client_id)} is not bound to {sanitise(peer.id.value)}")
        if is_usable(client_id):
            values["client_id"] = client_id
        return self._grants(roles, values, client_id)

    def _grants(self, roles: Sequence[Role], values: Mapping[str, str], client_id: str) -> Grants:
        return Grants(self._book, roles, values, client_id)

    def _id_refusal(self, peer: Peer) -> Refusal | None:
        if self.identity.pattern.fullmatch(peer.id.value) is None:
            return Refusal(Reason.IDENTITY_NOT_ALLOWED, f"{_named(peer.id.value)} does not match identity.pattern")
        return None

    def issuer_refusal(self, peer: Peer) -> Refusal | None:
        """Why this issuer may not name this id, or None; without an issuer table every issuer may."""
        if not self.issuers:
            return None
        named = self._issuers.get(peer.issuer_cn, ())
        own = [issuer for issuer in named if issuer.spki_sha256 in ("", peer.issuer_spki_sha256)]
        if not own:
            what = "has another key than the policy says" if named else "is not in the issuer table"
            return Refusal(Reason.ISSUER_NOT_ALLOWED, f"{_named(peer.issuer_cn)} {what}")
        for issuer in own:
            globs = self._ids[issuer.subject_cn, issuer.spki_sha256].candidates({"id": (peer.id.value,)})
            if any(glob.matches(peer.id.value) for glob in globs):
                return None
        lines = ", ".join(str(issuer.line) for issuer in own)
        detail = f"{_named(peer.issuer_cn)} may not name {sanitise(peer.id.value)}, line {lines}"
        return Refusal(Reason.ISSUER_NOT_ALLOWED, detail)

    def matching_roles(self, peer: Peer, attributes: Mapping[str, str] = NO_ATTRIBUTES) -> tuple[Role, ...]:
        """Every role whose match table fits, in the order of the file. Nothing else is judged."""
        facts = facts_of(peer, attributes)
        return tuple(role for role in self._index.candidates(facts) if role_matches(role, facts))

    def roles_tried(self, peer: Peer, attributes: Mapping[str, str] = NO_ATTRIBUTES) -> int:
        """How many roles are compared to find the matching ones: what an admission costs."""
        return len(self._index.candidates(facts_of(peer, attributes)))

    def client_ids_of(self, roles: Sequence[Role]) -> tuple[Glob, ...]:
        """The client identifiers that these roles allow together; a role without a list has the general one."""
        globs = (glob for role in roles for glob in role.client_ids or self._client_ids)
        return tuple(dict.fromkeys(globs))

    def _may_use(self, client_id: str, roles: Sequence[Role], values: Mapping[str, str]) -> bool:
        if len(client_id) > MAX_CLIENT_ID:
            return False
        for glob in self.client_ids_of(roles):
            if client_id == "" or glob.text == "":
                # No client identifier at all is allowed by the empty text only, not by `*`.
                if client_id == glob.text:
                    return True
                continue
            bound = glob.bind(values)
            if bound is not None and bound.matches(client_id):
                return True
        return False

    def usual_client_id(self, peer: Peer, attributes: Mapping[str, str] = NO_ATTRIBUTES) -> str:
        """A client identifier that this peer may use: its id where that is allowed. For questions without one."""
        roles = self.matching_roles(peer, attributes)
        values = token_values(peer, attributes)
        bound = (glob.bind(values) for glob in self.client_ids_of(roles))
        samples = (sample(glob) for glob in bound if glob is not None)
        fitting = (text for text in (peer.id.value, *samples) if self._may_use(text, roles, values))
        return next(fitting, peer.id.value)

    def check_trust(self, trust_roots: int, issuing: Sequence[tuple[str, str]] = ()) -> TrustCheck:
        """Whether names are enough with this many trusted roots: a CA is its key, not its name.

        `issuing` lists (common name, spki_sha256) of the trusted CAs; when given, an issuer rule that names none of
        them is warned about.
        """
        faults: list[ConfigFault] = []
        hint = "write the CA's spki_sha256; `mqtt-provision inspect` prints it"
        if trust_roots > 1:
            faults += [
                ConfigFault(
                    f"{self.file}:{issuer.line}: [[issuer]] {_named(issuer.subject_cn)} has no spki_sha256,"
                    f" and {trust_roots} roots are trusted",
                    hint=hint,
                )
                for issuer in self.issuers
                if not issuer.spki_sha256
            ]
            if not self.issuers:
                faults += [
                    ConfigFault(
                        f"{self.file}:{role.line}: [[role]] {_named(role.name)} trusts an issuer by its name alone,"
                        f" and {trust_roots} roots are trusted",
                        hint="add an [[issuer]] table with spki_sha256 for every CA",
                    )
                    for role in self.roles
                    if "issuer" in role.match
                ]
        trusted = set(issuing)
        names = {name for name, _ in trusted}
        strangers = tuple(
            f"line {issuer.line}: [[issuer]] {_named(issuer.subject_cn)} is no trusted CA"
            for issuer in self.issuers
            if trusted
            and (
                issuer.subject_cn not in names
                or (issuer.spki_sha256 and (issuer.subject_cn, issuer.spki_sha256) not in trusted)
            )
        )
        return TrustCheck(tuple(faults), strangers)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without the cyclic collector, which finds nothing here, a hundred thousand roles load in half the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def facts_of(peer: Peer, attributes: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """What roles can match on: some facts have no value, a certificate can have several ou."""
    return {
        "id": (peer.id.value,),
        "issuer": (peer.issuer_cn,),
        "ou": peer.ou,
        "o": peer.o,
        **{f"attr.{name}": (value,) for name, value in attributes.items()},
    }


def role_matches(role: Role, facts: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether every glob of the role fits a value of its fact."""
    return all(any(glob.matches(value) for value in facts.get(fact, ())) for fact, glob in role.match.items())


def token_values(peer: Peer, attributes: Mapping[str, str]) -> dict[str, str]:
    """The values that can fill a topic level. Two ou are no value: a rule must not choose between them."""
    values = {"id": peer.id.value, "issuer": peer.issuer_cn, **{f"attr.{k}": v for k, v in attributes.items()}}
    if len(peer.ou) == 1:
        values["ou"] = peer.ou[0]
    return {name: value for name, value in values.items() if is_usable(value)}


def _warnings(loaded: Loaded, file: str) -> tuple[str, ...]:
    warnings = []
    if not loaded.roles:
        warnings.append(f"{file}: no [[role]]: every connection is refused")
    if not loaded.issuers:
        warnings.append(f"{file}: no [[issuer]]: every trusted issuer may name every id")
    return tuple(warnings)


def _named(text: str) -> str:
    return f'"{sanitise(text, 80)}"'
