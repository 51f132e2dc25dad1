"""Flickr against a server that speaks its API."""

import pytest

from tests.support.asking import ask_once, hits_of, walk
from tests.support.provider_apis import FlickrApi, flickr_photo
from tests.support.provider_server import Said
from worker.sources.provider import Hit, ProviderError, ProviderWait
from worker.sources.providers.flickr import Flickr

PATH = "/services/rest/"


def flickr(api):
    """The provider, with the key of the server."""
    return Flickr({"url": api.url, "key": "s3cret"})


def searches(api):
    """The parameters of each search."""
    return [query for query in api.queries(PATH) if query["method"] == "flickr.photos.search"]


def test_pages_of_500_are_walked_to_their_last():
    """Licences are asked for once, then each page."""
    with FlickrApi([flickr_photo(number) for number in range(1100)]) as api:
        pages = walk(flickr(api))
        assert [len(page.hits) for page in pages] == [500, 500, 100]
        assert {page.total for page in pages} == {1100}
        assert [query["method"] for query in api.queries(PATH)] == [
            "flickr.photos.licenses.getInfo",
            *["flickr.photos.search"] * 3,
        ]
        assert searches(api)[0] == {
            "method": "flickr.photos.search",
            "api_key": "s3cret",
            "text": "cat",
            "license": "1,2,3,4,5,6,7,8,9,10,11",
            "extras": "license,owner_name,url_o,url_l,url_c,url_z",
            "sort": "relevance",
            "media": "photos",
            "content_types": "0",
            "safe_search": "1",
            "per_page": "500",
            "page": "1",
            "format": "json",
            "nojsoncallback": "1",
        }


def test_no_more_than_4000_are_asked_for():
    """Behind them Flickr repeats itself."""
    with FlickrApi([flickr_photo(number) for number in range(4200)]) as api:
        pages = walk(flickr(api))
    assert len({hit.provider_id for hit in hits_of(pages)}) == len(hits_of(pages)) == pages[0].total == 4000


def test_a_hit_has_all_that_the_photo_says():
    """The original, its size, and the line that the terms want: title, owner, licence, page."""
    with FlickrApi([flickr_photo(7)]) as api:
        assert hits_of(walk(flickr(api))) == [
            Hit(
                url="https://live.staticflickr.com/3855/7_o.jpg",
                provider_id="7",
                source_page="https://www.flickr.com/photos/148578535@N03/7",
                licence="by",
                licence_version="2.0",
                licence_url="https://creativecommons.org/licenses/by/2.0/",
                creator="A. Photographer",
                attribution='"Cat 7" by A. Photographer, CC BY 2.0, https://www.flickr.com/photos/148578535@N03/7',
                title="Cat 7",
                width=4000,
                height=3000,
            )
        ]


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["by"], "4,11"),
        (["cc0", "pdm"], "8,9,10"),
        (["open"], "4,5,8,9,10,11"),
        (["by-nd", "by-nc-nd"], "3,6"),
    ],
)
def test_licences_are_filtered_by_the_numbers_that_flickr_has(words, numbers):
    """Words become all numbers that stand for them, of any version."""
    photos = [flickr_photo(number, license=str(number)) for number in range(12)]
    with FlickrApi(photos) as api:
        hits = hits_of(walk(flickr(api), words=words))
        assert [query["license"] for query in searches(api)] == [numbers]
    assert [hit.provider_id for hit in hits] == numbers.split(",")


def test_what_no_licence_allows_is_not_asked_for():
    """Photographs with all rights reserved are left to their owners, whatever the filter."""
    with FlickrApi([flickr_photo(number, license=str(number)) for number in range(12)]) as api:
        hits = hits_of(walk(flickr(api)))
    assert [hit.licence for hit in hits] == [
        *("by-nc-sa", "by-nc", "by-nc-nd", "by", "by-sa", "by-nd"),
        *(None, "pdm", "cc0", "pdm", "by"),
    ]
    assert hits[6].licence_url == "https://www.flickr.com/commons/usage/"


