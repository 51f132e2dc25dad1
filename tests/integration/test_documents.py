"""The pages about the schema, typed as they stand: every block runs, and prints what the page shows."""

import datetime
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, make_url, select, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from models import Image, Profile
from models.database import alembic_config, migrate, transaction
from models.job_lifecycle import close_job
from models.lifecycle import settle_chunk
from models.members import create_profile
from models.opt_outs import Declaration, Evidence
from models.outcomes import Reason
from scheduler.commands.env import libpq
from scheduler.embedded_postgres import find_postgres
from tests.support.crawling import NewJob, accepted, new_job, query, refused, settle_run, start_next
from tests.support.pages import Reader, blocks
from tests.support.statements import sent

if TYPE_CHECKING:
    from scheduler.devstack import Services

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MANY = """
SET session_replication_role = replica;
INSERT INTO profiles (email, user_tier)
    SELECT n || '@example.invalid', CASE n % 99 WHEN 0 THEN 'PRO' ELSE 'FREE' END FROM generate_series(1, 1000) n;
INSERT INTO projects (user_id, name) SELECT id, 'Many' FROM profiles;
INSERT INTO crawl_jobs (project_id, name, status, completed_at)
    SELECT n / 99, 'Many', CASE n % 99 WHEN 0 THEN 'failed' ELSE 'completed' END, now()
    FROM generate_series(1, 5000) n;
INSERT INTO images (crawl_job_id, original_url, filename, position, sha256)
    SELECT n / 999, 'u', 'f', n % 999, sha256(n::text::bytea) FROM generate_series(1, 10000) n;
INSERT INTO failures (job_id, position, position_end, reason)
    SELECT n / 999, n % 999, n % 999, 'dns' FROM generate_series(1, 10000) n;
INSERT INTO job_chunks (job_id, chunk_index, status, task_id)
    SELECT n / 999, n % 999, CASE n % 99 WHEN 0 THEN 'failed' ELSE 'completed' END, 'chunk-' || n || '.1'
    FROM generate_series(1, 10000) n;
INSERT INTO credit_accounts (user_id) SELECT id FROM profiles;
INSERT INTO credit_transactions (account_id, user_id, type, amount, balance_after, job_id, created_at)
    SELECT id, user_id, 'usage', 0, 0, n, now() - n * interval '1 h'
    FROM credit_accounts, generate_series(1, 20) n;
INSERT INTO notifications (user_id, title, message, is_read, read_at, created_at)
    SELECT id, 't', 'm', n > 1, CASE WHEN n > 1 THEN now() END, now() - n * interval '1 h'
    FROM profiles, generate_series(1, 20) n;
INSERT INTO activity_logs (user_id, action, resource_type, resource_id, timestamp)
    SELECT id, 'a', 'crawl_job', n * 1000, now() - n * interval '1 h' FROM profiles, generate_series(1, 20) n;
INSERT INTO usage_metrics (user_id, metric_date)
    SELECT id, date '2026-01-01' + n FROM profiles, generate_series(1, 9) n;
INSERT INTO api_keys (user_id, name, key_hash, key_prefix) SELECT id, 'k', id, 'p' FROM profiles;
ANALYZE;
"""
"""Rows enough that the planner takes an index where there is one; parents are not asked for."""
HUNDRED = """
INSERT INTO profiles (email) SELECT n || '@example.invalid' FROM generate_series(1, 100) n;
INSERT INTO projects (user_id, name) SELECT id, 'Birds' FROM profiles;
INSERT INTO crawl_jobs (project_id, name) SELECT id, 'Owls' FROM projects;
"""
ORPHANS = """
INSERT INTO profiles (id, email) VALUES ('00000000-0000-0000-0000-00000000000a', 'ada@example.org');
INSERT INTO projects (name, user_id) VALUES ('Birds', '00000000-0000-0000-0000-00000000000a'),
    ('Nobody''s', '00000000-0000-0000-0000-00000000000b');
INSERT INTO crawl_jobs (project_id, name) VALUES (1, 'Owls');
INSERT INTO images (crawl_job_id, original_url, filename)
    SELECT CASE WHEN n < 10 THEN 1 ELSE 9 END, 'u', 'f' FROM generate_series(1, 20) n;
"""


def shell(url: str, redis_url: str, home: Path) -> dict[str, str]:
    """The environment of a shell with the programs of the project and of PostgreSQL, on one database."""
    # An older server cannot restore what a newer pg_dump wrote.
    postgres = os.environ.get("TEST_POSTGRES_BIN") or find_postgres().parent
    path = [Path(sys.executable).parent, postgres, os.environ["PATH"]]
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    given = {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": os.pathsep.join(map(str, path)),
        "PGTZ": "UTC",
        "PIXTRAWL_HOME": str(home),
        "PIXTRAWL_DATABASE_URL": plain,
        "PIXTRAWL_REDIS_URL": redis_url,
    }
    return given | {name: str(value) for name, value in libpq(make_url(url)).items() if value}


