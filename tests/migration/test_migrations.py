"""The migrations lead to the declared schema, keep rows both ways, and are safe to run at once."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from alembic import command
from models import Base
from models.database import REVISION, SchemaError, alembic_config, check_schema, migrate
from tests.support.catalog import Catalog, read_catalog, read_columns, read_rows
from tests.support.revisions import ROWS_AT, ROWS_AT_001, VERSION, Run

REVISIONS = [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()][
    ::-1
]
# What a revision changes on purpose in columns that the lower one knows; a test of its own says how.
CARRIED_OVER = {"005": {"job_chunks": {"lease_until", "worker"}}}
DROPPED = {"016": {"suspects"}}
"""Tables that a revision drops, with their rows."""
TEN_PROCESSES = """
import os, sys
from models.database import migrate
children = []
for _ in range(10):
    children.append(os.fork())
    if not children[-1]:
        migrate(sys.argv[1])
        os._exit(0)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


def downgrade(url: str, revision: str) -> None:
    """Go back to ``revision``; the program itself never does."""
    command.downgrade(alembic_config(url), revision)


def test_migrated_schema_is_the_declared_one(engine: Engine, empty: Engine, connection: Connection) -> None:
    """A database made by the migrations has the catalog of one made from the models, to the last option."""
    Base.metadata.create_all(empty)
    with engine.connect() as migrated:
        assert read_catalog(migrated) == read_catalog(connection)


def test_alembic_finds_nothing_to_migrate(engine: Engine) -> None:
    """Alembic's own comparison of the migrated database with the models finds no difference."""
    with engine.connect() as connection:
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
    check_schema(engine)


def test_the_program_knows_its_newest_revision() -> None:
    """What a command compares the database with is the newest migration."""
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == REVISION


def test_each_step_up_and_down_keeps_rows(empty_database_url: str, connection: Connection) -> None:
    """From 001 to head, down to 001 and up again, every row and column that both sides know stays."""
    catalogs: dict[str, Catalog] = {}
    columns: dict[str, dict[str, list[str]]] = {}
    for lower, revision in zip(("base", *REVISIONS), REVISIONS, strict=False):
        carried = CARRIED_OVER.get(revision, {})
        kept = {
            table: [name for name in names if name not in carried.get(table, ())]
            for table, names in columns.get(lower, {}).items()
            if table not in DROPPED.get(revision, ())
        }
        before = read_rows(connection, kept)
        migrate(empty_database_url, revision)
        assert read_rows(connection, kept) == before
        catalogs[revision], columns[revision] = read_catalog(connection), read_columns(connection)
        connection.execute(text(ROWS_AT.get(revision, "SELECT 1")))
    assert all(read_rows(connection, columns[REVISION]).values())
    for revision, upper in reversed([*itertools.pairwise(REVISIONS)]):
        both = columns[revision].keys() - DROPPED.get(upper, set())
        kept = {table: columns[revision][table] for table in both}
        rows = read_rows(connection, kept)
        downgrade(empty_database_url, revision)
        assert read_catalog(connection) == catalogs[revision]
        assert read_rows(connection, kept) == rows
    rows = read_rows(connection, columns["001"])
    migrate(empty_database_url)
    assert read_catalog(connection) == catalogs[REVISION]
    assert read_rows(connection, columns["001"]) == rows
    downgrade(empty_database_url, "base")
    assert read_catalog(connection) == {}


def test_values_are_carried_over(empty_database_url: str, connection: Connection) -> None:
    """Bytes begin at the GB recorded so far, candidates cover the images, and who processes has a lease."""
    migrate(empty_database_url, "002")
    connection.execute(text(f"{ROWS_AT_001}; {ROWS_AT['002']}; UPDATE crawl_jobs SET total_images = 0"))
    migrate(empty_database_url)
    assert connection.execute(text("SELECT storage_used_bytes FROM usage_metrics")).scalar() == 1_250_000_000
    assert set(connection.execute(text("SELECT total_images FROM crawl_jobs")).scalars()) == {2}
    leased = text("SELECT status, worker FROM job_chunks WHERE lease_until = 'infinity'")
    assert connection.execute(leased).all() == [("processing", "another service")]


