"""Commands down: one at a time, into room that is known, repeated when unanswered, and every one ends or waits."""

import pytest

from device_sim.ports.commands import ANSWER_TIMEOUT_S, TRIES, Command, CommandLine, Outcome
from device_sim.ports.framing import Kind

ON, OFF = Command("a", b"on"), Command("b", b"off")


def line(window: int = 0, *waiting: Command, kind: Kind = Kind.LINE) -> CommandLine:
    return CommandLine(kind, window=window, max_frame=100, waiting=waiting)


def test_one_at_a_time_and_in_order() -> None:
    """The second command leaves when the first one is answered; refused is an answer."""
    commands = line(0, ON, OFF)
    assert commands.send(0.0) == b"!C 1 on\n"
    assert commands.send(0.1) == b""
    assert commands.hear(b"!A 1")
    assert commands.send(0.2) == b"!C 2 off\n"
    assert commands.hear(b"!E 2")
    assert commands.ended == [(ON, Outcome.DONE), (OFF, Outcome.REFUSED)]
    assert commands.unfinished == ()


def test_an_unanswered_command_is_repeated_and_then_given_up() -> None:
    """The same number each time, so that a device can tell; the end is said, and an answer afterwards is late."""
    commands = line(0, ON)
    times = [number * ANSWER_TIMEOUT_S for number in range(TRIES + 1)]
    assert [commands.send(now) for now in times] == [b"!C 1 on\n"] * TRIES + [b""]
    assert commands.ended == [(ON, Outcome.NO_ANSWER)]
    assert commands.hear(b"!A 1")
    assert len(commands.ended) == 1


def test_an_answer_to_another_command_ends_nothing() -> None:
    """The twin: a late or made-up number is taken for talk, not for the answer."""
    commands = line(0, ON)
    commands.send(0.0)
    assert commands.hear(b"!A 7")
    assert commands.ended == []
    assert commands.unfinished == (ON,)


@pytest.mark.parametrize("frame", [b"21.5", b"!A", b"!A x", b"!A 1 2", b"!B 1", b" !A 1", b"!A -1", b"!A 1234567890"])
def test_other_frames_are_readings(frame: bytes) -> None:
    """What is none of the three words is not swallowed."""
    assert not line().hear(frame)


def test_a_small_buffer_is_never_overrun() -> None:
    """A window of 12 bytes: the second command waits for room, asks for it, and goes when the device grants it."""
    commands = line(12, ON, OFF)
    assert commands.send(0.0) == b"!C 1 on\n"
    commands.hear(b"!W 12")  # said before the command had arrived: it does not count
    commands.hear(b"!A 1")
    assert commands.send(0.1) == b"!Q\n"
    assert commands.send(0.2) == b""
    commands.hear(b"!W 5")
    assert commands.send(0.3) == b""
    commands.hear(b"!W 99999")  # never more than the configuration says
    assert commands.send(0.4) == b"!C 2 off\n"
    commands.hear(b"!A 2")
    assert [outcome for _, outcome in commands.ended] == [Outcome.DONE, Outcome.DONE]


def test_a_lost_grant_is_asked_for_again() -> None:
    """`!Q` is repeated for as long as there is no room; the command stays."""
    commands = line(12, ON, OFF)
    commands.send(0.0)
    commands.hear(b"!A 1")
    asked = [commands.send(0.1 + number * ANSWER_TIMEOUT_S) for number in range(5)]
    assert asked == [b"!Q\n"] * 5
    assert commands.unfinished == (OFF,)


def test_what_can_never_be_sent_ends_at_once() -> None:
    """Longer than the window, or a line break in a line: an end with its reason, and the next one goes."""
    commands = line(12, Command("long", b"x" * 20), Command("break", b"a\nb"), ON)
    assert commands.send(0.0) == b"!C 3 on\n"
    assert [outcome for _, outcome in commands.ended] == [Outcome.TOO_LONG, Outcome.UNSUITABLE]
    twin = line(0, Command("long", b"x" * 20), kind=Kind.COBS)
    assert twin.send(0.0)


def test_what_is_unfinished_goes_on_at_the_next_opening() -> None:
    """An unplug in mid-command: it comes first again, with the window fresh."""
    before = line(12, ON, OFF)
    before.send(0.0)
    after = line(12, *before.unfinished)
    assert after.send(0.0) == b"!C 1 on\n"
