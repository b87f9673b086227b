"""Builds the broker out of the gateway's own configuration, in the words that amqtt wants.

amqtt's faults (a plugin that cannot be imported, a setting that it does not know) become configuration faults here,
so that no other module needs to know amqtt's exceptions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from amqtt.errors import AMQTTError, PluginError, PluginLoadError

from gateway.broker.runtime import GatewayBroker
from mtls.clock import Moment
from mtls.errors import ConfigFault
from mtls.terminal import sanitise

if TYPE_CHECKING:
    from gateway.audit import AuditLog
    from gateway.keeping import Kept
    from gateway.security import SecurityState


def build_broker(
    state: SecurityState, audit: AuditLog, clock: Callable[[], Moment], kept: Kept | None = None
) -> GatewayBroker:
    """A broker with the plugins of [amqtt.plugins]; ConfigFault naming the plugin that cannot be loaded."""
    config: dict[str, Any] = {
        "listeners": {"default": {"type": "external"}},
        "plugins": {name: dict(settings) for name, settings in state.config.plugins.items()},
    }
    try:
        return GatewayBroker(config, state=state, audit=audit, clock=clock, kept=kept)
    except (AMQTTError, PluginError, PluginLoadError) as error:
        cause = error.__cause__ or error.__context__
        why = ": ".join(dict.fromkeys(sanitise(str(part)) for part in (error, cause) if part is not None and str(part)))
        raise ConfigFault(
            f"{state.config.path}: [amqtt.plugins] {why or type(error).__name__}",
            hint="the key is the plugin's dotted path, the table its settings",
        ) from error
