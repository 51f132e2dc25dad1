"""The page docs/partitioning.md, its steps, and jobs on both sides of its boundaries."""

from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Engine, make_url

from models.database import transaction
from models.lifecycle import StartedChunk, checkpoint_chunk, settle_chunk
from scheduler.commands.env import libpq
from scheduler.embedded_postgres import find_postgres
from tests.support.crawling import LEASE_SECONDS, NewJob, accepted, change, new_job, refused, start_next
from tests.support.pages import Block, Reader, blocks
from tests.support.processes import until

PAGE = Path(__file__).parents[2] / "docs" / "partitioning.md"
LOOK, BEFORE, PREPARE, SWITCH, BOUND, CLOSE = (block for block in blocks(PAGE) if block.language == "sql")
SIZE = 4
ROWS_OF_ANOTHER_SERVICE = """
INSERT INTO images (crawl_job_id, original_url, filename)
SELECT :job_id, 'http://elsewhere.test/' || n, n || '.jpg' FROM generate_series(1, 500) AS n
"""
NEWEST = r"""
SELECT CAST(substring(pg_get_expr(relpartbound, oid) FROM '\d+') AS int) FROM pg_class
WHERE relispartition AND relkind = 'r' AND pg_get_expr(relpartbound, oid) LIKE '%TO (MAXVALUE)'
"""


def typist(url: str, folder: Path) -> Reader:
    """Somebody with psql on the database."""
    variables = {name: str(value) for name, value in libpq(make_url(url)).items() if value}
    return Reader(folder, {"PATH": str(find_postgres().parent), **variables})


def insist(operator: Reader, block: Block) -> None:
    """Run a block, again when somebody had the tables locked, as the page says."""

    def done() -> bool:
        try:
            operator.run(block)
        except AssertionError as error:
            if not any(reason in str(error) for reason in ("lock timeout", "deadlock")):
                raise
            return False
        return True

    until(done, "the lock")


def settled_job(engine: Engine, owner: NewJob | None = None) -> NewJob:
    """A job whose chunk has ended with one image less than candidates, and that has a chunk left."""
    job = new_job(engine, (SIZE, SIZE), owner=owner)
    change(
        engine, "UPDATE job_chunks SET queued_at = NULL, priority = 10 WHERE id = :id", id=job.chunk_ids[0]
    )
    finish(engine, start_next(engine))
    return job


def finish(engine: Engine, chunk: StartedChunk) -> None:
    """One checkpoint, with an image and a failure, then the others."""
    first, second, *others = (candidate.position for candidate in chunk.candidates)
    with transaction(engine) as session:
        assert checkpoint_chunk(session, chunk.fence, (accepted(first), refused(second)), LEASE_SECONDS)
    fence = replace(chunk.fence, checkpoint=chunk.fence.checkpoint + 1)
    with transaction(engine) as session:
        assert settle_chunk(session, fence, [accepted(position) for position in others])


def begin_partition(engine: Engine) -> None:
    """Let the next job be the first of the newest partition."""
    change(engine, f"SELECT setval('crawl_jobs_id_seq', ({NEWEST}), false)")


@dataclass(frozen=True)
class Parts:
    """A job in the table that was, one in a partition that was closed, one in the newest."""

    old: NewJob
    closed: NewJob
    newest: NewJob


def type_whole_page(engine: Engine, operator: Reader) -> Parts:
    """Type every block, the last two when the newest partition has rows. A job of one owner is in each part."""
    old = settled_job(engine)
    change(engine, ROWS_OF_ANOTHER_SERVICE, job_id=old.id)
    for block in (LOOK, BEFORE, PREPARE, SWITCH):
        operator.run(block)
    begin_partition(engine)
    closed = settled_job(engine, old)
    for block in (LOOK, BOUND, CLOSE):
        operator.run(block)
    begin_partition(engine)
    return Parts(old, closed, settled_job(engine, old))
