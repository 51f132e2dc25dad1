"""Walks the paths of worker, scheduler and command line that touch the database, by the program's own functions.

Each step has a name and is one transaction. Whoever walks says what to do around a step: measure it, or explain
its statements. The database is one that filling.py has filled.
"""

import datetime
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from benchmarks.filling import LARGE, WAITING_SIZE
from models import audit, reports
from models.breakdown import sample_outcomes
from models.credits import grant
from models.database import transaction
from models.ending import drain_cancelled, drain_paused, rescue_chunk
from models.failures import list_failures
from models.job_lifecycle import (
    cancel_job,
    close_job,
    pause_job,
    refresh_task_ids,
    resume_job,
    stopped_jobs,
    unblock_jobs,
)
from models.lifecycle import (
    Fence,
    StartedChunk,
    checkpoint_chunk,
    hand_back_chunk,
    renew_lease,
    settle_chunk,
    start_chunk,
)
from models.members import find_project, find_user
from models.outcomes import Accepted, Candidate, ImageFormat, Outcome, Reason, Refused
from models.prioritizing import bring_chunks_along, change_priority
from models.queueing import (
    ClaimedChunk,
    Message,
    claim_chunks,
    publish_again,
    queued_chunks,
    room_in_flight,
)
from models.retrying import ALL_FAILURES, BEFORE_ALL, retry_chunks
from models.splitting import abandon_source, satisfy_source, splittable_jobs
from models.workers import live_slots
from scheduler.commands.doctor import LEADER
from scheduler.dispatch import BATCH, CHUNKS_PER_SLOT, queue_next
from scheduler.leader import LOCK

LEASE_SECONDS = 60.0
WORKER = "benchmark"
REFUSED_EVERY = 11
LEFT = 50
"""Candidates that a chunk settles after its last checkpoint."""

