"""The bytes of a chunk's candidates."""

from hypothesis import given
from hypothesis import strategies as st

from models.candidates import pack_candidates, unpack_candidates
from models.outcomes import Candidate

LINES = st.lists(st.tuples(st.text(), st.integers(min_value=1)))


@given(LINES, st.integers(min_value=0))
def test_what_is_packed_is_unpacked(lines, start):
    """Any text at any position comes back as it was, character for character."""
    candidates = [Candidate(start + index, url, line) for index, (url, line) in enumerate(lines)]
    assert unpack_candidates(pack_candidates(candidates), start) == candidates


def test_five_hundred_urls_are_small():
    """A chunk of ordinary URLs takes a fraction of its text."""
    candidates = [
        Candidate(place, f"https://images.test/birds/{place:08}.jpg", place + 1) for place in range(500)
    ]
    assert len(pack_candidates(candidates)) < sum(len(candidate.url) for candidate in candidates) / 2
