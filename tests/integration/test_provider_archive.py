"""The Internet Archive against a server that speaks its API."""

import pytest

from tests.support.archive_apis import ArchiveApi, archive_file
from tests.support.asking import ask_once, hits_of, walk
from tests.support.provider_server import Said
from worker.sources.provider import Hit, ProviderError, ProviderWait
from worker.sources.providers.archive import Archive

SCRAPE = "/services/search/v1/scrape"
BY = "http://creativecommons.org/licenses/by/4.0/"


def item(number, files=("cat.jpg",), **changes):
    """An item with so many files."""
    known = {"identifier": f"item-{number}", "title": f"Cat {number}", "creator": "Alice", "licenseurl": BY}
    return {**known, "files": [archive_file(file) for file in files], **changes}


def archive(api):
    """The provider."""
    return Archive({"url": api.url})


def test_every_item_is_asked_for_its_files_once():
    """The search is walked along its cursor, and each item is asked once."""
    with ArchiveApi([item(number) for number in range(130)]) as api:
        pages = walk(archive(api))
    assert [hit.provider_id for hit in hits_of(pages)] == [f"item-{number}/cat.jpg" for number in range(130)]
    records = [asked.path for asked in api.asked if asked.path != SCRAPE]
    assert sorted(records) == sorted(f"/metadata/item-{number}" for number in range(130))
    always = {
        "q": "mediatype:image AND (cat)",
        "fields": "identifier,title,creator,licenseurl",
        "count": "100",
    }
    assert api.queries(SCRAPE)[0] == always
    assert api.queries(SCRAPE)[-1] == always | {"cursor": "W100"}


def test_a_hit_has_all_that_item_and_file_say():
    """The file's SHA-1 and size, the item's licence and creators, and an address that escapes its name."""
    files = ["a cat/№ 1?.JPG"]
    with ArchiveApi([item(7, files, creator=["Alice", "Bob"])]) as api:
        assert hits_of(walk(archive(api))) == [
            Hit(
                url=f"{api.root}/download/item-7/a%20cat/%E2%84%96%201%3F.JPG",
                provider_id="item-7/a cat/№ 1?.JPG",
                source_page=f"{api.root}/details/item-7",
                licence="by",
                licence_version="4.0",
                licence_url=BY,
                creator="Alice, Bob",
                attribution=f'"Cat 7" by Alice, Bob, CC BY 4.0, {api.root}/details/item-7',
                title="Cat 7",
                sha1="ab" * 20,
                width=1200,
                height=800,
            )
        ]


def test_only_original_images_are_hits():
    """What the archive derived, keeps private, or is another kind of file is none."""
    files = [
        archive_file("cat.png"),
        archive_file("cat_thumb.jpg", source="derivative"),
        archive_file("secret.jpg", private="true"),
        archive_file("scan.tif"),
        archive_file("item_meta.xml", source="metadata"),
        archive_file("book.pdf"),
        {"name": None, "source": "original"},
        None,
        "cat.jpg",
        archive_file("cat.webp", sha1="odd", width="x", height=None),
    ]
    with ArchiveApi([item(1) | {"files": files}]) as api:
        assert [hit.provider_id for hit in hits_of(walk(archive(api)))] == [
            "item-1/cat.png",
            "item-1/cat.webp",
        ]


def test_licences_are_filtered_before_an_item_is_asked():
    """An item under another licence, or under none that is known, costs no request."""
    items = [
        item(1),
        item(2, licenseurl="https://creativecommons.org/licenses/by-nc/3.0/us/"),
        item(3, licenseurl=["http://creativecommons.org/publicdomain/zero/1.0/"]),
        item(4, licenseurl=None),
    ]
    with ArchiveApi(items) as api:
        assert [hit.licence for hit in hits_of(walk(archive(api), words=["open"]))] == ["by", "cc0"]
        assert [asked.path for asked in api.asked[1:]] == ["/metadata/item-1", "/metadata/item-3"]
        assert api.queries(SCRAPE)[0]["q"] == "mediatype:image AND (cat) AND licenseurl:*"
        assert len(hits_of(walk(archive(api)))) == 4


