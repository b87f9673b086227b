"""From the text of a policy file to its roles, issuers and identity rule; strict, so that a slip denies and says where.

Refused: an empty file, an unknown key, a value of the wrong type, a role that matches nobody in particular, a topic
that is no filter, a token that does not fill its level, `$share`, two roles of one name, an issuer named twice. The
first fault is the one reported. Spec: docs/policy.md.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.policy.globs import Glob, Token, is_named, parse_glob
from gateway.policy.model import (
    FACTS,
    ON_DENIED_PUBLISH,
    QUEUE_FULL,
    TOKENS,
    WILL_ON_REVOKE,
    Action,
    IssuerRule,
    Level,
    Limits,
    Role,
    Rule,
)
from gateway.policy.table import Document, Table, quoted
from gateway.policy.toml_lines import Lines
from gateway.policy.topics import parse_filter
from mtls.errors import ConfigFault
from mtls.identity import IdentityRule, IdentitySource

VERSION = 1
MAX_NAME = 64
MAX_PACKET_BYTES = 268_435_460  # the largest packet of MQTT 3.1.1: 5 bytes of header and 256 MB - 1 (section 2.2.3)
MAX_COUNT = 1_000_000_000  # for limits that count: more is a slip of the keyboard

SOURCES: tuple[IdentitySource, ...] = ("cn", "san-uri", "san-dns")
LISTS = (Action.PUBLISH, Action.RETAIN, Action.WILL, Action.SUBSCRIBE, Action.RECEIVE)
CLIENT_ID_TOKENS = tuple(name for name in TOKENS if name != "client_id")

ROOT_KEYS = ("version", "identity", "issuer", "role")
IDENTITY_KEYS = ("source", "pattern", "client_id")
ISSUER_KEYS = ("subject_cn", "spki_sha256", "ids")
ROLE_KEYS = (
    *("name", "match", "client_id", "publish", "retain", "will", "subscribe", "receive", "deny"),
    *("on_denied_publish", "will_on_revoke", "limits"),
)
DENY_KEYS = ("action", "topic")
LIMIT_KEYS = ("publish_rate", "max_packet_bytes", "max_sessions", "queue_messages", "queue_full")

_SPKI = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the file says, checked, not yet indexed."""

    identity: IdentityRule
    client_ids: tuple[Glob, ...]
    issuers: tuple[IssuerRule, ...]
    roles: tuple[Role, ...]


