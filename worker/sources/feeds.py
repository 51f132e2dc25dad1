"""What one keyword yields at one provider, and how far it has been read: a search's cursor is a list of these."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from models.about import About, bounded
from models.seen import digest_key, url_key
from worker.sources.provider import Hit
from worker.sources.source import Found

STALE_PAGES_MAX = 30
"""So many pages in a row without anything new end a feed. Keywords overlap; who repeats for ever has only such."""
HAS_NO_MORE = "has no more"
REPEATS = "repeats itself"
STALE = f"brought nothing new in {STALE_PAGES_MAX} pages"


@dataclass(slots=True)
class Pooled:
    """A hit that waits to be handed out, with its rank in its feed."""

    hit: Hit
    rank: int

    @property
    def keys(self) -> tuple[bytes, ...]:
        """By what it is known as seen."""
        return url_key(self.hit.url), *self.more_keys

    @property
    def more_keys(self) -> tuple[bytes, ...]:
        """The same without its URL."""
        return () if self.hit.sha1 is None else (digest_key(f"sha1:{self.hit.sha1}"),)


@dataclass(slots=True)
class Feed:
    """One keyword at one provider. ``cursor`` is that of the next page, of which ``skip`` hits are known already;
    ``rank`` counts the hits so far, ``handed`` those that became candidates, ``stale`` the pages in a row without
    anything new; the provider says that it has ``total``. ``ended`` says why there is no more.
    """

    keyword: str
    provider: str
    cursor: Mapping[str, Any] = field(default_factory=dict)
    skip: int = 0
    rank: int = 0
    handed: int = 0
    stale: int = 0
    total: int | None = None
    ended: str | None = None
    pool: list[Pooled] = field(default_factory=list)

    def turn_page(self, cursor: Mapping[str, Any] | None, *, fresh: bool) -> None:
        """A page was read to its end; ``cursor`` is that of the next one."""
        self.stale = 0 if fresh else self.stale + 1
        if cursor is None:
            self.ended = HAS_NO_MORE
        elif dict(cursor) == dict(self.cursor):
            self.ended = REPEATS
        elif self.stale >= STALE_PAGES_MAX:
            self.ended = STALE
        self.cursor, self.skip = cursor or {}, 0

    def hand_out(self) -> Found:
        """The next of its pool, as a candidate."""
        pooled = self.pool.pop(0)
        self.handed += 1
        return Found(pooled.hit.url, pooled.rank, about(self, pooled.hit), pooled.more_keys)


def about(feed: Feed, hit: Hit) -> About:
    """Whose it is, and under which terms: all that the provider says."""
    licence = hit.licence and f"{hit.licence} {hit.licence_version or ''}".rstrip()
    more = {
        "provider_id": hit.provider_id,
        "licence_url": hit.licence_url,
        "attribution": hit.attribution,
        "title": hit.title,
    }
    return About(
        keyword=feed.keyword,
        source_page=hit.source_page,
        provider=feed.provider,
        licence=licence,
        creator=hit.creator,
        metadata=bounded({name: value for name, value in more.items() if value is not None}),
    )


def read_feeds(source: Mapping[str, Any], cursor: Mapping[str, Any]) -> list[Feed]:
    """The feeds of a job; {} is the beginning: each keyword at each provider."""
    if not cursor:
        return [Feed(word, name) for word in source["keywords"] for name in source["providers"]]
    return [_feed(document) for document in cursor["feeds"]]


def _feed(document: Mapping[str, Any]) -> Feed:
    pool = [Pooled(Hit(**hit), rank) for rank, hit in document.get("pool", ())]
    return Feed(**{**document, "pool": pool})


def write_feeds(feeds: Sequence[Feed]) -> dict[str, Any]:
    """Inverse of read_feeds; only what is set."""
    return {"feeds": [_document(feed) for feed in feeds]}


def _document(feed: Feed) -> dict[str, Any]:
    pool = [[pooled.rank, _known(asdict(pooled.hit))] for pooled in feed.pool]
    plain = {name: getattr(feed, name) for name in Feed.__dataclass_fields__ if name != "pool"}
    return _known({**plain, "cursor": dict(feed.cursor), "pool": pool})


def _known(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a missing value means as well."""
    return {name: value for name, value in document.items() if value or value == ""}


def total_of(feeds: Sequence[Feed]) -> int | None:
    """About how many candidates there are in all, those of several feeds counted twice; None: one does not say."""
    totals = [feed.total if feed.ended is None else feed.handed + len(feed.pool) for feed in feeds]
    return None if None in totals else sum(total for total in totals if total is not None)


def why_ended(feeds: Sequence[Feed]) -> str:
    """Why there is no more, for people: each provider's word, and for which keywords it is."""
    words: dict[tuple[str, str], list[str]] = {}
    for feed in feeds:
        words.setdefault((feed.provider, feed.ended or ""), []).append(feed.keyword)
    keywords = {feed.keyword for feed in feeds}
    parts = []
    for (provider, why), some in words.items():
        said = f"{provider} {why}" if why in {HAS_NO_MORE, REPEATS, STALE} else why
        parts.append(f"{said} for {_listed(some)}" if len(some) < len(keywords) else said)
    return "; ".join(parts)


def _listed(keywords: Sequence[str]) -> str:
    shown = ", ".join(f"'{keyword}'" for keyword in keywords[:3])
    return shown if len(keywords) <= 3 else f"{shown} and {len(keywords) - 3} more"
