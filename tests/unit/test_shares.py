"""How candidates are shared between keywords: the lowest first, and nobody's share is lost."""

from hypothesis import given
from hypothesis import strategies as st

from worker.sources.shares import Level, level_now, needs

levels = st.lists(
    st.builds(
        lambda now, room: Level(now, None if room is None else now + room),
        st.integers(0, 50),
        st.none() | st.integers(0, 50),
    ),
    min_size=1,
    max_size=8,
)


def test_shares() -> None:
    """Even at first; then the lowest are filled up; what one cannot have goes to the others."""
    assert needs([Level(0), Level(0), Level(0)], 10) == [4, 3, 3]
    assert needs([Level(30), Level(10)], 30) == [5, 25]
    assert needs([Level(30), Level(10)], 10) == [0, 10]
    assert needs([Level(5, 5), Level(5, 7), Level(5)], 20) == [0, 2, 18]
    assert needs([Level(5, 5), Level(5, 7)], 20) == [0, 2]
    assert needs([Level(3)], 0) == [0]


@given(levels, st.integers(0, 200))
def test_as_many_as_wanted_and_as_even_as_possible(some: list[Level], wanted: int) -> None:
    """All that is wanted is shared out if it may be had, and who ended lower than another could not have more."""
    got = needs(some, wanted)
    room = (
        None
        if any(level.most is None for level in some)
        else sum((level.most or 0) - level.now for level in some)
    )
    assert sum(got) == (wanted if room is None else min(wanted, room))
    ends = [level.now + number for level, number in zip(some, got, strict=True)]
    for level, number, end in zip(some, got, ends, strict=True):
        assert number >= 0
        assert level.most is None or end <= level.most
        if number:  # Whoever ended lower was full.
            assert all(
                other_end >= end - 1 or other_end == other.most
                for other, other_end in zip(some, ends, strict=True)
            )


def test_what_is_unresolved_counts_for_those_that_may_have_it() -> None:
    """With nothing unresolved the level is what was accepted; with nothing resolved, what was handed out."""
    assert level_now(100, 60, 0, 80) == 60
    assert level_now(100, 0, 150, 150) == 100
    assert level_now(100, 60, 30, 60) == 80
    assert level_now(0, 0, 0, 0) == 0
