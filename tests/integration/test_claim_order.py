"""The claim against its definition in plain Python, and ``ready_priority``, by which it ranks jobs, against the
chunks themselves.
"""

import datetime
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event, text

from models.database import transaction
from models.jobs import SourceState
from models.prioritizing import bring_chunks_along, change_priority
from models.queueing import claim_chunks, lock_jobs, queue_chunks
from models.readiness import lower_ready_priorities
from models.splitting import NewChunk, advance_source, splittable_jobs
from tests.support.crawling import candidates, change, new_job, query, read_job

AGEING_SECONDS = 600
AGEING = datetime.timedelta(seconds=AGEING_SECONDS)
JOBS = """
SELECT j.id, p.user_id, j.created_at,
    floor(date_part('epoch', now() - coalesce(j.dispatched_at, j.created_at)) / :s) AS age,
    j.status IN ('pending', 'running') AND j.source_kind IS NOT NULL AND j.blocked_reason IS NULL
        AND j.paused_at IS NULL AND j.cancelled_at IS NULL AS runnable,
    j.reprioritized_at IS NOT NULL AS reprioritized, j.priority
FROM crawl_jobs j JOIN projects p ON p.id = j.project_id
"""
CHUNKS = """
SELECT id, job_id, priority, status = 'pending' AND queued_at IS NULL AND candidates IS NOT NULL
    AND (available_at IS NULL OR available_at <= now()) AS ready,
    queued_at IS NOT NULL OR (status = 'processing' AND lease_until < 'infinity') AS in_flight
FROM job_chunks ORDER BY priority DESC, id
"""


def rows(engine: Engine, statement: str, **values: Any) -> Sequence[Any]:
    """Rows by name."""
    with transaction(engine) as session:
        return session.execute(text(statement), values).all()


def expected_claim(engine: Engine, limit: int) -> list[int]:
    """The order by definition: urgency, then the user's turn, then age; every row is looked at.

    A chunk has its job's priority while that is newer.
    """
    jobs = {job.id: job for job in rows(engine, JOBS, s=AGEING_SECONDS)}
    ready, in_flight = defaultdict(list), Counter[Any]()
    for chunk in rows(engine, CHUNKS):
        in_flight[jobs[chunk.job_id].user_id] += chunk.in_flight
        if chunk.ready and jobs[chunk.job_id].runnable:
            ready[chunk.job_id].append(chunk)

    def in_order(items: list[tuple[Any, int, int]]) -> list[tuple[Any, int, int]]:
        """(job, priority, id) by urgency, turn, age: the first ``limit``."""
        urgency = {item: min(10, item[1] + item[0].age) for item in items}
        turns: Counter[Any] = Counter(in_flight)
        turn = {}
        for item in sorted(items, key=lambda item: (-urgency[item], item[0].created_at, item[2])):
            turns[item[0].user_id] += 1
            turn[item] = turns[item[0].user_id]
        key = {item: (-urgency[item], turn[item], item[0].created_at, item[2]) for item in items}
        return sorted(items, key=key.__getitem__)[:limit]

    def priority(job: Any, chunk: Any) -> int:
        return int(job.priority if job.reprioritized else chunk.priority)

    first = in_order(
        [(jobs[job_id], priority(jobs[job_id], chunks[0]), job_id) for job_id, chunks in ready.items()]
    )
    chunks = [(job, priority(job, chunk), chunk.id) for job, _, _ in first for chunk in ready[job.id][:limit]]
    return [chunk_id for _, _, chunk_id in in_order(chunks)]


