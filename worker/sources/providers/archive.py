"""The Internet Archive: image files of its items of mediatype ``image``.

https://archive.org/help/aboutsearch.htm has the scraping API: at least 100 items a page, and a cursor while there
are more. https://archive.org/developers/md-read.html has an item's files, md-record.html that they are to be had
under /download/. No rate is published; both are asked gently.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from worker.sources.calls import ask_each
from worker.sources.fields import escape_query, given, list_in, make_hit, objects, text, texts
from worker.sources.licences import UNKNOWN, Licence, licence_at
from worker.sources.provider import Answer, Ask, Hit, Licences, Pace, Page, ProviderError, ProviderWait

URL = "https://archive.org"
PAGE = 100
ITEMS = 12
IMAGE = re.compile(r"[^/].*\.(?:jpe?g|png|gif|webp|avif)", re.IGNORECASE | re.DOTALL)
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class _GoneError(ProviderError):
    """This item cannot be had; others can."""


class Archive:
    """Needs no key."""

    name = "archive"
    pace = Pace(3, at_once=2)

    def __init__(self, settings: Mapping[str, str]) -> None:
        """Take ``url``."""
        self.url = given(self.name, settings, "url").get("url", URL).rstrip("/")

    def check(self, licences: Licences) -> None:
        """Items are filtered by their ``licenseurl``."""

    async def search(
        self, ask: Ask, keyword: str, licences: Licences, cursor: Mapping[str, Any], limit: int
    ) -> Page:
        """The files of the next items of a page of the search, which is asked for each time, rather than kept."""
        query = f"mediatype:image AND ({escape_query(keyword)})"
        params = {
            "q": f"{query} AND licenseurl:*" if licences else query,
            "fields": "identifier,title,creator,licenseurl",
            "count": str(PAGE),
        }
        if mark := cursor.get("scrape"):
            params["cursor"] = mark
        document = await ask(f"{self.url}/services/search/v1/scrape", params, heed=_heed_search)
        items = list_in(document, "items", provider=self.name)
        first = cursor.get("item", 0)
        chosen = [(at, item) for at, item in enumerate(items) if at >= first and _wanted(item, licences)][
            :ITEMS
        ]
        records = await ask_each(
            [item["identifier"] for _, item in chosen], partial(self._files, ask), self.pace.at_once
        )
        hits: list[Hit] = []
        here = {"scrape": mark} if mark else {}
        for (at, item), files in zip(chosen, records, strict=False):
            start = cursor.get("file", 0) if at == first else 0
            taken = files[start : start + max(limit - len(hits), 0)]
            hits += [hit for file in taken if (hit := self._hit(item, file))]
            if start + len(taken) < len(files):
                return Page(hits, here | {"item": at, "file": start + len(taken)})
        following = document.get("cursor")
        behind = chosen[len(records) - 1][0] + 1 if records else len(items)
        if behind < len(items):
            return Page(hits, here | {"item": behind})
        goes_on = bool(items) and isinstance(following, str) and following not in ("", mark)
        return Page(hits, {"scrape": following} if goes_on else None)

    async def _files(self, ask: Ask, identifier: str) -> list[Mapping[str, Any]]:
        """The image files of one item that somebody uploaded; none of a dark or broken one, which is ``{}``."""
        try:
            record = await ask(f"{self.url}/metadata/{identifier}", heed=_heed_item)
        except ProviderWait:
            raise
        except ProviderError:  # Whatever is odd about one item costs only that.
            return []
        files = record.get("files") if isinstance(record, dict) else None
        return [file for file in objects(files if isinstance(files, list) else []) if _is_image(file)]

    def _hit(self, item: Mapping[str, Any], file: Mapping[str, Any]) -> Hit | None:
        identifier, name = item["identifier"], file["name"]
        return make_hit(
            url=f"{self.url}/download/{identifier}/{quote(name, errors='replace')}",
            provider_id=f"{identifier}/{name}",
            source_page=f"{self.url}/details/{identifier}",
            licence=_licence(item),
            creator=texts(item.get("creator")),
            title=item.get("title"),
            sha1=file.get("sha1"),
            width=file.get("width"),
            height=file.get("height"),
        )


def _wanted(item: Any, licences: Licences) -> bool:
    """Whether an item of the search is worth a request."""
    identifier = item.get("identifier") if isinstance(item, dict) else None
    return (
        isinstance(identifier, str)
        and IDENTIFIER.fullmatch(identifier) is not None
        and licences.admit(_licence(item).word)
    )


def _licence(item: Mapping[str, Any]) -> Licence:
    address = text(item.get("licenseurl"))
    return licence_at(address) if address else UNKNOWN


def _is_image(file: Mapping[str, Any]) -> bool:
    """Whether a file is an original image: not a thumbnail that was derived, and not a private one."""
    name = file.get("name")
    original = file.get("source") == "original" and str(file.get("private", "")).lower() != "true"
    return original and isinstance(name, str) and IMAGE.fullmatch(name) is not None


def _heed_search(answer: Answer) -> None:
    """Errors have a status, ``error`` and ``errorType``."""
    said = answer.document if isinstance(answer.document, dict) else {}
    if answer.status == 400 or (answer.status == 200 and "error" in said and "items" not in said):
        raise ProviderError(f"archive refuses the search: {text(said.get('error')) or answer.status}")


def _heed_item(answer: Answer) -> None:
    if answer.status in (403, 404, 410, 500):
        raise _GoneError(f"archive answered {answer.status}")
