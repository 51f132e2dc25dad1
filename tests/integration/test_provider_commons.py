"""Wikimedia Commons against a server that speaks its API."""

import pytest

from tests.support.archive_apis import CommonsApi, commons_file
from tests.support.asking import USER_AGENT, ask_once, hits_of, walk
from tests.support.provider_server import Said
from worker.sources.provider import Hit, ProviderError, ProviderWait
from worker.sources.providers.commons import Commons

PATH = "/w/api.php"


def commons(api):
    """The provider, with a contact."""
    return Commons({"url": api.url, "user_agent": USER_AGENT})


def test_pages_are_walked_in_the_order_of_the_search():
    """Each answer's ``continue`` is sent with the next request, and hits come by rank, not by page id."""
    with CommonsApi([commons_file(number) for number in range(120)]) as api:
        pages = walk(commons(api))
    assert [len(page.hits) for page in pages] == [50, 50, 20]
    assert [hit.title for hit in hits_of(pages)] == [f"Cat {number}" for number in range(120)]
    assert api.queries(PATH)[0] == {
        "action": "query",
        "format": "json",
        "formatversion": "2",
        "maxlag": "5",
        "generator": "search",
        "gsrsearch": "filetype:bitmap cat",
        "gsrnamespace": "6",
        "gsrlimit": "50",
        "prop": "imageinfo",
        "iiprop": "url|user|size|mime|sha1|extmetadata",
        "iiextmetadatalanguage": "en",
        "iiextmetadatafilter": "LicenseShortName|License|LicenseUrl|Artist|Attribution|ObjectName",
    }
    assert [(query.get("gsroffset"), query.get("continue")) for query in api.queries(PATH)] == [
        (None, None),
        ("50", "gsroffset||"),
        ("100", "gsroffset||"),
    ]


def test_properties_that_come_in_parts_are_waited_for():
    """A file whose imageinfo did not fit into an answer is found in a later one, once."""
    with CommonsApi([commons_file(number) for number in range(70)], part=30) as api:
        titles = [hit.title for hit in hits_of(walk(commons(api)))]
    assert titles == [f"Cat {number}" for number in range(70)]
    assert len(api.asked) == 3


def test_a_hit_has_all_that_the_page_of_a_file_says():
    """Licence, creator without HTML, SHA-1 and the page are kept; the address is the original's."""
    with CommonsApi([commons_file(7)]) as api:
        assert hits_of(walk(commons(api))) == [
            Hit(
                url="https://upload.wikimedia.org/wikipedia/commons/a/a9/Cat_7.jpg",
                provider_id="993",
                source_page="https://commons.wikimedia.org/wiki/File:Cat_7.jpg",
                licence="by-sa",
                licence_version="4.0",
                licence_url="https://creativecommons.org/licenses/by-sa/4.0",
                creator="Alice & Bob",
                attribution='"Cat 7" by Alice & Bob, CC BY-SA 4.0, https://commons.wikimedia.org/wiki/File:Cat_7.jpg',
                title="Cat 7",
                sha1=f"{7:040x}",
                width=1200,
                height=800,
            )
        ]


@pytest.mark.parametrize(
    ("extra", "licence", "version"),
    [
        ({"LicenseUrl": "//creativecommons.org/licenses/by/3.0/de/deed.en"}, "by", "3.0"),
        ({"LicenseUrl": None, "LicenseShortName": "CC BY-SA 3.0 de"}, "by-sa", "3.0"),
        ({"LicenseUrl": None, "LicenseShortName": "CC0"}, "cc0", None),
        ({"LicenseUrl": "http://creativecommons.org/publicdomain/zero/1.0/deed.en"}, "cc0", "1.0"),
        ({"LicenseUrl": None, "LicenseShortName": "Public domain"}, "pdm", None),
        ({"LicenseUrl": None, "LicenseShortName": "<i>odd</i>", "License": "cc-by-2.5"}, "by", "2.5"),
        (
            {
                "LicenseUrl": "https://www.gnu.org/copyleft/fdl.html",
                "LicenseShortName": "GFDL",
                "License": "gfdl",
            },
            None,
            None,
        ),
        ({"LicenseUrl": 5, "LicenseShortName": [], "License": {}}, None, None),
    ],
)
def test_licences_are_read_from_address_name_and_code(extra, licence, version):
    """Whatever a file's page gives first decides; one that is none of our words is unknown."""
    with CommonsApi([commons_file(1, extra)]) as api:
        hit = hits_of(walk(commons(api)))[0]
    assert (hit.licence, hit.licence_version) == (licence, version)


