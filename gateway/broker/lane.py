"""The slower lane: amqtt's plugins are asked here, and nobody pays who has loaded none.

Plugins answer asynchronously, one by one. A connection whose packet needs an answer stops reading until it has it, so
the order of its packets holds. Our own verdict comes first and a plugin can only narrow it: a plugin that says no
refuses, one that says nothing (None) is ignored, one that raises or takes too long refuses. Verdicts are not cached.

What a plugin is asked of a receiver is asked when the message is routed to it, also for retained messages.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

from amqtt.adapters import BufferReader
from amqtt.broker import RetainedApplicationMessage
from amqtt.contexts import Action as AmqttAction
from amqtt.events import BrokerEvents, MQTTEvents
from amqtt.mqtt import packet_class
from amqtt.mqtt.packet import MQTTFixedHeader
from amqtt.session import IncomingApplicationMessage

from gateway.admission import ConnectRefused, admit_connect
from gateway.broker import entry
from gateway.broker.exchange import SUBACK_FAILURE
from gateway.broker.host import distribute
from gateway.broker.outlet import State
from gateway.broker.packets import ConnectCode
from gateway.broker.sessions import Message
from gateway.broker.views import view_of, view_of_connection
from mtls.errors import Reason, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from amqtt.plugins.manager import PluginManager

    from gateway.broker.connection import Connection
    from gateway.broker.packets import Connect, Publish
    from gateway.broker.plane import DataPlane
    from gateway.broker.sessions import Session

PLUGIN_TIMEOUT_S = 10.0  # a plugin that has not answered by then has refused

log = logging.getLogger("mqtt_gateway.plugins")


class PluginLane:
    """Asks and tells the plugins of one broker."""

    def __init__(self, plane: DataPlane, plugins: PluginManager[Any]) -> None:
        self._plane = plane
        self._plugins = plugins
        self._tasks: set[asyncio.Future[Any]] = set()
        self.asks_authentication = bool(plugins._auth_plugins)
        self.asks_topics = bool(plugins._topic_plugins)
        self._listened = frozenset(e for e, callbacks in plugins._event_plugin_callbacks.items() if callbacks)
        self.watches_sent = MQTTEvents.PACKET_SENT in self._listened
        self.watches_received = MQTTEvents.PACKET_RECEIVED in self._listened
        self.per_packet = (
            self.asks_topics
            or self.watches_received
            or bool(self._listened & {BrokerEvents.MESSAGE_RECEIVED, BrokerEvents.MESSAGE_BROADCAST})
        )

    async def _ask(self, question: Awaitable[dict[Any, Any]]) -> bool:
        task = asyncio.ensure_future(question)
        try:
            await asyncio.wait({task}, timeout=PLUGIN_TIMEOUT_S)  # never longer, even if it resists cancellation
            if not task.done():
                log.error("a plugin did not answer within %s s; taken as a refusal", PLUGIN_TIMEOUT_S)
                return False
            answers = task.result()
        except Exception:
            log.exception("a plugin raised; taken as a refusal")
            return False
        finally:
            task.cancel()
        return all(answer is True for answer in answers.values() if answer is not None)

    async def permits(self, view: Any, topic: str, action: AmqttAction) -> bool:
        """Whether no plugin objects to an action on a topic."""
        if not self.asks_topics:
            return True
        return await self._ask(self._plugins.map_plugin_topic(session=view, topic=topic, action=action))

    # telling

    async def close(self) -> None:
        """Let what plugins are being told reach them, within the time that an answer may take."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=PLUGIN_TIMEOUT_S)
            for task in late:
                task.cancel()

    def spawn(self, work: Awaitable[Any]) -> None:
        """Let work run beside the data plane, held until it is done."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def event(self, event: BrokerEvents, connection: Connection, **facts: Any) -> None:
        """Fire an event of one client, if anybody listens."""
        if event not in self._listened or connection.session is None:
            return
        client_id = connection.session.client_id
        if event in (BrokerEvents.CLIENT_CONNECTED, BrokerEvents.CLIENT_DISCONNECTED):
            view = facts["client_session"] = view_of_connection(connection, client_id)
            if event is BrokerEvents.CLIENT_DISCONNECTED:
                view.ended()
        self.spawn(self._plugins.fire_event(event, client_id=client_id, **facts))

    def retained(self, message: Message, client_id: str | None = None) -> None:
        """Tell of a retained message that was kept, forgotten (no data), or sent to a new subscriber."""
        if BrokerEvents.RETAINED_MESSAGE in self._listened:
            picture = RetainedApplicationMessage(None, message.topic, message.payload, message.qos)
            facts = {"client_id": client_id, "retained_message": picture}
            self.spawn(self._plugins.fire_event(BrokerEvents.RETAINED_MESSAGE, **facts))

    def sent(self, connection: Connection, packets: Sequence[bytes]) -> None:
        """Tell of packets written to a client."""
        for raw in packets:
            self.spawn(self._fire_packet(MQTTEvents.PACKET_SENT, connection, raw))

    def received(self, connection: Connection, raw: bytes) -> None:
        """Tell of a packet read from a client."""
        self.spawn(self._fire_packet(MQTTEvents.PACKET_RECEIVED, connection, raw))

    async def _fire_packet(self, event: MQTTEvents, connection: Connection, raw: bytes) -> None:
        reader = BufferReader(raw)
        header = await MQTTFixedHeader.from_stream(reader)
        if header is None:
            return
        kind: Callable[..., Any] = packet_class(header)
        packet = await kind.from_stream(reader, fixed_header=header)  # type: ignore[attr-defined]
        session = connection.session
        view = view_of_connection(connection, session.client_id) if session is not None else None
        await self._plugins.fire_event(event, packet=packet, session=view)

    # asking

    async def authenticate(self, connection: Connection, connect: Connect) -> None:
        """Ask the authentication plugins about a client that we have admitted; then admit or refuse it.

        Our own verdict is taken again afterwards, by the security set of then.
        """
        view = view_of_connection(connection, connect.client_id, clean=connect.clean_session)
        view.password = connect.password.decode(errors="replace") if connect.password is not None else None
        permitted = await self._ask(self._plugins.map_plugin_auth(session=view))
        if connection.state is not State.ADMITTING:
            return
        if permitted:
            verdict = admit_connect(self._plane.state, connection.peer, connect)
        else:
            refusal = Refusal(Reason.PLUGIN_REFUSED, "an authentication plugin said no")
            verdict = ConnectRefused(ConnectCode.NOT_AUTHORIZED, refusal)
        entry.decide(self._plane, connection, connect, verdict)

    async def publish(self, connection: Connection, publish: Publish) -> None:
        """One PUBLISH from judgement to answer."""
        session = connection.session
        if session is None or (publish.qos == 2 and connection.repeated(publish.packet_id)):
            return
        view = view_of_connection(connection, session.client_id)
        event_message = IncomingApplicationMessage(
            publish.packet_id or None, publish.topic, publish.qos, publish.payload, publish.retain
        )
        event_message.publish_packet = event_message.build_publish_packet()
        facts = {"client_id": session.client_id, "message": event_message}
        await self._plugins.fire_event(BrokerEvents.MESSAGE_RECEIVED, **facts)
        decision = self._plane.decide_publish(connection, publish)
        if not decision.allowed:
            connection.deny(publish, decision)
            return
        if not await self.permits(view, publish.topic, AmqttAction.PUBLISH):
            self._plane.record_denial(connection, Reason.PUBLISH_DENIED, publish.topic, None)
            connection.answer(publish, stored=True)
            return
        if connection.ending is not None and connection.ending.reason is not Reason.PEER_CLOSED:
            return  # revoked, kicked or taken over meanwhile: not acknowledged, so not owed
        decision = self._plane.decide_publish(connection, publish)
        if not decision.allowed:
            connection.deny(publish, decision)
            return
        await self._plugins.fire_event(BrokerEvents.MESSAGE_BROADCAST, **facts)
        message = Message(publish.topic, publish.topic.encode(), publish.payload, publish.qos)
        if publish.retain:
            self._plane.retain(message, connection.peer)
        await self.distribute(message, session.identity)
        connection.answer(publish, stored=True)

    async def distribute(self, message: Message, origin: str) -> None:
        """Route a message to the uplink, and to the receivers that plugins allow as well."""
        route = self._plane.exchange.route(message.topic)
        if route.uplink is not None:
            route.uplink.take(message.topic, message.payload, message.qos, origin)
        allowed: list[tuple[Session, int]] = [
            (session, qos)
            for session, qos in route.targets
            if await self.permits(view_of(session), message.topic, AmqttAction.RECEIVE)
        ]
        distribute(message, [(s, qos) for s, qos in allowed if s.may_receive(message.topic)], self._plane)

    async def subscribe(self, connection: Connection, packet_id: int, filters: Sequence[tuple[str, int]]) -> None:
        """One SUBSCRIBE from judgement to retained messages."""
        session = connection.session
        if session is None:
            return
        view = view_of_connection(connection, session.client_id)
        codes: list[int] = []
        retained: dict[str, list[str]] = {}
        most = self._plane.state.config.limits.max_subscriptions_per_session
        for topic_filter, qos in filters[:most]:
            ours = self._plane.exchange.decide_subscribe(session, topic_filter).allowed
            permitted = not ours or await self.permits(view, topic_filter, AmqttAction.SUBSCRIBE)
            if connection.state is not State.CONNECTED:
                return  # its session may be another connection's by now, or nobody's
            if not permitted:
                self._plane.record_denial(connection, Reason.SUBSCRIBE_DENIED, topic_filter, None)
                codes.append(SUBACK_FAILURE)
                continue
            codes.append(self._plane.subscribe_one(connection, topic_filter, qos))
            if codes[-1] == SUBACK_FAILURE:
                continue
            topics = list(self._plane.exchange.retained_topics(topic_filter))
            retained[topic_filter] = [t for t in topics if await self.permits(view, t, AmqttAction.RECEIVE)]
        if connection.state is State.CONNECTED:
            codes += self._plane.refuse_surplus(connection, len(filters) - most)
            self._plane.finish_subscribe(connection, packet_id, filters, codes, retained)
