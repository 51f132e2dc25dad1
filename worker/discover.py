"""One step of a source that asks the web, from its message to its commit. The straight line beside crawl.py's.

No transaction is open while anything is asked. Whatever ends a step before its commit costs a repeat of the step.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

import structlog
from sqlalchemy.orm import Session

from models.cutting import cut
from models.database import first_line, transaction
from models.discovery import (
    StartedStep,
    end_source,
    give_up_step,
    postpone_source,
    renew_step,
    start_step,
)
from models.jobs import SourceKind, SourceState
from models.outcomes import Candidate
from models.seen import mark_seen, url_key
from models.splitting import SplittableJob, advance_source
from models.workers import live_slots
from worker.child import Child
from worker.endings import end_tasks
from worker.presence import leaving
from worker.sources.keywords import KeywordsSource
from worker.sources.pages import PagesSource
from worker.sources.source import Found, Source, SourceError, SourceWait, Step
from worker.writing import persist

SOURCES: dict[SourceKind, Callable[[], Source]] = {
    SourceKind.KEYWORDS: KeywordsSource,
    SourceKind.PAGES: PagesSource,
}
STEP_CANDIDATES_MAX = 10_000
SLOTS_MIN = 4
"""So many are reckoned with at the end of a source: workers may have been started together with the job."""
LOOK_SECONDS = 0.5
LEAVE_SECONDS = 0.1
STEP_SECONDS_MAX = 60.0
"""A step should take a sixth of it. One that takes longer has broken off."""
ATTEMPTS_MAX = 50
"""So often in a row a step may come to nothing, lost or postponed, before its source ends: a day and a half."""
BROKEN_ATTEMPTS_MAX = 8
"""The same of a step that breaks off for no reason that anybody foresaw: a few minutes."""
BACKOFF_SECONDS_MAX = 3600.0
BROKE_OFF = "it broke off"
WAIT_SECONDS_MAX = 86_400.0

log = structlog.get_logger()
Result = TypeVar("Result")


class LostStepError(Exception):
    """Somebody else has the step now, or it is not wanted any more: nothing was written."""


async def make_step(child: Child, job_id: int, step: int) -> None:
    """Take the step if it is still wanted, make it, and commit what it brought."""

    def start(session: Session) -> StartedStep | None:
        return start_step(session, job_id, step, child.name, child.settings.lease_seconds)

    started = await _write(child, job_id, start)
    if started is None:
        log.info("step_not_wanted", job=job_id, step=step)
        return
    await StepRun(child, started).run()


class StepRun:
    """One attempt at one step, and what becomes of it."""

    def __init__(self, child: Child, started: StartedStep) -> None:
        self.child = child
        self.job = started.job
        self.fence = started.fence
        self.attempts = started.attempts
        self.waited_for = started.waited_for
        self.names = {"job": started.job.id, "step": started.job.step}

    async def run(self) -> None:
        """Make the step and write how it ended: advanced, postponed, given up, or the end of its source."""
        if self.attempts > ATTEMPTS_MAX:
            last = self.waited_for or "its worker was lost"
            await self.end(f"{ATTEMPTS_MAX} attempts at one step came to nothing, the last of them: {last}")
            return
        try:
            step = await self.make()
            await self.advance(step)
        except LostStepError as error:
            await self.give_up(str(error))
        except SourceWait as wait:
            await self.postpone(wait)
        except SourceError as error:
            await self.end(str(error))
        except TimeoutError:
            await self.postpone(SourceWait(0, f"its step took longer than {STEP_SECONDS_MAX:.0f} s"))
        except Exception as error:
            if not await self.mine():  # Its job was deleted, say.
                log.info("step_given_up", **self.names, why="it is not wanted any more")
                return
            log.exception("step_broke_off", **self.names)
            if self.attempts >= BROKEN_ATTEMPTS_MAX and (self.waited_for or "").startswith(BROKE_OFF):
                await self.end(f"unexpected {type(error).__name__}: {first_line(error)}")
            else:
                await self.postpone(SourceWait(0, f"{BROKE_OFF}: unexpected {type(error).__name__}"))

    async def make(self) -> Step:
        """Ask, and look after the lease meanwhile. Raises LostStepError when there is a reason to stop before."""
        source = SOURCES[self.job.source_kind]()
        wanted = min(self.job.wanted, STEP_CANDIDATES_MAX)
        asking = asyncio.ensure_future(
            asyncio.wait_for(source.step(self.child, self.job, wanted), STEP_SECONDS_MAX)
        )
        tasks: list[asyncio.Future[Any]] = [asking, asyncio.ensure_future(self.keep_lease())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return asking.result()
        finally:
            await end_tasks(tasks)

    async def keep_lease(self) -> NoReturn:
        """Renew the lease in time. Raises LostStepError when the worker leaves or the step is not its own or not
        wanted any more.
        """
        while True:
            for _ in range(round(LOOK_SECONDS / LEAVE_SECONDS)):
                if leaving():
                    raise LostStepError("the worker leaves")
                await asyncio.sleep(LEAVE_SECONDS)
            if not await self.mine():
                raise LostStepError("it is somebody else's, or its job was paused or cancelled")

    async def mine(self) -> bool:
        """Whether the step is still this worker's, and wanted; its lease goes on then."""
        renew = partial(renew_step, fence=self.fence, lease_seconds=self.child.settings.lease_seconds)
        look = partial(_commit, self.child, renew)
        return await self.child.beside(partial(persist, look, job=self.job.id))

    async def advance(self, step: Step) -> None:
        """Commit what the step found: nothing that the job has seen, at the next positions."""
        written = await _write(self.child, self.job.id, partial(self._advance, step=step))
        log.info("source_advanced", **self.names, found=len(step.found), candidates=written, ended=step.ended)

    def _advance(self, session: Session, step: Step) -> int:
        new = unseen(session, self.job, step.found)
        state = SourceState.SPLITTING
        if step.ended is not None:
            state = SourceState.EXHAUSTED
        elif len(new) == self.job.wanted:
            state = SourceState.OPEN
        ending = 0 if state is SourceState.SPLITTING else max(SLOTS_MIN, live_slots(session))
        chunks = list(cut(new, self.job.total_chunks, self.child.settings.chunk_size, ending))
        if step.commit is not None:
            step.commit(session)
        worker = self.fence.worker
        if not advance_source(
            session, self.job, step.cursor, state, chunks, worker=worker, detail=step.ended
        ):
            raise LostStepError("it was written meanwhile, or fewer candidates are wanted")
        return len(new)

    async def postpone(self, wait: SourceWait) -> None:
        """Let the step wait: as long as was asked for, and longer each time that it counts in a row."""
        seconds = wait.seconds if wait.ours else max(wait.seconds, backoff_seconds(self.attempts))
        seconds = min(seconds, WAIT_SECONDS_MAX)
        arrow = partial(
            postpone_source, fence=self.fence, seconds=seconds, why=str(wait), counts=not wait.ours
        )
        if await _write(self.child, self.job.id, arrow):
            say = log.info if wait.ours else log.warning
            say("source_postponed", **self.names, seconds=round(seconds, 1), why=str(wait))

    async def end(self, why: str) -> None:
        """End the source for good."""
        if await _write(self.child, self.job.id, partial(end_source, fence=self.fence, detail=why)):
            log.error("source_ended", **self.names, why=why)

    async def give_up(self, why: str) -> None:
        """Leave the step to whoever takes it next."""
        await _write(self.child, self.job.id, partial(give_up_step, fence=self.fence))
        log.info("step_given_up", **self.names, why=why)


