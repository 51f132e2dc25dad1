"""From sources to chunks, streaming: one step of each job that wants candidates.

A step reads the store first and commits after; a crash in between repeats it.
"""

import time
from collections import Counter
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
    break_off_source,
    satisfy_source,
    source_wanted,
    splittable_jobs,
)
from models.workers import live_slots
from scheduler.leader import Leader
from worker.sources import url_list, url_table
from worker.store import DamagedObjectError, MissingObjectError, Store, StoreError

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
RETRY_SECONDS_MAX = 300.0
MISSING_LOOKS = 3
"""So often in a row an input is looked for before it is gone: a disk may just not be there yet."""
ROUND_SECONDS = 0.5
"""Splitting stops after so long, for dispatch not to wait; the next round goes on with the next job."""

log = structlog.get_logger()


class Splitter:
    """Splits for one leader; remembers whose turn it is, and which jobs failed, so as to try them less often.

    ``unreadable`` counts by job how often in a row its input could not be read.
    """

    def __init__(self, leader: Leader, store: Store) -> None:
        self.leader = leader
        self.store = store
        self.retry_at: dict[int, float] = {}
        self.unreadable: Counter[int] = Counter()
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
            self._judge(job, error)
            return False
        if self.unreadable.pop(job.id, 0):
            log.info("source_readable_again", job=job.id)
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

    def _judge(self, job: SplittableJob, error: StoreError) -> None:
        """What keeps a source from being read: its copy, for good, or something that may pass."""
        with self.leader.transaction() as session:
            wanted = source_wanted(session, job.id)
        if not wanted:
            self.unreadable.pop(job.id, None)
            log.info("source_not_wanted", job=job.id)
            return
        self.unreadable[job.id] += 1
        looks = self.unreadable[job.id]
        gone = isinstance(error, MissingObjectError) and looks >= MISSING_LOOKS
        if (gone or isinstance(error, DamagedObjectError)) and self._break_off(job, error):
            return
        if looks == 1:
            log.error(
                "source_unreadable", job=job.id, error=str(error), then="it is tried again, ever less often"
            )
        self.retry_at[job.id] = time.monotonic() + min(RETRY_SECONDS_MAX, 2.0 ** min(looks, 30))

    def _break_off(self, job: SplittableJob, error: StoreError) -> bool:
        """Let the source end where its copy cannot be read any more: what was read before goes on."""
        why = f"its input breaks off after {job.position:,} candidates: {error}"
        with self.leader.transaction() as session:
            ended = break_off_source(session, job, self.store.root, why)
        if ended:
            self.unreadable.pop(job.id, None)
            log.error("source_ended", job=job.id, why=why)
        return ended

    def end_sources(self) -> None:
        """Sources of jobs that need no more, or that were cancelled: nothing more is handed out."""
        for end in (satisfy_source, abandon_source):
            ended: int | None = 0
            while ended is not None:
                with self.leader.transaction() as session:
                    ended = end(session)
