"""One chunk from its message to its end: start, transfer, checkpoint, settle. The straight line of a worker.

No transaction is open while anything is transferred; objects are stored before the rows that name them.
"""

import datetime
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import structlog
from sqlalchemy.orm import Session

from models.database import transaction
from models.lifecycle import (
    Fence,
    Ownership,
    StartedChunk,
    checkpoint_chunk,
    hand_back_chunk,
    renew_lease,
    settle_chunk,
)
from models.outcomes import Accepted, Candidate, Outcome, Reason, Refused
from models.recording import Tally
from models.settings import Settings
from worker.child import Child
from worker.errors import CandidateError, PictureError
from worker.fetch import Fetched, fetch
from worker.picture import inspect
from worker.presence import leaving
from worker.store import Store, StoreError
from worker.transfers import Transfers
from worker.writing import LostChunkError, commit, persist, start

LOOK_SECONDS = 1.0
"""How often a worker renews its lease and looks whether its job was cancelled."""
TICK_SECONDS = 0.2
CHECKPOINT_OUTCOMES = 500
STORE_AWAY_SECONDS = 15

log = structlog.get_logger()


async def crawl_chunk(child: Child, chunk_id: int, attempt: int) -> None:
    """Take the chunk if this attempt is still wanted, give every candidate one outcome, settle."""
    settings = child.settings
    chunk = await child.in_database(
        start, child.engine, chunk_id, attempt, child.name, settings.lease_seconds
    )
    if chunk is None:
        log.info("chunk_not_wanted", chunk=chunk_id, attempt=attempt)
        return
    try:
        await ChunkRun(child, chunk).run()
    except LostChunkError as lost:
        log.warning("chunk_lost", chunk=chunk_id, attempt=attempt, reason=str(lost))