def test_only_pictures_that_we_store_are_hits():
    """Drawings, scans, documents and sounds are none, nor is a file without imageinfo."""
    kinds = ["image/svg+xml", "image/tiff", "application/pdf", "audio/ogg", "video/webm", None, "image/png"]
    files = [commons_file(number, mime=mime) for number, mime in enumerate(kinds)]
    with CommonsApi(
        [*files, {"pageid": 9, "title": "File:Cat.jpg"}, {"pageid": 8, "cat": 1, "imageinfo": [3]}]
    ) as api:
        assert [hit.title for hit in hits_of(walk(commons(api)))] == ["Cat 6"]


def test_nothing_found_is_one_empty_page():
    """An answer without ``query`` is an empty search."""
    with CommonsApi() as api:
        assert [(page.hits, page.cursor) for page in walk(commons(api))] == [([], None)]


@pytest.mark.parametrize(
    ("error", "headers", "seconds"),
    [
        (
            {"code": "maxlag", "info": "Waiting for 10.64.16.7: 8 seconds lagged.", "lag": 8},
            {"Retry-After": "12"},
            12,
        ),
        ({"code": "maxlag", "info": "Waiting", "lag": 0.4}, {}, 5),
        ({"code": "maxlag", "info": "Waiting"}, {"Retry-After": "Thu, 01 Jan 2026 00:00:00 GMT"}, 5),
        ({"code": "ratelimited", "info": "slower"}, {"Retry-After": "90"}, 90),
        ({"code": "internal_api_error_DBQueryError", "info": "x"}, {}, 30),
        ({"code": "cirrussearch-backend-error", "info": "x"}, {}, 30),
    ],
)
def test_errors_that_pass_are_waited_for(error, headers, seconds):
    """An error has status 200; lag and overload say how long to wait, and never less than is polite."""
    with CommonsApi() as api:
        api.first.append(Said({"error": error}, 200, headers))
        with pytest.raises(ProviderWait) as caught:
            ask_once(commons(api))
    assert caught.value.seconds == seconds


def test_other_errors_end_the_search_in_its_words():
    """What will not pass is told with its code."""
    with CommonsApi() as api:
        api.first.append(Said({"error": {"code": "badvalue", "info": 'Unrecognized value for "prop".'}}))
        with pytest.raises(
            ProviderError, match=r"^commons refuses the search: Unrecognized value .* \(badvalue\)$"
        ):
            ask_once(commons(api))


@pytest.mark.parametrize(
    "agent", ["", "Pixtrawl/0.1 (image crawler; set PIXTRAWL_USER_AGENT with your contact)"]
)
def test_without_a_contact_nothing_is_asked(agent):
    """The policy wants somebody who can be reached."""
    with pytest.raises(ProviderError, match="commons needs an e-mail address or URL in PIXTRAWL_USER_AGENT"):
        Commons({"user_agent": agent})


def test_a_user_agent_that_is_refused_is_told():
    """A 403 is about who we say that we are."""
    with CommonsApi() as api:
        api.first.append(Said("<html>", 403))
        with pytest.raises(ProviderError, match=r"^commons refuses our User-Agent"):
            ask_once(commons(api))


@pytest.mark.parametrize(
    "document", [[], {"query": []}, {"query": {"pages": {"1": {}}}}, {"query": {"pages": None}}]
)
def test_what_is_no_search_is_one_sentence(document):
    """An answer of another shape, of formatversion 1 say, ends the source."""
    with CommonsApi() as api:
        api.first.append(Said(document))
        with pytest.raises(ProviderError, match=r"^commons answered something that has no"):
            ask_once(commons(api))


@pytest.mark.parametrize(
    "following", [None, {}, "on", {"gsroffset": 10_000}, {"gsroffset": 50, "continue": "gsroffset||"}]
)
def test_a_continuation_that_leads_nowhere_ends_the_search(following):
    """No ``continue``, one behind the depth of the search, or the same again is the end."""
    with CommonsApi([commons_file(1)]) as api:
        api.first.append(Said({"query": {"pages": []}, "continue": following}))
        page = ask_once(commons(api), cursor={"gsroffset": 50, "continue": "gsroffset||"})
    assert page.cursor is None
