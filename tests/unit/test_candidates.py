"""The bytes of a chunk's candidates."""

from hypothesis import given
from hypothesis import strategies as st

from models.about import About
from models.candidates import pack_candidates, unpack_candidates
from models.outcomes import Candidate

TEXT = st.text(st.characters())
"""Lone surrogates, too."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda parts: st.lists(parts, max_size=3), max_leaves=5
)
WORDS = st.none() | TEXT
ABOUTS = st.builds(About, WORDS, WORDS, WORDS, WORDS, WORDS, metadata=st.dictionaries(TEXT, JSON, max_size=3))
KNOWN = ABOUTS.filter(lambda about: about != About())
ROWS = st.lists(
    st.tuples(
        TEXT,
        st.integers(min_value=1),
        st.none() | KNOWN,
        st.none() | st.integers(min_value=0),
        st.none() | st.just("md5:d41d8cd98f00b204e9800998ecf8427e"),
        WORDS,
    )
)


@given(ROWS, st.integers(min_value=0))
def test_what_is_packed_is_unpacked(rows, start):
    """Any text at any position comes back as it was, character for character, with all that is known of it."""
    candidates = [Candidate(start + index, *row) for index, row in enumerate(rows)]
    assert unpack_candidates(pack_candidates(candidates), start) == candidates


def test_five_hundred_urls_are_small():
    """A chunk of ordinary URLs takes a fraction of its text."""
    candidates = [
        Candidate(place, f"https://images.test/birds/{place:08}.jpg", place + 1) for place in range(500)
    ]
    assert len(pack_candidates(candidates)) < sum(len(candidate.url) for candidate in candidates) / 2
