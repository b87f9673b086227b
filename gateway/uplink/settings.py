"""[uplink] of the configuration file: where the site's messages go on to, and what waits here until they are there.

The table switches the uplink on by being there. Types, defaults and ranges of its keys stand below, all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.config_values import REQUIRED, Bad, Parse, file, one_of, private_file, whole
from gateway.uplink.envelope import Envelope
from gateway.uplink.topic_map import TopicMap, parse_publish, parse_subscribe

MAX_RATE: Final = 2**40  # bytes and bytes per second
# A name of labels (RFC 1035 section 2.3.4), or an address.
_HOST: Final = re.compile(r"(?=.{1,253}\Z)(?:[A-Za-z0-9:-]{1,63}\.)*[A-Za-z0-9:-]{1,63}\.?")


@dataclass(frozen=True, slots=True)
class UplinkConfig:
    """The upstream, the topic maps of both directions, the backlog's pace, and the spool's bound."""

    host: str
    port: int
    ca_file: Path
    cert_file: Path
    key_file: Path
    publish: TopicMap
    subscribe: TopicMap
    backlog_rate: int
    backlog_burst: int
    backlog_bytes_per_s: int
    max_inflight: int
    spool_max_bytes: int
    spool_full: str
    envelope: Envelope


def _host(value: Any, folder: Path) -> str:
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise Bad('a host name or an address, as in "mqtt.example.com"')
    return value


def _topics(parse: Callable[[Any], TopicMap]) -> Parse:
    def parse_topics(value: Any, folder: Path) -> TopicMap:
        try:
            return parse(value)
        except ValueError as error:
            raise Bad(f"usable: {error}") from error

    return parse_topics


def _envelope(value: Any, folder: Path) -> Envelope:
    return Envelope(one_of(*Envelope)(value, folder))


UPLINK_KEYS: Final[Mapping[str, tuple[Parse, Any]]] = {
    "host": (_host, REQUIRED),
    "port": (whole(1, 65535), 8883),
    "ca_file": (file, REQUIRED),
    "cert_file": (file, REQUIRED),
    "key_file": (private_file, REQUIRED),
    "publish": (_topics(parse_publish), []),
    "subscribe": (_topics(parse_subscribe), []),
    "backlog_rate": (whole(1, 1_000_000), 200),
    "backlog_burst": (whole(1, 1_000_000), 400),
    "backlog_bytes_per_s": (whole(1024, MAX_RATE), 1048576),
    "max_inflight": (whole(2, 10_000), 100),
    "spool_max_bytes": (whole(65536, MAX_RATE), 1073741824),
    "spool_full": (one_of("withhold", "drop-oldest"), "withhold"),
    "envelope": (_envelope, "json"),
}
