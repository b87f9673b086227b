"""The codec judged by others: amqtt's codec packet by packet, and a paho-mqtt client in conversation with it."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import paho.mqtt.client as paho
import pytest
from amqtt.adapters import BufferReader
from amqtt.mqtt import packet_class
from amqtt.mqtt.connack import ConnackPacket
from amqtt.mqtt.connect import ConnectPacket, ConnectPayload, ConnectVariableHeader
from amqtt.mqtt.packet import MQTTFixedHeader, PacketIdVariableHeader
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion

from gateway.broker.packets import (
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    Connect,
    PacketType,
    Will,
    decode_connect,
    decode_packet_id,
    decode_publish,
    decode_subscribe,
    decode_unsubscribe,
    encode_ack,
    encode_connack,
    encode_connect,
    encode_publish,
    encode_suback,
    encode_subscribe,
    encode_unsubscribe,
    fixed_header,
)

# amqtt against ours


def amqtt_reads(raw: bytes) -> Any:
    """What amqtt's decoder makes of one packet."""

    async def read() -> Any:
        reader = BufferReader(raw)
        header = await MQTTFixedHeader.from_stream(reader)
        assert header is not None
        return await packet_class(header).from_stream(reader, fixed_header=header)

    return asyncio.run(read())


def body_of(raw: bytes) -> tuple[int, bytes]:
    header = fixed_header(raw, 0)
    assert header is not None
    first, start, end = header
    assert end == len(raw)
    return first, raw[start:end]


names = st.text("ab/é $", min_size=1, max_size=12)
calm = settings(deadline=None, max_examples=60)


@calm
@given(names, st.binary(max_size=300), st.integers(0, 2), st.booleans(), st.booleans(), st.integers(1, 65_535))
def test_amqtt_and_we_agree_on_publish(
    topic: str, payload: bytes, qos: int, retain: bool, dup: bool, packet_id: int
) -> None:
    """The same bytes from the same message, and the same message from the bytes."""
    dup = dup and qos > 0
    theirs = PublishPacket.build(topic, payload, packet_id if qos else None, dup, qos, retain).to_bytes()
    assert encode_publish(topic.encode(), payload, qos, retain, dup, packet_id) == theirs
    assert decode_publish(*body_of(theirs)) == (topic, payload, qos, retain, dup, packet_id if qos else 0)


@calm
@given(st.integers(1, 65_535), st.lists(st.tuples(names, st.integers(0, 2)), min_size=1, max_size=5))
def test_amqtt_and_we_agree_on_subscribe_and_unsubscribe(packet_id: int, wishes: list[tuple[str, int]]) -> None:
    """Both directions."""
    theirs = SubscribePacket.build(wishes, packet_id).to_bytes()
    assert encode_subscribe(packet_id, wishes) == theirs
    assert decode_subscribe(body_of(theirs)[1]) == (packet_id, tuple(wishes))
    filters = [topic_filter for topic_filter, _ in wishes]
    theirs = UnsubscribePacket.build(filters, packet_id).to_bytes()
    assert encode_unsubscribe(packet_id, filters) == theirs
    assert decode_unsubscribe(body_of(theirs)[1]) == (packet_id, tuple(filters))


def amqtt_connect(connect: Connect) -> bytes:
    header = ConnectVariableHeader(keep_alive=connect.keep_alive_s)
    header.clean_session_flag = connect.clean_session
    payload = ConnectPayload(client_id=connect.client_id)
    if connect.will is not None:
        header.will_flag = True
        header.will_qos = connect.will.qos
        header.will_retain_flag = connect.will.retain
        payload.will_topic, payload.will_message = connect.will.topic, connect.will.payload
    if connect.user_name is not None:
        header.username_flag = True
        payload.username = connect.user_name
    if connect.password is not None:
        header.password_flag = True
        payload.password = connect.password.decode()
    packet: bytes = ConnectPacket(variable_header=header, payload=payload).to_bytes()
    return packet