class ChunkRun:
    """One attempt of one chunk. Holds the fence, which moves on with each commit."""

    def __init__(self, child: Child, chunk: StartedChunk) -> None:
        self.child = child
        self.chunk = chunk
        self.fence: Fence = chunk.fence
        self.store: Store = child.store(chunk.store_url)
        self.transfers = Transfers(chunk.candidates, self.crawl_candidate, child.settings.transfers)

    async def run(self) -> None:
        """Oversee the transfers to their end, or to the first reason to stop before."""
        try:
            cancelled = await self.oversee()
        except StoreError as error:
            await self.transfers.stop()
            await self.hand_back("store_away", available_in_seconds=STORE_AWAY_SECONDS, error=str(error))
            return
        finally:
            await self.transfers.stop()
        if self.transfers.unresolved and not cancelled:
            await self.hand_back("chunk_handed_back")
        else:
            await self.settle(self.transfers.unresolved)

    async def oversee(self) -> bool:
        """Wait, look, checkpoint, until all is done or the worker leaves. True: the job was cancelled."""
        next_look = time.monotonic() + LOOK_SECONDS
        next_checkpoint = time.monotonic() + self.child.settings.checkpoint_seconds
        while not await self.transfers.wait(TICK_SECONDS) and not leaving():
            now = time.monotonic()
            if now >= next_look:
                next_look = now + LOOK_SECONDS
                if await self.look():
                    return True
            waiting = len(self.transfers.outcomes)
            if waiting >= CHECKPOINT_OUTCOMES or (waiting and now >= next_checkpoint):
                await self.checkpoint()
                next_checkpoint = time.monotonic() + self.child.settings.checkpoint_seconds
        return False

    async def crawl_candidate(self, candidate: Candidate) -> Outcome:
        """Fetch, inspect, store: one candidate's outcome. Its share of the memory lasts until it is stored."""
        child = self.child
        try:
            with child.transport.memory.lease() as lease:
                fetched = await fetch(
                    child.transport, candidate.url, child.settings, random=child.random, lease=lease
                )
                return await child.in_decoder(keep, self.store, candidate, fetched, child.settings)
        except CandidateError as error:
            return refusal(candidate, error)

    async def look(self) -> bool:
        """Renew the lease; whether the job was cancelled. Raises LostChunkError when the chunk is not ours."""
        ownership = await self.child.in_database(self._renew)
        if not ownership.owned:
            raise LostChunkError("its lease was given to another worker")
        return ownership.cancelled

    def _renew(self) -> Ownership:
        def write(_: bool) -> Ownership:
            with transaction(self.child.engine) as session:
                return renew_lease(session, self.fence, self.child.settings.lease_seconds)

        return persist(self.fence.chunk_id, write)

    async def checkpoint(self) -> None:
        """Commit the outcomes so far and go on."""
        outcomes = self.transfers.take()
        arrow = partial(
            checkpoint_chunk,
            fence=self.fence,
            outcomes=outcomes,
            lease_seconds=self.child.settings.lease_seconds,
        )
        await self.child.in_database(self._commit, arrow)
        self.fence = replace(self.fence, checkpoint=self.fence.checkpoint + 1)
        log.debug("chunk_checkpoint", chunk=self.fence.chunk_id, outcomes=len(outcomes))

    async def settle(self, cancelled: Iterable[Candidate] = ()) -> None:
        """Commit the last outcomes and the money. What is left of a cancelled job ends as ``cancelled``."""
        outcomes = self.transfers.take()
        outcomes += [
            Refused(candidate.position, candidate.url, Reason.CANCELLED, "the job was cancelled")
            for candidate in cancelled
        ]
        arrow = partial(settle_chunk, fence=self.fence, outcomes=outcomes)
        await self.child.in_database(self._commit, arrow)
        fence = self.fence
        log.info("chunk_settled", job=fence.job_id, chunk=fence.chunk_id, attempt=fence.attempt)

    async def hand_back(self, event: str, *, available_in_seconds: float = 0, **fields: object) -> None:
        """Commit the outcomes so far; the rest waits for another worker, or for a better time."""
        arrow = partial(
            hand_back_chunk,
            fence=self.fence,
            outcomes=self.transfers.take(),
            available_in_seconds=available_in_seconds,
        )
        await self.child.in_database(self._commit, arrow)
        log.warning(event, chunk=self.fence.chunk_id, attempt=self.fence.attempt, **fields)

    def _commit(self, arrow: Callable[[Session], Tally | None]) -> None:
        """Objects first, rows after: the store is synced before a row may name what it holds."""
        self.store.sync()
        commit(self.child.engine, self.fence, arrow)


def keep(store: Store, candidate: Candidate, fetched: Fetched, settings: Settings) -> Accepted:
    """Inspect a body and store it, named by its sha256. Raises PictureError or StoreError."""
    try:
        picture = inspect(fetched.body, settings)
    except CandidateError as error:
        error.http_status, error.final_url = fetched.http_status, fetched.final_url
        error.wire_bytes = fetched.wire_bytes
        raise
    filename = f"{picture.sha256.hex()}.{picture.format.extension}"
    return Accepted(
        position=candidate.position,
        original_url=candidate.url,
        final_url=fetched.final_url,
        sha256=picture.sha256,
        perceptual_hash=picture.perceptual_hash,
        width=picture.width,
        height=picture.height,
        file_size=picture.file_size,
        format=picture.format,
        orientation=picture.orientation,
        storage_url=store.put(filename, fetched.body),
        filename=filename,
        fetched_at=datetime.datetime.now(datetime.UTC),
        wire_bytes=fetched.wire_bytes,
    )


def refusal(candidate: Candidate, error: CandidateError) -> Refused:
    """The outcome of a candidate that ended in ``error``."""
    detail = f"line {candidate.line}: {error.detail}" if error.reason is Reason.INVALID_URL else error.detail
    return Refused(
        candidate.position,
        candidate.url,
        error.reason,
        detail,
        http_status=error.http_status,
        final_url=error.final_url,
        downloaded=isinstance(error, PictureError),
        wire_bytes=error.wire_bytes,
    )
