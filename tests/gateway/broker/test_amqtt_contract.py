"""What the gateway relies on in amqtt beyond its documentation: fails when a new version changes it.

amqtt is pinned to a minor version; raising the pin starts here.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from amqtt import errors
from amqtt.adapters import BufferReader
from amqtt.broker import Broker, BrokerContext, RetainedApplicationMessage
from amqtt.contexts import Action, BrokerConfig, ListenerConfig, ListenerType
from amqtt.events import BrokerEvents, MQTTEvents
from amqtt.mqtt import packet_class
from amqtt.mqtt.packet import MQTTFixedHeader
from amqtt.mqtt.publish import PublishPacket
from amqtt.plugins import authentication
from amqtt.plugins.base import BaseAuthPlugin, BasePlugin, BaseTopicPlugin
from amqtt.plugins.manager import PluginManager
from amqtt.session import IncomingApplicationMessage, Session

from gateway.broker.runtime import ANONYMOUS_PLUGIN, GatewayBroker

BROKER = Path(__file__).resolve().parents[3] / "gateway" / "broker"
PRIVATE_NAMES = {"_auth_plugins", "_topic_plugins", "_event_plugin_callbacks"}  # of PluginManager


def parameters(function: object) -> list[str]:
    assert callable(function)
    return list(inspect.signature(function).parameters)


def test_the_version_is_the_one_that_this_contract_was_read_from() -> None:
    """0.12: the next minor version is to be read anew."""
    assert version("amqtt").startswith("0.12.")


def test_the_private_names_that_we_touch_are_these_and_no_more() -> None:
    """Found in our source, so that a new one cannot slip in without its line below."""
    touched = set()
    for path in BROKER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and re.fullmatch(r"_[a-z]\w*", node.attr):
                owner = ast.unparse(node.value)
                if owner in ("plugins", "self._plugins", "self.plugins_manager"):
                    touched.add(node.attr)
    assert touched == PRIVATE_NAMES


def test_the_plugin_manager_files_its_plugins_as_we_read_them() -> None:
    """Two lists and a dict of lists by event name, filled when it is constructed."""

    async def construct() -> PluginManager[BrokerContext]:
        config = {"listeners": {"default": {"type": "external"}}, "plugins": {}}
        return Broker(config).plugins_manager

    manager = asyncio.run(construct())
    assert (manager._auth_plugins, manager._topic_plugins, dict(manager._event_plugin_callbacks)) == ([], [], {})
    assert manager.plugins == []
    assert manager.get_plugin("anything") is None


def test_the_plugin_manager_is_asked_as_we_ask_it() -> None:
    """Names and keywords of every call that we make."""
    assert parameters(PluginManager.fire_event) == ["self", "event_name", "wait", "method_kwargs"]
    assert parameters(PluginManager.map_plugin_auth) == ["self", "session"]
    assert parameters(PluginManager.map_plugin_topic) == ["self", "session", "topic", "action"]
    for name in ("fire_event", "map_plugin_auth", "map_plugin_topic", "wait_fired_events", "close"):
        assert inspect.iscoroutinefunction(getattr(PluginManager, name)), name


def test_a_raising_plugin_raises_through_the_manager() -> None:
    """The lane takes an exception for a refusal; a manager that swallowed it would need another reading."""
    source = inspect.getsource(PluginManager._map_plugin_method)
    assert "await asyncio.gather(*tasks)" in source
    assert "dict(zip(plugins, ret_list" in source


def test_the_broker_is_constructed_and_inherited_as_we_do() -> None:
    """The arguments, the state machine's triggers and the attributes of `Broker.__init__`."""
    assert parameters(Broker.__init__) == ["self", "config", "loop", "plugin_namespace"]
    assert parameters(GatewayBroker.__init__)[:4] == parameters(Broker.__init__)

    async def construct() -> Broker:
        return Broker({"listeners": {"default": {"type": "external"}}, "plugins": {}})

    broker = asyncio.run(construct())
    for trigger in ("start", "starting_fail", "starting_success", "shutdown", "stopping_success"):
        assert callable(getattr(broker.transitions, trigger)), trigger
    assert broker.transitions.state == "new"
    assert isinstance(broker.plugins_manager, PluginManager)
    assert isinstance(broker.config, BrokerConfig)


@pytest.mark.parametrize(
    "name",
    ["start", "shutdown", "internal_message_broadcast", "retain_message", "add_subscription", "create_offline_session"],
)
def test_what_we_override_has_the_signature_that_we_override(name: str) -> None:
    """A method of another name would leave amqtt's own in force."""
    assert parameters(getattr(GatewayBroker, name)) == parameters(getattr(Broker, name))
    assert inspect.iscoroutinefunction(getattr(GatewayBroker, name)) == inspect.iscoroutinefunction(
        getattr(Broker, name)
    )


def test_the_properties_that_we_override_are_properties() -> None:
    """sessions, subscriptions and retained_messages."""
    for name in ("sessions", "subscriptions", "retained_messages"):
        assert isinstance(getattr(Broker, name), property), name
        assert getattr(GatewayBroker, name) is not getattr(Broker, name), name