CONNECTS = [
    Connect("x", True, 60, None, None, None),
    Connect("x", False, 65_535, None, "user", None),
    Connect("é", True, 0, None, "user", b"pass"),
    Connect("x", True, 1, Will("a/b", b"gone", 0, False), None, None),
    Connect("x", False, 256, Will("a", b"x" * 300, 1, True), None, None),
    Connect("x", True, 60, Will("a", b"\xff\x00", 2, True), "user", b"pass"),
]


@pytest.mark.parametrize("connect", CONNECTS, ids=range(len(CONNECTS)))
def test_amqtt_and_we_agree_on_connect(connect: Connect) -> None:
    """Both directions, every flag."""
    theirs = amqtt_connect(connect)
    assert encode_connect(connect) == theirs
    assert decode_connect(body_of(theirs)[1]) == connect


def test_amqtt_reads_our_answers() -> None:
    """CONNACK, SUBACK and the acknowledgements by a decoder that is not ours."""
    connack = amqtt_reads(encode_connack(True, 0))
    assert isinstance(connack, ConnackPacket)
    assert (connack.session_parent, connack.return_code) == (1, 0)
    assert amqtt_reads(encode_connack(False, 5)).return_code == 5
    suback = amqtt_reads(encode_suback(258, [0, 1, 2, 0x80]))
    assert isinstance(suback, SubackPacket)
    assert suback.variable_header.packet_id == 258
    assert suback.payload.return_codes == [0, 1, 2, 0x80]
    for kind in (4, 5, 6, 7, 11):
        packet = amqtt_reads(encode_ack(kind, 40_000))
        assert packet.fixed_header.packet_type == kind
        assert isinstance(packet.variable_header, PacketIdVariableHeader)
        assert packet.variable_header.packet_id == 40_000
        assert decode_packet_id(kind, body_of(packet.to_bytes())[1]) == 40_000
    for raw, kind in ((PINGREQ, 12), (PINGRESP, 13), (DISCONNECT, 14)):
        packet = amqtt_reads(raw)
        assert packet.fixed_header.packet_type == kind
        assert packet.to_bytes() == raw


# paho in conversation