@pytest.fixture
def read(
    tmp_path: Path, services: "Services", monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], None]]:
    """Run every block of a page beside a database, in a folder like the checkout."""
    for name in ("alembic.ini", "alembic", "models", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    readers = []

    def read_page(page: str, url: str) -> None:
        variables = shell(url, services.redis_url, tmp_path / "home")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        readers.append(Reader(tmp_path, variables))
        for block in blocks(DOCS / page):
            if block.language not in {"", "toml"}:  # What a package says of itself: test_provider_plugin.py.
                readers[-1].run(block)

    yield read_page
    for reader in readers:
        reader.leave()


@pytest.fixture
def ada_url(engine: Engine, database_url: str) -> str:
    """A database with the pages' own user, who has a job that has ended and one that runs."""
    with transaction(engine) as session:
        user_id = create_profile(session, "ada@example.org", full_name="Ada", bonus=1000)
        assert user_id is not None
    [[account_id]] = query(engine, "SELECT id FROM credit_accounts")
    owner = NewJob(0, (), user_id, account_id)
    new_job(engine, (5, 5), owner=owner, name="Owls")
    for start in (0, 5):
        chunk = start_next(engine)
        with transaction(engine) as session:
            settle_chunk(session, chunk.fence, [*map(accepted, range(start, start + 4)), refused(start + 4)])
    with transaction(engine) as session:
        close_job(session)
    new_job(engine, (5, 5), owner=owner, name="Wrens")
    start_next(engine)
    return database_url


@pytest.mark.parametrize(
    "page",
    ["QUICK_REFERENCE.md", "SCHEMA_ALIGNMENT_SUMMARY.md", "SCHEMA_DECISION.md", "credits.md", "sources.md"],
)
def test_a_page_does_what_it_says(page: str, read: Callable[[str, str], None], ada_url: str) -> None:
    """Every block runs, and prints what the page shows."""
    read(page, ada_url)


def test_the_page_of_opt_outs_shows_evidence_as_it_is_kept(
    engine: Engine, database_url: str, read: Callable[[str, str], None]
) -> None:
    """Its query prints what a worker's refusals leave, and its refused command what it says."""
    new_job(engine, [2])
    at = datetime.datetime(2026, 11, 28, 6, 30, tzinfo=datetime.UTC)
    robots = Evidence(
        Declaration.ROBOTS_TXT, "https://birds.example/robots.txt", at, "Disallow: /owls/", 7, "*"
    )
    later = at + datetime.timedelta(seconds=1)
    line = "X-Robots-Tag: noai, noimageai"
    tag = Evidence(Declaration.X_ROBOTS_TAG, "https://photos.example/owl.jpg", later, line, agent="*")
    outcomes = [refused(0, Reason.ROBOTS, evidence=robots), refused(1, Reason.OPT_OUT, evidence=tag)]
    settle_run(engine, start_next(engine), outcomes)
    read("opt-outs.md", database_url)


def test_the_migration_guide_leads_there_and_back(
    read: Callable[[str, str], None], empty_database_url: str
) -> None:
    """Its commands take a database at 002, with orphans, to head, back to 003 and to its backup."""
    migrate(empty_database_url, "002")
    engine = create_engine(empty_database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(ORPHANS))
    read("MIGRATION_GUIDE.md", empty_database_url)


def test_the_migration_guide_knows_every_revision() -> None:
    """Its table has a row for each revision, in order."""
    rows = re.findall(r"^\| (\d+) \|", (DOCS / "MIGRATION_GUIDE.md").read_text(), re.MULTILINE)
    scripts = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    assert rows == [script.revision for script in scripts][::-1]


def test_one_row_costs_what_the_quick_reference_says(engine: Engine, ada_url: str) -> None:
    """A profile, a hundred profiles and a single image are 12 SELECTs each; the advised ways are one and two."""
    assert ada_url
    with engine.begin() as connection:
        connection.execute(text(HUNDRED))
    ways = {
        "profile": lambda session: session.scalars(select(Profile).limit(1)).all(),
        "profiles": lambda session: session.scalars(select(Profile)).all(),
        "image": lambda session: session.scalars(select(Image).limit(1)).all(),
    }
    cost = {}
    for way, load in ways.items():
        with Session(engine) as session, sent(engine) as statements:
            load(session)
            cost[way] = len(statements)
    assert cost == dict.fromkeys(ways, 12)


QUERY = re.compile(r"^\| .+ \| `(\w+ WHERE .+)` \| `(\w+)` \|$", re.MULTILINE)


def test_queries_of_the_quick_reference_use_their_index(engine: Engine) -> None:
    """The planner serves each query of the table by the index beside it."""
    queries = QUERY.findall((DOCS / "QUICK_REFERENCE.md").read_text())
    assert len(queries) > 10
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(MANY))
        find = text("SELECT id FROM profiles WHERE email = '7@example.invalid'")
        user = connection.execute(find).scalar_one()
        for condition, index in queries:
            statement = f"EXPLAIN SELECT * FROM {condition}".replace(":user", f"'{user}'")
            plan = "\n".join(connection.exec_driver_sql(statement).scalars())
            assert re.search(rf"\b{index}\b", plan), (condition, plan)