def test_the_context_asks_the_broker_for_nothing_that_we_do_not_answer() -> None:
    """Every attribute of the broker that BrokerContext reads is overridden by us, but for `_sessions`.

    That one is written after create_offline_session, which we refuse.
    """
    source = inspect.getsource(BrokerContext)
    asked = set(re.findall(r"_broker_instance\.(\w+)", source))
    assert asked == {
        *("internal_message_broadcast", "retain_message", "sessions", "retained_messages", "subscriptions"),
        *("create_offline_session", "add_subscription", "_sessions"),
    }
    assert all(name in vars(GatewayBroker) for name in asked - {"_sessions"})
    assert source.index("create_offline_session") < source.index("_sessions[client_id]")


def test_no_public_way_into_amqtts_own_data_plane_is_opened_by_us() -> None:
    """A connection enters amqtt's data plane by a listener name; with none started there is none."""
    for name in ("ws_connected", "stream_connected", "external_connected"):
        assert "_client_connected" in inspect.getsource(getattr(Broker, name)), name
    assert "self._servers.get(listener_name)" in inspect.getsource(Broker._client_connected)
    assert "_start_listeners" not in inspect.getsource(GatewayBroker)


def test_configuration_has_the_shape_that_we_check() -> None:
    """Listener types by value, an external listener without bind, plugins as a dict."""
    assert {kind.value for kind in ListenerType} == {"tcp", "ws", "external"}
    checked = BrokerConfig.from_dict({"listeners": {"default": {"type": "external"}}, "plugins": {"a.B": {}}})
    assert checked.listeners["default"].type == ListenerType.EXTERNAL
    assert checked.plugins == {"a.B": {}}
    assert ListenerConfig(type=ListenerType.EXTERNAL, bind=None).type is ListenerType.EXTERNAL
    module, _, name = ANONYMOUS_PLUGIN.rpartition(".")
    assert module == authentication.__name__
    assert issubclass(getattr(authentication, name), BaseAuthPlugin)


def test_the_events_are_those_that_we_fire() -> None:
    """A new event would need somebody to fire it."""
    assert {event.name for event in BrokerEvents} == {
        *("PRE_START", "POST_START", "PRE_SHUTDOWN", "POST_SHUTDOWN"),
        *("CLIENT_CONNECTED", "CLIENT_DISCONNECTED", "CLIENT_SUBSCRIBED", "CLIENT_UNSUBSCRIBED"),
        *("RETAINED_MESSAGE", "MESSAGE_RECEIVED", "MESSAGE_BROADCAST"),
    }
    assert {event.name for event in MQTTEvents} == {"PACKET_SENT", "PACKET_RECEIVED"}
    assert {action.value for action in Action} == {"subscribe", "publish", "receive"}


def test_a_session_has_the_attributes_that_our_picture_of_it_sets() -> None:
    """And builds itself without arguments."""
    session = Session()
    assert parameters(Session.__init__) == ["self"]
    for name in ("client_id", "clean_session", "username", "password", "remote_address", "attributes", "transitions"):
        assert hasattr(session, name), name
    for name in ("inflight_in_count", "inflight_out_count", "retained_messages_count"):
        assert isinstance(getattr(Session, name), property), name
    session.transitions.connect()
    session.transitions.disconnect()
    assert session.transitions.state == "disconnected"


def test_messages_and_packets_are_made_as_we_make_them() -> None:
    """The constructors that the lane and the views call."""
    assert parameters(RetainedApplicationMessage.__init__) == ["self", "source_session", "topic", "data", "qos"]
    kept = RetainedApplicationMessage(None, "t", b"1", 1)
    assert (kept.topic, kept.data, kept.qos, kept.retain) == ("t", b"1", 1, True)
    assert parameters(IncomingApplicationMessage.__init__) == ["self", "packet_id", "topic", "qos", "data", "retain"]
    message = IncomingApplicationMessage(7, "t", 1, b"1", False)
    assert isinstance(message.build_publish_packet(), PublishPacket)

    async def decode() -> PublishPacket:
        reader = BufferReader(b"\x30\x04\x00\x01t1")
        header = await MQTTFixedHeader.from_stream(reader)
        assert header is not None
        return await packet_class(header).from_stream(reader, fixed_header=header)

    assert asyncio.run(decode()).variable_header.topic_name == "t"


def test_plugins_have_the_bases_and_methods_that_we_ask_of_them() -> None:
    """Both kinds are BasePlugins with one asynchronous question each."""
    assert issubclass(BaseAuthPlugin, BasePlugin)
    assert issubclass(BaseTopicPlugin, BasePlugin)
    assert parameters(BaseAuthPlugin.authenticate) == ["self", "session"]
    assert parameters(BaseTopicPlugin.topic_filtering) == ["self", "session", "topic", "action"]


def test_the_faults_that_we_translate_exist() -> None:
    """framework.py turns these into configuration faults."""
    for name in ("PluginLoadError", "PluginImportError", "PluginInitError", "PluginCoroError"):
        error = getattr(errors, name)
        assert issubclass(error, (errors.AMQTTError, errors.PluginError, errors.PluginLoadError)), name
    assert issubclass(errors.BrokerError, Exception)
