"""What the codec and the routing cost by themselves, on one core: reported, never judged.

    python benchmarks/codec.py            a table on standard output
    python benchmarks/codec.py --json     the same as one JSON object

Each line is the best of several rounds, so that a busy machine disturbs less. Routing is measured in an index of
10,000 devices, beside the same in an index of one: the difference is what other devices cost.
"""

from __future__ import annotations

import argparse
import json
import sys
import timeit
import tracemalloc
from collections.abc import Callable
from functools import partial

from gateway.broker.packets import (
    Connect,
    Will,
    decode_connect,
    decode_publish,
    decode_subscribe,
    encode_connect,
    encode_publish,
    encode_subscribe,
    fixed_header,
)
from gateway.broker.routing import RetainedIndex, SubscriptionIndex

ROUNDS = 7
LOOPS = 20_000
DEVICES = 10_000
TOPIC = "devices/device-00042/telemetry/temperature"


def best_ns(action: Callable[[], object], loops: int = LOOPS) -> float:
    """Nanoseconds for one call, from the round that was disturbed least."""
    return min(timeit.repeat(action, number=loops, repeat=ROUNDS)) / loops * 1e9


def body(packet: bytes) -> bytes:
    header = fixed_header(packet, 0)
    if header is None:
        raise ValueError("the packet has no whole header")
    return packet[header[1] : header[2]]


def codec_costs() -> dict[str, float]:
    topic, payload = TOPIC.encode(), b"x" * 100
    at_most_once = encode_publish(topic, payload, 0, False, False, 0)
    at_least_once = encode_publish(topic, payload, 1, False, False, 7)
    body_0, body_1 = body(at_most_once), body(at_least_once)
    will = Will("devices/device-00042/state", b"offline", 1, True)
    connect = body(encode_connect(Connect("device-00042", False, 60, will, None, None)))
    subscribe = body(encode_subscribe(1, [("devices/device-00042/commands/#", 1)]))
    return {
        "fixed header": best_ns(lambda: fixed_header(at_most_once, 0)),
        "decode PUBLISH, QoS 0, 100 bytes": best_ns(lambda: decode_publish(0x30, body_0)),
        "decode PUBLISH, QoS 1, 100 bytes": best_ns(lambda: decode_publish(0x32, body_1)),
        "encode PUBLISH, QoS 0, 100 bytes": best_ns(lambda: encode_publish(topic, payload, 0, False, False, 0)),
        "encode PUBLISH, QoS 1, 100 bytes": best_ns(lambda: encode_publish(topic, payload, 1, False, False, 7)),
        "decode CONNECT with a will": best_ns(lambda: decode_connect(connect)),
        "decode SUBSCRIBE": best_ns(lambda: decode_subscribe(subscribe)),
    }


def subscriptions(devices: int) -> SubscriptionIndex[int]:
    index: SubscriptionIndex[int] = SubscriptionIndex()
    for number in range(42, 42 + devices):
        index.add(f"devices/device-{number:05}/commands/#", number, 1)
        index.add(f"devices/device-{number:05}/config", number, 1)
    index.add("devices/+/telemetry/#", -1, 0)
    return index


def retained(devices: int) -> RetainedIndex[bytes]:
    index: RetainedIndex[bytes] = RetainedIndex(len)
    for number in range(42, 42 + devices):
        index.set(f"devices/device-{number:05}/state", b"online")
        index.set(f"devices/device-{number:05}/info", b"1.0")
    return index


def _below(states: RetainedIndex[bytes], topic_filter: str) -> list[tuple[str, bytes]]:
    return list(states.match(topic_filter))


def routing_costs() -> dict[str, float]:
    costs = {}
    for devices in (1, DEVICES):
        index, states = subscriptions(devices), retained(devices)
        command, own = "devices/device-00042/commands/reboot", "devices/device-00042/#"
        name = f"{devices:,} device{'s' if devices > 1 else ''}"
        costs[f"route telemetry, {name}"] = best_ns(partial(index.match, TOPIC))
        costs[f"route a command, {name}"] = best_ns(partial(index.match, command))
        costs[f"retained below one device, {name}"] = best_ns(partial(_below, states, own))
    return costs


def memory_costs() -> dict[str, float]:
    costs = {}
    for name, make in (("subscription", subscriptions), ("retained topic", retained)):
        tracemalloc.start()
        index = make(DEVICES)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        costs[f"bytes per {name}"] = used / len(index)
    return costs


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    nanoseconds = codec_costs() | routing_costs()
    memory = memory_costs()
    if options.json:
        print(json.dumps({"nanoseconds": nanoseconds, "memory": memory}))
        return 0
    for name, cost in nanoseconds.items():
        print(f"{name:<50}{cost:>10,.0f} ns")
    for name, cost in memory.items():
        print(f"{name:<50}{cost:>10,.0f} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
