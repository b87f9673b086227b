"""The agent's settings out of what stands on its command line: parsed once, refused with a sentence.

An id is a DeviceId, a broker is a host and a port, a topic is one that may be published to (no wildcards). Whether
the gateway grants the topic is the gateway's to say.
"""

from pathlib import Path

from device_sim.agent import Settings, default_topic
from device_sim.connection_faults import Endpoint
from device_sim.credentials import Files
from device_sim.renewal import EstServer
from device_sim.sources import Source
from mtls.errors import ConfigFault
from mtls.identity import DeviceId

DEFAULT_PORT = 8883  # secure-mqtt, IANA
MAX_TOPIC_BYTES = 65535  # [MQTT-4.7.3-3]


def agent_settings(
    source: Source,
    *,
    device_id: str,
    cert: Path,
    key: Path,
    ca: Path,
    broker: str,
    topic: str,
    qos: int,
    count: int | None,
    retry_forever: bool,
    buffer_bytes: int,
    renew_url: str,
) -> Settings:
    """The settings of one agent; ConfigFault naming what cannot be used."""
    try:
        identity = DeviceId(device_id)
    except ValueError:
        raise ConfigFault(
            "--id is no device id: 1 to 64 characters without spaces and / + # $",
            hint="it is the common name in the certificate: mqtt-provision inspect CERT",
        ) from None
    return Settings(
        device_id=identity.value,
        files=Files(cert, key, ca),
        endpoint=parse_endpoint(broker, str(ca)),
        topic=_checked_topic(topic) if topic else default_topic(identity.value, source),
        qos=qos,
        count=count,
        retry_forever=retry_forever,
        buffer_bytes=buffer_bytes,
        renew_at=EstServer.parse(renew_url) if renew_url else None,
    )


def parse_endpoint(text: str, ca_file: str = "") -> Endpoint:
    """`host`, `host:port`, `[address]:port` or a bare IPv6 address; ConfigFault for anything else."""
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
        is_odd = bool(rest) and not rest.startswith(":")
    else:
        if text.count(":") == 1:
            host, port = text.split(":")
        is_odd = False
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    is_port = not port or 1 <= number <= 65535
    if is_odd or not host or not is_port or not host.isascii() or not host.isprintable() or " " in host:
        raise ConfigFault("--broker is no HOST:PORT", hint="for example: --broker gateway.local:8883")
    return Endpoint(host, number or DEFAULT_PORT, ca_file)


def _checked_topic(topic: str) -> str:
    is_name = not set("+#\0") & set(topic) and len(topic.encode("utf-8", "replace")) <= MAX_TOPIC_BYTES
    if not is_name:
        raise ConfigFault("--topic holds a wildcard or is too long", hint="one topic: devices/ID/telemetry/NAME")
    return topic
