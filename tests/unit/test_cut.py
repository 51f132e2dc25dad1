"""How a list is cut into chunks: small at first, so that all workers begin, and small at last, so that all end."""

from itertools import accumulate

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from models.cutting import FIRST_CHUNK_SIZE, cut
from tests.support.crawling import candidates


def test_chunks_are_no_larger_than_asked():
    """The setting bounds the first chunks too, and no candidates make no chunks."""
    assert [len(chunk.candidates) for chunk in cut(candidates(0, 70), 0, 30)] == [30, 30, 10]
    assert [(chunk.index, chunk.start) for chunk in cut(candidates(7, 70), 3, 500)] == [(3, 7), (4, 57)]
    assert list(cut([], 0, 500)) == []


def test_a_list_that_goes_on_does_not_shrink():
    """Only the last step of a list ends in small chunks."""
    assert [len(chunk.candidates) for chunk in cut(candidates(0, 2000), 20, 500)] == [500] * 4
    sizes = [len(chunk.candidates) for chunk in cut(candidates(0, 2000), 20, 500, ending=2)]
    assert sizes == [500, 500, 500, 250, 125, 62, 50, 13]


@hypothesis_settings(max_examples=100, deadline=None)
@given(number=st.integers(1, 10_000), slots=st.integers(1, 40), first_index=st.integers(0, 30))
def test_workers_end_a_list_at_one_time(number, slots, first_index):
    """However many slots take its chunks in turn, none is idle at the end for longer than two small chunks take."""
    chunks = list(cut(candidates(0, number), first_index, 500, slots))
    sizes = [len(chunk.candidates) for chunk in chunks]
    assert [chunk.start for chunk in chunks] == list(accumulate(sizes, initial=0))[:-1]
    busy_until = [0] * slots
    for size in sizes:
        busy_until[busy_until.index(min(busy_until))] += size
    assert sum(busy_until) == number
    assert max(busy_until) - min(busy_until) <= 2 * FIRST_CHUNK_SIZE
