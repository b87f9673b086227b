"""Attacks on admission and sessions: traps S1 to S13. Who gets in, as whom, and what a refused one leaves behind."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from device_sim.attacks.ground import Attack, Finding, Ground
from device_sim.attacks.raw_client import Closed, RawClient
from device_sim.targets.site import MAX_CONNECTIONS
from gateway.broker.packets import Connect, Will, encode_connect

MANY, LARGE_WILL_BYTES, GROWTH_BYTES = 200, 60_000, 8 << 20
IDLE = 250
BEGINNING_BYTES = 1000
HUNDRED_MILLION = bytes.fromhex("80c2d72f")  # as a remaining length, section 2.2.3
# A ClientHello of TLS 1.1, which offers nothing newer (RFC 4346 section 7.4.1.2): AES-CBC with ECDHE, for servers whose
# certificates are ECDSA's or RSA's, and with RSA.
TLS_1_1_HELLO = bytes.fromhex(
    "16030100430100003f0302" + "5a" * 32 + "00000ec009c00ac013c014002f0035000a0100000800" + "0a000400020017"
)
SERVER_HELLO = 0x16


def no_certificate(ground: Ground) -> Finding:
    answer = ground.knock(None, "s1-nobody")
    return Finding(not answer.is_admitted, str(answer))


def old_tls(ground: Ground) -> Finding:
    with socket.create_connection(("127.0.0.1", ground.target.endpoint.port), timeout=5) as sock:
        sock.sendall(TLS_1_1_HELLO)
        try:
            first = sock.recv(1)
        except OSError:
            first = b""
    return Finding(first != bytes((SERVER_HELLO,)), f"answered with record type {first.hex() or 'nothing'}")


def _stranger_names_me(as_nobody: bool, clean: bool) -> Callable[[Ground], Finding]:
    def run(ground: Ground) -> Finding:
        name = f"s2-a-{as_nobody:d}{clean:d}"
        mine = ground.connected(name, clean=False)
        mine.subscribe((f"devices/{name}/commands/#", 1))
        if not clean:
            mine.disconnect()
        stranger = None if as_nobody else ground.device("s2-b")
        answer = ground.knock(stranger, name, clean=clean)
        if clean and not mine.is_alive():
            return Finding(False, f"{answer}, and the owner's live connection was closed")
        if clean:
            mine.disconnect()
        ground.observer().publish(f"devices/{name}/commands/x", b"for-me", 1)
        back = ground.client(ground.device(name))
        present = back.connect(name, clean=False)
        if not present.is_admitted or not present.session_present:
            return Finding(False, f"{answer}, and the owner's session is gone")
        if back.heard(b"for-me") is None:
            return Finding(False, f"{answer}, and the owner's message is gone")
        return Finding(not answer.is_admitted, f"{answer}; owner keeps session and queue")

    return run


def refused_leave_nothing(ground: Ground) -> Finding:
    will = Will("devices/s4-b/state", b"w" * LARGE_WILL_BYTES, 0, False)
    stranger, admitted, before = ground.device("s4-b"), 0, 0
    for number in range(2 * MANY):
        if number == MANY:  # buffers and caches of the first ones are no growth
            before = ground.rss_bytes()
        admitted += ground.knock(stranger, "s4-a", will=will).is_admitted
    grown = ground.rss_bytes() - before
    return Finding(
        not admitted and grown < GROWTH_BYTES, f"{admitted} of {2 * MANY} let in, {grown / 1e6:.1f} MB grown"
    )


def idle_do_not_keep_out(ground: Ground) -> Finding:
    idle = ground.device("s4-idle")
    for _ in range(IDLE):
        with contextlib.suppress(Closed):  # to be turned away is no harm to it
            ground.client(idle)
    started = time.monotonic()
    is_served = ground.connected("s4-honest").is_alive()
    return Finding(is_served, f"beside {IDLE} idle connections served in {time.monotonic() - started:.2f} s")


def _wrong(how: str, client_id: str = "{id}") -> Callable[[Ground], Finding]:
    def run(ground: Ground) -> Finding:
        name = f"s5-{how}"
        identity = ground.target.site.ca.wrong(name, how)
        answer = ground.knock(identity, client_id.replace("{id}", name))
        return Finding(not answer.is_admitted, str(answer))

    return run


def renewal_applies(ground: Ground) -> Finding:
    old = ground.device("s7-a")
    first = ground.client(old)
    first.connect("s7-a", clean=False)
    first.disconnect()
    kept = old.cert_file.with_name("s7-old.pem")
    kept.write_bytes(old.cert_file.read_bytes())
    kept.chmod(0o600)
    was = type(old)("s7-a", kept, kept, old.ca_file)
    new = ground.target.site.ca.new("s7-a")
    ground.target.revoke(was)
    with_new, with_old = ground.knock(new, "s7-a", clean=False), ground.knock(was, "s7-a", clean=False)
    return Finding(
        with_new.is_admitted and not with_old.is_admitted, f"new certificate: {with_new}, old and revoked: {with_old}"
    )


def takes_over_itself(ground: Ground) -> Finding:
    observer = ground.observer()
    old = ground.connected("s8-a", clean=False, will=Will("devices/s8-a/state", b"s8-gone", 1, False))
    new = ground.client(ground.device("s8-a"))
    if not new.connect("s8-a", clean=False).is_admitted:
        return Finding(False, "the device could not come back")
    if not old.is_closed_within(ground.patience_s):
        return Finding(False, "the half-open connection stays")
    if observer.heard(b"s8-gone") is None:
        return Finding(False, "the will did not fire [MQTT-3.1.2-8]")
    new.subscribe(("devices/s8-a/commands/#", 0))
    observer.publish("devices/s8-a/commands/x", b"s8-alive")
    return Finding(new.heard(b"s8-alive") is not None, "old socket closed, will fired, messages flow on the new one")


def time_limits(ground: Ground) -> Finding:
    """Silence before TLS, silence before CONNECT and a dripping CONNECT, side by side."""
    packet = encode_connect(Connect("s9-a", True, 60, None, None, None))
    open_still: list[str] = []

    def silent_tcp() -> None:
        with socket.create_connection(("127.0.0.1", ground.target.endpoint.port), timeout=ground.patience_s) as sock:
            try:
                sock.recv(1)
            except TimeoutError:
                open_still.append("TCP without TLS")
            except OSError:
                pass

    def silent_tls() -> None:
        if not silent.is_closed_within(ground.patience_s):
            open_still.append("TLS without CONNECT")

    def dripping() -> None:
        deadline = time.monotonic() + ground.patience_s
        try:
            for byte in packet * 50:
                drip.send(bytes((byte,)))
                if drip.is_closed_within(0.2):
                    return
                if time.monotonic() > deadline:
                    open_still.append("CONNECT byte by byte")
                    return
        except Closed:
            return

    silent, drip = ground.client(ground.device("s9-a")), ground.client(ground.device("s9-b"))
    threads = [threading.Thread(target=work, daemon=True) for work in (silent_tcp, silent_tls, dripping)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Finding(not open_still, f"still open after {ground.patience_s:g} s: {', '.join(open_still) or 'none'}")


def _is_refused_early(client: RawClient, header: bytes) -> Finding:
    """Whether the fixed header and the first bytes of the body are enough for a no."""
    with contextlib.suppress(Closed):
        client.send(header + bytes(BEGINNING_BYTES))
    is_closed = client.is_closed_within(2.0)
    return Finding(is_closed, f"{'closed' if is_closed else 'waits for the rest'} after {BEGINNING_BYTES} bytes of it")


def huge_connect(ground: Ground) -> Finding:
    return _is_refused_early(ground.client(ground.device("s10-a")), b"\x10" + HUNDRED_MILLION)


def huge_publish(ground: Ground) -> Finding:
    return _is_refused_early(ground.connected("s10-b"), b"\x30" + HUNDRED_MILLION)


def keep_alive(ground: Ground) -> Finding:
    observer = ground.observer()
    client = ground.connected("s11-a", keep_alive_s=1, will=Will("devices/s11-a/state", b"s11-silent", 1, False))
    if not client.is_closed_within(ground.patience_s):
        return Finding(False, f"a silent client of keep alive 1 s is connected after {ground.patience_s:g} s")
    return Finding(observer.heard(b"s11-silent") is not None, "closed, and its will fired")


def keep_alive_in_a_packet(ground: Ground) -> Finding:
    client = ground.connected("s11-b", keep_alive_s=1)
    client.send(b"\x30\xe8\x07")  # a PUBLISH of 1,000 bytes that never comes
    is_closed = client.is_closed_within(ground.patience_s)
    return Finding(is_closed, f"stalled in a packet: {'closed' if is_closed else 'open'} after {ground.patience_s:g} s")


def resumed_after_revocation(ground: Ground) -> Finding:
    identity = ground.target.site.ca.new("s12-a")
    first = ground.client(identity, tls="1.2")
    if not first.connect("s12-a").is_admitted:
        return Finding(False, "TLS 1.2 was not served")
    context, session = first.socket.context, first.socket.session
    first.disconnect()
    ground.target.revoke(identity)
    try:
        again = ground.again(context, session)
        reused, answer = again.socket.session_reused, again.connect("s12-a")
    except Closed:
        return Finding(True, "the handshake was refused")
    return Finding(not answer.is_admitted, f"session resumed: {bool(reused)}, {answer}")


def beyond_the_limit(ground: Ground) -> Finding:
    """Devices that are let in, one after the other, until one is not."""
    served, started = 0, 0.0
    for number in range(MAX_CONNECTIONS + 20):
        started = time.monotonic()
        if ground.knock_in(f"s13-{number}") is None:
            break
        served += 1
    waited = time.monotonic() - started
    return Finding(served <= MAX_CONNECTIONS and waited < 3, f"{served} served, the next waited {waited:.1f} s")


ATTACKS = (
    Attack("S1", "no certificate", "no CONNACK without a client certificate", no_certificate),
    Attack("S1", "TLS 1.1", "nothing below TLS 1.2 is served", old_tls),
    Attack("S2", "a stranger names my client id", "refused, my session stays", _stranger_names_me(False, False)),
    Attack("S2", "nobody names my client id", "refused, my session stays", _stranger_names_me(True, False)),
    Attack("S3", "a stranger, clean session", "refused, my live session stays", _stranger_names_me(False, True)),
    Attack("S4", "refused CONNECTs with 60 kB wills", "nothing is left behind", refused_leave_nothing),
    Attack("S4", f"{IDLE} idle connections", "a device gets in beside them", idle_do_not_keep_out),
    Attack("S5", "two common names", "refused", _wrong("two-names")),
    Attack("S5", "no name", "refused", _wrong("no-name")),
    Attack("S5", "a name with a slash", "refused", _wrong("wrong-name", "{id}/x")),
    Attack("S6", "another CA of our CA's name", "refused", _wrong("wrong-ca")),
    Attack("S6", "self-signed", "refused", _wrong("self-signed")),
    Attack("S6", "a server's certificate", "refused", _wrong("wrong-usage")),
    Attack("S6", "a CA's certificate", "refused", _wrong("is-a-ca")),
    Attack("S7", "the old certificate after a renewal", "the new one serves, the old does not", renewal_applies),
    Attack("S8", "a device and its own half-open self", "takes over, will fires", takes_over_itself),
    Attack("S9", "silence and dripping", "closed at the time limit", time_limits),
    Attack("S10", "a CONNECT of 100 MB", "refused from its fixed header", huge_connect),
    Attack("S10", "a PUBLISH of 100 MB", "refused from its fixed header", huge_publish),
    Attack("S11", "silence beyond keep alive", "closed at 1.5 times, will fires", keep_alive),
    Attack("S11", "a packet that never ends", "keep alive counts whole packets", keep_alive_in_a_packet),
    Attack("S12", "a resumed session of a revoked device", "refused", resumed_after_revocation),
    Attack("S13", "beyond max_connections", "refused at once, not kept waiting", beyond_the_limit),
)
