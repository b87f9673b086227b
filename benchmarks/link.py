"""One MQTT client of the generator: a socket and a TLS object, driven by whoever polls.

TLS works in memory, so that records can be sealed before a measurement begins and only be sent while it runs: what
the generator does per message is then one `send`. Sealed records must leave in the order in which they were sealed.
"""

import select
import socket
import ssl
import time
from collections.abc import Iterable

from benchmarks.pki import Pki
from gateway.broker.packets import DISCONNECT, Connect, encode_connect, encode_subscribe, fixed_header
from mtls.tls import client_context

SOURCES = 8  # addresses that connections come from, because a broker may limit handshakes per address
KEEP_ALIVE_S = 3600  # longer than a measurement: no PINGREQ among the messages
STUCK_S = 20.0
ONE_RECORD = 1 << 14
_ARRIVED = memoryview(bytearray(1 << 17))  # one process reads one link at a time; a new buffer per read costs more
_PLAIN = memoryview(bytearray(ONE_RECORD))


class Broken(ConnectionError):
    """A client was refused or cut off; says which."""


class Link:
    """A client of one name, not yet connected. `filters` are subscribed to after CONNACK."""

    __slots__ = (
        "_expected",
        "_incoming",
        "_outgoing",
        "_pending",
        "_quick",
        "_tls",
        "filters",
        "name",
        "qos",
        "socket",
    )

    def __init__(self, context: ssl.SSLContext, name: str, filters: tuple[str, ...] = (), qos: int = 0) -> None:
        self.name, self.filters, self.qos = name, filters, qos
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._expected: list[str] = ["handshake", "CONNACK", *(["SUBACK"] if filters else [])]
        self._pending = b""
        self._quick = False
        self.socket = socket.socket()

    def start(self, port: int, number: int) -> None:
        """Connect and send the client hello."""
        self.socket.settimeout(STUCK_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.bind((f"127.0.0.{2 + number % SOURCES}", 0))
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)
        self._handshake()

    def advance(self) -> bool:
        """Take what arrived on the way to being connected and subscribed; whether it is."""
        try:
            self.hold()
            if self._expected[0] == "handshake" and not self._handshake():
                return False
            self._pending += self._plain()
        except ssl.SSLError as error:
            raise Broken(f"{self.name}: {error.reason}") from None
        while self._expected and self._pending:
            head = {"CONNACK": b"\x20\x02\x00\x00", "SUBACK": b"\x90"}[self._expected[0]]
            found = fixed_header(self._pending, 0)
            if found is None or len(self._pending) < (end := found[2]):
                return False
            packet, self._pending = self._pending[:end], self._pending[end:]
            if not packet.startswith(head) or (head == b"\x90" and 0x80 in packet[-len(self.filters) :]):
                raise Broken(f"{self.name}: no {self._expected[0]} of consent but {packet[:16].hex()}")
            if self._expected.pop(0) == "CONNACK" and self.filters:
                self.send(self.seal(encode_subscribe(1, [(text, self.qos) for text in self.filters])))
        return not self._expected

    def _handshake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self.send(self._outgoing.read())
            return False
        self._expected.pop(0)
        self._tls.write(encode_connect(Connect(self.name, True, KEEP_ALIVE_S, None, None, None)))
        self.send(self._outgoing.read())
        return True

    def seal(self, packets: bytes) -> bytes:
        """The TLS record of some packets, to be sent after all that were sealed before it."""
        self._tls.write(packets)
        return self._outgoing.read()

    def send(self, record: bytes) -> None:
        """Send it all; where the socket's buffer is full, wait for it."""
        sent = 0
        while sent < len(record):
            try:
                sent += self.socket.send(record[sent:] if sent else record)
            except BlockingIOError:
                if not select.select((), (self.socket,), (), STUCK_S)[1]:
                    raise Broken(f"{self.name}: the broker has read nothing for {STUCK_S:.0f} s") from None

    def acknowledge_at_once(self) -> None:
        """No delayed ACK of TCP: it would wait for a broker that waits for it (Nagle), which measures neither."""
        self._quick = True

    def read(self) -> bytes:
        """The packets, or parts of them, that have arrived since."""
        self.hold()
        return self._plain()

    def hold(self) -> None:
        """Take what has arrived off the socket; `read` decrypts it later, when nobody measures."""
        try:
            count = self.socket.recv_into(_ARRIVED)
        except BlockingIOError:
            return
        if not count:
            raise Broken(f"{self.name}: closed by the broker")
        self._incoming.write(_ARRIVED[:count])
        if self._quick:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # holds for one read

    def _plain(self) -> bytes:
        parts = []
        try:
            while self._incoming.pending or self._tls.pending():
                count: int = self._tls.read(ONE_RECORD, _PLAIN)  # type: ignore[assignment]  # typeshed takes it for bytes
                parts.append(bytes(_PLAIN[:count]))
        except ssl.SSLWantReadError:
            pass  # a part of a record
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Say goodbye where possible."""
        try:
            if not self._expected:
                self.socket.send(self.seal(DISCONNECT))
        except OSError:
            pass  # it is gone already, which is what was wanted
        self.socket.close()


def make_links(pki: Pki, names: Iterable[str], filters: tuple[str, ...] = (), qos: int = 0) -> list[Link]:
    """Links with the certificate of each name; `{id}` in a filter is the name. One context serves: TLS copies it."""
    context = client_context(ca_file=pki.ca_file)
    links = []
    for name in names:
        context.load_cert_chain(*pki.credential(name))
        links.append(Link(context, name, tuple(text.replace("{id}", name) for text in filters), qos))
    return links


def connect_all(links: list[Link], port: int, at_once: int) -> None:
    """Connect and subscribe all of them, `at_once` at a time; Broken when one is refused or nothing goes on."""
    poll, waiting = select.epoll(), enumerate(links)
    active: dict[int, Link] = {}
    moved = time.monotonic()
    with poll:
        while True:
            while len(active) < at_once and (item := next(waiting, None)) is not None:
                number, link = item
                link.start(port, number)
                active[link.socket.fileno()] = link
                poll.register(link.socket, select.EPOLLIN)
            if not active:
                return
            for descriptor, _ in poll.poll(1.0):
                moved = time.monotonic()
                if active[descriptor].advance():
                    poll.unregister(descriptor)
                    del active[descriptor]
            if time.monotonic() - moved > STUCK_S:
                raise Broken(
                    f"{len(active)} clients wait for the broker, {next(iter(active.values())).name} among them"
                )
