"""The Metropolitan Museum of Art: images of works that are in the public domain.

https://metmuseum.github.io: one search gives the ids of all objects, then each object is a request. The page allows
80 requests a second; its firewall refused with 403 after 30 in a row
(https://github.com/metmuseum/openaccess/issues/60), so the pace is lower.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from worker.sources.calls import ask_each
from worker.sources.fields import given, list_in, make_hit, text, web_address
from worker.sources.licences import Licence
from worker.sources.provider import Answer, Ask, Hit, Licences, Pace, Page, ProviderError, ProviderWait

URL = "https://collectionapi.metmuseum.org/public/collection/v1"
OBJECTS = 30
FIREWALL_SECONDS = 60
CC0 = Licence("cc0", "1.0", "https://creativecommons.org/publicdomain/zero/1.0/")
"""Of all images of works in the public domain: https://www.metmuseum.org/about-the-met/policies-and-documents/open-access."""


class _GoneError(ProviderError):
    """This object cannot be had; others can."""


class Met:
    """Needs no key."""

    name = "met"
    pace = Pace(10, at_once=4)

    def __init__(self, settings: Mapping[str, str]) -> None:
        """Take ``url``."""
        self.url = given(self.name, settings, "url").get("url", URL).rstrip("/")

    def check(self, licences: Licences) -> None:
        """Refuse a filter that no image of theirs would pass."""
        if not licences.admit("cc0"):
            raise ProviderError("all images of met are under cc0, which --license leaves out")

    async def search(
        self, ask: Ask, keyword: str, licences: Licences, cursor: Mapping[str, Any], limit: int
    ) -> Page:
        """The images of the next objects; the list of ids is asked for each time, rather than kept."""
        # Filters behind q are not heeded: github.com/metmuseum/openaccess/issues/36.
        params = {"hasImages": "true", "q": keyword}
        document = await ask(f"{self.url}/search", params, heed=partial(_heed, gone=()))
        if isinstance(document, dict) and document.get("objectIDs", 0) is None:
            return Page([], None)
        ids = list_in(document, "objectIDs", provider=self.name)
        offset = cursor.get("offset", 0)
        count = min(OBJECTS, max(limit, self.pace.at_once))
        records = await ask_each(ids[offset : offset + count], partial(self._object, ask), self.pace.at_once)
        offset += len(records)
        hits = [hit for record in records for hit in _hits(record)]
        return Page(hits, {"offset": offset} if offset < len(ids) else None)

    async def _object(self, ask: Ask, identity: Any) -> Any:
        """One object; None when there is none (removed, or on loan) or the server fails over it."""
        if not isinstance(identity, int):
            return None
        try:
            return await ask(f"{self.url}/objects/{identity}", heed=partial(_heed, gone=(404, 410, 500)))
        except ProviderWait:
            raise
        except ProviderError:  # Whatever is odd about one object costs only that.
            return None


def _heed(answer: Answer, gone: tuple[int, ...]) -> None:
    if answer.status == 403:
        raise ProviderWait(FIREWALL_SECONDS, "the firewall of met has had enough of us")
    if answer.status in gone:
        raise _GoneError(f"met answered {answer.status}")


def _hits(record: Any) -> list[Hit]:
    """The first and the additional images; only works in the public domain have any that may be used."""
    if not isinstance(record, dict) or record.get("isPublicDomain") is not True:
        return []
    more = record.get("additionalImages")
    urls = [record.get("primaryImage"), *(more if isinstance(more, list) else [])]
    identity, title, artist = (
        record.get("objectID"),
        text(record.get("title")),
        text(record.get("artistDisplayName")),
    )
    page = web_address(record.get("objectURL"))
    named = f'"{title or "Untitled"}"' + (f" by {artist}" if artist else "")
    line = ", ".join(part for part in (named, "The Metropolitan Museum of Art", str(CC0), page) if part)
    found = (
        make_hit(
            url=url,
            provider_id=identity if number == 0 else f"{identity}/{number}",
            source_page=page,
            licence=CC0,
            creator=artist,
            attribution=line,
            title=title,
        )
        for number, url in enumerate(urls)
    )
    return [hit for hit in found if hit]
