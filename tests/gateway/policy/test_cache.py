"""The bounded cache: what it keeps, and that it never holds more than twice its size."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.cache import BoundedCache


def test_what_was_put_is_found() -> None:
    """And what was not, is not."""
    cache: BoundedCache[str, int] = BoundedCache(2)
    cache.put("a", 1)
    assert (cache.get("a"), cache.get("b"), len(cache)) == (1, None, 1)
    cache.put("a", 2)
    assert (cache.get("a"), len(cache)) == (2, 1)


def test_what_is_used_survives_a_flood() -> None:
    """A key that is asked for now and then stays, those that are not go after two generations."""
    cache: BoundedCache[int, int] = BoundedCache(10)
    cache.put(-1, 7)
    for key in range(1000):
        cache.put(key, key)
        assert cache.get(-1) == 7
    assert cache.get(0) is None


def test_what_is_not_used_is_forgotten_after_two_generations() -> None:
    """With size 2: two newer keys make it old, two more make it go."""
    cache: BoundedCache[str, int] = BoundedCache(2)
    for key in "abcd":
        cache.put(key, 1)
    assert len(cache) == 4
    cache.put("e", 1)
    assert len(cache) == 3
    assert [key for key in "abcde" if cache.get(key)] == ["c", "d", "e"]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=200), st.integers(1, 8))
def test_the_bound_holds_and_no_answer_is_wrong(steps: list[tuple[bool, int]], size: int) -> None:
    """Whatever is put and asked: at most twice the size, the last `size` keys are there, values are the last put."""
    cache: BoundedCache[int, int] = BoundedCache(size)
    truth: dict[int, int] = {}
    order: list[int] = []
    for number, (put, key) in enumerate(steps, 1):
        if put:
            cache.put(key, number)
            truth[key] = number
            order = [other for other in order if other != key] + [key]
        elif (found := cache.get(key)) is not None:
            assert found == truth[key]
            order = [other for other in order if other != key] + [key]
        assert len(cache) <= 2 * size
    for key in order[-1:]:
        assert cache.get(key) == truth[key]
