"""What docs/spp1.md asks of sessions and of doing things once (section 3), of HELLO, IDENT and STATUS (section 4)."""

from collections.abc import Callable

from provisioning.conformance.checking import Check, NotAsked
from provisioning.conformance.line import Failed, Message, body_of, frame_of, outcome_of
from provisioning.conformance.probe import CONF, KEY, Probe
from provisioning.spp1 import fields
from provisioning.spp1.host import Hello
from provisioning.spp1.protocol import (
    ALGORITHM,
    HELLO_NONCE_BYTES,
    MAX_BUSY_MS,
    PROTOCOL_VERSION,
    SID_BYTES,
    TIMING,
    ErrorCode,
    Kind,
    Obj,
    State,
    Verb,
)

# --- HELLO ---


def _hello(probe: Probe) -> None:
    reply = probe.line.hello()
    if reply["r"] != Kind.OK:
        raise Failed(f"HELLO was refused with {outcome_of(reply)}")
    hello = Hello.parse(reply)
    if hello.chunk != reply["chunk"]:
        raise Failed(f"base64 of {reply['chunk']} bytes and 112 bytes do not fit into a line of {hello.max_line}")
    probe.line.use(hello)


def _no_common_version(probe: Probe) -> None:
    _hello_is(probe, ErrorCode.VERSION, proto=[PROTOCOL_VERSION + 1])


def _one_common_version(probe: Probe) -> None:
    _hello_is(probe, "ok", proto=[PROTOCOL_VERSION + 1, PROTOCOL_VERSION])


def _short_nonce(probe: Probe) -> None:
    _hello_is(probe, ErrorCode.ARG, nonce=fields.encode_blob(bytes(HELLO_NONCE_BYTES - 1)))


def _long_station(probe: Probe) -> None:
    _hello_is(probe, ErrorCode.ARG, station="x" * 65)


def _hello_is(probe: Probe, wanted: str, **values: object) -> None:
    outcome = outcome_of(probe.line.hello(**values))
    if outcome != wanted:
        raise Failed(f"HELLO was answered {outcome}, not {wanted}")


def _after_noise(probe: Probe) -> None:
    request = probe.line.next_request(Verb.HELLO, probe.line.hello_values(), sid="")
    reply = probe.line.exchange(b"\x00\xff\xfe!P1 {boot" + frame_of(body_of(request)), Verb.HELLO, request)
    if reply["r"] != Kind.OK:
        raise Failed(f"HELLO was refused with {outcome_of(reply)}")


def _same_nonce(probe: Probe) -> None:
    request = probe.line.next_request(Verb.HELLO, probe.line.hello_values(), sid="")
    frame = frame_of(body_of(request))
    first = probe.line.exchange(frame, Verb.HELLO, request)
    again = probe.line.exchange(frame, Verb.HELLO, request)
    if first != again:
        raise Failed("the same nonce was answered with another reply")


def _new_nonce(probe: Probe) -> None:
    old = probe.session
    new = probe.greet()
    if new.sid == old.sid:
        raise Failed("another nonce was answered with the same session id")


def _one_boot_id(probe: Probe) -> None:
    old = probe.session
    if probe.greet().boot_id != old.boot_id:
        raise Failed("the boot id changed without a reset")


def _old_session_ends(probe: Probe) -> None:
    old = probe.line.sid
    probe.greet()
    _refuses_session(probe, old)


def _keeps_state(probe: Probe) -> None:
    if probe.greet().state is not State.STAGED:
        raise Failed(f"HELLO in STAGED left {probe.session.state}")


def _hello_says_state(probe: Probe) -> None:
    said, state = probe.greet().state, probe.state()
    if said is not state:
        raise Failed(f"HELLO says {said}, and STATUS {state}")


# --- sessions, section 3 ---


def _refuses_session(probe: Probe, sid: str) -> None:
    reply = probe.line.ask(Verb.STATUS, sid=sid)
    if reply.get("e") != ErrorCode.SESSION:
        raise Failed(f"a request of another session was answered {outcome_of(reply)}, not {ErrorCode.SESSION}")


