"""Text fields of MQTT 3.1.1 packets: UTF-8 strings, topic names and topic filters.

Everything here turns bytes of the peer into `str` or raises `MalformedPacket` with the clause that was
broken; a caller that gets a value may route, compare and store it without looking again. Nothing is
normalised, stripped or replaced [MQTT-1.5.3-3, MQTT-4.7.3-4]. Control characters and non-characters,
which a receiver may refuse, are accepted: refusing them is no rule of MQTT, and what reaches a log is
escaped there.

Specification: MQTT 3.1.1 sections 1.5.3 and 4.7.
"""

from __future__ import annotations

MAX_TEXT_BYTES = 65_535
"""A two-byte length cannot say more [MQTT-4.7.3-3]."""


class MalformedPacket(Exception):
    """The peer broke a rule of the packet format; the connection must be closed [MQTT-4.8.0-1].

    `clause` is the broken statement as the specification spells it ("MQTT-2.2.2-2"), or the section
    ("section 2.2.3") where the rule has no number. The message never quotes the peer's bytes.
    """

    def __init__(self, clause: str, message: str) -> None:
        super().__init__(clause, message)
        self.clause = clause
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} [{self.clause}]"


class UnacceptableProtocol(Exception):
    """CONNECT names MQTT with a level other than 4: answer CONNACK 1, then close [MQTT-3.1.2-2]."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.level = level

    def __str__(self) -> str:
        return f"protocol level {self.level} is not supported, only 4 is [MQTT-3.1.2-2]"


def check_text(raw: bytes) -> str:
    """Decode a UTF-8 string of any length, strictly: no surrogates, no overlong forms, no U+0000."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        # Without "from None" the peer's bytes would hang on the exception.
        raise MalformedPacket("MQTT-1.5.3-1", "a string is not well-formed utf-8") from None
    if "\0" in text:
        raise MalformedPacket("MQTT-1.5.3-2", "a string contains U+0000")
    return text


def check_topic_name(raw: bytes, wildcard_clause: str = "MQTT-3.3.2-2") -> str:
    """Decode the topic name of a PUBLISH or a will: at least one character, no wildcard."""
    _check_topic_size(raw)
    if b"+" in raw or b"#" in raw:
        raise MalformedPacket(wildcard_clause, "a topic name contains a wildcard")
    return check_text(raw)


def check_topic_filter(raw: bytes) -> str:
    """Decode a topic filter: at least one character, `#` only as last level, `+` only as a whole level."""
    _check_topic_size(raw)
    text = check_text(raw)
    at = text.find("#")
    if at >= 0 and (at != len(text) - 1 or (at > 0 and text[at - 1] != "/")):
        raise MalformedPacket("MQTT-4.7.1-2", "# is not the whole last level of a topic filter")
    # As many levels that are exactly "+" as there are plus signs: then none shares its level.
    if "+" in text and text.count("+") != text.split("/").count("+"):
        raise MalformedPacket("MQTT-4.7.1-3", "+ does not fill a whole level of a topic filter")
    return text


def _check_topic_size(raw: bytes) -> None:
    if not raw:
        raise MalformedPacket("MQTT-4.7.3-1", "a topic is empty")
    if len(raw) > MAX_TEXT_BYTES:
        raise MalformedPacket("MQTT-4.7.3-3", f"a topic is longer than {MAX_TEXT_BYTES} bytes")
