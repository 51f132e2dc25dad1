"""One chunk from its message to its end: start, transfer, checkpoint, settle. The straight line of a worker.

No transaction is open while anything is transferred; objects are stored before the rows that name them.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import structlog

from models.database import transaction
from models.lifecycle import (
    Fence,
    Ownership,
    StartedChunk,
    checkpoint_chunk,
    give_up_chunk,
    hand_back_chunk,
    renew_lease,
    settle_chunk,
    settle_short_chunk,
)
from models.outcomes import Candidate, Outcome, Reason, Refused
from models.queueing import queued_chunks
from models.recording import Tally
from models.settings import Settings
from worker.candidate import Fetcher, PlainFetcher, begin_visit, closed_host, crawl_visit
from worker.careful import careful_seconds_max
from worker.child import ASIDE_MAX, Child, StuckError
from worker.endings import end_tasks
from worker.helper import START_SECONDS_MAX, HelperError
from worker.host import Host, Turn
from worker.idleness import Idleness, Tail
from worker.opt_outs import ADMIT_SECONDS_MAX
from worker.presence import leaving
from worker.quarantine import ANSWER_SECONDS_MAX, QUARANTINE_LOSSES, Quarantine
from worker.store import Store, StoreError
from worker.transfers import Transfers
from worker.visit import BACKOFF_SECONDS_MAX, Visit
from worker.watchdog import Work
from worker.writing import LostChunkError, commit, lost, persist, start

LOOK_SECONDS = 0.5
"""How often a worker looks after its lease, and whether its job was cancelled."""
TICK_SECONDS = 0.2
STOP_SECONDS_MAX = 0.5
"""How long a chunk that is cancelled or handed back waits for the picture that is being decoded and stored."""
CHECKPOINT_OUTCOMES = 500
CAREFUL_OUTCOMES = 20
AWAY_SECONDS = 15
"""A chunk whose store cannot be written, or whose helper cannot be started, waits so long for another worker."""
FAREWELL_SECONDS = 10.0
"""How long a child that must end tries to commit what it has."""

log = structlog.get_logger()


async def crawl_chunk(child: Child, chunk_id: int, attempt: int) -> None:
    """Take the chunk if this attempt is still wanted, give every candidate one outcome, settle.

    Returns before that when half of the child's transfers have nothing left to do here and another chunk waits, or
    when only the end has to be committed: that goes on aside, while the next chunk begins.
    """
    aside = asyncio.Event()
    whole = asyncio.ensure_future(crawl_wholly(child, chunk_id, attempt, aside))
    stepping = asyncio.ensure_future(aside.wait())
    try:
        await asyncio.wait((whole, stepping), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await end_tasks([whole])
        raise
    finally:
        stepping.cancel()
    if whole.done():
        whole.result()
    else:
        child.go_on_aside(whole)
        return
    await child.rest()


async def crawl_wholly(child: Child, chunk_id: int, attempt: int, aside: asyncio.Event) -> None:
    """Every step of a chunk's attempt; ``aside`` is set when the next chunk may begin beside it."""
    chunk = await child.in_database(
        start, child.engine, chunk_id, attempt, child.name, child.settings.lease_seconds
    )
    if chunk is None:
        log.info("chunk_not_wanted", chunk=chunk_id, attempt=attempt)
        return
    if chunk.retry_count:
        await child.clear_aside()
    run = ChunkRun(child, chunk, aside)
    stuck = False
    child.crawling += 1
    try:
        await run.run()
    except LostChunkError as error:
        say = log.info if error.deleted else log.warning
        say("chunk_lost", chunk=chunk_id, attempt=attempt, reason=str(error))
    except StuckError as error:
        log.error("chunk_stuck", chunk=chunk_id, attempt=attempt, reason=str(error))  # noqa: TRY400 - no bug of ours
        await run.leave_stuck(park if error.by_store else give_up_chunk)
        stuck = True
    except StoreError as error:
        log.error("store_away", chunk=chunk_id, attempt=attempt, error=str(error))  # noqa: TRY400 - no bug of ours
        await run.leave(park)
    except HelperError as error:
        log.error("helper_away", chunk=chunk_id, attempt=attempt, error=str(error))  # noqa: TRY400 - no bug of ours
        await run.leave(park)
    except Exception:
        log.exception("chunk_broke_off", chunk=chunk_id, attempt=attempt)
        await run.leave(give_up_chunk)
    finally:
        child.crawling -= 1
    if stuck:
        await child.leave_together(2 * FAREWELL_SECONDS)