class Conversation:
    """A paho client and a socket that speaks through our codec, on the loopback, without threads."""

    def __init__(self, **options: Any) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311, **options)
        self.messages: list[tuple[str, bytes, int, bool]] = []
        self.granted: list[int] = []
        self.published: list[int] = []
        self.connected: list[tuple[int, bool]] = []
        self.client.on_message = self._on_message
        self.client.on_subscribe = lambda _c, _u, _m, codes, _p: self.granted.extend(c.value for c in codes)
        self.client.on_publish = lambda _c, _u, mid, _r, _p: self.published.append(mid)
        self.client.on_connect = lambda _c, _u, flags, reason, _p: self.connected.append(
            (reason.value, flags.session_present)
        )
        self._buffer = bytearray()

    def _on_message(self, _client: Any, _user: Any, message: paho.MQTTMessage) -> None:
        self.messages.append((message.topic, bytes(message.payload), message.qos, message.retain))

    def __enter__(self) -> Conversation:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(10)
            self.client.connect("127.0.0.1", listener.getsockname()[1], keepalive=60)
            self.server, _ = listener.accept()
        self.server.settimeout(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.disconnect()
        self.server.close()

    def heard(self) -> tuple[int, bytes]:
        """The next packet of paho: first byte and body."""
        while True:
            while self.client.want_write():
                self.client.loop_write()
            header = fixed_header(self._buffer, 0)
            if header is not None and header[2] <= len(self._buffer):
                first, start, end = header
                body = bytes(self._buffer[start:end])
                del self._buffer[:end]
                return first, body
            piece = self.server.recv(65_536)
            assert piece, "paho closed the connection"
            self._buffer += piece

    def say(self, packet: bytes) -> None:
        """Send one packet and let paho read all of it."""
        self.server.sendall(packet)
        own = self.client.socket()
        assert own is not None
        patience_s = 10.0  # for the first piece; what one send left over is there at once on the loopback
        while select.select([own], [], [], patience_s)[0]:
            assert self.client.loop_read() == paho.MQTT_ERR_SUCCESS
            patience_s = 0.05


@pytest.fixture
def conversation() -> Iterator[Conversation]:
    with Conversation(client_id="device-1", clean_session=False) as talk:
        first, body = talk.heard()
        assert first == 0x10
        assert decode_connect(body) == Connect("device-1", False, 60, None, None, None)
        talk.say(encode_connack(True, 0))
        assert talk.connected == [(0, True)]
        yield talk


def test_paho_connects_with_a_will_and_a_password() -> None:
    """Each field of paho's CONNECT arrives where it belongs."""
    talk = Conversation(client_id="é", clean_session=True)
    talk.client.username_pw_set("user", "secret")
    talk.client.will_set("devices/x/state", b"gone", qos=2, retain=True)
    with talk:
        assert decode_connect(talk.heard()[1]) == Connect(
            "é", True, 60, Will("devices/x/state", b"gone", 2, True), "user", b"secret"
        )


def test_paho_understands_a_refusal() -> None:
    """CONNACK 5 reaches paho's caller as not authorized (135 in the numbers of MQTT 5, which paho reports)."""
    with Conversation(client_id="x") as talk:
        talk.heard()
        talk.server.sendall(encode_connack(False, 5))
        own = talk.client.socket()
        assert own is not None
        assert select.select([own], [], [], 10)[0]
        talk.client.loop_read()
        assert talk.connected == [(135, False)]


def test_paho_subscribes_and_unsubscribes(conversation: Conversation) -> None:
    """Filters and QoS in order, the codes of our SUBACK in order."""
    conversation.client.subscribe([("a/#", 2), ("+/b", 1), ("é", 0)])
    first, body = conversation.heard()
    packet_id, wishes = decode_subscribe(body)
    assert (first, wishes) == (0x82, (("a/#", 2), ("+/b", 1), ("é", 0)))
    conversation.say(encode_suback(packet_id, [2, 0x80, 0]))
    assert conversation.granted == [2, 0x80, 0]
    conversation.client.unsubscribe(["a/#", "é"])
    first, body = conversation.heard()
    packet_id, filters = decode_unsubscribe(body)
    assert (first, filters) == (0xA2, ("a/#", "é"))
    conversation.say(encode_ack(PacketType.UNSUBACK, packet_id))


@pytest.mark.parametrize("size", [0, 1, 100, 5_000, 40_000])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_paho_publishes_in_every_qos(conversation: Conversation, qos: int, size: int) -> None:
    """Its PUBLISH is decoded, and our acknowledgements complete its exchange."""
    info = conversation.client.publish("devices/x/é", b"p" * size, qos=qos, retain=True)
    publish = decode_publish(*conversation.heard())
    assert publish == ("devices/x/é", b"p" * size, qos, True, False, info.mid if qos else 0)
    if qos == 1:
        conversation.say(encode_ack(PacketType.PUBACK, publish.packet_id))
    if qos == 2:
        conversation.say(encode_ack(PacketType.PUBREC, publish.packet_id))
        first, body = conversation.heard()
        assert (first, decode_packet_id(PacketType.PUBREL, body)) == (0x62, publish.packet_id)
        conversation.say(encode_ack(PacketType.PUBCOMP, publish.packet_id))
    assert conversation.published == [info.mid]


@pytest.mark.parametrize("size", [0, 1, 100, 5_000, 40_000])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_paho_receives_in_every_qos(conversation: Conversation, qos: int, size: int) -> None:
    """Our PUBLISH reaches its callback, and its acknowledgements are decoded."""
    conversation.say(encode_publish("a/é".encode(), b"p" * size, qos, True, False, 513))
    if qos == 1:
        first, body = conversation.heard()
        assert (first, decode_packet_id(PacketType.PUBACK, body)) == (0x40, 513)
    if qos == 2:
        first, body = conversation.heard()
        assert (first, decode_packet_id(PacketType.PUBREC, body)) == (0x50, 513)
        conversation.say(encode_ack(PacketType.PUBREL, 513))
        first, body = conversation.heard()
        assert (first, decode_packet_id(PacketType.PUBCOMP, body)) == (0x70, 513)
    assert conversation.messages == [("a/é", b"p" * size, qos, True)]
