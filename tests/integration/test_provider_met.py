"""The Met against a server that speaks its API."""

import pytest

from tests.support.archive_apis import MetApi, met_object
from tests.support.asking import ask_once, hits_of, walk
from tests.support.provider_server import Said
from worker.sources.provider import Hit, ProviderError, ProviderWait, read_licences
from worker.sources.providers.met import Met

SEARCH = "/public/collection/v1/search"
OBJECT = "/public/collection/v1/objects/{}"


def test_every_object_is_asked_for_once_and_in_order():
    """Page by page the objects behind the ids are asked for, and their images come in order."""
    with MetApi({number: met_object(number) for number in range(1, 71)}) as api:
        pages = walk(Met({"url": api.url}))
    assert [len(page.hits) for page in pages] == [30, 30, 10]
    assert [hit.provider_id for hit in hits_of(pages)] == [str(number) for number in range(1, 71)]
    assert api.queries(SEARCH) == [{"hasImages": "true", "q": "cat"}] * 3
    objects = [asked.path for asked in api.asked if asked.path != SEARCH]
    assert sorted(objects) == sorted(OBJECT.format(number) for number in range(1, 71))


def test_a_hit_has_all_that_the_record_says():
    """First and additional images are hits of the same work, all under CC0."""
    with MetApi({7: met_object(7, more=1)}) as api:
        first, second = hits_of(walk(Met({"url": api.url})))
    assert first == Hit(
        url="https://images.metmuseum.org/CRDImages/ad/original/7.jpg",
        provider_id="7",
        source_page="https://www.metmuseum.org/art/collection/search/7",
        licence="cc0",
        licence_version="1.0",
        licence_url="https://creativecommons.org/publicdomain/zero/1.0/",
        creator="Utagawa Hiroshige",
        attribution='"Cat 7" by Utagawa Hiroshige, The Metropolitan Museum of Art, CC0 1.0, '
        "https://www.metmuseum.org/art/collection/search/7",
        title="Cat 7",
    )
    assert (second.url, second.provider_id) == (
        "https://images.metmuseum.org/CRDImages/ad/original/7_1.jpg",
        "7/1",
    )


def test_few_are_asked_for_when_few_are_of_use():
    """A small limit costs few requests, but never one at a time."""
    with MetApi({number: met_object(number) for number in range(1, 71)}) as api:
        page = ask_once(Met({"url": api.url}), limit=1)
    assert len(page.hits) == 4
    assert page.cursor == {"offset": 4}


def test_works_that_are_not_free_are_no_hits():
    """Only the public domain has images that may be used; what says otherwise, or nothing, is left."""
    records = {
        number: met_object(number, isPublicDomain=free)
        for number, free in enumerate((True, False, None, "true", 1), 1)
    }
    with MetApi(records) as api:
        assert [hit.provider_id for hit in hits_of(walk(Met({"url": api.url})))] == ["1"]


def test_objects_that_cannot_be_had_are_passed_over():
    """Removed, lent, broken: each costs only itself."""
    records = {
        1: met_object(1),
        2: {"message": "Not a valid object"},
        4: [],
        5: met_object(5, primaryImage="", additionalImages=None),
        6: met_object(6, primaryImage="images/6.jpg", additionalImages=[None, "http://x.example.org/6.jpg"]),
    }
    with MetApi(records) as api:
        api.instead[SEARCH] = Said({"total": 9, "objectIDs": [1, 2, 3, 4, 5, 6, None, "8", 9]})
        api.instead[OBJECT.format(9)] = Said("<html>", 500)
        pages = walk(Met({"url": api.url}))
    assert [hit.provider_id for hit in hits_of(pages)] == ["1", "6/2"]


@pytest.mark.parametrize("ids", [None, []])
def test_nothing_found_is_one_empty_page(ids):
    """The API says null where its page says [] (github.com/metmuseum/openaccess/issues/44)."""
    with MetApi() as api:
        api.instead[SEARCH] = Said({"total": 0, "objectIDs": ids})
        assert [(page.hits, page.cursor) for page in walk(Met({"url": api.url}))] == [([], None)]


def test_a_firewall_that_has_had_enough_keeps_what_came_before():
    """A step goes on at the object that was refused; when nothing came, it waits."""
    with MetApi({number: met_object(number) for number in range(1, 31)}, patience=11) as api:
        met = Met({"url": api.url})
        page = ask_once(met)
        assert [hit.provider_id for hit in page.hits] == [str(number) for number in range(1, 11)]
        assert page.cursor == {"offset": 10}
        assert len(api.asked) <= 13
        with pytest.raises(ProviderWait, match="firewall") as caught:
            ask_once(met, cursor=page.cursor)
        assert caught.value.seconds == 60
        api.patience = 1
        with pytest.raises(ProviderWait):
            ask_once(met, cursor=page.cursor)
        api.patience = 100
        assert len(ask_once(met, cursor=page.cursor).hits) == 20


def test_a_list_that_has_shrunk_is_the_end():
    """An offset behind the ids of now yields nothing more."""
    with MetApi({1: met_object(1)}) as api:
        page = ask_once(Met({"url": api.url}), cursor={"offset": 30})
    assert (page.hits, page.cursor) == ([], None)


@pytest.mark.parametrize("document", [[], {}, {"objectIDs": 3}, {"total": 0}, "text"])
def test_what_is_no_search_is_one_sentence(document):
    """An answer of another shape ends the source."""
    with MetApi() as api:
        api.instead[SEARCH] = Said(document)
        with pytest.raises(ProviderError, match=r"^(met )?answered"):
            ask_once(Met({"url": api.url}))


def test_a_filter_without_cc0_is_refused_before_anything_is_asked():
    """No image of theirs has another licence."""
    met = Met({})
    met.check(read_licences([]))
    met.check(read_licences(["open"]))
    with pytest.raises(ProviderError, match="all images of met are under cc0"):
        met.check(read_licences(["by"]))


def test_the_pace_is_below_what_the_museum_allows():
    """Eighty requests a second are its limit."""
    assert Met.pace.requests_per_second <= 80