CHUNK_STATES = {
    "ready": "status = 'pending'",
    "queued": "status = 'pending', queued_at = now()",
    "processing": "status = 'processing', worker = 'w', lease_until = now() + interval '1 min'",
    "another service's": "status = 'processing', worker = 'w', lease_until = 'infinity'",
    "parked": "status = 'pending', available_at = now() + interval '1 min'",
    "due": "status = 'pending', available_at = now() - interval '1 s'",
    "empty": "status = 'pending', candidates = NULL",
    "ended": "status = 'completed', failed = size",
}
CLEARED = (
    "queued_at = NULL, available_at = NULL, worker = NULL, lease_until = NULL, failed = 0, "
    "candidates = '\\x00'"
)
JOB_STATES = {
    "running": "status = 'running'",
    "paused": "paused_at = now()",
    "blocked": "blocked_reason = 'out_of_credits'",
    "cancelled": "cancelled_at = now()",
    "another service's": "source_kind = NULL",
}
JOB_CLEARED = (
    "paused_at = NULL, blocked_reason = NULL, cancelled_at = NULL, source_kind = 'url_list', "
    "status = 'pending'"
)
WEIGHTED = st.sampled_from(["ready"] * 6 + list(CHUNK_STATES))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.integers(1, 9)),
        st.tuples(st.just("dispatch"), st.integers(1, 9)),
        st.tuples(st.just("chunk"), st.integers(0, 99), WEIGHTED),
        st.tuples(st.just("priority"), st.integers(0, 99), st.integers(0, 10)),
        st.tuples(st.just("job"), st.integers(0, 99), st.sampled_from(["running"] * 2 + list(JOB_STATES))),
        st.tuples(st.just("wait"), st.integers(0, 99), st.integers(0, 12)),
        st.tuples(st.just("delete"), st.integers(0, 99)),
        st.tuples(st.just("reprioritize"), st.integers(0, 99), st.integers(0, 10)),
        st.tuples(st.just("bring along"), st.integers(1, 4)),
    ),
    min_size=4,
    max_size=12,
)
OWNERS = st.lists(
    st.lists(st.lists(st.tuples(st.integers(0, 10), WEIGHTED), max_size=5), min_size=1, max_size=3),
    min_size=1,
    max_size=3,
)


def set_columns(columns: str, cleared: str) -> str:
    """Columns of one state, all others as they are without it."""
    named = {part.partition(" = ")[0] for part in columns.split(", ") if " = " in part}
    others = [part for part in cleared.split(", ") if part.partition(" = ")[0] not in named]
    return ", ".join([columns, *others])


UPDATE_CHUNK = {
    state: f"UPDATE job_chunks SET {set_columns(columns, CLEARED)} WHERE id = :id"
    for state, columns in CHUNK_STATES.items()
}
NEW_JOB = """
INSERT INTO crawl_jobs (project_id, name, source_kind, total_images) VALUES (:project_id, 'J', 'url_list', 99)
"""
NEW_CHUNKS = """
INSERT INTO job_chunks (job_id, chunk_index, priority, size, candidates, image_range)
SELECT :job_id, number - 1, priority, 1, '\\x00', jsonb_build_object('start', number - 1, 'end', number)
FROM unnest(CAST(:priorities AS int[])) WITH ORDINALITY AS new (priority, number) RETURNING id
"""


