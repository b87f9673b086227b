"""An HTTP server that bounds what a client can cost: connections, time, header sizes. One answer per connection.

aiohttp does the HTTP; who serves what is the caller's. Imported only where something is served.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

MAX_LINE_BYTES: Final = 4096  # request line, and each header field; our clients send a few hundred bytes
MAX_HEADERS: Final = 32

_http_log = logging.getLogger("mqtt_gateway.http")
_http_log.setLevel(logging.CRITICAL)  # what somebody sends that is no request is not worth a traceback


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Connections at a time, and seconds from the start of one to the last byte of its answer."""

    max_clients: int
    request_timeout_s: float


class BoundedServer(web.Server):
    """aiohttp's server with a bound on connections, and on the time of each: a slow client is cut."""

    def __init__(self, answer: Callable[[web.BaseRequest], Any], limits: HttpLimits) -> None:
        super().__init__(
            answer,
            logger=_http_log,
            access_log=None,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=0,
        )
        self._limits = limits
        self._deadlines: dict[web.RequestHandler, asyncio.TimerHandle] = {}

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self._deadlines) >= self._limits.max_clients:
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._deadlines[handler] = loop.call_later(self._limits.request_timeout_s, transport.abort)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        deadline = self._deadlines.pop(handler, None)
        if deadline is not None:
            deadline.cancel()


def refusal(status: int, **headers: str) -> web.Response:
    """A status and nothing more to say."""
    return web.Response(status=status, text=f"{status}\n", headers=headers)
