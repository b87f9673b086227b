"""Whether [uplink] can work with the rest of the configuration and with the files that it names.

Asked before anything listens, at `check-config` and at every reload. Not asked: whether the upstream answers, because
the gateway serves without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.uplink.credentials import gateway_name, upstream_context
from mtls.errors import ConfigFault

if TYPE_CHECKING:
    from gateway.config import GatewayConfig

SHARE: Final = 2  # the spool may have half of the store: the queues of devices live there too
MIN_PACKETS: Final = 4  # that the spool must be able to hold, each as large as a packet may be
NEEDS_STORE: Final = "[uplink] needs a [store]: what is acknowledged to a device waits there for the upstream"
STORE_HINT: Final = "add [store] with the path of a file on a disk"


def check_uplink(config: GatewayConfig) -> None:
    """ConfigFault for the first thing that is wrong with [uplink]; nothing when there is none."""
    uplink, store = config.uplink, config.store
    if uplink is None:
        return
    if store is None:
        raise ConfigFault(f"{config.path}: {NEEDS_STORE}", hint=STORE_HINT)
    if not uplink.publish.entries and not uplink.subscribe.entries:
        raise ConfigFault(
            f"{config.path}: [uplink] maps no topic",
            hint='publish = [{ local = "devices/#", remote = "site/{gateway}/devices/#" }]',
        )
    if uplink.spool_max_bytes * SHARE > store.max_bytes:
        raise ConfigFault(
            f"{config.path}: [uplink] spool_max_bytes = {uplink.spool_max_bytes} is more than half of"
            f" [store] max_bytes = {store.max_bytes}",
            hint=f"set it to {store.max_bytes // SHARE} at the most, or give the store more",
        )
    if uplink.spool_max_bytes < config.limits.max_packet_bytes * MIN_PACKETS:
        raise ConfigFault(
            f"{config.path}: [uplink] spool_max_bytes = {uplink.spool_max_bytes} holds fewer than {MIN_PACKETS} packets"
            f" of [limits] max_packet_bytes = {config.limits.max_packet_bytes}",
            hint="raise the one or lower the other",
        )
    gateway_name(uplink)
    upstream_context(uplink)