def test_a_filter_that_flickr_has_no_licence_for_finds_nothing():
    """Nothing is asked for without a licence: that would be for all of them."""
    with FlickrApi() as api:
        api.first.append(
            Said({"licenses": {"license": [{"id": 4, "url": "http://creativecommons.org/licenses/by/2.0/"}]}})
        )
        assert ask_once(flickr(api), words=["cc0"]).cursor is None
        assert searches(api) == []


def test_the_largest_size_that_is_given_away_is_taken():
    """An owner may keep the original; without any size a photograph is no hit."""
    photos = [
        flickr_photo(1, url_o=None),
        flickr_photo(2, url_o="", url_l=None, url_c="https://live.staticflickr.com/2_c.jpg", width_c=800),
        flickr_photo(3, url_o=None, url_l="/3_l.jpg"),
        flickr_photo(4, url_o="/4_o.jpg"),
        flickr_photo(5, owner=None, title={"_content": "x"}, ownername=None, license=4),
    ]
    with FlickrApi() as api:
        ask_once(provider := flickr(api))
        api.first.append(Said({"photos": {"pages": "1", "photo": [None, *photos]}, "stat": "ok"}))
        hits = ask_once(provider).hits
    assert [(hit.provider_id, hit.url.rpartition("_")[2], hit.width) for hit in hits] == [
        ("1", "l.jpg", 1024),
        ("2", "c.jpg", 800),
        ("4", "l.jpg", 1024),
        ("5", "o.jpg", 4000),
    ]
    assert (hits[3].source_page, hits[3].attribution, hits[3].licence) == (None, None, "by")


def test_nothing_found_is_one_empty_page():
    """A search without photos ends at once, whatever its counts say."""
    with FlickrApi() as api:
        ask_once(provider := flickr(api))
        api.first.append(
            Said({"photos": {"page": 1, "pages": 99, "total": "49500", "photo": []}, "stat": "ok"})
        )
        page = ask_once(provider)
    assert (page.hits, page.cursor) == ([], None)


@pytest.mark.parametrize("code", [105, "105", 10, 0])
def test_errors_that_pass_are_waited_for(code):
    """A service that is not available has status 200 and ``stat`` "fail"."""
    with FlickrApi() as api:
        api.first.append(Said({"stat": "fail", "code": code, "message": "Service currently unavailable"}))
        with pytest.raises(ProviderWait, match=r"^flickr is not available: Service") as caught:
            ask_once(flickr(api))
    assert caught.value.seconds == 60


def test_other_errors_end_the_search_in_its_words():
    """What will not pass is told with its code."""
    with FlickrApi() as api:
        api.first.append(Said({"stat": "fail", "code": 18, "message": "Illogical arguments"}))
        with pytest.raises(ProviderError, match=r"^flickr refuses the search: Illogical arguments \(18\)$"):
            ask_once(flickr(api))


def test_a_key_that_is_refused_names_its_variable_and_not_itself():
    """Whatever Flickr repeats, the key does not come back."""
    with FlickrApi(key="another") as api, pytest.raises(ProviderError) as caught:
        ask_once(flickr(api))
    assert str(caught.value) == (
        "flickr does not accept PIXTRAWL_PROVIDER_FLICKR_KEY: Invalid API Key (… is unknown)"
    )


def test_without_a_key_nothing_is_asked():
    """The variable that is missing is named, and where to get what goes into it."""
    with pytest.raises(ProviderError, match=r"^flickr needs PIXTRAWL_PROVIDER_FLICKR_KEY; https://"):
        Flickr({})


@pytest.mark.parametrize(
    "document",
    [[], {}, {"stat": "ok"}, {"photos": [], "stat": "ok"}, {"photos": {"photo": None}, "stat": "ok"}],
)
def test_what_has_no_photos_is_one_sentence(document):
    """An answer of another shape ends the source."""
    with FlickrApi() as api:
        ask_once(provider := flickr(api))
        api.first.append(Said(document))
        with pytest.raises(
            ProviderError, match=r"^flickr answered something that has no list 'photos.photo'$"
        ):
            ask_once(provider)