def test_words_that_the_lower_revision_lacks_are_carried_over(
    empty_database_url: str, connection: Connection
) -> None:
    """Back from 017, a mismatch is corrupt, also where it was counted, and a table is another service's job."""
    migrate(empty_database_url, "002")
    connection.execute(text(f"{ROWS_AT_001}; {ROWS_AT['002']}"))
    migrate(empty_database_url, "017")
    counted = """UPDATE crawl_jobs SET source_kind = 'url_table',
        failures = '{"corrupt": 1, "mismatch": 2, "dns": 3}' WHERE id = 1"""
    failed = "INSERT INTO failures (job_id, position, position_end, reason) VALUES (1, 1, 1, 'mismatch')"
    connection.execute(text(f"{counted}; {failed}"))
    downgrade(empty_database_url, "016")
    assert connection.execute(text("SELECT reason FROM failures")).scalars().all() == ["corrupt"]
    job = connection.execute(text("SELECT source_kind, failures FROM crawl_jobs WHERE id = 1")).one()
    assert tuple(job) == (None, {"corrupt": 3, "dns": 3})


def test_sources_that_ask_the_web_end_on_the_way_back(
    empty_database_url: str, connection: Connection
) -> None:
    """What they have handed out is crawled by the lower revision, which could not ask for more."""
    migrate(empty_database_url, "002")
    connection.execute(text(f"{ROWS_AT_001}; {ROWS_AT['002']}"))
    migrate(empty_database_url, "018")
    connection.execute(text("UPDATE crawl_jobs SET source_kind = 'keywords' WHERE id = 5"))
    connection.execute(
        text("UPDATE crawl_jobs SET source_kind = 'pages', source_state = 'satisfied' WHERE id = 1")
    )
    downgrade(empty_database_url, "017")
    rows = connection.execute(
        text("SELECT source_kind, source_state FROM crawl_jobs WHERE id IN (1, 5) ORDER BY id")
    )
    assert [tuple(row) for row in rows] == [("url_list", "satisfied"), ("url_list", "exhausted")]


def test_ten_processes_migrate_at_once(empty_database_url: str, empty: Engine, tmp_path: Path) -> None:
    """All succeed without a word, in a folder whose models.py is not ours."""
    (tmp_path / "models.py").write_text("raise SystemExit('the wrong models')")
    command_line = [sys.executable, "-P", "-c", TEN_PROCESSES, empty_database_url]
    done = subprocess.run(
        command_line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    check_schema(empty)


def test_commands_of_the_quick_reference(alembic: Run, connection: Connection) -> None:
    """Each of the seed's migration commands does in the checkout what the seed says."""
    assert f"-> {REVISION} (head)" in alembic("history").stdout
    assert f"-> {REVISION}\n" in alembic("upgrade", "head", "--sql").stdout
    assert read_catalog(connection) == {}
    for arguments, revision in (
        (("upgrade", "003"), "003"),
        (("downgrade", "-1"), "002"),
        (("upgrade", "head"), REVISION),
    ):
        done = alembic(*arguments)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert connection.execute(VERSION).scalars().all() == [revision]
    assert alembic("current").stdout == f"{REVISION} (head)\n"


def test_alembic_without_a_database_says_what_to_do(alembic: Run) -> None:
    """Without a URL, or with one where nothing listens, the answer is one message and no traceback."""
    unset = alembic("upgrade", "head", url="")
    assert unset.returncode != 0
    assert unset.stdout.startswith("FAILED: PIXTRAWL_DATABASE_URL is not set")
    assert 'eval "$(pixtrawl env)"' in unset.stdout.replace("\n", " ")
    unreachable = alembic("current", url="postgresql://user:secret@127.0.0.1:1/nothing")
    assert unreachable.returncode != 0
    assert "FAILED: postgresql+psycopg2://user:***@127.0.0.1:1/nothing: connection" in unreachable.stdout
    for output in (unset.stderr, unreachable.stderr):
        assert output == ""


def test_a_database_of_a_newer_program_is_left_alone(
    empty_database_url: str, connection: Connection, alembic: Run
) -> None:
    """A revision that this program does not know is refused with a way out, and `stamp --purge` may go on."""
    migrate(empty_database_url)
    connection.execute(text("UPDATE alembic_version SET version_num = '999'"))
    with pytest.raises(
        SchemaError, match=r"revision 999, .* Nothing was changed: use that version or a later"
    ):
        migrate(empty_database_url)
    assert "a newer Pixtrawl has migrated it" in alembic("current").stdout.replace("\n", " ")
    command.stamp(alembic_config(empty_database_url), REVISION, purge=True)
    assert connection.execute(VERSION).scalars().all() == [REVISION]
