"""The store of one gateway, opened by its configuration and read once before the service begins.

Without a [store] table there is none: sessions, queues and retained messages live in memory, and what was acknowledged
is lost when the gateway ends. That is said at every start, and in the status.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from gateway.store.journal import Restored, restore
from gateway.store.place import check_place
from gateway.store.store import Store, StoreLimits
from gateway.uplink.spool import Found, count

if TYPE_CHECKING:
    from gateway.config import GatewayConfig, StoreConfig

NO_STORE: Final = "there is no [store] table: acknowledged messages live in memory, and are lost when the gateway ends"


@dataclass(frozen=True, slots=True)
class Kept:
    """An open store, its rules, and what was found in it: sessions with their queues, and the uplink's spool."""

    store: Store
    config: StoreConfig
    restored: Restored
    spooled: Found


def open_kept(config: GatewayConfig, now: datetime) -> Kept | None:
    """Open the configured store and read what is in it; None when there is none. Faults as `Store.open`."""
    rules = config.store
    if rules is None:
        return None
    store = Store.open(
        StoreLimits(
            path=rules.path,
            max_bytes=rules.max_bytes,
            min_free_bytes=rules.min_free_bytes,
            commit_interval_s=rules.commit_interval_ms / 1000,
            allow_volatile=rules.allow_volatile,
        ),
        now,
    )
    restored, spooled = store.load(lambda db: (restore(db), count(db)), now)
    return Kept(store, rules, restored, spooled)


def check_kept(config: GatewayConfig) -> list[str]:
    """The warnings that a start would give about the store's place, without opening it; ConfigFault as at a start."""
    if config.store is None:
        return [NO_STORE]
    return check_place(config.store.path, allow_volatile=config.store.allow_volatile)


def warnings_of(kept: Kept | None) -> list[str]:
    """What an operator must know about what is promised."""
    if kept is None:
        return [NO_STORE]
    store = kept.store
    aside = f"the store was damaged ({store.set_aside_why}); it is set aside as {store.set_aside}"
    return [*store.warnings, *([aside] if store.set_aside is not None else [])]
