"""`device-sim handshake`: one real TLS handshake with a gateway, told step by step, and what is wrong when it fails.

Connects, has the handshake watched (`mtls/handshake.py`), and puts every message into words: what was offered, what
was chosen, which certificates were shown and how they differ from our profiles, who proved what. Nothing of MQTT is
sent. Text for people in 80 columns, the same as JSON. Everything the peer sent is sanitised.
"""

import contextlib
import socket
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from device_sim.connection_faults import CONNECT_TIMEOUT_S, Endpoint, connect_fault
from device_sim.handshake_words import Shown, Words
from device_sim.settings import parse_endpoint
from mtls.errors import Fault
from mtls.handshake import GOODBYE_S, HANDSHAKE_TIMEOUT_S, End, Handshake, Message, perform
from mtls.handshake_alerts import About, Side, Verdict
from mtls.handshake_verdict import judge
from mtls.identity import UNREADABLE
from mtls.keystore import read_limited
from mtls.terminal import sanitise
from mtls.tls import client_context

WIDTH = 80
LABEL_WIDTH = 11
INDENT = " " * 17
MAX_NAME, MAX_LABEL = 253, 63
FROM_US, FROM_SERVER = ">", "<"


@dataclass(frozen=True, slots=True)
class Question:
    """What to try: where, with which files, under which name; `tls` "" leaves the version to the server."""

    endpoint: Endpoint
    server_name: str
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    tls: str = ""
    timeout_s: float = HANDSHAKE_TIMEOUT_S
    goodbye_s: float = GOODBYE_S


def question_of(
    where: str, *, server_name: str, cert: Path | None, key: Path | None, ca: Path | None, tls: str
) -> Question:
    """A question out of a command line; ValueError with a sentence for what makes no sense."""
    try:
        endpoint = parse_endpoint(where, str(ca or ""))
    except Fault:
        raise ValueError("the first argument is no HOST:PORT, for example gateway.local:8883") from None
    if (cert is None) is not (key is None):
        raise ValueError("--cert and --key belong together: give both, or neither")
    name = server_name or endpoint.host
    if not _is_host(name):
        raise ValueError("--server-name is no host name and no address")
    return Question(endpoint, name, cert, key, ca, tls)


def _is_host(name: str) -> bool:
    """An address, or labels as the TLS library takes them (RFC 1123 section 2.1, RFC 1035 section 2.3.4)."""
    is_plain = name.isascii() and name.isprintable() and " " not in name and len(name) <= MAX_NAME
    return is_plain and (":" in name or all(1 <= len(label) <= MAX_LABEL for label in name.split(".")))


@dataclass(frozen=True, slots=True)
class Step:
    """One step: who sent it (nobody: TCP), its size, and what there is to say."""

    at_ms: float
    sender: str
    name: str
    size: int
    shown: Shown


@dataclass(frozen=True, slots=True)
class Report:
    """Steps, figures and the verdict; `handshake` None when there was no connection."""

    question: Question
    address: str
    connect_ms: float
    steps: tuple[Step, ...]
    handshake: Handshake | None
    verdict: Verdict

    @property
    def exit_code(self) -> int:
        """0 when the handshake and the acceptance are fine, else 1."""
        return 0 if self.verdict.is_ok else 1

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        verdict, made = self.verdict, self.handshake
        row: dict[str, object] = {
            "endpoint": str(self.question.endpoint),
            "address": self.address,
            "server_name": sanitise(self.question.server_name),
            "ok": verdict.is_ok,
            "reason": verdict.reason,
            "at_fault": list(verdict.at_fault),
            "sentence": verdict.sentence,
            "hint": verdict.hint,
            "connect_ms": round(self.connect_ms, 2),
        }
        if made is not None:
            row |= {
                "is_complete": made.end is not End.NOT_REACHED,
                "end": made.end,
                "version": made.version,
                "cipher": made.cipher,
                "handshake_ms": round(made.handshake_ms, 2),
                "sent_bytes": made.sent_bytes,
                "received_bytes": made.received_bytes,
                "is_watched": made.is_watched,
            }
        return row | {"steps": [_step_row(step) for step in self.steps]}

    def as_text(self) -> str:
        """For people, in 80 columns."""
        name = sanitise(self.question.server_name, 64)
        lines = [_wrapped("", f"{self.question.endpoint} ({self.address or 'not connected'}) as {name}")]
        if self.steps:
            lines += ["", f"{'ms':>8} {'bytes':>6}"]
        for step in self.steps:
            lines += _step_lines(step)
        if self.handshake is not None:
            lines += ["", *_figures(self.handshake)]
        return "\n".join([*lines, "", *_verdict_lines(self.verdict)])


