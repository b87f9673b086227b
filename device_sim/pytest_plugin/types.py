"""What a test may name: the classes that the plugin's fixtures give, in one place for imports and annotations."""

from device_sim.connection_faults import ConnectionFault
from device_sim.fleet.identities import Identity
from device_sim.fleet.run import FleetReport
from device_sim.network.fault_proxy import ThreadedProxy
from device_sim.pytest_plugin.clock import FakeClock
from device_sim.pytest_plugin.device import ConnectedDevice, SubscriptionRefused
from device_sim.pytest_plugin.factories import Capture, DeviceFactory, FleetRunner
from device_sim.pytest_plugin.gateway import MtlsGateway, ObserverName, Rules
from device_sim.pytest_plugin.heard import Heard, Message

__all__ = [
    "Capture",
    "ConnectedDevice",
    "ConnectionFault",
    "DeviceFactory",
    "FakeClock",
    "FleetReport",
    "FleetRunner",
    "Heard",
    "Identity",
    "Message",
    "MtlsGateway",
    "ObserverName",
    "Rules",
    "SubscriptionRefused",
    "ThreadedProxy",
]
