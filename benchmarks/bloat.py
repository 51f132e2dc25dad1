"""``python -m benchmarks.bloat``: do hot tables stay small? Many writers' arrows, and what is left in the tables.

Everything is written by the program's own functions, in databases of its own that are gone afterwards.
"""

import argparse
import datetime
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from statistics import median

from sqlalchemy import Connection, Engine, text

from benchmarks import bloat_report
from benchmarks.bloat_report import HOT, Circumstances, Run, Sample, Table
from benchmarks.databases import database
from benchmarks.submitting import create_users, submit_jobs
from benchmarks.writers import Writers, picture, writers
from models.database import transaction
from models.job_lifecycle import close_job, refresh_task_ids
from models.recording import Tally, count_job, record_outcomes
from models.settings import Settings, read_settings
from scheduler.connect import connected
from scheduler.dispatch import dispatch
from scheduler.leader import Leader

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "database_bloat.md"
USERS, JOBS, CANDIDATES = 1000, 100, 2
MARKS = 10
KEPT = 8000
UPKEEP_SECONDS = 1.0
STATUS_INDEXES = ("ix_job_chunks_status", "ix_job_chunks_job_id_status", "ix_job_chunks_task_id")

TABLES = text("""
SELECT relname, pg_relation_size(relid), pg_indexes_size(relid), n_live_tup, n_dead_tup, n_tup_upd,
    n_tup_hot_upd, autovacuum_count
FROM pg_stat_user_tables WHERE relname = ANY(CAST(:tables AS text[]))
""")
WAL = text("SELECT pg_current_wal_insert_lsn() - '0/0'")


def main() -> int:
    """Measure, print, and write the page if asked to."""
    options = parse_arguments()
    # SIGTERM unwinds as Ctrl-C does, so that whatever was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pixtrawl-bench-"))) / "home"
        settings = read_settings(home=home, database_url=None, redis_url=None, store_url=None)
        reachable = stack.enter_context(connected(settings))
        kept = measure_kept(reachable)
        runs = measure(reachable, options.settles, options.writers)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    circumstances = Circumstances(options.settles, options.writers, USERS, JOBS, CANDIDATES, load, date)
    print(bloat_report.page(runs, kept, circumstances))
    if options.write:
        PAGE.write_text(bloat_report.page(runs, kept, circumstances), "utf-8")
        print(f"Written to {PAGE.relative_to(ROOT)}.", file=sys.stderr)
    return 0


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.bloat", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--settles", type=int, default=100_000, help="chunks to settle in the long run [100000]"
    )
    parser.add_argument("--writers", type=int, default=4, help="processes that settle them [4]")
    parser.add_argument("--write", action="store_true", help="write docs/database_bloat.md")
    options = parser.parse_args()
    if options.settles < MARKS * JOBS or options.writers < 1:
        parser.error(f"at least {MARKS * JOBS} settles by one writer")
    return options