Around = Callable[[str, Callable[[], Any]], Any]
"""Calls the function, which has a name, and returns what it returns."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The paths on one database. ``job_id`` is the large account's job; ``around`` sees every step."""

    engine: Engine
    job_id: int
    around: Around

    def step(self, name: str, function: Callable[[Session], Any]) -> Any:
        """One transaction, with its commit."""

        def commit() -> Any:
            with transaction(self.engine) as session:
                return function(session)

        return self.around(name, commit)

    def prepare(self, statement: str, **values: object) -> None:
        """What nobody looks at."""
        with transaction(self.engine) as session:
            session.execute(text(statement), values)

    # ----------------------------------------------------------------------------------- command line

    def look(self) -> None:
        """What commands show of the large account and its job, and of everything."""
        self.step("`show`", lambda session: reports.job_report(session, self.job_id))
        self.step("`show`: hosts", lambda session: sample_outcomes(session, self.job_id))
        self.step("`failures`: a page", partial(list_failures, job_id=self.job_id, first=0))
        self.step("`jobs`", reports.job_reports)
        self.step("`jobs --user`", partial(reports.job_reports, user=LARGE))
        self.step("`jobs --status failed`", partial(reports.job_reports, status="failed"))
        self.step("`credits show`", partial(reports.account_report, email=LARGE))
        self.step("`credits history`", partial(reports.credit_history, email=LARGE, limit=20))
        self.step("`notifications`", partial(reports.notification_reports, email=LARGE, limit=20))
        self.step("`users list`", reports.user_reports)
        self.step("`projects list`", reports.project_reports)
        self.step("`doctor`: the scheduler", lambda session: session.execute(LEADER, {"key": LOCK}).all())
        self.step("`doctor`: the workers", live_slots)
        self.step("`submit`: the same request?", self._find_same_request)
        self.step("`credits grant`", self._grant)

    def _find_same_request(self, session: Session) -> int | None:
        project = find_project(session, "Large", LARGE)
        assert project is not None
        return reports.find_same_request(session, project.project_id, "0" * 64)

    def _grant(self, session: Session) -> int:
        user_id = find_user(session, LARGE)
        assert user_id is not None
        return grant(session, user_id, 1, description="More")

    def audit(self) -> None:
        """The large account's statement, from every row of its ledger."""

        def statement(session: Session) -> audit.Statement:
            user_id = find_user(session, LARGE)
            assert user_id is not None
            return audit.statement(session, user_id)

        assert self.step("audit of the account", statement).correct

    # -------------------------------------------------------------------------------------- scheduler

    def round(self) -> None:
        """What the scheduler asks in each round or each second while there is nothing to do."""
        self.step("splittable_jobs", splittable_jobs)
        self.step("satisfy_source, none", satisfy_source)
        self.step("abandon_source, none", abandon_source)
        self.step("stopped_jobs", stopped_jobs)
        self.step("close_job, none", close_job)
        self.step("new priorities, none", bring_chunks_along)
        self.step("live_slots", live_slots)
        self.step("room_in_flight", partial(room_in_flight, chunks_per_slot=CHUNKS_PER_SLOT))
        self.step("rescue, none", partial(rescue_chunk, lost_leases_max=3))
        self.step("unblock_jobs", unblock_jobs)
        self.step("refresh_task_ids", refresh_task_ids)
        self.step("queued_chunks", queued_chunks)
        self.step("publish_again, none", partial(publish_again, queued_seconds=3600))

    def dispatch(self, limit: int = BATCH) -> list[Message]:
        """pending → queued for the next chunks, which have credits; before that the claim by itself."""
        claimed: list[ClaimedChunk] = self.step("claim", partial(claim_chunks, limit=limit))
        assert len(claimed) == limit
        messages: list[Message] = self.step(f"dispatch of {limit}", partial(queue_next, limit=limit))
        assert len(messages) == limit
        return messages

    def publish_again(self) -> None:
        """queued → queued, for all that are queued."""
        assert self.step("publish_again", partial(publish_again, queued_seconds=-1))

    # ----------------------------------------------------------------------------------------- worker

    def start(self, message: Message) -> StartedChunk:
        """queued → processing."""
        arguments = (message.chunk_id, message.attempt, WORKER, LEASE_SECONDS)
        chunk: StartedChunk | None = self.step("start", lambda session: start_chunk(session, *arguments))
        assert chunk is not None
        return chunk

    def begin(self, message: Message, left: int) -> tuple[StartedChunk, Fence]:
        """queued → processing → processing, with all outcomes but the last ones."""
        chunk = self.start(message)
        self.step("renew_lease", partial(renew_lease, fence=chunk.fence, lease_seconds=LEASE_SECONDS))
        done = outcomes(chunk, chunk.candidates[:-left])
        write = partial(checkpoint_chunk, fence=chunk.fence, outcomes=done, lease_seconds=LEASE_SECONDS)
        assert self.step(f"checkpoint of {len(done)}", write)
        return chunk, replace(chunk.fence, checkpoint=chunk.fence.checkpoint + 1)

    def work(self, message: Message) -> None:
        """One large chunk from its message to its end, with a checkpoint before that."""
        chunk, fence = self.begin(message, LEFT)
        rest = outcomes(chunk, chunk.candidates[-LEFT:])
        assert self.step(f"settle with {len(rest)}", partial(settle_chunk, fence=fence, outcomes=rest))

    def settle(self, message: Message) -> None:
        """One chunk that has all its outcomes at its end."""
        chunk = self.start(message)
        done = outcomes(chunk, chunk.candidates)
        assert self.step(f"settle with {len(done)}", partial(settle_chunk, fence=chunk.fence, outcomes=done))

    def hand_back(self, message: Message) -> None:
        """One chunk of which a worker that leaves has done half."""
        _, fence = self.begin(message, WAITING_SIZE // 2)
        assert self.step("hand back", partial(hand_back_chunk, fence=fence, outcomes=()))

    # ---------------------------------------------------------------------------- what goes otherwise

    def rescue(self, message: Message, *, lost_leases_max: int) -> None:
        """processing → pending or, with none lost allowed, → failed, for a worker that died half way."""
        self.begin(message, WAITING_SIZE // 2)
        past = "UPDATE job_chunks SET lease_until = now() - interval '1 s' WHERE id = :id"
        self.prepare(past, id=message.chunk_id)
        name = "rescue" if lost_leases_max else "rescue that gives up"
        assert self.step(name, partial(rescue_chunk, lost_leases_max=lost_leases_max))

    def pause(self) -> None:
        """The large job is paused and drained, and goes on."""
        self.step("pause", partial(pause_job, job_id=self.job_id))
        self.step("stopped_jobs", stopped_jobs)
        while self.step("drain_paused", partial(drain_paused, job_id=self.job_id)):
            pass
        self.step("resume", partial(resume_job, job_id=self.job_id))

    def reprioritize(self) -> None:
        """The large job gets another priority, and its waiting chunks follow; then the one that it had."""
        for priority in (1, 10):
            self.step("priority", partial(change_priority, job_id=self.job_id, priority=priority))
            while self.step("bring along", bring_chunks_along):
                pass

    def run_out(self) -> None:
        """The large account has credits for a part of a chunk, then for nothing, then for all again."""
        large = "WHERE user_id = (SELECT id FROM profiles WHERE email = :email)"
        with transaction(self.engine) as session:
            balance = f"SELECT current_balance FROM credit_accounts {large}"
            credits_left = session.execute(text(balance), {"email": LARGE}).scalar_one()
        change = f"UPDATE credit_accounts SET current_balance = :balance {large}"
        for name, left in (("out of credits: short hold", 100), ("out of credits: block", 0)):
            self.prepare(change, balance=left, email=LARGE)
            self.step(name, partial(queue_next, limit=1))
        self.prepare(change, balance=credits_left - 100, email=LARGE)
        assert self.step("unblock_jobs", unblock_jobs) == [self.job_id]

    def cancel(self) -> None:
        """The large job, of which no chunk is processing, is cancelled, drained and closed."""
        self.step("cancel", partial(cancel_job, job_id=self.job_id))
        self.step("stopped_jobs", stopped_jobs)
        while self.step("drain_cancelled", partial(drain_cancelled, job_id=self.job_id)):
            pass
        assert self.step("close_job", close_job) == self.job_id

    def retry(self) -> None:
        """Whatever failed of the large job is tried again."""
        after: int | None = BEFORE_ALL
        while after is not None:
            again = partial(retry_chunks, job_id=self.job_id, selection=ALL_FAILURES, after=after)
            after = self.step("retry", again).after


def outcomes(chunk: StartedChunk, candidates: Sequence[Candidate]) -> list[Outcome]:
    """One candidate in eleven has no image; no two images have the same bytes."""
    return [outcome(chunk, candidate) for candidate in candidates]


def outcome(chunk: StartedChunk, candidate: Candidate) -> Outcome:
    """What became of one candidate."""
    url, position = candidate.url, candidate.position
    if position % REFUSED_EVERY == 0:
        return Refused(
            position, url, Reason.HTTP_STATUS, "404 Not Found", http_status=404, attempts=1, elapsed_ms=90
        )
    digest = hashlib.sha256(b"%d/%d" % (chunk.fence.job_id, position)).digest()
    name = f"{digest.hex()}.jpg"
    return Accepted(
        position=position,
        original_url=url,
        final_url=url,
        sha256=digest,
        perceptual_hash=int.from_bytes(digest[:8], "big", signed=True),
        width=640,
        height=480,
        file_size=75_000,
        format=ImageFormat.JPEG,
        orientation=1,
        storage_url=f"{chunk.store_url}/{name}",
        filename=name,
        fetched_at=datetime.datetime.now(datetime.UTC),
        wire_bytes=75_300,
        http_status=200,
        attempts=1,
        elapsed_ms=180,
    )