def _other_session(probe: Probe) -> None:
    _refuses_session(probe, fields.encode_blob(probe.line.random_bytes(SID_BYTES)))


def _no_session_after_boot(probe: Probe) -> None:
    probe.line.reset_without_hello()


def _again(probe: Probe) -> tuple[Message, bytes, Message]:
    """A KEYGEN that made a key: the request, its frame and the reply."""
    request = probe.line.next_request(Verb.KEYGEN, KEY)
    frame = frame_of(body_of(request))
    return request, frame, probe.line.exchange(frame, Verb.KEYGEN, request)


def _replay(probe: Probe) -> None:
    request, frame, first = _again(probe)
    if probe.line.exchange(frame, Verb.KEYGEN, request) != first:
        raise Failed("a request sent again was answered with another reply")


def _number_used(probe: Probe) -> None:
    request = {**probe.line.next_request(Verb.IDENT, {})}
    probe.line.exchange(frame_of(body_of(request)), Verb.IDENT, request)
    reply = probe.line.exchange(frame_of(body_of({**request, "c": Verb.STATUS})), Verb.STATUS, request)
    if reply.get("e") != ErrorCode.ARG:
        raise Failed(f"another request with a used `i` was answered {outcome_of(reply)}, not {ErrorCode.ARG}")


def _reply_stays(probe: Probe) -> None:
    request, frame, first = _again(probe)
    probe.line.exchange(frame_of(body_of({**request, "c": Verb.STATUS})), Verb.STATUS, request)
    if probe.line.exchange(frame, Verb.KEYGEN, request) != first:
        raise Failed("after another request with its `i` the stored reply was no longer sent")


def _older_number(probe: Probe) -> None:
    older = probe.line.next_request(Verb.STATUS, {})
    probe.ok(Verb.STATUS)
    if probe.line.strays_after(frame_of(body_of(older))):
        raise Failed("a request with a lower `i` was answered")


def _number_skips(probe: Probe) -> None:
    probe.line.sequence += 1000
    probe.ok(Verb.STATUS)


def _unknown_verb(probe: Probe) -> None:
    probe.refused(ErrorCode.UNSUPPORTED, "FROBNICATE")


# --- IDENT and STATUS ---


def _ident(probe: Probe) -> None:
    identity = probe.identity()
    if ALGORITHM not in identity.algs:
        raise Failed(f"algs does not list {ALGORITHM}")


def _ident_again(probe: Probe) -> None:
    differences = probe.identity().differences(probe.identity())
    if differences:
        raise Failed(f"two IDENTs differ in {', '.join(differences)}")


def _ident_after_boot(probe: Probe) -> None:
    before = probe.identity()
    probe.reset()
    differences = before.differences(probe.identity())
    if differences:
        raise Failed(f"after a reset IDENT differs in {', '.join(differences)}")


def _status(probe: Probe) -> None:
    reply = probe.ok(Verb.STATUS)
    fields.member(reply, "state", State)
    fields.texts(reply, "slots")
    if fields.text(reply, "spki_sha256", least=0):
        fields.digest(reply, "spki_sha256")
    fields.flag(reply, "sealed")
    if fields.text(reply, "last_error", least=0) not in {"", *ErrorCode}:
        raise Failed("last_error is no error code")


def _boot_keeps(state: State) -> Callable[[Probe], None]:
    def judge(probe: Probe) -> None:
        probe.reset()
        probe.is_in(state, "a reset")

    return judge


def _boot_forgets_stage(probe: Probe) -> None:
    probe.begin(Obj.CA, CONF)
    probe.reset()
    probe.is_in(State.KEYED, "BEGIN and a reset")


def _reset(probe: Probe) -> None:
    probe.reset()


# --- time, section 5: over the whole run, so these stand at the end of the table ---


def _in_time(probe: Probe) -> None:
    late = sorted(set(probe.line.late))
    if late:
        limits = ", ".join(f"{verb} ({TIMING[verb].timeout_s:g} s)" for verb in late)
        raise Failed(f"had to be sent again after the time limit: {limits}")


