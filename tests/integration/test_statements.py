"""A real job of a large account, by the statement log of PostgreSQL: nobody loads a relationship's collection.

The mapping's relationships are ``selectin``, for other services: one mapped object loads all that belongs to it.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from benchmarks.filling import LARGE, Size, fill
from models import Profile
from models.database import make_engine, migrate, transaction
from models.members import create_profile
from scheduler.cli import main
from scheduler.devstack import Layout, Services, join
from tests.support.processes import Command, environment, until
from tests.support.site import Site
from tests.support.statement_log import COLUMNS, Logged, StatementLog, loaded, statement_log

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
SMALL = "small@example.invalid"
SIZE = Size(
    chunks=100,
    transactions=10_000,
    waiting=10,
    messages=2_000,
    ended_jobs=50,
    users=20,
    jobs=20,
    pending=200,
    stopped=20,
)
CANDIDATES, CHUNKS = 120, 3
STATEMENTS_OF_A_CHUNK_MAX = 12
LOOKS = (
    "SELECT j.cancelled_at IS NOT NULL",
    "UPDATE job_chunks c SET lease_until",
    "SELECT count(*) FROM job_chunks WHERE status = ? AND queued_at IS NOT NULL",
)
"""A worker looks after its lease every half second, whatever the chunk does meanwhile."""
ROWS_READ = """
SELECT relname, seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables
WHERE relname IN ('images', 'failures', 'credit_transactions', 'notifications', 'activity_logs')
"""


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """A server of its own, because a whole server's log is switched on."""
    with join(tmp_path / "home") as running:
        migrate(running.database_url)
        yield running


@pytest.fixture
def engine(services: Services) -> Iterator[Engine]:
    """Engine on its database, which has a large account and a small one."""
    engine = make_engine(services.database_url)
    fill(engine, SIZE)
    # The jobs of the others would be crawled, too.
    with transaction(engine) as session:
        session.execute(
            text("UPDATE crawl_jobs SET paused_at = now() WHERE status IN ('pending', 'running')")
        )
        create_profile(session, SMALL, bonus=10_000, monthly_limit=1_000_000)
    yield engine
    engine.dispose()


def printed(capsys: Any, *arguments: str, code: int = 0) -> Any:
    """What a command prints as JSON."""
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def use(capsys: Any, tmp_path: Path, site: Site, user: str) -> None:
    """All that a user does: two jobs, of which one is stopped, and a look at everything."""
    urls = site.write_list(tmp_path / f"{user}.txt", free=CANDIDATES - 6, held=0, missing=6)
    job = str(printed(capsys, "submit", str(urls))["id"])
    watched = printed(capsys, "watch", job)
    assert (watched["valid_images"], watched["failed_images"], watched["total_chunks"]) == (114, 6, CHUNKS)
    assert printed(capsys, "show", job)["credits"] == {"held": 0, "charged": 114}
    held = site.write_list(tmp_path / f"{user}-held.txt", free=0, held=5)
    stopped = str(printed(capsys, "submit", str(held))["id"])
    until(lambda: printed(capsys, "show", stopped)["active_chunks"], "a chunk under way")
    printed(capsys, "pause", stopped)
    printed(capsys, "resume", stopped)
    printed(capsys, "cancel", stopped)
    assert printed(capsys, "watch", stopped, code=1)["status"] == "cancelled"
    assert len(printed(capsys, "jobs", "--user", user, "--limit", "5")) >= 2
    assert printed(capsys, "credits", "show")["held"] == 0
    assert len(printed(capsys, "credits", "history", "--limit", "5")) == 5
    assert printed(capsys, "notifications", "--limit", "2")[0]["category"] == "crawl_job"
    printed(capsys, "credits", "grant", "5")
    printed(capsys, "projects", "list")
    printed(capsys, "users", "list")


def rows_read(engine: Engine) -> dict[str, int]:
    """Rows of each large table that were read since the database was made."""
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        return {str(table): int(read) for table, read in connection.execute(text(ROWS_READ))}


def test_nobody_loads_a_collection(tmp_path, services, engine, monkeypatch, capsys) -> None:
    """Neither worker, scheduler nor commands load mapped objects, whatever belongs to the account; what they do
    and read for a job is the same for a large account and a small one, and bounded for each chunk.
    """
    shell = environment(tmp_path / "home", database_url=services.database_url, redis_url=services.redis_url)
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    administration = create_engine(services.database_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    log_path = Layout(tmp_path / "home").log("postgres")
    with (
        Site() as site,
        statement_log(administration, log_path) as log,
        Command(tmp_path / "scheduler", shell, "scheduler") as scheduler,
        Command(tmp_path / "worker", shell, "worker", "--concurrency", 1) as worker,
    ):
        until(lambda: " ready." in worker.errors and "leader" in scheduler.errors, "scheduler and worker")
        log.read()
        seen: dict[str, list[Logged]] = {}
        read = [rows_read(engine)]
        for user in (SMALL, LARGE):
            monkeypatch.setenv("PIXTRAWL_USER", user)
            use(capsys, tmp_path, site, user)
            seen[user] = log.read()
            read.append(rows_read(engine))
        check_detector(engine, log)
    for logged in seen.values():
        assert {each.application for each in logged} >= {"pixtrawl", "pixtrawl scheduler", "pixtrawl worker"}
        assert [each for each in logged if loaded(each.statement)] == []
    check_chunks(*seen.values())
    small, large = ({table: now[table] - then[table] for table in then} for then, now in pairwise(read))
    assert {table: rows for table, rows in large.items() if rows > small[table] + 500} == {}


def check_chunks(small: Sequence[Logged], large: Sequence[Logged]) -> None:
    """What workers send for the chunks of a job is bounded, and the same whatever the account has."""
    shapes = [
        Counter(
            each.shape
            for each in logged
            if each.application == "pixtrawl worker" and each.tables and not each.shape.startswith(LOOKS)
        )
        for logged in (small, large)
    ]
    assert shapes[0] == shapes[1]
    assert shapes[0].total() <= STATEMENTS_OF_A_CHUNK_MAX * (CHUNKS + 1)


def check_detector(engine: Engine, log: StatementLog) -> None:
    """One mapped profile loads everything that belongs to it, and the detector sees each table of it."""
    with Session(engine) as session:
        user_id = session.execute(text("SELECT id FROM profiles WHERE email = :email"), {"email": SMALL})
        assert session.get(Profile, user_id.scalar_one()) is not None
    caught = set().union(*(loaded(each.statement) for each in log.read()))
    assert caught >= COLUMNS.keys() - {"api_keys", "usage_metrics"}
    for statement in ("SELECT * FROM images", "SELECT i.* FROM images AS i", "select images.* from images"):
        assert loaded(statement) == {"images"}
