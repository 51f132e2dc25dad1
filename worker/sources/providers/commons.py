"""Wikimedia Commons: free media files of Wikipedia and its sisters.

https://www.mediawiki.org/wiki/API:Etiquette wants one request at a time, ``maxlag`` and a User-Agent with a contact
(https://foundation.wikimedia.org/wiki/Policy:User-Agent_policy); API:Search, API:Imageinfo and
https://commons.wikimedia.org/wiki/Commons:Machine-readable_data have the fields, API:Continue how it goes on, and
Manual:Maxlag_parameter and API:Errors_and_warnings what an error looks like: status 200 and ``error``.
"""

import re
from collections.abc import Mapping
from typing import Any

from worker.sources.fields import given, make_hit, objects, text, whole
from worker.sources.licences import Licence, licence_at, licence_named
from worker.sources.provider import Answer, Ask, Hit, Licences, Pace, Page, ProviderError, ProviderWait

URL = "https://commons.wikimedia.org/w/api.php"
FILES = 50
DEPTH = 10_000
"""No search goes deeper: CirrusSearch's window of results."""
LAG_SECONDS = 5
BUSY_SECONDS = 30
QUERY = {
    "action": "query",
    "format": "json",
    "formatversion": "2",
    "maxlag": str(LAG_SECONDS),
    "generator": "search",
    "gsrnamespace": "6",
    "gsrlimit": str(FILES),
    "prop": "imageinfo",
    "iiprop": "url|user|size|mime|sha1|extmetadata",
    "iiextmetadatalanguage": "en",
    "iiextmetadatafilter": "LicenseShortName|License|LicenseUrl|Artist|Attribution|ObjectName",
}
IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
BUSY = ("ratelimited", "readonly", "internal_api_error", "cirrussearch", "search-error", "toomanyconcurrent")
_CONTACT = re.compile(r"\S@\S+\.\S|https?://|\bUser:\S")


class Commons:
    """Needs no key, and a User-Agent by which somebody can be reached."""

    name = "commons"
    pace = Pace(1)

    def __init__(self, settings: Mapping[str, str]) -> None:
        """Take ``url``, and the ``user_agent`` that every provider is told."""
        fields = given(self.name, settings, "url")
        self.url = fields.get("url", URL)
        if not _CONTACT.search(fields.get("user_agent", "")):
            raise ProviderError(
                "commons needs an e-mail address or URL in PIXTRAWL_USER_AGENT: 'MyDataset/1.0 (me@example.org)'"
            )

    def check(self, licences: Licences) -> None:
        """Files are filtered by what stands on their page."""

    async def search(
        self, ask: Ask, keyword: str, licences: Licences, cursor: Mapping[str, Any], limit: int
    ) -> Page:
        """One answer of the search, which may have the files of a page only in part: then it goes on there."""
        params = (
            QUERY | {"gsrsearch": f"filetype:bitmap {keyword}"} | {key: str(cursor[key]) for key in cursor}
        )
        document = await ask(self.url, params, heed=_heed)
        if not isinstance(document, dict) or not isinstance(query := document.get("query", {}), dict):
            raise ProviderError("commons answered something that has no object 'query'")
        pages = query.get("pages", [])
        if not isinstance(pages, list):
            raise ProviderError("commons answered something that has no list 'query.pages'")
        # They come by page id; "index" is the rank in the search.
        ranked = sorted(objects(pages), key=lambda page: whole(page.get("index")) or DEPTH)
        hits = [hit for page in ranked if (hit := _hit(page))]
        return Page(hits, _following(document, cursor))


def _following(document: Mapping[str, Any], cursor: Mapping[str, Any]) -> dict[str, Any] | None:
    """All that stands in ``continue``, as parameters of the next request; None at the end."""
    found = document.get("continue")
    if not isinstance(found, dict) or not found:
        return None
    following = {key: value for key, value in found.items() if isinstance(value, str | int)}
    deep = (whole(following.get("gsroffset")) or 0) >= DEPTH
    return None if deep or following == dict(cursor) else following


def _heed(answer: Answer) -> None:
    """Who lags says how long to wait, in Retry-After and in ``lag``; an error code tells whether it will pass."""
    if answer.status == 403:
        raise ProviderError("commons refuses our User-Agent: name a contact in PIXTRAWL_USER_AGENT")
    error = answer.document.get("error") if isinstance(answer.document, dict) else None
    if not isinstance(error, dict):
        return
    code, info = str(error.get("code")), text(error.get("info")) or "it does not say why"
    asked = answer.headers.get("retry-after", "")
    seconds = int(asked[:9]) if asked.isascii() and asked.isdecimal() else 0
    if code == "maxlag":
        raise ProviderWait(max(seconds, LAG_SECONDS), f"the databases of commons lag behind: {info}")
    if code.startswith(BUSY):
        raise ProviderWait(max(seconds, BUSY_SECONDS), f"commons is busy: {info}")
    raise ProviderError(f"commons refuses the search: {info} ({code})")


def _hit(page: Mapping[str, Any]) -> Hit | None:
    """A file that is a picture of ours. One without ``imageinfo`` gets it in the next answer."""
    infos = page.get("imageinfo")
    info = infos[0] if isinstance(infos, list) and infos and isinstance(infos[0], dict) else {}
    if info.get("mime") not in IMAGES:
        return None
    known = info.get("extmetadata")
    extra = {
        name: text(field.get("value"))
        for name, field in (known.items() if isinstance(known, dict) else ())
        if isinstance(field, dict)
    }
    return make_hit(
        url=info.get("url"),
        provider_id=page.get("pageid"),
        source_page=info.get("descriptionurl"),
        licence=_licence(extra),
        creator=extra.get("Artist") or info.get("user"),
        attribution=extra.get("Attribution"),
        title=extra.get("ObjectName") or str(page.get("title", "")).removeprefix("File:"),
        sha1=info.get("sha1"),
        width=info.get("width"),
        height=info.get("height"),
    )


def _licence(extra: Mapping[str, str | None]) -> Licence:
    """By its address, else by its short name, else by its code."""
    address = extra.get("LicenseUrl")
    found = licence_at(address) if address else Licence()
    for name in (extra.get("LicenseShortName"), extra.get("License")):
        found = found if found.word or not name else licence_named(name, address)
    return found