park = partial(hand_back_chunk, outcomes=(), available_in_seconds=AWAY_SECONDS)


def silence_seconds_max(settings: Settings) -> float:
    """After so long without an outcome there will be none: all that a candidate may take, added up, in helpers."""
    request_seconds = settings.transfer_seconds_max + ANSWER_SECONDS_MAX
    attempt_seconds = (settings.redirects_max + 1) * request_seconds + BACKOFF_SECONDS_MAX
    return (
        START_SECONDS_MAX
        + ADMIT_SECONDS_MAX
        + settings.transfer_attempts * attempt_seconds
        + careful_seconds_max(settings)
        + settings.store_seconds_max
    )


class ChunkRun:
    """One attempt of one chunk. Holds the fence, which moves on with each commit.

    A chunk whose last worker was lost is run ``careful``: pictures are decoded in a helper process, and what is
    done is committed in small parts, so that whatever it was that killed the worker costs one candidate. When that
    is not enough it is run in ``quarantine``: one candidate after the other is fetched in a helper process, too,
    and its outcome committed before the next one begins.
    """

    def __init__(self, child: Child, chunk: StartedChunk, aside: asyncio.Event) -> None:
        self.child = child
        self.chunk = chunk
        self.aside = aside
        self.fence: Fence = chunk.fence
        self.cancelled = self.committing = self.ending = False
        make_decoder = child.careful_decoder if chunk.retry_count else child.decoder
        self.decoder = make_decoder(chunk.verification)
        self.checkpoint_outcomes = CAREFUL_OUTCOMES if chunk.retry_count else CHECKPOINT_OUTCOMES
        self.line = asyncio.Lock()
        self.quarantine = chunk.retry_count >= QUARANTINE_LOSSES
        self.fetcher = self.make_fetcher()
        at_once = 1 if self.quarantine else child.settings.transfers
        self.transfers = Transfers(chunk.candidates, self, child.politeness, at_once)
        self.idleness = Idleness()
        self.tail = Tail(self.transfers, at_once)

    def make_fetcher(self) -> Fetcher:
        """Who asks owners and hosts."""
        child = self.child
        obeyed = child.opt_outs.obeyed(self.chunk.ignored_opt_outs)
        if self.quarantine:
            return Quarantine(child.settings, obeyed)
        return PlainFetcher(child.transport, child.settings, child.opt_outs, obeyed)

    async def run(self) -> None:
        """Crawl, look after the lease and watch for what hangs, all at once, to the end or to the first reason to
        stop before. Raises LostChunkError, StuckError, StoreError or HelperError.
        """
        tasks = [asyncio.ensure_future(task) for task in (self.crawl(), self.keep_lease(), self.guard())]
        keeper = self.child.politeness.join(self.transfers.wake)
        self.child.transfers.add(self.transfers)
        try:
            await asyncio.wait((*tasks, keeper), return_when=asyncio.FIRST_COMPLETED)
            for task in (*tasks, keeper):
                if task.done():
                    task.result()
        finally:
            await end_tasks(tasks)
            await self.transfers.stop(STOP_SECONDS_MAX)
            self.child.transfers.discard(self.transfers)
            self.decoder.close()
            self.fetcher.close()
            await self.child.politeness.leave(self.transfers.wake)

    async def crawl(self) -> None:
        """Transfer and checkpoint until all is done, or mostly hosts are waited for; then commit the rest."""
        self.store: Store = await self.child.aside(self.child.store, self.chunk.store_url)
        self.transfers.start()
        next_checkpoint = time.monotonic() + self.child.settings.checkpoint_seconds
        park_seconds = 0.0
        while not (await self.tick() or self.transfers.stopping or park_seconds):
            waiting = 0 if self.quarantine else len(self.transfers.outcomes)
            if waiting >= self.checkpoint_outcomes or (waiting and time.monotonic() >= next_checkpoint):
                await self.checkpoint()
                next_checkpoint = time.monotonic() + self.child.settings.checkpoint_seconds
            self.transfers.hurry()
            park_seconds = await self.idleness.look(self.transfers, self.others_wait)
            await self.step_aside()
        await self.transfers.stop(STOP_SECONDS_MAX)
        self.ending = True
        if self.transfers.unresolved and not self.cancelled:
            await self.hand_back(0 if leaving() else park_seconds)
        else:
            if self.may_step_aside() and await self.others_wait():
                self.aside.set()
            await self.settle(self.transfers.unresolved)

    async def tick(self) -> bool:
        """Wait for a moment, or until so little is left that another chunk may begin; whether all is done."""
        return await self.transfers.wait(
            TICK_SECONDS, lambda: self.may_step_aside() and self.tail.half_free(self.child.running)
        )

    async def keep_lease(self) -> None:
        """Renew the lease in time and stop the transfers of a cancelled job, whatever else is waited for.

        Raises LostChunkError when the chunk has another owner.
        """
        while True:
            try:
                ownership = await self.child.beside(self._look)
            except LostChunkError:
                if not self.ending:  # The last commit gives the chunk away, and knows itself whether it may.
                    raise
            else:
                if ownership.cancelled:
                    self.cancelled = True
                    self.transfers.cancel()
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self) -> Ownership:
        def write(_: bool) -> Ownership:
            with transaction(self.child.engine) as session:
                ownership = renew_lease(session, self.fence, self.child.settings.lease_seconds)
                if not ownership.owned:
                    raise lost(session, self.fence)
                return ownership

        return persist(write, chunk=self.fence.chunk_id)

    async def guard(self) -> None:
        """Stop the transfers when the worker leaves. Raises StuckError when nothing can come of waiting."""
        finished, heard = 0, time.monotonic()
        while True:
            if leaving() or self.child.closing:
                self.transfers.cancel()
            overdue = self.child.watchdog.overdue()
            if overdue:
                message = f"{overdue.work} took longer than {overdue.seconds_max:g} seconds"
                raise StuckError(message, by_store=overdue.work is Work.STORE)
            if finished != self.transfers.finished or self.committing:
                finished, heard = self.transfers.finished, time.monotonic()
            if time.monotonic() - heard > silence_seconds_max(self.child.settings):
                raise StuckError(f"there was no outcome for {time.monotonic() - heard:.0f} seconds")
            await asyncio.sleep(TICK_SECONDS)

    def may_step_aside(self) -> bool:
        """Whether another chunk may begin beside this one.

        One that has lost its worker keeps its child to itself, to the end.
        """
        return not (
            self.aside.is_set() or self.chunk.retry_count or len(self.child.aside_chunks) >= ASIDE_MAX
        )

    async def step_aside(self) -> None:
        """Let the child take its next chunk as soon as there is little left to do here and another chunk waits."""
        if self.may_step_aside() and self.tail.asks(self.child.running) and await self.others_wait():
            self.aside.set()
            log.debug("chunk_aside", chunk=self.fence.chunk_id, stragglers=self.transfers.running)

    async def others_wait(self) -> bool:
        """Whether any chunk waits for a worker."""

        def look(_: bool) -> bool:
            with transaction(self.child.engine) as session:
                return queued_chunks(session) > 0

        return await self.child.beside(partial(persist, look, chunk=self.fence.chunk_id))

    def begin(self, candidate: Candidate) -> Visit | Outcome:
        """A candidate's way begins, or ends already because of its URL."""
        return begin_visit(self.child, candidate)

    async def crawl_visit(self, visit: Visit, turn: Turn) -> Outcome | float:
        """One turn of a visit: its outcome, or in how many seconds it wants another."""
        if self.quarantine and self.transfers.outcomes:
            await self.checkpoint()
        return await crawl_visit(self.child, self.store, visit, turn, self.decoder, self.fetcher)

    def closed(self, visit: Visit, host: Host) -> Outcome:
        """The outcome of a candidate whose host nobody asks at present."""
        return closed_host(visit, host)

    async def checkpoint(self) -> None:
        """Commit the outcomes so far and go on."""
        outcomes = self.transfers.take()
        seconds = self.child.settings.lease_seconds
        await self.commit(partial(checkpoint_chunk, outcomes=outcomes, lease_seconds=seconds))
        log.debug("chunk_checkpoint", chunk=self.fence.chunk_id, outcomes=len(outcomes))

    async def settle(self, cancelled: Iterable[Candidate] = ()) -> None:
        """Commit the last outcomes and the money. What is left of a cancelled job ends as ``cancelled``.

        Candidates that the hold did not cover are left to the scheduler.
        """
        outcomes = self.transfers.take()
        outcomes += [
            Refused(candidate.position, candidate.url, Reason.CANCELLED, "the job was cancelled")
            for candidate in cancelled
        ]
        unpaid = self.chunk.unpaid
        await self.commit(partial(settle_short_chunk if unpaid else settle_chunk, outcomes=outcomes))
        fence = self.fence
        log.info(
            "chunk_settled", job=fence.job_id, chunk=fence.chunk_id, attempt=fence.attempt, unpaid=unpaid
        )

    async def hand_back(self, seconds: float = 0.0) -> None:
        """Commit the outcomes so far; the rest waits for another worker, for ``seconds`` at least."""
        outcomes = self.transfers.take()
        await self.commit(partial(hand_back_chunk, outcomes=outcomes, available_in_seconds=seconds))
        fields = {"chunk": self.fence.chunk_id, "attempt": self.fence.attempt, "outcomes": len(outcomes)}
        if seconds:
            log.info("chunk_parked", **fields, seconds=round(seconds, 1))
        else:
            log.warning("chunk_handed_back", **fields)

    async def commit(self, arrow: Callable[..., Tally | None]) -> None:
        """Commit to the end even when cancelled: whoever goes on needs the fence that the database has then.

        Cancelled again it breaks off, for what it waits for may hang.
        """
        commit = asyncio.ensure_future(self._commit(arrow))
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            await commit
            raise

    async def _commit(self, arrow: Callable[..., Tally | None]) -> None:
        """Objects first, rows after: the store is synced before a row may name what it holds."""
        async with self.line:
            self.committing = True
            await self.child.aside(self._sync)
            await self.child.in_database(
                commit, self.child.engine, self.fence, partial(arrow, fence=self.fence)
            )
            self.fence = replace(self.fence, checkpoint=self.fence.checkpoint + 1)
            self.committing = False

    def _sync(self) -> None:
        with self.child.storing():
            self.store.sync()

    async def leave(self, arrow: Callable[..., Tally | None]) -> None:
        """Give the chunk up with an arrow that writes no outcomes, unless somebody else has it by now."""
        with contextlib.suppress(LostChunkError):
            await self.child.in_database(
                commit, self.child.engine, self.fence, partial(arrow, fence=self.fence)
            )

    async def leave_stuck(self, arrow: Callable[..., Tally | None]) -> None:
        """Commit what there is, unless that hangs, too, and give the chunk up. This process ends afterwards."""
        with contextlib.suppress(TimeoutError, LostChunkError, StoreError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self.checkpoint()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self.leave(arrow)
