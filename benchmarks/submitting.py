"""Users, and jobs cut into chunks, made by the program's own functions for benchmarks that then walk them.

It writes no row by itself, so that it cannot differ from what the program writes.
"""

from collections.abc import Sequence

from sqlalchemy import Engine

from models.credits import CREDITS_MAX
from models.database import transaction
from models.job_lifecycle import JobRequest, create_job
from models.jobs import SourceKind, SourceState
from models.members import create_profile, create_project
from models.outcomes import Candidate
from models.splitting import NewChunk, SplittableJob, advance_source, splittable_jobs

CHUNKS_OF_A_STEP = 1000
STORE = "s3://datasets/pixtrawl"


def create_users(engine: Engine, number: int, first: int = 0) -> list[int]:
    """So many users with credits and a project; the projects."""
    projects = []
    for n in range(first, first + number):
        with transaction(engine) as session:
            user_id = create_profile(
                session, f"user-{n}@example.invalid", bonus=CREDITS_MAX // 2, monthly_limit=CREDITS_MAX
            )
            assert user_id is not None
            projects.append(create_project(session, user_id, "Benchmark"))
    return projects


def submit_jobs(engine: Engine, projects: Sequence[int], chunks: int, size: int) -> None:
    """A job in each project, split into so many chunks of ``size`` candidates."""
    for project_id in projects:
        with transaction(engine) as session:
            create_job(session, request(project_id, chunks * size), STORE)
    while True:
        with transaction(engine) as session:
            jobs = splittable_jobs(session)
        if not jobs:
            return
        for job in jobs:
            split(engine, job, size)


def request(project_id: int, candidates: int) -> JobRequest:
    """A list of URLs that nobody reads: its candidates are made up."""
    return JobRequest(
        project_id=project_id,
        name="Benchmark",
        priority=5,
        max_images=candidates,
        source_kind=SourceKind.URL_LIST,
        source={},
        candidates=candidates,
        unit_price=1,
        fingerprint=f"{project_id:064x}",
    )


def split(engine: Engine, job: SplittableJob, size: int) -> None:
    """One step of a job's source: its next chunks, interleaved with those of the other jobs."""
    number = min(CHUNKS_OF_A_STEP, job.wanted // size)
    chunks = [
        NewChunk(
            index=job.total_chunks + n,
            start=job.position + n * size,
            candidates=[
                Candidate(place, f"https://images.photos.example/{place:010}.jpg", place + 1)
                for place in range(job.position + n * size, job.position + (n + 1) * size)
            ],
        )
        for n in range(number)
    ]
    state = SourceState.EXHAUSTED if number * size == job.wanted else SourceState.SPLITTING
    with transaction(engine) as session:
        assert advance_source(session, job, {}, state, chunks)
