"""Trusted time: from a floor to a synchronised clock, and what a clock that jumps may do (trap R6)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from mtls.clock import EPOCH, JUMP, Moment, Reading, TimeState, TrustedClock

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
YEAR = timedelta(days=365)
SECOND = timedelta(seconds=1)


def with_floor(floor: datetime = NOON) -> TrustedClock:
    clock = TrustedClock()
    clock.learn(floor, "a test", 0.0)
    return clock


def synced(at: datetime = NOON) -> TrustedClock:
    clock = with_floor(at - YEAR)
    assert clock.look(Reading(at, 0.0, "first")).synced
    return clock


def test_nothing_is_known_before_a_floor_is() -> None:
    """The first state says so, whatever the machine's clock shows and whoever vouches for it."""
    clock = TrustedClock()
    assert clock.look(Reading(NOON, 0.0, "first")) == Moment(EPOCH, TimeState.UNKNOWN)


def test_a_boot_in_1970_goes_by_the_floor_and_by_what_has_passed() -> None:
    """Without a time service the moment is the floor and the seconds since."""
    clock = with_floor()
    assert clock.look(Reading(EPOCH, 90.0, None)) == Moment(NOON + 90 * SECOND, TimeState.FLOOR)
    assert "behind the floor" in clock.doubt


def test_a_clock_that_is_ahead_of_the_floor_is_not_believed_without_a_time_service() -> None:
    """A wrong clock can be late as well as early: only the floor counts."""
    clock = with_floor()
    assert clock.look(Reading(NOON + 10 * YEAR, 1.0, None)) == Moment(NOON + SECOND, TimeState.FLOOR)
    assert "vouched" in clock.doubt


def test_a_clock_that_is_vouched_for_is_believed() -> None:
    """With a time service's word the moment is what the clock shows."""
    clock = with_floor()
    assert clock.look(Reading(NOON + YEAR, 1.0, "first")) == Moment(NOON + YEAR)
    assert (clock.state, clock.since, clock.doubt) == (TimeState.SYNCED, NOON + YEAR, "")


def test_a_clock_behind_the_floor_is_not_believed_even_when_it_is_vouched_for() -> None:
    """A time service that says a time before our own certificates is wrong, or not a time service."""
    clock = with_floor()
    assert clock.look(Reading(NOON - 2 * YEAR, 1.0, "first")) == Moment(NOON + SECOND, TimeState.FLOOR)
    assert clock.look(Reading(NOON + 2 * SECOND, 2.0, "first")).synced


def test_the_word_is_kept_when_the_time_service_goes_silent() -> None:
    """60 days offline: the clock has been set once and runs on."""
    clock = synced()
    days = timedelta(days=60)
    assert clock.look(Reading(NOON + days, days.total_seconds(), None)) == Moment(NOON + days)


def test_a_jump_of_ten_years_and_back_changes_nothing() -> None:
    """Nobody vouches for the jump, so the counter goes on; when the clock is back it is believed again."""
    clock = synced()
    assert clock.look(Reading(NOON + 10 * YEAR, 10.0, "first")) == Moment(NOON + 10 * SECOND, TimeState.FLOOR)
    assert "jumped" in clock.doubt
    assert clock.look(Reading(NOON + 20 * SECOND, 20.0, "first")) == Moment(NOON + 20 * SECOND)


def test_a_jump_that_a_time_service_makes_is_believed() -> None:
    """The twin: the first time was wrong and the service has put it right."""
    clock = synced()
    assert clock.look(Reading(NOON + 10 * YEAR, 10.0, "second")) == Moment(NOON + 10 * YEAR)


def test_a_clock_that_runs_backwards_never_brings_a_moment_back() -> None:
    """Also when somebody vouches for it: what has expired stays so, and that is said."""
    clock = synced()
    assert clock.look(Reading(NOON + YEAR, 10.0, "second")).synced
    back = clock.look(Reading(NOON, 20.0, "third"))
    assert back == Moment(NOON + YEAR + 10 * SECOND, TimeState.FLOOR)
    assert (clock.floor, clock.floor_from) == (NOON + YEAR + 10 * SECOND, "the last good time")


def test_a_small_step_back_waits_for_the_clock() -> None:
    """A time service steps by seconds: the moment stands still until the clock has caught up."""
    clock = synced()
    assert clock.look(Reading(NOON - 30 * SECOND, 1.0, "first")) == Moment(NOON)
    assert clock.look(Reading(NOON + SECOND, 32.0, "first")) == Moment(NOON + SECOND)


def test_a_floor_that_is_learned_later_puts_a_clock_behind_it_in_doubt() -> None:
    """A new CRL is proof of a time that has passed."""
    clock = synced()
    clock.learn(NOON + YEAR, "a CRL", 1.0)
    assert clock.look(Reading(NOON + SECOND, 1.0, "first")).state is TimeState.FLOOR


def test_an_older_floor_changes_nothing() -> None:
    """The twin: what is known stays known."""
    clock = synced()
    clock.learn(NOON - 2 * YEAR, "an old CRL", 1.0)
    assert clock.look(Reading(NOON + SECOND, 1.0, "first")) == Moment(NOON + SECOND)
    assert clock.floor == NOON - YEAR


def test_a_jump_is_more_than_a_correction() -> None:
    """The limit is on the side of the corrections."""
    for ahead, state in ((JUMP, TimeState.SYNCED), (JUMP + SECOND, TimeState.FLOOR)):
        assert synced().look(Reading(NOON + ahead, 0.0, "first")).state is state


def test_a_moment_says_when_it_is_only_a_floor() -> None:
    """What a refusal prints tells a known time from a lower bound."""
    assert str(Moment(NOON)) == "clock=2026-06-01T12:00:00+00:00"
    assert "a floor" in str(Moment(NOON, TimeState.FLOOR))


readings = st.builds(
    Reading,
    st.datetimes(datetime(1970, 1, 1), datetime(2070, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - Hypothesis wants it
    st.floats(0, 1e9),
    st.sampled_from([None, "first", "second"]),
)


@given(st.lists(readings, max_size=20))
def test_no_moment_is_before_an_earlier_one(looks: list[Reading]) -> None:
    """Whatever clock, counter and time service say, time does not run backwards and never falls below the floor."""
    clock = with_floor()
    moments = []
    for reading in looks:
        moments += [clock.look(reading).at, clock.reckon(reading.counter_s + 0.5).at]
    assert moments == sorted(moments)
    assert all(moment >= NOON for moment in moments)