def examine(question: Question, now: datetime, clock: Callable[[], float] = time.monotonic) -> Report:
    """Make the handshake and report on it; ConfigFault when our own files cannot be used."""
    context = client_context(
        ca_file=question.ca,
        cert_file=question.cert,
        key_file=question.key,
        min_tls=question.tls or "1.2",
        max_tls=question.tls or "1.3",
    )
    about = About(
        server_name=question.server_name,
        ca_file=str(question.ca or ""),
        authorities=_certificates(question.ca),
        cert_file=str(question.cert or ""),
        ours=_certificates(question.cert),
        offered=f"TLS {question.tls}" if question.tls else "TLS 1.3 and 1.2",
        now=now,
    )
    started = clock()
    try:
        sock = socket.create_connection((question.endpoint.host, question.endpoint.port), CONNECT_TIMEOUT_S)
    except OSError as error:
        return _unconnected(question, connect_fault(error, question.endpoint), clock() - started)
    with sock:
        connected_s = clock() - started
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address = str(sock.getpeername()[0])
        ciphers = {int(cipher["id"]) & 0xFFFF: str(cipher["name"]) for cipher in context.get_ciphers()}
        made = perform(
            sock, context, question.server_name, timeout_s=question.timeout_s, goodbye_s=question.goodbye_s, clock=clock
        )
    verdict = judge(made, about)
    steps = _steps(made, connected_s * 1000, Words(made, about, ciphers))
    return Report(question, address, connected_s * 1000, steps, made, verdict)


def _unconnected(question: Question, fault: Fault, seconds: float) -> Report:
    reason = getattr(fault, "reason", None)
    hint = fault.hint or "check host and port, that the gateway runs, and the firewall between"
    verdict = Verdict(False, reason, (Side.PORT,), str(fault), hint.replace("--broker", "HOST:PORT"))
    return Report(question, "", seconds * 1000, (), None, verdict)


def _certificates(path: Path | None) -> tuple[x509.Certificate, ...]:
    """What can be read; the TLS library has judged the file already."""
    if path is not None:
        with contextlib.suppress(*UNREADABLE):
            return tuple(x509.load_pem_x509_certificates(read_limited(path)))
    return ()


def _steps(made: Handshake, connect_ms: float, words: Words) -> tuple[Step, ...]:
    def step(message: Message) -> Step:
        sender = FROM_US if message.is_ours else FROM_SERVER
        return Step(message.at_ms, sender, message.name, message.size, words.of(message))

    connected = Step(0.0, "", f"connected, after {connect_ms:.1f} ms", 0, Shown())
    return (connected, *(step(message) for message in made.messages))


def _step_row(step: Step) -> dict[str, object]:
    sender: Mapping[str, str] = {FROM_US: "client", FROM_SERVER: "server"}
    row: dict[str, object] = {
        "at_ms": round(step.at_ms, 2),
        "from": sender.get(step.sender, ""),
        "step": step.name,
        "bytes": step.size,
        **{label.replace(" ", "_"): value for label, value in step.shown.facts},
    }
    if step.shown.certificates:
        row["certificates"] = [cert.as_row() for cert in step.shown.certificates]
    if step.shown.notes:
        row["notes"] = list(step.shown.notes)
    return row


def _step_lines(step: Step) -> list[str]:
    size = str(step.size) if step.sender else ""
    lines = [f"{step.at_ms:8.1f} {size:>6} {step.sender or ' '} {step.name}"]
    for label, value in step.shown.facts:
        lines.append(_wrapped(f"{INDENT}  {label:<{LABEL_WIDTH}}", value))
    for number, cert in enumerate(step.shown.certificates, 1):
        for position, (label, value) in enumerate(cert.facts()):
            lines.append(_wrapped(f"{INDENT}{str(number) if not position else ' '} {label:<{LABEL_WIDTH}}", value))
    lines += [_wrapped(f"{INDENT}  ", note, hang=2) for note in step.shown.notes]
    return lines


def _figures(made: Handshake) -> list[str]:
    lines = []
    if not made.is_watched:
        lines.append("this Python does not show the messages of a handshake: only its result is known")
    done = made.end is not End.NOT_REACHED
    what = f"{made.version}, {made.cipher}" if done and made.version else "handshake not completed"
    lines.append(f"{what}: {made.handshake_ms:.1f} ms")
    lines.append(f"{made.sent_bytes} bytes sent, {made.received_bytes} received, record headers included")
    if done:
        lines.append(_wrapped("", _AFTERWARDS[made.end]))
    return [_wrapped("", line) for line in lines]


_AFTERWARDS: Mapping[End, str] = {
    End.REFUSED: "afterwards: the server refused with an alert (in TLS 1.3 it judges our side last)",
    End.CLOSED: "afterwards: the server closed the connection by itself, without an alert",
    End.ANSWERED: (
        "afterwards: no alert, and the server answered our goodbye, so it had read all that we sent; whether a policy "
        "admits this device shows at CONNECT only"
    ),
    End.SILENT: "afterwards: no alert and no answer to our goodbye, so its acceptance is not known",
}


def _verdict_lines(verdict: Verdict) -> list[str]:
    if verdict.is_ok:
        return [_wrapped("ok: ", verdict.sentence)]
    lines = [_wrapped("no: ", verdict.sentence)]
    if verdict.at_fault:
        lines.append(_wrapped("at fault: ", ", or ".join(verdict.at_fault)))
    if verdict.reason is not None:
        lines.append(f"reason: {verdict.reason}")
    if verdict.hint:
        lines.append(_wrapped("hint: ", verdict.hint))
    return lines


def _wrapped(head: str, text: str, hang: int = 0) -> str:
    indent = " " * (len(head) + hang)
    return (
        textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)
        if text
        else head.rstrip()
    )
