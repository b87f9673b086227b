"""Golden cases: what a policy must answer, written down beside it and asked on the broker's own code path.

A case names who (id and issuing CA), an action, a topic (or, to connect, a client identifier) and the expected answer.
Who is asked about needs no certificate: the facts of the case stand for it. A case file is read as strictly as a
policy, because a case that is silently skipped proves nothing. Spec: docs/policy.md.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from gateway.policy.decide import Grants
from gateway.policy.model import Action
from gateway.policy.policy import Policy
from gateway.policy.table import Document, Table
from gateway.policy.toml_lines import Lines
from mtls.errors import ConfigFault, Reason, Refusal
from mtls.identity import DeviceId
from mtls.judgement import Peer
from mtls.keystore import read_limited
from mtls.terminal import sanitise

MAX_CASES_BYTES: Final = 16 * 1024 * 1024
CASE_KEYS = ("who", "action", "topic", "client_id", "expect", "why", "ou", "o", "attr.", "attr", "spki_sha256")
EXPECT: tuple[Literal["allow", "deny"], ...] = ("allow", "deny")
_ANY_DAY = datetime(2000, 1, 1, tzinfo=UTC)  # dates are not the policy's to judge


@dataclass(frozen=True, slots=True)
class Case:
    """One question with its expected answer. `client_id` None: one that the policy allows."""

    line: int
    id: str
    issuer: str
    action: Action
    topic: str
    client_id: str | None
    expect: Literal["allow", "deny"]
    why: str
    ou: tuple[str, ...] = ()
    o: tuple[str, ...] = ()
    attributes: Mapping[str, str] | None = None
    spki_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What the policy answered to a case."""

    case: Case
    got: Literal["allow", "deny"]
    reason: Reason
    detail: str

    @property
    def passed(self) -> bool:
        return self.got == self.case.expect

    def __str__(self) -> str:
        case = self.case
        asked = f"client id {case.client_id!a}" if case.action is Action.CONNECT else sanitise(case.topic)
        why = f" ({sanitise(case.why)})" if case.why else ""
        told = sanitise(f"{self.reason} {self.detail}".strip())
        return (
            f"line {case.line}: {sanitise(case.id)} of {sanitise(case.issuer)}: {case.action} {asked}:"
            f" expected {case.expect}{why}, got {self.got}: {told}"
        )


@dataclass(frozen=True, slots=True)
class CaseReport:
    """The answers to all cases of a file."""

    file: str
    results: tuple[CaseResult, ...]

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        return tuple(result for result in self.results if not result.passed)

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0

    def to_text(self) -> str:
        """A line for every difference, and the count."""
        count = f"{len(self.results) - len(self.failed)} of {len(self.results)} cases as expected"
        return "\n".join([*(f"{self.file}: {result}" for result in self.failed), f"{self.file}: {count}"])

    def to_json(self) -> str:
        results = [{**asdict(result), "passed": result.passed} for result in self.results]
        report = {"file": self.file, "passed": not self.failed, "results": results}
        return json.dumps(report, indent=2)


def run_cases(policy: Policy, path: Path) -> CaseReport:
    """Ask the policy every case of a file; ConfigFault when the file is no case file."""
    return CaseReport(str(path), tuple(run_case(policy, case) for case in load_cases(path)))


def load_cases(path: Path) -> tuple[Case, ...]:
    """The cases of a file; ConfigFault for an unknown key, a wrong value or a file without cases."""
    try:
        text = read_limited(path, MAX_CASES_BYTES).decode()
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigFault(f"{path}: not valid TOML: {error}", hint="a case file is TOML in UTF-8") from None
    root = Table(Document(str(path), Lines(text)), (), "the case file", values, ("case",))
    cases = tuple(_case(table) for table in root.tables("case", "case", CASE_KEYS))
    if not cases:
        raise ConfigFault(f"{path}:1: there is no case", hint="a file without cases would prove nothing")
    return cases


def _case(table: Table) -> Case:
    who = table.texts("who")
    if len(who) != 2:
        raise table.fault(("who",), f"who of {table.title} is not [id, common name of the issuing CA]")
    action = table.choice("action", tuple(Action))
    expect = table.choice("expect", EXPECT)
    if action is None or expect is None:
        raise table.fault((), f"{table.title} has no {'action' if action is None else 'expect'}")
    if action is Action.CONNECT and ("topic" in table or "client_id" not in table):
        raise table.fault((), f"{table.title}: connect is asked with a client_id and without a topic")
    return Case(
        line=table.line(),
        id=who[0],
        issuer=who[1],
        action=action,
        topic="" if action is Action.CONNECT else table.text("topic"),
        client_id=table.optional_text("client_id"),
        expect=expect,
        why=table.optional_text("why") or "",
        ou=tuple(table.texts("ou")),
        o=tuple(table.texts("o")),
        attributes=table.attributes("attr"),
        spki_sha256=table.optional_text("spki_sha256"),
    )


def run_case(policy: Policy, case: Case) -> CaseResult:
    """Ask the policy one case."""
    try:
        device_id = DeviceId(case.id)
    except ValueError as error:
        return CaseResult(case, "deny", Reason.IDENTITY_MALFORMED, str(error))
    spki = case.spki_sha256 if case.spki_sha256 is not None else _only_key(policy, case.issuer)
    peer = Peer(device_id, case.issuer, spki, case.ou, case.o, "", "", _ANY_DAY, _ANY_DAY, b"")
    attributes = case.attributes or {}
    client_id = policy.usual_client_id(peer, attributes) if case.client_id is None else case.client_id
    verdict = policy.admit(peer, client_id, attributes)
    if isinstance(verdict, Refusal):
        return CaseResult(case, "deny", verdict.reason, verdict.detail)
    return _asked(case, verdict)


def _asked(case: Case, grants: Grants) -> CaseResult:
    decision = grants.decide(case.action, case.topic)
    place = f"{decision.role} {decision.rule} line {decision.line}" if decision.line else decision.rule
    return CaseResult(case, "allow" if decision.allowed else "deny", decision.reason, place)


def _only_key(policy: Policy, issuer_cn: str) -> str:
    """The key of the CA of this name, when the policy names just one: `who` then means that CA."""
    keys = {issuer.spki_sha256 for issuer in policy.issuers if issuer.subject_cn == issuer_cn}
    return keys.pop() if len(keys) == 1 else ""