def measure(settings: Settings, settles: int, number: int) -> Mapping[str, Run]:
    """Two short runs to compare with the beginning of the third, which is long."""
    marks = [settles * n // MARKS for n in range(1, MARKS + 1)]
    chunks = -(-settles // JOBS) + 2 * number  # A few more than are wanted keep every writer busy to the end.
    runs = {}
    with database(settings, "own") as engine:
        reset_options(engine)
        runs["own"] = run(settings, engine, number, chunks, marks[:1])
    with database(settings, "lean") as engine:
        with engine.begin() as connection:
            connection.execute(text(f"DROP INDEX {', '.join(STATUS_INDEXES)}"))
        runs["lean"] = run(settings, engine, number, chunks, marks[:1])
    with database(settings, "ours") as engine:
        runs["ours"] = run(settings, engine, number, chunks, marks, held=(marks[3], marks[5]))
    return runs


def measure_kept(settings: Settings) -> Sequence[tuple[str, float]]:
    """(how many versions of one job's row were kept, milliseconds that it takes to insert 500 images of it)."""
    measured = []
    with database(settings, "kept") as engine:
        [project] = create_users(engine, 1)
        submit_jobs(engine, [project], KEPT // 10, 500)  # So many candidates that every count is possible.
        with transaction(engine) as session:
            job_id = session.execute(text("SELECT id FROM crawl_jobs")).scalar_one()
        positions = count()

        def insert() -> float:
            images = [picture(job_id, next(positions)) for _ in range(500)]
            began = time.perf_counter()
            with transaction(engine) as session:
                record_outcomes(session, job_id, 1, images)
            return 1000 * (time.perf_counter() - began)

        insert()
        with open_transaction(engine):
            for kept in range(0, KEPT + 1, KEPT // 4):
                measured.append((f"{kept:,}", median(insert() for _ in range(5))))
                for _ in range(KEPT // 4):
                    with transaction(engine) as session:
                        count_job(session, job_id, Tally(accepted=1))
        insert()
        measured.append(("ended", median(insert() for _ in range(5))))
    return measured


def run(
    settings: Settings,
    engine: Engine,
    number: int,
    chunks: int,
    marks: Sequence[int],
    held: tuple[int, int] | None = None,
) -> Run:
    """Jobs with so many chunks each, and a sample at each of ``marks``, which are counts of settled chunks.

    From ``held[0]`` settled chunks to ``held[1]`` one transaction stays open, as that of a dump.
    """
    projects = create_users(engine, USERS)
    submit_jobs(engine, projects[:: USERS // JOBS], chunks, CANDIDATES)
    url = engine.url.render_as_string(hide_password=False)
    with ExitStack() as stack:
        watch = Watch(stack.enter_context(engine.connect().execution_options(isolation_level="AUTOCOMMIT")))
        leader = Leader(stack.enter_context(engine.connect()), settings)
        crew = stack.enter_context(writers(url, number))
        scheduler = Scheduler(leader, crew, watch)
        watch.sample(0)
        dump = stack.enter_context(ExitStack())
        for mark in marks:
            scheduler.run_until(mark)
            watch.sample(crew.settled.value)
            if held is not None and mark == held[0]:
                dump.enter_context(open_transaction(engine))
            if held is not None and mark == held[1]:
                dump.close()
    return Run(watch.samples, held)


class Watch:
    """Takes samples of one database, and keeps what it needs for the next."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.samples: list[Sample] = []
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM (ANALYZE)"))
        connection.execute(text("CHECKPOINT"))
        self.begin()

    def begin(self) -> None:
        """From now on the next sample counts."""
        self.began, self.dispatched, self.dispatches = time.monotonic(), 0.0, 0
        self.wal = int(self.connection.execute(WAL).scalar_one())

    def sample(self, settled: int) -> None:
        """Look at the tables now."""
        rows = self.connection.execute(TABLES, {"tables": list(HOT)})
        sample = Sample(
            settled=settled,
            seconds=time.monotonic() - self.began,
            dispatch_milliseconds=1000 * self.dispatched / max(1, self.dispatches),
            wal_bytes=int(self.connection.execute(WAL).scalar_one()) - self.wal,
            tables={row[0]: Table(*row[1:]) for row in rows},
        )
        self.samples.append(sample)
        sizes = "  ".join(f"{name} {sample.tables[name].bytes >> 10}" for name in HOT)
        print(f"{settled:7} settled, {sample.seconds:5.1f} s, kB: {sizes}", file=sys.stderr, flush=True)
        self.begin()


class Scheduler:
    """The scheduler's part, on one connection: dispatch, and the upkeep of jobs once a second."""

    def __init__(self, leader: Leader, crew: Writers, watch: Watch) -> None:
        self.leader, self.crew, self.watch = leader, crew, watch
        self.next_upkeep = 0.0

    def run_until(self, settled: int) -> None:
        """Keep the writers busy until so many chunks are settled."""
        while self.crew.settled.value < settled:
            assert not self.crew.died(), "a writer broke off"
            began = time.monotonic()
            messages = dispatch(self.leader)
            for message in messages:
                self.crew.messages.put(message)
            if messages:
                self.watch.dispatched += time.monotonic() - began
                self.watch.dispatches += 1
            if began >= self.next_upkeep:
                self.keep_up()
                self.next_upkeep = began + UPKEEP_SECONDS
            time.sleep(0.005 if messages else 0.02)

    def keep_up(self) -> None:
        """Write what jobs show, and close those that are done."""
        with self.leader.transaction() as session:
            refresh_task_ids(session)
        closed: int | None = 0
        while closed is not None:
            with self.leader.transaction() as session:
                closed = close_job(session)


@contextmanager
def open_transaction(engine: Engine) -> Iterator[None]:
    """A snapshot that is kept, so that PostgreSQL must keep every row version that is newer."""
    connection = engine.connect().execution_options(isolation_level="REPEATABLE READ")
    with connection, connection.begin():
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SELECT count(*) FROM workers"))
        yield


def reset_options(engine: Engine) -> None:
    """Take every storage option from every table, so that each has PostgreSQL's own."""
    with engine.begin() as connection:
        found = connection.execute(
            text("SELECT relname, reloptions FROM pg_class WHERE relkind = 'r' AND reloptions IS NOT NULL")
        )
        for table, options in found.all():
            names = ", ".join(option.partition("=")[0] for option in options)
            connection.execute(text(f"ALTER TABLE {table} RESET ({names})"))


if __name__ == "__main__":
    sys.exit(main())
