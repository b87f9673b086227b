"""GatewayBroker: amqtt's broker framework on a data plane that keeps its word.

What stays amqtt's: `Broker`, its configuration, `start` and `shutdown`, the plugin manager, `BrokerContext` and the
events. What is ours: connections, packets, sessions, routing and delivery (`plane.py`).

Refused here: a listener in the amqtt configuration that would open a socket of its own (plaintext, WebSocket), and a
plugin that admits anonymous clients. Plugins may narrow our verdict, never widen it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig, ListenerType
from amqtt.errors import BrokerError
from amqtt.events import BrokerEvents
from transitions import MachineError

from gateway.broker.connection import Connection
from gateway.broker.exchange import SUBACK_FAILURE
from gateway.broker.live import ReloadReport, judge_again, judge_by_clock
from gateway.broker.packets import MalformedPacket, check_topic_filter
from gateway.broker.plane import DataPlane
from gateway.broker.sessions import Message
from gateway.broker.transport import Listener, TransportLimits
from gateway.broker.views import RetainedView, SessionsView, SubscriptionsView
from gateway.broker.wheel import TICK_S
from gateway.shadowing import tell_differences
from gateway.timekeeping import wall_clock
from mtls.clock import Moment
from mtls.errors import ConfigFault, Reason
from mtls.terminal import sanitise

if TYPE_CHECKING:
    from gateway.audit import AuditLog
    from gateway.keeping import Kept
    from gateway.security import SecurityState

SWEEP_EVERY_TICKS = 4  # expiry of certificates and sessions is looked at once a second
ANONYMOUS_PLUGIN = "amqtt.plugins.authentication.AnonymousAuthPlugin"


class GatewayBroker(Broker):
    """An amqtt broker that serves mutual TLS only, under one policy.

    `config` is amqtt's own (plugins; external listeners only); `state` is the verified security set in force and
    `audit` takes one line per decision. `clock` gives the time that certificates are judged by. `kept` is the open
    store; without one sessions live in memory.
    """

    def __init__(
        self,
        config: BrokerConfig | dict[str, Any] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        plugin_namespace: str | None = None,
        *,
        state: SecurityState,
        audit: AuditLog,
        clock: Callable[[], Moment] = wall_clock,
        kept: Kept | None = None,
    ) -> None:
        super().__init__(_checked(config), loop, plugin_namespace)
        tell_differences(state, audit)
        self.plane = DataPlane(state, audit, clock, self.plugins_manager, kept)
        self.loop_lag_s = 0.0
        self._ticker: asyncio.Task[None] | None = None
        self._started_at = time.monotonic()
        limits = state.config.limits
        self._listener = Listener(
            self.plane,
            state.config.listener.bind,
            TransportLimits(
                limits.max_connections,
                limits.max_handshakes,
                limits.max_handshakes_per_address,
                limits.handshake_timeout_s,
            ),
            lambda: self.plane.state.context_at(self.plane.clock()),
        )

    async def start(self) -> None:
        """Open the listeners and start serving; BrokerError when already started, Fault when a port is taken."""
        try:
            self.transitions.start()
        except (MachineError, ValueError) as error:
            raise BrokerError(f"broker instance can't be started: {error}") from error
        await self.plugins_manager.fire_event(BrokerEvents.PRE_START, wait=True)
        if self.plane.durability is not None:
            self.plane.durability.start()
        try:
            self._listener.open()
            self.plane.poller.open()
        except Exception:
            self.transitions.starting_fail()
            raise
        self.transitions.starting_success()
        self._ticker = asyncio.create_task(self._run_ticker())
        await self.plugins_manager.fire_event(BrokerEvents.POST_START, wait=True)

    async def shutdown(self) -> None:
        """Stop accepting, close every connection, end the plugins."""
        await self.plugins_manager.fire_event(BrokerEvents.PRE_SHUTDOWN, wait=True)
        self.transitions.shutdown()
        await self._listener.close()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        await self.plane.close()
        await self._listener.drained()
        self.plane.poller.close()
        await self.plugins_manager.wait_fired_events()
        await self.plugins_manager.fire_event(BrokerEvents.POST_SHUTDOWN, wait=True)
        await self.plugins_manager.close()
        self.transitions.stopping_success()

    async def _run_ticker(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + TICK_S
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            self.loop_lag_s = max(0.0, loop.time() - due)
            while due <= loop.time():
                due += TICK_S
                self.plane.turn()
                if self.plane.tick % SWEEP_EVERY_TICKS == 0:
                    self._sweep()

    def _sweep(self) -> None:
        plane = self.plane
        judge_by_clock(plane)
        for session in plane.exchange.sessions.expired(time.monotonic(), plane.state.config.limits.session_expiry_s):
            plane.exchange.discard(session)

    # reload, kick, reports

    def apply(self, state: SecurityState) -> ReloadReport:
        """Put a new security set in force and judge everything that lives by it again."""
        old, self.plane.state = self.plane.state, state
        tell_differences(state, self.plane.audit, old)
        return judge_again(self.plane, old)

    @property
    def state(self) -> SecurityState:
        """The security set in force."""
        return self.plane.state

    def kick(self, device_id: str) -> int:
        """Close every live connection of an identity; the number closed. It may connect again."""
        connections = [connection for connection in self.plane.live if str(connection.peer.id) == device_id]
        for connection in connections:
            connection.close(Reason.KICKED)
        return len(connections)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Bound addresses; port 0 is resolved."""
        return self._listener.addresses

    def sessions_report(self) -> list[dict[str, Any]]:
        """One entry per session, live or stored."""
        return [
            {
                "id": session.identity,
                "client_id": session.client_id,
                "connected": session.link is not None,
                "address": session.link.address if isinstance(session.link, Connection) else "",
                "clean_session": session.clean,
                "subscriptions": len(session.subscriptions),
                "inflight": session.in_flight,
                "queued": session.queued,
                "dropped": session.dropped,
                "roles": list(session.grants.roles),
                "certificate_serial": session.peer.certificate_serial,
                "not_after": session.peer.not_after.isoformat(),
            }
            for session in self.plane.exchange.sessions
        ]

    def status_report(self) -> dict[str, Any]:
        """Figures of the broker as a whole."""
        return {
            "uptime_s": round(time.monotonic() - self._started_at, 1),
            "connections": self._listener.connections,
            "handshakes": self._listener.handshakes,
            "handshake_failures": {str(why): n for why, n in self._listener.handshake_failures.items()},
            "sessions": len(self.plane.exchange.sessions),
            "subscriptions": len(self.plane.exchange.subscriptions),
            "retained": len(self.plane.exchange.retained),
            "retained_bytes": self.plane.exchange.retained.total_bytes,
            "retained_refused": self.plane.exchange.retained_refused,
            "messages_in": self.plane.messages_in,
            "messages_out": self.plane.messages_out,
            "loop_lag_s": round(self.loop_lag_s, 4),
            "policy_version": self.plane.state.policy.version,
            "counts": dict(self.plane.counts),
            "store": self.plane.durability.report() if self.plane.durability is not None else None,
        }

    # what amqtt's BrokerContext asks

    async def internal_message_broadcast(self, topic: str, data: bytes, qos: int | None = None) -> None:
        """Publish on behalf of the broker; receivers are judged as always."""
        await self.plane.lane.distribute(Message(topic, topic.encode(), bytes(data), qos or 0), "")

    async def retain_message(
        self,
        source_session: Any,
        topic_name: str | None,
        data: bytes | bytearray | None,
        qos: int | None = None,
    ) -> None:
        """Retain on behalf of the broker, as amqtt's own: kept for later subscribers, not delivered now."""
        if topic_name is not None:
            self.plane.retain(Message(topic_name, topic_name.encode(), bytes(data or b""), qos or 0), None)

    async def add_subscription(self, subscription: tuple[str, int], session: Any) -> int:
        """Subscribe a client on behalf of a plugin: within the client's own rights, else 0x80."""
        topic_filter, qos = subscription
        exchange, peer = self.plane.exchange, session.peer
        owner = exchange.sessions.get(str(peer.id), session.client_id)
        try:
            check_topic_filter(topic_filter.encode())
        except MalformedPacket:
            return SUBACK_FAILURE
        if owner is None or qos not in (0, 1, 2) or not exchange.decide_subscribe(owner, topic_filter).allowed:
            return SUBACK_FAILURE
        exchange.subscribe(owner, topic_filter, qos)
        return qos

    def create_offline_session(self, client_id: str) -> Any:
        """Refused: a session belongs to the certificate of the client that began it, and a plugin has none."""
        raise BrokerError(f"no session of client {sanitise(client_id)}, and a plugin cannot begin one")

    @property
    def sessions(self) -> Any:
        """Sessions in amqtt's shape, made when a plugin looks."""
        return SessionsView(self.plane.exchange)

    @property
    def subscriptions(self) -> Any:
        """Subscriptions in amqtt's shape."""
        return SubscriptionsView(self.plane.exchange)

    @property
    def retained_messages(self) -> Any:
        """Retained messages in amqtt's shape."""
        return RetainedView(self.plane.exchange)


def _checked(config: BrokerConfig | dict[str, Any] | None) -> BrokerConfig:
    """amqtt's configuration without anything that would serve a client past the gateway's judgement."""
    if config is None:
        listeners = {"default": ListenerConfig(type=ListenerType.EXTERNAL, bind=None)}
        return BrokerConfig(listeners=listeners, plugins={})
    checked = BrokerConfig.from_dict(config) if isinstance(config, dict) else config
    for name, listener in checked.listeners.items():
        if listener.type != ListenerType.EXTERNAL:
            raise ConfigFault(
                f"amqtt listener {name!r} is of type {listener.type.value!r}",
                hint="the gateway serves mutual TLS on [listener] bind only; remove the listener or make it external",
            )
    if ANONYMOUS_PLUGIN in (checked.plugins or {}):
        raise ConfigFault(
            f"amqtt plugin {ANONYMOUS_PLUGIN!r} admits anonymous clients",
            hint="remove it: a device is who its certificate says",
        )
    return checked
