"""The shadow policy at work: its differences go to the audit log, its figures survive reloads of other files.

Spec: `[policy] shadow_file` in docs/gateway.md; how it compares stands in `gateway/policy/shadow.py`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.audit import AuditLog
    from gateway.policy.shadow import Difference
    from gateway.security import SecurityState


def tell_differences(state: SecurityState, audit: AuditLog, before: SecurityState | None = None) -> None:
    """Have differences of `state`'s shadow, if it has one, audited; `before` is the set that it replaces."""
    shadow = state.shadow
    if shadow is None:
        return
    if before is not None and before.shadow is not None:
        shadow.resume(before.shadow)
    shadow.tell = partial(_write, audit)


def _write(audit: AuditLog, difference: Difference) -> None:
    audit.write(
        "shadow",
        peer=difference.peer,
        client_id=difference.client_id,
        reason=difference.reason,
        detail=difference.detail,
        rule=f"{difference.role} {difference.rule}".strip(),
        action=str(difference.action),
        topic=difference.topic,
        verdict=difference.kind,
    )
