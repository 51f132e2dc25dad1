"""From sources to chunks, streaming: one step of each job that wants candidates.

A step reads the store first and commits after; a crash in between repeats it.
"""

import time
from collections.abc import Callable, Sequence

import structlog

from models.candidates import PackedCandidate, unpacked
from models.cutting import cut
from models.jobs import SourceKind, SourceState
from models.outcomes import Candidate
from models.seen import mark_repeats
from models.splitting import (
    BEFORE_ALL,
    SplittableJob,
    abandon_source,
    advance_source,
    satisfy_source,
    source_wanted,
    splittable_jobs,
)
from models.workers import live_slots
from scheduler.leader import Leader
from worker.sources import url_list, url_table
from worker.store import Store, StoreError

Step = tuple[Sequence[Candidate | PackedCandidate], dict[str, int], bool]
"""Candidates, the next cursor, whether the source is at its end."""
READERS: dict[SourceKind, Callable[..., Step]] = {
    SourceKind.URL_LIST: url_list.read_step,
    SourceKind.URL_TABLE: url_table.read_step,
}
STEP_CANDIDATES = 10_000
SLOTS_MIN = 4
"""So many are reckoned with at the end of a list: workers may have been started together with the job."""
RETRY_SECONDS = 10.0
ROUND_SECONDS = 0.5
"""Splitting stops after so long, for dispatch not to wait; the next round goes on with the next job."""

log = structlog.get_logger()


class Splitter:
    """Splits for one leader; remembers whose turn it is, and which jobs failed, so as to try them less often."""

    def __init__(self, leader: Leader, store: Store) -> None:
        self.leader = leader
        self.store = store
        self.retry_at: dict[int, float] = {}
        self.last = BEFORE_ALL

    def split(self) -> bool:
        """One step of each job that wants candidates, for ROUND_SECONDS; whether anything was split."""
        now = time.monotonic()
        self.retry_at = {job_id: at for job_id, at in self.retry_at.items() if at > now}
        with self.leader.transaction() as session:
            jobs = splittable_jobs(session, skip=self.retry_at, after=self.last)
        split = False
        for job in jobs:
            split = self._try_step(job) or split
            self.last = (job.priority, job.id)
            if time.monotonic() - now >= ROUND_SECONDS:
                break
        return split

    def _try_step(self, job: SplittableJob) -> bool:
        """A step that fails costs its own job time, and no other."""
        try:
            return self.step(job)
        except Exception as error:
            if self.leader.lost_by(error):
                raise
            log.exception("stage_failed", stage="split", job=job.id)
            self.retry_at[job.id] = time.monotonic() + RETRY_SECONDS
            return False

    def step(self, job: SplittableJob) -> bool:
        """Source step k → k + 1 and its chunks; whether it was written."""
        try:
            candidates, cursor, exhausted = self.leader.meanwhile(
                READERS[job.source_kind], self.store, job.source, job.cursor, min(job.wanted, STEP_CANDIDATES)
            )
        except StoreError as error:
            with self.leader.transaction() as session:
                wanted = source_wanted(session, job.id)
            if not wanted:
                log.info("source_not_wanted", job=job.id)
                return False
            log.error("source_unreadable", job=job.id, error=repr(error))  # noqa: TRY400 - not a bug of ours
            self.retry_at[job.id] = time.monotonic() + RETRY_SECONDS
            return False
        state = SourceState.SPLITTING
        if exhausted:
            state = SourceState.EXHAUSTED
        elif len(candidates) == job.wanted:
            state = SourceState.OPEN
        with self.leader.transaction() as session:
            if job.source.get("unique_urls"):
                candidates = mark_repeats(session, job.id, unpacked(candidates))
            ending = 0 if state is SourceState.SPLITTING else max(SLOTS_MIN, live_slots(session))
            chunks = list(cut(candidates, job.total_chunks, self.leader.settings.chunk_size, ending))
            advanced = advance_source(session, job, cursor, state, chunks)
            if not advanced:
                session.rollback()  # Nor has it seen anything.
        if advanced:
            log.info(
                "job_split", job=job.id, chunks=len(chunks), candidates=len(candidates), source=state.value
            )
        return advanced

    def end_sources(self) -> None:
        """Sources of jobs that need no more, or that were cancelled: nothing more is handed out."""
        for end in (satisfy_source, abandon_source):
            ended: int | None = 0
            while ended is not None:
                with self.leader.transaction() as session:
                    ended = end(session)