def unseen(session: Session, job: SplittableJob, found: Sequence[Found]) -> list[Candidate]:
    """Candidates for what neither this step nor an earlier one has had, by URL or another key; all are marked."""
    position = job.position
    here: set[bytes] = set()
    first: list[tuple[Found, tuple[bytes, ...]]] = []
    marks: list[tuple[bytes, int]] = []
    for each in found:
        keys = (url_key(each.url), *each.keys)
        if here.isdisjoint(keys):
            first.append((each, keys))
        marks += [(key, position) for key in keys if key not in here]
        here.update(keys)
    before = mark_seen(session, job.id, marks)
    new = [each for each, keys in first if before.keys().isdisjoint(keys)]
    return [Candidate(position + index, each.url, each.line, each.about) for index, each in enumerate(new)]


def backoff_seconds(attempts: int) -> float:
    """How long a step waits at least after so many attempts in a row that came to nothing."""
    return min(BACKOFF_SECONDS_MAX, 2.0 ** min(attempts - 1, 30))


async def _write(child: Child, job_id: int, arrow: Callable[[Session], Result]) -> Result:
    """Commit one arrow in the database thread, whatever the connection does. An arrow whose COMMIT went through
    without an answer finds its guard broken the second time: that is as good as somebody else having written.
    """
    return await child.in_database(partial(persist, partial(_commit, child, arrow), job=job_id))


def _commit(child: Child, arrow: Callable[[Session], Result], _unsure: bool) -> Result:
    with transaction(child.engine) as session:
        return arrow(session)
