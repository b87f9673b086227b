"""Handshakes on threads: from an accepted socket to a TLS connection, or to the reason why not.

A handshake costs OpenSSL more than everything else that a connect needs, and OpenSSL works without the interpreter's
lock. So a few threads make them, as many as there are processors. All of them wait on one epoll, in which a socket is
armed for one event only: the thread that is free takes the next socket that is ready, makes one step and arms it
again. No thread waits for a peer, so a thousand silent ones occupy none; and no socket is ever with two threads.

Beginning, time limit and outcome belong to the event loop. Outcomes come in batches: a thread wakes the loop when no
socket is ready for it, or after STEPS steps, because in a storm a wake-up for each would have both wait for the
interpreter's lock. The first bytes of a client are often there when its handshake ends: the thread reads them too,
which saves the loop a turn. Nobody looks at them before the certificate is judged. It knows nothing of MQTT.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from gateway.broker.sealed import Sealed
from mtls.tls import proven_issuer

STEPS: Final = 16  # made by a thread before the loop is woken for outcomes, when it has no rest before; 8 ms here


class Handshake:
    """One handshake. When it has ended, `error` says why it failed; else `leaf_der` is the client's certificate and
    `proven_issuer` what `tls.proven_issuer` says of it.
    """

    __slots__ = ("address", "descriptor", "error", "expired", "leaf_der", "proven_issuer", "sealed", "timer")

    def __init__(self, sealed: Sealed, address: str) -> None:
        self.sealed = sealed
        self.address = address
        self.descriptor = sealed.sock.fileno()
        self.error: Exception | None = None
        self.leaf_der: bytes | None = None
        self.proven_issuer: bytes | None = None
        self.expired = False
        self.timer: asyncio.TimerHandle | None = None

    def expire(self) -> None:
        """Have its time end: the end of the stream fails the next step, in whichever thread makes it."""
        self.expired = True
        with contextlib.suppress(OSError):
            self.sealed.sock.shutdown(socket.SHUT_RDWR)


class Handshaker:
    """Makes server handshakes for one event loop and calls `ended` there with each, failed or not."""

    def __init__(self, ended: Callable[[Handshake], None], timeout_s: float) -> None:
        self._ended = ended
        self._timeout_s = timeout_s
        self._under_way: dict[int, Handshake] = {}  # by descriptor, until the loop has been told
        self._outcomes: deque[Handshake] = deque()
        self._told = False  # the loop has been woken for what is in `_outcomes`
        self._ending = False
        self._epoll = select.epoll()
        self._threads: list[threading.Thread] = []

    def open(self) -> None:
        """Start the threads; outcomes come to the running loop."""
        work = functools.partial(self._work, asyncio.get_running_loop())
        for number in range(len(os.sched_getaffinity(0))):
            thread = threading.Thread(target=work, name=f"handshake-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def begin(self, sock: socket.socket, context: ssl.SSLContext, address: str) -> None:
        """Begin one on a non-blocking socket, which is the handshake's from now on; OSError when that is gone."""
        handshake = Handshake(Sealed(sock, context), address)
        handshake.timer = asyncio.get_running_loop().call_later(self._timeout_s, handshake.expire)
        self._under_way[handshake.descriptor] = handshake
        try:
            self._epoll.register(handshake.descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        except OSError:
            self._forget(handshake)
            sock.close()
            raise

    def close(self) -> list[Handshake]:
        """End the threads, each after the step it is in; the handshakes that are abandoned."""
        self._ending = True
        bell = os.eventfd(1)  # readable from the beginning, and not armed for one thread only
        self._epoll.register(bell, select.EPOLLIN)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._epoll.close()
        os.close(bell)
        self._outcomes.clear()
        abandoned = list(self._under_way.values())
        for handshake in abandoned:
            self._forget(handshake)
        return abandoned

    def _forget(self, handshake: Handshake) -> None:
        del self._under_way[handshake.descriptor]
        if handshake.timer is not None:
            handshake.timer.cancel()
            handshake.timer = None

    # in a thread

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        steps = 0
        while not self._ending:
            ready = self._epoll.poll(0, 1) if steps < STEPS else []
            if not ready:
                self._wake(loop)
                steps = 0
                ready = self._epoll.poll(maxevents=1)
            for descriptor, _ in ready:
                steps += 1
                handshake = self._under_way.get(descriptor)
                if handshake is not None:  # the bell rings for nobody
                    self._advance(handshake)

    def _advance(self, handshake: Handshake) -> None:
        """Make one step, then wait for the peer again or leave the outcome for the loop."""
        try:
            wanted = _step(handshake)
        except Exception as error:  # whatever it is, it ends this handshake and not the thread
            handshake.error = error
            wanted = 0
        if wanted:
            self._epoll.modify(handshake.descriptor, wanted | select.EPOLLONESHOT)
            return
        self._epoll.unregister(handshake.descriptor)
        self._outcomes.append(handshake)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the loop take the outcomes, unless it has been asked to."""
        if self._outcomes and not self._told:
            self._told = True
            loop.call_soon_threadsafe(self._tell)

    # on the loop

    def _tell(self) -> None:
        self._told = False  # before the queue is emptied: what comes afterwards wakes the loop again
        while self._outcomes:
            handshake = self._outcomes.popleft()
            self._forget(handshake)
            if handshake.expired:
                handshake.error = TimeoutError()
            try:
                self._ended(handshake)
            except Exception as fault:  # of ours; the others' outcomes are told all the same
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a fault after a handshake", "exception": fault}
                )


def _step(handshake: Handshake) -> int:
    """One step: the event of the socket that the next one waits for, or 0 when the handshake is complete."""
    wanted = handshake.sealed.advance()
    if not wanted:
        handshake.leaf_der = handshake.sealed.tls.getpeercert(binary_form=True)
        handshake.proven_issuer = proven_issuer(handshake.sealed.tls)
    return wanted
