"""The source of a job that searches: some keywords at some providers, shared fairly, until enough is accepted.

A step asks until it has what was wanted or a few seconds are over. What a page brings beyond that waits in the
cursor, so no page is asked for twice for its rest.
"""

import asyncio
import time
from collections.abc import Iterable
from functools import partial

import structlog

from models.database import transaction
from models.keywords import Reached, reached
from models.seen import known_keys
from models.splitting import SplittableJob
from worker.child import Child
from worker.pace import PaceWait
from worker.sources.feeds import Feed, Pooled, read_feeds, why_ended, write_feeds
from worker.sources.licences import read_licences
from worker.sources.provider import ProviderError, ProviderWait
from worker.sources.shares import Level, level_now, needs
from worker.sources.source import Found, SourceWait, Step
from worker.writing import persist

STEP_SECONDS = 5.0
FIRST_SECONDS = 0.5
"""The first steps end with what the first page brought: workers wait for it."""
FIRST_CHUNKS = 4
POOL_HITS = 50
"""Of a page that has far more than is wanted so many wait in the cursor; for others it is asked for again."""
TRIED_PER_IMAGE_MAX = 20
TRIED_MIN = 1000
"""A source that has handed out more for each image that was asked for ends: nothing good comes of it."""

log = structlog.get_logger()


class KeywordsSource:
    """See ``Source``."""

    async def step(self, child: Child, job: SplittableJob, wanted: int) -> Step:
        """Ask whoever has what is most missing. Raises SourceWait when nobody may be asked now."""

        def look(_: bool) -> Reached:
            with transaction(child.engine) as session:
                return reached(session, job.id)

        now = await child.in_database(partial(persist, look, job=job.id))
        return await Gathering(child, job, now, wanted).gather()


