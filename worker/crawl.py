"""One chunk from its message to its end: start, transfer, checkpoint, settle. The straight line of a worker.

No transaction is open while anything is transferred; objects are stored before the rows that name them.
"""

import asyncio
import contextlib
import datetime
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
from models.outcomes import Accepted, Candidate, Outcome, Reason, Refused
from models.recording import Tally
from worker.careful import CarefulDecoder
from worker.child import Child, leave_at_once
from worker.errors import CandidateError, PictureError
from worker.fetch import Fetched, fetch
from worker.picture import Picture, inspect
from worker.presence import leaving
from worker.store import Store, StoreError
from worker.transfers import Transfers
from worker.writing import LostChunkError, commit, lost, persist, start

LOOK_SECONDS = 1.0
"""How often a worker renews its lease and looks whether its job was cancelled."""
TICK_SECONDS = 0.2
STOP_SECONDS_MAX = 1.0
"""How long a chunk that is cancelled or handed back waits for the picture that is being decoded."""
CHECKPOINT_OUTCOMES = 500
CAREFUL_OUTCOMES = 20
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
    run = ChunkRun(child, chunk)
    try:
        await run.run()
    except LostChunkError as error:
        say = log.info if error.deleted else log.warning
        say("chunk_lost", chunk=chunk_id, attempt=attempt, reason=str(error))
    except StuckDecoderError:
        log.error("decoder_stuck", chunk=chunk_id, attempt=attempt, seconds=settings.decode_seconds_max)  # noqa: TRY400 - a picture's fault
        await run.leave(give_up_chunk)
        leave_at_once()
    except StoreError as error:
        log.error("store_away", chunk=chunk_id, attempt=attempt, error=str(error))  # noqa: TRY400 - no bug of ours
        await run.leave(partial(hand_back_chunk, outcomes=(), available_in_seconds=STORE_AWAY_SECONDS))
    except Exception:
        log.exception("chunk_broke_off", chunk=chunk_id, attempt=attempt)
        await run.leave(give_up_chunk)


class StuckDecoderError(Exception):
    """One picture occupies the decoder beyond its time. Nothing in this process can end that."""


class ChunkRun:
    """One attempt of one chunk. Holds the fence, which moves on with each commit.

    A chunk whose last worker was lost is run ``careful``: pictures are decoded in a helper process, and what is
    done is committed in small parts, so that whatever it was that killed the worker costs one candidate.
    """

    def __init__(self, child: Child, chunk: StartedChunk) -> None:
        self.child = child
        self.chunk = chunk
        self.fence: Fence = chunk.fence
        self.cancelled = False
        self.careful = CarefulDecoder(child.settings) if chunk.retry_count else None
        self.checkpoint_outcomes = CAREFUL_OUTCOMES if self.careful else CHECKPOINT_OUTCOMES

    async def run(self) -> None:
        """Oversee the transfers to their end, or to the first reason to stop before; then commit the rest."""
        self.store: Store = self.child.store(self.chunk.store_url)
        self.transfers = Transfers(self.chunk.candidates, self.crawl_candidate, self.child.settings.transfers)
        lease = asyncio.ensure_future(self.keep_lease())
        try:
            await self.oversee(lease)
            await self.transfers.stop(STOP_SECONDS_MAX)
            if self.transfers.unresolved and not self.cancelled:
                await self.hand_back()
            else:
                await self.settle(self.transfers.unresolved)
        finally:
            lease.cancel()
            await self.transfers.stop(STOP_SECONDS_MAX)
            if self.careful:
                self.careful.close()

    async def oversee(self, lease: asyncio.Future[None]) -> None:
        """Wait and checkpoint until all is done, the worker leaves, or the lease ends. Raises LostChunkError."""
        next_checkpoint = time.monotonic() + self.child.settings.checkpoint_seconds
        while not (await self.transfers.wait(TICK_SECONDS) or leaving() or lease.done()):
            waiting = len(self.transfers.outcomes)
            if waiting >= self.checkpoint_outcomes or (waiting and time.monotonic() >= next_checkpoint):
                await self.checkpoint()
                next_checkpoint = time.monotonic() + self.child.settings.checkpoint_seconds
            if self.careful is None and self.child.decoder_stuck():  # A helper's end is its own.
                await self.checkpoint()
                raise StuckDecoderError
        if lease.done():
            lease.result()

    async def keep_lease(self) -> None:
        """Renew the lease every second, whatever else is waited for; return when the job is cancelled.

        Raises LostChunkError when the chunk has another owner.
        """
        while not self.cancelled:
            await asyncio.sleep(LOOK_SECONDS)
            ownership = await self.child.in_database(self._renew)
            self.cancelled = ownership.cancelled

    def _renew(self) -> Ownership:
        def write(_: bool) -> Ownership:
            with transaction(self.child.engine) as session:
                ownership = renew_lease(session, self.fence, self.child.settings.lease_seconds)
                if not ownership.owned:
                    raise lost(session, self.fence)
                return ownership

        return persist(self.fence.chunk_id, write)

    async def crawl_candidate(self, candidate: Candidate) -> Outcome:
        """Fetch, inspect, store: one candidate's outcome. Its share of the memory lasts until it is stored.

        What nobody expected is this candidate's outcome, too: it must not cost the others theirs.
        """
        child, fetched = self.child, None
        try:
            with child.transport.memory.lease() as lease:
                fetched = await fetch(
                    child.transport, candidate.url, child.settings, random=child.random, lease=lease
                )
                return await child.in_decoder(keep, self.store, candidate, fetched, self.inspect)
        except CandidateError as error:
            return refusal(candidate, error)
        except StoreError:
            raise
        except Exception as error:
            log.exception("candidate_broke_off", job=self.fence.job_id, position=candidate.position)
            reason = Reason.PROTOCOL if fetched is None else Reason.CORRUPT
            return refusal(candidate, CandidateError(reason, f"unexpected {type(error).__name__}: {error}"))

    def inspect(self, body: bytes) -> Picture:
        """Look at one body in the decoder thread, or from there in the helper."""
        plain = partial(inspect, settings=self.child.settings)
        return self.child.decode(self.careful.inspect if self.careful else plain, body)

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

    async def hand_back(self) -> None:
        """Commit the outcomes so far; the rest waits for another worker."""
        await self.commit(partial(hand_back_chunk, outcomes=self.transfers.take()))
        log.warning("chunk_handed_back", chunk=self.fence.chunk_id, attempt=self.fence.attempt)

    async def commit(self, arrow: Callable[..., Tally | None]) -> None:
        """Objects first, rows after: the store is synced before a row may name what it holds."""
        await self.child.aside(self.store.sync)
        await self.child.in_database(commit, self.child.engine, self.fence, partial(arrow, fence=self.fence))
        self.fence = replace(self.fence, checkpoint=self.fence.checkpoint + 1)

    async def leave(self, arrow: Callable[..., Tally | None]) -> None:
        """Give the chunk up with an arrow that writes no outcomes, unless somebody else has it by now."""
        with contextlib.suppress(LostChunkError):
            await self.child.in_database(
                commit, self.child.engine, self.fence, partial(arrow, fence=self.fence)
            )


def keep(
    store: Store, candidate: Candidate, fetched: Fetched, inspector: Callable[[bytes], Picture]
) -> Accepted:
    """Inspect a body and store it, named by its sha256. Raises PictureError or StoreError."""
    try:
        picture = inspector(fetched.body)
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