class Queue:
    """A queue in which a step changes one thing. Every job and chunk is picked by number."""

    def __init__(
        self, engine: Engine, projects: list[int], owners: list[list[list[tuple[int, str]]]]
    ) -> None:
        self.engine = engine
        self.jobs: list[int] = []
        change(engine, "DELETE FROM crawl_jobs")
        with transaction(engine) as session:
            for project_id, jobs in zip(projects, owners, strict=False):
                for chunks in jobs:
                    job_id = session.execute(
                        text(f"{NEW_JOB} RETURNING id"), {"project_id": project_id}
                    ).scalar_one()
                    self.jobs.append(job_id)
                    priorities = {"job_id": job_id, "priorities": [priority for priority, _ in chunks]}
                    ids = session.execute(text(NEW_CHUNKS), priorities).scalars().all()
                    for chunk_id, (_, state) in zip(ids, chunks, strict=True):
                        if state != "ready":
                            session.execute(text(UPDATE_CHUNK[state]), {"id": chunk_id})

    def set_chunk(self, chunk_id: int, state: str) -> None:
        """Whoever did it: a worker, the scheduler, an operator."""
        change(self.engine, UPDATE_CHUNK[state], id=chunk_id)

    def chunk(self, number: int) -> int | None:
        """The chunk of a number, when there is any."""
        ids = [row.id for row in rows(self.engine, "SELECT id FROM job_chunks ORDER BY id")]
        return ids[number % len(ids)] if ids else None

    def take(self, step: tuple[Any, ...]) -> None:
        """One step; a claim must give what is expected."""
        kind, number, *rest = step
        job_id = self.jobs[number % len(self.jobs)]
        if kind in {"claim", "dispatch"}:
            self.claim(number, keep=kind == "dispatch")
        elif kind == "job":
            columns = set_columns(JOB_STATES[rest[0]], JOB_CLEARED)
            change(self.engine, f"UPDATE crawl_jobs SET {columns} WHERE id = :id", id=job_id)
        elif kind == "reprioritize":
            with transaction(self.engine) as session:
                change_priority(session, job_id, rest[0])
        elif kind == "bring along":
            with transaction(self.engine) as session:
                bring_chunks_along(session, number)
        elif kind == "wait":
            change(
                self.engine,
                "UPDATE crawl_jobs SET created_at = created_at - :age, dispatched_at = dispatched_at - :age "
                "WHERE id = :id",
                age=rest[0] * AGEING,
                id=job_id,
            )
        elif (chunk_id := self.chunk(number)) is not None:
            if kind == "chunk":
                self.set_chunk(chunk_id, rest[0])
            elif kind == "priority":
                change(
                    self.engine, "UPDATE job_chunks SET priority = :p WHERE id = :id", p=rest[0], id=chunk_id
                )
            else:
                change(self.engine, "DELETE FROM job_chunks WHERE id = :id", id=chunk_id)

    def claim(self, limit: int, *, keep: bool) -> None:
        """What is claimed is what is expected, in its order; ``keep`` queues it."""
        expected = expected_claim(self.engine, limit)
        with transaction(self.engine) as session:
            claimed = claim_chunks(session, limit, ageing_seconds=AGEING_SECONDS)
            assert [chunk.id for chunk in claimed] == expected
            if keep:
                assert lock_jobs(session, claimed) == claimed
                assert len(queue_chunks(session, expected)) == len(expected)

    def check(self) -> None:
        """No job has a ready chunk that is more urgent than the job says."""
        assert not rows(
            self.engine,
            """
SELECT j.id, j.ready_priority, max(c.priority) FROM crawl_jobs j JOIN job_chunks c ON c.job_id = j.id
WHERE c.status = 'pending' AND c.queued_at IS NULL AND c.available_at IS NULL AND c.candidates IS NOT NULL
GROUP BY j.id HAVING max(c.priority) > coalesce(j.ready_priority, -1)""",
        )


