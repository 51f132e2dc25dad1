"""Openverse against a server that speaks its API."""

import pytest

from tests.support.asking import ask_once, hits_of, walk
from tests.support.provider_apis import OpenverseApi, openverse_image
from tests.support.provider_server import Said
from worker.sources.provider import Hit, ProviderError, ProviderWait
from worker.sources.providers.openverse import Openverse

IMAGES = "/v1/images/"
TOKEN = "/v1/auth_tokens/token/"
CLIENT = {"client_id": "me", "client_secret": "s3cret"}


def test_pages_of_twenty_are_walked_to_their_last():
    """Anonymous, each page asks for twenty, and the last one that is counted ends the search."""
    with OpenverseApi([openverse_image(number) for number in range(45)]) as api:
        pages = walk(Openverse({"url": api.url}))
    assert [len(page.hits) for page in pages] == [20, 20, 5]
    assert {page.total for page in pages} == {45}
    assert api.queries(IMAGES) == [{"q": "cat", "page": str(page), "page_size": "20"} for page in (1, 2, 3)]
    assert not any("authorization" in asked.headers for asked in api.asked)


def test_a_hit_has_all_that_openverse_knows():
    """Every field of a result that we keep stands in its hit."""
    with OpenverseApi([openverse_image(7)]) as api:
        assert hits_of(walk(Openverse({"url": api.url}))) == [
            Hit(
                url="https://live.staticflickr.com/4065/7.jpg",
                provider_id="4bc43a04-ef46-4544-a0c1-000000000007",
                source_page="https://www.flickr.com/photos/sean/7",
                licence="by",
                licence_version="2.0",
                licence_url="https://creativecommons.org/licenses/by/2.0/",
                creator="Sean MacEntee",
                attribution='"Cat 7" by Sean MacEntee is licensed under CC BY 2.0.',
                title="Cat 7",
                width=1024,
                height=768,
            )
        ]


def test_licences_are_filtered_by_openverse():
    """The words of the filter are sent, and only they come back."""
    images = [
        openverse_image(number, license=word)
        for number, word in enumerate(("by", "by-nc", "cc0", "sampling+"))
    ]
    with OpenverseApi(images) as api:
        openverse = Openverse({"url": api.url})
        assert [hit.licence for hit in hits_of(walk(openverse, words=["open"]))] == ["by", "cc0"]
        assert [hit.licence for hit in hits_of(walk(openverse))] == ["by", "by-nc", "cc0", None]
    assert [query.get("license") for query in api.queries(IMAGES)] == ["by,by-sa,cc0,pdm", None]


def test_nothing_found_is_one_empty_page():
    """A search without results ends at once."""
    with OpenverseApi() as api:
        assert [(page.hits, page.cursor) for page in walk(Openverse({"url": api.url}))] == [([], None)]


@pytest.mark.parametrize(("client", "depth"), [({}, 240), (CLIENT, 240), (CLIENT, 5000)])
def test_no_more_is_asked_for_than_is_given_out(client, depth):
    """At the depth of results, or after page 20, the search ends without an error, whatever the count says."""
    with OpenverseApi([openverse_image(number) for number in range(1000)], ("me", "s3cret"), depth) as api:
        api.page_count = 10_000
        found = hits_of(walk(Openverse({"url": api.url, **client})))
        assert max(int(query["page"]) for query in api.queries(IMAGES)) <= 20
    assert len(found) == min(depth, 48 * 20 if client else 20 * 20)


@pytest.mark.parametrize("pages", [None, 0, -3, "many", True])
def test_a_count_that_lies_does_not_end_the_search(pages):
    """What is no number of pages is not believed; an empty page ends the search."""
    with OpenverseApi([openverse_image(number) for number in range(45)]) as api:
        api.page_count = "" if pages is None else pages
        assert len(hits_of(walk(Openverse({"url": api.url})))) == 45


def test_a_token_is_kept_until_it_expires():
    """Client credentials buy one token for many pages, and larger pages."""
    with OpenverseApi([openverse_image(number) for number in range(100)], ("me", "s3cret")) as api:
        openverse = Openverse({"url": api.url, **CLIENT})
        assert len(hits_of(walk(openverse))) == 100
        walk(openverse)
        forms = [asked.form for asked in api.asked if asked.path == TOKEN]
        assert forms == [{"grant_type": "client_credentials", **CLIENT}]
        assert {asked.headers["authorization"] for asked in api.asked if asked.path == IMAGES} == {
            f"Bearer {next(iter(api.tokens))}"
        }
        assert api.queries(IMAGES)[0]["page_size"] == "48"


@pytest.mark.parametrize("expires_in", [30, 0, None, "soon", -1])
def test_a_token_that_ends_soon_is_not_kept(expires_in):
    """A minute before its end, or when the end is unknown, a new one is asked for."""
    with OpenverseApi([openverse_image(number) for number in range(96)], ("me", "s3cret")) as api:
        api.expires_in = expires_in
        assert len(hits_of(walk(Openverse({"url": api.url, **CLIENT})))) == 96
        assert len(api.tokens) == 2


