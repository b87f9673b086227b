"""One connection of the agent against a TLS server that says exactly what a test wants: return codes, silence, ends."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from device_sim import mqtt_client
from device_sim.connection_faults import ConnectionFault, Endpoint, connect_fault
from device_sim.mqtt_client import Connection, State
from gateway.broker.packets import encode_publish
from mtls.errors import Reason
from mtls.tls import client_context, server_context
from mtls.trust import TrustStore
from tests.support.pki import Pki

STATE = State("devices/dev-a/state")
CONNACK = b"\x20\x02\x00"


@contextmanager
def gateway(pki: Pki, answer: Callable[[ssl.SSLSocket], object]) -> Iterator[Endpoint]:
    """A TLS server for one connection; `answer` is called after CONNECT has arrived."""
    server = pki.server()
    trust = TrustStore.from_pem(pki.ca_file.read_bytes(), "test")
    context = server_context(cert_file=server.cert_file, key_file=server.key_file, trust=trust)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def serve() -> None:
        peer, _ = listener.accept()
        peer.settimeout(20)
        with context.wrap_socket(peer, server_side=True) as stream:
            assert stream.recv(4096)[0] == 0x10
            answer(stream)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Endpoint("localhost", listener.getsockname()[1], str(pki.ca_file))
    finally:
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def connect(endpoint: Endpoint, pki: Pki) -> Connection:
    device = pki.device("dev-a")
    context = client_context(ca_file=pki.ca_file, cert_file=device.cert_file, key_file=device.key_file)
    return Connection(endpoint, context, "dev-a", STATE)


def run_until_lost(connection: Connection) -> None:
    while True:
        connection.step(20)


@pytest.mark.parametrize(
    ("code", "words", "is_permanent"),
    [
        (1, "does not speak MQTT 3.1.1", True),
        (2, "refused the client identifier", True),
        (3, "is not ready to serve", False),
        (4, "refused user name or password", True),
        (5, "did not authorise this device", True),
    ],
)
def test_each_return_code_has_its_sentence(code: int, words: str, is_permanent: bool, pki: Pki) -> None:
    """1, 2, 4 and 5 are permanent; 3 is worth another try."""
    say = CONNACK + bytes([code])
    with gateway(pki, lambda stream: stream.sendall(say)) as endpoint, pytest.raises(ConnectionFault) as caught:
        connect(endpoint, pki)
    assert words in str(caught.value)
    assert code == 1 or f"(return code {code})" in str(caught.value)
    assert caught.value.is_permanent is is_permanent


def test_an_accepted_connection_is_no_fault(pki: Pki) -> None:
    """The twin: return code 0, then DISCONNECT in order."""
    heard = b""

    def accept(stream: ssl.SSLSocket) -> None:
        nonlocal heard
        stream.sendall(CONNACK + b"\0")
        heard = stream.recv(100)

    with gateway(pki, accept) as endpoint:
        connection = connect(endpoint, pki)
        assert not connection.is_lost
        connection.close()
    assert heard == b"\xe0\x00"


def test_a_gateway_that_closes_without_a_word_is_tried_again(pki: Pki) -> None:
    """It may be restarting: not permanent, and the hint is its audit log."""
    with gateway(pki, lambda stream: None) as endpoint, pytest.raises(ConnectionFault) as caught:
        connect(endpoint, pki)
    assert "closed the connection without an answer" in str(caught.value)
    assert not caught.value.is_permanent


def test_a_gateway_that_does_not_answer_connect_is_given_up(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS stands and nothing comes: the time limit ends it."""
    monkeypatch.setattr(mqtt_client, "CONNACK_TIMEOUT_S", 0.2)
    done = threading.Event()
    with gateway(pki, lambda stream: done.wait(20)) as endpoint:
        with pytest.raises(ConnectionFault, match=r"did not answer CONNECT in 0\.2 s"):
            connect(endpoint, pki)
        done.set()


def test_a_connection_lost_later_is_a_passing_fault(pki: Pki) -> None:
    """Accepted and then gone: the sentence says lost, not refused."""
    with gateway(pki, lambda stream: stream.sendall(CONNACK + b"\0")) as endpoint:
        connection = connect(endpoint, pki)
        with pytest.raises(ConnectionFault, match="was lost") as caught:
            run_until_lost(connection)
        connection.abandon()
    assert not caught.value.is_permanent


def test_a_giant_packet_is_not_taken_into_memory(pki: Pki) -> None:
    """256 MiB announced: the length alone ends the connection, and the sentence says so."""
    accepted = threading.Event()

    def announce(stream: ssl.SSLSocket) -> None:
        stream.sendall(CONNACK + b"\0")
        accepted.wait(20)
        stream.sendall(b"\x30\xff\xff\xff\x7f")

    with gateway(pki, announce) as endpoint:
        connection = connect(endpoint, pki)
        accepted.set()
        with pytest.raises(ConnectionFault, match="a packet of more than 1048576 bytes") as caught:
            run_until_lost(connection)
        connection.abandon()
    assert caught.value.reason is Reason.PACKET_TOO_LARGE


def test_a_large_message_arrives(pki: Pki) -> None:
    """The twin: one below the limit, larger than a TLS record."""
    payload = b"x" * 1_000_000
    publish = encode_publish(b"c", payload, 0, False, False, 0)

    def answer(stream: ssl.SSLSocket) -> None:
        stream.sendall(CONNACK + b"\0" + publish)
        stream.recv(1)

    with gateway(pki, answer) as endpoint:
        connection = connect(endpoint, pki)
        while not connection.received:
            connection.step(20)
        connection.close()
    assert connection.received[0].payload == payload


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "cannot find the address of gw"),
        (TimeoutError("timed out"), "gw:8883 did not answer in 5 s"),
        (ConnectionRefusedError(111, "Connection refused"), "cannot connect to gw:8883: connection refused"),
        (OSError(113, "No route to host"), "cannot connect to gw:8883: no route to host"),
    ],
)
def test_the_network_is_never_permanent(error: OSError, words: str) -> None:
    """Names, routes and refused connections change by themselves."""
    fault = connect_fault(error, Endpoint("gw", 8883))
    assert str(fault) == words
    assert not fault.is_permanent


def test_an_address_with_colons_is_bracketed() -> None:
    """As a person would write it on the command line."""
    assert str(Endpoint("::1", 8883)) == "[::1]:8883"
