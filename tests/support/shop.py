"""A keyword provider of a test's own: a small package that offers it, its server, and what goes wrong there."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.support.loopback import LoopbackSite
from worker.sources.provider import Ask, Hit, Licences, Pace, Page, ProviderError

ROOT = Path(__file__).parents[2]


class Shop:
    """Asks a ShopServer. ``rate`` and ``per_day`` are its pace; 401 names its key."""

    name = "shop"

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.url = settings["url"]
        self.name = settings.get("name", "shop")
        per_day = settings.get("per_day")
        self.pace = Pace(
            float(settings.get("rate", 1000)), at_once=4, per_day=None if per_day is None else int(per_day)
        )

    def check(self, licences: Licences) -> None:
        """It has nothing under one licence."""
        if "by-nd" in licences.words:
            raise ProviderError("shop has nothing under by-nd")

    async def search(
        self,
        ask: Ask,
        keyword: str,
        licences: Licences,  # noqa: ARG002 - others filter.
        cursor: Mapping[str, Any],
        limit: int,  # noqa: ARG002 - its pages are as long as they are.
    ) -> Page:
        """One page, counted from 1."""

        def heed(answer: Any) -> None:
            if answer.status == 401:
                raise ProviderError("shop does not accept PIXTRAWL_PROVIDER_SHOP_KEY")

        document = await ask(
            f"{self.url}/search", {"q": keyword, "page": str(cursor.get("page", 1))}, heed=heed
        )
        following = document["next"]
        hits = [Hit(**hit) for hit in document["hits"]]
        return Page(hits, None if following is None else {"page": following}, document.get("total"))


class Annex(Shop):
    """Another provider of the same kind."""


def offer(folder: Path) -> str:
    """Install both as a package's providers under a folder; the PYTHONPATH that finds them."""
    package = folder / "shop-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
    entries = ("[pixtrawl.providers]", "shop = tests.support.shop:Shop", "annex = tests.support.shop:Annex")
    (package / "entry_points.txt").write_text("\n".join(entries) + "\n")
    return f"{folder}:{ROOT}"


def hit(url: str, number: int, **fields: Any) -> dict[str, Any]:
    """What the server says of one image."""
    given = {"licence": "by", "licence_version": "4.0", "creator": f"P{number}", "title": f"T{number}"}
    page = f"http://shop.test/{number}"
    return {"url": url, "provider_id": str(number), "source_page": page, **given, **fields}


Answer = tuple[int, Mapping[str, str], str]


class ShopServer(LoopbackSite):
    """Serves what is in ``stock``, ``size`` a page, unless ``script`` says otherwise."""

    def __init__(
        self, stock: Mapping[str, Sequence[Mapping[str, Any]]] | None = None, size: int = 20
    ) -> None:
        self.stock = dict(stock or {})
        self.size = size
        self.script: Callable[[str, int], Answer | None] = lambda _word, _page: None
        """What is answered to a keyword and page instead; None: as usual."""
        self.log: list[tuple[float, str, int]] = []
        """Every search: when, by ``time.monotonic``, for what, and which page."""
        self.counts = False
        """Whether it says how many it has."""
        self.held: set[str] = set()
        """Keywords whose searches wait for ``release``."""

    def asked(self) -> Counter[str]:
        """How often each keyword was searched for."""
        return Counter(word for _, word, _ in self.log)

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """A page of what a keyword finds, or what the script says."""
        word, page = request.query.get("q", ""), int(request.query.get("page", 1))
        self.log.append((time.monotonic(), word, page))
        if word in self.held:
            await self.released.wait()
        if (said := self.script(word, page)) is not None:
            status, headers, text = said
            return web.Response(status=status, headers=headers, text=text)
        return web.Response(text=self.page(word, page), content_type="application/json")

    def page(self, word: str, page: int, following: int | None = None) -> str:
        """The JSON of a page, with another ``following`` one if given."""
        stock = self.stock.get(word, ())
        last = page * self.size
        goes_on = page + 1 if last < len(stock) else None
        said = {"hits": list(stock[last - self.size : last]), "next": following or goes_on}
        return json.dumps(said | ({"total": len(stock)} if self.counts else {}))
