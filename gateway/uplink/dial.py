"""Making a connection: the blocking part on a thread, everything within its time, one sentence when it fails.

A thread that takes too long (a name server that does not answer, a peer that drips its handshake) is left to itself
and closes what it got; the next attempt has a thread of its own, and no two attempts begin within a backoff.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Final

from gateway.uplink.connection import Connection, Endpoint, Owner, why_of
from mtls.errors import Fault

if TYPE_CHECKING:
    import ssl

CONNECT_TIMEOUT_S: Final = 30.0  # of name, TCP and TLS together
CONNACK_TIMEOUT_S: Final = 10.0


async def open_connection(endpoint: Endpoint, context: ssl.SSLContext, owner: Owner) -> Connection:
    """Connect, with CONNACK; Fault says in one sentence why not."""
    connection = Connection(endpoint, context, owner)
    try:
        await _dial(connection)
        connection.attach()
        async with asyncio.timeout(CONNACK_TIMEOUT_S):
            await connection.connack
    except BaseException as error:
        connection.abandon()
        if isinstance(error, TimeoutError):
            raise Fault("it did not answer CONNECT in time") from error
        if isinstance(error, Exception) and not isinstance(error, Fault):
            raise Fault(why_of(error)) from error  # a name that Python cannot encode is a ValueError, for one
        raise
    return connection


async def _dial(connection: Connection) -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    left = threading.Event()

    def tell(error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(None)

    def dial() -> None:
        error: Exception | None = None
        try:
            connection.dial()
        except Exception as caught:
            error = caught
        if left.is_set():
            connection.close_socket()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=dial, name="uplink-connect", daemon=True).start()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await done
    except TimeoutError as error:
        raise Fault(f"no connection within {CONNECT_TIMEOUT_S:g} s") from error
    finally:
        left.set()
