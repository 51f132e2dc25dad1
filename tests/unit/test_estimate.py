"""From a sample to the whole: the figures of a quote, by themselves."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.outcomes import Accepted, Reason
from scheduler.estimate import (
    CONFIDENCE,
    Counts,
    Spread,
    count_duplicates,
    estimate,
    sample_size,
    wilson,
)
from tests.support.crawling import accepted, refused

numbers = st.integers(0, 10**6)
counts = st.builds(
    Counts,
    accepted=numbers,
    failures=st.dictionaries(st.sampled_from(["http_status", "timeout", "duplicate"]), st.integers(1, 10**6)),
    unanswered=st.integers(0, 50),
    wire_bytes=numbers,
    stored_bytes=numbers,
    slot_seconds=st.floats(0, 1e5),
    host_seconds=st.floats(0, 1e5),
)


@given(counts, st.integers(1, 64))
def test_it_is_exact_when_the_sample_is_everything(counts, slots):
    """Nothing is left to be guessed but what did not answer."""
    found = estimate(counts, counts.size, 10**7, slots)
    assert found.images == Spread(counts.accepted, counts.accepted, counts.accepted + counts.unanswered)
    assert found.candidates == counts.size
    if counts.size:
        assert found.failures == counts.failures
        assert found.unanswered == counts.unanswered
        assert (found.wire_bytes, found.stored_bytes) == (counts.wire_bytes, counts.stored_bytes)
        assert found.seconds == pytest.approx(max(counts.slot_seconds / slots, counts.host_seconds))


@given(counts, st.integers(0, 10**7), st.integers(1, 10**7))
def test_nothing_impossible_is_expected(counts, more, max_images):
    """A range holds what is expected, and what the sample has seen; it never passes what there is or is wanted."""
    population = counts.size + more
    found = estimate(counts, population, max_images, 1)
    assert 0 <= found.images.low <= found.images.expected <= found.images.high
    assert found.images.high <= min(max_images, population - counts.refused)
    assert found.images.low >= min(max_images, counts.accepted)
    assert found.candidates is not None
    assert found.candidates <= population


@pytest.mark.parametrize(("population", "size"), [(100_000, 200), (2000, 20), (300, 200)])
def test_the_range_holds_the_truth_as_often_as_it_says(population, size):
    """Nine of ten samples, over all shares; of 20 that are nearly all images eight, by their large steps."""
    chosen = random.Random(7)
    held = []
    for truth in range(population // 50, population, population // 20):
        for _ in range(100):
            seen = sum(place < truth for place in chosen.sample(range(population), size))
            images = estimate(Counts(seen, {"http_status": size - seen}), population, population, 1).images
            held.append(images.low <= truth <= images.high)
    assert CONFIDENCE - 0.02 < sum(held) / len(held) < CONFIDENCE + 0.06


def test_the_interval_is_the_one_that_others_compute():
    """As of statsmodels' proportion_confint(170, 200, alpha=0.1, method="wilson")."""
    low, high = wilson(170, 200, None)
    assert (low, high) == pytest.approx((0.80424, 0.88657), abs=5e-4)
    assert wilson(0, 20, None)[1] == pytest.approx(0.1191, abs=5e-4)
    assert wilson(20, 20, None)[1] == 1.0
    assert wilson(0, 0, 100) == (0.0, 1.0)


def test_a_job_that_stops_early_uses_up_no_more_than_it_needs():
    """Half of the candidates are images, and a tenth of those is wanted."""
    found = estimate(
        Counts(50, {"http_status": 50}, wire_bytes=1000, stored_bytes=900, slot_seconds=4), 10_000, 500, 2
    )
    assert found.images == Spread(500, 500, 500)
    assert found.candidates == 1000
    assert found.failures == {"http_status": 500}
    assert (found.wire_bytes, found.stored_bytes, found.seconds) == (10_000, 9000, 20.0)


def test_a_slow_host_takes_its_time_whatever_there_are_of_slots():
    """One host that wants ten seconds between requests is not asked faster by more workers."""
    found = estimate(Counts(10, {}, slot_seconds=1, host_seconds=100), 1000, 1000, 64)
    assert found.seconds == 10_000


def test_a_source_that_does_not_say_how_much_it_has_promises_nothing():
    """What was wanted may come, if anything did; what it takes follows from the share of the sample."""
    found = estimate(Counts(30, {"http_status": 10}, slot_seconds=1), None, 1000, 1)
    assert found.images == Spread(30, 1000, 1000)
    assert found.candidates == 1333
    nothing = estimate(Counts(0, {"http_status": 10}), None, 1000, 1)
    assert (nothing.images.expected, nothing.candidates, nothing.seconds) == (0, None, None)
    assert estimate(Counts(0, {}), 500, 500, 1).images == Spread(0, 0, 500)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=30))
def test_the_duplicates_of_a_whole_source_are_those_that_its_job_has(candidates):
    """Of equal URLs, and of equal bytes, one is accepted: as many as there are pictures."""
    bytes_of = dict(candidates)
    urls = [url for url, _ in candidates]
    repeated = [place for place, url in enumerate(urls) if url in urls[place + 1 :]]
    outcomes = [accepted(place, bytes_of[url]) for place, url in enumerate(urls)]
    random.Random(1).shuffle(outcomes)
    judged = count_duplicates(outcomes, repeated)
    assert [outcome.position for outcome in judged] == list(range(len(candidates)))
    kept = [outcome for outcome in judged if isinstance(outcome, Accepted)]
    assert len(kept) == len({bytes_of[url] for url in urls})
    assert {outcome.reason for outcome in judged if outcome not in kept} <= {Reason.DUPLICATE}


def test_what_failed_is_no_duplicate():
    """A missing picture that is named twice is missing twice."""
    missing = refused(0)
    assert count_duplicates([missing], [0]) == [missing]


def test_about_one_in_a_hundred_is_tried():
    """A few at least, two hundred at most, and never more than there are."""
    assert [sample_size(n) for n in (0, 3, 20, 1999, 2001, 19_950, 10**7)] == [0, 3, 20, 20, 21, 200, 200]
    assert math.isclose(sample_size(10_000) / 10_000, 0.01)
