"""Europeana against a server that speaks its API."""

import pytest

from tests.support.asking import ask_once, hits_of, walk
from tests.support.provider_apis import EuropeanaApi, europeana_item
from tests.support.provider_server import Said
from worker.sources.provider import Hit, ProviderError
from worker.sources.providers.europeana import Europeana

PATH = "/record/v2/search.json"
CC = "http://creativecommons.org"


def europeana(api):
    """The provider, with the key of the server."""
    return Europeana({"url": api.url, "key": "s3cret"})


def test_pages_are_walked_along_the_cursor():
    """The first cursor is ``*``, each next one is the answer's, and an answer without one is the last."""
    with EuropeanaApi([europeana_item(number) for number in range(250)]) as api:
        pages = walk(europeana(api))
    assert [len(page.hits) for page in pages] == [100, 100, 50]
    assert pages[0].total == 250
    always = {
        "wskey": "s3cret",
        "query": "cat",
        "qf": "TYPE:IMAGE",
        "media": "true",
        "profile": "rich",
        "rows": "100",
    }
    assert api.queries(PATH) == [always | {"cursor": mark} for mark in ("*", "mark+100", "mark+200")]


def test_a_hit_has_all_that_the_item_says_and_not_our_key():
    """Its page is written from its id: the ``guid`` has our key in it."""
    with EuropeanaApi([europeana_item(7)]) as api:
        hits = hits_of(walk(europeana(api)))
    assert hits == [
        Hit(
            url="http://lh3.example.org/7=s0.jpg",
            provider_id="/9200365/item_7",
            source_page="https://www.europeana.eu/item/9200365/item_7",
            licence="pdm",
            licence_version="1.0",
            licence_url="http://creativecommons.org/publicdomain/mark/1.0/",
            creator="Henriëtte Ronner-Knip",
            attribution='"Cat 7" by Henriëtte Ronner-Knip, Rijksmuseum, Public Domain Mark 1.0, '
            "https://www.europeana.eu/item/9200365/item_7",
            title="Cat 7",
        )
    ]
    assert "s3cret" not in repr(hits)


@pytest.mark.parametrize(
    ("words", "asked", "found"),
    [
        ([], [None], ["by-sa", "by-nc", "cc0", None]),
        (["open"], ["open"], ["by-sa", "cc0"]),
        (["by-nc", "by-nd"], ["restricted"], ["by-nc"]),
        (["commercial"], ["open", "restricted"], ["by-sa", "cc0", "by-nc"]),
    ],
)
def test_licences_are_filtered_by_category(words, asked, found):
    """The categories that have any of the words are asked for one after another."""
    rights = [
        f"{CC}/licenses/by-sa/3.0/nl/",
        f"{CC}/licenses/by-nc/4.0/",
        f"{CC}/publicdomain/zero/1.0/",
        "http://rightsstatements.org/vocab/InC/1.0/",
    ]
    with EuropeanaApi([europeana_item(number, rights=[uri]) for number, uri in enumerate(rights)]) as api:
        assert [hit.licence for hit in hits_of(walk(europeana(api), words=words))] == found
    assert [query.get("reusability") for query in api.queries(PATH)] == asked


@pytest.mark.parametrize("words", [[], ["commercial"]])
def test_nothing_found_is_an_end(words):
    """Every category may be empty."""
    with EuropeanaApi() as api:
        pages = walk(europeana(api), words=words)
    assert hits_of(pages) == []
    assert len(pages) == (2 if words else 1)


def test_a_cursor_that_stays_is_the_end():
    """The same cursor again, or one behind no items, leads nowhere."""
    with EuropeanaApi() as api:
        api.first = [
            Said({"success": True, "items": [europeana_item(1)], "nextCursor": "*"}),
            Said({"success": True, "items": [], "nextCursor": "more"}),
            Said({"success": True, "items": [europeana_item(1)], "nextCursor": 7}),
        ]
        assert [ask_once(europeana(api)).cursor for _ in range(3)] == [None] * 3


def test_signs_of_the_query_language_are_letters():
    """A keyword is looked for as it is."""
    with EuropeanaApi() as api:
        ask_once(europeana(api), keyword='cat: "a/b" (2)')
    assert api.queries(PATH)[0]["query"] == r"cat\: \"a\/b\" \(2\)"


def test_a_key_that_is_refused_names_its_variable_and_not_itself():
    """Europeana repeats the key in its error; we do not."""
    with EuropeanaApi(key="another") as api, pytest.raises(ProviderError) as caught:
        ask_once(europeana(api))
    assert (
        str(caught.value) == "europeana does not accept PIXTRAWL_PROVIDER_EUROPEANA_KEY: Invalid API key: …"
    )


def test_without_a_key_nothing_is_asked():
    """The variable that is missing is named, and where to get what goes into it."""
    with pytest.raises(ProviderError, match=r"^europeana needs PIXTRAWL_PROVIDER_EUROPEANA_KEY; https://"):
        Europeana({"url": "http://127.0.0.1:1"})


@pytest.mark.parametrize("status", [200, 400])
def test_a_search_that_is_refused_is_told_in_its_words(status):
    """``success`` false counts whatever the status is."""
    with EuropeanaApi() as api:
        api.first.append(Said({"success": False, "error": "Invalid query(q) parameter."}, status))
        with pytest.raises(
            ProviderError, match=r"^europeana refuses the search: Invalid query\(q\) parameter\.$"
        ):
            ask_once(europeana(api))


@pytest.mark.parametrize("document", [[], {}, {"success": True, "items": None}, {"items": {}}])
def test_what_has_no_items_is_one_sentence(document):
    """An answer of another shape ends the source."""
    with EuropeanaApi() as api:
        api.first.append(Said(document))
        with pytest.raises(ProviderError, match=r"^europeana answered something that has no list 'items'$"):
            ask_once(europeana(api))


def test_odd_items_cost_only_themselves():
    """Without a usable address an item is no hit; what else is odd is missing."""
    odd = [
        None,
        europeana_item(1, edmIsShownBy=None),
        europeana_item(2, edmIsShownBy=[]),
        europeana_item(3, edmIsShownBy=["images/3.jpg"]),
        europeana_item(4, id=None),
        europeana_item(6, edmIsShownBy=[None, {}, "https://cdn.example.org/6.jpg?a=1&amp;b=" + "c" * 2000]),
        europeana_item(
            5,
            edmIsShownBy="//cdn.example.org/5.jpg",
            dcCreator=[None, "A", 7, "B"],
            title=None,
            rights=[None],
            dataProvider={"a": 1},
        ),
    ]
    with EuropeanaApi() as api:
        api.first.append(Said({"success": True, "items": odd}))
        page = ask_once(europeana(api))
    assert page.hits[0].url == "https://cdn.example.org/6.jpg?a=1&amp;b=" + "c" * 2000
    assert page.hits[1:] == [
        Hit(
            url="https://cdn.example.org/5.jpg",
            provider_id="/9200365/item_5",
            source_page="https://www.europeana.eu/item/9200365/item_5",
            creator="A, 7, B",
            attribution='"Untitled" by A, 7, B, https://www.europeana.eu/item/9200365/item_5',
        )
    ]
