"""A stored table is read in steps of any size, and every reading finds the same candidates."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.about import METADATA_BYTES_MAX, About
from models.candidates import pack_candidates, unpack_candidates
from worker.sources import url_table
from worker.sources.url_table import FrameWriter, read_step
from worker.store import DamagedObjectError, open_store

NAME = "inputs/table.rows"
MORE = st.dictionaries(st.text(min_size=1), st.text(st.characters()) | st.integers(), min_size=1, max_size=3)
ROWS = st.lists(
    st.tuples(
        st.text(st.characters()), st.integers(1), st.just({}) | st.fixed_dictionaries({"metadata": MORE})
    )
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store in a folder."""
    return open_store(tmp_path_factory.mktemp("store").as_uri())


def stored(store, rows):
    """Put rows into an object, as submit does, and return the job's source."""
    writer = FrameWriter()
    frames = [*writer.write([list(row) for row in rows]), writer.flush()]
    store.put(NAME, b"".join(frames))
    assert (writer.rows, writer.bytes) == (len(rows), sum(map(len, frames)))
    return {"object": NAME, "bytes": writer.bytes}


def read_all(store, source, limit):
    """Every candidate, read in steps whose cursor passes through JSON."""
    found, cursor, exhausted = [], {}, False
    while not exhausted:
        candidates, cursor, exhausted = read_step(store, source, json.loads(json.dumps(cursor)), limit)
        assert len(candidates) <= limit
        found += candidates
        assert cursor["position"] == len(found)
    return found


@settings(deadline=None, max_examples=50)
@given(rows=ROWS, limit=st.integers(1, 7), frame_rows=st.integers(1, 5))
def test_steps_of_any_size_find_the_same(store, rows, limit, frame_rows):
    """Whatever the rows, the frames and the steps are; and a chunk has what was in the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(url_table, "FRAME_ROWS", frame_rows)
        source = stored(store, rows)
        found = read_all(store, source, limit)
    candidates = unpack_candidates(pack_candidates(found), 0)
    assert candidates == [candidate.unpacked() for candidate in found]
    assert [(c.position, c.url, c.line, (c.about or About()).metadata) for c in candidates] == [
        (position, url, line, more.get("metadata", {})) for position, (url, line, more) in enumerate(rows)
    ]


def test_long_rows_end_frames_and_steps_early(store, monkeypatch):
    """Metadata is cut to what is kept, and neither a frame nor a step has more than its bound and a row."""
    monkeypatch.setattr(url_table, "STEP_CHARACTERS", 100_000)
    text = "é🦉" * 10_000
    rows = [
        ("http://i.test/", n + 1, {"creator": text, "metadata": {"a": n, "text": text}}) for n in range(200)
    ]
    source = stored(store, rows)
    candidates, cursor, _ = read_step(store, source, {}, 10_000)
    assert 1 < len(candidates) < 100
    assert cursor["row"] == 0
    known = candidates[3].unpacked().about
    assert len(known.creator) == url_table.TEXT_BYTES_MAX
    assert known.metadata["a"] == 3
    assert known.metadata["text"].endswith(" …")
    assert 0.9 * METADATA_BYTES_MAX < len(json.dumps(known.metadata)) <= METADATA_BYTES_MAX
    assert len(read_all(store, source, 10_000)) == 200


def test_an_object_that_is_not_what_was_written_is_an_error(store):
    """Shorter, or damaged, in a frame or between two: what stands before is read, and the next step says so."""
    source = stored(store, [(f"http://i.test/{n}", n + 1, {}) for n in range(3000)])
    whole = store.read(NAME, 0, source["bytes"])
    second = read_step(store, source, {}, 1000)[1]["byte"]
    damaged = [whole[:place] + b"\xff" * 20 + whole[place + 20 :] for place in (second, second + 50)]
    for content, rows in zip([whole[:-10], *damaged], [2000, 1000, 1000], strict=True):
        store.put(NAME, content)
        candidates, cursor, ended = read_step(store, source, {}, 5000)
        assert (len(candidates), ended) == (rows, False)
        with pytest.raises(DamagedObjectError, match=r"is damaged|is shorter"):
            read_step(store, source, cursor, 5000)
