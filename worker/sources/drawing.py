"""Which candidates of a source are tried before a job is made of it: some at random where all are there to be read,
else the first. Writes nothing.
"""

import asyncio
import contextlib
import math
import random as randomness
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from models.candidates import PackedCandidate, unpacked
from models.jobs import SourceKind
from models.opt_outs import OptOut
from models.outcomes import Candidate
from models.seen import url_key
from models.splitting import SplittableJob
from worker.child import Child
from worker.discover import SOURCES
from worker.endings import end_tasks
from worker.sources.feeds import read_feeds, total_of
from worker.sources.source import SourceError, SourceWait
from worker.sources.start_pages import images_of_start_pages
from worker.store import Store

STEP_CANDIDATES = 10_000
NO_JOB = 0
"""Jobs are counted from 1: nothing is known of this one, and nothing is ever written of it."""
LOOK_SECONDS = 0.1

Result = TypeVar("Result")

Read = Callable[
    [Store, Mapping[str, Any], Mapping[str, Any], int],
    tuple[Sequence[Candidate | PackedCandidate], Mapping[str, Any], bool],
]
"""Candidates from a cursor on, the next cursor, and whether that is the end: see url_list.py."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Candidates to be tried, in the order in which they should be, of ``population`` in all (None: nobody knows;
    ``open_ended``: of so many at least).

    ``repeated`` are the positions of those whose URL comes again later in the source. ``detail`` says why there are
    no more, for people.
    """

    candidates: Sequence[Candidate]
    population: int | None
    repeated: frozenset[int] = frozenset()
    detail: str | None = None
    open_ended: bool = False


def draw(
    read: Read,
    store: Store,
    source: Mapping[str, Any],
    population: int,
    size: int,
    random: randomness.Random,
) -> Drawn:
    """``size`` of the candidates of a stored source, each as likely as any other. Reads all of it, and keeps no
    more than those. Raises StoreError.
    """
    wanted = set(random.sample(range(population), size))
    drawn: dict[int, Candidate] = {}
    twins: dict[int, int] = {}
    last: dict[str, int] = {}
    """Where the URL of a drawn candidate stood last."""
    cursor: Mapping[str, Any] = {}
    ended = False
    while not ended:
        candidates, cursor, ended = read(store, source, cursor, STEP_CANDIDATES)
        for candidate in candidates:
            url = _url_of(candidate)
            if (earlier := last.pop(url, None)) is not None:
                twins[earlier] = candidate.position
            if candidate.position in wanted:
                [drawn[candidate.position]] = unpacked([candidate])
                last[url] = candidate.position
    order = [drawn[position] for position in sorted(drawn)]
    if source.get("unique_urls"):
        # The job fetches the first of them and not the last, which makes no difference to how many it fetches.
        order = [_unfetched(candidate, twins) for candidate in order]
    random.shuffle(order)
    return Drawn(order, population, frozenset(twins))


def _url_of(candidate: Candidate | PackedCandidate) -> str:
    """What is the same for the same URL; a row is not parsed for it."""
    return candidate.row.partition('",')[0] if isinstance(candidate, PackedCandidate) else candidate.url


def _unfetched(candidate: Candidate, twins: Mapping[int, int]) -> Candidate:
    twin = twins.get(candidate.position) if candidate.problem is None else None
    return candidate if twin is None else replace(candidate, duplicate_of=twin)


async def first_found(
    child: Child,
    kind: SourceKind,
    source: Mapping[str, Any],
    size: int,
    ends: float,
    stop: Callable[[], bool] = lambda: False,
) -> Drawn:
    """The first ``size`` candidates of a source that asks the web, or as many as it yields until ``ends`` (of
    ``time.monotonic``): what a job of it would begin with.
    """
    job = SplittableJob(NO_JOB, kind, source, 0, {}, 0, 0, 0, size)
    found: list[Candidate] = []
    seen: set[bytes] = set()
    detail: str | None = None
    while detail is None and len(found) < size and not stop():
        try:
            step = await _in_time(SOURCES[kind]().step(child, job, size - len(found)), ends, stop)
        except SourceWait as wait:
            detail = str(wait)
            if time.monotonic() + wait.seconds < ends and await _pause(wait.seconds, stop):
                detail = None
            continue
        except (SourceError, TimeoutError) as error:
            detail = str(error)
            break
        for each in step.found:
            keys = {url_key(each.url), *each.keys}
            if seen.isdisjoint(keys):
                found.append(Candidate(len(found), each.url, each.line, each.about))
            seen |= keys
        job = replace(job, cursor=step.cursor, step=job.step + 1, position=len(found))
        detail = step.ended
    total = total_of(read_feeds(source, job.cursor)) if job.cursor else None
    return Drawn(found, total if total is None else max(total, len(found)), detail=detail)


async def on_start_pages(
    child: Child,
    source: Mapping[str, Any],
    ignored: Collection[OptOut],
    size_of: Callable[[int], int],
    random: randomness.Random,
    ends: float,
    stop: Callable[[], bool] = lambda: False,
) -> Drawn:
    """Some of the images on the pages that a crawl would begin with, each as likely as any other."""
    try:
        images, open_ended, detail = await _in_time(images_of_start_pages(child, source, ignored), ends, stop)
    except TimeoutError as error:
        return Drawn((), None, detail=str(error))
    found = {url_key(url): (url, about) for url, about in images}
    candidates = [
        Candidate(place, url, place + 1, about) for place, (url, about) in enumerate(found.values())
    ]
    chosen = random.sample(candidates, size_of(len(candidates)))
    return Drawn(chosen, len(candidates), detail=detail, open_ended=open_ended)


async def _in_time(work: Coroutine[Any, Any, Result], ends: float, stop: Callable[[], bool]) -> Result:
    """What ``work`` returns. Raises TimeoutError when that comes after ``ends``, or ``stop`` says so."""
    task = asyncio.ensure_future(work)
    try:
        while not (task.done() or stop()) and time.monotonic() < ends:
            await asyncio.wait([task], timeout=LOOK_SECONDS)
        if not task.done():
            raise TimeoutError("no answer came in time")
        return task.result()
    finally:
        await end_tasks([task])


async def _pause(seconds: float, stop: Callable[[], bool]) -> bool:
    """Wait; whether nobody stopped it."""
    with contextlib.suppress(TimeoutError):
        await _in_time(asyncio.sleep(seconds), math.inf, stop)
    return not stop()
