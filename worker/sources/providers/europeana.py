"""Europeana: images of Europe's museums, libraries and archives.

"Search API Documentation" (https://europeana.atlassian.net/wiki/spaces/EF) has the parameters and fields: at most
100 rows, a cursor that begins with ``*`` and is not given any more at the end, ``reusability`` as the filter by
licence.
"""

from collections.abc import Mapping
from typing import Any

from worker.sources.fields import (
    escape_query,
    given,
    list_in,
    make_hit,
    needed,
    text,
    texts,
    variable,
    web_address,
    whole,
)
from worker.sources.licences import licence_at
from worker.sources.provider import Answer, Ask, Hit, Licences, Pace, Page, ProviderError

URL = "https://api.europeana.eu/record/v2/search.json"
ROWS = 100
REUSABILITY = {
    "open": frozenset({"cc0", "pdm", "by", "by-sa"}),
    "restricted": frozenset({"by-nc", "by-nd", "by-nc-sa", "by-nc-nd"}),
}
"""What each of its categories has of our licences: "Available Rights Statements" at pro.europeana.eu."""


class Europeana:
    """Needs a key."""

    name = "europeana"
    pace = Pace(2)

    def __init__(self, settings: Mapping[str, str]) -> None:
        """Take ``key``, ``url``."""
        fields = given(self.name, settings, "key", "url")
        self.key = needed(
            self.name, fields, "key", "https://pro.europeana.eu/page/get-api has one for nothing"
        )
        self.url = fields.get("url", URL)

    def check(self, licences: Licences) -> None:
        """Each word is in one of its categories."""

    async def search(
        self, ask: Ask, keyword: str, licences: Licences, cursor: Mapping[str, Any], limit: int
    ) -> Page:
        """One page of one category; when that has no more, the first page of the next."""
        categories = [name for name, words in REUSABILITY.items() if licences.words & words] or [""]
        category, mark = cursor.get("category", categories[0]), cursor.get("cursor", "*")
        params = {
            "wskey": self.key,
            "query": escape_query(keyword),
            "qf": "TYPE:IMAGE",
            "media": "true",
            "profile": "rich",
            "rows": str(ROWS),
            "cursor": mark,
        }
        if category:
            params["reusability"] = category
        document = await ask(self.url, params, heed=self._heed)
        items = list_in(document, "items", provider=self.name)
        hits = [hit for item in items if (hit := _hit(item))]
        following = document.get("nextCursor")
        if items and isinstance(following, str) and following not in ("", mark):
            total = whole(document.get("totalResults")) if len(categories) == 1 else None
            return Page(hits, {"category": category, "cursor": following}, total)
        rest = categories[categories.index(category) + 1 :] if category in categories else []
        return Page(hits, {"category": rest[0], "cursor": "*"} if rest else None)

    def _heed(self, answer: Answer) -> None:
        """Errors have a status, ``success`` false and ``error``, which may repeat the key."""
        said = answer.document if isinstance(answer.document, dict) else {}
        error = (text(said.get("error")) or text(said.get("message")) or "").replace(self.key, "…")
        if answer.status in (401, 403):
            raise ProviderError(
                f"europeana does not accept {variable(self.name, 'key')}: {error or answer.status}"
            )
        if answer.status == 400 or (answer.status == 200 and said.get("success") is False):
            raise ProviderError(f"europeana refuses the search: {error or 'it does not say why'}")


def _hit(item: Any) -> Hit | None:
    """An item's fields are lists. Its ``guid`` has our key in its query, so the page is written from the id."""
    if not isinstance(item, dict):
        return None
    identity = text(item.get("id"))
    creator, provider = texts(item.get("dcCreator")), text(item.get("dataProvider"))
    title, page = text(item.get("title")), f"https://www.europeana.eu/item{identity}" if identity else None
    licence = licence_at(text(item.get("rights")) or "")
    named = f'"{title or "Untitled"}"' + (f" by {creator}" if creator else "")
    shown = item.get("edmIsShownBy")
    return make_hit(
        url=next(filter(web_address, shown), None) if isinstance(shown, list) else shown,
        provider_id=identity,
        source_page=page,
        licence=licence,
        creator=creator,
        attribution=", ".join(part for part in (named, provider, str(licence), page) if part),
        title=title,
    )
