"""A source of a test's own, which asks nobody: a shelf of what it has, and a script of what goes wrong."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Engine

from models.about import About
from models.database import transaction
from models.discovery import StartedStep, start_step
from models.jobs import SourceKind, SourceState
from models.splitting import SplittableJob
from tests.support.crawling import NewJob, new_job
from worker.child import Child
from worker.sources.source import Found, Step


def found(number: int, *keys: bytes, url: str | None = None) -> Found:
    """The shelf's candidate of this number."""
    return Found(url or f"http://images.test/{number}.jpg", number + 1, About(keyword="owl"), keys)


class Shelf:
    """Hands out what it has, ``size`` at a time. ``script`` says what happens in each step instead of that: an
    exception is raised, a function called with the child, None goes on as usual.
    """

    def __init__(self, items: Sequence[Found], size: int = 100, script: Sequence[Any] = ()) -> None:
        self.items = items
        self.size = size
        self.script: Iterator[Any] = iter(script)
        self.asked: list[int] = []

    async def step(self, child: Child, job: SplittableJob, wanted: int) -> Step:
        """The next items."""
        self.asked.append(wanted)
        happens = next(self.script, None)
        if isinstance(happens, Exception):
            raise happens
        if happens is not None:
            await happens(child)
        first = int(job.cursor.get("at", 0))
        last = min(first + self.size, first + wanted, len(self.items))
        ended = "nothing is left on the shelf" if last == len(self.items) else None
        return Step(self.items[first:last], {"at": last}, ended)


def meanwhile(act: Callable[[], object]) -> Callable[[Child], Any]:
    """In the script of a shelf: do something while the step is under way, which then takes long."""

    async def happen(child: Child) -> None:
        await child.aside(act)
        await asyncio.sleep(60)

    return happen


def job_of_shelf(engine: Engine, **columns: Any) -> NewJob:
    """A job whose source is a shelf, of which nothing was asked yet."""
    usual = {"source_kind": SourceKind.KEYWORDS, "source_state": SourceState.SPLITTING, "max_images": 1000}
    return new_job(engine, [], **(usual | columns))


def start_at(
    engine: Engine, job: NewJob, step: int, worker: str, lease_seconds: float = 30
) -> StartedStep | None:
    """A worker takes a step, if it may."""
    with transaction(engine) as session:
        return start_step(session, job.id, step, worker, lease_seconds)
