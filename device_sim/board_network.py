"""The network of a simulated device: one real MQTT connection with the key from its flash.

The agent's own connection is used (mqtt_client), will message and all, so that what the station tries is what the
device will do. The key is handed to the TLS library through an anonymous file in memory, which is never on a disk.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from device_sim.connection_faults import CONNECT_TIMEOUT_S, ConnectionFault, Endpoint
from device_sim.mqtt_client import Connection, State
from device_sim.spp1_board import NetFailure
from mtls.errors import Fault
from mtls.tls import client_context

PAYLOAD = b"provisioned"


def publish_once(endpoint: Endpoint, device_id: str, key: bytes, chain: bytes, ca: bytes, topic: str) -> None:
    """Connect, publish with QoS 1, wait for the acknowledgement, disconnect; NetFailure with the reason otherwise."""
    try:
        with _in_memory(ca) as ca_file, _in_memory(chain) as cert_file, _in_memory(key) as key_file:
            context = client_context(ca_file=ca_file, cert_file=cert_file, key_file=key_file)
        connection = Connection(endpoint, context, device_id, State(f"devices/{device_id}/state"))
        try:
            _publish(connection, topic)
            connection.close()
        finally:
            connection.abandon()
    except ConnectionFault as fault:
        raise NetFailure(str(fault.reason)) from fault
    except Fault as fault:
        raise NetFailure(str(fault)) from fault


def _publish(connection: Connection, topic: str) -> None:
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    packet_id = connection.publish(topic, PAYLOAD, qos=1)
    while packet_id not in connection.acknowledged:
        left = deadline - time.monotonic()
        if left <= 0:
            raise NetFailure("not acknowledged")
        connection.step(left)


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[Path]:
    descriptor = os.memfd_create("device-sim", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, data)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
