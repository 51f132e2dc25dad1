"""Flickr: photographs whose owners have licensed them.

https://www.flickr.com/services/api/flickr.photos.search.html: at most 500 a page and 4,000 for one query. A key is
good for 3,600 requests an hour (https://www.flickr.com/services/developer/api/). Errors have status 200 and
``stat`` "fail". The terms (https://www.flickr.com/help/terms/api) want each photograph linked to its page and its
owner named; photographs with all rights reserved are not asked for at all.
"""

from collections.abc import Mapping
from typing import Any

from worker.sources.fields import (
    given,
    list_in,
    make_hit,
    needed,
    objects,
    text,
    variable,
    web_address,
    whole,
)
from worker.sources.licences import UNKNOWN, Licence, licence_at
from worker.sources.provider import Answer, Ask, Hit, Licences, Pace, Page, ProviderError, ProviderWait

URL = "https://api.flickr.com/services/rest/"
PER_PAGE = 500
PAGES_MAX = 8
"""4,000 photographs: what comes behind is the same again."""
SIZES = ("o", "l", "c", "z")
"""The original, if its owner gives it away, else 1024, 800 or 640 pixels."""
EXTRAS = ",".join(("license", "owner_name", *(f"url_{size}" for size in SIZES)))
BUSY = {"0", "10", "105", "106"}
"""Codes of errors that pass: the search or the whole service is not available."""
BUSY_SECONDS = 60
BAD_KEY = "100"
US_GOVERNMENT = "usa.gov"
"""In the address of "United States Government Work", whose images have no copyright."""


class Flickr:
    """Needs a key; asks once which licences there are."""

    name = "flickr"
    pace = Pace(1, per_hour=3600)

    def __init__(self, settings: Mapping[str, str]) -> None:
        """Take ``key``, ``url``."""
        fields = given(self.name, settings, "key", "url")
        self.key = needed(self.name, fields, "key", "https://www.flickr.com/services/apps/create/ has one")
        self.url = fields.get("url", URL)
        self._licences: dict[str, Licence] = {}

    def check(self, licences: Licences) -> None:
        """It filters by every word."""

    async def search(
        self, ask: Ask, keyword: str, licences: Licences, cursor: Mapping[str, Any], limit: int
    ) -> Page:
        """One page of photographs under any of the licences."""
        known = await self._known(ask)
        ids = [number for number, licence in known.items() if licences.admit(licence.word)]
        if not ids:
            return Page([], None)
        page = cursor.get("page", 1)
        document = await self._call(
            ask,
            "flickr.photos.search",
            text=keyword,
            license=",".join(ids),
            extras=EXTRAS,
            sort="relevance",
            media="photos",
            content_types="0",
            safe_search="1",
            per_page=str(PER_PAGE),
            page=str(page),
        )
        photos = list_in(document, "photos", "photo", provider=self.name)
        pages = whole(document["photos"].get("pages")) or PAGES_MAX
        hits = [hit for photo in objects(photos) if (hit := _hit(photo, known))]
        goes_on = bool(photos) and page < min(pages, PAGES_MAX)
        total = whole(document["photos"].get("total"))
        return Page(hits, {"page": page + 1} if goes_on else None, total and min(total, PAGES_MAX * PER_PAGE))

    async def _known(self, ask: Ask) -> dict[str, Licence]:
        """Flickr's numbers of licences, all but "All Rights Reserved": flickr.photos.licenses.getInfo.

        They are asked for, since it has added some: those of version 4.0 in June 2025.
        """
        if not self._licences:
            document = await self._call(ask, "flickr.photos.licenses.getInfo")
            listed = list_in(document, "licenses", "license", provider=self.name)
            read = ((text(row.get("id")), text(row.get("url")) or "") for row in objects(listed))
            self._licences = {
                number: _licence(url) for number, url in read if number and url and number != "0"
            }
        return self._licences

    async def _call(self, ask: Ask, method: str, **arguments: str) -> Any:
        params = {
            "method": method,
            "api_key": self.key,
            **arguments,
            "format": "json",
            "nojsoncallback": "1",
        }
        return await ask(self.url, params, heed=self._heed)

    def _heed(self, answer: Answer) -> None:
        said = answer.document if isinstance(answer.document, dict) else {}
        if said.get("stat") != "fail":
            return
        code = str(said.get("code"))
        message = (text(said.get("message")) or "it does not say why").replace(self.key, "…")
        if code in BUSY:
            raise ProviderWait(BUSY_SECONDS, f"flickr is not available: {message}")
        if code == BAD_KEY:
            raise ProviderError(f"flickr does not accept {variable(self.name, 'key')}: {message}")
        raise ProviderError(f"flickr refuses the search: {message} ({code})")


def _licence(url: str) -> Licence:
    return Licence("pdm", None, url) if US_GOVERNMENT in url else licence_at(url)


def _hit(photo: Mapping[str, Any], known: Mapping[str, Licence]) -> Hit | None:
    """A photograph in the largest size that its owner gives away; None when there is none."""
    size = next((size for size in SIZES if web_address(photo.get(f"url_{size}"))), None)
    identity, owner = text(photo.get("id")), text(photo.get("owner"))
    return make_hit(
        url=photo.get(f"url_{size}"),
        provider_id=identity,
        source_page=f"https://www.flickr.com/photos/{owner}/{identity}" if owner else None,
        licence=known.get(text(photo.get("license")) or "", UNKNOWN),
        creator=photo.get("ownername"),
        title=photo.get("title"),
        width=photo.get(f"width_{size}"),
        height=photo.get(f"height_{size}"),
    )
