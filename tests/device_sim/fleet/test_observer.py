"""A run ends when the observer has heard what was acknowledged, and not before; but it does end."""

from __future__ import annotations

import asyncio
import time

import pytest

from device_sim.fleet import observer
from device_sim.fleet.figures import Deliveries


def test_what_is_still_on_its_way_is_waited_for() -> None:
    """An observer on a busy machine hears later than the devices get their acknowledgements."""

    async def run() -> int:
        deliveries = Deliveries()
        for number in range(3):
            deliveries.acknowledge("t", b"%d" % number)
            asyncio.get_running_loop().call_later(0.2 * (number + 1), deliveries.hear, "t", b"%d" % number)
        await observer.until_heard([deliveries])
        return deliveries.lost

    assert asyncio.run(run()) == 0


def test_what_never_comes_is_lost_after_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: one of two arrives, and then nothing more."""
    monkeypatch.setattr(observer, "QUIET_S", 0.3)

    async def run() -> int:
        deliveries = Deliveries()
        deliveries.acknowledge("t", b"lost")
        deliveries.acknowledge("t", b"late")
        asyncio.get_running_loop().call_later(0.1, deliveries.hear, "t", b"late")
        await observer.until_heard([deliveries])
        return deliveries.lost

    began = time.monotonic()
    assert asyncio.run(run()) == 1
    assert time.monotonic() - began < observer.HEARD_S
