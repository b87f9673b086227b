"""One epoll for many descriptors: whose handler is called, how often, and what comes after them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import pytest

from gateway.broker.poller import READ, ROUNDS, WRITE, Poller
from tests.support.gateway import DEADLINE_S

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Ends]]:
    """Two connected pairs; the first of each is watched."""
    with ExitStack() as stack:
        made = [socket.socketpair() for _ in range(2)]
        for pair in made:
            for end in pair:
                end.setblocking(False)
                stack.enter_context(end)
        yield made


def run(script: Callable[[Poller, list[str]], Awaitable[None]]) -> list[str]:
    """What happened, in order, `after` among it."""
    told: list[str] = []

    async def main() -> None:
        poller = Poller(lambda: told.append("after"))
        poller.open()
        try:
            async with asyncio.timeout(DEADLINE_S):
                await script(poller, told)
        finally:
            poller.close()

    asyncio.run(main())
    return told


async def until(true: Callable[[], object]) -> None:
    """Let the loop turn until something has happened in it."""
    while not true():  # noqa: ASYNC110 - the poller under test has no event to wait for
        await asyncio.sleep(0)


def test_all_ready_handlers_come_before_what_they_caused(pairs: list[Ends]) -> None:
    """Two readable descriptors are handled in one turn, and `after` is called once, when both are."""

    async def script(poller: Poller, told: list[str]) -> None:
        for number, (ours, theirs) in enumerate(pairs):

            def take(events: int, ours: socket.socket = ours, number: int = number) -> None:
                assert events & READ
                assert poller.turning
                told.append(f"{number} {ours.recv(10).decode()}")

            poller.watch(ours.fileno(), READ, take)
            theirs.send(b"x")
        await until(lambda: "after" in told)
        assert not poller.turning

    told = run(script)
    assert sorted(told[:2]) == ["0 x", "1 x"]
    assert told[2:] == ["after"]


def test_a_descriptor_stopped_in_the_same_turn_is_not_called(pairs: list[Ends]) -> None:
    """Both are ready; whoever comes first stops the other, whose handler is never called."""

    async def script(poller: Poller, told: list[str]) -> None:
        def stop(events: int) -> None:
            told.append("called")
            for ours, _ in pairs:
                poller.watch(ours.fileno(), 0, stop)

        for ours, theirs in pairs:
            poller.watch(ours.fileno(), READ, stop)
            theirs.send(b"x")
        await until(lambda: "after" in told)
        await asyncio.sleep(0)

    assert run(script) == ["called", "after"]


def test_what_is_watched_for_can_change(pairs: list[Ends]) -> None:
    """Writable is told only once it is asked for."""
    ours, _ = pairs[0]

    async def script(poller: Poller, told: list[str]) -> None:
        def ready(events: int) -> None:
            told.append("writable" if events == WRITE else "other")
            poller.watch(ours.fileno(), 0, ready)

        poller.watch(ours.fileno(), READ, ready)
        for _ in range(3):
            await asyncio.sleep(0)
        assert told == []
        poller.watch(ours.fileno(), READ | WRITE, ready)
        await until(lambda: told)

    assert run(script) == ["writable", "after"]


def test_the_loop_has_its_own_while_there_is_always_more(pairs: list[Ends]) -> None:
    """A descriptor that stays readable is called a few times, then the loop's other work comes."""
    ours, theirs = pairs[0]
    theirs.send(b"x")

    async def script(poller: Poller, told: list[str]) -> None:
        poller.watch(ours.fileno(), READ, lambda events: told.append("read"))
        asyncio.get_running_loop().call_later(0, told.append, "timer")
        await until(lambda: "timer" in told)

    told = run(script)
    assert told[: told.index("timer")].count("read") <= 2 * ROUNDS


def test_a_fault_of_a_handler_does_not_keep_back_what_others_caused(pairs: list[Ends]) -> None:
    """The loop hears of it, and `after` is called all the same."""
    ours, theirs = pairs[0]
    faults: list[object] = []

    async def script(poller: Poller, told: list[str]) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))

        def fail(events: int) -> None:
            poller.watch(ours.fileno(), 0, fail)
            raise RuntimeError("of the test")

        poller.watch(ours.fileno(), READ, fail)
        theirs.send(b"x")
        await until(lambda: faults)
        assert not poller.turning

    assert run(script) == ["after"]
    assert [str(fault) for fault in faults] == ["of the test"]


def test_a_closed_poller_calls_nobody(pairs: list[Ends]) -> None:
    """Closed twice, with a readable descriptor: no handler, no fault."""
    ours, theirs = pairs[0]

    async def script(poller: Poller, told: list[str]) -> None:
        poller.watch(ours.fileno(), READ, lambda events: told.append("read"))
        theirs.send(b"x")
        poller.close()
        poller.close()
        for _ in range(3):
            await asyncio.sleep(0)

    assert run(script) == []
