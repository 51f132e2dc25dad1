"""A stored list of URLs is read in steps of any size, and every reading finds the same candidates."""

import itertools
import time
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.outcomes import Reason
from worker.address import parse_url
from worker.errors import AddressError
from worker.sources import url_list
from worker.sources.url_list import LINE_BYTES_MAX, LineReader, read_step
from worker.store import DamagedObjectError, open_store

NAME = "inputs/list.txt"
PIECES = st.one_of(
    st.sampled_from(
        [
            b"\n",
            b"\r\n",
            b"\r",
            b"#",
            b" ",
            b"\t",
            b"\xef\xbb\xbf",
            b"\xc2\xa0",
            b"\xe2\x80",
            b"http://a.example/",
        ]
    ),
    st.binary(max_size=5),
    st.sampled_from([b"x" * (LINE_BYTES_MAX - 1), b" " * LINE_BYTES_MAX, b"\xf0\x9f\x90\xa6" * 4097]),
)
FILES = st.lists(st.lists(PIECES, max_size=12).map(b"".join), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store in a folder."""
    return open_store(tmp_path_factory.mktemp("store").as_uri())


def stored(store, *files):
    """Put the files into one object, as submit does, and return the job's source."""
    store.put(NAME, b"".join(files))
    return {"object": NAME, "files": [{"name": "list.txt", "bytes": len(file)} for file in files]}


def read_all(store, source, limit, block_bytes=None):
    """Every candidate, read in steps whose cursor passes through JSON's types only."""
    found, cursor, exhausted = [], {}, False
    while not exhausted:
        candidates, cursor, exhausted = read_step(store, source, cursor, limit, block_bytes)
        assert len(candidates) <= limit
        found += candidates
        assert cursor["position"] == len(found)
    return [(candidate.position, candidate.url, candidate.line) for candidate in found]


def expected(*files):
    """The same, the naive way: everything in memory at once."""
    positions = itertools.count()
    found = []
    for file in files:
        for number, raw in enumerate(file.split(b"\n"), 1):
            kept = raw[:LINE_BYTES_MAX]
            if number == 1 and kept.startswith(b"\xef\xbb\xbf"):
                kept = kept[3:]
            text = kept.decode("utf-8", "replace").strip()
            if len(raw) > LINE_BYTES_MAX:
                text = (text + " …").strip()
            if text and not text.startswith("#"):
                found.append((next(positions), text, number))
    return found


@settings(max_examples=300, deadline=None)
@given(files=FILES, limit=st.integers(1, 5), block_bytes=st.integers(1, 40), scale=st.sampled_from([1, 1000]))
@example([b"\xef\xbb\xbf" + b"x" * LINE_BYTES_MAX], 1, 1, 1000)
@example([b"\xef\xbb\xbf" + b"x" * (LINE_BYTES_MAX - 3)], 1, 7, 1000)
@example([b"a\n\n\n", b"", b"b"], 1, 2, 1)
def test_any_bytes_read_alike(store, files, limit, block_bytes, scale):
    """Any bytes give the naive reading's candidates, for any sizes of blocks and steps."""
    # One byte at a time through long lines would test nothing more and take minutes.
    block_bytes *= 1000 if sum(map(len, files)) > 1000 else scale
    assert read_all(store, stored(store, *files), limit, block_bytes) == expected(*files)


@settings(max_examples=200, deadline=None)
@given(file=FILES.map(b"".join), cuts=st.lists(st.integers(0, 60000), max_size=6))
def test_the_counter_at_submit_agrees(file, cuts):
    """The reader that submit counts with finds the naive reading's candidates, however the bytes arrive."""
    reader = LineReader()
    bounds = [0, *sorted(cuts), len(file)]
    lines = [
        line
        for start, end in itertools.pairwise(bounds)
        for line in reader.feed(file[start : max(start, end)])
    ]
    lines += reader.finish()
    assert [(line.text, line.number) for line in lines] == [(text, line) for _, text, line in expected(file)]


def test_what_is_a_candidate(store):
    """Comments, blank lines, white space, CRLF and a byte order mark are no part of a URL."""
    text = "\ufeffhttp://a.example/1\r\n\r\n  # note\r\n\u00a0\thttp://a.example/2  \r\nnonsense\r\nhttp://a.example/ü"
    assert read_all(store, stored(store, text.encode()), 10) == [
        (0, "http://a.example/1", 1),
        (1, "http://a.example/2", 4),
        (2, "nonsense", 5),
        (3, "http://a.example/ü", 6),
    ]


def test_bytes_that_are_not_utf8(store):
    """A line that is not UTF-8 is a candidate with replacement characters, and the next line is whole."""
    source = stored(store, b"http://a.example/\xff\xe2\x82\nhttp://a.example/2\n")
    assert read_all(store, source, 10) == [
        (0, "http://a.example/\ufffd\ufffd", 1),
        (1, "http://a.example/2", 2),
    ]


@pytest.mark.parametrize("filler", [b"x", b" ", "🐦".encode(), b"\t"], ids=["x", "blanks", "wide", "tabs"])
def test_a_line_that_is_too_long_is_never_a_url(store, filler):
    """A cut line ends as invalid_url, whatever the cut has left of it."""
    line = b"http://a.example/" + filler * (LINE_BYTES_MAX // len(filler) + 1)
    [(_, text, _), after] = read_all(store, stored(store, line + b"\nhttp://a.example/2"), 1)
    assert after == (1, "http://a.example/2", 2)
    with pytest.raises(AddressError) as caught:
        parse_url(text)
    assert caught.value.reason is Reason.INVALID_URL


def test_lines_are_numbered_in_their_file(store):
    """Several files of one job are numbered each from line 1, and a file without a last newline ends its line."""
    source = stored(store, b"http://a.example/1\n\nhttp://a.example/2", b"# two\nhttp://a.example/3\n")
    for limit in (1, 2, 3, 4):
        assert [(position, line) for position, _, line in read_all(store, source, limit)] == [
            (0, 1),
            (1, 3),
            (2, 2),
        ]


def test_the_end_is_known_with_the_last_candidate(store):
    """A step that reads the last line says that nothing is left."""
    source = stored(store, b"http://a.example/1\nhttp://a.example/2\n")
    candidates, cursor, exhausted = read_step(store, source, {}, 2)
    assert (len(candidates), exhausted) == (2, True)
    assert read_step(store, source, cursor, 2) == ([], cursor, True)


def test_a_step_reads_only_so_many_bytes(store, monkeypatch):
    """A step over long comments or long URLs ends early, and the next one goes on behind it."""
    monkeypatch.setattr(url_list, "STEP_BYTES", 5000)
    long = b"http://a.example/" + b"x" * 900 + b"\n"
    file = b"# nothing\n" * 2000 + long * 20
    source = stored(store, file)
    candidates, cursor, exhausted = read_step(store, source, {}, 100, 1000)
    assert (candidates, exhausted) == ([], False)
    assert 5000 <= cursor["byte"] <= 6000
    assert read_all(store, source, 100, 1000) == expected(file)


def test_an_object_that_shrank(store):
    """An input that is shorter than at submit is an error, not an early end, once its whole lines were read."""
    source = stored(store, b"http://a.example/1\nhttp://a.example/2\n")
    store.put(NAME, b"http://a.example/1\nhttp://a.exa")
    candidates, cursor, ended = read_step(store, source, {}, 10)
    assert ([candidate.url for candidate in candidates], ended) == (["http://a.example/1"], False)
    with pytest.raises(DamagedObjectError, match="shorter than when"):
        read_step(store, source, cursor, 10)


def test_memory_and_rate(store):
    """A long list is read in constant memory, a line of megabytes too, and fast enough for any scheduler."""
    lines = 200_000
    text = b"".join(
        b"https://images.example.com/photos/%09d/original.jpg?size=large\n" % number
        for number in range(lines)
    )
    source = stored(store, text + b"x" * 8_000_000)
    del text
    started, total, cursor, exhausted = time.process_time(), 0, {}, False
    while not exhausted:
        candidates, cursor, exhausted = read_step(store, source, cursor, 10_000)
        total += len(candidates)
    assert total == lines + 1
    # 200,000 a second are promised; the bound leaves room for a busy machine.
    assert time.process_time() - started < 4
    tracemalloc.start()
    try:
        for first in ({}, {"file": 0, "byte": cursor_byte(source), "line": lines, "position": lines}):
            read_step(store, source, first, 10_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000


def cursor_byte(source):
    """Where the last, long line of the list begins."""
    return source["files"][0]["bytes"] - 8_000_000