def test_the_claim_is_in_the_order_of_its_definition(engine):
    """Whatever happened to chunks and jobs, by whomever, the next chunks are those that the definition names."""
    for _ in range(3):
        new_job(engine, [])
    projects = [project_id for (project_id,) in query(engine, "SELECT id FROM projects")]

    @settings(
        max_examples=30,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(owners=OWNERS, steps=STEPS)
    def follow(owners: list[list[list[tuple[int, str]]]], steps: list[tuple[Any, ...]]) -> None:
        queue = Queue(engine, projects, owners)
        for step in [*steps, ("claim", 3), ("claim", 16), ("bring along", 99), ("claim", 16)]:
            queue.take(step)
            queue.check()

    follow()


def test_a_new_priority_counts_at_once_and_reaches_every_chunk(engine):
    """Ready, parked, queued and processing chunks get it in batches; ended ones keep theirs."""
    states = ["ready", "ready", "parked", "queued", "processing", "ended"]
    job, other = new_job(engine, [1] * 6, priority=8), new_job(engine, [1], priority=5)
    for chunk_id, state in zip(job.chunk_ids, states, strict=True):
        change(engine, UPDATE_CHUNK[state], id=chunk_id)
    with transaction(engine) as session:
        assert change_priority(session, job.id, 2)
    assert claimed(engine, 1) == other.chunk_ids
    for priority, batches in ((2, [2, 2, 1, 0]), (9, [2, 2, 1, 0])):
        with transaction(engine) as session:
            change_priority(session, job.id, priority)
        assert [brought_along(engine, 2) for _ in range(4)] == batches
        row = read_job(engine, job.id)
        assert (row["priority"], row["reprioritized_at"]) == (priority, None)
        priorities = query(
            engine, "SELECT priority FROM job_chunks WHERE job_id = :id ORDER BY id", id=job.id
        )
        assert priorities == [(priority,)] * 5 + [(8,)]
    assert claimed(engine, 1) == job.chunk_ids[:1]
    assert query(engine, "SELECT id FROM job_chunks WHERE queued_at IS NOT NULL") == [(job.chunk_ids[3],)]


def claimed(engine: Engine, limit: int) -> list[int]:
    """The chunks that would be next."""
    with transaction(engine) as session:
        return [chunk.id for chunk in claim_chunks(session, limit)]


def brought_along(engine: Engine, limit: int) -> int:
    """Commit a batch; how many chunks."""
    with transaction(engine) as session:
        return bring_chunks_along(session, limit)


def test_a_message_is_as_urgent_as_its_job(engine):
    """A chunk that is dispatched before it was brought along goes out with the job's priority, and keeps it."""
    job = new_job(engine, [1, 1], priority=3)
    with transaction(engine) as session:
        change_priority(session, job.id, 9)
        [message] = queue_chunks(session, [chunk.id for chunk in claim_chunks(session, 1)])
    assert message.priority == 9
    assert query(engine, "SELECT priority FROM job_chunks ORDER BY id") == [(9,), (3,)]


def test_a_chunk_that_is_locked_is_brought_along_later(engine):
    """Nobody waits for it, and its job is not done with before."""
    job = new_job(engine, [1, 1], priority=3)
    with transaction(engine) as session:
        change_priority(session, job.id, 9)
    with transaction(engine) as other:
        other.execute(text("SELECT FROM job_chunks WHERE id = :id FOR UPDATE"), {"id": job.chunk_ids[0]})
        assert [brought_along(engine, 5), brought_along(engine, 5)] == [1, 0]
        assert read_job(engine, job.id)["reprioritized_at"] is not None
    assert [brought_along(engine, 5), brought_along(engine, 5)] == [1, 0]
    assert read_job(engine, job.id)["reprioritized_at"] is None


def test_a_change_in_the_middle_of_a_batch_is_not_forgotten(engine):
    """Who is about to say that all chunks have their job's priority finds that it is another one by now."""
    job = new_job(engine, [1], priority=3)
    looks: list[str] = []

    def change_meanwhile(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith("UPDATE crawl_jobs SET reprioritized_at = NULL"):
            looks.append(statement)
            if len(looks) > 1:
                return
            with transaction(engine) as user:
                assert change_priority(user, job.id, 7)

    with transaction(engine) as session:
        change_priority(session, job.id, 1)  # Raising locks the job: nothing comes between.
    event.listen(engine, "before_cursor_execute", change_meanwhile)
    assert [brought_along(engine, 5) for _ in range(3)] == [1, 1, 0]
    assert query(engine, "SELECT priority FROM job_chunks") == [(7,)]


@pytest.mark.parametrize("state", ["status = 'failed', completed_at = now()", "cancelled_at = now()"])
def test_a_job_that_goes_on_no_more_brings_nothing_along(engine, state):
    """Its chunks keep the priority that they have."""
    job = new_job(engine, [1], priority=3)
    with transaction(engine) as session:
        assert change_priority(session, job.id, 9)
    change(engine, f"UPDATE crawl_jobs SET {state}")
    assert brought_along(engine, 5) == 0
    assert query(engine, "SELECT priority FROM job_chunks") == [(3,)]


def test_chunks_of_another_services_job_are_left_to_it(engine):
    """Its job has the new priority, and that is all."""
    job = new_job(engine, [1], priority=3, source_kind=None)
    with transaction(engine) as session:
        assert change_priority(session, job.id, 9)
    assert brought_along(engine, 5) == 0
    row = read_job(engine, job.id)
    assert (row["priority"], row["reprioritized_at"]) == (9, None)
    assert query(engine, "SELECT priority FROM job_chunks") == [(3,)]


def test_what_is_split_after_a_change_has_the_new_priority(engine):
    """Whatever the splitter read before."""
    job = new_job(engine, [], priority=3, source_state="splitting", max_images=9)
    with transaction(engine) as session:
        [wanting] = splittable_jobs(session)
    with transaction(engine) as session:
        change_priority(session, job.id, 9)
    with transaction(engine) as session:
        assert advance_source(session, wanting, {}, SourceState.OPEN, [NewChunk(0, 0, candidates(0, 5))])
    assert query(engine, "SELECT priority FROM job_chunks") == [(9,)]


def test_what_a_job_has_ready_is_lowered_when_it_was_dispatched(engine):
    """The job says the priority of its best chunk that is left, and nothing once none is."""
    job = new_job(engine, [1, 1, 1], priority=7)
    change(engine, "UPDATE job_chunks SET priority = 3 WHERE id = :id", id=job.chunk_ids[2])
    seen = [read_job(engine, job.id)["ready_priority"]]
    for limit in (1, 1, 1):
        with transaction(engine) as session:
            queue_chunks(session, [chunk.id for chunk in claim_chunks(session, limit)])
        seen.append(read_job(engine, job.id)["ready_priority"])
    assert seen == [7, 7, 3, None]


def test_jobs_that_say_too_much_hold_nobody_up(engine):
    """More of them than are looked at in one claim, all most urgent: they are put right, and others are claimed."""
    job = new_job(engine, [1, 1], priority=2)
    [(project_id,)] = query(engine, "SELECT id FROM projects")
    with transaction(engine) as session:
        session.execute(text(NEW_JOB), [{"project_id": project_id}] * 25)
    change(engine, "UPDATE crawl_jobs SET ready_priority = 10 WHERE id <> :id", id=job.id)
    claims: list[list[int]] = []
    for _ in range(3):
        with transaction(engine) as session:
            claims.append([chunk.id for chunk in claim_chunks(session, 2)])
    assert claims[-1] == job.chunk_ids
    assert [claimed for claimed in claims if claimed and claimed != job.chunk_ids] == []
    assert query(engine, "SELECT id FROM crawl_jobs WHERE ready_priority IS NOT NULL") == [(job.id,)]


def test_a_job_that_says_too_much_and_is_locked_is_passed_by(engine):
    """Nobody waits for the lock; the others' chunks are claimed meanwhile."""
    empty, job = new_job(engine, []), new_job(engine, [1])
    change(engine, "UPDATE crawl_jobs SET ready_priority = 10 WHERE id = :id", id=empty.id)
    with transaction(engine) as other:
        other.execute(text("SELECT FROM crawl_jobs WHERE id = :id FOR UPDATE"), {"id": empty.id})
        with transaction(engine) as session:
            assert [chunk.id for chunk in claim_chunks(session, 5)] == job.chunk_ids
    assert read_job(engine, empty.id)["ready_priority"] == 10


@pytest.mark.parametrize("lowered_first", [True, False])
def test_a_chunk_that_comes_back_meanwhile_is_not_forgotten(engine, lowered_first):
    """Whether a job is lowered before or after a worker hands a chunk back, both at once: it is ready then."""
    job = new_job(engine, [1], priority=4)
    [chunk_id] = job.chunk_ids
    change(engine, "UPDATE job_chunks SET queued_at = now() WHERE id = :id", id=chunk_id)
    back = text("UPDATE job_chunks SET queued_at = NULL WHERE id = :id")

    def hand_back() -> None:
        with transaction(engine) as worker:
            worker.execute(back, {"id": chunk_id})

    assert read_job(engine, job.id)["ready_priority"] == 4
    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            if lowered_first:
                # The worker has to wait for what is lowered here.
                session.execute(
                    text("SELECT FROM crawl_jobs WHERE id = :id FOR NO KEY UPDATE"), {"id": job.id}
                )
                handed_back = thread.submit(hand_back)
                wait_for_blocked(engine)
                assert lower_ready_priorities(session, [job.id]) == set()
            else:
                session.execute(back, {"id": chunk_id})
                with transaction(engine) as scheduler:
                    assert lower_ready_priorities(scheduler, [job.id]) == {job.id}
        if lowered_first:
            handed_back.result(10)
    assert read_job(engine, job.id)["ready_priority"] == 4
    with transaction(engine) as session:
        assert [chunk.id for chunk in claim_chunks(session, 5)] == job.chunk_ids


def wait_for_blocked(engine: Engine) -> None:
    """Wait until a session waits for a lock of another one."""
    blocked = """
SELECT FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0 AND datname = current_database()"""
    for _ in itertools.takewhile(lambda tries: tries < 1000, itertools.count()):
        if query(engine, blocked):
            return
    raise AssertionError("Nobody waits.")


def test_parked_chunks_that_are_due_are_claimed_a_hundred_at_a_time(engine):
    """However many are parked and due, none is lost and each claim makes a bounded number of them ready."""
    job = new_job(engine, [])
    change(engine, NEW_CHUNKS, job_id=job.id, priorities=[5] * 120)
    change(engine, "UPDATE job_chunks SET available_at = now() - interval '1 s'")
    with transaction(engine) as session:
        assert len(claim_chunks(session, 16)) == 16
    still_parked = "SELECT count(*) FROM job_chunks WHERE available_at IS NOT NULL"
    assert query(engine, still_parked) == [(20,)]
    with transaction(engine) as session:
        assert [(chunk.id,) for chunk in claim_chunks(session, 200)] == query(
            engine, "SELECT id FROM job_chunks ORDER BY id"
        )