class Gathering:
    """One step under way."""

    def __init__(self, child: Child, job: SplittableJob, now: Reached, wanted: int) -> None:
        self.child = child
        self.job = job
        self.now = now
        self.wanted = wanted
        self.licences = read_licences(job.source.get("licences", ()))
        self.feeds = read_feeds(job.source, job.cursor)
        self.keywords = list(dict.fromkeys(feed.keyword for feed in self.feeds))
        self.base = self._levels()
        self.taken = dict.fromkeys(self.keywords, 0)
        self.pooled = {key for feed in self.feeds for pooled in feed.pool for key in pooled.keys}
        self.found: list[Found] = []
        self.waits: dict[str, ProviderWait] = {}
        self.asked = 0

    async def gather(self) -> Step:
        """Hand out, ask, and again."""
        began = time.monotonic()
        seconds = FIRST_SECONDS if self.job.total_chunks < FIRST_CHUNKS else STEP_SECONDS
        while True:
            missing = self.hand_out()
            if len(self.found) == self.wanted or time.monotonic() >= began + seconds:
                break
            feeds = self.to_ask(missing)
            if not feeds:
                break
            asking = (self.ask(feed, missing[feed.keyword]) for feed in feeds)
            for outcome in await asyncio.gather(*asking, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        return self.finish()

    def hand_out(self) -> dict[str, int]:
        """Candidates from the pools, as far as their keywords' shares go; how many are missing of each keyword."""
        missing = {}
        for keyword, need in zip(
            self.keywords, needs(self.levels(), self.wanted - len(self.found)), strict=True
        ):
            feeds = [feed for feed in self.feeds if feed.keyword == keyword and feed.pool]
            for _ in range(need):
                feeds = [feed for feed in feeds if feed.pool]
                if not feeds:
                    break
                self.found.append(min(feeds, key=lambda feed: feed.handed).hand_out())
                self.taken[keyword] += 1
                need -= 1  # noqa: PLW2901 - what is left of it
            missing[keyword] = need
        return missing

    def levels(self) -> list[Level]:
        """What each keyword has by now, and what it may have at most: one that ran dry what is in its pools."""
        levels = []
        for keyword in self.keywords:
            feeds = [feed for feed in self.feeds if feed.keyword == keyword]
            now = self.base[keyword] + self.taken[keyword]
            dry = all(feed.ended is not None for feed in feeds)
            levels.append(Level(now, now + sum(len(feed.pool) for feed in feeds) if dry else None))
        return levels

    def _levels(self) -> dict[str, int]:
        handed = dict.fromkeys(self.keywords, 0)
        for feed in self.feeds:
            handed[feed.keyword] += feed.handed
        accepted = self.now.accepted
        if accepted is None:
            return handed
        left = sum(handed.values()) - sum(accepted.get(keyword, 0) for keyword in self.keywords)
        return {
            keyword: level_now(handed[keyword], accepted.get(keyword, 0), self.now.unresolved, left)
            for keyword in self.keywords
        }

    def to_ask(self, missing: dict[str, int]) -> list[Feed]:
        """One feed of each provider that may be asked now: of the keyword that misses most."""
        chosen: dict[str, Feed] = {}
        for feed in sorted(self.feeds, key=lambda feed: -missing[feed.keyword]):
            if missing[feed.keyword] and feed.ended is None and feed.provider not in self.waits:
                chosen.setdefault(feed.provider, feed)
        return list(chosen.values())

    async def ask(self, feed: Feed, missing: int) -> None:
        """Read a page of a feed into its pool, or learn that its provider is to be left alone, or broken."""
        try:
            provider, ask = self.child.providers.open(feed.provider)
            page = await provider.search(ask, feed.keyword, self.licences, feed.cursor, missing)
        except ProviderWait as wait:
            self.waits[feed.provider] = wait
            return
        except ProviderError as error:
            log.warning("feed_ended", job=self.job.id, keyword=feed.keyword, why=str(error))
            feed.ended = str(error)
            self.asked += 1
            return
        except Exception as error:  # Nobody can foresee what a provider raises; others go on.
            log.exception("provider_broke_off", job=self.job.id, provider=feed.provider)
            why = f"{feed.provider} broke off: unexpected {type(error).__name__}"
            self.waits[feed.provider] = ProviderWait(0, why)
            return
        self.asked += 1
        feed.total = page.total or feed.total
        hits = page.hits[feed.skip : feed.skip + max(missing, POOL_HITS)]
        ranked = [Pooled(hit, feed.rank + number) for number, hit in enumerate(hits, 1)]
        fresh = await self.fresh(pooled for pooled in ranked if self.licences.admit(pooled.hit.licence))
        feed.pool += fresh
        feed.rank += len(hits)
        feed.skip += len(hits)
        if feed.skip >= len(page.hits):
            feed.turn_page(page.cursor, fresh=bool(fresh))

    async def fresh(self, pooled: Iterable[Pooled]) -> list[Pooled]:
        """Those that neither the job nor a pool has seen."""
        some = list(pooled)
        keys = {key for each in some for key in each.keys}

        def look(_: bool) -> set[bytes]:
            with transaction(self.child.engine) as session:
                return known_keys(session, self.job.id, keys)

        known = await self.child.in_database(partial(persist, look, job=self.job.id)) if keys else set()
        found = []
        for each in some:
            if known.isdisjoint(each.keys) and self.pooled.isdisjoint(each.keys):
                found.append(each)
            self.pooled.update(each.keys)
        return found

    def finish(self) -> Step:
        """What the step brought. Raises SourceWait when that is nothing, since everybody wants to be left alone."""
        ended = None
        if all(feed.ended is not None and not feed.pool for feed in self.feeds):
            ended = why_ended(self.feeds)
        elif sum(feed.handed for feed in self.feeds) >= TRIED_MIN + TRIED_PER_IMAGE_MAX * self.now.max_images:
            ended = f"more than {TRIED_PER_IMAGE_MAX} candidates for each image were tried"
        if self.waits and not (self.found or self.asked or ended):
            wait = min(self.waits.values(), key=lambda wait: wait.seconds)
            raise SourceWait(wait.seconds, str(wait), ours=isinstance(wait, PaceWait))
        return Step(self.found, write_feeds(self.feeds), ended)
