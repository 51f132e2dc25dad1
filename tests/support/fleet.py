"""Real schedulers and workers on the services of a test, started and ended by their id, and jobs for them."""

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Engine, text

from models.candidates import pack_candidates
from models.database import transaction
from models.jobs import SourceState
from models.outcomes import Candidate
from tests.support.crawling import NewJob, new_job, query, read
from tests.support.poison import PIXELS_MAX
from tests.support.processes import Command, environment, parent, until

LEAVE_SECONDS = 15


class Fleet:
    """A context manager: what it has started ends with it, with exit code 0 unless a test has ended it."""

    def __init__(
        self,
        folder: Path,
        database_url: str,
        redis_url: str,
        variables: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        self.folder = folder
        usual = {"database_url": database_url, "redis_url": redis_url, "image_pixels_max": PIXELS_MAX}
        # A test's one site stands for many hosts.
        given = {"host_transfers": 500} | usual | settings
        self.shell = environment(folder / "home", **given) | dict(variables or {})
        self.commands: list[Command] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for command in self.commands:
            with suppress(ProcessLookupError):
                os.kill(command.process.pid, signal.SIGCONT)
                command.process.terminate()
        for command in self.commands:
            with suppress(subprocess.TimeoutExpired):
                command.process.wait(LEAVE_SECONDS)
            kill(command)

    def start(self, *arguments: object) -> Command:
        """Start ``pixtrawl ARGUMENTS``."""
        command = Command(self.folder, self.shell, *arguments)
        command.__enter__()
        self.commands.append(command)
        return command

    def scheduler(self) -> Command:
        """A scheduler; whether it leads is for it to find out."""
        return self.start("scheduler")

    def worker(self, concurrency: int = 1) -> Command:
        """A worker that takes messages."""
        command = self.start("worker", "--concurrency", concurrency)
        until(lambda: " ready." in command.errors, "a worker that is ready")
        return command

    def both(self, concurrency: int = 1) -> tuple[Command, Command]:
        """A scheduler that leads and a worker."""
        scheduler, worker = self.scheduler(), self.worker(concurrency)
        until(lambda: said(scheduler, "leader"), "a leader")
        return scheduler, worker


def kill(command: Command) -> None:
    """SIGKILL to a command and what it has started: it leads a group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(command.process.pid, signal.SIGKILL)
    command.process.wait()


def said(command: Command, event: str) -> int:
    """How often a command has logged an event."""
    return len(re.findall(rf"\] {event}\b", command.errors))


def children_of(command: Command) -> list[int]:
    """The pool's children of a worker."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if parent(pid) == command.process.pid]


def new_crawl(
    engine: Engine, urls: Sequence[str], store_url: str, chunk_size: int | None = None, **columns: Any
) -> NewJob:
    """A job for these URLs, split into chunks already."""
    size = chunk_size or len(urls)
    columns = {"store_url": store_url, "balance": 10_000_000, "max_images": len(urls)} | columns
    # A scheduler looks at it once it has its chunks: before, it is another service's.
    job = new_job(engine, [], source_kind=None, source_state=SourceState.SPLITTING, **columns)
    chunks = []
    for index, first in enumerate(range(0, len(urls), size)):
        places = enumerate(urls[first : first + size], first)
        candidates = [Candidate(place, url, place + 1) for place, url in places]
        packed = pack_candidates(candidates)
        chunks.append({"index": index, "first": first, "size": len(candidates), "packed": packed})
    with transaction(engine) as session:
        session.execute(INSERT_CHUNK, [{"job_id": job.id, **chunk} for chunk in chunks])
        session.execute(COUNT_CHUNKS, {"job_id": job.id, "chunks": len(chunks), "images": len(urls)})
    rows = query(engine, "SELECT id FROM job_chunks WHERE job_id = :id ORDER BY chunk_index", id=job.id)
    return replace(job, chunk_ids=[chunk_id for (chunk_id,) in rows])


INSERT_CHUNK = text("""
INSERT INTO job_chunks (job_id, chunk_index, image_range, size, candidates)
VALUES (:job_id, :index, jsonb_build_object('start', CAST(:first AS int), 'end', :first + :size), :size, :packed)
""")
COUNT_CHUNKS = text("""
UPDATE crawl_jobs SET total_chunks = :chunks, total_images = :images, source_position = :images,
    source_kind = 'url_list', source_state = 'exhausted' WHERE id = :job_id
""")


def ended(engine: Engine, job: NewJob, seconds: float = 60) -> dict[str, Any]:
    """A job's row once it has ended."""

    def look() -> dict[str, Any] | None:
        row = read(engine, "SELECT * FROM crawl_jobs WHERE id = :id", id=job.id)
        return row if row["completed_at"] else None

    found: dict[str, Any] = until(look, "the end of the job", seconds)
    return found
