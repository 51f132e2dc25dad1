"""A short walk of `make bench-size`: no path of the program reads a large table, or a large part of one.

It measures no time. A plan that depends on a lost index reads thousands of pages here.
"""

import re
from collections.abc import Mapping, Sequence

from sqlalchemy import Engine, text

from benchmarks.filling import LARGE, Size, fill
from benchmarks.hot_paths import Paths
from benchmarks.plans import Explained, Explainer
from models import audit
from models.database import transaction
from models.lifecycle import LOCK, LOOK, OWNED, RENEW
from models.members import find_user
from models.reports import job_report
from tests.support.crawling import change

SIZE = Size(
    chunks=300,
    transactions=30_000,
    waiting=64,
    messages=10_000,
    ended_jobs=300,
    users=100,
    jobs=300,
    pending=30_000,
    stopped=100,
)
INDEXES = {
    "ix_credit_transactions_chunk_id",
    "ix_credit_transactions_held_by_account",
    "ix_credit_transactions_held_by_job",
    "ix_credit_transactions_top_up",
    "ix_credit_transactions_user_id_created_at",
    "ix_crawl_jobs_live",
    "ix_crawl_jobs_reprioritized",
    "ix_job_chunks_job_id_status",
    "ix_job_chunks_live",
    "ix_job_chunks_parked",
    "ix_job_chunks_ready",
    "ix_notifications_billed_job",
    "ix_notifications_user_id_created_at",
    "uq_credit_transactions_open_hold",
    "uq_images_crawl_job_id_position",
}
"""Each is what some step finds its few rows by."""
LARGE_TABLES = {"images", "failures", "job_chunks", "credit_transactions", "notifications", "activity_logs"}
PAGES_MAX = 600
PAGES_OF_MANY_ROWS = {
    # Hundreds of images are written, each into five indexes; of the last two, a row for each of 250 candidates.
    "settle with 500": 12_000,
    "checkpoint of 450": 11_000,
    "checkpoint of 250": 6_000,
    "settle with 50": 1_500,
    "rescue that gives up": 3_000,
    "drain_cancelled": 5_000,
    # A row or two for each chunk that is queued.
    "drain_paused": 1_500,
    "publish_again": 1_500,
    "bring along": 3_000,
}


def test_no_statement_reads_much_of_a_large_table(engine):
    """Of all that worker, scheduler and command line do, with an account of 30,000 images and transactions; and
    what is written on top of them keeps the books right.
    """
    job_id = fill(engine, SIZE)
    change(engine, "INSERT INTO workers (name, slots, version) VALUES ('w', 64, '0')")
    with Explainer(engine) as explainer:
        walk(Paths(engine, job_id, explainer.around))
    check_plans(explainer.steps)
    check_books(engine, job_id)


def walk(paths: Paths) -> None:
    """Every path once, in an order that a job could take."""
    first, second, *flight = paths.dispatch() + paths.dispatch()
    paths.work(first)
    paths.settle(second)
    paths.rescue(flight.pop(), lost_leases_max=3)
    paths.rescue(flight.pop(), lost_leases_max=0)
    # There are open holds now, as autovacuum would find.
    change(paths.engine, "ANALYZE credit_transactions")
    paths.round()
    paths.look()
    paths.publish_again()
    paths.reprioritize()
    paths.pause()
    for _ in range(2):
        paths.run_out()
    for message in paths.dispatch(2):
        paths.hand_back(message)
    paths.cancel()
    paths.retry()
    paths.cancel()
    paths.dispatch()


def check_plans(steps: Mapping[str, Sequence[Explained]]) -> None:
    """No large table was read from end to end, and no statement touched more pages than its rows need."""
    assert len(steps) > 40
    scanned = {
        (name, table) for name, done in steps.items() for explained in done for table in explained.scanned
    }
    assert not {(name, table) for name, table in scanned if table in LARGE_TABLES}
    used = {index for done in steps.values() for explained in done for index in explained.indexes}
    assert INDEXES - used == set()
    pages = {name: max(explained.pages for explained in done) for name, done in steps.items()}
    assert not {name: read for name, read in pages.items() if read > PAGES_OF_MANY_ROWS.get(name, PAGES_MAX)}


def check_books(engine: Engine, job_id: int) -> None:
    """The balance is explained by every row of the ledger, and so is what `show` says without reading them."""
    with transaction(engine) as session:
        user_id = find_user(session, LARGE)
        assert user_id is not None
        statement = audit.statement(session, user_id)
        report = job_report(session, job_id)
    assert statement.correct
    assert report is not None
    assert report["status"] == "cancelled"
    assert report["credits"] == {"held": statement.open, "charged": statement.charged}
    assert report["valid_images"] + sum(report["failures"].values()) == report["total_images"]


def test_the_fence_is_found_by_its_key_whatever_the_statistics_say(engine):
    """Taken when nothing was processing, they make the index on the status look like a way to nothing at once."""
    fill(engine, SIZE)
    change(engine, "ANALYZE job_chunks")
    fence = {"chunk_id": 1, "attempt": 1, "checkpoint": 0, "worker": "worker@test", "lease_seconds": 30}
    with transaction(engine) as session:
        for statement in (LOCK, LOOK, RENEW, OWNED):
            plan = session.execute(text(f"EXPLAIN {statement.text}"), fence).scalars().all()
            indexes = {found for line in plan for found in re.findall(r"using (\S+) on job_chunks", line)}
            assert indexes == {"pk_job_chunks"}, plan
