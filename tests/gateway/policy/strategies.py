"""Small alphabets of topics: enough for every rule of the algebra, few enough to try them all."""

from itertools import product

from hypothesis import strategies as st

# "q" stands in no filter: it is the level that only a wildcard matches.
LITERALS = ("a", "b", "", "$s")
NAMES = (*LITERALS, "q")

TOPICS = tuple(
    levels
    for depth in (1, 2, 3, 4, 5)
    for levels in product(NAMES if depth < 4 else ("a", "", "q"), repeat=depth)
    if levels != ("",)
)
"""Every topic name up to the depth that tells any two filters of `FILTERS` apart."""

FILTERS = tuple(
    (*levels, *end)
    for depth in (0, 1, 2, 3)
    for levels in product((*LITERALS, "+") if depth < 3 else ("a", "", "+"), repeat=depth)
    for end in ((), ("#",))
    if (*levels, *end) not in ((), ("",))
)

literal = st.sampled_from(LITERALS)
topic_levels = st.lists(st.sampled_from(NAMES), min_size=1, max_size=5).map(tuple).filter(lambda t: t != ("",))
filter_levels = (
    st.tuples(st.lists(st.one_of(literal, st.just("+")), max_size=4).map(tuple), st.sampled_from(((), ("#",))))
    .map(lambda parts: (*parts[0], *parts[1]))
    .filter(lambda levels: levels not in ((), ("",)))
)


def matches_by_definition(filter_levels: tuple[str, ...], topic: tuple[str, ...]) -> bool:
    """Section 4.7 of MQTT 3.1.1 written as a recursion, independent of the code under test."""
    if topic[0].startswith("$") and filter_levels[0] in ("+", "#"):
        return False

    def rest(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
        if left == ("#",):
            return True
        if not left or not right:
            return not left and not right
        return left[0] in ("+", right[0]) and rest(left[1:], right[1:])

    return rest(filter_levels, topic)
