"""A real ``ask`` over loopback, without pacing: what a provider is given in tests of providers alone."""

import asyncio
import json
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import httpx

from worker.sources.provider import Answer, Hit, Page, Provider, ProviderError, ProviderWait, read_licences

WAIT_SECONDS = 30
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Loopback needs none, and reading all authorities again for each test would take most of its time."""
USER_AGENT = "Pixtrawl/0.1 (tests@example.org)"


class PlainAsk:
    """Judges each answer as ``worker.sources.provider.Ask`` says, and tries nothing twice."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def __call__(
        self,
        url: str,
        params: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        heed: Callable[[Answer], None] | None = None,
    ) -> Any:
        """The JSON of a 2xx answer."""
        response = await self.client.request(
            "GET" if form is None else "POST", url, params=params, headers=headers, data=form
        )
        try:
            document = response.json()
        except ValueError:
            document = None
        if heed is not None:
            heed(Answer(response.status_code, dict(response.headers), document))
        if response.status_code == 429 or response.status_code >= 500:
            raise ProviderWait(float(response.headers.get("retry-after", WAIT_SECONDS)), "asked to wait")
        if not response.is_success or document is None:
            raise ProviderError(f"answered {response.status_code}")
        return document


def ask_once(
    provider: Provider,
    keyword: str = "cat",
    words: Iterable[str] = (),
    cursor: Mapping[str, Any] | None = None,
    limit: int = 100,
) -> Page:
    """One page of a search."""

    async def search() -> Page:
        async with make_client() as client:
            return await provider.search(PlainAsk(client), keyword, read_licences(words), cursor or {}, limit)

    return asyncio.run(search())


def walk(
    provider: Provider, keyword: str = "cat", words: Iterable[str] = (), limit: int = 100, pages_max: int = 60
) -> list[Page]:
    """Every page of a search; more than ``pages_max`` fail the test."""

    async def search() -> list[Page]:
        pages: list[Page] = []
        cursor: Mapping[str, Any] | None = {}
        async with make_client() as client:
            while cursor is not None:
                assert len(pages) < pages_max, "the search has no end"
                # As the database keeps it.
                cursor = json.loads(json.dumps(cursor))
                pages.append(
                    await provider.search(PlainAsk(client), keyword, read_licences(words), cursor, limit)
                )
                cursor = pages[-1].cursor
        return pages

    return asyncio.run(search())


def make_client() -> httpx.AsyncClient:
    """A client that names us as the program does."""
    return httpx.AsyncClient(trust_env=False, headers={"User-Agent": USER_AGENT}, timeout=10, verify=NO_TLS)


def hits_of(pages: Iterable[Page]) -> list[Hit]:
    """All hits of some pages."""
    return [hit for page in pages for hit in page.hits]
