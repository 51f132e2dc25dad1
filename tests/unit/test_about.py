"""What is known of a candidate has a bound."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.about import bounded

VALUES = st.text() | st.integers() | st.lists(st.text(), max_size=3)


@given(st.dictionaries(st.text(), VALUES), st.integers(min_value=2, max_value=100))
def test_metadata_has_a_bound(metadata, bytes_max):
    """Whatever it is, it has no more bytes than it may; what has room stays as it was, in its order."""
    kept = bounded(metadata, bytes_max)
    assert len(json.dumps(kept)) <= bytes_max
    assert list(kept) == [name for name in metadata if name in kept]
    if len(json.dumps(metadata)) <= bytes_max:
        assert kept == metadata
    for name, value in kept.items():
        assert value == metadata[name] or (value.endswith(" …") and metadata[name].startswith(value[:-2]))


@pytest.mark.parametrize("character", ["a", "é", "😀", '"'])
def test_a_long_text_is_cut_and_what_follows_may_still_have_room(character):
    """A caption of a megabyte keeps its beginning, and says that it was cut."""
    kept = bounded({"id": 7, "caption": character * 1_000_000, "size": [1] * 1000}, 1000)
    assert kept["id"] == 7
    assert kept["caption"].endswith(f"{character} …")
    assert 900 <= len(json.dumps(kept)) <= 1000
