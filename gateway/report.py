"""What the commands print: tables of at most 80 columns for people, JSON for programs.

Text that came from a peer or a certificate is made safe before it is shown.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from gateway.listening import address_text
from gateway.uplink.shown import lines as uplink_lines
from gateway.uplink.shown import size_text, time_text
from mtls.profiles import common_name, spki_sha256
from mtls.terminal import sanitise

if TYPE_CHECKING:
    from gateway.config import GatewayConfig
    from gateway.crl_fetch import FetchReport
    from gateway.security import SecurityState
    from mtls.errors import Refusal
    from mtls.revocation import CrlEntry

WIDTH: Final = 80
MAX_VALUE_CHARS: Final = 600
KEY_CHARS: Final = 16  # of a CA's spki_sha256


def as_json(value: object) -> str:
    """Indented JSON; ASCII only, so that no terminal is steered by it."""
    return json.dumps(value, indent=2, default=str)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of text within 80 characters; the widest column gives way."""
    cells = [list(columns), *([sanitise(_cell(value), WIDTH) for value in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        widest = max(range(len(widths)), key=widths.__getitem__)
        widths[widest] -= 1
    return "\n".join(
        "  ".join(_cut(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def pairs(rows: Sequence[tuple[str, object]]) -> str:
    """`key  value` lines, the values in one column; a long one goes on below itself."""
    width = max((len(key) for key, _ in rows), default=0) + 2
    lines: list[str] = []
    for key, value in rows:
        shown = sanitise(_cell(value), MAX_VALUE_CHARS)
        lines += textwrap.wrap(shown, WIDTH, initial_indent=key.ljust(width), subsequent_indent=" " * width)
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return str(value)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def check_config_row(config: GatewayConfig, state: SecurityState, store_warnings: Sequence[str]) -> dict[str, Any]:
    """What `check-config` found."""
    return {
        "config": str(config.path),
        "bind": [address_text(host, port) for host, port in config.listener.bind],
        "server_certificate_not_after": state.server_not_after.isoformat(),
        "roots": [common_name(ca.subject) for ca in state.trust.roots],
        "issuing_cas": [common_name(ca.subject) for ca in state.trust.issuing],
        "certificates": certificate_rows(state),
        "crls": crl_rows(state, state.loaded_at),
        "denied": len(state.deny),
        "policy": state.policy.file,
        "policy_version": state.policy.version,
        "shadow_policy": state.shadow.policy.file if state.shadow is not None else None,
        "shadow_policy_version": state.shadow.policy.version if state.shadow is not None else None,
        "roles": [role.name for role in state.policy.roles],
        "plugins": sorted(config.plugins),
        "store": str(config.store.path) if config.store is not None else None,
        "upstream": address_text(config.uplink.host, config.uplink.port) if config.uplink is not None else None,
        "warnings": [*state.warnings, *store_warnings],
    }


def check_config_text(row: Mapping[str, Any]) -> str:
    """The same for people."""
    crls = [f"{crl['issuer']} no. {crl['number']} until {_day(crl['next_update'])}" for crl in row["crls"]]
    return pairs(
        [
            ("configuration", row["config"]),
            ("listens on", row["bind"]),
            ("server certificate", f"until {_day(row['server_certificate_not_after'])}"),
            ("roots", row["roots"]),
            ("issuing CAs", row["issuing_cas"]),
            *(("CRL", line) for line in crls),
            ("deny list", f"{row['denied']} entries"),
            ("policy", f"{row['policy']}, version {row['policy_version']}"),
            *(
                [("shadow policy", f"{row['shadow_policy']}, version {row['shadow_policy_version']}")]
                if row["shadow_policy"]
                else ()
            ),
            ("roles", row["roles"][:10] + ([f"and {len(row['roles']) - 10} more"] if len(row["roles"]) > 10 else [])),
            *((("plugins", row["plugins"]),) if row["plugins"] else ()),
            *((("store", row["store"]),) if row["store"] else ()),
            *((("upstream", row["upstream"]),) if row["upstream"] else ()),
        ]
    )


def refusal_row(refusal: Refusal) -> dict[str, Any]:
    """A certificate that would not be admitted."""
    return {"allowed": False, "reason": str(refusal.reason), "detail": sanitise(refusal.detail, 400)}


def certificate_rows(state: SecurityState) -> list[dict[str, Any]]:
    """The certificates that must not expire unnoticed. `key` tells CAs of one name apart."""
    server = {"kind": "server", "subject": "", "key": "", "not_after": state.server_not_after.isoformat()}
    authorities = [("root", ca) for ca in state.trust.roots] + [("issuing", ca) for ca in state.trust.issuing]
    return [
        server,
        *(
            {
                "kind": kind,
                "subject": common_name(ca.subject),
                "key": spki_sha256(ca)[:KEY_CHARS],
                "not_after": ca.not_valid_after_utc.isoformat(),
            }
            for kind, ca in authorities
        ),
    ]


def crl_rows(state: SecurityState, now: datetime) -> list[dict[str, Any]]:
    """The CRLs in force."""
    entries = state.crls.entries if state.crls is not None else {}
    return [
        {**crl_row(entry), "key": key[:KEY_CHARS], "stale": entry.next_update is not None and now > entry.next_update}
        for key, entry in entries.items()
    ]


def crl_row(entry: CrlEntry) -> dict[str, Any]:
    """One CRL."""
    return {
        "issuer": entry.issuer_cn,
        "number": entry.number,
        "this_update": entry.this_update.isoformat(),
        "next_update": entry.next_update.isoformat() if entry.next_update is not None else None,
        "revoked": len(entry.revoked),
    }


def fetch_row(report: FetchReport) -> dict[str, Any]:
    """What `crl fetch` did."""
    return {"replaced": report.replaced, "file": str(report.file), "crls": [crl_row(entry) for entry in report.crls]}


def fetch_text(row: Mapping[str, Any]) -> str:
    """The same for people."""
    lines = [
        [crl["issuer"], crl["number"], crl["revoked"], _day(crl["this_update"]), _day(crl["next_update"])]
        for crl in row["crls"]
    ]
    return table(["ISSUER", "NUMBER", "REVOKED", "THIS UPDATE", "NEXT UPDATE"], lines)


def status_text(status: Mapping[str, Any]) -> str:
    """The running gateway in some twenty lines."""
    last = status["last_reload"]
    reload_text = "none" if last is None else f"{last['cause']}: {'done' if last['ok'] else last['error']}"
    crls = [
        f"{crl['issuer']} no. {crl['number']}, {crl['revoked']} revoked, until {_day(crl['next_update'])}"
        + (" STALE" if crl["stale"] else "")
        for crl in status["crls"]
    ]
    counts = [(f"  {name}", number) for name, number in sorted(status["counts"].items())]
    return pairs(
        [
            ("version", f"{status['version']}, pid {status['pid']}, up {status['uptime_s']:.0f} s"),
            ("listens on", status["addresses"]),
            ("connections", status["connections"]),
            ("sessions", status["sessions"]),
            ("subscriptions", status["subscriptions"]),
            ("retained", f"{status['retained']} messages, {size_text(status['retained_bytes'])}"),
            ("messages", f"{status['messages_in']} in, {status['messages_out']} out, {status['queued']} queued"),
            *_store_pairs(status["store"]),
            ("loop lag", f"{status['loop_lag_s'] * 1000:.1f} ms"),
            ("policy", f"{status['policy']}, version {status['policy_version']}"),
            *(uplink_lines(status["uplink"]) if status["uplink"] is not None else ()),
            *(_shadow_pairs(status["shadow"]) if status["shadow"] is not None else ()),
            ("time", _time_line(status["clock"])),
            ("loaded", status["loaded_at"]),
            ("last reload", reload_text),
            ("server certificate", f"until {_day(status['server_certificate_not_after'])}"),
            *(("CRL", line) for line in crls or ["none"]),
            ("deny list", f"{status['denied']} entries"),
            ("audit", f"{status['audit_lines_suppressed']} suppressed, {status['audit_lines_lost']} lost"),
            *counts,
        ]
    )


def _store_pairs(store: Mapping[str, Any] | None) -> list[tuple[str, object]]:
    """What is on disk, and whether more is accepted."""
    if store is None:
        return [("store", "none: what is acknowledged is lost when the gateway ends")]
    state = "accepting" if store["accepting"] else f"WITHHOLDING: {store['trouble'] or 'no room'}"
    used, most, free = (size_text(store[key]) for key in ("used_bytes", "max_bytes", "free_bytes"))
    queue = f"{store['queued']} messages, {size_text(store['queued_bytes'])}, oldest {time_text(store['oldest_s'])}"
    lost = f"{store['withheld']} withheld now, {store['evicted']} of drop-oldest topics dropped"
    return [
        ("store", f"{store['path']}, {state}"),
        *([("store DAMAGED", store["damaged"])] if store["damaged"] else []),
        *([("store set aside", store["set_aside"])] if store["set_aside"] else []),
        ("  size", f"{used} of {most}, {free} free on the disk"),
        ("  queued", queue),
        ("  full", lost),
        ("  commits", f"{store['commits']}, {store['commit_s'] / max(1, store['commits']) * 1000:.1f} ms each"),
    ]


def _time_line(clock: Mapping[str, Any]) -> str:
    """How much is known of the time, and why not more."""
    line = f"{clock['state']} since {_day(clock['since'])}"
    if clock["doubt"]:
        line += f": {clock['doubt']}; not before {_day(clock['floor'])} ({clock['floor_from']})"
    return line


def _shadow_pairs(shadow: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What the shadow policy would have decided otherwise."""
    compared = f"{shadow['compared']} decisions compared, {shadow['faults']} faults"
    differences = [
        (f"  {each['action']} {each['kind'].replace('_', ' ')}", each["count"]) for each in shadow["differences"]
    ]
    return [("shadow policy", f"{shadow['policy']}, version {shadow['policy_version']}, {compared}"), *differences]


def sessions_text(sessions: Sequence[Mapping[str, Any]]) -> str:
    """One line per session."""
    rows = [
        [
            each["id"],
            each["client_id"] if each["client_id"] != each["id"] else "=",
            "up" if each["connected"] else "stored",
            each["address"],
            each["roles"],
            each["subscriptions"],
            each["inflight"],
            each["queued"],
        ]
        for each in sorted(sessions, key=lambda each: (each["id"], each["client_id"]))
    ]
    return table(["ID", "CLIENT ID", "STATE", "ADDRESS", "ROLES", "SUBS", "INFL", "QUEUED"], rows)


def reload_text(row: Mapping[str, Any]) -> str:
    """What a reload did."""
    lines = [
        f"policy {row['policy_version']} is in force: {row['closed']} connections closed,"
        f" {row['sessions_discarded']} stored sessions discarded",
        f"{row['subscriptions_removed']} subscriptions and {row['wills_removed']} wills lost their right",
        *(f"closed {each['id']}: {each['reason']}" for each in row["closed_connections"]),
    ]
    return "\n".join(sanitise(line, 200) for line in lines)


def deny_text(row: Mapping[str, Any]) -> str:
    """The deny list, one entry per line."""
    kinds = (("id", "ids"), ("certificate serial", "certificate_serials"), ("fingerprint", "fingerprints"))
    return "\n".join(sanitise(f"{name}  {value}") for name, key in kinds for value in row[key])


def _day(moment: str | None) -> str:
    return "-" if moment is None else f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M}"