def load_text(text: str, file: str) -> Loaded:
    """Read a policy; ConfigFault with file, line, table and key for the first thing that is wrong."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigFault(f"{file}: not valid TOML: {error}", hint="mend the line that is named") from None
    except RecursionError:
        raise ConfigFault(f"{file}: not valid TOML: nested too deeply", hint="a policy has four levels") from None
    if not values:
        raise ConfigFault(f"{file}:1: the policy is empty", hint="it would deny all: start from examples/policy.toml")
    return _Reader(Table(Document(file, Lines(text)), (), "the policy", values, ROOT_KEYS)).loaded()


class _Reader:
    """One reading of one file. Counts the rules; keeps one copy of what many roles have in common."""

    __slots__ = ("_root", "_rules", "_tokens", "_topics")

    def __init__(self, root: Table) -> None:
        self._root = root
        self._rules = 0
        self._tokens: dict[str, Token] = {}
        self._topics: dict[str, tuple[Level, ...]] = {}

    def loaded(self) -> Loaded:
        if self._root.integer("version", VERSION) is None:
            raise self._root.fault((), f"the policy has no version, write version = {VERSION}")
        identity, client_ids = self._identity()
        return Loaded(identity, client_ids, self._issuers(), self._roles())

    def _identity(self) -> tuple[IdentityRule, tuple[Glob, ...]]:
        table = self._root.table("identity", IDENTITY_KEYS)
        usual = (parse_glob("{id}", CLIENT_ID_TOKENS),)
        if table is None:
            return IdentityRule(), usual
        rule = IdentityRule(source=table.choice("source", SOURCES) or "cn")
        if "pattern" in table:
            pattern = table.text("pattern")
            try:
                rule = IdentityRule(rule.source, re.compile(pattern))
            except (re.error, OverflowError, RecursionError) as error:
                raise table.invalid(("pattern",), f"not a regular expression: {error}") from None
        return rule, self._client_ids(table) or usual

    def _client_ids(self, table: Table) -> tuple[Glob, ...] | None:
        if "client_id" not in table:
            return None
        texts = table.texts("client_id")
        if not texts:
            raise table.invalid(("client_id",), "the list is empty and would admit nobody")
        return tuple(table.parsed(("client_id", index), _client_id, text) for index, text in enumerate(texts))

    def _issuers(self) -> tuple[IssuerRule, ...]:
        issuers: list[IssuerRule] = []
        for table in self._root.tables("issuer", "[[issuer]]", ISSUER_KEYS):
            issuer = self._issuer(table)
            for other in (other for other in issuers if other.subject_cn == issuer.subject_cn):
                if other.spki_sha256 == issuer.spki_sha256 or not (other.spki_sha256 and issuer.spki_sha256):
                    message = f"{table.title} stands on line {other.line} already"
                    raise table.fault((), message, "join the two, or give each its own spki_sha256")
            issuers.append(issuer)
        return tuple(issuers)

    def _issuer(self, table: Table) -> IssuerRule:
        spki = table.text("spki_sha256") if "spki_sha256" in table else ""
        if spki and not _SPKI.fullmatch(spki):
            raise table.invalid(("spki_sha256",), f"{quoted(spki)} is not 64 lower-case hex digits")
        ids = tuple(table.parsed(("ids", index), _fact_glob, text) for index, text in enumerate(table.texts("ids")))
        if not ids:
            raise table.fault((), f'{table.title} names no ids, write ids = ["*"] for all')
        return IssuerRule(table.text("subject_cn"), spki, ids, table.line())

    def _roles(self) -> tuple[Role, ...]:
        roles: list[Role] = []
        lines: dict[str, int] = {}
        for table in self._root.tables("role", "[[role]]", ROLE_KEYS):
            role = self._role(table, len(roles))
            if role.name in lines:
                raise table.fault(("name",), f"{table.title} stands on line {lines[role.name]} already")
            lines[role.name] = role.line
            roles.append(role)
        return tuple(roles)

    def _role(self, table: Table, number: int) -> Role:
        name = table.text("name")
        if len(name) > MAX_NAME or not name.isprintable():
            raise table.invalid(("name",), f"a name has 1 to {MAX_NAME} printable characters")
        rules = [rule for action in LISTS if action in table for rule in self._grants(table, action, number)]
        denies = list(self._denies(table, number))
        return Role(
            number=number,
            name=name,
            line=table.line(),
            match=self._match(table),
            rules=(*rules, *(rule for rule in denies if rule.levels)),
            denies_connect=next((rule for rule in denies if not rule.levels), None),
            client_ids=self._client_ids(table),
            limits=self._limits(table),
            on_denied_publish=table.choice("on_denied_publish", ON_DENIED_PUBLISH),
            will_on_revoke=table.choice("will_on_revoke", WILL_ON_REVOKE),
        )

    def _match(self, table: Table) -> dict[str, Glob]:
        match = table.table("match", (*FACTS, "attr"))
        globs: dict[str, Glob] = {}
        for path, value in match.flat().items() if match is not None else ():
            fact = ".".join(str(part) for part in path)
            if not is_named(fact, FACTS):
                raise table.fault(("match", *path), f"match of {table.title} has no fact {quoted(fact)}")
            if not isinstance(value, str):
                raise table.wrong(("match", *path), value, "a glob")
            globs[fact] = table.parsed(("match", *path), _fact_glob, value)
        if not globs:
            hint = 'write match = { id = "*" } for all'
            raise table.fault(("match",), f"{table.title} matches nobody in particular", hint)
        return globs

    def _grants(self, table: Table, action: Action, role: int) -> Iterator[Rule]:
        actions: tuple[Action, ...] = (action,)
        if action is Action.SUBSCRIBE and "receive" not in table:
            actions = (Action.SUBSCRIBE, Action.RECEIVE)
        for index, text in enumerate(table.texts(action.value)):
            levels = self._levels(table, (action.value, index), text)
            line = table.line(action.value, index)
            yield Rule(self._number(), role, f"{action}[{index}]", actions, line, text, levels)

    def _denies(self, table: Table, role: int) -> Iterator[Rule]:
        for index, deny in enumerate(table.tables("deny", f"deny of {table.title}", DENY_KEYS)):
            action = deny.choice("action", tuple(Action))
            if action is None:
                raise deny.fault((), f'{deny.title} has no "action"')
            levels: tuple[Level, ...] = ()
            text = ""
            if action is Action.CONNECT:
                if "topic" in deny:
                    raise deny.fault(("topic",), f"{deny.title}: connect has no topic")
            else:
                text = deny.text("topic")
                levels = self._levels(deny, ("topic",), text)
            actions = (Action.SUBSCRIBE, Action.RECEIVE) if action is Action.SUBSCRIBE else (action,)
            yield Rule(self._number(), role, f"deny[{index}]", actions, deny.line(), text, levels, denies=True)

    def _number(self) -> int:
        self._rules += 1
        return self._rules - 1

    def _levels(self, table: Table, below: tuple[str | int, ...], text: str) -> tuple[Level, ...]:
        known = self._topics.get(text)
        if known is None:
            levels = table.parsed(below, parse_filter, text)
            if levels[0] == "$share":
                raise table.invalid(below, "shared subscriptions are no part of MQTT 3.1.1")
            known = self._topics[text] = tuple(self._level(table, below, level) for level in levels)
        return known

    def _level(self, table: Table, below: tuple[str | int, ...], level: str) -> Level:
        if "{" not in level and "}" not in level:
            return level
        name = level[1:-1]
        if level[0] != "{" or level[-1] != "}" or "{" in name or "}" in name:
            raise table.invalid(below, f"a token fills a whole topic level, {quoted(level)} does not")
        if not is_named(name, TOKENS):
            known = ", ".join(f"{{{token}}}" if not token.endswith(".") else f"{{{token}NAME}}" for token in TOKENS)
            raise table.invalid(below, f"no token {quoted(level)}; there are {known}")
        return self._tokens.setdefault(name, Token(name))

    def _limits(self, table: Table) -> Limits:
        limits = table.table("limits", LIMIT_KEYS)
        if limits is None:
            return Limits()
        return Limits(
            publish_rate=limits.rate("publish_rate"),
            max_packet_bytes=limits.integer("max_packet_bytes", MAX_PACKET_BYTES),
            max_sessions=limits.integer("max_sessions", MAX_COUNT),
            queue_messages=limits.integer("queue_messages", MAX_COUNT),
            queue_full=limits.choice("queue_full", QUEUE_FULL),
        )


def _fact_glob(text: str) -> Glob:
    if not text:
        raise ValueError("the glob is empty and matches nothing")
    return parse_glob(text)


def _client_id(text: str) -> Glob:
    """The empty text is allowed: it stands for a client that sends no client identifier."""
    return parse_glob(text, CLIENT_ID_TOKENS)
