"""Fields of providers' answers, whatever stands in them."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.sources.calls import ask_each
from worker.sources.fields import make_hit, text, texts, web_address, whole
from worker.sources.licences import Licence
from worker.sources.provider import ProviderError, ProviderWait

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("  a\n b\t", "a b"),
        ("", None),
        (" \x00\u200b ", None),
        (None, None),
        (True, None),
        (7, "7"),
        (1.5, "1.5"),
        ({"a": 1}, None),
        ([None, "", "b", "c"], "b"),
        ([], None),
        ([["a"], {"b": 1}, False, 7], "7"),
        pytest.param("<b>" + "x" * 10_000_000, "x" * 1000, id="endless"),
        ("<a href='/wiki/User:A'>Alice</a> &amp; <b>Bob</b>", "Alice & Bob"),
        ("a<br>b<br/>c", "a b c"),
        ('Alice<span style="display: none;">Q1 <i>hidden</i></span> Smith', "Alice Smith"),
        ("<script>alert(1)</script>ok<style>b{}</style>", "ok"),
        ("1 < 2 > 0", "1 < 2 > 0"),
        ("I <3 cats & dogs", "I <3 cats & dogs"),
        ("half \ud83d a pair", "half ? a pair"),
        pytest.param("é" * 2000, "é" * 1000, id="long"),
    ],
)
def test_text_is_one_line_without_markup(value, read):
    """What people would read, and nothing that a database could not hold."""
    assert text(value) == read


def test_of_several_texts_all_are_kept():
    """Creators are named one after another."""
    assert texts(["A", None, " B "]) == "A, B"
    assert texts("A") == "A"
    assert texts([None]) is None


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("https://Example.org/a?b=c#d", "https://example.org/a?b=c"),
        ("//example.org/a", "https://example.org/a"),
        ("http://example.org/a b", "http://example.org/a%20b"),
        ("http://example.org/a%27b", "http://example.org/a%27b"),
        ("http://example.org/ü", "http://example.org/%C3%BC"),
        ("/a.jpg", None),
        ("a.jpg", None),
        ("ftp://example.org/a", None),
        ("data:image/png;base64,AAAA", None),
        ("http://user:word@example.org/", None),
        ("http://\ud800.org/", None),
        (["http://example.org/a"], None),
        (None, None),
        ("http://example.org/" + "a" * 9000, None),
    ],
)
def test_only_absolute_addresses_of_the_web_are_taken(value, read):
    """Whatever else stands there is no address."""
    assert web_address(value) == read


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (640, 640),
        ("640", 640),
        (0, None),
        (-1, None),
        (True, None),
        (1.5, None),
        ("x", None),
        ("²", None),
        (2**31, None),
        ("9" * 5000, None),
    ],
)
def test_sizes_are_positive_numbers_that_a_column_holds(value, read):
    """A number or its digits."""
    assert whole(value) == read


@given(ANYTHING, ANYTHING, ANYTHING)
def test_no_field_is_too_odd_for_a_hit(first, second, third):
    """Whatever JSON holds, there is a hit that can be written, or none."""
    hit = make_hit(
        url="https://example.org/a.jpg",
        provider_id=first,
        source_page=second,
        licence=Licence(None, None, None),
        creator=third,
        attribution=first,
        title=second,
        sha1=third,
        width=first,
        height=second,
    )
    assert hit is None or "\x00" not in repr(hit).encode().decode()
    assert make_hit(url=first, provider_id=second) is None or isinstance(first, str)


def test_answers_count_up_to_the_first_that_was_refused():
    """A wait behind the first answer keeps what came; anything else is raised."""

    async def one(key: object) -> object:
        if isinstance(key, Exception):
            raise key
        return key

    wait, error = ProviderWait(3, "later"), ProviderError("never")
    assert asyncio.run(ask_each([1, 2, 3, 4, 5], one, 2)) == [1, 2, 3, 4, 5]
    assert asyncio.run(ask_each([], one, 2)) == []
    assert asyncio.run(ask_each([1, 2, wait, 4, error], one, 2)) == [1, 2]
    assert asyncio.run(ask_each([1, wait, 2], one, 3)) == [1]
    for key in (wait, error):
        with pytest.raises(type(key)):
            asyncio.run(ask_each([key, 2], one, 2))
