"""The first results of a search, for people to look at before they pay for it. Writes nothing; keeps every pace."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.settings import Settings
from worker.pace import PaceWait
from worker.shared import close_redis, open_redis
from worker.sources.licences import Licences
from worker.sources.provider import Hit, ProviderError, ProviderWait
from worker.sources.providing import Providers
from worker.transport import GuardedTransport, make_client

PATIENCE_SECONDS = 60.0
"""So long a turn is waited for, when others ask the same provider."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The first page of one keyword at one provider; ``error`` says why there is none."""

    keyword: str
    provider: str
    hits: Sequence[Hit] = ()
    more: bool = False
    error: str | None = None


async def preview(
    settings: Settings,
    keywords: Sequence[str],
    providers: Sequence[str],
    licences: Licences,
    say: Callable[[str], None],
) -> list[Preview]:
    """Ask each provider for each keyword once, and ``say`` so before."""
    redis = open_redis(settings)
    previews = []
    try:
        async with make_client(GuardedTransport(settings), settings) as client:
            opened = Providers(settings, client, redis)
            for keyword in keywords:
                for name in providers:
                    say(f"Asking {name} for '{keyword}' …")
                    previews.append(await _first_page(opened, keyword, name, licences))
    finally:
        await close_redis(redis)
    return previews


async def _first_page(opened: Providers, keyword: str, name: str, licences: Licences) -> Preview:
    ends = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            provider, ask = opened.open(name)
            page = await provider.search(ask, keyword, licences, {}, 20)
        except PaceWait as wait:
            if time.monotonic() + wait.seconds > ends:
                return Preview(keyword, name, error=str(wait))
            await asyncio.sleep(wait.seconds)
        except ProviderWait as wait:
            later = f": try again in {wait.seconds:.0f} s" if wait.seconds >= 1 else ""
            return Preview(keyword, name, error=f"{wait}{later}")
        except ProviderError as error:
            return Preview(keyword, name, error=str(error))
        else:
            hits = [hit for hit in page.hits if licences.admit(hit.licence)]
            return Preview(keyword, name, hits, more=page.cursor is not None)