def test_a_large_item_is_taken_in_parts():
    """No page has more than the limit, and the next one goes on with the file behind."""
    with ArchiveApi([item(1, [f"{number}.jpg" for number in range(25)]), item(2)]) as api:
        pages = walk(archive(api), limit=10)
    assert [len(page.hits) for page in pages] == [10, 10, 6]
    assert pages[0].cursor == {"item": 0, "file": 10}
    assert len({hit.provider_id for hit in hits_of(pages)}) == 26


def test_items_that_cannot_be_had_are_passed_over():
    """Dark, removed, broken or oddly named: each costs only itself."""
    items = [
        item(1),
        item(2),
        item(3, identifier="../metadata"),
        item(4, identifier=None),
        item(5),
        item(6),
        item(7),
    ]
    with ArchiveApi([*items, item(8) | {"files": None}]) as api:
        api.instead["/metadata/item-2"] = Said({})
        api.instead["/metadata/item-5"] = Said({"error": "forbidden"}, 403)
        api.instead["/metadata/item-6"] = Said("<html>", 500)
        assert [hit.provider_id for hit in hits_of(walk(archive(api)))] == [
            "item-1/cat.jpg",
            "item-7/cat.jpg",
        ]
        asked = sorted(asked.path for asked in api.asked if asked.path != SCRAPE)
        assert asked == [f"/metadata/item-{number}" for number in (1, 2, 5, 6, 7, 8)]


def test_a_refusal_keeps_what_came_before():
    """A step goes on at the item that was refused; when nothing came, it waits."""
    with ArchiveApi([item(number) for number in range(5)]) as api:
        api.instead["/metadata/item-3"] = Said("slow down", 429, {"Retry-After": "7"})
        page = ask_once(archive(api))
        assert [hit.provider_id for hit in page.hits] == [f"item-{number}/cat.jpg" for number in range(3)]
        assert page.cursor == {"item": 3}
        with pytest.raises(ProviderWait) as caught:
            ask_once(archive(api), cursor=page.cursor)
        assert caught.value.seconds == 7


def test_nothing_found_is_one_empty_page():
    """A search without items ends at once."""
    with ArchiveApi() as api:
        assert [(page.hits, page.cursor) for page in walk(archive(api))] == [([], None)]


def test_a_cursor_that_stays_is_the_end():
    """The same cursor again, or one that is none, leads nowhere."""
    with ArchiveApi([item(1)]) as api:
        for following in ("W9", 7, "", None):
            api.first.append(Said({"items": [{"identifier": "item-1"}], "cursor": following}))
            assert ask_once(archive(api), cursor={"scrape": "W9"}).cursor is None


def test_signs_of_the_query_language_are_letters():
    """A keyword is looked for as it is."""
    with ArchiveApi() as api:
        ask_once(archive(api), keyword="cat) OR mediatype:movies")
    assert api.queries(SCRAPE)[0]["q"] == r"mediatype:image AND (cat\) OR mediatype\:movies)"


@pytest.mark.parametrize("status", [200, 400])
def test_a_search_that_is_refused_is_told_in_its_words(status):
    """An error has ``error`` and ``errorType``."""
    with ArchiveApi() as api:
        api.first.append(Said({"error": "invalid cursor", "errorType": "RangeException"}, status))
        with pytest.raises(ProviderError, match=r"^archive refuses the search: invalid cursor$"):
            ask_once(archive(api))


@pytest.mark.parametrize("document", [[], {}, {"items": None}, {"items": "many", "total": 3}])
def test_what_has_no_items_is_one_sentence(document):
    """An answer of another shape ends the source."""
    with ArchiveApi() as api:
        api.first.append(Said(document))
        with pytest.raises(ProviderError, match=r"^archive answered something that has no list 'items'$"):
            ask_once(archive(api))