def _busy(probe: Probe) -> None:
    times = probe.line.busy_times
    if not times:
        raise NotAsked("the device never said busy")
    if any(type(value) is not int or not 1 <= value <= MAX_BUSY_MS for value in times):
        raise Failed(f"a busy without a `t` of 1 to {MAX_BUSY_MS} ms")


HELLO_CHECKS: tuple[Check, ...] = (
    Check("hello", "4 HELLO", "opens a session, fields in their limits", None, _hello),
    Check("hello-noise", "4 HELLO", "HELLO after noise on the line is answered", State.BLANK, _after_noise),
    Check("hello-version", "4 HELLO", "no version in common: E_VERSION", State.BLANK, _no_common_version),
    Check("hello-versions", "4 HELLO", "one of several versions is chosen", State.BLANK, _one_common_version),
    Check("hello-nonce", "4 HELLO", "a nonce of 15 bytes: E_ARG", State.BLANK, _short_nonce),
    Check("hello-station", "2", "a text of 65 characters: E_ARG", State.BLANK, _long_station),
    Check("hello-again", "4 HELLO", "the same nonce: the stored reply", State.BLANK, _same_nonce),
    Check("hello-new-sid", "4 HELLO", "another nonce: a new sid", State.BLANK, _new_nonce),
    Check("hello-boot-id", "4 HELLO", "one boot has one boot_id", State.BLANK, _one_boot_id),
    Check("hello-state", "4 HELLO", "HELLO says the state that STATUS says", State.KEYED, _hello_says_state),
    Check("hello-keeps", "4 HELLO", "HELLO changes no state", State.STAGED, _keeps_state),
    Check(
        "hello-ends-old", "4 HELLO", "HELLO ends the session before", State.BLANK, _old_session_ends, ("hello-new-sid",)
    ),
)

SESSION_CHECKS: tuple[Check, ...] = (
    Check("session-other", "3", "another sid: E_SESSION", State.BLANK, _other_session),
    Check("session-boot", "3", "a boot knows no session: E_SESSION", State.BLANK, _no_session_after_boot),
    Check("once-replay", "3", "the same frame again: the stored reply", State.BLANK, _replay),
    Check("once-number", "3", "same `i`, other bytes: E_ARG", State.BLANK, _number_used),
    Check("once-reply-stays", "3", "... and the stored reply stays", State.BLANK, _reply_stays, ("once-replay",)),
    Check("once-older", "3", "a lower `i` gets no answer", State.BLANK, _older_number),
    Check("once-skips", "3", "an `i` may skip numbers", State.BLANK, _number_skips),
    Check("verb-unknown", "4", "an unknown verb: E_UNSUPPORTED", State.BLANK, _unknown_verb),
    Check("ident", "4 IDENT", "all fields in their limits, p256 in algs", State.BLANK, _ident),
    Check("ident-again", "4 IDENT", "it says the same every time", State.BLANK, _ident_again),
    Check("status", "4 STATUS", "all fields in their limits", State.BLANK, _status),
    Check("reset", "4 RESET", "a reset shows in a new boot_id", State.BLANK, _reset),
    Check("ident-boot", "4 IDENT", "it says the same after a reset", State.BLANK, _ident_after_boot,
          ("reset", "ident-again")),
    Check("reset-keyed", "4", "KEYED survives a boot", State.KEYED, _boot_keeps(State.KEYED), ("reset",)),
    Check("reset-staged", "4", "STAGED is gone after a boot", State.KEYED, _boot_forgets_stage, ("reset-keyed",)),
    Check("reset-certed", "4", "CERTED survives a boot", State.CERTED, _boot_keeps(State.CERTED), ("reset",)),
    Check("reset-verified", "4", "VERIFIED is CERTED after a boot", State.VERIFIED, _boot_keeps(State.CERTED),
          ("reset",)),
)  # fmt: skip

TIME_CHECKS: tuple[Check, ...] = (
    Check("time-limits", "5", "every request is answered within its time", None, _in_time),
    Check("time-busy", "3", "busy says for how long, 1 to 60000 ms", None, _busy),
)
