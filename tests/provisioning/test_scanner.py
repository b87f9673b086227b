"""Labels that come by standard input."""

import os
import threading
from collections.abc import Iterator

import pytest

from provisioning.station import scanner


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Standard input is a pipe; this is its other end."""
    end, other = os.pipe()
    monkeypatch.setattr(scanner, "STDIN", end)
    yield other
    os.close(end)


def test_a_whole_line_is_the_label(keyboard: int) -> None:
    """The first line with something in it counts; how it ends does not matter."""
    os.write(keyboard, b"\r\n unit-7 \rnext\n")
    os.close(keyboard)
    assert scanner.one_label("-", lambda _: None)(frozenset()) == "unit-7"


def test_half_a_label_is_not_waited_for_for_ever(keyboard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that stays open in the middle of a line: the time runs out as if nothing had come."""
    monkeypatch.setattr(scanner, "LABEL_LIMIT_S", 0.3)
    os.write(keyboard, b"half a lab")
    answers: list[str | None] = []
    asking = threading.Thread(target=lambda: answers.append(scanner.one_label("-", lambda _: None)(frozenset())))
    asking.start()
    asking.join(20)
    in_time = list(answers)
    os.close(keyboard)  # lets go of a thread that is still there
    asking.join()
    assert in_time == [None]
