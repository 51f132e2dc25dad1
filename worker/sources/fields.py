"""Reads what stands in a provider's answer, which may be anything: null, another type, HTML, half an address.

A field that cannot be read is missing, an image without a usable address is no hit, and an answer that is not of
its documented form ends the source with one sentence.
"""

import re
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from typing import Any

from worker.address import parse_url
from worker.errors import AddressError
from worker.sources.licences import UNKNOWN, Licence
from worker.sources.provider import Hit, ProviderError

TEXT_MAX = 1000
RAW_MAX = 20 * TEXT_MAX
"""Of a longer field only so much is looked at."""
LISTED_MAX = 10
WHOLE_MAX = 2**31 - 1
_MARKUP = re.compile(r"</?[a-zA-Z!][^>]*>|&(?:#\d+|#x[0-9a-fA-F]+|[a-zA-Z]+);")
_SHA1 = re.compile(r"[0-9a-f]{40}", re.IGNORECASE)
_HIDDEN = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "wbr"})
_LUCENE = re.compile(r'[+\-!(){}\[\]^"~*?:\\/&|]')


def make_hit(
    *,
    url: Any,
    provider_id: Any,
    source_page: Any = None,
    licence: Licence = UNKNOWN,
    creator: Any = None,
    attribution: Any = None,
    title: Any = None,
    sha1: Any = None,
    width: Any = None,
    height: Any = None,
) -> Hit | None:
    """The hit that raw fields tell of; None without an address that may be fetched, or without an id.

    Without an attribution line one is written.
    """
    address, identity = web_address(url), text(provider_id)
    if address is None or identity is None:
        return None
    page, name, person = web_address(source_page), text(title), text(creator)
    return Hit(
        url=address,
        provider_id=identity,
        source_page=page,
        licence=licence.word,
        licence_version=licence.version,
        licence_url=web_address(licence.url),
        creator=person,
        attribution=text(attribution) or _attribution(name, person, licence, page),
        title=name,
        sha1=sha1.lower() if isinstance(sha1, str) and _SHA1.fullmatch(sha1) else None,
        width=whole(width),
        height=whole(height),
    )


def _attribution(title: str | None, creator: str | None, licence: Licence, page: str | None) -> str | None:
    """Title, author, source, licence: https://wiki.creativecommons.org/wiki/Recommended_practices_for_attribution."""
    if not (title or creator):
        return None
    name = f'"{title}"' if title else "Untitled"
    parts = (f"{name} by {creator}" if creator else name, str(licence), page)
    return ", ".join(part for part in parts if part)


def text(value: Any) -> str | None:
    """A field as plain text in one line, at most TEXT_MAX characters; of a list the first that is any."""
    if isinstance(value, list):
        return next((found for found in map(text, _plain(value)) if found), None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    value = value[:RAW_MAX]
    if _MARKUP.search(value):
        value = _Words.of(value)
    # What JSON may hold and PostgreSQL may not: NUL, and halves of surrogate pairs.
    value = value.encode("utf-8", "replace").decode()
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in value).split())
    return line[:TEXT_MAX].rstrip() or None


def texts(value: Any) -> str | None:
    """All of a list that is text, ``A, B``; of anything else its text."""
    if isinstance(value, list):
        return text(", ".join(found for found in map(text, _plain(value)) if found))
    return text(value)


def _plain(values: list[Any]) -> list[str | int | float]:
    """The first of a list that are no lists or objects themselves."""
    return [value for value in values[:LISTED_MAX] if isinstance(value, str | int | float)]


class _Words(HTMLParser):
    """The words of HTML that a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.hidden = 0

    @classmethod
    def of(cls, markup: str) -> str:
        parser = cls()
        try:
            parser.feed(markup)
            parser.close()
        except AssertionError:  # Python's parser gives up over "<![x".
            return _MARKUP.sub(" ", markup)
        return "".join(parser.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            self.words.append(" ")
        elif self.hidden or tag in {"script", "style"} or _HIDDEN.search(dict(attrs).get("style") or ""):
            self.hidden += 1

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= 1 if self.hidden and tag not in _VOID else 0

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)


def web_address(value: Any) -> str | None:
    """An absolute http or https URL that ``worker.address`` takes, or None. Spaces inside are percent-encoded."""
    address = value.strip().replace(" ", "%20") if isinstance(value, str) else ""
    try:
        return parse_url(f"https:{address}" if address.startswith("//") else address).url
    except AddressError:
        return None


def whole(value: Any) -> int | None:
    """A size in pixels: a positive number, or its digits."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value[:20])
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= WHOLE_MAX
    return value if fits else None


def objects(values: Iterable[Any]) -> list[Mapping[str, Any]]:
    """Those that are JSON objects."""
    return [value for value in values if isinstance(value, dict)]


def list_in(document: Any, *path: str, provider: str) -> list[Any]:
    """The list that an answer has at a path. Raises ProviderError when there is none."""
    place = document
    for name in path:
        place = place.get(name) if isinstance(place, dict) else None
    if not isinstance(place, list):
        raise ProviderError(f"{provider} answered something that has no list {'.'.join(path)!r}")
    return place


def given(provider: str, settings: Mapping[str, str], *known: str) -> dict[str, str]:
    """What a provider was given. Raises ProviderError for a field that it does not know, naming the variable."""
    for field in settings.keys() - {"user_agent", *known}:
        there_is = " and ".join(variable(provider, name) for name in known)
        raise ProviderError(f"{variable(provider, field)} means nothing to {provider}; there is {there_is}")
    return dict(settings)


def needed(provider: str, settings: Mapping[str, str], field: str, where: str) -> str:
    """A field without which a provider does not work. Raises ProviderError, naming the variable."""
    if not settings.get(field):
        raise ProviderError(f"{provider} needs {variable(provider, field)}; {where}")
    return settings[field]


def variable(provider: str, field: str) -> str:
    """Name of the environment variable of one field."""
    return f"PIXTRAWL_PROVIDER_{provider}_{field}".upper()


def escape_query(keyword: str) -> str:
    """A keyword without the signs that mean something to Lucene, of which Solr and Elasticsearch are made."""
    return _LUCENE.sub(lambda found: f"\\{found[0]}", keyword)
