"""The broker's side of a full store, without a client: what withholding costs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from gateway.audit import AuditLog
from gateway.broker.connection import Connection
from gateway.broker.packets import Publish
from gateway.broker.runtime import GatewayBroker
from gateway.config import GatewayConfig
from gateway.keeping import open_kept
from gateway.security import load_security
from tests.gateway.broker.doubles import peer
from tests.gateway.site import Site
from tests.support.pki import Pki

CONNECTIONS = 50
EACH = 20


class Weighed(bytes):
    """A payload that counts how often its length is asked for."""

    asked = 0

    def __len__(self) -> int:
        Weighed.asked += 1
        return super().__len__()


def test_looking_for_room_does_not_cost_more_for_every_message_that_waits(tmp_path: Path, pki: Pki) -> None:
    """Four times a second each withholding connection is looked at: not all messages of all of them, for each."""
    store = {"path": str(tmp_path / "gateway.db"), "allow_volatile": True, "min_free_bytes": 0}
    config = GatewayConfig.load(Site(tmp_path, pki, store=store).config_file)

    async def serve() -> None:
        kept = open_kept(config, datetime.now(UTC))
        with AuditLog(tmp_path / "audit.jsonl") as audit:
            broker = GatewayBroker(state=load_security(config), audit=audit, kept=kept)
            await broker.start()
            _withhold(broker)
            await broker.shutdown()

    asyncio.run(serve())


def _withhold(broker: GatewayBroker) -> None:
    """Without giving the loop a turn, so that nothing is measured or committed in between."""
    durability = broker.plane.durability
    assert durability is not None
    durability.store.accepting = False
    waiting = [Connection(broker.plane, peer(f"dev-{n}"), "", connect_max_bytes=100) for n in range(CONNECTIONS)]
    for connection in waiting:
        for number in range(1, EACH + 1):
            assert durability.withholds(connection, Publish("a/b", Weighed(b"payload"), 1, True, False, number))
    assert (Weighed.asked, durability.report()["withheld"]) == (CONNECTIONS * EACH, CONNECTIONS * EACH)
    durability.turn(0.0)
    assert Weighed.asked == CONNECTIONS * EACH
    for connection in waiting:
        durability.discard(connection)
    assert durability.report()["withheld"] == 0