def test_a_token_that_was_revoked_is_replaced_once():
    """A refusal of the token costs one new token, a second one is an error."""
    with OpenverseApi([openverse_image(number) for number in range(90)], ("me", "s3cret")) as api:
        openverse = Openverse({"url": api.url, **CLIENT})
        page = ask_once(openverse)
        api.tokens.clear()
        assert len(ask_once(openverse, cursor=page.cursor).hits) == 42
        api.instead[IMAGES] = Said({"detail": "no"}, 401)
        with pytest.raises(ProviderError, match=r"^openverse refuses the token that it gave out: no$"):
            ask_once(openverse)


def test_wrong_credentials_name_their_variables():
    """Who is not known is told which variables are wrong, and not what stands in them."""
    with OpenverseApi([], ("me", "other")) as api, pytest.raises(ProviderError) as caught:
        ask_once(Openverse({"url": api.url, **CLIENT}))
    names = "PIXTRAWL_PROVIDER_OPENVERSE_CLIENT_ID and PIXTRAWL_PROVIDER_OPENVERSE_CLIENT_SECRET"
    assert str(caught.value) == f"openverse does not accept {names}: invalid_client"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"client_id": "me"}, "go together"),
        ({"page_size": "50"}, "from 1 to 20, or 500 with a client id"),
        ({**CLIENT, "page_size": "501"}, "from 1 to 20, or 500"),
        ({"page_size": "many"}, "from 1 to 20"),
        ({"key": "x"}, "PIXTRAWL_PROVIDER_OPENVERSE_KEY means nothing to openverse"),
    ],
)
def test_wrong_settings_are_one_sentence(fields, sentence):
    """What cannot be is refused before anything is asked, by the name of its variable."""
    with pytest.raises(ProviderError, match=sentence) as caught:
        Openverse(fields)
    assert "PIXTRAWL_PROVIDER_OPENVERSE_" in str(caught.value)


def test_rates_are_those_of_who_asks():
    """Anonymous 20 a minute and 200 a day, registered 100 and 10,000."""
    assert Openverse({}).pace.requests_per_second * 60 == pytest.approx(20)
    assert Openverse({}).pace.per_day == 200
    assert Openverse(CLIENT).pace.requests_per_second * 60 == pytest.approx(100)
    assert Openverse(CLIENT).pace.per_day == 10_000


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (
            {
                "Retry-After": "17",
                "X-RateLimit-Limit-anon_burst": "20/min",
                "X-RateLimit-Available-anon_burst": "0",
            },
            17,
        ),
        ({"X-RateLimit-Limit-anon_burst": "20/min", "X-RateLimit-Available-anon_burst": "0"}, 60),
        (
            {
                "X-RateLimit-Limit-anon_burst": "20/min",
                "X-RateLimit-Available-anon_burst": "3",
                "X-RateLimit-Limit-anon_sustained": "200/day",
                "X-RateLimit-Available-anon_sustained": "0",
            },
            3600,
        ),
        ({"X-RateLimit-Limit-anon_burst": "lots", "X-RateLimit-Available-anon_burst": "0"}, 30),
        ({}, 30),
    ],
)
def test_a_refusal_waits_for_as_long_as_its_headers_say(headers, seconds):
    """Retry-After, else the period of the limit that is used up, else what ``ask`` does by itself."""
    with OpenverseApi() as api:
        api.first.append(Said({"detail": "Request was throttled."}, 429, headers))
        with pytest.raises(ProviderWait) as caught:
            ask_once(Openverse({"url": api.url}))
    assert caught.value.seconds == seconds


def test_a_search_that_is_refused_is_told_in_its_words():
    """A 400 of the first page ends the source with what the API says."""
    with OpenverseApi() as api:
        api.first.append(Said({"error": "InputError", "detail": "Invalid <b>input</b> given."}, 400))
        with pytest.raises(ProviderError, match=r"^openverse refuses the search: Invalid input given\.$"):
            ask_once(Openverse({"url": api.url}))


@pytest.mark.parametrize("document", [[], "", {"results": None}, {"results": {"a": 1}}, 7, None])
def test_what_has_no_results_is_one_sentence(document):
    """An answer of another shape ends the source."""
    with OpenverseApi() as api:
        api.first.append(Said(document))
        with pytest.raises(ProviderError, match=r"^(openverse )?answered"):
            ask_once(Openverse({"url": api.url}))


def test_odd_results_cost_only_themselves():
    """Without a usable address a result is no hit; what else is odd is missing."""
    odd = [
        None,
        "text",
        openverse_image(1, url=None),
        openverse_image(2, url="/relative.jpg"),
        openverse_image(3, url="ftp://example.org/a.jpg"),
        openverse_image(4, url=["https://example.org/a.jpg"]),
        openverse_image(5, id=None),
        openverse_image(6, filetype="svg"),
        openverse_image(
            8,
            url=" http://Example.org/a b.jpg ",
            title="<b>Cat</b> &amp;\n\x00 dog \ud800",
            creator={"name": "x"},
            license="ALL",
            license_version=4,
            license_url="javascript:alert(1)",
            foreign_landing_url=17,
            attribution=None,
            width="large",
            height=-1,
        ),
    ]
    with OpenverseApi() as api:
        api.first.append(Said({"results": odd, "page_count": 1}))
        page = ask_once(Openverse({"url": api.url}))
    assert page.hits == [
        Hit(
            url="http://example.org/a%20b.jpg",
            provider_id="4bc43a04-ef46-4544-a0c1-000000000008",
            licence_version="4",
            title="Cat & dog ?",
            attribution='"Cat & dog ?"',
        )
    ]
